//! The run as a method may look at it before the first step: the training data and the number of steps.

use burn::optim::GradientsParams;

use crate::loss::targets;
use crate::{Base, Error, Example, Head, Label, Result, Trained, Tuner};

/// The training data, the loss that the head gives on it, and the length of the run.
#[derive(Clone, Copy, Debug)]
pub struct Probe<'a> {
    head: &'a Head,
    examples: &'a [Example],
    steps: Option<usize>,
}

impl<'a> Probe<'a> {
    /// Of these examples.
    pub fn new(head: &'a Head, examples: &'a [Example]) -> Self {
        Probe { head, examples, steps: None }
    }

    /// Before a run of this many steps.
    pub fn with_steps(self, steps: usize) -> Self {
        Probe { steps: Some(steps), ..self }
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
