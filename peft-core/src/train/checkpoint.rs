//! Checkpoints of a run: each a directory written aside and renamed, a manifest of hashes last, so that a run that was killed at
//! any moment is taken up from the newest one that verifies, and ends with the bits of a run that was not.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use burn::optim::StateSink;
use burn::tensor::TensorData;
use burn_pack::Scalar;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{Procedure, Run};
use crate::files::{LOCK, is_partial, lock, read_json, remove_partial, verify, write_file, write_sealed};
use crate::load::{Checkpoint, write_safetensors};
use crate::view::tensors;
use crate::{Error, Example, Result};

/// How long a run goes on without a checkpoint where no number of steps is given.
const INTERVAL: Duration = Duration::from_secs(20);
const STATE: &str = "state.json";
const TRAINED: &str = "trained.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const BEST: &str = "best.safetensors";

/// Where a run saves its state, and how often.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    /// A directory of its own. It outlives the run, until what the run gave is safe and [`remove`](Checkpoints::remove) is
    /// called.
    pub dir: PathBuf,
    /// After every so many steps; every 20 seconds, if absent.
    pub every: Option<usize>,
    /// Whether to take up what is there; otherwise it is an error if there is something.
    pub resume: bool,
}

impl Checkpoints {
    /// Removes them all, with the directory, behind a link too, unless something else is in it.
    pub fn remove(&self) -> Result<()> {
        let Ok(dir) = self.dir.canonicalize() else { return Ok(()) };
        for entry in fs::read_dir(&dir).map_err(Error::io("read", &dir))? {
            let path = entry.map_err(Error::io("read", &dir))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if step_of(&name).is_some() || is_partial(&name) {
                fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?;
            }
        }
        let lock = dir.join(LOCK);
        match fs::remove_file(&lock) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(Error::io("remove", &lock)(error)),
            _ => {}
        }
        match fs::remove_dir(&dir) {
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => return Ok(()),
            result => result.map_err(Error::io("remove", &dir))?,
        }
        if self.dir.is_symlink() { fs::remove_file(&self.dir).map_err(Error::io("remove", &self.dir)) } else { Ok(()) }
    }
}

/// The best evaluation so far.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Best {
    /// The step after which it was, and its value.
    pub(super) found: Option<(usize, f64)>,
    /// Evaluations since.
    pub(super) stale: usize,
    #[serde(skip)]
    pub(super) tensors: BTreeMap<String, TensorData>,
}

#[derive(Serialize, Deserialize)]
struct State {
    step: usize,
    /// What must be the same in the run that takes this up.
    run: Value,
    best: Best,
    scalars: BTreeMap<String, Number>,
}

/// A scalar of an optimizer's state.
#[derive(Serialize, Deserialize)]
enum Number {
    Int(i64),
    UInt(u64),
    Float(f64),
    Bool(bool),
}

/// The checkpoints of one run; no other process has them while this lives.
pub(super) struct Store {
    dir: PathBuf,
    every: Option<usize>,
    run: Value,
    /// The step and time of the last one.
    saved: (usize, Instant),
    lock: File,
}

impl Store {
    /// Takes the directory for a run that `run` describes.
    pub(super) fn open(checkpoints: &Checkpoints, run: Value) -> Result<Self> {
        let Checkpoints { dir, every, resume } = checkpoints.clone();
        if every == Some(0) {
            return Err(Error::config("save_steps", 0, "at least 1, or none: every 20 seconds"));
        }
        fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
        let lock = lock(&dir)?;
        remove_partial(&dir)?;
        let store = Store { dir, every, run, saved: (0, Instant::now()), lock };
        match store.steps()?.first() {
            Some(step) if !resume => {
                let expected = "none: resume from it, or remove the directory";
                Err(Error::file(&store.dir, "checkpoints", format!("one after step {step}"), expected))
            }
            _ => Ok(store),
        }
    }

    /// The steps of all checkpoints, the last first.
    fn steps(&self) -> Result<Vec<usize>> {
        let mut steps = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(Error::io("read", &self.dir))? {
            let name = entry.map_err(Error::io("read", &self.dir))?.file_name();
            steps.extend(name.to_str().and_then(step_of));
        }
        steps.sort_by_key(|step| std::cmp::Reverse(*step));
        Ok(steps)
    }

    fn path(&self, step: usize) -> PathBuf {
        self.dir.join(format!("step-{step}"))
    }

    /// Whether it is time for the next one.
    pub(super) fn due(&self, step: usize) -> bool {
        self.every.map_or(self.saved.1.elapsed() >= INTERVAL, |every| step.is_multiple_of(every))
    }

    /// Saves the state of a run, and removes all checkpoints but the last two.
    pub(super) fn save<T: Procedure>(&mut self, run: &Run<T>, best: &Best) -> Result<()> {
        let states = run.optim.save(&run.trained);
        run.optim.check()?;
        let scalars = states.scalars.into_iter().map(|(name, scalar)| (name, scalar.into())).collect();
        let state = State { step: run.step, run: self.run.clone(), best: best.clone(), scalars };
        let json = |value: serde_json::Result<Vec<u8>>| value.unwrap_or_else(|e| unreachable!("plain data: {e}"));
        let path = self.path(run.step);
        write_sealed(&path, |dir| {
            write_safetensors(&dir.join(TRAINED), &tensors(&run.trained))?;
            write_safetensors(&dir.join(OPTIMIZER), &states.tensors.into_iter().collect())?;
            write_safetensors(&dir.join(BEST), &best.tensors)?;
            write_file(&dir.join(STATE), &json(serde_json::to_vec_pretty(&state)))
        })?;
        for old in self.steps()?.into_iter().skip(2) {
            let path = self.path(old);
            fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?;
        }
        self.saved = (run.step, Instant::now());
        Ok(())
    }

