//! Answers to questions on a text that are parts of it, as SQuAD has them (Rajpurkar et al., 2016, arXiv:1606.05250).

use std::ops::Range;

/// The longest answer that is looked for, in tokens, as in transformers' run_qa.py.
const LONGEST: usize = 30;

/// Where the answer to a question stands among the tokens of question and text, and what the answer found is compared with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// Its first and its last token; both the first of all, where none of the text's tokens are the answer.
    pub tokens: [usize; 2],
    /// The bytes of the text that each token is of; none of those of the question and of special tokens.
    pub places: Vec<Option<Range<usize>>>,
    /// The text.
    pub text: String,
    /// The right answers; none, if the text does not have it.
    pub right: Vec<String>,
}

/// An answer that a model gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Its first and its last token.
    pub tokens: [usize; 2],
    /// Its bytes in the text.
    pub place: Range<usize>,
    /// The sum of the logits of first and last token.
    pub logit: f32,
}

/// The part of a text that logits `[tokens, 2]`, of being the first and of being the last token of the answer, speak for: of at most 30
/// tokens, with the largest sum. `places` are the bytes of each token in the text, none of a token that is not of it. Nothing, if no
/// token is.
pub fn found(logits: &[f32], places: &[Option<Range<usize>>]) -> Option<Found> {
    let mut best: Option<Found> = None;
    for (first, start) in places.iter().enumerate() {
        let Some(start) = start else { continue };
        for (last, end) in places.iter().enumerate().skip(first).take(LONGEST) {
            let Some(end) = end else { break };
            let logit = logits[2 * first] + logits[2 * last + 1];
            if best.as_ref().is_none_or(|best| logit > best.logit) {
                best = Some(Found { tokens: [first, last], place: start.start..end.end.max(start.start), logit });
            }
        }
    }
    best
}

impl Answer {
    /// The answer that logits `[tokens, 2]` give. Where a text may lack it (`lacking`), nothing, if that is what they speak for: by the
    /// sum at the first token.
    pub fn given(&self, logits: &[f32], lacking: bool) -> &str {
        match found(logits, &self.places) {
            Some(found) if !lacking || found.logit >= logits[0] + logits[1] => self.text[found.place].trim(),
            _ => "",
        }
    }
}

/// Whether an answer is one of the right ones, and the largest F1 of its words with those of one of them, from 0 to 1, as SQuAD's script
/// (of version 2.0) has both: without case, punctuation and articles. Without a right answer nothing is right.
pub fn exact_and_f1(found: &str, right: &[String]) -> [f64; 2] {
    let found = words(found);
    let mut right: Vec<Vec<String>> = right.iter().map(|text| words(text)).filter(|words| !words.is_empty()).collect();
    if right.is_empty() {
        right.push(vec![]);
    }
    let exact = right.contains(&found);
    let f1 = right.iter().map(|right| f1(&found, right)).fold(0.0, f64::max);
    [f64::from(u8::from(exact)), f1]
}

/// The words of an answer that count.
fn words(text: &str) -> Vec<String> {
    let text: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    // An article is one between what are no letters or digits.
    let mut rest = String::new();
    for run in text.split_inclusive(|c: char| !c.is_alphanumeric()) {
        let word = run.trim_end_matches(|c: char| !c.is_alphanumeric());
        rest += match ["a", "an", "the"].contains(&word) {
            true => " ",
            false => word,
        };
        rest += &run[word.len()..];
    }
    // Python's blanks.
    let blank = |c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c);
    rest.split(blank).filter(|word| !word.is_empty()).map(str::to_string).collect()
}

fn f1(found: &[String], right: &[String]) -> f64 {
    if found.is_empty() || right.is_empty() {
        return f64::from(u8::from(found.is_empty() && right.is_empty()));
    }
    let mut left = right.to_vec();
    let same = found.iter().filter(|word| {
        let place = left.iter().position(|other| other == *word);
        place.map(|place| left.swap_remove(place)).is_some()
    });
    let same = same.count() as f64;
    2.0 * same / (found.len() + right.len()) as f64
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn the_best_part_is_of_the_text_and_no_longer_than_allowed() {
        let places = |tokens: usize, text: Range<usize>| -> Vec<Option<Range<usize>>> {
            (0..tokens).map(|i| text.contains(&i).then(|| 10 * i..10 * i + 7)).collect()
        };
        // First and last token: the best pair of all is of the question, the next ends before it begins.
        let logits = [9.0, 9.0, 0.0, 4.0, 3.0, 1.0, 1.0, 2.0];
        let best = found(&logits, &places(4, 1..4)).unwrap();
        assert_eq!((best.tokens, best.place, best.logit), ([2, 3], 20..37, 5.0));
        assert_eq!(found(&logits, &places(4, 0..0)), None);
        let mut long = vec![0.0; 2 * 40];
        (long[0], long[2 * 30 + 1], long[2 * 29 + 1]) = (5.0, 5.0, 4.0);
        assert_eq!(found(&long, &places(40, 0..40)).unwrap().tokens, [0, 29]);
        let text: String = ('a'..='z').chain('A'..='Z').collect();
        let answer = Answer { places: places(4, 1..4), text: text.clone(), ..Default::default() };
        assert_eq!(answer.given(&logits, false), &text[20..37]);
        assert_eq!(answer.given(&logits, true), "");
    }

    /// Cases of punctuation, articles, blanks and letters of other scripts, see scripts/golden/squad.py.
    #[test]
    fn equal_squad_s_script() {
        let golden: Value = serde_json::from_str(include_str!("../tests/golden/squad.json")).unwrap();
        let cases = golden.as_array().unwrap();
        for case in cases {
            let right: Vec<String> = serde_json::from_value(case["right"].clone()).unwrap();
            let [exact, f1] = exact_and_f1(case["found"].as_str().unwrap(), &right);
            for (name, found) in [("exact", exact), ("f1", f1)] {
                let expected = case[name].as_f64().unwrap();
                assert!((found - expected).abs() < 1e-12, "{name} is {found}, expected {expected}: {case}");
            }
        }
        assert!(cases.len() >= 100);
    }
}
