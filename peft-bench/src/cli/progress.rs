//! What a run shows: a progress bar on a terminal, and a log file of one JSON object a line.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use peft_core::train::{Metrics, Observer, StepReport};
use peft_core::{Error, Result};
use serde_json::{Map, Value, json};

/// Bar and log.
pub struct Progress {
    bar: ProgressBar,
    started: Instant,
    tokens: usize,
    log: Option<(PathBuf, File)>,
    /// The last evaluation.
    pub metrics: Option<Metrics>,
}

impl Progress {
    /// For a run of `steps`; the bar is hidden where standard error is no terminal.
    pub fn new(steps: usize, log: Option<&Path>) -> Result<Self> {
        let style = "{bar:30} {pos}/{len} {msg} {eta} left";
        let bar = ProgressBar::new(steps as u64);
        bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
        let open = |path: &Path| {
            let file = File::create(path).map_err(|source| Error::Io { action: "write", path: path.into(), source })?;
            Ok::<_, Error>((path.to_path_buf(), file))
        };
        let log = log.map(open).transpose()?;
        Ok(Progress { bar, started: Instant::now(), tokens: 0, log, metrics: None })
    }

    /// Real tokens a second so far.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.started.elapsed().as_secs_f64()
    }

    fn write(&mut self, line: &Value) -> Result<()> {
        match &mut self.log {
            Some((path, file)) => {
                writeln!(file, "{line}").map_err(|source| Error::Io { action: "write", path: path.clone(), source })
            }
            None => Ok(()),
        }
    }
}

impl Observer for Progress {
    fn step(&mut self, report: &StepReport) -> Result<()> {
        self.tokens += report.tokens;
        self.bar.set_position(report.step as u64);
        self.bar.set_message(format!("loss {:.4}, {:.0} tokens/s,", report.loss, self.tokens_per_second()));
        self.write(&json!({"step": report.step, "loss": report.loss, "learning_rate": report.learning_rate,
            "grad_norm": report.grad_norm}))
    }

    fn evaluated(&mut self, step: usize, metrics: &Metrics) -> Result<()> {
        self.bar.println(format!("step {step}: {metrics}"));
        let mut line = Map::from_iter([("step".to_string(), json!(step))]);
        line.extend(metrics.0.iter().map(|(name, value)| (format!("eval_{name}"), json!(value))));
        self.metrics = Some(metrics.clone());
        self.write(&Value::Object(line))
    }
}
