//! `peft train`

mod data;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{ArgGroup, Args, ValueEnum};
use peft_core::files::{MANIFEST, read_text, verify};
use peft_core::io::{Pretrained, peft};
use peft_core::train::{Checkpoints, Length, Metrics, Rule, Schedule, Slots, TrainConfig, Trainer, Tuned};
use peft_core::{AnyMethod, Copies, Error, Example, Result, Source};
use peft_quant::Scheme;
use serde_json::{Map, Value, json};

use self::data::{Reading, names, tell_head, tell_labels};
use super::options::{ColumnArgs, ModelArgs, OutputArgs, TaskFile, print, tell};
use super::progress::{Progress, check_log};
use super::{card, yaml};
use crate::machine::{peak_bytes, threads};
use crate::registry::{by_name, by_peft_type, load};
use crate::signals;
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
    pub(super) model: ModelArgs,
    /// Train on from this adapter directory, or from several at once, the first outermost, whose head counts
    #[arg(long, value_name = "DIR", conflicts_with = "set")]
    pub(super) adapter: Vec<PathBuf>,
    /// Start this method (see `peft methods`), or several at once, the first outermost; with --adapter, the method that it must be of
    #[arg(long)]
    method: Vec<String>,
    /// A setting of the method, KEY=VALUE
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Adapter directories that the method starts from
    #[arg(long, value_name = "DIR,..", value_delimiter = ',', conflicts_with = "adapter")]
    pub(super) source: Vec<PathBuf>,
    /// A task of GLUE: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte; --data is then its directory, or GLUE's
    #[arg(long)]
    pub(super) task: Option<String>,
    /// Labelled examples: .tsv, .csv or .jsonl (texts, words with a tag for each, or input_ids), .conll or .txt (a word and its tag in a
    /// line), or a task's directory
    #[arg(long, required_unless_present = "task_data")]
    pub(super) data: Option<PathBuf>,
    /// Labelled examples to evaluate on; a task brings its own
    #[arg(long, conflicts_with = "task")]
    pub(super) eval: Option<PathBuf>,
    /// One of several tasks that are trained together, each with a head and metrics of its own: a file as --data takes, or, with the
    /// name of a task of GLUE, its directory or GLUE's
    #[arg(long, value_name = "NAME=FILE", conflicts_with_all = ["data", "task", "eval"])]
    pub(super) task_data: Vec<TaskFile>,
    /// What a task is evaluated on; one of GLUE brings its own
    #[arg(long, value_name = "NAME=FILE", requires = "task_data")]
    pub(super) task_eval: Vec<TaskFile>,
    #[command(flatten)]
    pub(super) columns: ColumnArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// Optimizer steps
    #[arg(long, conflicts_with = "epochs")]
    steps: Option<usize>,
    /// Times through the data, or a fraction of one [default: 3]
    #[arg(long)]
    epochs: Option<f64>,
    /// Sequences in a batch
    #[arg(long, default_value_t = 32)]
    batch_size: usize,
    /// Peak learning rate
    #[arg(long, default_value_t = 1e-3)]
    lr: f64,
    /// The update rule
    #[arg(long, value_enum, default_value_t = Optimizer::Adamw)]
    optimizer: Optimizer,
    /// Decoupled weight decay, of biases and normalizations too
    #[arg(long, default_value_t = 0.0)]
    weight_decay: f64,
    /// AdamW's decay of the first moment
    #[arg(long, default_value_t = 0.9)]
    adam_beta1: f64,
    /// AdamW's decay of the second moment
    #[arg(long, default_value_t = 0.999)]
    adam_beta2: f64,
    /// AdamW's epsilon
    #[arg(long, default_value_t = 1e-8)]
    adam_epsilon: f64,
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
    /// Batches whose gradients make one step
    #[arg(long, value_name = "BATCHES", default_value_t = 1)]
    accumulate: usize,
    /// Put sequences of like length into one batch
    #[arg(long, conflicts_with = "no_shuffle")]
    group_by_length: bool,
    /// Draw each batch from one task, of --task-data or the data's column task_id, by its size to the power 1 / T: 1 as they are, larger ones more
    /// evenly (Hyperformer: 10) [default: tasks mix in a batch]
    #[arg(long, value_name = "T", conflicts_with_all = ["no_shuffle", "group_by_length"])]
    task_temperature: Option<f64>,
    /// Evaluate every so many steps [default: after each epoch]
    #[arg(long, value_name = "STEPS")]
    eval_every: Option<usize>,
    /// Keep the state of the best evaluation instead of the last
    #[arg(long)]
    keep_best: bool,
    /// Stop after so many evaluations without a better one, and keep the state of the best
    #[arg(long, value_name = "EVALUATIONS")]
    early_stop: Option<usize>,
    /// What the best is judged by [default: the task's first metric, else loss]
    #[arg(long)]
    metric: Option<String>,
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
    /// Write TensorBoard event files into this directory
    #[cfg(feature = "tensorboard")]
    #[arg(long)]
    tensorboard: Option<PathBuf>,
    /// Save a checkpoint every so many steps [default: every 20 seconds]
    #[arg(long, value_name = "STEPS")]
    save_every: Option<usize>,
    /// Go on from the newest checkpoint of a run that was stopped; ends with the same bits
    #[arg(long)]
    resume: bool,
    /// Settings from a YAML file, in the names of transformers' TrainingArguments and of the method; options on the command
    /// line come first. Given several times, these are runs at once over one model in memory
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// What a result holds of the settings of its run.
const SETTINGS: &str = "train.yaml";

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Optimizer {
    #[value(aliases = ["adamw_torch", "adamw_torch_fused", "adamw_hf"])]
    Adamw,
    Adafactor,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ScheduleArg {
    Linear,
    Cosine,
    #[value(alias = "constant_with_warmup")]
    Constant,
}

impl Train {
    pub(super) fn run(self) -> Result<()> {
        self.check_outputs()?;
        self.run_on(&self.open()?, None)
    }

    /// Opens the model.
    pub(super) fn open(&self) -> Result<Pretrained> {
        self.model.open()
    }

    /// Which model it opens, on which device, and how it is packed.
    pub(super) fn place(&self) -> (&str, &str, Option<Scheme>) {
        (&self.model.model, &self.model.device, self.model.base)
    }

    /// Where the result goes.
    pub(super) fn output(&self) -> &Path {
        &self.output.output
    }

    /// The threads that are asked for.
    pub(super) fn threads(&self) -> Option<usize> {
        self.threads
    }

    /// Trains on its model, as one of several runs where there are slots.
    pub(super) fn run_on(&self, model: &Pretrained, slots: Option<&Arc<Slots>>) -> Result<()> {
        print(self.outcome_on(model, slots)?)
    }

    /// The same, and gives what is to be printed.
    pub(super) fn outcome_on(&self, model: &Pretrained, slots: Option<&Arc<Slots>>) -> Result<Value> {
        let method = match (&self.adapter[..], &self.method[..]) {
            ([dir], _) => by_peft_type(dir)?,
            ([], []) => return Err(Error::config("start", "nothing", "--adapter or --method")),
            ([], names) => by_name(&names.join("+"))?,
            (dirs, _) => AnyMethod::composed(dirs.iter().map(|dir| by_peft_type(dir)).collect::<Result<_>>()?),
        };
        Job { args: self, model, slots }.run(method)
    }

    /// Refuses outputs that cannot be, or that are what is read.
    pub(super) fn check_outputs(&self) -> Result<()> {
        let read = [self.data.as_ref(), self.eval.as_ref(), self.config.as_ref()];
        let of_tasks = self.task_data.iter().chain(&self.task_eval).map(|task| &task.path);
        let inputs = self.model.inputs(&self.adapter);
        let inputs = inputs
            .with_models(self.source.iter().map(PathBuf::as_path))
            .with(read.into_iter().flatten())
            .with(of_tasks);
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
        for (name, made) in [("output", &self.output.output), ("checkpoints", &self.checkpoints().dir)] {
            if absolute(path)?.starts_with(absolute(made)?) {
                let found = format!("{}, in the run's {name}", path.display());
                return Err(Error::config(
                    option,
                    found,
                    "a place elsewhere: that directory comes and goes as a whole",
                ));
            }
        }
        Ok(())
    }

    fn config(&self, samples: usize) -> Result<TrainConfig> {
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
            optim: match self.optimizer {
                Optimizer::Adamw => Rule::AdamW,
                Optimizer::Adafactor => Rule::Adafactor,
            },
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
    fn is_done(&self) -> bool {
        self.resume && self.output.output.join(SETTINGS).exists()
    }

    /// Where checkpoints lie while the run lasts: beside the output, which appears only when it is done.
    fn checkpoints(&self) -> Checkpoints {
        let output = &self.output.output;
        let mut name = output.file_name().unwrap_or_default().to_os_string();
        name.push(".checkpoints");
        Checkpoints { dir: output.with_file_name(name), every: self.save_every, resume: self.resume }
    }
}

/// A finished adapter to start from, under the name of its directory.
fn source(dir: &Path, model: &Pretrained) -> Result<Source> {
    let (config, trained) = peft::load_as(&by_peft_type(dir)?, dir, model)?;
    let name = dir.file_name().map_or_else(|| dir.display().to_string(), |name| name.to_string_lossy().into_owned());
    Ok(Source { name, config, trained })
}

/// Refuses a finished run whose settings are not those that are asked for, which it names.
fn same_settings(path: &Path, found: &str, asked: &str) -> Result<()> {
    fn settings(text: &str) -> BTreeMap<&str, &str> {
        let first = text.lines().next().and_then(|line| line.strip_prefix("# model ")?.split_once(", data "));
        let told = first.into_iter().flat_map(|(model, data)| [("the model", model), ("the data", data)]);
        told.chain(text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(": ")))
            .collect()
    }
    let (found, asked) = (settings(found), settings(asked));
    let other = |key: &&&str| found.get(**key) != asked.get(**key);
    let keys: BTreeSet<&str> = found.keys().chain(asked.keys()).filter(other).copied().collect();
    if keys.is_empty() {
        return Ok(());
    }
    let told = |settings: &BTreeMap<&str, &str>| {
        let one = |key: &&str| format!("{key} {}", settings.get(key).unwrap_or(&"not set"));
        keys.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    let expected =
        format!("{}, as this call says; a finished run is not gone on with: take another --output", told(&asked));
    Err(Error::file(path, "settings of the finished run", told(&found), expected))
}

struct Job<'a> {
    args: &'a Train,
    model: &'a Pretrained,
    slots: Option<&'a Arc<Slots>>,
}

impl Job<'_> {
    fn run(self, method: AnyMethod) -> Result<Value> {
        let Job { args, model, slots } = self;
        let of_set = |error: Error| error.of_option("--set");
        let (common, settings) = peft::split_common(&args.set).map_err(of_set)?;
        let (method, adapter) = match &args.adapter[..] {
            dirs @ [_, ..] if !args.method.is_empty() && args.method.join("+") != method.name() => {
                let found = args.method.join("+");
                let dirs: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
                let expected = format!("{}, the method of {}", method.name(), dirs.join(" and "));
                return Err(Error::config("--method", found, expected));
            }
            dirs @ [_, ..] => {
                let Tuned { config, trained, .. } = load(dirs, model)?;
                (config, Some(trained))
            }
            [] => {
                let sources = args.source.iter().map(|dir| source(dir, model)).collect::<Result<Vec<_>>>()?;
                let method =
                    peft::with_words(&method, &settings).map_err(of_set)?.narrowed(&common, model.base.shape())?;
                (method.from_sources(sources), None)
            }
        };
        // An impossible configuration is told before anything is read for it.
        method.checked_count(model.base.shape())?;
        let (data, eval) =
            Reading { args, model, method: &method, head: adapter.as_ref().map(|it| &it.head) }.data()?;
        let config = args.config(data.examples.len())?;
        let steps = config.steps(data.examples.len());
        // What is not a setting decides a run as well: a finished one is told apart from one on another model or other data.
        let hashes =
            [Some(&data), eval.as_ref()].into_iter().flatten().map(|data| Example::fingerprint(&data.examples));
        let hashes = hashes.map(|hash| format!("{hash:016x}")).collect::<Vec<_>>().join(", ");
        let settings = yaml::effective(args, &method, common.saved(), &config)?;
        let settings = format!("# model {:016x}, data {hashes}\n{settings}", model.fingerprint());
        let output = args.output.output.as_path();
        if args.is_done() {
            let path = output.join(SETTINGS);
            same_settings(&path, &read_text(&path, 1 << 20)?, &settings)?;
            // Results had no hashes once.
            if output.join(MANIFEST).exists() {
                verify(output)?;
            }
            args.checkpoints().remove()?;
            return Ok(json!({"output": output.display().to_string(), "method": method.name(), "done": "before"}));
        }
        if args.resume && !args.checkpoints().dir.exists() {
            tell(format_args!("no checkpoints in {}: from the start", args.checkpoints().dir.display()));
        }
        data.parts().iter().zip(names(&data)).for_each(|(part, name)| tell_labels(part, &name));
        let trainer = Trainer::new(config.clone()).with_checkpoints(args.checkpoints());
        let trainer = slots.map_or(trainer.clone(), |slots| trainer.with_slots(slots.clone()));
        let trained = match adapter {
            Some(trained) => trained,
            None => {
                if method.head_from(&model.base).is_none() {
                    for (part, name) in data.parts().iter().zip(names(&data)) {
                        tell_head(model, trainer.own_head(model, part)?.as_ref(), part, &name)?;
                    }
                }
                let trained = trainer.start(model, &method, &data)?;
                let base = model.base.for_purpose(trained.head.purpose());
                trained.with_copies(Copies::new(&base, common.saved())?)?
            }
        };
        let again = if args.resume { "the same command" } else { "the same command with --resume" };
        let mut progress = Progress::new(steps, args.log.as_deref(), args.checkpoints().dir, again);
        if slots.is_some() {
            progress.hide();
        }
        #[cfg(feature = "tensorboard")]
        progress.write_events(args.tensorboard.as_deref());
        let started = std::time::Instant::now();
        let mut tuned =
            signals::by_steps(|| trainer.train(model, method, trained, &data, eval.as_ref(), &mut progress))?;
        // Of what is saved: neither the best state nor what a method makes of the last one need be what was evaluated last.
        let metrics = eval.as_ref().map_or(Ok(Metrics::default()), |eval| tuned.evaluate(eval))?;
        let metrics: Map<String, Value> =
            metrics.0.iter().map(|(name, value)| (name.to_string(), json!(value))).collect();
        let (method, head) = tuned.trainable();
        let (steps, speed) = (progress.steps(), progress.tokens_per_second());
        drop(progress);
        let card = card::write(&tuned, &config, &metrics, args.task.as_deref());
        if let Some(fault) = tuned.fault.take() {
            // Without its settings it is no finished run.
            args.output.make(|dir| tuned.save_with(dir, &[("README.md", card)]))?;
            let [result, state] = [output, &args.checkpoints().dir].map(|path| path.display().to_string());
            tell(format_args!(
                "the result, which is not to be trusted, is in {result}, the state of the last step in {state}"
            ));
            return Err(fault);
        }
        args.output.make(|dir| tuned.save_with(dir, &[(SETTINGS, settings), ("README.md", card)]))?;
        args.checkpoints().remove()?;
        Ok(json!({
            "output": output.display().to_string(), "method": tuned.config.name(), "steps": steps,
            "trainable": {"method": method, "head": head}, "seconds": started.elapsed().as_secs_f64(),
            "tokens_per_second": speed, "peak_bytes": peak_bytes(), "metrics": metrics,
        }))
    }
}
