//! Examples for models that write.

use crate::load::Tokenizer;
use crate::loss::IGNORED;
use crate::{Error, Example, Label, Result, Shape, Stack};

/// The longest prompt of a model that writes behind it, so that a quarter is left for an answer.
pub fn room(max_length: usize) -> usize {
    max_length - max_length / 4
}

/// A prompt, and the answer that a model is to write: T5 reads the one and writes the other, each of at most `max_length` tokens;
/// LLaMA writes behind the prompt, both of at most `max_length`, where only the answer counts. What is too long is cut off at its end.
/// Nothing, if the prompt leaves no [`room`] for an answer.
pub fn prompted(
    shape: &Shape,
    tokenizer: &Tokenizer,
    (prompt, answer): (&str, &str),
    max_length: usize,
) -> Result<Option<Example>> {
    let words = |ids: &[u32]| ids.iter().map(|id| *id as i32).collect::<Vec<_>>();
    let (ids, labels) = match shape.architecture.family().stacks {
        [Stack::Encoder, Stack::Decoder] => {
            let encode = |text| Ok(tokenizer.encode(text, None, max_length)?.ids);
            (encode(prompt)?, words(&encode(answer)?))
        }
        [Stack::Decoder] => {
            let prompt = tokenizer.encode(prompt, None, usize::MAX)?.ids;
            if prompt.len() > room(max_length) {
                return Ok(None);
            }
            let stop = shape.stop.first().map(|id| *id as u32);
            let answer = tokenizer.plain(answer, max_length)?.into_iter().chain(stop);
            let answer: Vec<u32> = answer.collect();
            let answer = &answer[..answer.len().min(max_length - prompt.len())];
            let labels = [vec![IGNORED; prompt.len()], words(answer)].concat();
            ([&prompt, answer].concat(), labels)
        }
        _ => {
            return Err(Error::config("data", "texts to write", "a model that writes, T5 or LLaMA"));
        }
    };
    Ok(Some(Example { ids, label: Some(Label::Words(labels.into())), ..Default::default() }))
}
