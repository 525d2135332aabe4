//! # U-MAM and S-MAM                        family: hybrid / manual combination
//! w_hat = w m, m = 1 for the floor(k n) largest of the scores s = -w dL/dw, once all n numbers w of a MAM adapter have been trained, else 0
//! S-MAM: one m for each unit of the adapters' bottlenecks, for the floor(k n) of n units whose columns of Wd have the largest sums of s
//! Paper: Lawton et al., 2023, arXiv:2305.16597, section 3.   Reference: none, no code was published
//! Oracle: paper: `scores_are_first_order_changes_of_the_loss`
//! Trains: a MAM adapter's 2 L l d + L (2 d m + m + d) without a projection, of which floor(k n) numbers or units are left.      Merges: no, neither part does.
//! Identities:
//! - k = 1 is a MAM adapter: `with_all_numbers_it_is_mam`
//! - s is what the loss gains by leaving w out, to first order: `scores_are_first_order_changes_of_the_loss`
//! - floor(k n) numbers, or units, are left: `as_many_are_left_as_asked_for`
//! - a unit's score is the sum of its column's: `units_are_scored_by_their_columns`
//! - what a removed number is makes no difference, and it has no gradient: `what_is_removed_is_out`
//! - before a step has moved the adapters there is nothing to choose by: `an_untrained_adapter_is_refused`
//!
//! Differs from the paper: one round, in a run's second phase; what is left is trained on from where it is. The gradients of s are summed over training examples without dropout. Of S-MAM the prefix is whole, since the survey speaks of the columns of Wd only. The prefix has no projection.

use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};
use peft_core::train::{Phase, Probe, largest};
use peft_core::view::{Rewrite, shapes, tensors, view};
use peft_core::{
    Adapter, AnyTuner, Base, Batch, Error, Hooks, Key, Method, ModuleMap, Procedure, Result, Shape, random::Noise,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::mam::{Mam, MamConfig};

/// The configuration of U-MAM and S-MAM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrunedMamConfig {
    /// Number l of virtual tokens of the prefix.
    pub num_virtual_tokens: usize,
    /// Width m of the adapters' bottleneck.
    pub bottleneck: usize,
    /// The factor of the adapters.
    pub scaling: f64,
    /// Dropout probability of the adapters; the model's, if absent.
    pub dropout: Option<f64>,
    /// The share k that is left.
    pub density: f64,
    /// Whether whole units of the bottlenecks are left or removed: S-MAM.
    pub structured: bool,
    /// The share of the steps before numbers are removed.
    pub dense_steps: f64,
    /// On how many training examples the scores look.
    pub samples: usize,
}

impl Default for PrunedMamConfig {
    /// U-MAM, half of MAM's settings for GLUE.
    fn default() -> Self {
        PrunedMamConfig::new(16, 16, 0.5).with_scaling(2.0)
    }
}

impl PrunedMamConfig {
    /// U-MAM: this share of the numbers of so many virtual tokens and of adapters of this width.
    pub fn new(num_virtual_tokens: usize, bottleneck: usize, density: f64) -> Self {
        let MamConfig { scaling, dropout, .. } = MamConfig::new(num_virtual_tokens, bottleneck);
        let (structured, dense_steps, samples) = (false, 0.5, 1000);
        PrunedMamConfig { num_virtual_tokens, bottleneck, scaling, dropout, density, structured, dense_steps, samples }
    }

    /// With this factor of the adapters.
    pub fn with_scaling(mut self, scaling: f64) -> Self {
        self.scaling = scaling;
        self
    }

    /// With units of the bottlenecks that are left or removed as a whole, or with single numbers.
    pub fn with_structured(mut self, structured: bool) -> Self {
        self.structured = structured;
        self
    }

    /// The adapter that is pruned.
    pub fn mam(&self) -> MamConfig {
        let PrunedMamConfig { num_virtual_tokens, bottleneck, scaling, dropout, .. } = *self;
        MamConfig { scaling, dropout, prefix_projection: false, ..MamConfig::new(num_virtual_tokens, bottleneck) }
    }

    fn check(&self) -> Result<()> {
        if !(self.density > 0.0 && self.density <= 1.0) {
            return Err(Error::config("density", self.density, "a number above 0, at most 1"));
        }
        if !(self.dense_steps > 0.0 && self.dense_steps < 1.0) {
            return Err(Error::config("dense_steps", self.dense_steps, "a number above 0 and below 1"));
        }
        if self.samples == 0 {
            return Err(Error::config("samples", self.samples, "at least 1"));
        }
        Ok(())
    }
}

