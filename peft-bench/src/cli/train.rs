//! `peft train`

use std::path::PathBuf;

use clap::{ArgGroup, Args, ValueEnum};
use peft_core::data::{Dataset, Labelled};
use peft_core::files::check_new_directory;
use peft_core::io::{Pretrained, peft};
use peft_core::train::{Length, Schedule, TrainConfig, Trainer, Tuned};
use peft_core::{Error, Method, Result, Trained};
use serde_json::json;

use super::options::{ModelArgs, print, threads};
use super::progress::Progress;
use crate::registry::{WithMethod, by_name, by_peft_type};
use crate::tasks::Task;

/// Train a method on labelled sentences
#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("start").required(true).args(["adapter", "method"]),
    after_help = "Examples:\n  peft train --model DIR --method lora --set r=8 --data train.tsv --epochs 3 --output out/lora\n  \
    peft train --model DIR --method bitfit --task sst2 --data GLUE/SST-2 --steps 500 --lr 1e-3 --output out/bitfit\n  \
    peft train --model DIR --adapter out/lora --data more.jsonl --epochs 1 --output out/lora-2"
)]
pub struct Train {
    #[command(flatten)]
    model: ModelArgs,
    /// Train on from this adapter directory
    #[arg(long, conflicts_with = "set")]
    adapter: Option<PathBuf>,
    /// Start this method (see `peft methods`)
    #[arg(long)]
    method: Option<String>,
    /// A setting of the method, KEY=VALUE
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// A task: sst2, mrpc, stsb; --data is then its directory
    #[arg(long)]
    task: Option<String>,
    /// Labelled examples: .tsv, .csv or .jsonl, or a task's directory
    #[arg(long)]
    data: PathBuf,
    /// Labelled examples to evaluate on after each epoch; a task brings its own
    #[arg(long, conflicts_with = "task")]
    eval: Option<PathBuf>,
    /// The directory to make
    #[arg(long)]
    output: PathBuf,
    /// Optimizer steps
    #[arg(long, conflicts_with = "epochs")]
    steps: Option<usize>,
    /// Times through the data [default: 3]
    #[arg(long)]
    epochs: Option<usize>,
    /// Sequences in a step
    #[arg(long, default_value_t = 32)]
    batch_size: usize,
    /// Peak learning rate
    #[arg(long, default_value_t = 1e-3)]
    lr: f64,
    /// The update rule
    #[arg(long, value_enum, default_value_t = Optimizer::Adamw)]
    optimizer: Optimizer,
    /// Decoupled weight decay
    #[arg(long, default_value_t = 0.0)]
    weight_decay: f64,
    /// The learning rate after the warm-up
    #[arg(long, value_enum, default_value_t = ScheduleArg::Linear)]
    schedule: ScheduleArg,
    /// Warm-up: steps, or a share of all steps if below 1
    #[arg(long, default_value_t = 0.0)]
    warmup: f64,
    /// Clip the norm of all gradients to this; 0 for no clipping
    #[arg(long, default_value_t = 1.0)]
    max_grad_norm: f64,
    /// Dropout probability of base and head [default: the model's own]
    #[arg(long)]
    dropout: Option<f64>,
    /// Decides every random number
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Go round the data in order
    #[arg(long)]
    no_shuffle: bool,
    /// Tokens to which texts are cut
    #[arg(long, default_value_t = 128)]
    max_length: usize,
    /// Threads; changes no bit of the result [default: all cores]
    #[arg(long)]
    threads: Option<usize>,
    /// Rows of a micro-batch
    #[arg(long, default_value_t = 256)]
    micro_rows: usize,
    /// Write one JSON object for each step
    #[arg(long)]
    log: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Optimizer {
    Adamw,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ScheduleArg {
    Linear,
    Constant,
}

impl Train {
    pub(super) fn run(self) -> Result<()> {
        check_new_directory(&self.output)?;
        let model = self.model.open()?;
        match (&self.adapter, &self.method) {
            (Some(dir), _) => by_peft_type(dir, Job { args: &self, model: &model }),
            (_, Some(name)) => by_name(name, Job { args: &self, model: &model }),
            (None, None) => Err(Error::config("start", "nothing", "--adapter or --method")),
        }
    }

    /// The data to train on and to evaluate on.
    fn read(&self) -> Result<(Labelled, Option<Labelled>)> {
        Ok(match (&self.task, &self.eval) {
            (Some(task), _) => {
                let (train, dev) = Task::named(task)?.read(&self.data)?;
                (train, Some(dev))
            }
            (None, Some(eval)) => {
                let train = Labelled::open(&self.data)?.read()?;
                let eval = Labelled::open(eval)?.like(&train).read()?;
                (train, Some(eval))
            }
            (None, None) => (Labelled::open(&self.data)?.read()?, None),
        })
    }

    fn config(&self, samples: usize) -> Result<TrainConfig> {
        let length = match (self.steps, self.epochs) {
            (Some(steps), _) => Length::Steps(steps),
            (None, epochs) => Length::Epochs(epochs.unwrap_or(3)),
        };
        let Optimizer::Adamw = self.optimizer;
        let mut config = TrainConfig {
            learning_rate: self.lr,
            length,
            batch_size: self.batch_size,
            weight_decay: self.weight_decay,
            lr_scheduler_type: match self.schedule {
                ScheduleArg::Linear => Schedule::Linear,
                ScheduleArg::Constant => Schedule::Constant,
            },
            max_grad_norm: self.max_grad_norm,
            seed: self.seed,
            shuffle: !self.no_shuffle,
            threads: self.threads.unwrap_or_else(threads),
            micro_rows: self.micro_rows,
            dropout: self.dropout,
            max_length: self.max_length,
            ..Default::default()
        };
        config.check()?;
        if !(0.0..1e9).contains(&self.warmup) {
            return Err(Error::config("--warmup", self.warmup, "steps, or a share from 0 to below 1"));
        }
        let total = config.steps(samples);
        config.warmup_steps = if self.warmup < 1.0 { self.warmup * total as f64 } else { self.warmup } as usize;
        Ok(config)
    }
}

struct Job<'a> {
    args: &'a Train,
    model: &'a Pretrained,
}

impl Job<'_> {
    /// The data in the model's tokens, with room for a method's virtual tokens.
    fn data<M: Method>(&self, method: &M) -> Result<(Dataset, Option<Dataset>)> {
        let room = self.model.base.shape().max_length().saturating_sub(method.virtual_tokens());
        let prepare = |data: Labelled| data.prepare(self.model, self.args.max_length.min(room));
        let (data, eval) = self.args.read()?;
        Ok((prepare(data)?, eval.map(prepare).transpose()?))
    }
}

