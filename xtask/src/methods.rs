//! METHODS.md: what the cards of the methods say, and the tests that stand behind it.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};

use crate::backends::METHOD_CRATES;
use crate::card::{Card, Conformance, Identity, conformance, shapes, tests};
use crate::equivalences;
use crate::shell::root;

/// A method's card, its file, and its oracle, identities and other tests as METHODS.md lists them.
struct Entry {
    package: &'static str,
    file: String,
    card: Card,
    oracle: String,
    identities: Vec<String>,
    others: Vec<String>,
}

/// `cargo xtask methods`.
pub fn write() -> Result<()> {
    fs::write(root().join("METHODS.md"), render()?).context("METHODS.md")
}

/// The most lines of a source file.
const MOST_LINES: usize = 500;
/// The most lines of a method's file in front of its tests.
const MOST_OF_A_METHOD: usize = 400;

/// `cargo xtask methods --check`.
pub fn check() -> Result<()> {
    let long = too_long()?;
    if !long.is_empty() {
        bail!("files that should be several, along a seam that is there:\n{}", long.join("\n"));
    }
    let written = fs::read_to_string(root().join("METHODS.md")).unwrap_or_default();
    if written == render()? { Ok(()) } else { bail!("METHODS.md is out of date: run `cargo xtask methods`") }
}

fn render() -> Result<String> {
    let mut entries = Vec::new();
    for package in METHOD_CRATES {
        for file in files(&root().join(package).join("src"))? {
            let relative = file.strip_prefix(root())?.display().to_string();
            let source = fs::read_to_string(&file)?;
            if let Some(card) = Card::parse(&source).context(relative.clone())? {
                entries.push(verified(package, relative, &source, card)?);
            }
        }
    }
    Ok(page(&entries, &equivalences::page()?)?)
}

/// The source files of all packages that are longer than they should be.
fn too_long() -> Result<Vec<String>> {
    let mut long = vec![];
    for package in fs::read_dir(root())? {
        let package = package?;
        let of_methods = METHOD_CRATES.iter().any(|name| package.file_name() == *name);
        let sources = package.path().join("src");
        for file in if sources.is_dir() { files(&sources)? } else { vec![] } {
            let source = fs::read_to_string(&file)?;
            let relative = file.strip_prefix(root())?.display().to_string();
            let own = source.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).count();
            let method = of_methods && Card::parse(&source).context(relative.clone())?.is_some();
            let (lines, most) = if method && own > MOST_OF_A_METHOD {
                (own, MOST_OF_A_METHOD)
            } else {
                (source.lines().count(), MOST_LINES)
            };
            if lines > most {
                long.push(format!("{relative}: {lines} lines, of {most}"));
            }
        }
    }
    Ok(long)
}

/// The Rust files below a folder, in the order of their paths.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The oracle and the identities with the places of their tests, and what else the file's own tests are. A test that does not exist
/// in the crate is an error; an oracle's may also stand in those that have a package's files for many methods.
fn verified(package: &'static str, file: String, source: &str, card: Card) -> Result<Entry> {
    let (suites, own) = (conformance(source), tests(source));
    let elsewhere = places(&[package])?;
    let of_oracle = places(&[package, "peft-core", "peft-bench"])?;
    let place = |name: &String, elsewhere: &[(String, String)]| {
        let holds = |suite: &Conformance| suite.skipped.iter().all(|(property, _)| property != name);
        let property = name.strip_prefix('C').and_then(|n| n.parse().ok()).is_some_and(|n| (1..=12).contains(&n));
        if own.contains(name) || property && suites.iter().any(holds) {
            return Ok(format!("`{name}`"));
        }
        let found = elsewhere.iter().find(|(test, _)| test == name);
        found
            .map(|(_, place)| format!("`{name}` in {place}"))
            .ok_or_else(|| anyhow!("{file}: no test `{name}` in {package}"))
    };
    let claim = |text: &str, tests: &[String], elsewhere: &[(String, String)]| {
        let places = tests.iter().map(|test| place(test, elsewhere)).collect::<Result<Vec<_>>>()?;
        anyhow::Ok(format!("{text}: {}", places.join(", ")))
    };
    let oracle = claim(&card.oracle.source, &card.oracle.tests, &of_oracle)?;
    let identity = |Identity { text, tests }: &Identity| claim(text, tests, &elsewhere);
    let identities = card.identities.iter().map(identity).collect::<Result<Vec<_>>>()?;
    let named = |test: &String| {
        card.oracle.tests.contains(test) || card.identities.iter().any(|identity| identity.tests.contains(test))
    };
    let others = own.iter().filter(|test| !named(test)).map(|test| format!("`{test}`"));
    let others = suites.iter().map(|used| suite(used, source)).chain(others.map(Ok)).collect::<Result<_>>()?;
    Ok(Entry { package, file, card, oracle, identities, others })
}

