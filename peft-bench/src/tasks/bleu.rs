//! Corpus BLEU (Papineni et al., 2002) as sacreBLEU 2 computes it by default: 13a tokens, mixed case, one reference,
//! exponential smoothing (Chen and Cherry, 2014, method 3).

use std::collections::HashMap;
use std::fmt;

use peft_core::{Error, Result};

/// The longest n-grams that count.
const ORDER: usize = 4;

/// What sacreBLEU says of a score that is computed like this; the version is the one that the golden files are from.
pub const SIGNATURE: &str = "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0";

/// The score of a corpus and what it is made of. Prints in sacreBLEU's format.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bleu {
    /// The score, from 0 to 100.
    pub score: f64,
    /// The precisions of 1- to 4-grams after smoothing, from 0 to 100; all 0 if no token matches.
    pub precisions: [f64; ORDER],
    /// The factor for hypotheses that are shorter than their references, from 0 to 1.
    pub brevity_penalty: f64,
    /// The n-grams of the hypotheses that their references have too.
    pub matches: [usize; ORDER],
    /// All n-grams of the hypotheses.
    pub totals: [usize; ORDER],
    /// Tokens of the hypotheses.
    pub length: usize,
    /// Tokens of the references.
    pub reference_length: usize,
}

impl fmt::Display for Bleu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ratio = match self.reference_length {
            0 => 0.0,
            reference => self.length as f64 / reference as f64,
        };
        let [p1, p2, p3, p4] = self.precisions;
        write!(f, "BLEU = {:.2} {p1:.1}/{p2:.1}/{p3:.1}/{p4:.1} ", self.score)?;
        write!(f, "(BP = {:.3} ratio = {ratio:.3} ", self.brevity_penalty)?;
        write!(f, "hyp_len = {} ref_len = {})", self.length, self.reference_length)
    }
}

/// Scores hypotheses against one reference each. Both are plain text, not tokenized. An error if there are none, or not as
/// many of one as of the other.
pub fn bleu(hypotheses: &[impl AsRef<str>], references: &[impl AsRef<str>]) -> Result<Bleu> {
    if hypotheses.len() != references.len() || references.is_empty() {
        let expected = format!("as many as references, which are {}, and at least 1", references.len());
        return Err(Error::config("hypotheses", hypotheses.len(), expected));
    }
    let (mut matches, mut totals) = ([0; ORDER], [0; ORDER]);
    let (mut length, mut reference_length) = (0, 0);
    for (hypothesis, reference) in hypotheses.iter().zip(references) {
        let (hypothesis, reference) = (tokenize(hypothesis.as_ref()), tokenize(reference.as_ref()));
        let (hypothesis, reference) = (words(&hypothesis), words(&reference));
        length += hypothesis.len();
        reference_length += reference.len();
        for n in 1..=ORDER {
            let known = counts(&reference, n);
            let clipped = |(gram, count): (&[&str], usize)| count.min(known.get(gram).copied().unwrap_or(0));
            matches[n - 1] += counts(&hypothesis, n).into_iter().map(clipped).sum::<usize>();
            totals[n - 1] += (hypothesis.len() + 1).saturating_sub(n);
        }
    }
    let brevity_penalty = match length {
        0 if reference_length > 0 => 0.0,
        _ if length < reference_length => (1.0 - reference_length as f64 / length as f64).exp(),
        _ => 1.0,
    };
    let precisions = precisions(&matches, &totals);
    let score = match precisions.contains(&0.0) {
        true => 0.0,
        false => brevity_penalty * (precisions.map(f64::ln).iter().sum::<f64>() / ORDER as f64).exp(),
    };
    Ok(Bleu { score, precisions, brevity_penalty, matches, totals, length, reference_length })
}

/// In percent. Where no n-gram matches, half of what one match would give; half of that where none does again. Where there
/// is no n-gram, 0.
fn precisions(matches: &[usize; ORDER], totals: &[usize; ORDER]) -> [f64; ORDER] {
    let (mut precisions, mut smoothing) = ([0.0; ORDER], 1.0);
    if matches == &[0; ORDER] {
        return precisions;
    }
    for n in (0..ORDER).take_while(|n| totals[*n] > 0) {
        precisions[n] = match matches[n] {
            0 => {
                smoothing *= 2.0;
                100.0 / (smoothing * totals[n] as f64)
            }
            count => 100.0 * count as f64 / totals[n] as f64,
        };
    }
    precisions
}

