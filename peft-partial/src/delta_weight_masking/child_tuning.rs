//! # Child-Tuning                           family: partial / delta weight masking
//! h = W' x + b'                            W', b' = the base's W, b, trained with the gradient M * g in the place of g
//! F: M = Bernoulli(p) / p for each number in each step
//! D: M = 1 for the p n numbers of the layers' n with the largest Fisher information, else 0; 1 outside of the layers
//! Paper: Xu et al., 2021, arXiv:2109.05687, section 2.   Reference: alibaba/AliceMind ChildTuning; modelscope `ChildTuningAdamW`
//! Oracle: code alibaba/AliceMind ChildTuning: `a_run_of_a_drawn_child_is_that_of_the_reference`, `a_run_of_a_chosen_child_is_that_of_the_reference`
//! Trains: every tensor of the base; with D, of the n numbers of the layers floor(p n).      Merges: yes, by overwriting.
//! Identities:
//! - the base at init, bit for bit: `C1`
//! - p = 1 is full fine-tuning, bit for bit: `everything_reserved_is_full_fine_tuning`
//! - F: each number of the gradient is g / p with probability p, else 0, so that its mean is g: `a_drawn_gradient_is_right_on_average`
//! - F: a step's mask is a function of seed and step: `masks_are_drawn_anew_in_each_step_and_alike_from_one_seed`, `a_run_taken_up_ends_with_the_same_bits`
//! - D: the Fisher information is the sum over batches of the squared gradient, that of each tensor clipped: `the_child_is_what_has_the_largest_squared_gradients`
//! - D: what is outside of the child keeps its bits, under weight decay too: `only_the_child_moves`
//! - D: put in once for a step it is the same as in each of its pieces: `computed_once_it_is_the_same`
//!
//! Differs from the paper: with D the update is masked, not only the gradient, so that weight decay does not reach what is outside of
//! the child, and gradients are clipped by the norm of what is trained. As in the code, F divides by p; D leaves what is outside of the
//! layers (the names with `layer`) unmasked, and squares the gradients of the run's batches, each tensor's scaled down to the run's
//! `max_grad_norm` first, where equation 6 of the paper has those of single examples. Unlike the code's these are without dropout, so that
//! the child is a function of model and data; the child has no more numbers where some are equal; the head is never masked, which F does
//! there.

use std::sync::Arc;

use burn::module::{Module, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use peft_core::random::{Noise, Random};
use peft_core::train::{Probe, largest};
use peft_core::view::{Visit, visit};
use peft_core::{
    Adapter, AnyTuner, Architecture, Base, Batch, Error, Hooks, Key, Merge, Method, Place, Procedure, Replaced, Result,
    Shape, Site, Slot, Weight,
};
use serde::{Deserialize, Serialize};

use crate::FullConfig;
use crate::full::copies;
use crate::masked_update::{Choice, MaskedUpdate, Moving, share, spread};

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
        if self.fisher_samples == Some(0) {
            return Err(Error::config("fisher_samples", 0, "1 or more"));
        }
        share("reserve_p", self.reserve_p, &layers(shape).0)
    }
}

/// What D masks, and the rest. The reference chooses by this word.
fn layers(shape: &Shape) -> (Vec<Place>, Vec<Place>) {
    // All of a burn module that is not of this library counts as its layers.
    let all = matches!(shape.architecture, Architecture::Plain(_));
    shape.places().into_iter().partition(|place| all || place.name.contains("layer"))
}

/// What of a base is trained.
#[derive(Module, Debug)]
pub struct ChildTuning {
    /// Every tensor; with D those outside of the layers.
    full: Replaced,
    /// The child network of D.
    update: Option<MaskedUpdate>,
    /// p of F.
    #[module(skip)]
    p: f64,
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
        let reserved = self.reserved(base.shape())?;
        let (layers, rest) = layers(base.shape());
        let (places, update) = match self.mode {
            ChildMode::TaskFree => (base.shape().places(), None),
            ChildMode::TaskDriven => {
                let choice: Arc<dyn Choice> = Arc::new(self.clone());
                (rest, Some(MaskedUpdate::new(base, &spread(&layers, reserved), Some(choice))))
            }
        };
        Ok(ChildTuning { full: copies(base, &places), update, p: self.reserve_p, key: seed })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        let (reserved, (_, rest)) = (self.reserved(shape)?, layers(shape));
        Ok(match self.mode {
            ChildMode::TaskFree => shape.count(),
            ChildMode::TaskDriven => reserved + rest.iter().map(Place::count).sum::<usize>(),
        })
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        match name.strip_prefix("full.") {
            Some(name) => FullConfig::default().key(name, shape),
            None => MaskedUpdate::key(name),
        }
    }

    fn loaded(&self, tuner: ChildTuning, base: &Base) -> Result<ChildTuning> {
        let update = tuner.update.map(|update| update.checked(base.shape())).transpose()?;
        Ok(ChildTuning { update, ..tuner })
    }

    fn merge(tuner: &ChildTuning) -> Option<&dyn Merge> {
        Some(tuner)
    }
}

