//! `peft forward`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::TensorData;
use clap::Args;
use peft_core::composition::Lane;
use peft_core::data::Labelled;
use peft_core::files::check_file;
use peft_core::io::{Pretrained, hub_setup};
use peft_core::load::write_safetensors;
use peft_core::train::{Logits, TextStates, Workers, encode, predict};
use peft_core::{Bare, Base, Error, Example, Head, Label, Result, Trained, Tuner};

use super::options::{ModelArgs, workers};
use crate::machine::threads;
use crate::registry::{by_kind, load, room};

/// Write the logits of examples given as token ids; they depend on the example alone, never on its neighbours
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  peft forward --model DIR --adapter out/lora --input examples.jsonl --output logits.safetensors\n\n\
    Each line: {\"input_ids\": [0, 5, 2], \"attention_mask\": [1, 1, 1], \"token_type_ids\": [0, 0, 0]}, the last two optional.\n\
    For T5 also \"labels\": [7, 8, 1], which its decoder sees shifted to the right; logits are then [labels, vocab].\n\
    Writes f32 tensors logits.0, logits.1, .. in the order of the input: [classes] of a text, [tokens, classes] of tokens, [tokens, vocab]\n\
    of words. A model or adapter without a head (FEATURE_EXTRACTION) gives states.0 [tokens, hidden] and, with a pooler, pooled.0 [hidden]."
)]
pub struct Forward {
    #[command(flatten)]
    model: ModelArgs,
    /// An adapter directory, or several at once, the first outermost, whose head counts; without one the model's own head is used
    #[arg(long, value_name = "DIR")]
    adapter: Vec<PathBuf>,
    /// A directory of AdapterHub's with a composition of adapters (adapter_setup.json) or a fusion; of a Parallel the results of all
    /// adapters follow each other
    #[arg(long, conflicts_with = "adapter")]
    setup: Option<PathBuf>,
    /// Examples, one JSON object a line
    #[arg(long)]
    input: PathBuf,
    /// The file to write
    #[arg(long)]
    output: PathBuf,
}

impl Forward {
    pub(super) fn run(self) -> Result<()> {
        let setup = self.setup.as_deref().map(hub_setup::folders).transpose()?.unwrap_or_default();
        let inputs = self.model.inputs(&self.adapter).with_models(setup).with([&self.input]);
        inputs.spare("--output", &self.output)?;
        check_file(&self.output)?;
        let model: Pretrained = self.model.open()?;
        let shape = model.base.shape();
        // The decoder behind an encoder sees the labels, behind by one.
        let written = shape.architecture.is_encoder_decoder();
        let rows = match written {
            true => Labelled::open(&self.input)?.label("labels").read()?,
            false => Labelled::open(&self.input)?.without_label().read()?,
        };
        let examples = rows.examples(shape, room(&self.adapter, shape)?)?;
        if let Some(i) = examples.iter().position(|e| written && !matches!(e.label, Some(Label::Words(_)))) {
            let expected = "an array of words that the decoder is to write";
            return Err(Error::file(&self.input, format!("example {}, labels", i + 1), "another label", expected));
        }
        let tensor = |name: &str, i: usize, it: Logits| (format!("{name}.{i}"), TensorData::new(it.values, it.dims));
        let computed = match &self.setup {
            Some(dir) => composed(&model, dir, &examples)?,
            None => compute(&model, &self.adapter, &examples)?,
        };
        let tensors: BTreeMap<String, TensorData> = match computed {
            Computed::Logits(logits) => logits.into_iter().enumerate().map(|(i, it)| tensor("logits", i, it)).collect(),
            Computed::States(all) => {
                let tensors = |(i, it): (usize, TextStates)| {
                    let pooled = it.pooled.map(|pooled| tensor("pooled", i, pooled));
                    std::iter::once(tensor("states", i, it.states)).chain(pooled).collect::<Vec<_>>()
                };
                all.into_iter().enumerate().flat_map(tensors).collect()
            }
        };
        write_safetensors(&self.output, &tensors)
    }
}

/// The logits of a composition: of each of its runs on the rows that are its own.
fn composed(model: &Pretrained, dir: &Path, examples: &[Example]) -> Result<Computed> {
    let setup = hub_setup::load_setup(dir, model, &by_kind)?;
    let mut all = vec![];
    for Lane { rows, trained } in setup.lanes(examples.len())? {
        let examples = &examples[rows];
        let base = model.base.for_purpose(trained.head.purpose());
        all.extend(predict(&base, &trained, examples, &workers(threads(), examples.len())?)?);
    }
    Ok(Computed::Logits(all))
}

/// What is computed of examples.
enum Computed {
    /// Logits.
    Logits(Vec<Logits>),
    /// States, where there is no head.
    States(Vec<TextStates>),
}

/// What a model with the head of its checkpoint, or with adapters at once, computes of examples.
fn compute(model: &Pretrained, adapters: &[PathBuf], examples: &[Example]) -> Result<Computed> {
    fn run<T: Tuner>(base: &Base, trained: &Trained<T>, examples: &[Example], workers: &Workers) -> Result<Computed> {
        Ok(match trained.head {
            Head::States(_) => Computed::States(encode(base, trained, examples, workers)?),
            _ => Computed::Logits(predict(base, trained, examples, workers)?),
        })
    }
    let workers = workers(threads(), examples.len())?;
    match adapters {
        [_, ..] => {
            let tuned = load(adapters, model)?;
            run(&tuned.base, &tuned.trained, examples, &workers)
        }
        [] => {
            let head = model.own_head()?;
            run(&model.base.for_purpose(head.purpose()), &Trained::new(Bare {}, head)?, examples, &workers)
        }
    }
}
