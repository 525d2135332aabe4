//! # Threshold-Mask                         family: partial / pretrained weight masking
//! h = (W * M) x + b                        M = 1 where S > tau, else 0       S: scores of the shape of W, trained; W and b are not
//! d L / d S = W * d L / d (W * M)          straight through the threshold
//! S ~ U(-c, (c + tau) / p - c)             so that a share p of M starts as 0       c = 0.02, tau = 0.01, p = 0.05
//! Paper: Zhao et al., 2020, arXiv:2004.12406, section 3.   Reference: ptlmasking/maskbert
//! Oracle: code ptlmasking/maskbert code/masking/maskers.py: `a_run_of_threshold_mask_is_that_of_the_reference`
//! Trains: a score for each number of the chosen matrices; files hold a bit for each.      Merges: yes.
//! Identities:
//! - merged == unmerged, bit for bit: `C3`, `merging_masks_the_chosen_matrices_and_nothing_else`
//! - scores all above tau are the base, bit for bit: `masks_of_ones_are_the_base`
//! - a score equal to tau is masked out: `a_score_at_the_threshold_is_masked_out`
//! - the gradient of S is W times that of the masked matrix: `scores_get_the_gradient_of_the_masked_matrix`
//! - a share p of the masks starts as 0: `masks_start_with_the_share_of_zeros`
//! - c and tau scaled alike start with the same masks: `only_scores_in_units_of_the_threshold_matter`
//! - no weight moves, masks change where scores cross tau: `only_masks_change`
//! - files hold a bit for each score, and loaded masks stay: `files_hold_a_bit_for_each_score`
//!
//! Differs from the paper: the head is trained, not masked. Embeddings, and the biases that the code can mask too, are left alone. Masks of whole layers or
//! heads, masks that start by magnitude, a schedule of the share of zeros and the code's other two ways to binarize are not offered. As in the code weight decay
//! does not act on scores, the pooler of BERT is masked, and the lowest layers are if nothing is said; the paper leaves two alone
//! (`target_modules` as an expression does). Without a schedule the code starts with half of the numbers; here it is the paper's 5 %.
//! The survey does not say that S is trained. Files hold masks, not scores: trained on, loaded masks stay.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::random::{Noise, Random};
use peft_core::view::{Rewrite, view};
use peft_core::{
    Adapter, AnyTuner, Base, Batch, Error, Hooks, Key, Merge, Method, Procedure, Replaced, Result, Shape, Site,
    SiteMap, Sites, Weight, file_path, split_name,
};
use serde::{Deserialize, Serialize};

/// The threshold of what is 0 or 1.
const HALF: f64 = 0.5;

/// The configuration of Threshold-Mask, in the names of the reference's options.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ThresholdMaskConfig {
    /// The linear maps whose weights are masked.
    pub target_modules: Sites,
    /// What a score is to be above for its number to be there, tau.
    pub threshold: f64,
    /// How far below 0 scores start, c.
    pub init_scale: f64,
    /// The share of the numbers that are masked out at the start, p.
    pub init_sparsity: f64,
    /// By which factor the scores' learning rate is higher than that of the head.
    pub mask_rate: f64,
}

impl Default for ThresholdMaskConfig {
    /// Every linear map, the reference's scores, and the paper's share of zeros.
    fn default() -> Self {
        ThresholdMaskConfig {
            target_modules: Sites::Pattern("all-linear".into()),
            threshold: 1e-2,
            init_scale: 2e-2,
            init_sparsity: 0.05,
            mask_rate: 1.0,
        }
    }
}

impl ThresholdMaskConfig {
    /// With this share of zeros at the start.
    pub fn new(init_sparsity: f64) -> Self {
        ThresholdMaskConfig { init_sparsity, ..Default::default() }
    }

    /// On these linear maps.
    pub fn with_sites(mut self, sites: impl Into<Sites>) -> Self {
        self.target_modules = sites.into();
        self
    }

