//! `peft bench`

use std::time::Instant;

use clap::{Args, Subcommand};
use peft_core::generate::{GenerateConfig, Prompt};
use peft_core::io::Pretrained;
use peft_core::random::Random;
use peft_core::train::{Run, TrainConfig, check_threads};
use peft_core::{Bare, Base, Error, Example, Head, Label, LanguageModel, Result, Trained};
use serde_json::{Value, json};

use super::methods::configured;
use super::optimizer::OptimizerArgs;
use super::options::{ModelArgs, print, prompt_room};
use super::speed::Speed;
use crate::machine::{forget_peak, peak_bytes, processor_seconds, threads};

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
    /// Texts that go on from random tokens; prints one JSON object
    Generate(Generate),
}

/// Training steps on random tokens; prints one JSON object
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  peft bench step --model shape:roberta-base --method lora --batch 32 --seq 128 --steps 5"
)]
pub struct Step {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// The method (see `peft methods`)
    #[arg(long)]
    pub(super) method: String,
    /// A setting of the method, KEY=VALUE
    #[arg(long, value_name = "KEY=VALUE")]
    pub(super) set: Vec<String>,
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
    #[command(flatten)]
    pub(super) optimizer: OptimizerArgs,
    /// Random weights of the model's shape with so many layers, as `peft plan` measures them
    #[arg(long, hide = true)]
    layers: Option<usize>,
}

/// Texts that go on from random tokens; prints one JSON object
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  peft bench generate --model shape:smollm2-135m --prompt-tokens 64 --new-tokens 128\n\n\
    seconds are those of a run, prompt_tokens_per_second and tokens_per_second are medians: prompts are run until the first\n\
    new token of each text is there, which the second rate leaves out. A text goes on after a token that would end it."
)]
struct Generate {
    #[command(flatten)]
    model: ModelArgs,
    /// Tokens of a prompt
    #[arg(long, default_value_t = 64)]
    prompt_tokens: usize,
    /// Tokens of a text, behind its prompt
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(2..))]
    new_tokens: u32,
    /// Texts at a time
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Runs that are measured, after a short one that is not
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Threads [default: all cores]
    #[arg(long)]
    threads: Option<usize>,
}

impl Bench {
    pub(super) fn run(self) -> Result<()> {
        match self.what {
            What::Step(step) => {
                let Pretrained { base, .. } = match step.layers {
                    None => step.model.open()?,
                    Some(layers) => step.model.random(layers)?,
                };
                step.run(base)
            }
            What::Generate(generate) => generate.run(),
        }
    }
}

impl Generate {
    fn run(self) -> Result<()> {
        let model = self.model.open()?;
        let trained = Trained::new(Bare {}, model.own_head()?)?;
        let (shape, new) = (model.base.shape(), self.new_tokens as usize);
        let (room, longest) = (shape.max_length(), prompt_room(shape, shape.max_length(), new));
        if longest == 0 {
            return Err(Error::config("--new-tokens", new, format!("2 to {room}, the most that the model takes")));
        }
        if !(1..=longest).contains(&self.prompt_tokens) || !fits(self.batch, self.prompt_tokens.saturating_add(new)) {
            let found = format!("{} prompts of {}", self.batch, self.prompt_tokens);
            let expected = format!("1 or more of 1 to {longest} tokens, before {new} new ones, {MOST} in all");
            return Err(Error::config("--batch, --prompt-tokens", found, expected));
        }
        let mut random = Random::new(0, "bench");
        let prompts: Vec<Prompt> =
            (0..self.batch).map(|_| Prompt::from(tokens(&mut random, shape.vocab, self.prompt_tokens))).collect();
        let run = |new| -> Result<Speed> {
            let config = GenerateConfig { eos_token_id: Some(vec![]), ..GenerateConfig::new(new) };
            let mut speed = Speed::default();
            speed.generate(&model.base, &trained, &prompts, &config, |_| Ok(()))?;
            Ok(speed)
        };
        let threads = self.threads.unwrap_or_else(threads);
        check_threads("--threads", threads)?;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool =
            pool.map_err(|e| Error::config("--threads", threads, format!("threads that the system grants ({e})")))?;
        let speeds = pool.install(|| {
            run(2)?;
            (0..self.runs).map(|_| run(new)).collect::<Result<Vec<_>>>()
        })?;
        let middle = |of: fn(&Speed) -> Option<f64>| median(speeds.iter().filter_map(of).collect());
        print(json!({
            "seconds": seconds(speeds.iter().map(Speed::seconds).collect()),
            "tokens_per_second": middle(Speed::rate), "prompt_tokens_per_second": middle(Speed::prompt_rate),
            "peak_bytes": peak_bytes(), "kernel": model.base.kernel(),
        }))
    }
}