/// The tests of some crates, each with its file, which of the first crate is relative to that.
fn places(packages: &[&str]) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for package in packages {
        let folders = ["src", "tests"].map(|folder| root().join(package).join(folder));
        for folder in folders.iter().filter(|folder| folder.exists()) {
            for path in files(folder)? {
                let inside = root().join(if *package == packages[0] { package } else { "" });
                let place = path.strip_prefix(inside)?.display().to_string();
                found.extend(tests(&fs::read_to_string(&path)?).into_iter().map(|name| (name, place.clone())));
            }
        }
    }
    Ok(found)
}

/// What is said of a use of the conformance suite in a file.
fn suite(Conformance { config, only, skipped }: &Conformance, source: &str) -> Result<String> {
    let reasons = skipped.iter().map(|(property, reason)| format!("{property} ({reason})"));
    let but =
        if skipped.is_empty() { "all".into() } else { format!("all but {}", reasons.collect::<Vec<_>>().join(", ")) };
    let Some((name, why)) = only else { return Ok(format!("conformance C1 to C12 of `{config}`: {but}")) };
    let fixtures = fs::read_to_string(root().join("peft-core/src/testing/fixtures.rs"))?;
    let on = shapes(source, name).or_else(|| shapes(&fixtures, name));
    let on = on.with_context(|| format!("{config}: no list of shapes {name}"))?.join(", ");
    Ok(format!("conformance C1 to C12 of `{config}` on {on} only ({why}): {but}"))
}

fn page(entries: &[Entry], equivalences: &str) -> Result<String, std::fmt::Error> {
    let mut page = String::from(
        "# Methods\n\n\
         Written by `cargo xtask methods` from the cards at the head of the methods' files. Behind each identity stand the\n\
         tests that check it: functions of the method's crate, or properties C1 to C12 of the conformance suite. An oracle is what its\n\
         results are compared with: a package's, those of the authors' code as a golden file derives them anew, or the paper alone.\n\n\
         | method | family | crate | trains | merges | paper | oracle |\n| --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for Entry { package, card, .. } in entries {
        let anchor = card
            .name
            .to_lowercase()
            .replace(|c: char| !(c.is_alphanumeric() || " -_".contains(c)), "")
            .replace(' ', "-");
        let name = format!("[{}](#{anchor})", card.name);
        let cells =
            [name.as_str(), &card.family, package, &card.trains, &card.merges, &card.paper, &card.oracle.source];
        let cells = cells.map(|cell| cell.trim_end_matches('.').replace('|', "\\|"));
        writeln!(page, "| {} |", cells.join(" | "))?;
    }
    let bare = METHOD_CRATES.iter().filter(|package| entries.iter().all(|entry| entry.package != **package));
    let bare: Vec<&str> = bare.copied().collect();
    if !bare.is_empty() {
        writeln!(page, "\nWithout a method yet: {}.", bare.join(", "))?;
    }
    writeln!(
        page,
        "\n## Equivalences\n\nEach is a test: on random states both are the same function if the condition holds, and are not if it does \
         not.\n`cargo xtask equivalences` prints them.\n\n{}",
        equivalences.trim_end()
    )?;
    for Entry { file, card, oracle, identities, others, .. } in entries {
        writeln!(
            page,
            "\n## {}\n\n[{file}]({file}). Reference: {}. Oracle: {oracle}.\n",
            card.name,
            card.reference.trim_end_matches('.')
        )?;
        for line in card.formula.iter().filter(|line| !line.is_empty()) {
            writeln!(page, "    {line}")?;
        }
        writeln!(page, "\nIdentities:\n")?;
        for identity in identities {
            writeln!(page, "- {identity}")?;
        }
        writeln!(page, "\nOther tests in its file:\n")?;
        for test in others {
            writeln!(page, "- {test}")?;
        }
        writeln!(page, "\nDiffers from the paper: {}", card.differs)?;
    }
    Ok(page)
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn an_identity_needs_a_test() {
        let source = "conformance!(Config, skip(C3: \"no\"));\n#[test]\nfn own() {}\n";
        let verified = |test: &str| {
            let card = format!(
                "//! # X   family: y\n//! f\n//! Paper: p\n//! Reference: r\n//! Oracle: paper: `own`\n//! Trains: t\n//! Merges: m\n\
                 //! Identities:\n//! - so: `{test}`\n//! Differs from the paper: no"
            );
            let card = Card::parse(&card)?.context("a card")?;
            Ok::<_, anyhow::Error>(verified("peft-reparam", "x.rs".into(), source, card)?.identities[0].clone())
        };
        assert_eq!(verified("own").unwrap(), "so: `own`");
        assert_eq!(verified("C1").unwrap(), "so: `C1`");
        let elsewhere = "so: `alpha_scales_as_b_does` in tests/suite/lora_identities.rs";
        assert_eq!(verified("alpha_scales_as_b_does").unwrap(), elsewhere);
        for missing in ["C3", "C13", "no_such_test"] {
            assert_eq!(
                verified(missing).unwrap_err().to_string(),
                format!("x.rs: no test `{missing}` in peft-reparam")
            );
        }
    }
}