/// A MAM adapter, and which of its numbers are there.
#[derive(Module, Debug)]
pub struct PrunedMam {
    mam: Mam,
    /// 1 where a tensor has a number, else 0, by its name; of a vector one row. Not trained.
    masks: ModuleMap<String, Param<Tensor<2>>>,
    #[module(skip)]
    density: f64,
    #[module(skip)]
    structured: bool,
    #[module(skip)]
    dense_steps: f64,
    #[module(skip)]
    samples: usize,
}

impl Method for PrunedMamConfig {
    const NAME: &'static str = "pruned-mam";
    const PEFT_TYPE: &'static str = "PRUNED_MAM_ADAPTER";
    type Tuner = PrunedMam;

    fn init(&self, base: &Base, seed: u64) -> Result<PrunedMam> {
        self.check()?;
        let PrunedMamConfig { density, structured, dense_steps, samples, .. } = *self;
        let mam = self.mam().init(base, seed)?;
        let masked = shapes(&mam).into_iter().filter(|(name, _)| !structured || unit_axis(name).is_some());
        let whole = masked.map(|(name, dims)| (name, vec![true; dims.iter().product()])).collect();
        Ok(PrunedMam { masks: masks(&mam, &whole, base), mam, density, structured, dense_steps, samples })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        self.check()?;
        self.mam().count(shape)
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        match name.split_once('.') {
            Some(("masks", name)) => Key::plain(format!("{}.mask", self.mam().key(name, shape).name)),
            Some((_, name)) => self.mam().key(name, shape),
            None => unreachable!("every tensor is in a field"),
        }
    }

    fn is_mask(&self, name: &str) -> bool {
        name.starts_with("masks.")
    }

    fn derived(&self, shape: &Shape) -> Map<String, Value> {
        self.mam().derived(shape)
    }

    /// With zeros where nothing is left.
    fn to_saved(tuner: PrunedMam) -> PrunedMam {
        PrunedMam { mam: tuner.masked(), ..tuner }
    }
}

/// Which axis of a tensor of the adapters the units of the bottleneck are on, if they are on one.
fn unit_axis(name: &str) -> Option<usize> {
    match name.rsplit_once(".down.").map(|(_, leaf)| leaf) {
        Some("weight") => Some(1),
        Some(_) => Some(0),
        None => name.ends_with(".up.weight").then_some(0),
    }
}

/// Plain masks of the tensors that `kept` names.
fn masks(mam: &Mam, kept: &BTreeMap<String, Vec<bool>>, base: &Base) -> ModuleMap<String, Param<Tensor<2>>> {
    let mask = |(name, dims): (String, Vec<usize>)| {
        let kept = kept.get(&name)?;
        let (values, columns): (Vec<f32>, usize) =
            (kept.iter().map(|kept| f32::from(*kept)).collect(), dims[dims.len() - 1]);
        let dims = [values.len() / columns, columns];
        let mask = Tensor::<2>::from_data(TensorData::new(values, dims), base.device());
        Some((name, Param::from_tensor(mask).set_require_grad(false)))
    };
    shapes(mam).into_iter().filter_map(mask).collect()
}