    /// With this threshold, and scores that start no further below 0 than `init_scale`.
    pub fn with_threshold(mut self, threshold: f64, init_scale: f64) -> Self {
        (self.threshold, self.init_scale) = (threshold, init_scale);
        self
    }

    /// With scores that learn faster than the head by this factor.
    pub fn with_mask_rate(mut self, mask_rate: f64) -> Self {
        self.mask_rate = mask_rate;
        self
    }

    fn plan(&self, shape: &Shape) -> Result<Vec<Site>> {
        for (key, value, possible, allowed) in [
            ("threshold", self.threshold, true, "a finite number"),
            ("init_scale", self.init_scale, self.init_scale > -self.threshold, "a finite number above -threshold"),
            (
                "init_sparsity",
                self.init_sparsity,
                0.0 < self.init_sparsity && self.init_sparsity <= 1.0,
                "above 0 and at most 1",
            ),
            ("mask_rate", self.mask_rate, self.mask_rate > 0.0, "a finite number above 0"),
        ] {
            if !possible || !value.is_finite() {
                return Err(Error::config(key, value, allowed));
            }
        }
        self.target_modules.resolve(shape)
    }

    fn scores(&self, base: &Base, of: impl Fn(Site, [usize; 2]) -> Tensor<2>) -> Result<ThresholdMask> {
        let scores = |site: Site| (site, Param::from_tensor(of(site, base.shape().linear_dims(site))));
        let scores = self.plan(base.shape())?.into_iter().map(scores).collect();
        Ok(ThresholdMask { scores, threshold: self.threshold, rate: self.mask_rate })
    }
}

/// Scores of the numbers of some matrices of a base.
#[derive(Module, Debug)]
pub struct ThresholdMask {
    /// `[in, out]` each.
    scores: SiteMap<Param<Tensor<2>>>,
    #[module(skip)]
    threshold: f64,
    #[module(skip)]
    rate: f64,
}

impl Method for ThresholdMaskConfig {
    const NAME: &'static str = "threshold-mask";
    const PEFT_TYPE: &'static str = "THRESHOLD_MASK";
    type Tuner = ThresholdMask;

    fn init(&self, base: &Base, seed: u64) -> Result<ThresholdMask> {
        let (low, device) = (-self.init_scale, base.device().clone().autodiff());
        let high = (self.init_scale + self.threshold) / self.init_sparsity - self.init_scale;
        self.scores(base, |site, dims| {
            Random::new(seed, &format!("threshold-mask.{site}")).uniform_tensor(dims, low, high, &device)
        })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        Ok(self.plan(shape)?.into_iter().map(|site| shape.linear_dims(site).iter().product::<usize>()).sum())
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        Key::plain(format!("{}.mask", file_path(shape, split_name(name).1)))
    }

    fn is_mask(&self, _name: &str) -> bool {
        true
    }

    fn for_files(&self, shape: &Shape) -> Result<Self> {
        Ok(ThresholdMaskConfig { target_modules: self.target_modules.by_name(shape)?, ..self.clone() })
    }

    /// Masks in the place of scores.
    fn to_saved(tuner: ThresholdMask) -> ThresholdMask {
        struct Masks(f64);
        impl Rewrite for Masks {
            fn tensor<const D: usize>(&mut self, _: &str, scores: Tensor<D>) -> Tensor<D> {
                scores.greater_elem(self.0).float()
            }
        }
        ThresholdMask { scores: view(&tuner.scores, &mut Masks(tuner.threshold)), threshold: HALF, ..tuner }
    }

    /// Files hold masks, not the scores that they came from: these stay as they are.
    fn for_loading(&self, base: &Base) -> Result<ThresholdMask> {
        let tuner = self.scores(base, |_, dims| Tensor::zeros(dims, &base.device().clone().autodiff()))?;
        Ok(ThresholdMask { scores: tuner.scores.no_grad(), threshold: HALF, ..tuner })
    }

