//! The map of the equivalences that the tests prove: what stands in the `equivalences!` of the crates' tests.

use std::fmt::Write;
use std::fs;

use anyhow::{Context, Result, anyhow};

use crate::shell::root;

/// Where they are declared.
const CRATES: [&str; 6] =
    ["peft-partial", "peft-additive", "peft-reparam", "peft-hybrid", "peft-unified", "peft-bench"];

/// Two functions that are the same under a condition.
#[derive(Debug, PartialEq)]
struct Edge {
    test: String,
    left: String,
    right: String,
    condition: String,
    /// The error budget and the models.
    within: String,
    place: String,
}

/// `cargo xtask equivalences`.
pub fn print() -> Result<()> {
    print!("{}", page()?);
    Ok(())
}

/// Where the error budgets are.
const TOLERANCES: &str = "peft-core/src/testing/tolerances.rs";

/// The map as METHODS.md has it.
pub fn page() -> Result<String> {
    let declared = fs::read_to_string(root().join(TOLERANCES)).context(TOLERANCES)?;
    let budgets = budgets(&declared);
    let mut page =
        String::from("| function | is | if | within, on the models | test |\n| --- | --- | --- | --- | --- |\n");
    for name in CRATES {
        let place = format!("{name}/tests/suite/equivalences.rs");
        let source = fs::read_to_string(root().join(&place)).context(place.clone())?;
        for Edge { test, left, right, condition, within, place } in edges(&source, &place)? {
            let within = with_value(&within, &budgets).with_context(|| format!("{place}: {within}"))?;
            writeln!(page, "| {left} | {right} | {condition} | {within} | `{test}` in {place} |")?;
        }
    }
    Ok(page)
}

/// The names and values of the budgets that a file declares.
fn budgets(source: &str) -> Vec<(&str, &str)> {
    let declared = source.lines().filter_map(|line| line.strip_prefix("pub const ")?.strip_suffix(");"));
    declared.filter_map(|line| line.split_once(": Tolerance = Tolerance(")).collect()
}

/// `BUDGET on MODELS` with the budget's value.
fn with_value(within: &str, budgets: &[(&str, &str)]) -> Result<String> {
    let (name, models) = within.split_once(' ').unwrap_or((within, ""));
    let found = budgets.iter().find(|(known, _)| *known == name);
    let (_, value) = found.ok_or_else(|| anyhow!("no such error budget in {TOLERANCES}"))?;
    Ok(format!("{name} ({value}) {models}"))
}

/// What a file declares, `test: "left" = "right" if "condition", TOLERANCE on SHAPES, ..`.
fn edges(source: &str, place: &str) -> Result<Vec<Edge>> {
    let source = source.split_whitespace().collect::<Vec<_>>().join(" ");
    let (_, declared) = source.split_once("equivalences! {").ok_or_else(|| anyhow!("{place}: no `equivalences!`"))?;
    let edge = |(at, _): (usize, &str)| -> Option<Edge> {
        let (before, left) = declared[..at].rsplit_once('"')?;
        let test = before.trim_end().strip_suffix(':')?.rsplit([' ', ';', '{']).next()?;
        let (right, rest) = declared[at..].strip_prefix("\" = \"")?.split_once('"')?;
        let (condition, rest) = rest.strip_prefix(" if \"")?.split_once('"')?;
        let (within, _) = rest.strip_prefix(", ")?.split_once(',')?;
        let [test, left, right, condition, within, place] =
            [test, left, right, condition, within, place].map(str::to_string);
        Some(Edge { test, left, right, condition, within, place })
    };
    let malformed =
        |at: usize| anyhow!("{place}: no `test: \"left\" = \"right\" if \"condition\", ..` at {:.60}", &declared[at..]);
    declared.match_indices("\" = \"").map(|found| edge(found).ok_or_else(|| malformed(found.0))).collect()
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn budgets_are_named_with_their_values() {
        let source = "/// A doc.\npub const MERGED: Tolerance = Tolerance(5e-5);\npub const OTHER: Tolerance = Tolerance(1e-4);\n";
        let budgets = budgets(source);
        assert_eq!(with_value("MERGED on SHAPES", &budgets).unwrap(), "MERGED (5e-5) on SHAPES");
        assert!(with_value("SAME on SHAPES", &budgets).is_err());
    }

    #[test]
    fn edges_are_read_as_they_are_declared() {
        let source = "use a::equivalences;\nequivalences! {\n    one: \"LoRA\" = \"base\" if \"B = 0\", MERGED on SHAPES, |b, s, h| {\n        pair\n    };\n\n    \
                      two: \"X\"\n        = \"Y and Z\" if \"so\",\n        SAME on ENCODERS, |b, s, h| f(b);\n}\n";
        let edge = |test: &str, left: &str, right: &str, condition: &str, within: &str| {
            let [test, left, right, condition, within] = [test, left, right, condition, within].map(str::to_string);
            Edge { test, left, right, condition, within, place: "p".into() }
        };
        let expected = [
            edge("one", "LoRA", "base", "B = 0", "MERGED on SHAPES"),
            edge("two", "X", "Y and Z", "so", "SAME on ENCODERS"),
        ];
        assert_eq!(edges(source, "p").unwrap(), expected);
        let message = edges("equivalences! { one: \"LoRA\" = \"base\" unless \"B\", X on Y, f; }", "p").unwrap_err();
        assert!(message.to_string().contains("p: no `test"), "{message}");
    }
}
