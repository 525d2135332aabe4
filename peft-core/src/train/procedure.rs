//! What a method does beside its forward. The trainer calls every one of these; nobody can forget it.

use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use crate::{Base, Batch, Result, Tuner, random::Random, train::Optim};

/// The steps of a training procedure, all of them nothing unless overridden.
pub trait Procedure: Tuner + Sized {
    /// Before the first step: may look at batches of the data, may change the base.
    fn prepare(self, base: Base, _data: &mut dyn Iterator<Item = Result<Batch>>) -> Result<(Self, Base)> {
        Ok((self, base))
    }

    /// Before each step: draws what is random (a rank, a route).
    fn sample(self, _random: &mut Random) -> Self {
        self
    }

    /// Whether the loss couples the samples of a batch, so that it must not be cut into micro-batches.
    fn couples_samples(&self) -> bool {
        false
    }

    /// Added to the loss of each step, once.
    fn penalty(&self) -> Option<Tensor<1>> {
        None
    }

    /// The gradients as the optimizer shall see them.
    fn gradients(&mut self, gradients: GradientsParams, _step: usize) -> GradientsParams {
        gradients
    }

    /// Whether this method changes the frozen base while it trains; otherwise a change is an error at the end of the run.
    fn changes_base(&self) -> bool {
        false
    }

    /// After each optimizer step; `before` is the method as it was.
    fn after_step(self, base: Base, _optim: &mut Optim, _before: &Self, _step: usize) -> Result<(Self, Base)> {
        Ok((self, base))
    }

    /// After the last step.
    fn finish(self, base: Base) -> Result<(Self, Base)> {
        Ok((self, base))
    }
}
