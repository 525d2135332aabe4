//! The arguments of `peft train`, and what follows from them alone.

use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args, ValueEnum};
use peft_core::files::Inputs;
use peft_core::io::Pretrained;
use peft_core::train::{Checkpoints, Length, Schedule, TrainConfig};
use peft_core::{Error, Result};
use peft_quant::Scheme;

use crate::cli::optimizer::OptimizerArgs;
use crate::cli::options::{ColumnArgs, ModelArgs, OutputArgs, TaskFile};
use crate::cli::progress::check_log;
use crate::machine::threads;
use crate::tasks::Task;

/// Train a method on labelled sentences
#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("start").required(true).multiple(true).args(["adapter", "method"]),
    after_help = "Examples:\n  peft train --model DIR --method lora --set r=8 --data train.tsv --epochs 3 --output out/lora\n  \
    peft train --model DIR --method bitfit --task sst2 --data GLUE/SST-2 --steps 500 --lr 1e-3 --output out/bitfit\n  \
    peft train --model DIR --method hyperformer --set tasks=2 --task-data sst2=GLUE --task-data rte=GLUE --task-temperature 10 \
    --output out/both\n  peft train --config out/lora/train.yaml --seed 1 --output out/lora-seed-1\n  \
    peft train --model DIR --adapter out/lora --data more.jsonl --epochs 1 --output out/lora-2"
)]
pub struct Train {
    #[command(flatten)]
    pub(in crate::cli) model: ModelArgs,
    /// Train on from this adapter directory, or from several at once, the first outermost, whose head counts
    #[arg(long, value_name = "DIR", conflicts_with = "set")]
    pub(in crate::cli) adapter: Vec<PathBuf>,
    /// Start this method (see `peft methods`), or several at once, the first outermost; with --adapter, the method that it must be of
    #[arg(long)]
    pub(super) method: Vec<String>,
    /// A setting of the method, KEY=VALUE
    #[arg(long, value_name = "KEY=VALUE")]
    pub(super) set: Vec<String>,
    /// Adapter directories that the method starts from
    #[arg(long, value_name = "DIR,..", value_delimiter = ',', conflicts_with = "adapter")]
    pub(in crate::cli) source: Vec<PathBuf>,
    /// A task of GLUE: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte; --data is then its directory, or GLUE's
    #[arg(long)]
    pub(in crate::cli) task: Option<String>,
    /// Labelled examples: .tsv, .csv or .jsonl (texts, words with a tag for each, or input_ids), .conll or .txt (a word and its tag in a
    /// line), or a task's directory
    #[arg(long, required_unless_present = "task_data")]
    pub(in crate::cli) data: Option<PathBuf>,
    /// Labelled examples to evaluate on; a task brings its own
    #[arg(long, conflicts_with = "task")]
    pub(in crate::cli) eval: Option<PathBuf>,
    /// One of several tasks that are trained together, each with a head and metrics of its own: a file as --data takes, or, with the
    /// name of a task of GLUE, its directory or GLUE's
    #[arg(long, value_name = "NAME=FILE", conflicts_with_all = ["data", "task", "eval"])]
    pub(in crate::cli) task_data: Vec<TaskFile>,
    /// What a task is evaluated on; one of GLUE brings its own
    #[arg(long, value_name = "NAME=FILE", requires = "task_data")]
    pub(in crate::cli) task_eval: Vec<TaskFile>,
    #[command(flatten)]
    pub(in crate::cli) columns: ColumnArgs,
    #[command(flatten)]
    pub(super) output: OutputArgs,
    /// Optimizer steps
    #[arg(long, conflicts_with = "epochs")]
    pub(super) steps: Option<usize>,
    /// Times through the data, or a fraction of one [default: 3]
    #[arg(long)]
    pub(super) epochs: Option<f64>,
    /// Sequences in a batch
    #[arg(long, default_value_t = 32)]
    pub(super) batch_size: usize,
    /// Peak learning rate
    #[arg(long, default_value_t = 1e-3)]
    pub(super) lr: f64,
    #[command(flatten)]
    pub(super) optimizer: OptimizerArgs,
    /// Decoupled weight decay, of biases and normalizations too
    #[arg(long, default_value_t = 0.0)]
    pub(super) weight_decay: f64,
    /// AdamW's decay of the first moment
    #[arg(long, default_value_t = 0.9)]
    pub(super) adam_beta1: f64,
    /// AdamW's decay of the second moment
    #[arg(long, default_value_t = 0.999)]
    pub(super) adam_beta2: f64,
    /// AdamW's epsilon
    #[arg(long, default_value_t = 1e-8)]
    pub(super) adam_epsilon: f64,
    /// The learning rate after the warm-up
    #[arg(long, value_enum, default_value_t = ScheduleArg::Linear)]
    pub(super) schedule: ScheduleArg,
    /// Warm-up: steps, or a share of all steps if below 1
    #[arg(long, default_value_t = 0.0)]
    pub(super) warmup: f64,
    /// Clip the norm of all gradients to this; 0 for no clipping
    #[arg(long, default_value_t = 1.0)]
    pub(super) max_grad_norm: f64,
    /// Dropout probability of base and head [default: the model's own]
    #[arg(long)]
    pub(super) dropout: Option<f64>,
    /// Batches whose gradients make one step
    #[arg(long, value_name = "BATCHES", default_value_t = 1)]
    pub(super) accumulate: usize,
    /// Put sequences of like length into one batch
    #[arg(long, conflicts_with = "no_shuffle")]
    pub(super) group_by_length: bool,
    /// Draw each batch from one task, of --task-data or the data's column task_id, by its size to the power 1 / T: 1 as they are, larger ones more
    /// evenly (Hyperformer: 10) [default: tasks mix in a batch]
    #[arg(long, value_name = "T", conflicts_with_all = ["no_shuffle", "group_by_length"])]
    pub(super) task_temperature: Option<f64>,
    /// Evaluate every so many steps [default: after each epoch]
    #[arg(long, value_name = "STEPS")]
    pub(super) eval_every: Option<usize>,
    /// Keep the state of the best evaluation instead of the last
    #[arg(long)]
    pub(super) keep_best: bool,
    /// Stop after so many evaluations without a better one, and keep the state of the best
    #[arg(long, value_name = "EVALUATIONS")]
    pub(super) early_stop: Option<usize>,
    /// What the best is judged by [default: the task's first metric, else loss]
    #[arg(long)]
    pub(super) metric: Option<String>,
    /// Decides every random number
    #[arg(long, default_value_t = 0)]
    pub(super) seed: u64,
    /// Go round the data in order
    #[arg(long)]
    pub(super) no_shuffle: bool,
    /// Tokens to which texts are cut
    #[arg(long, default_value_t = 128)]
    pub(super) max_length: usize,
    /// Threads; changes no bit of the result [default: all cores]
    #[arg(long)]
    pub(super) threads: Option<usize>,
    /// Rows of a micro-batch
    #[arg(long, default_value_t = 256)]
    pub(super) micro_rows: usize,
    /// Write one JSON object for each step
    #[arg(long)]
    pub(super) log: Option<PathBuf>,
    /// Write TensorBoard event files into this directory
    #[cfg(feature = "tensorboard")]
    #[arg(long)]
    pub(super) tensorboard: Option<PathBuf>,
    /// Save a checkpoint every so many steps [default: every 20 seconds]
    #[arg(long, value_name = "STEPS")]
    pub(super) save_every: Option<usize>,
    /// Go on from the newest checkpoint of a run that was stopped; ends with the same bits
    #[arg(long)]
    pub(super) resume: bool,
    /// Settings from a YAML file, in the names of transformers' TrainingArguments and of the method; options on the command
    /// line come first. Given several times, these are runs at once over one model in memory
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
}

