//! # Diff pruning                           family: partial / delta weight masking
//! W' = W + z * z_g * w                     w: a difference for each number of the base, = 0; z as large, z_g one for each tensor
//! z = min(1, max(0, s (r - l) + l)), s = sigmoid(logit(u) + alpha), u ~ U(0, 1), from 1e-4 to 1 - 1e-4       alpha = 5, l = -1.5, r = 1.5
//! loss + lambda sum sigmoid(alpha - ln(-l / r)), over the gates z and z_g
//! Paper: Guo et al., 2020, arXiv:2012.07463, section 3.   Reference: dguo98/DiffPruning
//! Oracle: code dguo98/DiffPruning: `a_run_is_that_of_the_reference`
//! Trains: two numbers for each of the base's, and one per tensor if structured; floor(t n) differences are left.      Merges: yes.
//! Identities:
//! - the base at init, bit for bit: `C1`
//! - merged == unmerged: `C3`
//! - z is in [0, 1], 0 with probability sigmoid(ln(-l / r) - alpha), 1 with sigmoid(alpha - ln((1 - l) / (r - 1))): `gates_are_hard_concrete`
//! - with G the gradient of W', that of w is G z z_g, that of alpha G w z_g dz/dalpha, that of alpha_g sum G w z dz_g/dalpha_g: `gradients_of_differences_and_gates_are_tied`
//! - all gates of the tensors open is unstructured, one closed leaves its tensor to the base: `gates_of_tensors_open_and_close_them`
//! - the penalty is its formula, in value and gradient: `the_penalty_is_the_expected_number_of_open_gates`
//! - one draw for all of a step's batch: `all_pieces_of_a_batch_see_the_same_gates`
//! - computed once for a step it is the same as in each of its pieces: `computed_once_it_is_the_same`
//! - at the end the floor(t n) largest differences are left, as they were: `the_largest_differences_are_left`
//! - trained on, those that are 0 keep their bits, under weight decay too: `what_was_pruned_stays_pruned`
//!
//! Differs from the paper: the penalty of a number's gate and that of its tensor's are added, as in the code, from which the gates'
//! learning rate is too: the same in all steps, without weight decay. Without noise (in evaluation, and for pruning) u is 1/2; the code's
//! is that of the last step. Gradients are clipped together; the code clips those of gates and differences each apart. The head is trained
//! by the run's settings. Fine-tuning what is left is another run that starts from the result. Gates per layer are not offered. Files hold
//! all differences, those of 0 too.

use burn::module::{Module, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData, activation::sigmoid};
use peft_core::random::{Noise, Random};
use peft_core::train::{Probe, largest};
use peft_core::view::{Rewrite, Visit, tensors, view, visit, with_values};
use peft_core::{
    Adapter, AnyTuner, Base, Batch, Error, Hooks, Key, Merge, Method, Procedure, Replaced, Result, Shape, Site, Slot,
    Weight, slot_name,
};
use serde::{Deserialize, Serialize};

use crate::FullConfig;
use crate::masking::{mask_gradients, train_only};

/// The configuration of diff pruning, in the names of the reference's options.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiffPruningConfig {
    /// What a gate that is open costs, lambda.
    pub sparsity_pen: f64,
    /// The lower end of the stretched gates, l.
    pub concrete_lower: f64,
    /// Their upper end, r.
    pub concrete_upper: f64,
    /// What alpha starts from.
    pub alpha_init: f64,
    /// The learning rate of alpha, the same in all steps.
    pub alpha_learning_rate: f64,
    /// Whether each tensor has a gate too (structured).
    pub per_params_alpha: bool,
    /// The share of the differences that is left, t.
    pub target_sparsity: f64,
}

impl Default for DiffPruningConfig {
    /// The reference's: structured, half a percent.
    fn default() -> Self {
        DiffPruningConfig {
            sparsity_pen: 1.25e-7,
            concrete_lower: -1.5,
            concrete_upper: 1.5,
            alpha_init: 5.0,
            alpha_learning_rate: 0.1,
            per_params_alpha: true,
            target_sparsity: 0.005,
        }
    }
}

impl DiffPruningConfig {
    /// With this share of the differences left.
    pub fn new(target_sparsity: f64) -> Self {
        DiffPruningConfig { target_sparsity, ..Default::default() }
    }

