//! The steps of S3Delta-M: half of the data teaches the parts, the other half which of them to have.

use std::borrow::Cow;
use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData};
use peft_core::random::Random;
use peft_core::train::{Optim, Phase, Probe};
use peft_core::transfer::{read, send};
use peft_core::view::{Visit, tensors, visit, with_values};
use peft_core::{Base, Batch, Procedure, Readout, Result, Tuner, loss};

use super::s3_delta::S3Delta;

/// Numbers of a tuner's tensors, by their names.
type Numbers = BTreeMap<String, Vec<f32>>;

/// The name of the logits of the parts.
const ALPHA: &str = "alpha";

impl Procedure for S3Delta {
    fn phases(&self, steps: usize) -> Vec<Phase> {
        let phase = |name, steps| Phase { name, steps, rate: 1.0 };
        if !self.searches {
            return vec![phase("train", steps)];
        }
        let search = (self.config.search_steps * steps as f64).floor() as usize;
        vec![phase("search", search), phase("train", steps - search)]
    }

    /// What is found is trained from its start.
    fn prepare(self, base: &Base, data: Probe<'_>) -> Result<Self> {
        match (data.phase(), &self.alpha) {
            (1, Some(_)) => self.of_parts(self.likeliest().into_iter(), base, data.settings().seed),
            _ => Ok(self),
        }
    }

    fn resumed(self, base: &Base, phase: usize, shapes: &BTreeMap<String, Vec<usize>>) -> Result<Self> {
        if phase == 0 || self.alpha.is_none() {
            return Ok(self);
        }
        let was_there = |prefix: String| shapes.keys().any(|name| name.starts_with(&prefix));
        let parts = self.parts.iter().filter(|part| was_there(part.prefix())).map(ToString::to_string);
        self.of_parts(parts, base, 0)
    }

    fn sample(mut self, random: &mut Random) -> Self {
        let mut draw = || random.unit().clamp(1e-6, 1.0 - 1e-6) as f32;
        self.drawn = self.alpha.is_some().then(|| self.parts.iter().map(|_| draw()).collect());
        self
    }

    fn couples_samples(&self) -> bool {
        self.alpha.is_some()
    }

    /// The mean loss of the first half, which moves the parts and the head; alpha gets the gradient of the second half's.
    fn loss(&self, readout: &Readout<'_>) -> Result<Option<Tensor<1>>> {
        let Some(alpha) = &self.alpha else { return Ok(None) };
        let (alpha, [first, second]) = (alpha.val(), halves(readout));
        let own = first.as_ref().map(|half| self.fixed(|name| name == ALPHA).mean(half)).transpose()?;
        // What the structure is judged by is not trained on it.
        let head = readout.head.clone().no_grad();
        let judged = |half: &Readout<'_>| Readout {
            head: &head,
            batch: Cow::Owned((*half.batch).clone()),
            labels: half.labels.clone(),
            ..readout.clone()
        };
        let of_structure = match (first, second) {
            (_, None) => None,
            (Some(first), Some(second)) if self.config.unrolled_rate > 0.0 => {
                let gradient = self.unrolled(&judged(&first), &judged(&second))?;
                let gradient: Tensor<1> = send(gradient.as_slice(), &alpha.device());
                Some(((alpha.clone() - alpha.detach()) * gradient).sum())
            }
            (_, Some(second)) => {
                let loss = self.fixed(|name| name != ALPHA).mean(&judged(&second))?;
                Some(loss.clone() - loss.detach())
            }
        };
        let sum = own.into_iter().chain(of_structure).reduce(|a, b| a + b);
        let sum = sum.unwrap_or_else(|| unreachable!("a text is in one of the halves"));
        Ok(Some(sum * targets(readout) as f32))
    }

    fn rate(&self, name: &str, rate: f64) -> f64 {
        if name == ALPHA { rate * self.config.structure_rate } else { rate }
    }

    fn decays(&self, name: &str) -> bool {
        name != ALPHA
    }

    fn after_step(mut self, _base: &Base, _optim: &mut Optim, _before: &Self, _step: usize) -> Result<Self> {
        self.drawn = None;
        Ok(self)
    }
}

