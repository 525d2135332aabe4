//! The run as a method may look at it before the first step: the training data, the number of steps and the seed.

use burn::optim::GradientsParams;

use crate::loss::targets;
use crate::random::Random;
use crate::{Base, Error, Example, Head, Label, Result, Trained, Tuner};

/// The training data, the loss that the head gives on it, and the length of the run.
#[derive(Clone, Copy, Debug)]
pub struct Probe<'a> {
    head: &'a Head,
    examples: &'a [Example],
    steps: Option<usize>,
    seed: u64,
}

impl<'a> Probe<'a> {
    /// Of these examples.
    pub fn new(head: &'a Head, examples: &'a [Example]) -> Self {
        Probe { head, examples, steps: None, seed: 0 }
    }

    /// Before a run of this many steps.
    pub fn with_steps(self, steps: usize) -> Self {
        Probe { steps: Some(steps), ..self }
    }

    /// Before a run with this seed.
    pub fn with_seed(self, seed: u64) -> Self {
        Probe { seed, ..self }
    }

    /// The places of this many training examples, or of all if there are no more, drawn by the run's seed.
    pub fn draw(&self, count: usize) -> Vec<usize> {
        let mut places = Random::new(self.seed, "examples before the first step").permutation(self.examples.len());
        places.truncate(count);
        places
    }

    /// How many steps the run takes, if there is one.
    pub fn steps(&self) -> Option<usize> {
        self.steps
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
        let trained = Trained { tuner: tuner.clone(), head: self.head.clone() };
        let loss = trained.loss(base, &base.batch(&batch)?, &labels)? / count as f32;
        Ok(GradientsParams::from_grads(loss.backward(), tuner))
    }
}

/// The labels of training examples.
pub(super) fn labels<'a>(examples: &[&'a Example]) -> Result<Vec<&'a Label>> {
    let missing = || Error::config("label", "nothing", "a label for every training example");
    examples.iter().map(|e| e.label.as_ref().ok_or_else(missing)).collect()
}
