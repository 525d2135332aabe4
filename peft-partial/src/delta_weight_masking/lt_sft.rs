//! # LT-SFT                                 family: partial / delta weight masking
//! h = W' x + b'                            W', b' = the base's W, b, of whose n numbers the floor(p n) are trained that move furthest in a first phase
//! phase 1: all numbers are trained, from w to w1; the mask are the floor(p n) largest |w1 - w|
//! phase 2: all are w again, and those in the mask are trained
//! Paper: Ansell et al., 2022, arXiv:2110.07560, section 3.   Reference: cambridgeltl/composable-sft
//! Oracle: code cambridgeltl/composable-sft src/sft/lt_sft.py: `a_run_of_lt_sft_is_that_of_the_reference`
//! Trains: floor(p n) of the base's n numbers; in the first phase all.      Merges: yes, by overwriting.
//! Identities:
//! - the base at init, bit for bit: `C1`
//! - merged == unmerged, bit for bit: `C3`
//! - the first phase is full fine-tuning, and the mask what has moved furthest in it: `the_mask_is_what_has_moved_furthest`
//! - the second begins from the base again: `the_second_phase_begins_from_the_base`
//! - what is outside of the mask keeps its bits, under weight decay too: `what_is_not_masked_in_keeps_its_bits`
//! - a run that is stopped in either phase ends with the same bits: `a_masked_run_taken_up_ends_with_the_same_bits`, `C12`
//!
//! Differs from the paper: the head is not taken back to its start between the phases, which the code does. The run's steps are those of
//! both phases (`full_share`), in one order of the data. In one round, as the code's usual `n_ft_iterations`. Exactly floor(p n) numbers are left where some have
//! moved as far. The code's pull towards the base and its choices to leave normalizations or embeddings alone are not offered. Of two that are composed the
//! outer one's numbers count where both have some, where the paper adds both differences. The survey's W + M dL/dW has neither a sign
//! nor a step size.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::Tensor;
use peft_core::random::Noise;
use peft_core::train::{Phase, Probe, largest};
use peft_core::view::{tensors, with_values};
use peft_core::{
    Adapter, AnyTuner, Base, Batch, Error, Hooks, Key, Merge, Method, Procedure, Replaced, Result, Shape, Site, Slot,
    Weight,
};
use serde::{Deserialize, Serialize};

use crate::FullConfig;
use crate::masked_update::{MaskedUpdate, share, spread};

/// The configuration of LT-SFT.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LtSftConfig {
    /// The share of the numbers that are trained in the second phase, p, in the name of the reference's option.
    pub ft_params_proportion: f64,
    /// The share of the run's steps that the first phase has.
    pub full_share: f64,
}

impl Default for LtSftConfig {
    /// The reference's: one percent, and phases of the same length.
    fn default() -> Self {
        LtSftConfig { ft_params_proportion: 0.01, full_share: 0.5 }
    }
}

impl LtSftConfig {
    /// With this share of the numbers.
    pub fn new(ft_params_proportion: f64) -> Self {
        LtSftConfig { ft_params_proportion, ..Default::default() }
    }

    /// With this share of the steps in the first phase.
    pub fn with_full_share(mut self, full_share: f64) -> Self {
        self.full_share = full_share;
        self
    }
}

/// The numbers that are trained.
#[derive(Module, Debug)]
pub struct LtSft {
    update: MaskedUpdate,
    /// All of the base's, in the first phase.
    full: Option<Replaced>,
    #[module(skip)]
    config: LtSftConfig,
    /// Whether a file has chosen the numbers: a run has the second phase alone then.
    #[module(skip)]
    loaded: bool,
}

impl Method for LtSftConfig {
    const NAME: &'static str = "lt-sft";
    const PEFT_TYPE: &'static str = "LT_SFT";
    const ADDS: bool = false;
    type Tuner = LtSft;

    /// With numbers evenly spread over the base, until the first phase has chosen.
    fn init(&self, base: &Base, _seed: u64) -> Result<LtSft> {
        let start = spread(&base.shape().places(), self.count(base.shape())?);
        Ok(LtSft { update: MaskedUpdate::new(base, &start, None), full: None, config: self.clone(), loaded: false })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        if !(self.full_share > 0.0 && self.full_share < 1.0) {
            return Err(Error::config("full_share", self.full_share, "above 0 and below 1"));
        }
        share("ft_params_proportion", self.ft_params_proportion, &shape.places())
    }