    /// With gates for single numbers only.
    pub fn unstructured(mut self) -> Self {
        self.per_params_alpha = false;
        self
    }

    /// With this start of alpha.
    pub fn with_alpha_init(mut self, alpha: f64) -> Self {
        self.alpha_init = alpha;
        self
    }

    /// How many differences are left at the end.
    pub fn left(&self, shape: &Shape) -> Result<usize> {
        let whole = shape.count();
        let left = (self.target_sparsity * whole as f64).floor() as usize;
        for (key, value, possible, allowed) in [
            ("sparsity_pen", self.sparsity_pen, self.sparsity_pen > 0.0, "above 0"),
            ("concrete_lower", self.concrete_lower, self.concrete_lower < 0.0, "below 0"),
            ("concrete_upper", self.concrete_upper, self.concrete_upper > 1.0, "above 1"),
            ("alpha_init", self.alpha_init, true, ""),
            ("alpha_learning_rate", self.alpha_learning_rate, self.alpha_learning_rate > 0.0, "above 0"),
        ] {
            if !possible || !value.is_finite() {
                return Err(Error::config(key, value, format!("a finite number {allowed}").trim_end()));
            }
        }
        if left == 0 || self.target_sparsity > 1.0 {
            let allowed = format!("above 0 and at most 1, and at least one of {whole} differences");
            return Err(Error::config("target_sparsity", self.target_sparsity, allowed));
        }
        Ok(left)
    }

    /// One number in the shape of each tensor of a base, which takes memory when it is changed.
    fn constant(base: &Base, value: f64) -> Replaced {
        let device = base.device().clone().autodiff();
        Replaced::new(
            &base.shape().places(),
            |place| Tensor::<2>::full([1, 1], value, &device).expand([place.dims[0], place.dims[1]]),
            |place| Tensor::<1>::full([1], value, &device).expand([place.dims[0]]),
        )
    }

    /// Differences of 0 that nothing gates.
    fn pruned(&self, base: &Base) -> DiffPruning {
        let differences = DiffPruningConfig::constant(base, 0.0);
        DiffPruning { differences, gates: None, groups: None, config: self.clone() }
    }
}

/// A difference for each number of a base, and while they are pruned their gates.
#[derive(Module, Debug)]
pub struct DiffPruning {
    /// w, or z z_g w when they have been pruned.
    differences: Replaced,
    /// alpha, one for each difference.
    gates: Option<Replaced>,
    /// alpha of each tensor, `[1, 1]` or `[1]`.
    groups: Option<Replaced>,
    #[module(skip)]
    config: DiffPruningConfig,
}

impl Method for DiffPruningConfig {
    const NAME: &'static str = "diff-pruning";
    const PEFT_TYPE: &'static str = "DIFF_PRUNING";
    type Tuner = DiffPruning;

    fn init(&self, base: &Base, _seed: u64) -> Result<DiffPruning> {
        self.left(base.shape())?;
        let (device, alpha) = (base.device().clone().autodiff(), self.alpha_init);
        let groups = self.per_params_alpha.then(|| {
            let places = base.shape().places();
            Replaced::new(&places, |_| Tensor::full([1, 1], alpha, &device), |_| Tensor::full([1], alpha, &device))
        });
        Ok(DiffPruning { gates: Some(DiffPruningConfig::constant(base, alpha)), groups, ..self.pruned(base) })
    }

    /// While it is trained.
    fn count(&self, shape: &Shape) -> Result<usize> {
        self.left(shape)?;
        Ok(2 * shape.count() + if self.per_params_alpha { shape.places().len() } else { 0 })
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        let Key { name, transposed } = FullConfig::default().key(name.trim_start_matches("differences."), shape);
        Key { name: format!("{name}.difference"), transposed }
    }

    /// The differences as their gates leave them.
    fn to_saved(tuner: DiffPruning) -> DiffPruning {
        DiffPruning { differences: tuner.gated(), gates: None, groups: None, ..tuner }
    }

    fn for_loading(&self, base: &Base) -> Result<DiffPruning> {
        Ok(self.pruned(base))
    }

    fn merge(tuner: &DiffPruning) -> Option<&dyn Merge> {
        Some(tuner)
    }
}

