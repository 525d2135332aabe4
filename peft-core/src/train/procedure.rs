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

#[cfg(all(test, feature = "train"))]
mod tests {
    use burn::module::{Module, Param};

    use super::*;
    use crate::testing::{base, device, examples};
    use crate::train::TrainConfig;
    use crate::{Head, Hooks, adapter};

    /// A number that each call changes, by the call, by what the base says and by whether it is odd.
    #[derive(Module, Debug)]
    struct Number {
        value: Param<Tensor<1>>,
        #[module(skip)]
        odd: bool,
    }

    impl Hooks for Number {}
    adapter!(Number);

    impl Number {
        fn new(value: f32, odd: bool) -> Self {
            Number { value: Param::from_tensor(Tensor::from_data([value], &device())), odd }
        }

        fn get(&self) -> f32 {
            self.value.val().into_scalar()
        }

        fn times(self, base: Base, factor: f32) -> Result<(Self, Base)> {
            let dropout = base.shape().dropout;
            let value = self.value.map(|value| value * factor + dropout);
            Ok((Number { value, ..self }, base.with_dropout(dropout / 2.0 + 0.125)))
        }
    }

    impl Procedure for Number {
        fn prepare(self, base: Base, _data: Probe<'_>) -> Result<(Self, Base)> {
            self.times(base, 2.0)
        }

        fn sample(self, random: &mut Random) -> Self {
            let drawn = random.unit();
            Number { value: self.value.map(|value| value + drawn), ..self }
        }

        fn couples_samples(&self) -> bool {
            self.odd
        }

        fn penalty(&self) -> Option<Tensor<1>> {
            self.odd.then(|| self.value.val())
        }

        fn rate(&self, name: &str, rate: f64) -> f64 {
            if self.odd && name == "value" { rate * 2.0 } else { rate }
        }

        fn decays(&self, name: &str) -> bool {
            !(self.odd && name == "value")
        }

        fn may_rest(&self, name: &str) -> bool {
            self.odd && name == "value"
        }

        fn gradients(&mut self, mut gradients: GradientsParams, step: usize) -> GradientsParams {
            gradients.register(self.value.id, Tensor::<1>::full([1], step as f64 * f64::from(self.get()), &device()));
            gradients
        }

        fn changes_base(&self) -> bool {
            self.odd
        }

        fn after_step(self, base: Base, _optim: &mut Optim, before: &Self, step: usize) -> Result<(Self, Base)> {
            self.times(base, before.get() + step as f32)
        }

        fn finish(self, base: Base) -> Result<(Self, Base)> {
            self.times(base, 5.0)
        }
    }

    #[test]
    fn a_pair_does_what_the_first_does_and_then_the_second() {
        let plain = base("roberta-tiny", &device()).with_dropout(0.5);
        let (head, examples) = (Head::classifier(&plain, 2, 3), examples(&plain));
        let mut optim = Optim::of(&TrainConfig::default());
        for [odd, even] in [[true, false], [false, true], [true, true], [false, false]] {
            let (a, b) = (Number::new(3.0, odd), Number::new(7.0, even));
            let mut pair = (a.clone(), b.clone());
            assert_eq!(pair.couples_samples(), odd || even);
            assert_eq!(pair.changes_base(), odd || even);
            let penalties = [&a, &b].map(|one| one.penalty().map(|x| x.into_scalar::<f32>()));
            let sum = penalties.iter().flatten().copied().reduce(|a, b| a + b);
            assert_eq!(pair.penalty().map(|x| x.into_scalar::<f32>()), sum);
            for (name, one) in [("0.value", &a), ("1.value", &b)] {
                assert_eq!(pair.rate(name, 3.0), one.rate("value", 3.0));
                assert_eq!(pair.decays(name), one.decays("value"));
                assert_eq!(pair.may_rest(name), one.may_rest("value"));
            }
            let given = pair.gradients(GradientsParams::new(), 4);
            for one in [&a, &b] {
                let gradient = given.get::<1>(one.value.id).map(|g| g.into_scalar::<f32>());
                assert_eq!(gradient, Some(4.0 * one.get()));
            }
            let (mut random, mut again) = (Random::new(1, "draws"), Random::new(1, "draws"));
            let drawn = pair.clone().sample(&mut random);
            assert_eq!([drawn.0.get(), drawn.1.get()], [&a, &b].map(|one| one.clone().sample(&mut again).get()));

            let check = |found: Result<((Number, Number), Base)>, a: Number, b: Number, base: Base| {
                let (found, changed) = found.unwrap();
                assert_eq!([found.0.get(), found.1.get()], [a.get(), b.get()]);
                assert_eq!(changed.shape().dropout, base.shape().dropout);
            };
            let probe = Probe::new(&head, &examples);
            let (first, base) = a.clone().prepare(plain.clone(), probe).unwrap();
            let (second, base) = b.clone().prepare(base, probe).unwrap();
            check(pair.clone().prepare(plain.clone(), probe), first, second, base);
            let before = (Number::new(11.0, odd), Number::new(13.0, even));
            let (first, base) = a.clone().after_step(plain.clone(), &mut optim, &before.0, 4).unwrap();
            let (second, base) = b.clone().after_step(base, &mut optim, &before.1, 4).unwrap();
            check(pair.clone().after_step(plain.clone(), &mut optim, &before, 4), first, second, base);
            let (first, base) = a.finish(plain.clone()).unwrap();
            let (second, base) = b.finish(base).unwrap();
            check(pair.finish(plain.clone()), first, second, base);
        }
    }
}
