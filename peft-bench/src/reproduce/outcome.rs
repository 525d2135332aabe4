//! Runs whose outcomes are kept: each is a file named by a hash of all that decides it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use burn::tensor::Device;

use peft_core::data::Dataset;
use peft_core::files::{read_json, write_file};
use peft_core::io::Pretrained;
use peft_core::train::{Checkpoints, Observer, StepReport, TrainConfig, Trainer, Tuned};
use peft_core::{AnyMethod, Error, Result};
use serde_json::{Value, json};

use super::report::Outcome;
use super::say;
use crate::machine::{digest, program};
use crate::signals;

/// Where outcomes are, in the output.
pub(super) const RUNS: &str = "runs";

/// Scores times 100, one a metric, and their standard errors, none where they are not known.
pub(super) type Scored = (Vec<f64>, Vec<f64>);

/// Where and on what methods are trained.
pub(super) struct Runs<'a> {
    pub model: &'a Pretrained,
    /// The model's fingerprint.
    pub weights: u64,
    /// Where outcomes are written.
    pub output: &'a Path,
    /// Where it is computed.
    pub device: &'a Device,
}

impl<'a> Runs<'a> {
    /// Trains a method and scores it, unless the outcome is there. `data` tells by fingerprints and settings what is trained on and
    /// how it is scored.
    pub fn outcome(
        &self,
        name: &str,
        (method, config): (AnyMethod, TrainConfig),
        train: &Dataset,
        data: &[Value],
        score: impl FnOnce(&Tuned<'_>) -> Result<Scored>,
    ) -> Result<Outcome> {
        let key = self.key(&method, &config, data);
        self.kept(name, &key, |path| {
            let seed = config.seed;
            let (tuned, losses) = self.trained(name, path, (method, config), train)?;
            let (scores, errors) = score(&tuned)?;
            Ok(Outcome { seed, scores, errors, seconds: losses.seconds(), losses: losses.kept, ..Outcome::default() })
        })
    }

    /// All that decides a run, `data` among it.
    pub fn key(&self, method: &AnyMethod, config: &TrainConfig, data: &[Value]) -> Value {
        let settings = TrainConfig { threads: 1, ..config.clone() };
        let device = json!(format!("{:?}", self.device));
        json!([vec![json!(method.settings()), json!(settings), json!(self.weights), device], data.to_vec()].concat())
    }

    /// Trains a method, with checkpoints and losses beside the path of its outcome.
    pub fn trained<'n>(
        &self,
        name: &'n str,
        path: &Path,
        (method, config): (AnyMethod, TrainConfig),
        train: &Dataset,
    ) -> Result<(Tuned<'a>, Losses<'n>)> {
        let trainer = Trainer::new(config).with_checkpoints(checkpoints(path));
        let start = trainer.start(self.model, &method, train)?;
        let mut losses = Losses::new(name, path);
        let tuned =
            signals::by_steps(|| trainer.train(self.model, method, start, train, None, &mut losses))?.checked()?;
        Ok((tuned, losses))
    }

    /// Where the outcome under a key is, or will be.
    pub fn place(&self, name: &str, key: &Value) -> PathBuf {
        let hash = digest(&[program().as_bytes(), key.to_string().as_bytes()]);
        self.output.join(RUNS).join(format!("{name}-{hash}.json"))
    }

    /// The outcome under a key, if this program has written it.
    pub fn known(&self, name: &str, key: &Value) -> Option<Outcome> {
        read(&self.place(name, key)).map(|outcome| Outcome { earlier: true, ..outcome })
    }