impl DiffPruning {
    /// z for some alpha; without noise that of u = 1/2.
    fn gate<const D: usize>(&self, alpha: Tensor<D>, noise: Option<&Noise>, name: &str) -> Tensor<D> {
        let logits = match noise {
            Some(Noise { seed, step, .. }) => {
                let random = Random::new(*seed, &format!("step {step}: {name}"));
                let u = random.uniform_tensor(alpha.dims(), 0.0, 1.0, &alpha.device().inner()).clamp(1e-4, 1.0 - 1e-4);
                alpha + (u.clone().log() - (-u + 1.0).log())
            }
            None => alpha,
        };
        let (lower, upper) = (self.config.concrete_lower, self.config.concrete_upper);
        (sigmoid(logits) * (upper - lower) + lower).clamp(0.0, 1.0)
    }

    /// z z_g w of one tensor.
    fn difference<const D: usize>(&self, name: &str, noise: Option<&Noise>) -> Option<Tensor<D>> {
        let gates = [("gates", &self.gates), ("groups", &self.groups)];
        let gates = gates.into_iter().filter_map(|(kind, gates)| Some((kind, gates.as_ref()?.get::<D>(name)?)));
        let gated = |w, (kind, alpha)| w * self.gate(alpha, noise, &format!("{kind}.{name}"));
        Some(gates.fold(self.differences.get::<D>(name)?, gated))
    }

    /// z z_g w of all, without noise.
    fn gated(&self) -> Replaced {
        struct Gated<'a>(&'a DiffPruning);
        impl Rewrite for Gated<'_> {
            fn tensor<const D: usize>(&mut self, name: &str, w: Tensor<D>) -> Tensor<D> {
                self.0.difference(name, None).unwrap_or(w)
            }
        }
        view(&self.differences, &mut Gated(self))
    }
}

/// Diff pruning during one run: with the gates of its step.
struct Opened<'a> {
    pruning: &'a DiffPruning,
    noise: Option<&'a Noise>,
}

impl Hooks for Opened<'_> {
    fn weight(&self, site: Site, w: Weight) -> Weight {
        match self.pruning.difference(&slot_name(site, Slot::Weight), self.noise) {
            Some(difference) => Weight::Dense(w.dense() + difference),
            None => w,
        }
    }

    fn vector(&self, site: Site, slot: Slot, v: Tensor<1>) -> Tensor<1> {
        match self.pruning.difference(&slot_name(site, slot), self.noise) {
            Some(difference) => v + difference,
            None => v,
        }
    }
}

impl Adapter for DiffPruning {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        f(&Opened { pruning: self, noise: batch.noise.as_deref() })
    }

    fn view(&self, base: &Base, noise: Option<&Noise>) -> Result<Option<AnyTuner>> {
        let opened = Opened { pruning: self, noise };
        Ok(Some(AnyTuner::new(Replaced::by(&opened, base))))
    }
}

impl Merge for DiffPruning {
    fn weight(&self, site: Site, w: &Weight) -> Option<Tensor<2>> {
        Some(w.dense() + self.difference(&slot_name(site, Slot::Weight), None)?)
    }

    fn vector(&self, site: Site, slot: Slot, v: &Tensor<1>) -> Option<Tensor<1>> {
        Some(v.clone() + self.difference(&slot_name(site, slot), None)?)
    }
}

impl Procedure for DiffPruning {
    /// What has been pruned is trained on where something is left.
    fn prepare(self, _base: &Base, _data: Probe<'_>) -> Result<Self> {
        if self.gates.is_some() {
            return Ok(self);
        }
        let values = tensors(&self.differences);
        let differences = train_only(&self.differences, |name| values[name].iter::<f32>().any(|w| w != 0.0));
        Ok(DiffPruning { differences, ..self })
    }

    /// The expected number of open gates, times lambda.
    fn penalty(&self) -> Option<Tensor<1>> {
        struct Open(f64, Option<Tensor<1>>);
        impl Visit for Open {
            fn tensor<const D: usize>(&mut self, _: &str, _: ParamId, alpha: Tensor<D>) {
                let open = sigmoid(alpha - self.0).sum();
                self.1 = Some(self.1.take().map_or(open.clone(), |sum| sum + open));
            }
        }
        let mut open = Open((-self.config.concrete_lower / self.config.concrete_upper).ln(), None);
        visit(&(self.gates.clone(), self.groups.clone()), &mut open);
        open.1.map(|sum| sum * self.config.sparsity_pen)
    }

    fn rate(&self, name: &str, rate: f64) -> f64 {
        if name.starts_with("differences.") { rate } else { self.config.alpha_learning_rate }
    }

