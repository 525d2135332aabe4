//! The run as a method may look at it before the first step of a phase: the training data and the settings.

use std::borrow::Cow;

use burn::optim::GradientsParams;

use super::TrainConfig;
use crate::loss::targets;
use crate::random::Random;
use crate::{Base, Copies, Error, Example, Head, Label, Result, Trained, Tuner};

/// The training data, the loss that the head gives on it, and the settings of the run.
#[derive(Clone, Copy, Debug)]
pub struct Probe<'a> {
    head: &'a Head,
    examples: &'a [Example],
    run: Option<&'a TrainConfig>,
    phase: usize,
}

impl<'a> Probe<'a> {
    /// Of these examples.
    pub fn new(head: &'a Head, examples: &'a [Example]) -> Self {
        Probe { head, examples, run: None, phase: 0 }
    }

    /// Before a run with these settings.
    pub fn with_run(self, run: &'a TrainConfig) -> Self {
        Probe { run: Some(run), ..self }
    }

    /// Before a later phase, counted from 0.
    pub fn with_phase(self, phase: usize) -> Self {
        Probe { phase, ..self }
    }

    /// Which phase is to begin, counted from 0, see [`Procedure::phases`](super::Procedure::phases).
    pub fn phase(&self) -> usize {
        self.phase
    }

    /// The settings of the run, those that are usual if there is none.
    pub fn settings(&self) -> Cow<'a, TrainConfig> {
        self.run.map_or_else(|| Cow::Owned(TrainConfig::default()), Cow::Borrowed)
    }

    /// The places of this many training examples, or of all if there are no more, drawn by the run's seed.
    pub fn draw(&self, count: usize) -> Vec<usize> {
        let random = Random::new(self.settings().seed, "examples before the first step");
        let mut places = random.permutation(self.examples.len());
        places.truncate(count);
        places
    }

    /// How many steps the run takes, if there is one.
    pub fn steps(&self) -> Option<usize> {
        self.run.map(|run| run.steps(self.examples.len()))
    }

    /// The training examples.
    pub fn examples(&self) -> &'a [Example] {
        self.examples
    }

    /// The gradients of a tuner's tensors: of the mean loss of some examples, by their places in the data, as one batch without
    /// dropout.
    pub fn gradients<T: Tuner>(&self, tuner: &T, base: &Base, places: &[usize]) -> Result<GradientsParams> {
        let batch: Vec<&Example> = places.iter().map(|i| &self.examples[*i]).collect();
        let labels = labels(&batch)?;
        let count = targets(labels.iter().copied(), self.head.ahead(base.shape()));
        if count == 0 {
            return Err(Error::config("labels", "none that counts", "one in each batch of the data"));
        }
        let trained = Trained { tuner: tuner.clone(), head: self.head.clone(), copies: Copies::default() };
        let loss = trained.loss(base, &base.batch(&batch)?, &labels)? / count as f32;
        Ok(GradientsParams::from_grads(loss.backward(), tuner))
    }
}

/// The labels of training examples.
pub(super) fn labels<'a>(examples: &[&'a Example]) -> Result<Vec<&'a Label>> {
    let missing = || Error::config("label", "nothing", "a label for every training example");
    examples.iter().map(|e| e.label.as_ref().ok_or_else(missing)).collect()
}