fn counts<'a, 'b>(words: &'b [&'a str], n: usize) -> HashMap<&'b [&'a str], usize> {
    let mut counts = HashMap::new();
    words.windows(n).for_each(|gram| *counts.entry(gram).or_default() += 1);
    counts
}

/// Python takes four separators of ASCII for blanks that Unicode does not.
fn blank(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

fn words(text: &str) -> Vec<&str> {
    text.split(blank).filter(|word| !word.is_empty()).collect()
}

/// The text with blanks between its tokens, as NIST's script mteval-v13a cuts it: ASCII punctuation stands alone but for
/// the apostrophe; so do a period or comma without a digit on one of its sides, and a dash after a digit.
fn tokenize(text: &str) -> String {
    let mut line = text.trim_end_matches(blank).replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    for (entity, character) in [("&quot;", "\""), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")] {
        line = line.replace(entity, character);
    }
    let apart = |c: char| matches!(c, ' '..='&' | '('..='+' | '/' | ':'..='@' | '['..='`' | '{'..='~');
    let mut cut = String::from(" ");
    for c in line.chars() {
        match apart(c) {
            true => cut.extend([' ', c, ' ']),
            false => cut.push(c),
        }
    }
    cut.push(' ');
    let (digit, stop) = (|c: char| c.is_ascii_digit(), |c: char| c == '.' || c == ',');
    let cut = at_pairs(&cut, |first, second| !digit(first) && stop(second), |first, second| [first, ' ', second, ' ']);
    let cut = at_pairs(&cut, |first, second| stop(first) && !digit(second), |first, second| [' ', first, ' ', second]);
    at_pairs(&cut, |first, second| digit(first) && second == '-', |first, second| [first, ' ', second, ' '])
}

/// Rewrites pairs of neighbours from left to right; what was taken for one pair is no part of the next.
fn at_pairs(text: &str, pair: impl Fn(char, char) -> bool, form: impl Fn(char, char) -> [char; 4]) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    let mut rest = text.chars().peekable();
    while let Some(first) = rest.next() {
        match rest.next_if(|second| pair(first, *second)) {
            Some(second) => out.extend(form(first, second)),
            None => out.push(first),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn texts(value: &Value) -> Vec<String> {
        serde_json::from_value(value.clone()).unwrap()
    }

    fn golden() -> Value {
        serde_json::from_str(include_str!("../../tests/golden/bleu.json")).unwrap()
    }

    /// See scripts/golden/bleu.py.
    #[test]
    fn equals_sacrebleu() {
        let golden = golden();
        assert_eq!(golden["signature"], SIGNATURE);
        let cases = golden["cases"].as_array().unwrap();
        assert!(cases.len() >= 40);
        for case in cases {
            let name = &case["name"];
            let (hypotheses, references) = (texts(&case["hypotheses"]), texts(&case["references"]));
            for (text, tokens) in hypotheses.iter().chain(&references).zip(texts(&case["tokens"])) {
                assert_eq!(words(&tokenize(text)).join(" "), tokens, "{name}");
            }
            let found = bleu(&hypotheses, &references).unwrap();
            let near = |key: &str, found: f64, expected: &Value| {
                assert!((found - expected.as_f64().unwrap()).abs() < 1e-9, "{name}, {key}: {found} {expected}");
            };
            near("score", found.score, &case["score"]);
            near("brevity penalty", found.brevity_penalty, &case["brevity_penalty"]);
            for n in 0..ORDER {
                near("precision", found.precisions[n], &case["precisions"][n]);
                assert_eq!(case["matches"][n], found.matches[n], "{name}");
                assert_eq!(case["totals"][n], found.totals[n], "{name}");
            }
            assert_eq!(case["lengths"], serde_json::json!([found.length, found.reference_length]), "{name}");
            assert_eq!(case["printed"], found.to_string(), "{name}");
        }
    }

    /// Every character cuts words here if and only if it does in Python.
    #[test]
    fn blanks_are_pythons() {
        let expected: Vec<u32> = serde_json::from_value(golden()["blanks"].clone()).unwrap();
        let found: Vec<u32> = ('\0'..=char::MAX).filter(|c| blank(*c)).map(u32::from).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn counts_must_agree() {
        let error = bleu(&["a", "b"], &["a"]).unwrap_err().to_string();
        assert!(error.contains("hypotheses: 2") && error.contains("which are 1"), "{error}");
        assert!(bleu(&[""; 0], &[""; 0]).is_err());
    }
}
