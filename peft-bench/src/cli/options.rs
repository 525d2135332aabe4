//! Options that several commands share.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use burn::tensor::Device;
use clap::Args;
use peft_core::composition::{Composition, Lane};
use peft_core::data::{Builder, Labelled, class_place};
use peft_core::files::{Inputs, check_file, check_new_directory, check_replaceable, read_text, replace_directory};
use peft_core::io::{Pretrained, adapterhub, hub_setup};
use peft_core::train::{Tuned, Workers};
use peft_core::{AnyTuner, Base, Compute, Error, Result, Shape, TaskLabels, Trained};
use peft_quant::Scheme;

pub use super::out::{print, print_part, tell};
use super::progress::bar;
use crate::registry::{by_adapterhub, by_kind};

/// Which model, where.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// A model directory (config.json, weights, tokenizer.json), or shape:NAME for random weights
    #[arg(long)]
    pub model: String,
    /// Where to compute: flex, cpu, wgpu, cuda:0, tch, as far as they are compiled in
    #[arg(long, default_value_t = peft_core::available().first().copied().unwrap_or("none").to_string())]
    pub device: String,
    /// Pack the model's linear maps as they are read: nf4, fp4, nf4-double, fp4-double (with scales of eight bits) or int8 [default: as
    /// its files have them]
    #[arg(long, value_name = "SCHEME")]
    pub base: Option<Scheme>,
    /// Compute products with the model's linear maps in f32, or in bf16 with sums in f32: less exact and, where the processor multiplies bf16,
    /// faster (flex)
    #[arg(long, value_name = "TYPE", default_value_t)]
    pub compute: Compute,
}

impl ModelArgs {
    /// What is read of it and of adapters.
    pub fn inputs(&self, adapters: &[PathBuf]) -> Inputs {
        Inputs::new().with_models([Path::new(&self.model)].into_iter().chain(adapters.iter().map(PathBuf::as_path)))
    }

    /// Opens it.
    pub fn open(&self) -> Result<Pretrained> {
        check_model(&self.model)?;
        self.opened(|device| peft_quant::open(&self.model, device, self.base))
    }

    /// Random weights of its shape with so many layers.
    pub fn random(&self, layers: usize) -> Result<Pretrained> {
        let shape = Pretrained::shape(&self.model)?.with_layers(layers);
        self.opened(|device| peft_quant::random(shape, device, self.base))
    }

    fn opened(&self, open: impl FnOnce(&Device) -> Result<Pretrained>) -> Result<Pretrained> {
        if self.compute == Compute::Bf16 && self.device != "flex" {
            return Err(Error::config("--compute", format!("bf16 on {}", self.device), "f32, or --device flex"));
        }
        let model = open(&peft_core::device(&self.device)?).map_err(|error| match error {
            Error::Config { key, found, expected } if key == "model" => Error::config("--model", found, expected),
            other => other,
        })?;
        Ok(Pretrained { base: model.base.with_compute(self.compute), ..model })
    }
}

/// Refuses an adapter in a model's place.
pub fn check_model(model: &str) -> Result<()> {
    let has = |name: &str| Path::new(model).join(name).exists();
    if has("adapter_config.json") && !has("config.json") {
        let expected = "the model that it is for, and this directory with --adapter";
        return Err(Error::config("--model", format!("{model}, an adapter,"), expected));
    }
    Ok(())
}

/// Which columns of a data file hold what.
#[derive(Debug, Args)]
pub struct ColumnArgs {
    /// The column of the text (or, in an array, of its words), or of the first text of a pair [default: by the usual names]
    #[arg(long, value_name = "NAME", conflicts_with = "task")]
    pub text_column: Option<String>,
    /// The column of the second text
    #[arg(long, value_name = "NAME", conflicts_with = "task")]
    pub pair_column: Option<String>,
    /// The column of the label, or of the words' tags in an array
    #[arg(long, value_name = "NAME", conflicts_with = "task")]
    pub label_column: Option<String>,
    /// The column of the text that T5 or LLaMA is to write, in place of a label
    #[arg(long, value_name = "NAME", conflicts_with_all = ["task", "label_column"])]
    pub target_column: Option<String>,
    /// The names of all columns, for a .tsv or .csv without a header line
    #[arg(long, value_name = "NAMES", value_delimiter = ',', conflicts_with = "task")]
    pub columns: Vec<String>,
}

