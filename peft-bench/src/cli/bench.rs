//! `peft bench`

use std::time::Instant;

use clap::{Args, Subcommand};
use peft_core::io::{Pretrained, peft};
use peft_core::random::Random;
use peft_core::train::{Run, TrainConfig};
use peft_core::{Error, Example, Head, Label, LanguageModel, Method, Result, Trained};
use serde_json::json;

use super::options::{ModelArgs, print};
use crate::machine::{peak_bytes, threads};
use crate::registry::{WithMethod, by_name};

/// Measure speed and memory
#[derive(Debug, Args)]
pub struct Bench {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Training steps on random tokens; prints one JSON object
    Step(Step),
}

/// Training steps on random tokens; prints one JSON object
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  peft bench step --model shape:roberta-base --method lora --batch 32 --seq 128 --steps 5"
)]
struct Step {
    #[command(flatten)]
    model: ModelArgs,
    /// The method (see `peft methods`)
    #[arg(long)]
    method: String,
    /// A setting of the method, KEY=VALUE
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Sequences in a step
    #[arg(long, default_value_t = 32)]
    batch: usize,
    /// Tokens in a sequence
    #[arg(long, default_value_t = 128)]
    seq: usize,
    /// Steps that are measured, after one that is not
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Threads [default: all cores]
    #[arg(long)]
    threads: Option<usize>,
    /// Rows of a micro-batch
    #[arg(long, default_value_t = 256)]
    micro_rows: usize,
}

impl Bench {
    pub(super) fn run(self) -> Result<()> {
        let What::Step(step) = self.what;
        let model = step.model.open()?;
        by_name(&step.method, (&step, model))
    }
}

impl WithMethod for (&Step, Pretrained) {
    type Output = ();
    fn call<M: Method>(self) -> Result<()> {
        let (step, Pretrained { base, .. }) = self;
        let method: M = peft::from_settings(&step.set)?;
        let room = method.room(base.shape());
        if !(1..=room).contains(&step.seq) || step.batch == 0 {
            let found = format!("{} sequences of {}", step.batch, step.seq);
            return Err(Error::config("--batch, --seq", found, format!("1 or more of 1 to {room} tokens")));
        }
        // A decoder predicts the words that it reads, or that it answers with.
        let head = match base.shape().pre_norm() {
            true => Head::LanguageModel(LanguageModel {}),
            false => Head::classifier(&base, 2, 0),
        };
        let trained = Trained::new(method.init(&base, 0)?, head)?;
        let trainable: usize = peft_core::view::shapes(&trained).iter().map(|(_, d)| d.iter().product::<usize>()).sum();
        let mut random = Random::new(0, "bench");
        let vocab = base.shape().vocab;
        let example = |i: usize| {
            let token = |_| (vocab / 4 + random.below(vocab - vocab / 4)) as u32;
            let ids: Vec<u32> = (0..step.seq).map(token).collect();
            let label = match base.shape().pre_norm() {
                true => Label::Words(ids.iter().map(|id| *id as i32).collect()),
                false => Label::Class(i % 2),
            };
            Example { ids, label: Some(label), ..Default::default() }
        };
        let data: Vec<Example> = (0..step.batch).map(example).collect();
        let settings = TrainConfig {
            threads: step.threads.unwrap_or_else(threads),
            micro_rows: step.micro_rows,
            ..TrainConfig::new(1e-4).with_batch_size(step.batch).with_steps(step.steps as usize + 1)
        };
        let mut run = Run::new(&settings, base, trained)?;
        run.step(&data)?;
        let mut seconds = Vec::new();
        for _ in 0..step.steps {
            let start = Instant::now();
            run.step(&data)?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        seconds.sort_by(f64::total_cmp);
        let median = (seconds[seconds.len() / 2] + seconds[(seconds.len() - 1) / 2]) / 2.0;
        print(json!({
            "seconds": {"best": seconds[0], "median": median},
            "tokens_per_second": (step.batch * step.seq) as f64 / median,
            "peak_bytes": peak_bytes(), "trainable": trainable,
        }))
    }
}
