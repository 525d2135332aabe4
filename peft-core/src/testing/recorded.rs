//! Runs that `scripts/golden` wrote, to be made again step by step.

use std::collections::BTreeMap;
use std::path::PathBuf;

use burn::module::Module;
use burn::tensor::TensorData;

use super::difference;
use super::golden::{examples, model};
use super::tolerances::Tolerance;
use crate::load::Checkpoint;
use crate::train::{Probe, Run, TrainConfig};
use crate::{Base, Example, Head, Key, Procedure, Trained, Tuner};

/// A directory with the examples of a run in `inputs.safetensors` and what came of it in `expected.safetensors`.
pub struct Recorded {
    dir: PathBuf,
    /// The base model.
    pub base: Base,
    /// Its own head.
    pub head: Head,
    /// The examples, which a run takes in this order.
    pub examples: Vec<Example>,
    expected: Checkpoint,
}

impl Recorded {
    /// Opens the run in `dir`, on a golden model with a head.
    ///
    /// # Panics
    /// If a file does not load.
    pub fn open(dir: PathBuf, base: &str) -> Self {
        let model = model(base);
        let head = model.head.unwrap_or_else(|| panic!("{base} has no head"));
        let expected = Checkpoint::open_file(&dir.join("expected.safetensors")).unwrap_or_else(|e| panic!("{e}"));
        let examples = examples(&dir.join("inputs.safetensors"));
        Recorded { dir, base: model.base, head, examples, expected }
    }

    /// The run before its first step.
    ///
    /// # Panics
    /// If the method refuses model or data.
    pub fn begin<T: Procedure>(&self, settings: &TrainConfig, tuner: T) -> Run<T> {
        let probe = Probe::new(&self.head, &self.examples).with_run(settings);
        let tuner = tuner.prepare(&self.base, probe).unwrap_or_else(|e| panic!("{e}"));
        let trained = Trained::new(tuner, self.head.clone());
        trained.and_then(|trained| Run::new(settings, self.base.clone(), trained)).unwrap_or_else(|e| panic!("{e}"))
    }

    /// What files call a tensor of the head.
    pub fn head_key(&self, name: &str) -> Key {
        crate::io::peft::head_key("base_model.model.", name, self.base.shape())
    }

    /// Expected numbers.
    ///
    /// # Panics
    /// If there are none of this name.
    pub fn expected(&self, name: &str) -> TensorData {
        let shape = self.expected.shape(name).unwrap_or_else(|| panic!("{name} is not expected")).to_vec();
        self.expected.read_f32(name, &shape).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Compares numbers, in the order of the file's.
    ///
    /// # Panics
    /// If they differ.
    pub fn compare(&self, name: &str, found: &TensorData, tolerance: Tolerance) {
        let expected = self.expected(name);
        let found = TensorData::new(found.iter::<f32>().collect::<Vec<_>>(), expected.shape().clone());
        let differ = difference(&found, &expected);
        assert!(differ <= tolerance.0, "{}: {name} differs by {differ}, allowed {tolerance:?}", self.dir.display());
    }

    /// Compares all tensors of a kind that are expected, `KIND.NAME`; `key` says what the file calls one.
    ///
    /// # Panics
    /// If one differs or is not there.
    pub fn compare_all(
        &self,
        kind: &str,
        found: &BTreeMap<String, TensorData>,
        key: impl Fn(&str) -> Key,
        tolerance: Tolerance,
    ) {
        let names = self.expected.names().filter_map(|name| name.strip_prefix(&format!("{kind}.")));
        let mut missing: Vec<String> = names.map(str::to_string).collect();
        assert!(!missing.is_empty(), "{}: nothing of {kind} is expected", self.dir.display());
        for (name, data) in found {
            let Key { name, transposed } = key(name);
            let Some(place) = missing.iter().position(|expected| *expected == name) else { continue };
            let data = if transposed { crate::io::transpose(data.clone()) } else { data.clone() };
            self.compare(&format!("{kind}.{}", missing.swap_remove(place)), &data, tolerance);
        }
        assert!(missing.is_empty(), "{}: no {missing:?} of {kind}", self.dir.display());
    }

    /// Compares the logits of all examples.
    ///
    /// # Panics
    /// If they differ.
    pub fn compare_logits<T: Tuner>(&self, name: &str, base: &Base, trained: &Trained<T>, tolerance: Tolerance) {
        let batch = base.batch(&self.examples.iter().collect::<Vec<_>>());
        let logits = batch.and_then(|batch| trained.valid().logits(base, &batch)).unwrap_or_else(|e| panic!("{e}"));
        self.compare(name, &logits.into_data(), tolerance);
    }
}
