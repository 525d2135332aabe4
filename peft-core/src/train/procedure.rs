//! What a method does beside its forward. The trainer calls every one of these; nobody can forget it.

use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use super::{Optim, Probe};
use crate::{Adapter, Base, Result, Tuner, random::Random};

/// The steps of a training procedure, all of them nothing unless overridden.
pub trait Procedure: Tuner + Sized {
    /// Before the first step: may look at the data, may change the base.
    fn prepare(self, base: Base, _data: Probe<'_>) -> Result<(Self, Base)> {
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

    /// The learning rate of a tensor of this module, by its name, in a step in which the run's is `rate`.
    fn rate(&self, _name: &str, rate: f64) -> f64 {
        rate
    }

    /// Whether weight decay acts on a tensor of this module, by its name.
    fn decays(&self, _name: &str) -> bool {
        true
    }

    /// Whether a tensor of this module, by its name, may have no gradient in any step of a sound run.
    fn may_rest(&self, _name: &str) -> bool {
        false
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

/// Two methods at once, each with its own steps: the first before the second.
impl<A: Adapter + Procedure, B: Adapter + Procedure> Procedure for (A, B) {
    fn prepare(self, base: Base, data: Probe<'_>) -> Result<(Self, Base)> {
        let (first, base) = self.0.prepare(base, data)?;
        let (second, base) = self.1.prepare(base, data)?;
        Ok(((first, second), base))
    }

    fn sample(self, random: &mut Random) -> Self {
        (self.0.sample(random), self.1.sample(random))
    }

    fn couples_samples(&self) -> bool {
        self.0.couples_samples() || self.1.couples_samples()
    }

    fn penalty(&self) -> Option<Tensor<1>> {
        match (self.0.penalty(), self.1.penalty()) {
            (Some(first), Some(second)) => Some(first + second),
            (first, second) => first.or(second),
        }
    }

    fn rate(&self, name: &str, rate: f64) -> f64 {
        match name.split_once('.') {
            Some(("0", name)) => self.0.rate(name, rate),
            Some((_, name)) => self.1.rate(name, rate),
            None => rate,
        }
    }

    fn decays(&self, name: &str) -> bool {
        match name.split_once('.') {
            Some(("0", name)) => self.0.decays(name),
            Some((_, name)) => self.1.decays(name),
            None => true,
        }
    }

    fn may_rest(&self, name: &str) -> bool {
        match name.split_once('.') {
            Some(("0", name)) => self.0.may_rest(name),
            Some((_, name)) => self.1.may_rest(name),
            None => false,
        }
    }

    fn gradients(&mut self, gradients: GradientsParams, step: usize) -> GradientsParams {
        let gradients = self.0.gradients(gradients, step);
        self.1.gradients(gradients, step)
    }

    fn changes_base(&self) -> bool {
        self.0.changes_base() || self.1.changes_base()
    }

    fn after_step(self, base: Base, optim: &mut Optim, before: &Self, step: usize) -> Result<(Self, Base)> {
        let (first, base) = self.0.after_step(base, optim, &before.0, step)?;
        let (second, base) = self.1.after_step(base, optim, &before.1, step)?;
        Ok(((first, second), base))
    }

    fn finish(self, base: Base) -> Result<(Self, Base)> {
        let (first, base) = self.0.finish(base)?;
        let (second, base) = self.1.finish(base)?;
        Ok(((first, second), base))
    }
}
