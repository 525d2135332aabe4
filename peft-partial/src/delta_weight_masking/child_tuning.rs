//! # Child-Tuning                           family: partial / delta weight masking
//! h = W' x + b'                            W', b' = the base's W, b, trained with the gradient M * g in the place of g
//! F: M = Bernoulli(p) / p for each number in each step
//! D: M = 1 for the p n numbers of the layers' n with the largest Fisher information, else 0; 1 outside of the layers
//! Paper: Xu et al., 2021, arXiv:2109.05687, section 2.   Reference: alibaba/AliceMind ChildTuning; modelscope `ChildTuningAdamW`
//! Oracle: code alibaba/AliceMind ChildTuning: `a_run_of_a_drawn_child_is_that_of_the_reference`, `a_run_of_a_chosen_child_is_that_of_the_reference`
//! Trains: every tensor of the base; with D, of the n numbers of the layers only floor(p n).      Merges: yes, by overwriting.
//! Identities:
//! - the base at init, bit for bit: `C1`
//! - p = 1 is full fine-tuning, bit for bit: `everything_reserved_is_full_fine_tuning`
//! - F: each number of the gradient is g / p with probability p, else 0, so that its mean is g: `a_drawn_gradient_is_right_on_average`
//! - F: a step's mask is a function of seed and step: `masks_are_drawn_anew_in_each_step_and_alike_from_one_seed`, `a_run_taken_up_ends_with_the_same_bits`
//! - D: the Fisher information is the sum over batches of the squared gradient, that of each tensor clipped: `the_child_is_what_has_the_largest_squared_gradients`
//! - D: what is outside of the child keeps its bits, under weight decay too: `only_the_child_moves`
//!
//! Differs from the paper: with D the update is masked, not only the gradient, so that weight decay does not reach what is outside of
//! the child. As in the code, F divides by p; D leaves what is outside of the layers (the names with `layer`) unmasked, and squares the
//! gradients of the run's batches, each tensor's scaled down to the run's `max_grad_norm` first, where equation 6 of the paper has those
//! of single examples. Unlike the code's these are without dropout, so that the child is a function of model and data; the child has no
//! more numbers where some are equal; the head is never masked, which F does there.

use burn::module::{Module, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData};
use peft_core::random::Random;
use peft_core::train::{Optim, Probe, largest};
use peft_core::view::{Visit, visit};
use peft_core::{
    Adapter, Base, Batch, Error, Hooks, Key, Merge, Method, Place, Procedure, Replaced, Result, Shape, slot_name,
};
use serde::{Deserialize, Serialize};

use crate::FullConfig;
use crate::masking::{hold, mask_gradients};

/// How the child network is chosen, by the names of the reference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChildMode {
    /// Free of the task: at random, in each step another one.
    #[serde(rename = "ChildTuning-F")]
    TaskFree,
    /// Driven by the task: by Fisher information, once.
    #[default]
    #[serde(rename = "ChildTuning-D")]
    TaskDriven,
}

/// The configuration of Child-Tuning, in the names of `ChildTuningAdamW`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChildTuningConfig {
    /// How the child network is chosen.
    pub mode: ChildMode,
    /// Its share of the numbers, p.
    pub reserve_p: f64,
    /// On how many training examples, drawn at random, the Fisher information is estimated; on all, if it is not set.
    pub fisher_samples: Option<usize>,
}

impl Default for ChildTuningConfig {
    /// The reference's script: D with 0.3.
    fn default() -> Self {
        ChildTuningConfig { mode: ChildMode::TaskDriven, reserve_p: 0.3, fisher_samples: None }
    }
}

impl ChildTuningConfig {
    /// With this share of the numbers in the child network.
    pub fn new(mode: ChildMode, reserve_p: f64) -> Self {
        ChildTuningConfig { mode, reserve_p, ..Default::default() }
    }

    /// With the Fisher information estimated on this many training examples.
    pub fn with_fisher_samples(mut self, samples: usize) -> Self {
        self.fisher_samples = Some(samples);
        self
    }

