//! `peft reproduce`

use std::path::PathBuf;

use clap::Args;
use peft_core::{Error, Result};

use super::options::threads;
use crate::reproduce::{Plan, rows};
use crate::tasks::{TASKS, Task};

/// Train the rows of the survey's Table III and set them beside its figures
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  peft reproduce\n  peft reproduce --quick\n  \
    peft reproduce --model roberta-base --data GLUE --rows LoRA,BitFit --tasks rte,mrpc --seeds 0,1,2 --epochs 20\n\n\
    Without --model and --data it makes both: a corpus and eight tasks of GLUE's kinds from a grammar, and a small RoBERTa \
    pretrained on the corpus. Interrupted, the same command goes on where it was.")]
pub struct Reproduce {
    /// A model directory, or the id of a model on a hub
    #[arg(long, requires = "data")]
    model: Option<String>,
    /// The directory of GLUE's tasks
    #[arg(long, requires = "model")]
    data: Option<PathBuf>,
    /// A third of the pretraining, three tasks, four rows, one seed: two minutes
    #[arg(long, conflicts_with = "model")]
    quick: bool,
    /// Rows by the survey's names or ours [default: all]
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Tasks [default: all]
    #[arg(long, value_delimiter = ',')]
    tasks: Vec<String>,
    /// Seeds [default: 0,1]
    #[arg(long, value_delimiter = ',')]
    seeds: Vec<u64>,
    /// Times through the data of a task [default: 5; 10 with --model]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    epochs: Option<u32>,
    /// Stop each run after so many steps, if that is sooner
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    max_steps: Option<u32>,
    /// A learning rate for a row, ROW=RATE
    #[arg(long, value_name = "ROW=RATE", value_delimiter = ',')]
    learning_rate: Vec<String>,
    /// Threads; changes no bit of the results [default: all cores]
    #[arg(long)]
    threads: Option<usize>,
    /// Where models, outcomes and the report are written
    #[arg(long, default_value = "target/reproduce")]
    output: PathBuf,
    /// Where to compute
    #[arg(long, default_value_t = peft_core::available().first().copied().unwrap_or("none").to_string())]
    device: String,
}

impl Reproduce {
    pub(super) fn run(self) -> Result<()> {
        let quick = self.quick;
        let names = |given: &[String], usual: &[&str]| match given.is_empty() {
            true => usual.iter().map(|name| name.to_string()).collect::<Vec<_>>(),
            false => given.to_vec(),
        };
        let all_rows = rows::ROWS.map(|row| row.name);
        let row_names = names(&self.rows, if quick { &["Linear probe", "FT", "BitFit", "LoRA"] } else { &all_rows });
        let all_tasks = TASKS.map(|task| task.name);
        let task_names = names(&self.tasks, if quick { &["cola", "mnli", "qnli"] } else { &all_tasks });
        let rate = |text: &String| {
            let wrong = || Error::config("--learning-rate", text, "ROW=RATE, such as LoRA=5e-4");
            let (name, rate) = text.split_once('=').ok_or_else(wrong)?;
            let rate = rate.parse().ok().filter(|rate: &f64| rate.is_finite() && *rate > 0.0).ok_or_else(wrong)?;
            Ok((rows::Row::named(name)?.name.to_string(), rate))
        };
        let epochs = if self.model.is_some() { 10 } else { 5 };
        let plan = Plan {
            real: self.model.zip(self.data),
            rows: row_names.iter().map(|name| rows::Row::named(name)).collect::<Result<_>>()?,
            tasks: task_names.iter().map(|name| Task::named(name)).collect::<Result<_>>()?,
            seeds: match self.seeds.is_empty() {
                true => {
                    if quick {
                        vec![0]
                    } else {
                        vec![0, 1]
                    }
                }
                false => self.seeds,
            },
            epochs: self.epochs.map_or(epochs, |epochs| epochs as usize),
            max_steps: self.max_steps.map(|steps| steps as usize),
            learning_rates: self.learning_rate.iter().map(rate).collect::<Result<_>>()?,
            quick,
            threads: self.threads.unwrap_or_else(threads).max(1),
            output: self.output,
            device: peft_core::device(&self.device)?,
        };
        crate::reproduce::run(&plan).map(|_| ())
    }
}