/// What a result holds of the settings of its run.
pub(super) const SETTINGS: &str = "train.yaml";

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum ScheduleArg {
    Linear,
    Cosine,
    #[value(alias = "constant_with_warmup")]
    Constant,
}

impl Train {
    /// Opens the model.
    pub(in crate::cli) fn open(&self) -> Result<Pretrained> {
        self.model.open()
    }

    /// Which model it opens, on which device, and how it is packed.
    pub(in crate::cli) fn place(&self) -> (&str, &str, Option<Scheme>) {
        (&self.model.model, &self.model.device, self.model.base)
    }

    /// Where the result goes.
    pub(in crate::cli) fn output(&self) -> &Path {
        &self.output.output
    }

    /// The threads that are asked for.
    pub(in crate::cli) fn threads(&self) -> Option<usize> {
        self.threads
    }

    /// Refuses settings that are impossible whatever the data.
    pub(in crate::cli) fn check_settings(&self) -> Result<()> {
        self.config(1).map(drop)
    }

    /// What it reads.
    fn inputs(&self) -> Inputs {
        let read = [self.data.as_ref(), self.eval.as_ref(), self.config.as_ref()];
        let of_tasks = self.task_data.iter().chain(&self.task_eval).map(|task| &task.path);
        let inputs = self.model.inputs(&self.adapter).with_models(self.source.iter().map(PathBuf::as_path));
        inputs.with(read.into_iter().flatten()).with(of_tasks)
    }

    /// Refuses outputs that another run at once reads or makes.
    pub(in crate::cli) fn check_beside(&self, other: &Train) -> Result<()> {
        let inputs = other.inputs();
        if !self.is_done() {
            inputs.spare_directory("--output", self.output())?;
        }
        other.check_apart("--output", self.output())?;
        if let Some(log) = &self.log {
            let inputs = inputs.with(&other.log);
            inputs.spare("--log", log)?;
            other.check_apart("--log", log)?;
            if other.log.as_ref() == Some(log) {
                return Err(Error::config("--log", log.display(), "a file for each run"));
            }
        }
        Ok(())
    }