    /// The outcome under a key: from its file, if this program wrote it, or from `run`, which may write beside the path that it is given.
    pub fn kept(&self, name: &str, key: &Value, run: impl FnOnce(&Path) -> Result<Outcome>) -> Result<Outcome> {
        if let Some(outcome) = self.known(name, key) {
            return Ok(outcome);
        }
        let path = self.place(name, key);
        let outcome = run(&path)?;
        let written = json!(outcome);
        let sealed = json!({"digest": digest(&[written.to_string().as_bytes()]), "outcome": written});
        write_file(&path, sealed.to_string().as_bytes())?;
        checkpoints(&path).remove()?;
        let losses = losses(&path);
        if losses.exists() {
            std::fs::remove_file(&losses).map_err(Error::io("remove", &losses))?;
        }
        Ok(outcome)
    }
}

/// The outcome in a file, unless it is not as it was written.
fn read(path: &Path) -> Option<Outcome> {
    let mut sealed = read_json(path).ok()?;
    let written = sealed["outcome"].take();
    (sealed["digest"] == digest(&[written.to_string().as_bytes()])).then(|| serde_json::from_value(written).ok())?
}

/// Those of the run whose outcome will be at this path.
fn checkpoints(path: &Path) -> Checkpoints {
    Checkpoints { dir: path.with_extension("checkpoints"), every: None, resume: true }
}

/// Where that run's losses lie while it lasts.
fn losses(path: &Path) -> PathBuf {
    path.with_extension("losses")
}

/// How often a run tells how far it is.
const TELL: Duration = Duration::from_secs(20);

/// Losses on the way, at most a hundred, which outlive a run that is stopped; of a long run they are told now and then.
pub(super) struct Losses<'a> {
    name: &'a str,
    path: PathBuf,
    pub kept: Vec<(usize, f64)>,
    started: Instant,
    /// The seconds that the run took before it was taken up.
    before: f64,
    /// The time and step of the last word.
    told: (Instant, usize),
    /// When this process began to step and after which step, and when it did the last one.
    steps: [(Instant, usize); 2],
}

impl<'a> Losses<'a> {
    fn new(name: &'a str, outcome: &Path) -> Self {
        let now = Instant::now();
        Losses {
            name,
            path: losses(outcome),
            kept: vec![],
            started: now,
            before: 0.0,
            told: (now, 0),
            steps: [(now, 0); 2],
        }
    }

    /// What the run took so far, all that it prepares included.
    pub fn seconds(&self) -> f64 {
        self.before + self.started.elapsed().as_secs_f64()
    }

    /// The mean of the steps that this process did; none, if it did none.
    pub fn step_seconds(&self) -> Option<f64> {
        let [(began, before), (ended, done)] = self.steps;
        (done > before).then(|| (ended - began).as_secs_f64() / (done - before) as f64)
    }
}

impl Observer for Losses<'_> {
    fn stops(&self) -> bool {
        signals::caught()
    }

    fn start(&mut self, done: usize, notes: &[String]) -> Result<()> {
        self.told = (Instant::now(), done);
        self.steps = [self.told; 2];
        notes.iter().for_each(|note| say(format_args!("  {}: {note}", self.name)));
        if done > 0 {
            say(format_args!("  {}: taken up after step {done}", self.name));
            // What cannot be read is as nothing: only the curve is shorter for it.
            let read = read_json(&self.path).ok().and_then(|value| serde_json::from_value(value).ok());
            (self.kept, self.before) = read.unwrap_or_default();
            self.kept.retain(|(step, _)| *step <= done);
        }
        Ok(())
    }

    fn step(&mut self, report: &StepReport) -> Result<()> {
        let StepReport { step, total, loss, .. } = *report;
        self.steps[1] = (Instant::now(), step);
        if step.is_multiple_of(total.div_ceil(100)) {
            self.kept.push((step, loss));
            write_file(&self.path, json!([self.kept, self.seconds()]).to_string().as_bytes())?;
        }
        let (since, before) = self.told;
        if since.elapsed() >= TELL {
            let rate = (step - before) as f64 / since.elapsed().as_secs_f64();
            let left = (total - step) as f64 / rate;
            say(format_args!("  {}: step {step} of {total}, loss {loss:.3}, {left:.0} s left", self.name));
            self.told = (Instant::now(), step);
        }
        Ok(())
    }
}
