//! # SAM                                    family: partial / delta weight masking
//! h = W' x + b'                            W', b' = the base's W, b, of whose n numbers floor(p n) are trained: those with the largest gain
//! gain = max over d of -(g d + h d^2 / 2) = g^2 / (2 h), g = d L / d w on the training data, h one for all      hence those with the largest |g|
//! Paper: Fu et al., 2022, arXiv:2211.15583, section 4 (second-order approximation method).   Reference: fuzihaofzh/AnalyzeParameterEfficientFinetune
//! Oracle: code fuzihaofzh/AnalyzeParameterEfficientFinetune src/runner.py: `a_run_of_sam_is_that_of_the_reference`
//! Trains: floor(p n) of the base's n numbers, or of those of each tensor.      Merges: yes, by overwriting.
//! Identities:
//! - the base at init, bit for bit: `C1`
//! - merged == unmerged, bit for bit: `C3`
//! - the choice is the best of all of its size where the loss is quadratic: `the_choice_is_the_best_of_all_of_its_size`
//! - g is the sum of the gradients of batches, with its sign: `the_mask_is_what_has_the_largest_summed_gradients`
//! - floor(p n) numbers of all, or floor(p n) of each tensor: `the_scope_decides_where_the_budget_goes`
//! - p = 1 is full fine-tuning, bit for bit where gradients are not clipped: `all_numbers_are_full_fine_tuning`
//! - what is outside of the mask keeps its bits, under weight decay too: `what_is_not_masked_in_keeps_its_bits`
//! - files hold an index and a value for each: `files_hold_indices_and_values`
//!
//! Differs from the paper: nothing. The code sums gradients that are clipped first, with dropout, over the first 599 steps of the run, which move nothing; here
//! it is batches without dropout before the first step, and not clipped. The code's budget is that of each tensor (`scope`), of which those that are too small get
//! nothing; the paper's is that of the whole. The update is masked, not only the gradient, so that weight decay does not reach what is outside, and
//! gradients are clipped by the norm of what is trained. The code's other scores (sums of squares or sizes, estimates of h) are not offered. Equation 14 of the survey
//! has one gradient too many.

use std::sync::Arc;

use peft_core::train::{Probe, largest};
use peft_core::{Base, Error, Key, Merge, Method, Place, Result, Shape, slot_name};
use serde::{Deserialize, Serialize};

use crate::FullConfig;
use crate::masked_update::{Choice, MaskedUpdate, Moving, share, spread};

/// Of what a share is trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Of all numbers together.
    #[default]
    Global,
    /// Of those of each tensor.
    PerTensor,
}

/// The configuration of SAM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamConfig {
    /// The share of the numbers that are trained, p.
    pub keep_ratio: f64,
    /// Of what.
    pub scope: Scope,
    /// On how many batches of the run's size the gradient is taken; on all, if there are no more.
    pub burn_in: usize,
}

impl Default for SamConfig {
    /// Half a percent of all, by as many batches as the reference takes.
    fn default() -> Self {
        SamConfig { keep_ratio: 0.005, scope: Scope::Global, burn_in: 599 }
    }
}

impl SamConfig {
    /// With this share of the numbers trained.
    pub fn new(keep_ratio: f64) -> Self {
        SamConfig { keep_ratio, ..Default::default() }
    }

    /// With this share of each tensor, not of the whole.
    pub fn per_tensor(mut self) -> Self {
        self.scope = Scope::PerTensor;
        self
    }

    /// With the gradient taken on this many batches.
    pub fn with_burn_in(mut self, batches: usize) -> Self {
        self.burn_in = batches;
        self
    }

    /// The tensors among which each budget goes, and the budget.
    fn budgets(&self, shape: &Shape) -> Result<Vec<(Vec<Place>, usize)>> {
        if self.burn_in == 0 {
            return Err(Error::config("burn_in", 0, "1 or more"));
        }
        let places = shape.places();
        let whole = share("keep_ratio", self.keep_ratio, &places)?;
        let own = |place: Place| {
            let budget = (self.keep_ratio * place.count() as f64).floor() as usize;
            (vec![place], budget)
        };
        let budgets: Vec<_> = match self.scope {
            Scope::Global => vec![(places, whole)],
            Scope::PerTensor => places.into_iter().map(own).collect(),
        };
        match budgets.iter().any(|(_, budget)| *budget > 0) {
            true => Ok(budgets),
            false => Err(Error::config("keep_ratio", self.keep_ratio, "at least one number of a tensor")),
        }
    }