/// Data with its classes in the order of a head's, if all of them are among those.
fn with_classes(data: &Dataset, eval: &Option<Dataset>, names: &[String]) -> Option<(Dataset, Option<Dataset>)> {
    let eval = match eval {
        Some(eval) => Some(eval.clone().with_classes(names)?),
        None => None,
    };
    Some((data.clone().with_classes(names)?, eval))
}

impl WithMethod for Job<'_> {
    type Output = ();
    fn call<M: Method>(self) -> Result<()> {
        let Job { args, model } = self;
        let method: M = match &args.adapter {
            Some(dir) => peft::config(dir, model.base.shape())?,
            None => peft::from_settings(&args.set)?,
        };
        // An impossible configuration is told before anything is read for it.
        method.count(model.base.shape())?;
        let (mut data, mut eval) = self.data(&method)?;
        let head_classes = match &args.adapter {
            Some(dir) => peft::labels(dir)?.classes,
            None => model.classes(),
        };
        match with_classes(&data, &eval, &head_classes) {
            Some(both) => (data, eval) = both,
            None if args.adapter.is_some() && !head_classes.is_empty() => {
                let expected = format!("classes of the adapter: {head_classes:?}");
                return Err(Error::file(&args.data, "classes", format!("{:?}", data.classes), expected));
            }
            None => {}
        }
        let config = args.config(data.examples.len())?;
        let steps = config.steps(data.examples.len());
        let trainer = Trainer::new(config);
        let trained: Trained<M::Tuner> = match &args.adapter {
            Some(dir) => peft::load::<M>(dir, &model.base)?.1,
            None => trainer.start(model, &method, &data)?,
        };
        let mut progress = Progress::new(steps, args.log.as_deref())?;
        let started = std::time::Instant::now();
        let tuned: Tuned<'_, M> = trainer.resume(model, method, trained, &data, eval.as_ref(), &mut progress)?;
        tuned.save(&args.output)?;
        let (method, head) = tuned.trainable();
        let metrics: serde_json::Map<_, _> = progress
            .metrics
            .iter()
            .flat_map(|metrics| metrics.0.iter().map(|(name, value)| (name.to_string(), json!(value))))
            .collect();
        let summary = json!({
            "output": args.output, "method": M::NAME, "steps": steps, "trainable": {"method": method, "head": head},
            "seconds": started.elapsed().as_secs_f64(), "tokens_per_second": progress.tokens_per_second(),
            "peak_bytes": peak_bytes(), "metrics": metrics,
        });
        print(summary)?;
        Ok(())
    }
}

/// The most memory that this process ever held, where the system tells.
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