/// How many labels count.
fn targets(readout: &Readout<'_>) -> usize {
    loss::targets(&readout.labels, readout.head.ahead(readout.base.shape())).max(1)
}

/// Which of the two halves of the data each text is in: a function of its tokens.
pub(super) fn in_second(batch: &Batch) -> Vec<bool> {
    let numbers = |data: TensorData| data.iter::<i64>().collect::<Vec<_>>();
    let [size, tokens] = batch.ids.dims();
    let ids = numbers(read(batch.ids.clone()));
    let padding = batch.padding.as_ref().map(|padding| numbers(read(padding.clone().int())));
    let of = |row: usize| {
        let places = row * tokens..(row + 1) * tokens;
        let real = |place: &usize| padding.as_ref().is_none_or(|padding| padding[*place] == 0);
        let text: Vec<i64> = places.filter(real).map(|place| ids[place]).collect();
        Random::new(0, &format!("half of {text:?}")).bits() & 1 == 1
    };
    (0..size).map(of).collect()
}

/// The two halves of a batch, those that have a text.
pub(super) fn halves<'a>(readout: &Readout<'a>) -> [Option<Readout<'a>>; 2] {
    let second = in_second(&readout.batch);
    [false, true].map(|half| {
        let rows: Vec<usize> = (0..second.len()).filter(|row| second[*row] == half).collect();
        let labels = || rows.iter().map(|row| readout.labels[*row].clone()).collect();
        let of = || Readout { batch: Cow::Owned(readout.batch.rows(&rows)), labels: labels(), ..readout.clone() };
        (!rows.is_empty()).then(of)
    })
}

/// The parameters of a module with these names are constants.
struct Fixed<F>(Vec<String>, F);

impl<F: Fn(&str) -> bool> ModuleMapper for Fixed<F> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.0.push(name.to_string());
    }
    fn exit_module(&mut self, _: &str, _: &str) {
        self.0.pop();
    }
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if (self.1)(&self.0.join(".")) { param.set_require_grad(false) } else { param }
    }
}

impl S3Delta {
    fn fixed(&self, of: impl Fn(&str) -> bool) -> Self {
        self.clone().map(&mut Fixed(vec![], of))
    }

    /// The mean loss.
    fn mean(&self, readout: &Readout<'_>) -> Result<Tensor<1>> {
        Ok(self.head_loss(readout)? / targets(readout) as f32)
    }

    /// With all weights moved by some factor of a direction, as leaves of its own.
    fn moved(&self, factor: f32, direction: &Numbers) -> Result<Self> {
        let moved = |(name, data): (String, TensorData)| {
            let along = direction.get(&name).filter(|_| name != ALPHA);
            let values = data.iter::<f32>().enumerate();
            let values = values.map(|(i, w)| along.map_or(w, |along| w + factor * along[i])).collect();
            (name, TensorData::new::<f32, _>(values, data.shape().clone()))
        };
        with_values(self.clone(), &tensors(self).into_iter().map(moved).collect())
    }

    /// The gradients of the mean loss, whose forward is kept: they are wanted at once, not in the backward of the step.
    fn slopes(&self, readout: &Readout<'_>) -> Result<Numbers> {
        struct Slopes(GradientsParams, Numbers);
        impl Visit for Slopes {
            fn tensor<const D: usize>(&mut self, name: &str, id: ParamId, _: Tensor<D>) {
                if let Some(slope) = self.0.remove::<D>(id) {
                    self.1.insert(name.to_string(), read(slope).iter::<f32>().collect());
                }
            }
        }
        let batch = Cow::Owned(Batch { tape: None, ..(*readout.batch).clone() });
        let loss = self.mean(&Readout { batch, ..readout.clone() })?;
        let mut slopes = Slopes(GradientsParams::from_grads(loss.backward(), self), Numbers::new());
        visit(self, &mut slopes);
        Ok(slopes.1)
    }

