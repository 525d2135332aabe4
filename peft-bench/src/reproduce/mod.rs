//! The survey's tables: every row that is written, on models and data that are made here or on real ones.

pub mod classification;
pub mod field;
mod html;
pub mod instruction;
mod masked;
pub mod memory;
mod outcome;
mod plot;
mod pretrain;
pub mod report;
pub mod rows;
pub mod sequences;
pub mod survey;
pub(crate) mod text;
pub mod translation;

use std::fmt::Display;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::tensor::Device;
use peft_core::files::{Inputs, check_file, lock, remove_scratch, write_file};
use peft_core::io::Pretrained;
use peft_core::train::TrainConfig;
use peft_core::{Error, Result, Shape, shown_lines};
use serde_json::json;

use crate::machine::{peak_bytes, program};
use report::{Outcome, Report};
use rows::Row;

/// The files of a report, in the order in which they are written.
const REPORTS: [&str; 3] = ["REPORT.md", "report.html", "report.json"];

/// What is run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// A model directory or id, and the directory of the data; both are made if absent.
    pub real: Option<(String, PathBuf)>,
    /// The rows.
    pub rows: Vec<Row>,
    /// The seeds.
    pub seeds: Vec<u64>,
    /// Times through the data that is trained on.
    pub epochs: usize,
    /// Stop each run after so many steps, if that is sooner.
    pub max_steps: Option<usize>,
    /// Sequences in a step, in place of those of the rows.
    pub batch_size: Option<usize>,
    /// Learning rates in place of those of the rows.
    pub learning_rates: Vec<(String, f64)>,
    /// Whether the model that is made is to be made quickly.
    pub quick: bool,
    /// Threads.
    pub threads: usize,
    /// Where everything is written.
    pub output: PathBuf,
    /// Where a model and data that are made are written.
    pub made: PathBuf,
    /// Where it is computed.
    pub device: Device,
}

/// What is run on: a model, its name, and the directory of the data. No other process writes to the output while it lives.
struct Source {
    name: String,
    model: Pretrained,
    data: PathBuf,
    _lock: File,
}

/// Tells how it goes on standard output. Where nobody reads that any more, the work goes on.
fn say(line: impl Display) {
    let _ = writeln!(std::io::stdout(), "{}", shown_lines(line));
}

/// Runs that went wrong by themselves. They do not keep the others from being done.
#[derive(Default)]
struct Failures(Vec<String>);

impl Failures {
    /// Whether a run went wrong in a way that says nothing of the others.
    fn of_one(error: &Error) -> bool {
        matches!(error, Error::Training { .. } | Error::Check { .. })
    }

    /// A run's outcome; none, if it went wrong, which is told.
    fn sort(&mut self, run: &str, outcome: Result<Outcome>) -> Result<Option<Outcome>> {
        match outcome {
            Err(error) if Failures::of_one(&error) => {
                say(format_args!("{run}: {error}"));
                self.0.push(format!("{run}: {error}"));
                Ok(None)
            }
            outcome => outcome.map(Some),
        }
    }
}

impl Plan {
    /// The model and the data: real ones, or those that `make` gives a directory to, which it is handed.
    fn source(&self, make: impl FnOnce(&Path) -> Result<(PathBuf, PathBuf)>) -> Result<Source> {
        let open = |name: &str| Pretrained::open(name, &self.device);
        // What is not there leaves no output.
        let real = self.real.as_ref().map(|(name, data)| Ok((name.clone(), open(name)?, data.clone()))).transpose()?;
        if let Some((_, _, data)) = &real {
            data.read_dir().map_err(Error::io("read", data))?;
        }
        std::fs::create_dir_all(&self.output).map_err(Error::io("create", &self.output))?;
        let _lock = lock(&self.output)?;
        self.check_outputs()?;
        let (name, model, data) = match real {
            Some(real) => real,
            None => {
                std::fs::create_dir_all(&self.made).map_err(Error::io("create", &self.made))?;
                let _made = lock(&self.made)?;
                let (model, data) = make(&self.made)?;
                let name = model.to_string_lossy().into_owned();
                (name.clone(), open(&name)?, data)
            }
        };
        Ok(Source { name, model, data, _lock })
    }

    fn learning_rate(&self, row: &Row) -> f64 {
        let usual = if self.real.is_some() { row.learning_rate } else { row.small_learning_rate };
        self.learning_rates.iter().find(|(name, _)| name == row.name).map_or(usual, |(_, rate)| *rate)
    }

