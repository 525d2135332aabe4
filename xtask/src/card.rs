//! The card at the head of a method's file, and the tests that go with it.

use anyhow::{Result, anyhow, bail};

/// What a method's file says of it, field by field.
#[derive(Debug, PartialEq)]
pub struct Card {
    pub name: String,
    pub family: String,
    pub formula: Vec<String>,
    pub paper: String,
    pub reference: String,
    pub oracle: Oracle,
    pub trains: String,
    pub merges: String,
    pub identities: Vec<Identity>,
    pub differs: String,
}

/// What independent computation a method's results are compared with: a package, the authors' code as a golden derives it anew, or
/// the paper's equations alone.
#[derive(Debug, PartialEq)]
pub struct Oracle {
    pub source: String,
    pub tests: Vec<String>,
}

/// A statement about a method with the tests that check it: names of functions, or C1 to C12 of the conformance suite.
#[derive(Debug, PartialEq)]
pub struct Identity {
    pub text: String,
    pub tests: Vec<String>,
}

/// The fields after the formula, in their order.
const FIELDS: [&str; 7] =
    ["Paper:", "Reference:", "Oracle:", "Trains:", "Merges:", "Identities:", "Differs from the paper:"];

impl Card {
    /// Reads the card of a file; `None` if the file is no method's.
    pub fn parse(source: &str) -> Result<Option<Card>> {
        let lines: Vec<&str> = source.lines().map_while(|line| line.strip_prefix("//!")).map(str::trim).collect();
        let title = lines.first().and_then(|line| line.strip_prefix("# ")).and_then(|line| line.split_once("family:"));
        let Some((name, family)) = title else {
            return if source.contains("impl Method for ") {
                bail!("no card, `//! # NAME   family: ..`")
            } else {
                Ok(None)
            };
        };
        let text = lines[1..].join("\n");
        let start = |field: &str| text.find(field).ok_or_else(|| anyhow!("the card has no `{field}`"));
        let starts = FIELDS.iter().map(|field| start(field)).collect::<Result<Vec<_>>>()?;
        if !starts.is_sorted() {
            bail!("the fields of the card are not in the order {}", FIELDS.join(", "));
        }
        let ends = starts.iter().copied().skip(1).chain([text.len()]);
        let values = FIELDS.iter().zip(starts.iter().zip(ends)).map(|(field, (start, end))| {
            let words: Vec<&str> = text[start + field.len()..end].split_whitespace().collect();
            if words.is_empty() { bail!("the card says nothing after `{field}`") } else { Ok(words.join(" ")) }
        });
        let formula: Vec<String> = text[..starts[0]].lines().map(str::to_string).collect();
        if formula.iter().all(String::is_empty) {
            bail!("the card has no formula between its title and `Paper:`");
        }
        let [paper, reference, oracle, trains, merges, _, differs] =
            values.collect::<Result<Vec<_>>>()?.try_into().map_err(|_| anyhow!("as many values as fields"))?;
        let oracle = Oracle::parse(&oracle)?;
        let identities = identities(&text[starts[5] + FIELDS[5].len()..starts[6]])?;
        let (name, family) = (name.trim().to_string(), family.trim().to_string());
        Ok(Some(Card { name, family, formula, paper, reference, oracle, trains, merges, identities, differs }))
    }
}

impl Oracle {
    fn parse(text: &str) -> Result<Oracle> {
        let known = |source: &str| {
            source == "paper"
                || ["package ", "code "].iter().any(|kind| source.len() > kind.len() && source.starts_with(kind))
        };
        let (source, tests) = claim(text).filter(|(source, _)| known(source)).ok_or_else(|| {
            anyhow!("the oracle `{text}` is not of the form package NAME VERSION: `TEST`, or code REPOSITORY FILE: .., or paper: ..")
        })?;
        Ok(Oracle { source, tests })
    }
}

/// Reads `text: `test`, `test``.
fn claim(line: &str) -> Option<(String, Vec<String>)> {
    let (text, names) = line.rsplit_once(": ")?;
    let name = |name: &str| {
        let name = name.strip_prefix('`')?.strip_suffix('`')?;
        (!name.contains('`')).then(|| name.to_string())
    };
    Some((text.to_string(), names.split(", ").map(name).collect::<Option<_>>()?))
}