    /// The gradient of L_2(w - xi dL_1/dw, alpha) by alpha, dL_1/dw by its slope along dL_2/dw, which central differences give.
    pub(super) fn unrolled(&self, first: &Readout<'_>, second: &Readout<'_>) -> Result<Vec<f32>> {
        let rate = self.config.unrolled_rate as f32;
        let stepped = self.moved(-rate, &self.moved(0.0, &Numbers::new())?.slopes(first)?)?;
        let mut slopes = stepped.slopes(second)?;
        let direct = slopes.remove(ALPHA).unwrap_or_default();
        let length = slopes.values().flatten().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        if length == 0.0 {
            return Ok(direct);
        }
        let size = (0.01 / length) as f32;
        let along = |factor: f32| -> Result<Vec<f32>> {
            Ok(self.moved(factor, &slopes)?.slopes(first)?.remove(ALPHA).unwrap_or_default())
        };
        let ends = along(size)?.into_iter().zip(along(-size)?);
        Ok(direct.into_iter().zip(ends).map(|(g, (more, less))| g - rate * (more - less) / (2.0 * size)).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use peft_core::testing::fixtures::ENCODERS;
    use peft_core::testing::golden::named;
    use peft_core::testing::{base, device, examples, randomized};
    use peft_core::{Example, Head, Label, Method};

    use super::super::s3_delta::S3DeltaConfig;
    use super::*;

    /// At a random state and a draw of its gates; the budget is such that they are about half open.
    fn drawn(config: &S3DeltaConfig, base: &Base) -> S3Delta {
        let start = randomized(&config.init(base, 3).unwrap(), 5);
        start.sample(&mut Random::new(7, "draw"))
    }

    /// Twice the examples of the tests, in both halves.
    fn data(base: &Base) -> Vec<Example> {
        let more = examples(base).into_iter().map(|example| Example {
            ids: example.ids.into_iter().rev().collect(),
            types: None,
            ..example
        });
        let all: Vec<Example> =
            examples(base).into_iter().map(|example| Example { types: None, ..example }).chain(more).collect();
        let halves = in_second(&base.batch(&all.iter().collect::<Vec<_>>()).unwrap());
        assert!(halves.contains(&true) && halves.contains(&false));
        all
    }

    fn readout<'a>(base: &'a Base, head: &'a Head, data: &[Example]) -> Readout<'a> {
        let batch = base.batch(&data.iter().collect::<Vec<_>>()).unwrap();
        let labels = data.iter().filter_map(|example| example.label.clone()).collect();
        Readout { base, batch: Cow::Owned(batch), head, labels, around: None }
    }

    #[test]
    fn each_half_teaches_its_own() {
        for base in ENCODERS.map(|shape| base(shape, &device())) {
            for rate in [0.0, 0.3] {
                let config = S3DeltaConfig::new(0.1).with_bottleneck(3).with_unrolled_rate(rate);
                let (own, head) = (drawn(&config, &base), randomized(&Head::classifier(&base, 2, 1), 1));
                let data = data(&base);
                let gradients = |data: &[Example]| {
                    let loss = own.loss(&readout(&base, &head, data)).unwrap().unwrap();
                    named(&own, &GradientsParams::from_grads(loss.backward(), &own))
                };
                let second = in_second(&readout(&base, &head, &data).batch);
                let turned = |half: bool| -> Vec<Example> {
                    let turn = |(example, second): (&Example, &bool)| {
                        let Some(Label::Class(class)) = example.label else { panic!("encoders have classes") };
                        let class = if *second == half { 1 - class } else { class };
                        Example { label: Some(Label::Class(class)), ..example.clone() }
                    };
                    data.iter().zip(&second).map(turn).collect()
                };
                let (all, of_first, of_second) =
                    (gradients(&data), gradients(&turned(false)), gradients(&turned(true)));
                for name in all.keys().filter(|name| *name != ALPHA) {
                    assert_eq!(all[name], of_second[name], "{name}");
                }
                assert_ne!(all[ALPHA], of_second[ALPHA]);
                assert_ne!(all["biases.encoder.0.query"], of_first["biases.encoder.0.query"]);
                // Past a step of w the first half reaches alpha too.
                assert_eq!(all[ALPHA] == of_first[ALPHA], rate == 0.0);
            }
        }
    }
}
