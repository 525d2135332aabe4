//! What a run shows: a progress bar on a terminal, and a log file of one JSON object a line.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};
use peft_core::files::{check_file, hold, read_text, write_file};
use peft_core::train::{Metrics, Observer, StepReport};
use peft_core::{Error, Result};
use serde_json::{Map, Value, json};

use super::out::tell;
use crate::signals;

/// More bytes than the first line of a log has.
const MAX_LINE: u64 = 1 << 16;

/// Bar and log.
pub struct Progress {
    bar: ProgressBar,
    /// When the last step or evaluation ended.
    since: Instant,
    /// How long the steps took.
    training: Duration,
    steps: usize,
    tokens: usize,
    /// Of a method that trains in several, the phase of the last step.
    phase: Option<&'static str>,
    log: Option<PathBuf>,
    file: Option<File>,
    /// Where states are saved, and the call that goes on from there.
    checkpoints: PathBuf,
    again: &'static str,
    #[cfg(feature = "tensorboard")]
    events: super::events::Events,
}

impl Progress {
    /// For a run of `steps`; the bar is hidden where standard error is no terminal.
    /// `again` is the call that takes it up.
    pub fn new(steps: usize, log: Option<&Path>, checkpoints: PathBuf, again: &'static str) -> Self {
        Progress {
            bar: bar(steps),
            since: Instant::now(),
            training: Duration::ZERO,
            steps: 0,
            tokens: 0,
            phase: None,
            log: log.map(Path::to_path_buf),
            file: None,
            checkpoints,
            again,
            #[cfg(feature = "tensorboard")]
            events: Default::default(),
        }
    }

    /// Writes TensorBoard event files too.
    #[cfg(feature = "tensorboard")]
    pub fn write_events(&mut self, dir: Option<&Path>) {
        self.events = super::events::Events::new(dir);
    }

    /// Without a bar: of several at once none could be read.
    pub fn hide(&mut self) {
        self.bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }

    /// Real tokens a second of the steps so far; 0 before the first.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.training.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// Steps done, those of the run that was taken up included.
    pub fn steps(&self) -> usize {
        self.steps
    }

    fn write(&mut self, step: usize, values: Map<String, Value>) -> Result<()> {
        #[cfg(feature = "tensorboard")]
        self.events.write(step, &values)?;
        let (Some(path), Some(file)) = (&self.log, &mut self.file) else { return Ok(()) };
        let line = Map::from_iter([("step".to_string(), json!(step))]).into_iter().chain(values).collect();
        writeln!(file, "{}", Value::Object(line)).map_err(Error::io("write", path))
    }
}

/// A bar over so many pieces of work, hidden where standard error is no terminal.
pub fn bar(pieces: usize) -> ProgressBar {
    let style = "{bar:30} {pos}/{len} {msg} {eta} left";
    ProgressBar::new(pieces as u64)
        .with_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()))
        // Results are printed on lines of their own.
        .with_finish(ProgressFinish::AndClear)
}

/// The lines of a log up to a step; a line that was cut off by a kill is none of them.
fn lines_until(log: &str, step: usize) -> String {
    let early = |line: &&str| {
        let value: Option<Value> = serde_json::from_str(line).ok();
        value.and_then(|value| value["step"].as_u64()).is_some_and(|n| n <= step as u64)
    };
    log.lines().filter(early).map(|line| format!("{line}\n")).collect()
}

/// Refuses to write over a file that is no log, by its first line, and what cannot be written or could wait for a reader.
pub fn check_log(path: &Path) -> Result<()> {
    match path.metadata() {
        Ok(kind) if is_pipe(&kind) => {
            return Err(Error::file(
                path,
                "--log",
                "a pipe",
                "a file: nobody may read a pipe, for which a run would wait",
            ));
        }
        Ok(kind) if !kind.is_file() && !kind.is_dir() => return Ok(()),
        _ => check_file(path)?,
    }
    if !path.exists() {
        return Ok(());
    }
    let mut first = Vec::new();
    let file = File::open(path).map_err(Error::io("read", path))?;
    BufReader::new(file.take(MAX_LINE)).read_until(b'\n', &mut first).map_err(Error::io("read", path))?;
    if first.is_empty() || !lines_until(&String::from_utf8_lossy(&first), usize::MAX).is_empty() {
        Ok(())
    } else {
        Err(Error::file(path, "--log", "a file that is no log", "a new file, or a log to replace"))
    }
}

