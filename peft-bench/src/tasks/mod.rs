//! Tasks by name, in the directory layout of GLUE: `train.tsv` and `dev.tsv` with named columns.

use std::path::Path;

use peft_core::data::Labelled;
use peft_core::{Error, Result};

/// Where a task's texts and labels stand, and what it is scored with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// Its name in commands.
    pub name: &'static str,
    /// The columns of the texts: one, or two for pairs.
    pub texts: &'static [&'static str],
    /// The column of the label.
    pub label: &'static str,
    /// The metric that counts.
    pub metric: &'static str,
}

/// The tasks that are known.
pub const TASKS: [Task; 3] = [
    Task { name: "sst2", texts: &["sentence"], label: "label", metric: "accuracy" },
    Task { name: "mrpc", texts: &["#1 String", "#2 String"], label: "Quality", metric: "f1" },
    Task { name: "stsb", texts: &["sentence1", "sentence2"], label: "score", metric: "pearson" },
];

impl Task {
    /// The task of this name.
    pub fn named(name: &str) -> Result<Self> {
        let names = || TASKS.map(|task| task.name).join(", ");
        TASKS.into_iter().find(|task| task.name == name).ok_or_else(|| Error::config("--task", name, names()))
    }

    /// Training and development set from a directory.
    pub fn read(&self, dir: &Path) -> Result<(Labelled, Labelled)> {
        let open = |file: &str| {
            let builder = Labelled::open(&dir.join(file))?.text(self.texts[0]).label(self.label);
            Ok::<_, Error>(match self.texts.get(1) {
                Some(second) => builder.pair(second),
                None => builder,
            })
        };
        let train = open("train.tsv")?.read()?;
        let dev = open("dev.tsv")?.like(&train).read()?;
        Ok((train, dev))
    }
}