impl ColumnArgs {
    /// Tells them to the reader of a file.
    pub fn of(&self, mut builder: Builder) -> Builder {
        if let Some(name) = &self.text_column {
            builder = builder.text(name);
        }
        if let Some(name) = &self.pair_column {
            builder = builder.pair(name);
        }
        if let Some(name) = &self.label_column {
            builder = builder.label(name);
        }
        if let Some(name) = &self.target_column {
            builder = builder.target(name);
        }
        if self.columns.is_empty() { builder } else { builder.columns(&self.columns) }
    }
}

/// A composition of adapters that gives one result for each text.
pub struct Setup {
    /// The model's base for its head.
    pub base: Base,
    /// The adapters and the head.
    pub trained: Trained<AnyTuner>,
    /// The names of the head's classes.
    pub classes: Vec<String>,
    /// The most tokens of a text.
    pub room: usize,
}

impl Setup {
    /// That of a directory of AdapterHub's.
    pub fn open(dir: &Path, model: &Pretrained) -> Result<Self> {
        let setup = hub_setup::load_setup(dir, model, &by_kind)?;
        let one = |form: &str| {
            let expected = "a composition with one result for each text: `peft forward` writes those of all";
            Error::config("--setup", format!("{}, {form}", dir.display()), expected)
        };
        if matches!(setup, Composition::Parallel(_) | Composition::BatchSplit(_)) {
            return Err(one(setup.name()));
        }
        let mut lanes = setup.lanes(1)?;
        let (Some(Lane { trained, .. }), true) = (lanes.pop(), lanes.is_empty()) else {
            return Err(one("with adapters beside each other"));
        };
        let base = model.base.for_purpose(trained.head.purpose());
        let adapters = setup.adapters();
        let room = adapters.iter().map(|source| source.config.room(base.shape())).min();
        // The head is that of the last adapter; one of a fusion lies elsewhere.
        let last = adapters.last().map(|source| Path::new(&source.name)).filter(|dir| hub_setup::held(dir).is_none());
        let named = |dir: &Path| Ok::<_, Error>(adapterhub::load_as(&by_adapterhub(dir)?, dir, model)?.2);
        let labels = last.map(named).transpose()?.unwrap_or_default();
        let classes = model.name_classes(labels, &trained.head).classes;
        let classes = if Some(classes.len()) == trained.head.outputs() { classes } else { vec![] };
        Ok(Setup { room: room.unwrap_or(base.shape().max_length()), base, trained, classes })
    }
}

/// The data of one of several tasks.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskFile {
    /// The task's name.
    pub name: String,
    /// Its file or directory.
    pub path: PathBuf,
}

impl FromStr for TaskFile {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.split_once('=') {
            Some((name, path)) if !name.is_empty() && !path.is_empty() && !name.contains('.') => {
                Ok(TaskFile { name: name.into(), path: path.into() })
            }
            _ => Err("expected NAME=FILE, the name without a dot".into()),
        }
    }
}

impl TaskFile {
    /// Refuses two tasks of one name.
    pub fn check(option: &str, files: &[Self]) -> Result<()> {
        let twice = |i: &usize| files[..*i].iter().any(|other| other.name == files[*i].name);
        match (0..files.len()).find(twice) {
            Some(i) => Err(Error::config(option, format!("{} twice", files[i].name), "each task once")),
            None => Ok(()),
        }
    }
}

/// Which of an adapter's tasks is meant.
#[derive(Debug, Args)]
pub struct TaskArg {
    /// The task of all examples, for an adapter of several: its name, or its number from 0
    #[arg(long, value_name = "NAME", alias = "task-index")]
    pub for_task: Option<String>,
}

