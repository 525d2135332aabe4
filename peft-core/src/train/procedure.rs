//! What a method does beside its forward. The trainer calls every one of these; nobody can forget it.

use std::collections::BTreeMap;

use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use super::{Optim, Probe};
use crate::{Adapter, AnyTuner, Base, Many, Readout, Result, Tuner, random::Random};

/// A part of a run, with a learning rate schedule and an optimizer of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Phase {
    /// What is done in it.
    pub name: &'static str,
    /// How many steps it has, at least one.
    pub steps: usize,
    /// By what the learning rates of the run are multiplied.
    pub rate: f64,
}

/// The steps of a training procedure. Each does nothing unless overridden; one made of others ([`parts`](Self::parts)) does what they
/// do. The base is never changed: a method that trains tensors of it, or replaces them, has its own in their place.
pub trait Procedure: Tuner + Sized {
    /// The tuners that it is made of, and what stands before the names of their tensors.
    fn parts(&self) -> Vec<(String, &AnyTuner)> {
        vec![]
    }

    /// The same to be changed.
    fn parts_mut(&mut self) -> Vec<&mut AnyTuner> {
        vec![]
    }

    /// The phases of a run of this many steps, which they add up to: one, unless overridden.
    fn phases(&self, steps: usize) -> Vec<Phase> {
        match &self.parts()[..] {
            [(_, part)] => part.phases(steps),
            _ => vec![Phase { name: "train", steps, rate: 1.0 }],
        }
    }

    /// Before the first step of each phase ([`Probe::phase`]): may look at the data.
    fn prepare(self, base: &Base, data: Probe<'_>) -> Result<Self> {
        each_part(self, |_, part| part.prepare(base, data))
    }

    /// As it was when a checkpoint was saved in this phase, but for the values of its tensors, which had these shapes by their names.
    /// A method whose tensors come and go takes that form here.
    fn resumed(self, base: &Base, phase: usize, shapes: &BTreeMap<String, Vec<usize>>) -> Result<Self> {
        let prefixes: Vec<String> = self.parts().into_iter().map(|(prefix, _)| prefix).collect();
        each_part(self, |i, part| part.resumed(base, phase, &under(&prefixes[i], shapes)))
    }

    /// Before each step: draws what is random (a rank, a route).
    fn sample(self, random: &mut Random) -> Self {
        let drawn = each_part(self, |_, part| Ok(part.sample(random)));
        drawn.unwrap_or_else(|_| unreachable!("nothing here fails"))
    }

    /// Whether the loss couples the samples of a batch, so that it must not be cut into micro-batches.
    fn couples_samples(&self) -> bool {
        self.parts().iter().any(|(_, part)| part.couples_samples())
    }

    /// The summed loss of a piece of a batch, if it is not the head's of one run (two routes and their divergence, distillation). What it
    /// runs by [`Readout::run`] has in place what the method is composed with.
    fn loss(&self, _readout: &Readout<'_>) -> Result<Option<Tensor<1>>> {
        Ok(None)
    }

    /// Added to the loss of each step, once.
    fn penalty(&self) -> Option<Tensor<1>> {
        self.parts().iter().filter_map(|(_, part)| part.penalty()).reduce(|a, b| a + b)
    }

    /// The learning rate of a tensor of this module, by its name, in a step in which the run's is `rate`.
    fn rate(&self, name: &str, rate: f64) -> f64 {
        part_of(self, name).map_or(rate, |(part, name)| part.rate(name, rate))
    }

    /// Whether weight decay acts on a tensor of this module, by its name.
    fn decays(&self, name: &str) -> bool {
        part_of(self, name).is_none_or(|(part, name)| part.decays(name))
    }

    /// Whether a tensor of this module, by its name, may have no gradient in any step of a sound run.
    fn may_rest(&self, name: &str) -> bool {
        part_of(self, name).is_some_and(|(part, name)| part.may_rest(name))
    }

    /// The gradients as the optimizer shall see them.
    fn gradients(&mut self, gradients: GradientsParams, step: usize) -> GradientsParams {
        self.parts_mut().into_iter().fold(gradients, |gradients, part| part.gradients(gradients, step))
    }

    /// After each optimizer step; `before` is the method as it was. Tensors that are new start without an optimizer's state, if their
    /// names are new too.
    fn after_step(self, base: &Base, optim: &mut Optim, before: &Self, step: usize) -> Result<Self> {
        let before = before.parts();
        each_part(self, |i, part| part.after_step(base, optim, before[i].1, step))
    }

    /// After the last step.
    fn finish(self, base: &Base) -> Result<Self> {
        each_part(self, |_, part| part.finish(base))
    }
}

