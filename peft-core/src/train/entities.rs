//! Entities in tags (BIO, and the other schemes that the package seqeval reads in its default mode), and what found ones are worth.

use std::collections::BTreeSet;

/// What a tag says: the letter in front, and the type of entity.
fn parts(tag: &str) -> (char, &str) {
    let mut letters = tag.chars();
    let letter = letters.next().unwrap_or('O');
    let rest = letters.as_str();
    let kind = rest.split_once('-').map_or(rest, |(_, kind)| kind);
    (letter, if kind.is_empty() { "_" } else { kind })
}

/// Type, first and last token of each entity of a list of tags. Tags that follow no scheme have entities too: a new one starts where a
/// tag could not go on with the one before.
fn entities<'a>(tags: &[&'a str]) -> BTreeSet<(&'a str, usize, usize)> {
    let mut found = BTreeSet::new();
    let (mut before, mut kind_before, mut first) = ('O', "", 0);
    for (i, tag) in tags.iter().chain(&["O"]).enumerate() {
        let (letter, kind) = parts(tag);
        let other = kind != kind_before;
        let ends = match (before, letter) {
            ('E' | 'S', _) | ('B' | 'I', 'B' | 'S' | 'O') => true,
            ('O' | '.', _) => false,
            _ => other,
        };
        let starts = match (before, letter) {
            (_, 'B' | 'S') | ('E' | 'S' | 'O', 'E' | 'I') => true,
            (_, 'O' | '.') => false,
            _ => other,
        };
        if ends {
            found.insert((kind_before, first, i - 1));
        }
        if starts {
            first = i;
        }
        (before, kind_before) = (letter, kind);
    }
    found
}

/// Precision, recall and F1 of the entities in all texts together; 0 where nothing was found, or nothing was to be found.
pub fn entity_scores<'a>(found: &[Vec<&'a str>], gold: &[Vec<&'a str>]) -> [f64; 3] {
    // One list, as in seqeval: a tag of no scheme may lead back to the text before.
    let all = |texts: &[Vec<&'a str>]| {
        let tags: Vec<&str> = texts.iter().flat_map(|tags| tags.iter().copied().chain(["O"])).collect();
        entities(&tags)
    };
    let (found, gold) = (all(found), all(gold));
    let right = found.intersection(&gold).count() as f64;
    let ratio = |of: usize| if of == 0 { 0.0 } else { right / of as f64 };
    let (precision, recall) = (ratio(found.len()), ratio(gold.len()));
    let both = precision + recall;
    [precision, recall, if both == 0.0 { 0.0 } else { 2.0 * precision * recall / both }]
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn entities_of_each_scheme() {
        let of = |tags: &[&'static str]| entities(tags).into_iter().collect::<Vec<_>>();
        assert_eq!(of(&["B-PER", "I-PER", "O", "B-LOC"]), [("LOC", 3, 3), ("PER", 0, 1)]);
        assert_eq!(of(&["I-PER", "I-LOC"]), [("LOC", 1, 1), ("PER", 0, 0)]);
        assert_eq!(of(&["B-PER", "B-PER"]), [("PER", 0, 0), ("PER", 1, 1)]);
        assert_eq!(of(&["B-PER", "E-PER", "S-LOC"]), [("LOC", 2, 2), ("PER", 0, 1)]);
        assert_eq!(of(&["O", "O"]), []);
    }

    /// Random sequences, most of them malformed, see scripts/golden/entities.py.
    #[test]
    fn equal_seqeval() {
        let golden: Value = serde_json::from_str(include_str!("../../tests/golden/entities.json")).unwrap();
        let cases = golden.as_array().unwrap();
        for case in cases {
            let side = |side: &str| serde_json::from_value::<Vec<Vec<String>>>(case[side].clone()).unwrap();
            let (found, gold) = (side("found"), side("gold"));
            fn views(texts: &[Vec<String>]) -> Vec<Vec<&str>> {
                texts.iter().map(|tags| tags.iter().map(String::as_str).collect()).collect()
            }
            let scores = entity_scores(&views(&found), &views(&gold));
            for (name, score) in ["precision", "recall", "f1"].into_iter().zip(scores) {
                let expected = case[name].as_f64().unwrap();
                assert!((score - expected).abs() < 1e-12, "{name} is {score}, expected {expected}: {case}");
            }
        }
        assert!(cases.len() >= 200);
    }
}
