//! `peft train`

use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args, ValueEnum};
use peft_core::data::{Dataset, Labelled};
use peft_core::files::check_new_directory;
use peft_core::io::{Pretrained, peft};
use peft_core::train::{Length, Schedule, TrainConfig, Trainer, Tuned};
use peft_core::{Error, Method, Result, Trained};
use serde_json::json;

use super::options::{ColumnArgs, ModelArgs, print, room, threads, warn_of_broken_rows};
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
    /// A task of GLUE: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte; --data is then its directory, or GLUE's
    #[arg(long)]
    task: Option<String>,
    /// Labelled examples: .tsv, .csv or .jsonl, or a task's directory
    #[arg(long)]
    data: PathBuf,
    /// Labelled examples to evaluate on after each epoch; a task brings its own
    #[arg(long, conflicts_with = "task")]
    eval: Option<PathBuf>,
    #[command(flatten)]
    columns: ColumnArgs,
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
        let (data, eval) = self.read(&model)?;
        match (&self.adapter, &self.method) {
            (Some(dir), _) => by_peft_type(&peft::peft_type(dir)?, Job { args: &self, model: &model, data, eval }),
            (_, Some(name)) => by_name(name, Job { args: &self, model: &model, data, eval }),
            (None, None) => Err(Error::config("start", "nothing", "--adapter or --method")),
        }
    }

    fn read(&self, model: &Pretrained) -> Result<(Dataset, Option<Dataset>)> {
        let (train, eval) = match (&self.task, &self.eval) {
            (Some(task), _) => {
                let (train, dev) = Task::named(task)?.read(&self.data)?;
                (train, Some(dev))
            }
            (None, eval) => {
                let open = |path: &Path| Ok::<_, Error>(self.columns.of(Labelled::open(path)?));
                let train = open(&self.data)?.read()?;
                let eval = eval.as_ref().map(|path| open(path)?.like(&train).read()).transpose()?;
                (train, eval)
            }
        };
        [Some(&train), eval.as_ref()].into_iter().flatten().for_each(warn_of_broken_rows);
        let method = self.method.as_deref().map(|name| (name, &self.set[..]));
        let max_length = self.max_length.min(room(model, self.adapter.as_deref(), method)?);
        let eval = eval.map(|eval| eval.prepare(model, max_length)).transpose()?;
        Ok((train.prepare(model, max_length)?, eval))
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
    data: Dataset,
    eval: Option<Dataset>,
}

impl WithMethod for Job<'_> {
    type Output = ();
    fn call<M: Method>(self) -> Result<()> {
        let Job { args, model, data, eval } = self;
        let config = args.config(data.examples.len())?;
        let steps = config.steps(data.examples.len());
        let trainer = Trainer::new(config);
        let (method, trained): (M, Trained<M::Tuner>) = match &args.adapter {
            Some(dir) => peft::load(dir, &model.base)?,
            None => {
                let method = peft::from_settings(&args.set)?;
                let trained = trainer.start(model, &method, &data)?;
                (method, trained)
            }
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