/// Reads `- statement: `test`, `test`` line by line.
fn identities(list: &str) -> Result<Vec<Identity>> {
    let identity = |line: &str| {
        let (text, tests) = line
            .strip_prefix("- ")
            .and_then(claim)
            .ok_or_else(|| anyhow!("the identity `{line}` is not of the form - STATEMENT: `TEST`, `TEST`"))?;
        Ok(Identity { text, tests })
    };
    list.lines().filter(|line| !line.is_empty()).map(identity).collect()
}

/// A use of the conformance suite: the configuration, why it is not on all models if it is not, and the skipped properties with
/// their reasons.
#[derive(Debug, PartialEq)]
pub struct Conformance {
    pub config: String,
    /// The name of the list of shapes that it is for, and why it is for no others.
    pub only: Option<(String, String)>,
    pub skipped: Vec<(String, String)>,
}

/// The uses of the conformance suite in a file.
pub fn conformance(source: &str) -> Vec<Conformance> {
    let uses = source.split("conformance!(").skip(1).filter_map(|rest| rest.split_once(");"));
    uses.map(|(inside, _)| {
        let inside = inside.split_whitespace().collect::<Vec<_>>().join(" ");
        let (config, skips) = inside.split_once(", skip(").unwrap_or((&inside, ""));
        let (config, only) = config.split_once(", only(").map_or((config, None), |(config, only)| (config, Some(only)));
        let only: Option<(String, String)> =
            only.and_then(|only| Some((only.split_once(':')?.0.into(), only.split('"').nth(1)?.into())));
        // A reason stands between quotes, its property before the colon in front of them.
        let words: Vec<&str> = skips.split('"').collect();
        let pairs = words.chunks_exact(2);
        let skip = |pair: &[&str]| (pair[0].trim_matches([' ', ',', ':']).to_string(), pair[1].to_string());
        let mut skipped: Vec<_> = pairs.map(skip).collect();
        // The suite itself leaves it out.
        if only.as_ref().is_some_and(|(shapes, _)| shapes == "ENCODERS") {
            skipped.push(("C11".to_string(), "encoders write no texts".to_string()));
        }
        Conformance { config: config.trim_end_matches(',').to_string(), only, skipped }
    })
    .collect()
}

/// The named shapes in a constant of a file.
pub fn shapes(source: &str, name: &str) -> Option<Vec<String>> {
    let (_, list) = source.split_once(&format!("const {name}: [&str;"))?.1.split_once("= [")?;
    let list = list.split_once(']')?.0;
    Some(list.split(',').map(|shape| shape.trim().trim_matches('"').to_string()).collect())
}

/// The names of the tests in a file.
pub fn tests(source: &str) -> Vec<String> {
    let lines: Vec<&str> = source.lines().map(str::trim_start).collect();
    let attributes = (0..lines.len()).filter(|i| lines[*i] == "#[test]");
    let name = |attribute: usize| {
        let function = lines[attribute..].iter().find_map(|line| line.strip_prefix("fn "))?;
        Some(function.split('(').next()?.to_string())
    };
    attributes.filter_map(name).collect()
}

#[cfg(test)]
mod unit {
    use super::*;

    const FILE: &str = r#"//! # LoRA      family: reparameterized / low-rank decomposition
//! h = W x + s B A x      A: [d_in, r]
//! s = alpha / r
//! Paper: Hu et al., 2021, eq. 3.   Reference: peft
//! Oracle: package peft 0.21.2: `equals_the_reference`
//! Trains: r (d_in + d_out) per site.      Merges: yes.
//! Identities:
//! - zero at init: `C1`
//! - alpha: c alpha is B -> c B, as in [a; b]: `scales`, `C3`
//!
//! Differs from the paper: nothing.

impl Method for LoraConfig {}

mod tests {
    peft_core::conformance!(
        LoraConfig::new(3).with_alpha(5.0),
        skip(C1: "it starts (somehow) elsewhere", C3: "no, never")
    );
    mod more {
        peft_core::conformance!(LoraConfig::new(2), only(ENCODERS: "some names"));
        peft_core::conformance!(SideConfig::new(2), skip(C3: "no", C6: "alone"));
    }