#[cfg(unix)]
fn is_pipe(kind: &Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    kind.file_type().is_fifo() || kind.file_type().is_socket()
}

#[cfg(not(unix))]
fn is_pipe(_: &Metadata) -> bool {
    false
}

impl Observer for Progress {
    fn stops(&self) -> bool {
        signals::caught()
    }

    fn saved(&mut self, step: usize) {
        signals::will_say(format!(
            "the state after step {step} is saved in {}; {} goes on from there",
            self.checkpoints.display(),
            self.again
        ));
    }

    /// Opens the log: anew, or at the step at which the run is taken up.
    fn start(&mut self, done: usize, notes: &[String]) -> Result<()> {
        if done > 0 {
            self.saved(done);
        }
        for note in notes {
            self.bar.suspend(|| tell(note));
        }
        if done > 0 {
            self.bar.suspend(|| tell(format_args!("taken up after step {done}")));
            self.bar.set_position(done as u64);
            self.bar.reset_eta();
        }
        (self.steps, self.since) = (done, Instant::now());
        let Some(path) = &self.log else { return Ok(()) };
        let open = || {
            let file = OpenOptions::new().create(true).append(true).open(path).map_err(Error::io("write", path))?;
            if path.is_file() {
                hold(&file, path)?;
            }
            Ok::<_, Error>(file)
        };
        // Before the log of another run is cut, too.
        let file = open()?;
        self.file = Some(if done > 0 && path.is_file() {
            write_file(path, lines_until(&read_text(path, 1 << 32)?, done).as_bytes())?;
            open()?
        } else {
            if path.is_file() {
                file.set_len(0).map_err(Error::io("write", path))?;
            }
            file
        });
        Ok(())
    }

    fn step(&mut self, report: &StepReport) -> Result<()> {
        self.training += self.since.elapsed();
        (self.steps, self.since) = (report.step, Instant::now());
        self.tokens += report.tokens;
        if report.phase != self.phase {
            self.phase = report.phase;
            let name = report.phase.unwrap_or_default();
            self.bar.suspend(|| tell(format_args!("from step {}: phase {name}", report.step)));
        }
        self.bar.set_position(report.step as u64);
        self.bar.set_message(format!("loss {:.4}, {:.0} tokens/s,", report.loss, self.tokens_per_second()));
        let values = [("loss", report.loss), ("learning_rate", report.learning_rate), ("grad_norm", report.grad_norm)];
        self.write(report.step, values.into_iter().map(|(name, value)| (name.to_string(), json!(value))).collect())
    }

    fn stopped(&mut self, why: &Error) -> Result<()> {
        self.bar.suspend(|| tell(format_args!("{why}; the run ends here, with the state of its best evaluation")));
        Ok(())
    }

    fn evaluated(&mut self, step: usize, metrics: &Metrics) -> Result<()> {
        self.bar.println(format!("step {step}: {metrics}"));
        self.since = Instant::now();
        self.write(step, metrics.0.iter().map(|(name, value)| (format!("eval_{name}"), json!(value))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_cut_at_the_step_that_is_taken_up() {
        let log = "{\"step\":1,\"loss\":2.0}\n{\"step\":2,\"loss\":1.0}\n{\"step\":3,\"lo";
        assert_eq!(lines_until(log, 1), "{\"step\":1,\"loss\":2.0}\n");
        assert_eq!(lines_until(log, 9).lines().count(), 2);
    }
}