impl Adapter for ChildTuning {
    fn open<R>(&self, _batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        match &self.update {
            Some(update) => f(&(update.hooks(), &self.full)),
            None => f(&self.full),
        }
    }

    fn view(&self, base: &Base, _noise: Option<&Noise>) -> Result<Option<AnyTuner>> {
        let view = |update: &MaskedUpdate| AnyTuner::new(Replaced::by(&(update.hooks(), &self.full), base));
        Ok(self.update.as_ref().map(view))
    }
}

impl Merge for ChildTuning {
    fn weight(&self, site: Site, w: &Weight) -> Option<Tensor<2>> {
        let child = self.update.as_ref().and_then(|update| update.weight(site, w));
        child.or_else(|| Merge::weight(&self.full, site, w))
    }

    fn vector(&self, site: Site, slot: Slot, v: &Tensor<1>) -> Option<Tensor<1>> {
        let child = self.update.as_ref().and_then(|update| update.vector(site, slot, v));
        child.or_else(|| Merge::vector(&self.full, site, slot, v))
    }
}

impl Choice for ChildTuningConfig {
    fn choose(&self, base: &Base, data: Probe<'_>) -> Result<Moving> {
        let examples = data.draw(self.fisher_samples.unwrap_or(usize::MAX));
        let (settings, layers) = (data.settings(), layers(base.shape()).0);
        let full = copies(base, &layers);
        let squared = |norm, gradient: f32| (settings.clip(norm) as f32 * gradient).powi(2);
        let scores = data.summed(&full, base, examples.chunks(settings.batch_size), squared)?;
        Ok(largest(&scores, self.reserved(base.shape())?))
    }
}

impl Procedure for ChildTuning {
    fn prepare(self, base: &Base, data: Probe<'_>) -> Result<Self> {
        let update = self.update.map(|update| update.prepare(base, data)).transpose()?;
        Ok(ChildTuning { update, ..self })
    }

    fn sample(self, random: &mut Random) -> Self {
        ChildTuning { key: random.bits(), ..self }
    }

    fn gradients(&mut self, gradients: GradientsParams, _step: usize) -> GradientsParams {
        if self.update.is_some() {
            return gradients;
        }
        let mut drop = Drop { p: self.p, key: self.key, gradients };
        visit(&self.full, &mut drop);
        drop.gradients
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
    use peft_core::testing::{a_view_is_as_by_hooks, fixtures::SHAPES};
    use peft_core::{Head, io::peft::from_settings};

    use super::*;
    use crate::testing::assert_files_hold;

    peft_core::conformance!(ChildTuningConfig::default());

    mod drawn {
        use super::*;
        peft_core::conformance!(ChildTuningConfig::new(ChildMode::TaskFree, 0.3));
    }

    #[test]
    fn computed_once_it_is_the_same() {
        a_view_is_as_by_hooks(&ChildTuningConfig::default());
    }

    #[test]
    fn counts_are_those_of_the_card() {
        let (shape, config) = (Shape::named("roberta-base").unwrap(), ChildTuningConfig::default());
        let head = Head::count(&shape, 2);
        assert_eq!(config.reserved(&shape).unwrap(), 25_516_339);
        assert_eq!(config.count(&shape).unwrap() + head, 65_109_045);
        let free = ChildTuningConfig::new(ChildMode::TaskFree, 0.3);
        assert_eq!(free.count(&shape).unwrap() + head, 124_647_170);
    }

    #[test]
    fn files_of_a_drawn_child_hold_the_whole_checkpoint() {
        assert_files_hold(&ChildTuningConfig::new(ChildMode::TaskFree, 0.3), &SHAPES, |_| true);
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