    fn decays(&self, name: &str) -> bool {
        name.starts_with("differences.")
    }

    /// What has been pruned is 0 and has no gradient, so that weight decay does not move it either.
    fn gradients(&mut self, gradients: GradientsParams, _step: usize) -> GradientsParams {
        match self.gates {
            Some(_) => gradients,
            None => mask_gradients(&self.differences, &self.differences, gradients),
        }
    }

    /// Leaves the largest differences of all, by magnitude, and no gates.
    fn finish(self, base: &Base) -> Result<Self> {
        let mut values = tensors(&self.gated());
        let sizes = values.iter().map(|(name, w)| (name.clone(), w.iter::<f32>().map(f32::abs).collect())).collect();
        for (name, kept) in largest(&sizes, self.config.left(base.shape())?) {
            let w = &values[&name];
            let left = w.iter::<f32>().zip(kept).map(|(w, kept)| if kept { w } else { 0.0 }).collect::<Vec<_>>();
            values.insert(name, TensorData::new(left, w.shape().clone()));
        }
        let differences = with_values(self.differences, &values)?;
        Ok(DiffPruning { differences, gates: None, groups: None, ..self })
    }
}

#[cfg(test)]
mod tests {
    use peft_core::place_key;
    use peft_core::testing::{a_view_is_as_by_hooks, base, device, fixtures::SHAPES};

    use super::*;

    // At 0.8 a gate without noise is between its ends.
    peft_core::conformance!(DiffPruningConfig::new(0.01).with_alpha_init(0.8));

    mod unstructured {
        use super::*;
        peft_core::conformance!(DiffPruningConfig::new(0.01).with_alpha_init(0.8).unstructured());
    }

    mod as_it_starts {
        use super::*;
        peft_core::conformance!(
            DiffPruningConfig::default(),
            skip(C5: "gates start open: without noise only the penalty moves them")
        );
    }

    #[test]
    fn computed_once_it_is_the_same() {
        a_view_is_as_by_hooks(&DiffPruningConfig::new(0.01).with_alpha_init(0.8));
    }

    #[test]
    fn files_call_a_difference_by_its_tensor() {
        for shape in SHAPES.map(|name| Shape::named(name).unwrap()) {
            for place in shape.places() {
                let key = DiffPruningConfig::default()
                    .key(&format!("differences.{}", slot_name(place.site, place.slot)), &shape);
                let tensor = place_key(&shape, &place);
                assert_eq!((key.name, key.transposed), (tensor.name + ".difference", tensor.transposed));
            }
        }
    }

    #[test]
    fn counts_are_those_of_the_card() {
        let (shape, config) = (Shape::named("roberta-base").unwrap(), DiffPruningConfig::default());
        assert_eq!(config.count(&shape).unwrap(), 248_110_277);
        assert_eq!(config.clone().unstructured().count(&shape).unwrap(), 248_110_080);
        assert_eq!(config.left(&shape).unwrap(), 620_275);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let base = base("t5-tiny", &device());
        let shape = base.shape();
        let good = DiffPruningConfig::default();
        for (bad, key) in [
            (DiffPruningConfig { sparsity_pen: 0.0, ..good.clone() }, "sparsity_pen"),
            (DiffPruningConfig { sparsity_pen: f64::INFINITY, ..good.clone() }, "sparsity_pen"),
            (DiffPruningConfig { concrete_lower: 0.0, ..good.clone() }, "concrete_lower"),
            (DiffPruningConfig { concrete_upper: 1.0, ..good.clone() }, "concrete_upper"),
            (DiffPruningConfig { alpha_init: f64::NAN, ..good.clone() }, "alpha_init"),
            (DiffPruningConfig { alpha_learning_rate: -1.0, ..good.clone() }, "alpha_learning_rate"),
            (DiffPruningConfig::new(0.0), "target_sparsity"),
            (DiffPruningConfig::new(1.5), "target_sparsity"),
            (DiffPruningConfig::new(1e-9), "at least one of"),
        ] {
            for message in [bad.count(shape).unwrap_err(), bad.init(&base, 0).unwrap_err()].map(|e| e.to_string()) {
                assert!(message.contains(key), "{key}: {message}");
            }
        }
        assert_eq!(DiffPruningConfig::new(1.0).left(shape).unwrap(), shape.count());
    }
}