    #[test]
    fn equals_the_reference() {
        if true {
        }
    }

    proptest! {
        /// Doc.
        #[test]
        fn scales(c in 0.0..1.0) {
            LoraConfig::new(3);
        }
    }
}
"#;

    #[test]
    fn a_card_is_read() {
        let card = Card::parse(FILE).unwrap().unwrap();
        assert_eq!((card.name.as_str(), card.family.as_str()), ("LoRA", "reparameterized / low-rank decomposition"));
        assert_eq!(card.formula, ["h = W x + s B A x      A: [d_in, r]", "s = alpha / r"]);
        assert_eq!((card.paper.as_str(), card.reference.as_str()), ("Hu et al., 2021, eq. 3.", "peft"));
        let oracle = Oracle { source: "package peft 0.21.2".into(), tests: vec!["equals_the_reference".into()] };
        assert_eq!(card.oracle, oracle);
        assert_eq!((card.trains.as_str(), card.merges.as_str()), ("r (d_in + d_out) per site.", "yes."));
        let identity = |text: &str, tests: &[&str]| Identity {
            text: text.to_string(),
            tests: tests.iter().map(|name| name.to_string()).collect(),
        };
        let expected = [
            identity("zero at init", &["C1"]),
            identity("alpha: c alpha is B -> c B, as in [a; b]", &["scales", "C3"]),
        ];
        assert_eq!(card.identities, expected);
        assert_eq!(card.differs, "nothing.");
    }

    #[test]
    fn an_incomplete_card_is_an_error() {
        for field in FIELDS {
            let message = Card::parse(&FILE.replace(field, "")).unwrap_err().to_string();
            assert!(message.contains(field), "{message}");
        }
        assert!(Card::parse(&FILE.replace("nothing.", "")).unwrap_err().to_string().contains("Differs"));
        for broken in ["zero at init", "- zero at init", "- zero at init: C1", "- zero at init: `C1` `C3`"] {
            let message = Card::parse(&FILE.replace("- zero at init: `C1`", broken)).unwrap_err().to_string();
            assert!(message.contains(broken), "{message}");
        }
        for broken in ["package: `equals_the_reference`", "peft 0.21.2: `equals_the_reference`", "package peft 0.21.2"]
        {
            let file = FILE.replace("package peft 0.21.2: `equals_the_reference`", broken);
            let message = Card::parse(&file).unwrap_err().to_string();
            assert!(message.contains(broken), "{message}");
        }
        assert!(Card::parse("//! Some file.\nimpl Method for LoraConfig {}").is_err());
        assert_eq!(Card::parse("//! Some file.").unwrap(), None);
    }

    #[test]
    fn tests_are_found() {
        let skip = |property: &str, reason: &str| (property.to_string(), reason.to_string());
        let (config, skipped) = (
            "LoraConfig::new(3).with_alpha(5.0)".to_string(),
            vec![skip("C1", "it starts (somehow) elsewhere"), skip("C3", "no, never")],
        );
        let second = Conformance {
            config: "LoraConfig::new(2)".into(),
            only: Some(("ENCODERS".into(), "some names".into())),
            skipped: vec![skip("C11", "encoders write no texts")],
        };
        let alone = vec![skip("C3", "no"), skip("C6", "alone")];
        let third = Conformance { config: "SideConfig::new(2)".into(), only: None, skipped: alone };
        assert_eq!(conformance(FILE), [Conformance { config, only: None, skipped }, second, third]);
        let source = "const FEW: [&str; 2] = [\"bert-tiny\", \"t5-tiny\"];";
        assert_eq!(shapes(source, "FEW").unwrap(), ["bert-tiny", "t5-tiny"]);
        assert_eq!(shapes(source, "MANY"), None);
        assert_eq!(tests(FILE), ["equals_the_reference", "scales"]);
    }
}
