//! # U-BitFit and S-BitFit                  family: partial / bias update
//! h = W x + b + m * d                      b: the base's; d: an update of each bias vector, = 0, trained; m: 0 or 1
//! s = -d dL/dd, summed over batches        what the loss rises by if d goes, to first order
//! U: m = 1 for the numbers with the largest s.  S: for the vectors with the largest sum of s, as far as the budget goes
//! Paper: Lawton et al., 2023, arXiv:2305.16597, section 3.   Reference: none found.
//! Oracle: paper: `scores_are_the_first_order_change_of_the_loss`, `a_run_of_pruning_is_that_of_the_equations`
//! Trains: every bias in the first phase; floor(rho n) of the n numbers of all biases in the last.      Merges: yes.
//! Identities:
//! - the base at init, bit for bit: `C1`
//! - merged == unmerged: `C3`
//! - rho = 1 is BitFit of updates, with no mask that is 0: `all_biases_are_kept_with_the_whole_budget`
//! - s of a vector is the sum of those of its numbers: `whole_vectors_go_by_the_sum_of_their_scores`
//! - where the loss is linear, s is the loss without d less that with it: `scores_are_the_first_order_change_of_the_loss`
//! - what is pruned is the base's, bit for bit, and the rest begins from it again: `what_is_pruned_is_the_base_again`
//! - rounds leave fewer and fewer, each of what the one before left: `rounds_are_nested`
//! - before anything is trained there is nothing to choose by: `pruning_before_training_is_an_error`
//!
//! Differs from the paper: nothing that it says. Its schedule is not known from code: in each round the share that is left falls by the same factor, on
//! all training examples without dropout, and the phases have the same number of steps. The updates go on between rounds and are 0 again
//! before the last phase. S takes vectors in the order of their scores and passes over one that is too long for what is left of the
//! budget. The survey writes W for the update.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::marker::PhantomData;

use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};
use peft_core::train::{Phase, Probe, largest};
use peft_core::view::{tensors, with_values};
use peft_core::{
    Base, Error, Hooks, Key, Merge, Method, Place, Procedure, Result, Shape, Site, SiteMap, Slot, adapter, file_path,
    split_name,
};
use serde::{Deserialize, Serialize};

use super::bitfit::BitFitConfig;

/// U-BitFit: single numbers are pruned.
pub type UBitFitConfig = PrunedBitFitConfig<Numbers>;
/// S-BitFit: whole vectors are.
pub type SBitFitConfig = PrunedBitFitConfig<Vectors>;

/// What is pruned.
pub trait Unit: Clone + Debug + PartialEq + Send + Sync + 'static {
    /// The name of the method.
    const NAME: &'static str;
    /// Its `peft_type`.
    const TYPE: &'static str;
    /// Whether vectors go as a whole.
    const WHOLE: bool;
}

/// Single numbers.
#[derive(Clone, Debug, PartialEq)]
pub enum Numbers {}

/// Whole vectors.
#[derive(Clone, Debug, PartialEq)]
pub enum Vectors {}

impl Unit for Numbers {
    const NAME: &'static str = "u-bitfit";
    const TYPE: &'static str = "U_BITFIT";
    const WHOLE: bool = false;
}

impl Unit for Vectors {
    const NAME: &'static str = "s-bitfit";
    const TYPE: &'static str = "S_BITFIT";
    const WHOLE: bool = true;
}

/// The configuration of BitFit whose updates are pruned, of whole vectors or of single numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, bound = "")]
pub struct PrunedBitFitConfig<U: Unit> {
    /// The share of the numbers of all biases that is left at the end, rho.
    pub keep_ratio: f64,
    /// In how many rounds they are pruned.
    pub rounds: usize,
    #[serde(skip)]
    unit: PhantomData<U>,
}

impl<U: Unit> Default for PrunedBitFitConfig<U> {
    /// A tenth, in one round.
    fn default() -> Self {
        PrunedBitFitConfig { keep_ratio: 0.1, rounds: 1, unit: PhantomData }
    }
}

impl<U: Unit> PrunedBitFitConfig<U> {
    /// With this share left.
    pub fn new(keep_ratio: f64) -> Self {
        PrunedBitFitConfig { keep_ratio, ..Default::default() }
    }

    /// In this many rounds.
    pub fn with_rounds(mut self, rounds: usize) -> Self {
        self.rounds = rounds;
        self
    }

    fn pruning(&self) -> Pruning {
        Pruning { keep_ratio: self.keep_ratio, rounds: self.rounds, whole: U::WHOLE }
    }
}

/// How updates are pruned.
#[derive(Clone, Copy, Debug)]
struct Pruning {
    keep_ratio: f64,
    rounds: usize,
    /// Whether vectors go as a whole.
    whole: bool,
}

