//! `peft predict`

use std::path::{Path, PathBuf};

use clap::Args;
use peft_core::io::peft;
use peft_core::train::{argmax, log_sum_exp};
use peft_core::{Error, Example, Result, io::Pretrained};
use serde_json::json;

use super::options::{ModelArgs, lines, logits, max_length, print};
use crate::machine::threads;

/// Label texts with a trained adapter; prints one JSON object a line
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
        let example = |text: &String| {
            let encoded = tokenizer.encode(text, None, longest)?;
            let (types, task) = (Some(encoded.types), self.task_index);
            Ok(Example { ids: encoded.ids, types, task, ..Default::default() })
        };
        let examples = texts.iter().map(example).collect::<Result<Vec<_>>>()?;
        let classes = classes(&model, self.adapter.as_deref())?;
        for (text, logits) in texts.iter().zip(logits(&model, self.adapter.as_deref(), &examples, threads())?) {
            if logits.dims.len() > 1 {
                let expected = "one for classes or values; `peft generate` writes texts";
                return Err(Error::config("head", "one for words", expected));
            }
            if logits.dims == [1] {
                print(json!({"text": text, "value": logits.values[0]}))?;
                continue;
            }
            let name = |i: usize| classes.get(i).cloned().unwrap_or_else(|| format!("LABEL_{i}"));
            let sum = log_sum_exp(&logits.values);
            let score = |(i, x): (usize, &f32)| (name(i), json!((f64::from(*x) - sum).exp() as f32));
            let scores: serde_json::Map<_, _> = logits.values.iter().enumerate().map(score).collect();
            print(json!({"text": text, "label": name(argmax(&logits.values)), "scores": scores}))?;
        }
        Ok(())
    }
}

/// The names of the classes: the adapter's, else the model's.
fn classes(model: &Pretrained, adapter: Option<&Path>) -> Result<Vec<String>> {
    let own = adapter.map(peft::labels).transpose()?.map(|labels| labels.classes);
    Ok(own.filter(|classes| !classes.is_empty()).unwrap_or_else(|| model.classes()))
}