    /// How many numbers of the layers are in the child network, on average if it is drawn.
    pub fn reserved(&self, shape: &Shape) -> Result<usize> {
        let whole: usize = layers(shape).iter().map(Place::count).sum();
        let reserved = (self.reserve_p * whole as f64).floor() as usize;
        if !(self.reserve_p > 0.0 && self.reserve_p <= 1.0) || reserved == 0 {
            let allowed = format!("above 0 and at most 1, and at least one of the {whole} numbers of the layers");
            return Err(Error::config("reserve_p", self.reserve_p, allowed));
        }
        if self.fisher_samples == Some(0) {
            return Err(Error::config("fisher_samples", 0, "1 or more"));
        }
        Ok(reserved)
    }
}

/// What D masks. The reference chooses by this word.
fn layers(shape: &Shape) -> Vec<Place> {
    shape.places().into_iter().filter(|place| place.name.contains("layer")).collect()
}

/// A trainable copy of every tensor of a base, and what of it is trained.
#[derive(Module, Debug)]
pub struct ChildTuning {
    full: Replaced,
    /// 1 in the child network, else 0, for the tensors of the layers; not trained. D has them once training has begun.
    masks: Option<Replaced>,
    #[module(skip)]
    config: ChildTuningConfig,
    /// What the masks of F are drawn from in this step.
    #[module(skip)]
    key: u64,
}

impl Method for ChildTuningConfig {
    const NAME: &'static str = "child-tuning";
    const PEFT_TYPE: &'static str = "CHILD_TUNING";
    const ADDS: bool = false;
    type Tuner = ChildTuning;

    fn init(&self, base: &Base, seed: u64) -> Result<ChildTuning> {
        self.reserved(base.shape())?;
        let full = FullConfig::default().init(base, seed)?;
        Ok(ChildTuning { full, masks: None, config: self.clone(), key: seed })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        self.reserved(shape)?;
        FullConfig::default().count(shape)
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        FullConfig::default().key(name.trim_start_matches("full."), shape)
    }

    /// Without the masks: they say nothing about the function.
    fn to_saved(tuner: ChildTuning) -> ChildTuning {
        ChildTuning { masks: None, ..tuner }
    }

    fn merge(tuner: &ChildTuning) -> Option<&dyn Merge> {
        Some(&tuner.full)
    }
}

impl Adapter for ChildTuning {
    fn open<R>(&self, _batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        f(&self.full)
    }
}

impl Procedure for ChildTuning {
    fn prepare(self, base: &Base, data: Probe<'_>) -> Result<Self> {
        if self.config.mode == ChildMode::TaskFree {
            return Ok(self);
        }
        let examples = data.draw(self.config.fisher_samples.unwrap_or(usize::MAX));
        let settings = data.settings();
        let layers = layers(base.shape());
        let name = |place: &Place| slot_name(place.site, place.slot);
        let squared = |norm, gradient: f32| (settings.clip(norm) as f32 * gradient).powi(2);
        let mut scores = data.summed(&self.full, base, examples.chunks(settings.batch_size), squared)?;
        scores.retain(|scored, _| layers.iter().any(|place| name(place) == *scored));
        let child = largest(&scores, self.config.reserved(base.shape())?);
        let mask = |place: &Place| {
            let values: Vec<f32> = child[&name(place)].iter().map(|kept| f32::from(*kept)).collect();
            TensorData::new(values, place.dims.clone())
        };
        let (device, matrix) = (base.device(), |place: &Place| Tensor::from_data(mask(place), base.device()));
        let masks = Replaced::new(&layers, matrix, |place| Tensor::from_data(mask(place), device)).no_grad();
        Ok(ChildTuning { masks: Some(masks), ..self })
    }

    fn sample(self, random: &mut Random) -> Self {
        ChildTuning { key: random.bits(), ..self }
    }