impl Pruning {
    fn plan(&self, shape: &Shape) -> Result<Vec<Place>> {
        if self.rounds == 0 {
            return Err(Error::config("rounds", 0, "1 or more"));
        }
        let places = BitFitConfig::new().plan(shape)?;
        let least = if self.whole { places.iter().map(Place::count).min().unwrap_or(1) } else { 1 };
        let left = self.left(places.iter().map(Place::count).sum(), self.rounds);
        if !(self.keep_ratio > 0.0 && self.keep_ratio <= 1.0) || left < least {
            let expected = format!("above 0 and at most 1, for at least {least} numbers");
            return Err(Error::config("keep_ratio", self.keep_ratio, expected));
        }
        Ok(places)
    }

    /// The budget after a round.
    fn left(&self, whole: usize, round: usize) -> usize {
        let part = round as f64 / self.rounds as f64;
        (self.keep_ratio.powf(part) * whole as f64).floor() as usize
    }

    /// Which numbers are left of those with these scores; what has none is gone already.
    fn choose(&self, scores: &BTreeMap<String, Vec<f32>>, budget: usize) -> BTreeMap<String, Vec<bool>> {
        if !self.whole {
            return largest(scores, budget);
        }
        let sum = |scores: &[f32]| scores.iter().map(|score| f64::from(*score)).sum::<f64>();
        let mut order: Vec<_> = scores.iter().map(|(name, scores)| (name, scores.len(), sum(scores))).collect();
        order.sort_by(|a, b| b.2.total_cmp(&a.2));
        let (mut left, mut kept) = (budget, vec![]);
        for (name, length, score) in order {
            if length <= left && score > f64::NEG_INFINITY {
                left -= length;
                kept.push(name);
            }
        }
        scores.iter().map(|(name, scores)| (name.clone(), vec![kept.contains(&name); scores.len()])).collect()
    }
}

/// Updates of a base's biases, and which are there.
#[derive(Module, Debug)]
pub struct PrunedBitFit {
    /// d, `[out]` each.
    updates: SiteMap<Param<Tensor<1>>>,
    /// m of each; not trained.
    masks: SiteMap<Param<Tensor<1>>>,
    #[module(skip)]
    pruning: Pruning,
    /// Whether a file has chosen: a run has the last phase alone then.
    #[module(skip)]
    loaded: bool,
}

impl<U: Unit> Method for PrunedBitFitConfig<U> {
    const NAME: &'static str = U::NAME;
    const PEFT_TYPE: &'static str = U::TYPE;
    type Tuner = PrunedBitFit;

    fn init(&self, base: &Base, _seed: u64) -> Result<PrunedBitFit> {
        let (places, device) = (self.pruning().plan(base.shape())?, base.device().clone().autodiff());
        let of = |value: f64| -> SiteMap<_> {
            let one = |place: &Place| (place.site, Param::from_tensor(Tensor::full([place.count()], value, &device)));
            places.iter().map(one).collect()
        };
        Ok(PrunedBitFit { updates: of(0.0), masks: of(1.0).no_grad(), pruning: self.pruning(), loaded: false })
    }

    /// While all are trained.
    fn count(&self, shape: &Shape) -> Result<usize> {
        Ok(self.pruning().plan(shape)?.iter().map(Place::count).sum())
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        let (field, site, _) = split_name(name);
        Key::plain(format!("{}.bias.{field}", file_path(shape, site)))
    }

    fn is_mask(&self, name: &str) -> bool {
        name.starts_with("masks.")
    }

    fn loaded(&self, tuner: PrunedBitFit, _base: &Base) -> Result<PrunedBitFit> {
        Ok(PrunedBitFit { loaded: true, ..tuner })
    }

    fn merge(tuner: &PrunedBitFit) -> Option<&dyn Merge> {
        Some(tuner)
    }
}

impl PrunedBitFit {
    /// m * d.
    fn masked(&self, site: Site) -> Option<Tensor<1>> {
        Some(self.updates.get(site)?.val() * self.masks.get(site)?.val().without_autodiff())
    }

    /// Scores of the numbers that are left, by the names of their vectors.
    fn scores(&self, base: &Base, data: Probe<'_>) -> Result<BTreeMap<String, Vec<f32>>> {
        let (examples, values) = (data.draw(usize::MAX), tensors(self));
        let mut scores =
            data.summed(self, base, examples.chunks(data.settings().batch_size), |_, gradient| gradient)?;
        scores.retain(|name, _| name.starts_with("updates."));
        for (name, sums) in &mut scores {
            let masks = values[&name.replace("updates.", "masks.")].iter::<f32>();
            for ((sum, d), mask) in sums.iter_mut().zip(values[name].iter::<f32>()).zip(masks) {
                *sum = if mask == 0.0 { f32::NEG_INFINITY } else { -d * *sum };
            }
        }
        if scores.values().flatten().all(|score| *score == 0.0 || *score == f32::NEG_INFINITY) {
            let expected = "updates other than 0: a first phase in which they are trained";
            return Err(Error::config("scores", "0 for every bias", expected));
        }
        Ok(scores)
    }
}