/// A procedure with each of its parts changed.
fn each_part<P: Procedure>(mut whole: P, mut change: impl FnMut(usize, AnyTuner) -> Result<AnyTuner>) -> Result<P> {
    for (i, part) in whole.parts_mut().into_iter().enumerate() {
        *part = change(i, part.clone())?;
    }
    Ok(whole)
}

/// The part that has the tensor of this name, and its name there.
fn part_of<'a, 'b, P: Procedure>(whole: &'a P, name: &'b str) -> Option<(&'a AnyTuner, &'b str)> {
    whole.parts().into_iter().find_map(|(prefix, part)| Some((part, name.strip_prefix(&prefix)?)))
}

/// What stands under a prefix.
fn under(prefix: &str, shapes: &BTreeMap<String, Vec<usize>>) -> BTreeMap<String, Vec<usize>> {
    let named = shapes.iter().filter_map(|(name, dims)| Some((name.strip_prefix(prefix)?, dims)));
    named.map(|(name, dims)| (name.to_string(), dims.clone())).collect()
}

/// Two methods at once, each with its own steps: the first before the second. The phases and losses of both would not go together.
impl<A: Adapter, B: Adapter> Procedure for (A, B) {
    fn prepare(self, base: &Base, data: Probe<'_>) -> Result<Self> {
        Ok((self.0.prepare(base, data)?, self.1.prepare(base, data)?))
    }

    fn resumed(self, base: &Base, phase: usize, shapes: &BTreeMap<String, Vec<usize>>) -> Result<Self> {
        let (first, second) = (under("0.", shapes), under("1.", shapes));
        Ok((self.0.resumed(base, phase, &first)?, self.1.resumed(base, phase, &second)?))
    }

    fn sample(self, random: &mut Random) -> Self {
        (self.0.sample(random), self.1.sample(random))
    }

    fn couples_samples(&self) -> bool {
        self.0.couples_samples() || self.1.couples_samples()
    }

    fn loss(&self, readout: &Readout<'_>) -> Result<Option<Tensor<1>>> {
        Many::new(vec![AnyTuner::new(self.0.clone()), AnyTuner::new(self.1.clone())])?.loss(readout)
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

    fn after_step(self, base: &Base, optim: &mut Optim, before: &Self, step: usize) -> Result<Self> {
        let first = self.0.after_step(base, optim, &before.0, step)?;
        Ok((first, self.1.after_step(base, optim, &before.1, step)?))
    }

    fn finish(self, base: &Base) -> Result<Self> {
        Ok((self.0.finish(base)?, self.1.finish(base)?))
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

        fn times(self, base: &Base, factor: f32) -> Result<Self> {
            let dropout = base.shape().dropout;
            Ok(Number { value: self.value.map(|value| value * factor + dropout), ..self })
        }
    }

    impl Procedure for Number {
        fn prepare(self, base: &Base, _data: Probe<'_>) -> Result<Self> {
            self.times(base, 2.0)
        }

        fn resumed(self, base: &Base, phase: usize, shapes: &BTreeMap<String, Vec<usize>>) -> Result<Self> {
            self.times(base, phase as f32 + shapes["value"][0] as f32)
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

        fn after_step(self, base: &Base, _optim: &mut Optim, before: &Self, step: usize) -> Result<Self> {
            self.times(base, before.get() + step as f32)
        }

        fn finish(self, base: &Base) -> Result<Self> {
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

            let check = |found: Result<(Number, Number)>, a: Result<Number>, b: Result<Number>| {
                let found = found.unwrap();
                assert_eq!([found.0.get(), found.1.get()], [a.unwrap().get(), b.unwrap().get()]);
            };
            let probe = Probe::new(&head, &examples);
            let both = |a: &Number, b: &Number| (a.clone(), b.clone());
            check(
                pair.clone().prepare(&plain, probe),
                a.clone().prepare(&plain, probe),
                b.clone().prepare(&plain, probe),
            );
            let before = (Number::new(11.0, odd), Number::new(13.0, even));
            let first = a.clone().after_step(&plain, &mut optim, &before.0, 4);
            let second = b.clone().after_step(&plain, &mut optim, &before.1, 4);
            check(both(&a, &b).after_step(&plain, &mut optim, &before, 4), first, second);
            let shapes = |value: usize| BTreeMap::from([("value".to_string(), vec![value])]);
            let named = BTreeMap::from([("0.value".to_string(), vec![5]), ("1.value".to_string(), vec![6])]);
            let first = a.clone().resumed(&plain, 2, &shapes(5));
            check(pair.clone().resumed(&plain, 2, &named), first, b.clone().resumed(&plain, 2, &shapes(6)));
            check(pair.finish(&plain), a.finish(&plain), b.finish(&plain));
        }
    }
}