    /// A tensor without a number in the child.
    fn may_rest(&self, name: &str) -> bool {
        let (Some(masks), Some(name)) = (&self.masks, name.strip_prefix("full.")) else { return false };
        let none = |kept: Tensor<1>| kept.into_scalar::<f32>() == 0.0;
        match name.starts_with("weights.") {
            true => masks.get::<2>(name).is_some_and(|mask| none(mask.sum())),
            false => masks.get::<1>(name).is_some_and(|mask| none(mask.sum())),
        }
    }

    fn gradients(&mut self, gradients: GradientsParams, _step: usize) -> GradientsParams {
        match (self.config.mode, &self.masks) {
            (ChildMode::TaskFree, _) => {
                let mut drop = Drop { p: self.config.reserve_p, key: self.key, gradients };
                visit(&self.full, &mut drop);
                drop.gradients
            }
            (ChildMode::TaskDriven, Some(masks)) => mask_gradients(&self.full, masks, gradients),
            (ChildMode::TaskDriven, None) => gradients,
        }
    }

    fn after_step(self, _base: &Base, _optim: &mut Optim, before: &Self, _step: usize) -> Result<Self> {
        let Some(masks) = &self.masks else { return Ok(self) };
        let full = hold(&self.full, &before.full, masks);
        Ok(ChildTuning { full, ..self })
    }
}

/// Each number of a gradient is kept with probability p, and divided by it.
struct Drop {
    p: f64,
    key: u64,
    gradients: GradientsParams,
}

impl Visit for Drop {
    fn tensor<const D: usize>(&mut self, name: &str, id: ParamId, _: Tensor<D>) {
        if let Some(gradient) = self.gradients.remove::<D>(id) {
            let drawn = Random::new(self.key, name).uniform_tensor(gradient.dims(), 0.0, 1.0, &gradient.device());
            // Rounded, a number below 1 may be 1.
            self.gradients.register(id, gradient.mask_fill(drawn.greater_elem(self.p), 0.0) / self.p);
        }
    }
}

#[cfg(test)]
mod tests {
    use peft_core::{Head, io::peft::from_settings, testing::fixtures::SHAPES};

    use super::*;
    use crate::testing::assert_files_hold;

    peft_core::conformance!(ChildTuningConfig::default());

    #[test]
    fn counts_are_those_of_the_card() {
        let (shape, config) = (Shape::named("roberta-base").unwrap(), ChildTuningConfig::default());
        let head = Head::count(&shape, 2);
        assert_eq!(config.count(&shape).unwrap() + head, 124_647_170);
        let outside = shape.count() - layers(&shape).iter().map(Place::count).sum::<usize>();
        assert_eq!((outside, config.reserved(&shape).unwrap()), (39_000_576, 25_516_339));
        assert_eq!(config.reserved(&shape).unwrap() + outside + head, 65_109_045);
    }

    #[test]
    fn files_hold_the_whole_checkpoint() {
        assert_files_hold(&ChildTuningConfig::default(), &SHAPES, |_| true);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let shape = Shape::named("t5-tiny").unwrap();
        for (bad, key) in [
            (ChildTuningConfig::new(ChildMode::TaskFree, 0.0), "reserve_p: 0 "),
            (ChildTuningConfig::new(ChildMode::TaskFree, f64::NAN), "reserve_p"),
            (ChildTuningConfig::new(ChildMode::TaskDriven, 1.1), "reserve_p: 1.1 "),
            (ChildTuningConfig::new(ChildMode::TaskDriven, 1e-9), "at least one of"),
            (ChildTuningConfig::default().with_fisher_samples(0), "fisher_samples: 0 "),
        ] {
            let message = bad.count(&shape).unwrap_err().to_string();
            assert!(message.contains(key), "{key}: {message}");
        }
        let settings = from_settings::<ChildTuningConfig>(&["mode=ChildTuning-F".into(), "reserve_p=0.2".into()]);
        assert_eq!(settings.unwrap(), ChildTuningConfig::new(ChildMode::TaskFree, 0.2));
        let message = from_settings::<ChildTuningConfig>(&["mode=F".into()]).unwrap_err().to_string();
        assert!(message.contains("mode") && message.contains("ChildTuning-D"), "{message}");
    }
}