    /// Saves the state of a run that is done, unless the last checkpoint is that.
    pub(super) fn close<T: Procedure>(&mut self, run: &Run<T>, best: &Best) -> Result<()> {
        if self.saved.0 == run.step { Ok(()) } else { self.save(run, best) }
    }

    /// Brings a run to the state of the newest checkpoint that verifies; says why each newer one was skipped. A checkpoint
    /// of another run is an error.
    pub(super) fn load<T: Procedure>(&mut self, run: &mut Run<T>, data: &[Example]) -> Result<(Best, Vec<String>)> {
        let mut skipped = Vec::new();
        for step in self.steps()? {
            let path = self.path(step);
            match verify(&path) {
                Ok(_) => {
                    self.saved.0 = step;
                    return Ok((self.restore(&path, run, data)?, skipped));
                }
                // What the system does not let us read may be whole.
                Err(Error::Io { action, path, source }) if source.kind() != ErrorKind::NotFound => {
                    return Err(Error::Io { action, path, source });
                }
                Err(error) => {
                    skipped.push(format!("skipped a damaged checkpoint: {error}"));
                    // It would be counted among the last, which are kept.
                    fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?;
                }
            }
        }
        if !skipped.is_empty() {
            skipped.push("no checkpoint is left: from the start".into());
        }
        Ok((Best::default(), skipped))
    }

    fn restore<T: Procedure>(&self, path: &Path, run: &mut Run<T>, data: &[Example]) -> Result<Best> {
        let state: State = parse(&path.join(STATE))?;
        same(&path.join(STATE), "run", &state.run, &self.run)?;
        let file = path.join(TRAINED);
        run.trained = run.restored(state.step, data, &read(&file)?).map_err(|error| error.in_file(&file))?;
        let states = StateSink {
            tensors: read(&path.join(OPTIMIZER))?.into_iter().collect(),
            scalars: state.scalars.into_iter().map(|(name, number)| (name, number.into())).collect(),
        };
        run.optim = run.optim.load(&run.trained, states, run.base.device());
        run.step = state.step;
        Ok(Best { tensors: read(&path.join(BEST))?, ..state.best })
    }

    /// The run has failed: what can be taken up stays.
    pub(super) fn abandon(self, hopeless: bool) {
        if hopeless || self.steps().is_ok_and(|steps| steps.is_empty()) {
            // The run's own error is the one to report.
            let _ = Checkpoints { dir: self.dir, every: None, resume: false }.remove();
        }
        drop(self.lock);
    }
}

/// The step of the checkpoint of this name.
fn step_of(name: &str) -> Option<usize> {
    name.strip_prefix("step-")?.parse().ok()
}

/// What stands in one of these files is compared with what must.
fn same(path: &Path, key: &str, found: &Value, expected: &Value) -> Result<()> {
    match (found, expected) {
        (Value::Object(a), Value::Object(b)) if a.keys().eq(b.keys()) => {
            a.iter().try_for_each(|(key, value)| same(path, key, value, &b[key]))
        }
        _ if found == expected => Ok(()),
        _ if ["start", "data", "evaluation"].contains(&key) => {
            let what = match key {
                "start" => "the model and the method's settings",
                "data" => "the training data",
                _ => "the evaluation data",
            };
            Err(Error::file(
                path,
                key,
                format!("another run's {found}"),
                format!("{expected}: {what} must be the same"),
            ))
        }
        _ => Err(Error::file(path, key, found, format!("{expected}, as in the run that takes it up"))),
    }
}

fn parse<T: DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_value(read_json(path)?).map_err(|e| Error::file(path, "content", e, "the state of a run"))
}

fn read(path: &Path) -> Result<BTreeMap<String, TensorData>> {
    let file = Checkpoint::open_file(path)?;
    let tensor = |name: &str| {
        let dims = file.shape(name).unwrap_or_default().to_vec();
        let data = match file.entry(name).map(|entry| entry.dtype.as_str()) {
            Some("I64") => file.read_indices(name, &dims)?,
            Some("U8") => TensorData::new(file.bytes(name)?, dims),
            _ => file.read_f32(name, &dims)?,
        };
        Ok((name.to_string(), data))
    };
    file.names().map(tensor).collect()
}

impl From<Scalar> for Number {
    fn from(scalar: Scalar) -> Self {
        match scalar {
            Scalar::Int(n) => Number::Int(n),
            Scalar::UInt(n) => Number::UInt(n),
            Scalar::Float(x) => Number::Float(x),
            Scalar::Bool(b) => Number::Bool(b),
        }
    }
}

impl From<Number> for Scalar {
    fn from(number: Number) -> Self {
        match number {
            Number::Int(n) => Scalar::Int(n),
            Number::UInt(n) => Scalar::UInt(n),
            Number::Float(x) => Scalar::Float(x),
            Number::Bool(b) => Scalar::Bool(b),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A state that came back a little less would be beaten by an equal one.
    #[test]
    fn numbers_come_back_to_the_last_bit() {
        for value in [2.0 / 13.0, 0.0017887233511355133, 1e-310, f64::MAX] {
            let best = Best { found: Some((1, value)), ..Best::default() };
            let read: Best = serde_json::from_slice(&serde_json::to_vec(&best).unwrap()).unwrap();
            assert_eq!(read.found, best.found);
        }
    }
}