impl TaskArg {
    /// Its number among the tasks of an adapter. Without one an adapter with a head for each task is refused.
    pub fn among(&self, tuned: &Tuned<'_>) -> Result<Option<usize>> {
        let named = |error| match error {
            Error::Config { found, expected, .. } => Error::config("--for-task", found, expected),
            other => other,
        };
        match (&self.for_task, tuned.trained.head.tasks()) {
            (Some(name), _) => tuned.task(name).map(Some).map_err(named),
            (None, Some(_)) => Err(Error::config("--for-task", "none", TaskLabels::listed(&tuned.labels.tasks))),
            (None, None) => Ok(None),
        }
    }
}

/// Says on standard error which rows of a file were left out.
pub fn warn_of_broken_rows(rows: &Labelled) {
    for row in rows.broken_rows() {
        tell(format_args!("left out: {row}"));
    }
}

/// Threads for work on each of so many examples, with a bar.
pub fn workers(threads: usize, examples: usize) -> Result<Workers> {
    let bar = bar(examples);
    Ok(Workers::new(threads)?.telling(move || bar.inc(1)))
}

/// The longest prompt, of `room` tokens in all, on which so many new tokens can follow; the last of them is not read. Behind an
/// encoder a text has positions of its own.
pub fn prompt_room(shape: &Shape, room: usize, new_tokens: usize) -> usize {
    match shape.architecture.is_encoder_decoder() {
        true => room,
        false => (room + 1).saturating_sub(new_tokens.max(1)),
    }
}

/// The lines of a file. A blank one is refused, so that there is a line of output for each line of input.
pub fn lines(path: &Path) -> Result<Vec<String>> {
    let content = read_text(path, 1 << 30)?;
    match content.lines().position(|line| line.trim().is_empty()) {
        Some(blank) => Err(Error::file(path, format!("line {}", blank + 1), "a blank line", "a text in every line")),
        None => Ok(content.lines().map(str::to_string).collect()),
    }
}

/// Says which class of the head each label is taken for, where the two have other names and only their numbers tell.
pub fn tell_classes(labels: &[impl AsRef<str>], head: &[String]) {
    let named = |(i, name): (usize, &String)| *name != i.to_string() && *name != format!("LABEL_{i}");
    let known = |label: &dyn AsRef<str>| class_place(head, label.as_ref()).is_some();
    if head.iter().enumerate().any(named) && !labels.iter().all(|label| known(label)) {
        let pairs = labels.iter().zip(head).map(|(label, name)| format!("{} for {name}", label.as_ref()));
        tell(format_args!("labels are taken by their numbers: {}", pairs.collect::<Vec<_>>().join(", ")));
    }
}

/// Where a command makes a directory.
#[derive(Debug, Args)]
pub struct OutputArgs {
    /// The directory to make
    #[arg(long)]
    pub output: PathBuf,
    /// Replace an earlier result in its place
    #[arg(long)]
    pub overwrite: bool,
}

impl OutputArgs {
    /// Refuses before the work what cannot be made at its end, and to replace what the command reads.
    pub fn check(&self, inputs: &Inputs) -> Result<()> {
        inputs.spare("--output", &self.output)?;
        match self.overwrite {
            true => inputs.spare_directory("--output", &self.output).and_then(|()| check_replaceable(&self.output)),
            false => check_new_directory(&self.output),
        }
    }

    /// The same of a file.
    pub fn check_file(&self, inputs: &Inputs) -> Result<()> {
        inputs.spare("--output", &self.output)?;
        if !self.overwrite && self.output.symlink_metadata().is_ok() {
            return Err(Error::file(&self.output, "file", "something in its place", "a new file"));
        }
        check_file(&self.output)
    }

    /// Makes the directory.
    pub fn make<T>(&self, make: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        if self.overwrite { replace_directory(&self.output, make) } else { make(&self.output) }
    }
}