/// The most tokens at a time.
const MOST: usize = 1 << 22;

/// Whether so many sequences of so many tokens can be held.
fn fits(sequences: usize, tokens: usize) -> bool {
    sequences > 0 && sequences.checked_mul(tokens).is_some_and(|all| all <= MOST)
}

/// Random ids. The first of a vocabulary have meanings of their own.
fn tokens(random: &mut Random, vocab: usize, count: usize) -> Vec<u32> {
    (0..count).map(|_| (vocab / 4 + random.below(vocab - vocab / 4)) as u32).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2] + values[(values.len() - 1) / 2]) / 2.0
}

fn seconds(values: Vec<f64>) -> Value {
    json!({"best": values.iter().copied().fold(f64::INFINITY, f64::min), "median": median(values)})
}

impl Step {
    fn run(&self, base: Base) -> Result<()> {
        let method = configured(&self.method, &self.set, base.shape())?;
        let room = method.room(base.shape());
        if !(1..=room).contains(&self.seq) || !fits(self.batch, self.seq) {
            let found = format!("{} sequences of {}", self.batch, self.seq);
            let expected = format!("1 or more of 1 to {room} tokens, {MOST} in all");
            return Err(Error::config("--batch, --seq", found, expected));
        }
        // A decoder predicts the words that it reads, or that it answers with.
        let head = match base.shape().pre_norm() {
            true => Head::LanguageModel(LanguageModel {}),
            false => Head::classifier(&base, 2, 0),
        };
        method.checked_count(base.shape())?;
        let trained = Trained::new(method.init(&base, 0)?, head)?;
        let trainable: usize = peft_core::view::shapes(&trained).iter().map(|(_, d)| d.iter().product::<usize>()).sum();
        let mut random = Random::new(0, "bench");
        let vocab = base.shape().vocab;
        let example = |i: usize| {
            let ids = tokens(&mut random, vocab, self.seq);
            let label = match base.shape().pre_norm() {
                true => Label::Words(ids.iter().map(|id| *id as i32).collect()),
                false => Label::Class(i % 2),
            };
            Example { ids, label: Some(label), ..Default::default() }
        };
        let data: Vec<Example> = (0..self.batch).map(example).collect();
        let settings = TrainConfig {
            threads: self.threads.unwrap_or_else(threads),
            micro_rows: self.micro_rows,
            ..TrainConfig::new(1e-4).with_batch_size(self.batch).with_steps(self.steps as usize + 1)
        };
        let settings = self.optimizer.of(settings, &std::env::temp_dir());
        let kernel = base.kernel();
        let mut run = Run::new(&settings, base, trained)?;
        let loading = peak_bytes();
        forget_peak();
        run.step(&data)?;
        let (mut times, mut worked) = (Vec::new(), Vec::new());
        for _ in 0..self.steps {
            let (start, before) = (Instant::now(), processor_seconds());
            run.step(&data)?;
            times.push(start.elapsed().as_secs_f64());
            worked.extend(processor_seconds().zip(before).map(|(after, before)| after - before));
        }
        let worked = if worked.is_empty() { Value::Null } else { seconds(worked) };
        print(json!({
            "seconds": seconds(times.clone()), "processor_seconds": worked,
            "tokens_per_second": (self.batch * self.seq) as f64 / median(times),
            "peak_bytes": loading.max(peak_bytes()), "step_peak_bytes": peak_bytes(), "trainable": trainable, "kernel": kernel,
        }))
    }
}