    fn key(&self, name: &str, _shape: &Shape) -> Key {
        MaskedUpdate::key(name.trim_start_matches("update."))
    }

    fn loaded(&self, tuner: LtSft, base: &Base) -> Result<LtSft> {
        Ok(LtSft { update: tuner.update.checked(base.shape())?, loaded: true, ..tuner })
    }

    fn merge(tuner: &LtSft) -> Option<&dyn Merge> {
        Some(tuner)
    }
}

impl LtSft {
    fn in_phase(self, base: &Base, phase: usize) -> Result<Self> {
        let full = match self.loaded || phase > 0 {
            true => None,
            false => Some(FullConfig::default().init(base, 0)?),
        };
        Ok(LtSft { full, ..self })
    }
}

impl Adapter for LtSft {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        match &self.full {
            Some(full) => f(full),
            None => self.update.open(batch, f),
        }
    }

    fn view(&self, base: &Base, noise: Option<&Noise>) -> Result<Option<AnyTuner>> {
        match self.full {
            Some(_) => Ok(None),
            None => self.update.view(base, noise),
        }
    }
}

impl Merge for LtSft {
    fn weight(&self, site: Site, w: &Weight) -> Option<Tensor<2>> {
        match &self.full {
            Some(full) => Merge::weight(full, site, w),
            None => Merge::weight(&self.update, site, w),
        }
    }

    fn vector(&self, site: Site, slot: Slot, v: &Tensor<1>) -> Option<Tensor<1>> {
        match &self.full {
            Some(full) => Merge::vector(full, site, slot, v),
            None => Merge::vector(&self.update, site, slot, v),
        }
    }
}

impl Procedure for LtSft {
    fn phases(&self, steps: usize) -> Vec<Phase> {
        let phase = |name, steps| Phase { name, steps, rate: 1.0 };
        let full = (self.config.full_share * steps as f64).round() as usize;
        match self.loaded {
            true => vec![phase("sparse", steps)],
            false => vec![phase("full", full), phase("sparse", steps - full)],
        }
    }

    fn prepare(self, base: &Base, data: Probe<'_>) -> Result<Self> {
        let Some(full) = &self.full else { return self.in_phase(base, data.phase()) };
        let (before, after) = (tensors(&FullConfig::default().init(base, 0)?), tensors(full));
        let moved = after.iter().map(|(name, after)| {
            let pairs = after.iter::<f32>().zip(before[name].iter::<f32>());
            (name.clone(), pairs.map(|(after, before)| (after - before).abs()).collect())
        });
        let mask = largest(&moved.collect(), self.config.count(base.shape())?);
        let update = with_values(self.update.clone(), &tensors(&MaskedUpdate::new(base, &mask, None)))?;
        LtSft { update, ..self }.in_phase(base, data.phase())
    }

    fn resumed(self, base: &Base, phase: usize, _shapes: &BTreeMap<String, Vec<usize>>) -> Result<Self> {
        self.in_phase(base, phase)
    }
}

#[cfg(test)]
mod tests {
    use peft_core::io::peft::from_settings;

    use super::*;

    peft_core::conformance!(LtSftConfig::new(0.3));

    #[test]
    fn counts_are_those_of_the_card() {
        let shape = Shape::named("roberta-base").unwrap();
        assert_eq!(LtSftConfig::default().count(&shape).unwrap(), 1_240_550);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let shape = Shape::named("t5-tiny").unwrap();
        for (bad, words) in [
            (LtSftConfig::new(0.0), "ft_params_proportion: 0 "),
            (LtSftConfig::new(1e-9), "at least one of"),
            (LtSftConfig::default().with_full_share(0.0), "full_share: 0 "),
            (LtSftConfig::default().with_full_share(1.0), "full_share: 1 "),
        ] {
            let message = bad.count(&shape).unwrap_err().to_string();
            assert!(message.contains(words), "{words}: {message}");
        }
        let settings = from_settings::<LtSftConfig>(&["ft_params_proportion=0.1".into(), "full_share=0.25".into()]);
        assert_eq!(settings.unwrap(), LtSftConfig::new(0.1).with_full_share(0.25));
    }
}
