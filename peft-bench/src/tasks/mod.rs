//! The tasks of GLUE that the survey's Table III reports, in GLUE's own directory layout; and the data of its Tables IV to VI:
//! translations with BLEU, Alpaca's instructions, MMLU's questions.

pub mod alpaca;
mod areas;
pub mod bleu;
pub mod mmlu;
pub mod parallel;

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use peft_core::data::{Builder, Labelled, class_place};
use peft_core::{Error, Result};

/// Where a task's texts and labels stand, and what it is scored with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// Its name in commands.
    pub name: &'static str,
    /// The name of its directory in GLUE's.
    pub directory: &'static str,
    /// The file of its development set; that of its training set is `train.tsv`.
    pub dev: &'static str,
    /// The columns, where the files have no header line; else none.
    pub columns: &'static [&'static str],
    /// The columns of the texts: one, or two for pairs.
    pub texts: &'static [&'static str],
    /// The column of the label.
    pub label: &'static str,
    /// The labels of the classes in the order of their numbers in GLUE; none for values.
    pub classes: &'static [&'static str],
    /// The metrics that the survey reports, in its order.
    pub metrics: &'static [&'static str],
}

/// STS-B's similarities, the only values.
const VALUES: RangeInclusive<f32> = 0.0..=5.0;

const FILES: Task = Task {
    name: "",
    directory: "",
    dev: "dev.tsv",
    columns: &[],
    texts: &["sentence1", "sentence2"],
    label: "label",
    classes: &["0", "1"],
    metrics: &["accuracy"],
};

/// The tasks that are known, in the order of the survey's table.
pub const TASKS: [Task; 8] = [
    Task {
        name: "cola",
        directory: "CoLA",
        columns: &["source", "label", "star", "sentence"],
        texts: &["sentence"],
        metrics: &["matthews"],
        ..FILES
    },
    Task { name: "sst2", directory: "SST-2", texts: &["sentence"], ..FILES },
    Task {
        name: "mrpc",
        directory: "MRPC",
        texts: &["#1 String", "#2 String"],
        label: "Quality",
        metrics: &["accuracy", "f1"],
        ..FILES
    },
    Task { name: "stsb", directory: "STS-B", label: "score", classes: &[], metrics: &["pearson", "spearman"], ..FILES },
    Task {
        name: "qqp",
        directory: "QQP",
        texts: &["question1", "question2"],
        label: "is_duplicate",
        metrics: &["accuracy", "f1"],
        ..FILES
    },
    Task {
        name: "mnli",
        directory: "MNLI",
        dev: "dev_matched.tsv",
        label: "gold_label",
        classes: &["entailment", "neutral", "contradiction"],
        ..FILES
    },
    Task {
        name: "qnli",
        directory: "QNLI",
        texts: &["question", "sentence"],
        classes: &["entailment", "not_entailment"],
        ..FILES
    },
    Task { name: "rte", directory: "RTE", classes: &["entailment", "not_entailment"], ..FILES },
];

impl Task {
    /// The task of this name.
    pub fn named(name: &str) -> Result<Self> {
        let names = || TASKS.map(|task| task.name).join(", ");
        TASKS
            .into_iter()
            .find(|task| task.name.eq_ignore_ascii_case(name))
            .ok_or_else(|| Error::config("--task", name, names()))
    }

    /// The number of outputs that a head for it has.
    pub fn outputs(&self) -> usize {
        self.classes.len().max(1)
    }

    /// Training and development set from the task's own directory, or from the directory of all of GLUE.
    pub fn read(&self, dir: &Path) -> Result<(Labelled, Labelled)> {
        let (train, dev) = (self.file(dir, "train.tsv")?, self.file(dir, self.dev)?);
        Ok((self.open(&train, self.classes)?.read()?, self.open(&dev, self.classes)?.read()?))
    }

    /// The development set alone, for a model whose classes have the numbers of these names: the task's own, if they are
    /// names of something else.
    pub fn read_dev(&self, dir: &Path, classes: &[String]) -> Result<Labelled> {
        let classes: Vec<&str> = classes.iter().map(String::as_str).collect();
        let same = classes.len() == self.classes.len()
            && self.classes.iter().all(|class| class_place(&classes, class).is_some());
        self.check_order(&classes)?;
        self.open(&self.file(dir, self.dev)?, if same { &classes } else { self.classes })?.read()
    }

    /// F1 is of the class that GLUE gives the number 1: a head that has the two the other way would be scored by that of 0.
    pub fn check_order(&self, classes: &[impl AsRef<str>]) -> Result<()> {
        let lower = |name: &str| name.to_lowercase();
        let turned =
            classes.iter().map(|name| lower(name.as_ref())).eq(self.classes.iter().rev().map(|name| lower(name)));
        if turned && self.metrics.contains(&"f1") {
            let found = format!("{:?} in this order", classes.iter().map(AsRef::as_ref).collect::<Vec<_>>());
            let expected = format!("{:?}: the F1 of {} is that of the last", self.classes, self.directory);
            return Err(Error::config("classes of the head", found, expected));
        }
        Ok(())
    }

    fn file(&self, dir: &Path, name: &str) -> Result<PathBuf> {
        let own = dir.join(self.directory);
        let path = if own.is_dir() { own } else { dir.to_path_buf() }.join(name);
        if path.exists() {
            return Ok(path);
        }
        let expected = format!(
            "train.tsv and {} of {} in the directory, or in {}/ there",
            self.dev, self.directory, self.directory
        );
        Err(Error::file(path, format!("task {}", self.name), "no such file", expected))
    }

    fn open(&self, path: &Path, classes: &[&str]) -> Result<Builder> {
        let mut builder = Labelled::open(path)?.text(self.texts[0]).label(self.label);
        if let Some(second) = self.texts.get(1) {
            builder = builder.pair(second);
        }
        if !self.columns.is_empty() {
            builder = builder.columns(self.columns);
        }
        // Line breaks in questions tear some rows of the first published QQP apart; everyone leaves them out.
        if self.name == "qqp" {
            builder = builder.skip_broken_rows();
        }
        Ok(if classes.is_empty() { builder.values_within(VALUES) } else { builder.classes(classes) })
    }
}
