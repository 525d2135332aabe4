//! Questions on a text, whose answers are parts of it: rows of JSON with `question`, `context` and `answers`, as SQuAD's are.

#[cfg(feature = "tokenize")]
use std::ops::Range;

use serde_json::Value;

#[cfg(feature = "tokenize")]
use crate::{Example, Label, Result, answer::Answer, load::Tokenizer};

/// A right answer as a row has it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Right {
    /// The byte of the text at which it begins.
    pub(super) start: usize,
    pub(super) text: String,
}

/// The right answers `{"text": [..], "answer_start": [..]}` to a question on `context`, beginnings in characters; else what was found.
pub(super) fn right(answers: &Value, context: &str) -> std::result::Result<Vec<Right>, String> {
    let list = |key: &str| answers.get(key).and_then(Value::as_array).filter(|list| !list.is_empty() || key == "text");
    let shape = || answers.to_string();
    let texts = list("text").ok_or_else(shape)?;
    if texts.is_empty() {
        return Ok(vec![]);
    }
    let starts = list("answer_start").filter(|starts| starts.len() == texts.len()).ok_or_else(shape)?;
    let one = |(text, start): (&Value, &Value)| {
        let (text, start) = (text.as_str().ok_or_else(shape)?, start.as_u64().ok_or_else(shape)?);
        // The end of the text is a place too.
        let places = || context.char_indices().map(|(byte, _)| byte).chain([context.len()]);
        let byte = usize::try_from(start).ok().and_then(|start| places().nth(start));
        match byte.filter(|byte| !text.is_empty() && context[*byte..].starts_with(text)) {
            Some(start) => Ok(Right { start, text: text.to_string() }),
            None => Err(format!("{text:?} at character {start}, where the context has something else")),
        }
    };
    texts.iter().zip(starts).map(one).collect()
}

/// A question, the text and the right answers in tokens. The first of them is what is to be found, if all of it is left of the text.
#[cfg(feature = "tokenize")]
pub(super) fn example(
    tokenizer: &Tokenizer,
    (question, context): (&str, &str),
    right: &[Right],
    max_length: usize,
) -> Result<Example> {
    // As run_qa.py of transformers.
    let (encoded, places) = tokenizer.encode_question(question.trim_start(), context, max_length)?;
    let place = right.first().map(|right| right.start..right.start + right.text.len());
    let tokens = place.and_then(|place| tokens(&places, &place)).unwrap_or([0, 0]);
    let right = right.iter().map(|right| right.text.clone()).collect();
    let answer = Answer { tokens, places, text: context.to_string(), right };
    let label = Some(Label::Answer(answer.into()));
    Ok(Example { ids: encoded.ids, types: Some(encoded.types), label, ..Default::default() })
}

/// The first and the last token of some bytes of a text.
#[cfg(feature = "tokenize")]
fn tokens(places: &[Option<Range<usize>>], bytes: &Range<usize>) -> Option<[usize; 2]> {
    let first = places.iter().position(|place| place.as_ref().is_some_and(|place| place.end > bytes.start))?;
    let last = places.iter().rposition(|place| place.as_ref().is_some_and(|place| place.start < bytes.end))?;
    let whole = places[last].as_ref().is_some_and(|place| place.end >= bytes.end);
    (whole && first <= last).then_some([first, last])
}
