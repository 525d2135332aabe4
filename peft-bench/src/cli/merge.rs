//! `peft merge`

use std::path::PathBuf;

use clap::Args;
use peft_core::data::Labelled;
use peft_core::random::Random;
use peft_core::{Error, Example, Result};

use super::options::{ModelArgs, OutputArgs, TaskArg, print};
use crate::registry::load;

/// Fold an adapter into its model; writes a directory that transformers loads
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  peft merge --model DIR --adapter out/lora --output out/merged --max-difference 1e-4"
)]
pub struct Merge {
    #[command(flatten)]
    model: ModelArgs,
    /// The adapter directory, or several at once, the first outermost, whose head counts
    #[arg(long, value_name = "DIR", required = true)]
    adapter: Vec<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
    /// Refuse when a logit of the probe batch moves by more than this
    #[arg(long, default_value_t = 1e-3)]
    max_difference: f32,
    #[command(flatten)]
    task: TaskArg,
    /// Examples (JSONL with input_ids) to probe with; without a file, 16 random sequences
    #[arg(long)]
    probe: Option<PathBuf>,
}

/// Sixteen sequences of random tokens, of different lengths.
pub fn random_probe(vocab: usize, longest: usize) -> Vec<Example> {
    let mut random = Random::new(0, "probe");
    let sequence = |i: usize| {
        let length = 1 + (i * longest / 16).max(1).min(longest - 1);
        Example { ids: (0..length).map(|_| random.below(vocab) as u32).collect(), ..Default::default() }
    };
    (0..16).map(sequence).collect()
}

impl Merge {
    pub(super) fn run(self) -> Result<()> {
        self.output.check(&self.model.inputs(&self.adapter).with(&self.probe))?;
        if !(self.max_difference.is_finite() && self.max_difference >= 0.0) {
            return Err(Error::config("--max-difference", self.max_difference, "a number from 0"));
        }
        let model = self.model.open()?;
        let (shape, tuned) = (model.base.shape(), load(&self.adapter, &model)?);
        let task = self.task.among(&tuned)?;
        let tuned = if let Some(task) = task { tuned.of_task(task)? } else { tuned };
        let probe = match &self.probe {
            Some(path) => Labelled::open(path)?.without_label().read()?.examples(shape, tuned.config.room(shape))?,
            None => random_probe(shape.vocab, shape.max_length().min(32)),
        };
        let merged = tuned.merge(&probe, self.max_difference)?;
        self.output.make(|dir| merged.save(dir))?;
        print(format_args!(
            "{}: largest logit difference to the unmerged model {:e}",
            self.output.output.display(),
            merged.difference
        ))
    }
}