    /// Within each budget the numbers that `choose` finds.
    fn moving(&self, shape: &Shape, choose: impl Fn(&[Place], usize) -> Moving) -> Result<Moving> {
        Ok(self.budgets(shape)?.into_iter().flat_map(|(places, budget)| choose(&places, budget)).collect())
    }
}

impl Method for SamConfig {
    const NAME: &'static str = "sam";
    const PEFT_TYPE: &'static str = "SAM";
    const ADDS: bool = false;
    type Tuner = MaskedUpdate;

    fn init(&self, base: &Base, _seed: u64) -> Result<MaskedUpdate> {
        Ok(MaskedUpdate::new(base, &self.moving(base.shape(), spread)?, Some(Arc::new(self.clone()))))
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        Ok(self.budgets(shape)?.into_iter().map(|(_, budget)| budget).sum())
    }

    fn key(&self, name: &str, _shape: &Shape) -> Key {
        MaskedUpdate::key(name)
    }

    fn loaded(&self, tuner: MaskedUpdate, base: &Base) -> Result<MaskedUpdate> {
        tuner.checked(base.shape())
    }

    fn merge(tuner: &MaskedUpdate) -> Option<&dyn Merge> {
        Some(tuner)
    }
}

impl Choice for SamConfig {
    fn choose(&self, base: &Base, data: Probe<'_>) -> Result<Moving> {
        let (full, examples) = (FullConfig::default().init(base, 0)?, data.draw(usize::MAX));
        let batches = examples.chunks(data.settings().batch_size).take(self.burn_in);
        let mut sizes = data.summed(&full, base, batches, |_, gradient| gradient)?;
        sizes.values_mut().flatten().for_each(|sum| *sum = sum.abs());
        self.moving(base.shape(), |places, budget| {
            let own = places.iter().map(|place| slot_name(place.site, place.slot));
            largest(&own.filter_map(|name| Some((name.clone(), sizes.get(&name)?.clone()))).collect(), budget)
        })
    }
}

#[cfg(test)]
mod tests {
    use peft_core::io::peft::from_settings;

    use super::*;

    peft_core::conformance!(SamConfig::new(0.3));

    mod per_tensor {
        use super::*;
        peft_core::conformance!(SamConfig::new(0.3).per_tensor());
    }

    #[test]
    fn counts_are_those_of_the_card() {
        let shape = Shape::named("roberta-base").unwrap();
        assert_eq!(SamConfig::default().count(&shape).unwrap(), 620_275);
        assert_eq!(SamConfig::default().per_tensor().count(&shape).unwrap(), 620_159);
        assert_eq!(SamConfig::default(), SamConfig::new(0.005).with_burn_in(599));
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let shape = Shape::named("t5-tiny").unwrap();
        for (bad, words) in [
            (SamConfig::new(0.0), "keep_ratio: 0 "),
            (SamConfig::new(1.1).per_tensor(), "keep_ratio: 1.1 "),
            (SamConfig::new(1e-9), "at least one of"),
            (SamConfig::new(1e-4).per_tensor(), "of a tensor"),
            (SamConfig::default().with_burn_in(0), "burn_in: 0 "),
        ] {
            let message = bad.count(&shape).unwrap_err().to_string();
            assert!(message.contains(words), "{words}: {message}");
        }
        let settings = from_settings::<SamConfig>(&["scope=per_tensor".into(), "burn_in=7".into()]);
        assert_eq!(settings.unwrap(), SamConfig::default().per_tensor().with_burn_in(7));
        let message = from_settings::<SamConfig>(&["scope=layer".into()]).unwrap_err().to_string();
        assert!(message.contains("scope") && message.contains("global"), "{message}");
    }
}