    /// Refuses outputs that cannot be, or that are what is read.
    pub(in crate::cli) fn check_outputs(&self) -> Result<()> {
        let inputs = self.inputs();
        if !self.is_done() {
            self.output.check(&inputs)?;
        }
        if let Some(log) = &self.log {
            inputs.spare("--log", log)?;
            self.check_apart("--log", log)?;
            check_log(log)?;
        }
        #[cfg(feature = "tensorboard")]
        if let Some(dir) = &self.tensorboard {
            self.check_apart("--tensorboard", dir)?;
            if dir.symlink_metadata().is_ok() && !dir.is_dir() {
                return Err(Error::file(dir, "--tensorboard", "no directory", "a directory, or none yet"));
            }
        }
        Ok(())
    }

    /// Refuses what would lie in a directory that the run makes and removes as a whole.
    fn check_apart(&self, option: &str, path: &Path) -> Result<()> {
        let absolute = |path: &Path| std::path::absolute(path).map_err(Error::io("find", path));
        for (name, made) in [("output", self.output()), ("checkpoints", &self.checkpoints().dir)] {
            if absolute(path)?.starts_with(absolute(made)?) {
                let found = format!("{}, in a run's {name}", path.display());
                return Err(Error::config(
                    option,
                    found,
                    "a place elsewhere: that directory comes and goes as a whole",
                ));
            }
        }
        Ok(())
    }

    pub(super) fn config(&self, samples: usize) -> Result<TrainConfig> {
        let length = match (self.steps, self.epochs) {
            (Some(steps), _) => Length::Steps(steps),
            (None, epochs) => Length::Epochs(epochs.unwrap_or(3.0)),
        };
        let task = self.task.as_deref().map(Task::named).transpose()?;
        // transformers' names have the name of the data in front.
        let given = self.metric.as_deref().map(|name| name.strip_prefix("eval_").unwrap_or(name).to_string());
        let metric = given.or(task.map(|task| task.metrics[0].to_string()));
        let mut config = TrainConfig {
            learning_rate: self.lr,
            length,
            batch_size: self.batch_size,
            gradient_accumulation_steps: self.accumulate,
            weight_decay: self.weight_decay,
            adam_beta1: self.adam_beta1,
            adam_beta2: self.adam_beta2,
            adam_epsilon: self.adam_epsilon,
            lr_scheduler_type: match self.schedule {
                ScheduleArg::Linear => Schedule::Linear,
                ScheduleArg::Cosine => Schedule::Cosine,
                ScheduleArg::Constant => Schedule::Constant,
            },
            max_grad_norm: self.max_grad_norm,
            seed: self.seed,
            shuffle: !self.no_shuffle,
            group_by_length: self.group_by_length,
            task_temperature: self.task_temperature,
            eval_steps: self.eval_every,
            load_best_model_at_end: self.keep_best || self.early_stop.is_some(),
            metric_for_best_model: metric.unwrap_or_else(|| "loss".into()),
            early_stopping_patience: self.early_stop,
            threads: self.threads.unwrap_or_else(threads),
            micro_rows: self.micro_rows,
            dropout: self.dropout,
            max_length: self.max_length,
            ..Default::default()
        };
        // An empty path is that of the directory that the program is in.
        let beside = self.output.output.parent().filter(|dir| !dir.as_os_str().is_empty());
        config = self.optimizer.of(config, beside.unwrap_or(Path::new(".")));
        config.check()?;
        let judged = [
            ("--keep-best", self.keep_best),
            ("--early-stop", self.early_stop.is_some()),
            ("--eval-every", self.eval_every.is_some()),
            ("--metric", config.metric_for_best_model != "loss"),
        ];
        if let Some((option, _)) = judged.into_iter().find(|(_, given)| *given && !self.is_evaluated()) {
            let expected = if self.task_data.is_empty() { "--eval, or --task" } else { "--task-eval" };
            return Err(Error::config(option, "no data to evaluate on", expected));
        }
        if !(0.0..1e9).contains(&self.warmup) || self.warmup > 1.0 && self.warmup.fract() != 0.0 {
            return Err(Error::config("--warmup", self.warmup, "steps, or a share from 0 to below 1"));
        }
        let total = config.steps(samples);
        // A part of a step counts as one, as in transformers.
        config.warmup_steps = if self.warmup < 1.0 { self.warmup * total as f64 } else { self.warmup }.ceil() as usize;
        Ok(config)
    }

    /// Whether there is data to evaluate on.
    fn is_evaluated(&self) -> bool {
        let of_tasks = !self.task_eval.is_empty() || self.task_data.iter().any(|task| task.path.is_dir());
        self.task.is_some() || self.eval.is_some() || of_tasks
    }

    /// Whether a run that is to be taken up has written its result already: it was stopped at the very end.
    pub(super) fn is_done(&self) -> bool {
        self.resume && self.output.output.join(SETTINGS).exists()
    }

    /// Where checkpoints lie while the run lasts: beside the output, which appears only when it is done.
    pub(super) fn checkpoints(&self) -> Checkpoints {
        let output = &self.output.output;
        let mut name = output.file_name().unwrap_or_default().to_os_string();
        name.push(".checkpoints");
        Checkpoints { dir: output.with_file_name(name), every: self.save_every, resume: self.resume }
    }
}