    fn merge(tuner: &ThresholdMask) -> Option<&dyn Merge> {
        Some(tuner)
    }
}

impl ThresholdMask {
    /// The mask of a matrix: in value zeros and ones, in the gradient the scores, if they are trained.
    fn mask(&self, site: Site) -> Option<Tensor<2>> {
        let scores = self.scores.get(site)?.val();
        let mask = scores.clone().without_autodiff().greater_elem(self.threshold).float();
        Some(if scores.is_require_grad() { scores.clone() - scores.detach() + mask } else { mask })
    }
}

impl Hooks for ThresholdMask {
    fn weight(&self, site: Site, w: Weight) -> Weight {
        Merge::weight(self, site, &w).map_or(w, Weight::Dense)
    }
}

impl Adapter for ThresholdMask {
    fn open<R>(&self, _batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        f(self)
    }

    fn view(&self, base: &Base, _noise: Option<&Noise>) -> Result<Option<AnyTuner>> {
        Ok(Some(AnyTuner::new(Replaced::by(self, base))))
    }
}

impl Merge for ThresholdMask {
    fn weight(&self, site: Site, w: &Weight) -> Option<Tensor<2>> {
        Some(w.dense() * self.mask(site)?)
    }
}

impl Procedure for ThresholdMask {
    fn rate(&self, _name: &str, rate: f64) -> f64 {
        self.rate * rate
    }

    fn decays(&self, _name: &str) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use peft_core::Part;
    use peft_core::io::peft::from_settings;
    use peft_core::testing::a_view_is_as_by_hooks;

    use super::*;

    peft_core::conformance!(ThresholdMaskConfig::default(), skip(C1: "a share of the numbers is masked out at the start"));

    mod some_matrices {
        use super::*;
        peft_core::conformance!(
            ThresholdMaskConfig::new(0.3).with_sites(Part::Value | Part::Down).with_threshold(3.0, 0.5),
            skip(C1: "a share of the numbers is masked out at the start")
        );
    }

    #[test]
    fn computed_once_it_is_the_same() {
        a_view_is_as_by_hooks(&ThresholdMaskConfig::new(0.3));
    }

    /// The paper leaves two layers as they are.
    #[test]
    fn counts_are_those_of_the_card() {
        let shape = Shape::named("roberta-base").unwrap();
        assert_eq!(ThresholdMaskConfig::default().count(&shape).unwrap(), 84_934_656);
        let upper = Sites::Pattern(r".*layer\.([2-9]|1[01])\..*".into());
        assert_eq!(ThresholdMaskConfig::default().with_sites(upper).count(&shape).unwrap(), 70_778_880);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let base = peft_core::testing::base("roberta-tiny", &peft_core::testing::device());
        let good = ThresholdMaskConfig::default;
        for (bad, words) in [
            (ThresholdMaskConfig::new(0.0), "init_sparsity: 0 "),
            (ThresholdMaskConfig::new(1.5), "init_sparsity: 1.5 "),
            (good().with_threshold(f64::NAN, 0.1), "threshold: NaN "),
            (good().with_threshold(0.1, -0.1), "init_scale: -0.1 "),
            (good().with_threshold(0.1, f64::INFINITY), "init_scale: inf "),
            (good().with_mask_rate(0.0), "mask_rate: 0 "),
            (good().with_sites(Part::Gate), "gate"),
        ] {
            for message in [bad.count(base.shape()).unwrap_err(), bad.init(&base, 0).unwrap_err()] {
                assert!(message.to_string().contains(words), "{words}: {message}");
            }
        }
        let settings = from_settings::<ThresholdMaskConfig>(&["init_sparsity=0.5".into(), "mask_rate=2".into()]);
        assert_eq!(settings.unwrap(), ThresholdMaskConfig::new(0.5).with_mask_rate(2.0));
    }
}
