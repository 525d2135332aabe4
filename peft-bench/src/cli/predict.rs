//! `peft predict`

use std::path::{Path, PathBuf};

use clap::Args;
use peft_core::io::peft;
use peft_core::load::Encoded;
use peft_core::loss::log_sum_exp;
use peft_core::train::argmax;
use peft_core::{Error, Example, Purpose, Result, answer, io::Pretrained};
use serde_json::json;

use super::options::{Computed, ModelArgs, compute, lines, max_length, print};
use crate::machine::threads;

/// Label texts, or each of their tokens, with a trained adapter; prints one JSON object a line
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  peft predict --model DIR --adapter out/lora --text 'a charming journey'\n  \
    peft predict --model DIR --adapter out/lora --file lines.txt")]
pub struct Predict {
    #[command(flatten)]
    model: ModelArgs,
    /// An adapter directory; without one the head of the model's checkpoint is used
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// A text
    #[arg(long, required_unless_present = "file")]
    text: Vec<String>,
    /// A file of texts, one a line
    #[arg(long)]
    file: Option<PathBuf>,
    /// The text in which the answer to each question is looked for, with a head for answers
    #[arg(long)]
    context: Option<String>,
    /// The task of the texts, counted from 0, for an adapter of several
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    task_index: usize,
    /// Tokens to which a text is cut
    #[arg(long, default_value_t = 128)]
    max_length: usize,
}

impl Predict {
    pub(super) fn run(self) -> Result<()> {
        let model: Pretrained = self.model.open()?;
        let shape = model.base.shape();
        let tokenizer = model.tokenizer()?;
        let mut texts = self.text;
        if let Some(path) = &self.file {
            texts.extend(lines(path)?);
        }
        if texts.is_empty() {
            return Err(Error::config("texts", "none", "at least one, by --text or --file"));
        }
        let longest = self.max_length.min(max_length(shape, self.adapter.as_deref())?);
        if let Some(context) = &self.context {
            return answers(&model, (self.adapter.as_deref(), self.task_index), &texts, context, longest);
        }
        // Of tokens also the word of each, which special tokens do not have.
        let encoded = |text: &String| tokenizer.encode_text(text, longest);
        let encoded = texts.iter().map(encoded).collect::<Result<Vec<_>>>()?;
        let example = |(encoded, _): &(Encoded, Vec<Option<usize>>)| Example {
            ids: encoded.ids.clone(),
            types: Some(encoded.types.clone()),
            task: self.task_index,
            ..Default::default()
        };
        let examples: Vec<Example> = encoded.iter().map(example).collect();
        let Computed::Logits(logits, purpose) = compute(&model, self.adapter.as_deref(), &examples, threads())? else {
            let expected = "one for classes or values: `peft forward` writes states (FEATURE_EXTRACTION)";
            return Err(Error::config("head", "none", expected));
        };
        let own = self.adapter.as_deref().map(peft::labels).transpose()?.map(|labels| labels.classes);
        let own = own.filter(|classes| !classes.is_empty());
        for ((text, (encoded, words)), logits) in texts.iter().zip(&encoded).zip(logits) {
            let outputs = logits.dims.last().copied().unwrap_or(1);
            let classes = own.clone().unwrap_or_else(|| model.class_names(outputs));
            let name = |i: usize| classes.get(i).cloned().unwrap_or_else(|| format!("LABEL_{i}"));
            let probability = |row: &[f32], i: usize| (f64::from(row[i]) - log_sum_exp(row)).exp() as f32;
            match (purpose, &logits.dims[..]) {
                (_, [1]) => print(json!({"text": text, "value": logits.values[0]}))?,
                (_, [_]) => {
                    let score = |i: usize| (name(i), json!(probability(&logits.values, i)));
                    let scores: serde_json::Map<_, _> = (0..outputs).map(score).collect();
                    print(json!({"text": text, "label": name(argmax(&logits.values)), "scores": scores}))?;
                }
                (Purpose::Tokens, _) => {
                    let rows = logits.values.chunks(outputs).zip(&encoded.ids).zip(words);
                    let rows: Vec<_> = rows.filter(|(_, word)| word.is_some()).map(|(row, _)| row).collect();
                    print(json!({
                        "text": text,
                        "tokens": rows.iter().map(|(_, id)| tokenizer.token(**id)).collect::<Vec<_>>(),
                        "labels": rows.iter().map(|(row, _)| name(argmax(row))).collect::<Vec<_>>(),
                        "scores": rows.iter().map(|(row, _)| probability(row, argmax(row))).collect::<Vec<_>>(),
                    }))?;
                }
                (Purpose::Answers, _) => {
                    let expected = "--context TEXT, in which answers are looked for";
                    return Err(Error::config("--context", "none", expected));
                }
                _ => {
                    let expected = "one for classes or values; `peft generate` writes texts";
                    return Err(Error::config("head", "one for words", expected));
                }
            }
        }
        Ok(())
    }
}

/// Prints the answer to each question: the part of the text that the logits speak for, and its probability.
fn answers(
    model: &Pretrained,
    (adapter, task): (Option<&Path>, usize),
    questions: &[String],
    context: &str,
    longest: usize,
) -> Result<()> {
    let tokenizer = model.tokenizer()?;
    let encoded = |question: &String| tokenizer.encode_question(question.trim_start(), context, longest);
    let encoded = questions.iter().map(encoded).collect::<Result<Vec<_>>>()?;
    let example = |(encoded, _): &(Encoded, _)| Example {
        ids: encoded.ids.clone(),
        types: Some(encoded.types.clone()),
        task,
        ..Default::default()
    };
    let examples: Vec<Example> = encoded.iter().map(example).collect();
    let Computed::Logits(logits, Purpose::Answers) = compute(model, adapter, &examples, threads())? else {
        return Err(Error::config("--context", "a text", "none: the head is not for answers (QUESTION_ANS)"));
    };
    for ((question, (_, places)), logits) in questions.iter().zip(&encoded).zip(logits) {
        let Some(found) = answer::found(&logits.values, places) else {
            return Err(Error::config("--context", "a text without tokens", "one with an answer"));
        };
        let all = |side: usize| logits.values.chunks(2).map(|row| row[side]).collect::<Vec<_>>();
        let score = f64::from(found.logit) - log_sum_exp(&all(0)) - log_sum_exp(&all(1));
        let (start, end) = (found.place.start, found.place.end);
        print(json!({"text": question, "answer": context[start..end].trim(), "start": start, "end": end,
            "score": score.exp() as f32}))?;
    }
    Ok(())
}