    fn batch_size(&self, row: &Row, shape: &Shape) -> usize {
        self.batch_size.unwrap_or(if self.real.is_some() { row.batch_size(shape) } else { 32 })
    }

    /// The settings of a run of a model of this shape on so many samples.
    fn config(&self, (row, seed): (&Row, u64), shape: &Shape, samples: usize) -> TrainConfig {
        let config = TrainConfig {
            weight_decay: row.weight_decay,
            threads: self.threads,
            ..TrainConfig::new(self.learning_rate(row))
                .with_batch_size(self.batch_size(row, shape))
                .with_seed(seed)
                .with_epochs(self.epochs)
        };
        let steps = config.steps(samples).min(self.max_steps.unwrap_or(usize::MAX));
        TrainConfig { warmup_steps: (steps as f64 * 0.06).ceil() as usize, ..config.with_steps(steps) }
    }

    /// What a report says of the setting: a table's own, then what all have, and what of the survey stands beside it.
    fn setting<'s>(&self, own: &[(&str, String)], survey: impl Into<Option<&'s str>>) -> Vec<(String, String)> {
        let all = [
            ("Training", format!("{} epochs, AdamW, linear schedule after 6 % warm-up, last state", self.epochs)),
            ("Steps", self.max_steps.map_or("as the epochs say".into(), |steps| format!("at most {steps} a run"))),
            ("Seeds", self.seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")),
        ];
        let told = |survey| ("Survey", format!("{survey}, whose settings and number of runs are mostly not stated"));
        own.iter()
            .chain(&all)
            .chain(&survey.into().map(told))
            .map(|(key, value)| (key.to_string(), value.clone()))
            .collect()
    }

    /// Before the first run: what is written can be, and is not what is read. Removes what killed processes left unfinished.
    fn check_outputs(&self) -> Result<()> {
        let (model, data) = self.real.as_ref().map(|(model, data)| (model, data)).unzip();
        // Reports of an earlier call are replaced, in a folder of data too.
        let earlier = self.output.join(outcome::RUNS).is_dir();
        let inputs = Inputs::new().with(data.filter(|_| !earlier)).with_models(model);
        for path in REPORTS.map(|name| self.output.join(name)) {
            inputs.spare("--output", &path)?;
            check_file(&path)?;
        }
        let runs = self.output.join(outcome::RUNS);
        std::fs::create_dir_all(&runs).map_err(Error::io("create", &runs))?;
        [&self.output, &runs].into_iter().for_each(|dir| remove_scratch(dir, ""));
        check_file(&runs.join("probe"))
    }

    fn write(&self, report: &Report) -> Result<()> {
        let texts = [report.markdown(), report.html(), json!(report).to_string()];
        REPORTS.iter().zip(texts).try_for_each(|(name, text)| write_file(&self.output.join(name), text.as_bytes()))
    }

    /// Writes the report with the time that it took, and prints the table. An error, if a run failed.
    fn finish(&self, started: Instant, mut report: Report, failures: Failures) -> Result<Report> {
        let minutes = started.elapsed().as_secs_f64() / 60.0;
        let runs = || report.rows.iter().flat_map(|row| &row.cells).flat_map(|cell| &cell.runs);
        let (all, earlier) = (runs().count(), runs().filter(|run| run.earlier).count());
        let memory = peak_bytes().map_or("unknown".into(), |bytes| format!("{:.2} GB", bytes as f64 / 1e9));
        report.setting.extend([
            ("Command".into(), std::env::args().skip(1).collect::<Vec<_>>().join(" ")),
            ("Program".into(), format!("peft {}", program())),
            ("Runs".into(), format!("{} of this call, {earlier} of earlier ones of the same program", all - earlier)),
            ("Time of this call".into(), format!("{minutes:.1} minutes, threads: {}", self.threads)),
            ("Peak memory of this call".into(), memory),
        ]);
        report.notes.extend(failures.0.iter().map(|failure| format!("Failed: {failure}.")));
        self.write(&report)?;
        say(format_args!("\n{}", report.table()));
        report.reading().iter().for_each(say);
        say(format_args!("\n{}", self.output.join("REPORT.md").display()));
        say(self.output.join("report.html").display());
        match failures.0.is_empty() {
            true => Ok(report),
            false => Err(Error::Check { what: "every run comes to its end", detail: failures.0.join("; ") }),
        }
    }
}
