//! Runs whose outcomes are kept: each is a file named by a hash of all that decides it.

use std::path::Path;
use std::time::Instant;

use peft_core::data::Dataset;
use peft_core::files::{read_json, write_file};
use peft_core::io::Pretrained;
use peft_core::train::{Checkpoints, Observer, StepReport, TrainConfig, Trainer, Tuned};
use peft_core::{Error, Method, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::report::Outcome;

/// Where and on what methods are trained.
pub(super) struct Runs<'a> {
    pub model: &'a Pretrained,
    /// The fingerprint of the model's base.
    pub weights: u64,
    /// Where outcomes are written.
    pub output: &'a Path,
}

impl Runs<'_> {
    /// Trains a method and scores it, unless the outcome is there. `data` tells by fingerprints and settings what is trained on and
    /// how it is scored.
    pub fn outcome<M: Method>(
        &self,
        name: &str,
        (method, config): (M, TrainConfig),
        train: &Dataset,
        data: &[Value],
        score: impl FnOnce(&Tuned<'_, M>) -> Result<Vec<f64>>,
    ) -> Result<Outcome> {
        let settings = TrainConfig { threads: 1, ..config.clone() };
        let key = [vec![json!(method), json!(settings), json!(self.weights)], data.to_vec()].concat();
        self.kept(name, &json!(key), |path| {
            let (started, seed) = (Instant::now(), config.seed);
            let trainer = Trainer::new(config).with_checkpoints(checkpoints(path));
            let start = trainer.start(self.model, &method, train)?;
            let mut losses = Losses::default();
            let tuned = trainer.train(self.model, method, start, train, None, &mut losses)?;
            let scores = score(&tuned)?;
            Ok(Outcome { seed, scores, losses: losses.0, seconds: started.elapsed().as_secs_f64() })
        })
    }

    /// The outcome under a key: from its file, or from `run`, which may write beside the path that it is given.
    pub fn kept(&self, name: &str, key: &Value, run: impl FnOnce(&Path) -> Result<Outcome>) -> Result<Outcome> {
        let hash: String = Sha256::digest(key.to_string()).iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        let place = self.output.join("runs");
        let path = place.join(format!("{name}-{hash}.json"));
        if path.exists() {
            return serde_json::from_value(read_json(&path)?)
                .map_err(|e| Error::file(&path, "content", e, "the outcome of a run"));
        }
        std::fs::create_dir_all(&place).map_err(Error::io("create", &place))?;
        let outcome = run(&path)?;
        write_file(&path, json!(outcome).to_string().as_bytes())?;
        checkpoints(&path).remove()?;
        Ok(outcome)
    }
}

/// Those of the run whose outcome will be at this path.
fn checkpoints(path: &Path) -> Checkpoints {
    Checkpoints { dir: path.with_extension("checkpoints"), every: None, resume: true }
}

/// Losses on the way, at most a hundred.
#[derive(Default)]
struct Losses(Vec<(usize, f64)>);

impl Observer for Losses {
    fn step(&mut self, report: &StepReport) -> Result<()> {
        if report.step.is_multiple_of(report.total.div_ceil(100)) {
            self.0.push((report.step, report.loss));
        }
        Ok(())
    }
}