impl PrunedMam {
    /// With zeros where nothing is left.
    pub fn masked(&self) -> Mam {
        struct Mask<'a>(&'a ModuleMap<String, Param<Tensor<2>>>);
        impl Rewrite for Mask<'_> {
            fn tensor<const D: usize>(&mut self, name: &str, tensor: Tensor<D>) -> Tensor<D> {
                let Some(mask) = self.0.named(name) else { return tensor };
                let dims = tensor.dims();
                tensor * mask.val().without_autodiff().reshape(dims)
            }
        }
        view(&self.mam, &mut Mask(&self.masks))
    }

    /// What the loss gains to first order by leaving out each number, by its tensor's name: summed over batches of training examples.
    pub fn scores(&self, base: &Base, data: Probe<'_>) -> Result<BTreeMap<String, Vec<f32>>> {
        let examples = data.draw(self.samples);
        let batches = examples.chunks(data.settings().batch_size);
        let gradients = data.summed(&self.mam, base, batches, |_, gradient| gradient)?;
        let score = |(name, data): (String, TensorData)| {
            let scores = data.iter::<f32>().zip(&gradients[&name]).map(|(w, g)| -w * g).collect();
            (name, scores)
        };
        Ok(tensors(&self.mam).into_iter().map(score).collect())
    }

    /// Which numbers of each tensor that has a mask are left.
    fn kept(&self, scores: BTreeMap<String, Vec<f32>>) -> Result<BTreeMap<String, Vec<bool>>> {
        let dims: BTreeMap<String, Vec<usize>> = shapes(&self.mam).into_iter().collect();
        let scores = match self.structured {
            false => scores,
            // Of each bottleneck the sums of the columns.
            true => {
                let columns = |(name, scores): (String, Vec<f32>)| {
                    let (adapter, units) = (name.strip_suffix(".down.weight")?, dims[&name][1]);
                    let sum = |unit: usize| scores.iter().skip(unit).step_by(units).sum();
                    Some((adapter.to_string(), (0..units).map(sum).collect()))
                };
                scores.into_iter().filter_map(columns).collect()
            }
        };
        if let Some((name, _)) = scores.iter().find(|(_, scores)| scores.iter().all(|score| *score == 0.0)) {
            let expected = "enough steps before that every part moves";
            return Err(Error::config("dense_steps", format!("scores of 0 for all of {name}"), expected));
        }
        let n: usize = scores.values().map(Vec::len).sum();
        let kept = largest(&scores, (self.density * n as f64).floor() as usize);
        if !self.structured {
            return Ok(kept);
        }
        let spread = |(name, dims): (&String, &Vec<usize>)| {
            let (axis, adapter) = (unit_axis(name)?, name.rsplitn(3, '.').last()?);
            let stride: usize = dims[axis + 1..].iter().product();
            let units = kept.get(adapter)?;
            let of = |i: usize| units[i / stride % dims[axis]];
            Some((name.clone(), (0..dims.iter().product()).map(of).collect()))
        };
        Ok(dims.iter().filter_map(spread).collect())
    }
}

impl Adapter for PrunedMam {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        self.masked().open(batch, f)
    }

    fn view(&self, _base: &Base, _noise: Option<&Noise>) -> Result<Option<AnyTuner>> {
        Ok(Some(AnyTuner::new(self.masked())))
    }
}

impl Procedure for PrunedMam {
    fn phases(&self, steps: usize) -> Vec<Phase> {
        let dense = (self.dense_steps * steps as f64).floor() as usize;
        let phase = |name, steps| Phase { name, steps, rate: 1.0 };
        vec![phase("dense", dense), phase("pruned", steps - dense)]
    }

    fn prepare(self, base: &Base, data: Probe<'_>) -> Result<Self> {
        if data.phase() == 0 || self.density == 1.0 {
            return Ok(self);
        }
        let kept = self.kept(self.scores(base, data)?)?;
        Ok(PrunedMam { masks: masks(&self.mam, &kept, base), ..self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    mod numbers {
        use super::*;
        peft_core::conformance!(
            PrunedMamConfig::new(5, 7, 0.5),
            skip(C1: "the prefix takes its share of every softmax", C3: "neither a prefix nor a sub-layer is a weight")
        );
    }

    mod units {
        use super::*;
        peft_core::conformance!(
            PrunedMamConfig::new(5, 7, 0.6).with_structured(true),
            skip(C1: "the prefix takes its share of every softmax", C3: "neither a prefix nor a sub-layer is a weight")
        );
    }

    #[test]
    fn counts_are_those_of_mam() {
        let shape = Shape::named("roberta-base").unwrap();
        let config = PrunedMamConfig::default();
        assert_eq!(config.mam(), MamConfig { prefix_projection: false, ..MamConfig::glue() });
        assert_eq!(config.count(&shape).unwrap(), 599_232);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let base = peft_core::testing::base("roberta-tiny", &peft_core::testing::device());
        let config = || PrunedMamConfig::new(5, 7, 0.5);
        for (config, word) in [
            (PrunedMamConfig::new(5, 7, 0.0), "density: 0 "),
            (PrunedMamConfig::new(5, 7, 1.5), "density: 1.5 "),
            (PrunedMamConfig { dense_steps: 1.0, ..config() }, "dense_steps: 1 "),
            (PrunedMamConfig { samples: 0, ..config() }, "samples: 0 "),
        ] {
            let message = config.init(&base, 0).unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
    }
}