impl Hooks for PrunedBitFit {
    fn vector(&self, site: Site, slot: Slot, v: Tensor<1>) -> Tensor<1> {
        Merge::vector(self, site, slot, &v).unwrap_or(v)
    }
}

adapter!(PrunedBitFit);

impl Merge for PrunedBitFit {
    fn vector(&self, site: Site, slot: Slot, v: &Tensor<1>) -> Option<Tensor<1>> {
        self.masked(site).filter(|_| slot == Slot::Bias).map(|update| v.clone() + update)
    }
}

impl Procedure for PrunedBitFit {
    fn phases(&self, steps: usize) -> Vec<Phase> {
        let phase = |name, steps| Phase { name, steps, rate: 1.0 };
        let rounds = if self.loaded { 0 } else { self.pruning.rounds };
        let each = steps / (rounds + 1);
        let choosing = (0..rounds).map(|_| phase("choose", each));
        choosing.chain([phase("train", steps - rounds * each)]).collect()
    }

    /// After each round what has the lowest scores goes; before the last phase what is left begins from 0.
    fn prepare(self, base: &Base, data: Probe<'_>) -> Result<Self> {
        if self.loaded || data.phase() == 0 {
            return Ok(self);
        }
        let scores = self.scores(base, data)?;
        let budget = self.pruning.left(scores.values().map(Vec::len).sum(), data.phase());
        let mut values = BTreeMap::new();
        for (name, kept) in self.pruning.choose(&scores, budget) {
            let numbers = kept.iter().map(|kept| f32::from(*kept)).collect::<Vec<_>>();
            let dims = [numbers.len()];
            if data.phase() == self.pruning.rounds {
                values.insert(name.clone(), TensorData::zeros::<f32, _>(dims));
            }
            values.insert(name.replace("updates.", "masks."), TensorData::new(numbers, dims));
        }
        with_values(self, &values)
    }

    /// A vector of which nothing is left.
    fn may_rest(&self, name: &str) -> bool {
        let mask = self.masks.get(split_name(name).1);
        mask.is_some_and(|mask| mask.val().sum().into_scalar::<f32>() == 0.0)
    }
}

#[cfg(test)]
mod tests {
    use peft_core::testing::fixtures::ENCODERS;

    use super::*;

    mod numbers {
        use super::*;
        peft_core::conformance!(UBitFitConfig::new(0.3).with_rounds(2), only(ENCODERS: "T5 and this LLaMA have no bias"));
    }

    mod vectors {
        use super::*;
        peft_core::conformance!(SBitFitConfig::new(0.3), only(ENCODERS: "T5 and this LLaMA have no bias"));
    }

    #[test]
    fn counts_are_those_of_the_card() {
        let shape = Shape::named("roberta-base").unwrap();
        assert_eq!(UBitFitConfig::default().count(&shape).unwrap(), 102_144);
        assert_eq!(UBitFitConfig::default().pruning().left(102_144, 1), 10_214);
        assert_eq!(UBitFitConfig::default().with_rounds(2).pruning().left(102_144, 2), 10_214);
        assert_eq!(UBitFitConfig::default().with_rounds(2).pruning().left(102_144, 1), 32_300);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let shape = Shape::named("roberta-base").unwrap();
        for (message, words) in [
            (UBitFitConfig::new(0.0).count(&shape), "keep_ratio: 0 "),
            (UBitFitConfig::new(1.5).count(&shape), "keep_ratio: 1.5 "),
            (UBitFitConfig::new(1e-9).count(&shape), "at least 1 numbers"),
            (SBitFitConfig::new(1e-3).count(&shape), "at least 768 numbers"),
            (UBitFitConfig::new(0.5).with_rounds(0).count(&shape), "rounds: 0 "),
        ] {
            let message = message.unwrap_err().to_string();
            assert!(message.contains(words), "{words}: {message}");
        }
    }

    /// Whole vectors in the order of their sums, as far as each fits; one that is gone does not come back.
    #[test]
    fn whole_vectors_go_by_the_sum_of_their_scores() {
        let gone = f32::NEG_INFINITY;
        let scores =
            [("a", vec![9.0, -9.5]), ("b", vec![1.0, 1.0, 1.0]), ("c", vec![gone, gone]), ("d", vec![2.0, 0.5])];
        let scores: BTreeMap<String, Vec<f32>> = scores.into_iter().map(|(name, s)| (name.to_string(), s)).collect();
        let kept = |budget| -> Vec<String> {
            let chosen = SBitFitConfig::default().pruning().choose(&scores, budget).into_iter();
            chosen.filter(|(_, kept)| kept.contains(&true)).map(|(name, _)| name).collect()
        };
        assert_eq!([kept(3), kept(4), kept(5), kept(9)].map(|names| names.concat()), ["b", "b", "bd", "abd"]);
        assert_eq!(kept(2), ["d"]);
        let single = UBitFitConfig::default().pruning().choose(&scores, 2);
        assert_eq!(single["a"], [true, false]);
        assert_eq!(single["d"], [true, false]);
    }
}
