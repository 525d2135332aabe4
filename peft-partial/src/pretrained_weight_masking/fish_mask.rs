//! # FISH Mask                              family: partial / pretrained weight masking
//! h = W' x + b'                            W', b' = the base's W, b, of whose n numbers the floor(k n) with the largest F are trained
//! F = sum over N samples of (d log p(y | x) / d w)^2       y: the sample's label, or one that is drawn from p
//! Paper: Sung et al., 2021, arXiv:2111.09839, section 3.   Reference: varunnair18/FISH
//! Oracle: code varunnair18/FISH transformers/examples/text-classification/generate_masks.py: `a_run_of_fish_mask_is_that_of_the_reference`
//! Trains: floor(k n) of the base's n numbers.      Merges: yes, by overwriting.
//! Identities:
//! - the base at init, bit for bit: `C1`
//! - merged == unmerged, bit for bit: `C3`, `merging_writes_the_trained_numbers_and_nothing_else`
//! - k = 1 is full fine-tuning, bit for bit where gradients are not clipped: `all_numbers_are_full_fine_tuning`
//! - F is the sum over samples of the squared gradient, each sample alone: `the_mask_is_what_has_the_largest_fisher_information`
//! - drawn labels have the model's probabilities, so that the mean of F is the expectation: `drawn_labels_are_right_on_average`, `a_mask_by_drawn_labels_is_that_of_the_drawn_labels`
//! - what is outside of the mask keeps its bits, under weight decay too: `what_is_not_masked_in_keeps_its_bits`
//! - the optimizer has two numbers for each that is trained, no more: `optimizers_have_states_of_what_is_trained`
//! - files hold an index and a value for each: `files_hold_indices_and_values`
//!
//! Differs from the paper: k is the share of the backbone; the authors' code takes the head's size off the budget, which on RoBERTa-base
//! leaves 31,105 numbers of half a percent. Drawn labels are one for each sample, where the code sums over all classes; words can be
//! drawn too. Without dropout, which the code has on. Samples are drawn by the run's seed, where the code takes the first. The update is masked, not only
//! the gradient, so that weight decay does not reach what is outside. The code's scores by size (`absolute`, its usual ones) and random
//! masks are not offered. The survey's formula for it, M * W, would set all other weights to 0.

use std::sync::Arc;

use peft_core::train::{Probe, largest};
use peft_core::{Base, Error, Key, Merge, Method, Result, Shape};
use serde::{Deserialize, Serialize};

use crate::FullConfig;
use crate::masked_update::{Choice, MaskedUpdate, Moving, share, spread};

/// The labels with which the Fisher information is estimated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FisherLabels {
    /// Those of the data: the empirical Fisher information.
    #[default]
    Label,
    /// Drawn from the model's predictions.
    Drawn,
}

/// The configuration of FISH Mask, in the names of the reference's options.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FishMaskConfig {
    /// The share of the numbers that are trained, k.
    pub keep_ratio: f64,
    /// On how many training examples the Fisher information is estimated, N.
    pub num_samples: usize,
    /// With which labels.
    pub sample_type: FisherLabels,
}

impl Default for FishMaskConfig {
    /// The paper's: half a percent, by the labels of 1,024 samples.
    fn default() -> Self {
        FishMaskConfig { keep_ratio: 0.005, num_samples: 1024, sample_type: FisherLabels::Label }
    }
}

impl FishMaskConfig {
    /// With this share of the numbers trained.
    pub fn new(keep_ratio: f64) -> Self {
        FishMaskConfig { keep_ratio, ..Default::default() }
    }

    /// With the Fisher information estimated on this many training examples.
    pub fn with_num_samples(mut self, samples: usize) -> Self {
        self.num_samples = samples;
        self
    }

    /// With labels that are drawn from the model's predictions.
    pub fn with_drawn_labels(mut self) -> Self {
        self.sample_type = FisherLabels::Drawn;
        self
    }
}

impl Method for FishMaskConfig {
    const NAME: &'static str = "fish-mask";
    const PEFT_TYPE: &'static str = "FISH_MASK";
    const ADDS: bool = false;
    type Tuner = MaskedUpdate;

    fn init(&self, base: &Base, _seed: u64) -> Result<MaskedUpdate> {
        let start = spread(&base.shape().places(), self.count(base.shape())?);
        Ok(MaskedUpdate::new(base, &start, Some(Arc::new(self.clone()))))
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        if self.num_samples == 0 {
            return Err(Error::config("num_samples", 0, "1 or more"));
        }
        share("keep_ratio", self.keep_ratio, &shape.places())
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

impl Choice for FishMaskConfig {
    fn choose(&self, base: &Base, data: Probe<'_>) -> Result<Moving> {
        let (full, samples) = (FullConfig::default().init(base, 0)?, data.draw(self.num_samples));
        let fisher = match self.sample_type {
            FisherLabels::Label => data.fisher(&full, base, &samples)?,
            FisherLabels::Drawn => {
                let drawn = data.labelled_by_model(&full, base, &samples)?;
                data.with_examples(&drawn).fisher(&full, base, &(0..drawn.len()).collect::<Vec<_>>())?
            }
        };
        Ok(largest(&fisher, self.count(base.shape())?))
    }
}

#[cfg(test)]
mod tests {
    use peft_core::io::peft::from_settings;
    use peft_core::testing::a_view_is_as_by_hooks;

    use super::*;

    peft_core::conformance!(FishMaskConfig::new(0.3));

    #[test]
    fn computed_once_it_is_the_same() {
        a_view_is_as_by_hooks(&FishMaskConfig::new(0.3));
    }

    #[test]
    fn counts_are_those_of_the_card() {
        let shape = Shape::named("roberta-base").unwrap();
        assert_eq!(FishMaskConfig::default().count(&shape).unwrap(), 620_275);
        assert_eq!(FishMaskConfig::new(1.0).count(&shape).unwrap(), shape.count());
        assert_eq!(FishMaskConfig::default(), FishMaskConfig::new(0.005).with_num_samples(1024));
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let shape = Shape::named("t5-tiny").unwrap();
        for (bad, words) in [
            (FishMaskConfig::new(0.0), "keep_ratio: 0 "),
            (FishMaskConfig::new(1.1), "keep_ratio: 1.1 "),
            (FishMaskConfig::new(f64::NAN), "keep_ratio: NaN "),
            (FishMaskConfig::new(1e-9), "at least one of"),
            (FishMaskConfig::default().with_num_samples(0), "num_samples: 0 "),
        ] {
            let message = bad.count(&shape).unwrap_err().to_string();
            assert!(message.contains(words), "{words}: {message}");
        }
        let settings = from_settings::<FishMaskConfig>(&["sample_type=drawn".into(), "keep_ratio=0.1".into()]);
        assert_eq!(settings.unwrap(), FishMaskConfig::new(0.1).with_drawn_labels());
        let message = from_settings::<FishMaskConfig>(&["sample_type=expect".into()]).unwrap_err().to_string();
        assert!(message.contains("sample_type") && message.contains("drawn"), "{message}");
    }
}
