//! # AdaLoRA                                family: reparameterized / low-rank decomposition
//! h = W x + s P diag(E) Q x, s = alpha / (r + 1e-5)        P: [d_in, r], Q: [r, d_out] ~ N(0, 0.02), E: [r, 1] = 0
//! loss + weight mean over all P, Q of ||P^T P - I||_F, ||Q Q^T - I||_F
//! I <- b1 I + (1 - b1) |w g|, U <- b2 U + (1 - b2) ||w g| - I|; a triplet's score is I U of its E + mean of I U of its column of P + mean of I U of its row of Q
//! of all triplets of the model those of the highest scores keep their E, the others' is set to 0; their number falls from r to target_r for each map along a cubic
//! Paper: Zhang et al., 2023, arXiv:2303.10512, eq. 3 to 12.   Reference: huggingface/peft tuners/adalora; QingruZhang/AdaLoRA
//! Oracle: package peft 0.21.2: `equals_the_reference`, `a_run_is_that_of_the_reference`
//! Trains: init_r (d_in + d_out + 1) per site, at the end target_r on average.      Merges: yes.
//! Identities:
//! - zero at init: `C1`
//! - merged == unmerged: `C3`
//! - with E between the factors it is a LoRA of P and diag(E) Q: `it_is_a_lora_with_values_between_the_factors`
//! - the order of the triplets does not matter: `the_order_of_the_triplets_does_not_matter`
//! - a triplet whose E is 0 may be dropped, the divisor stays: `masked_triplets_may_be_dropped`
//! - orthonormal factors cost nothing, and then ||s P diag(E) Q|| = s ||E||: `orthonormal_factors_cost_nothing`
//! - the penalty is the mean over factors of the norms: `the_penalty_is_the_mean_of_the_norms`
//! - the budget never rises, starts at init_r and ends at target_r: `the_budget_falls_along_a_cubic`
//! - as many triplets are kept as the budget says: `as_many_triplets_are_kept_as_the_budget_says`
//! - target_r = init_r masks nothing: `nothing_is_masked_where_the_target_is_the_start`
//! - scores, ranks and losses of 200 steps are those of PEFT: `a_run_is_that_of_the_reference`
//!
//! Differs from the paper: the penalty is the norm, not its square, and a mean over factors, as in both codes. Scores of a step are of the new w and the old g (clipped, with the penalty's), as there. Steps count from 1, so that the last allocation is reached with tfinal = 0 too. Of equal scores the first places are kept, PEFT masks them all. An evaluation's loss is without the penalty. `total_step` follows from the run if it is not set.

use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Int, Tensor};
use indexmap::IndexMap;
use peft_core::transfer::{read, send};
use peft_core::{
    Adapter, Base, Batch, Error, Hooks, Key, Merge, Method, Part, Procedure, Result, Shape, Site, SiteMap, Sites,
    Weight,
    random::Random,
    split_name,
    train::{Optim, Probe},
};
use serde::{Deserialize, Serialize};

use super::allocation::{Allocation, Schedule, Triplets, moved, orthogonality};
use super::pair::{self, LowRank, Opened, Pair, check_dropout};
use super::ranks::check_rank;

/// The configuration of AdaLoRA, in the names of PEFT's `AdaLoraConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdaLoraConfig {
    /// Rank of each map at the start.
    pub init_r: usize,
    /// Mean rank at the end.
    pub target_r: usize,
    /// The scale is `lora_alpha / (init_r + 1e-5)`, at the end too.
    pub lora_alpha: f64,
    /// Dropout probability on the input of the low-rank path.
    pub lora_dropout: f64,
    /// Where.
    pub target_modules: Sites,
    /// Steps before the first rank is taken.
    pub tinit: usize,
    /// Steps after the last rank is taken.
    pub tfinal: usize,
    /// Steps from one allocation of ranks to the next.
    #[serde(rename = "deltaT")]
    pub delta_t: usize,
    /// Decay of the mean of the sensitivities.
    pub beta1: f64,
    /// Decay of the mean of their deviations.
    pub beta2: f64,
    /// Weight of the penalty.
    pub orth_reg_weight: f64,
    /// The steps of the run; if it is not set, what the run says.
    pub total_step: Option<usize>,
    /// Which of its triplets a map has (`roberta.encoder.layer.0.attention.self.query.lora_E`); all, if it is not named. If it is
    /// set, ranks are as it says, and stay.
    pub rank_pattern: Option<IndexMap<String, Vec<bool>>>,
}

impl Default for AdaLoraConfig {
    /// PEFT's: rank 12 to 8, alpha 8, a penalty of weight 0.5, on query and value.
    fn default() -> Self {
        AdaLoraConfig {
            init_r: 12,
            target_r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            target_modules: Part::Query | Part::Value,
            tinit: 0,
            tfinal: 0,
            delta_t: 1,
            beta1: 0.85,
            beta2: 0.85,
            orth_reg_weight: 0.5,
            total_step: None,
            rank_pattern: None,
        }
    }
}

impl AdaLoraConfig {
    /// From rank `init_r` to `target_r` on average, alpha 8, on query and value.
    pub fn new(init_r: usize, target_r: usize) -> Self {
        AdaLoraConfig { init_r, target_r, ..Default::default() }
    }

    /// With this numerator of the scale.
    pub fn with_alpha(self, alpha: f64) -> Self {
        AdaLoraConfig { lora_alpha: alpha, ..self }
    }

    /// With dropout of this probability on the low-rank path's input.
    pub fn with_dropout(self, p: f64) -> Self {
        AdaLoraConfig { lora_dropout: p, ..self }
    }

    /// On these linear maps.
    pub fn with_sites(self, sites: impl Into<Sites>) -> Self {
        AdaLoraConfig { target_modules: sites.into(), ..self }
    }

    /// With `tinit` steps before ranks are taken, `tfinal` steps after, and `delta_t` steps between two allocations.
    pub fn with_schedule(self, tinit: usize, tfinal: usize, delta_t: usize) -> Self {
        AdaLoraConfig { tinit, tfinal, delta_t, ..self }
    }

    /// With this weight of the penalty.
    pub fn with_penalty(self, weight: f64) -> Self {
        AdaLoraConfig { orth_reg_weight: weight, ..self }
    }

    /// Which of `init_r` triplets each adapted linear map has.
    fn plan(&self, shape: &Shape) -> Result<BTreeMap<Site, Vec<bool>>> {
        let wrong = |key: &str, value: &dyn std::fmt::Display, allowed: &str| Err(Error::config(key, value, allowed));
        check_rank("init_r", self.init_r)?;
        check_dropout(self.lora_dropout)?;
        if !(1..=self.init_r).contains(&self.target_r) {
            return Err(Error::config("target_r", self.target_r, format!("1 to init_r, {}", self.init_r)));
        }
        if !(self.lora_alpha.is_finite() && self.lora_alpha > 0.0) {
            return wrong("lora_alpha", &self.lora_alpha, "a finite number above 0");
        }
        if self.delta_t == 0 {
            return wrong("deltaT", &self.delta_t, "1 or more");
        }
        for (key, beta) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            if !(beta > 0.0 && beta < 1.0) {
                return wrong(key, &beta, "a number above 0 and below 1");
            }
        }
        if !(self.orth_reg_weight.is_finite() && self.orth_reg_weight >= 0.0) {
            return wrong("orth_reg_weight", &self.orth_reg_weight, "a finite number, 0 or more");
        }
        if let Some(steps) = self.total_step {
            self.schedule(steps, 0)?;
        }
        let name = |site: &Site| (pattern_name(shape, *site), *site);
        let sites: IndexMap<String, Site> = self.target_modules.resolve(shape)?.iter().map(name).collect();
        let mut plan: BTreeMap<Site, Vec<bool>> = sites.values().map(|site| (*site, vec![true; self.init_r])).collect();
        for (name, kept) in self.rank_pattern.iter().flatten() {
            let Some(site) = sites.get(name) else {
                let some = sites.keys().take(3).cloned().collect::<Vec<_>>().join(", ");
                return Err(Error::config("rank_pattern", name, format!("adapted modules, such as {some}")));
            };
            if kept.len() != self.init_r {
                let (key, found) = (format!("rank_pattern of {name}"), format!("{} values", kept.len()));
                return Err(Error::config(key, found, format!("init_r, {}", self.init_r)));
            }
            plan.insert(*site, kept.clone());
        }
        Ok(plan)
    }

    /// The schedule of a run of this many steps on this many maps.
    pub(super) fn schedule(&self, steps: usize, maps: usize) -> Result<Schedule> {
        match steps.checked_sub(self.tfinal) {
            Some(last) if self.tinit < last => Ok(Schedule {
                first: self.tinit,
                last,
                interval: self.delta_t,
                initial: self.init_r * maps,
                target: self.target_r * maps,
            }),
            _ => {
                let found = format!("{} and {}", self.tinit, self.tfinal);
                let expected = format!("together fewer than the {steps} steps of the run");
                Err(Error::config("tinit and tfinal", found, expected))
            }
        }
    }
}

/// What `rank_pattern` calls a map.
fn pattern_name(shape: &Shape, site: Site) -> String {
    format!("{}.lora_E", shape.module_path(site).unwrap_or_default())
}

/// Factors in the form of a singular value decomposition at some sites.
#[derive(Module, Debug)]
pub struct AdaLora {
    triplets: SiteMap<Triplets>,
    /// In a run that allocates ranks.
    allocation: Option<Allocation>,
    /// Which of `init_r` triplets each site has. A site without any is not among `triplets`.
    #[module(skip)]
    kept: BTreeMap<Site, Vec<bool>>,
    #[module(skip)]
    config: AdaLoraConfig,
}

impl AdaLora {
    /// s.
    fn scale(&self) -> f64 {
        self.config.lora_alpha / (self.config.init_r as f64 + 1e-5)
    }

    /// Which of `init_r` triplets each site has. While ranks are allocated one that is masked may have moved since, and then counts.
    fn kept(&self) -> BTreeMap<Site, Vec<bool>> {
        let Some(allocation) = &self.allocation else { return self.kept.clone() };
        let kept = |((site, triplets), (_, mask)): ((Site, &Triplets), (Site, &Param<Tensor<2>>))| {
            let here = triplets.values()[1].clone().abs() + mask.val().without_autodiff();
            (site, read(here).iter::<f32>().map(|x| x > 0.0).collect())
        };
        self.triplets.iter().zip(allocation.masks.iter()).map(kept).collect()
    }

    /// With the E of masked triplets at 0.
    fn masked(self) -> Self {
        let Some(allocation) = &self.allocation else { return self };
        let triplets = moved(&self.triplets, |site, i, value| match allocation.masks.get(site) {
            Some(mask) if i == 1 => value * mask.val().without_autodiff(),
            _ => value,
        });
        AdaLora { triplets, ..self }
    }

    /// With only the triplets that it has kept, as their number is final.
    fn compact(self) -> Self {
        if self.allocation.is_none() {
            return self;
        }
        let kept = self.kept();
        let select = |(site, triplets): (Site, &Triplets)| {
            let chosen: Vec<i32> = kept[&site].iter().zip(0..).filter(|(kept, _)| **kept).map(|(_, i)| i).collect();
            let select = |i, value: Tensor<2>| {
                let chosen = send::<1, Int>(chosen.as_slice(), &value.device());
                value.select(usize::from(i == 0), chosen)
            };
            (!chosen.is_empty()).then(|| (site, triplets.map_values(select)))
        };
        AdaLora { triplets: self.triplets.iter().filter_map(select).collect(), allocation: None, kept, ..self }
    }
}

impl Method for AdaLoraConfig {
    const NAME: &'static str = "adalora";
    const PEFT_TYPE: &'static str = "ADALORA";
    type Tuner = AdaLora;

    fn init(&self, base: &Base, seed: u64) -> Result<AdaLora> {
        let (shape, device) = (base.shape(), base.device().clone().autodiff());
        let kept = self.plan(shape)?;
        let triplets = kept.iter().map(|(site, kept)| (*site, rank(kept))).filter(|(_, rank)| *rank > 0);
        let triplets = triplets.map(|(site, rank)| {
            let [rows, columns] = shape.linear_dims(site);
            let draw = |leaf, dims: [usize; 2]| {
                let normal = Random::new(seed, &format!("adalora.{site}.{leaf}")).normal_tensor(dims, 0.02, &device);
                Param::from_tensor(normal)
            };
            let e = Param::from_tensor(Tensor::zeros([rank, 1], &device));
            (site, Triplets { p: draw("p", [rows, rank]), e, q: draw("q", [rank, columns]) })
        });
        Ok(AdaLora { triplets: triplets.collect(), allocation: None, kept, config: self.clone() })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        let count = |(site, kept): (Site, Vec<bool>)| rank(&kept) * (shape.linear_dims(site).iter().sum::<usize>() + 1);
        Ok(self.plan(shape)?.into_iter().map(count).sum())
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        let (_, site, leaf) = split_name(name);
        match leaf {
            "p" => Key::transposed(pair::file_name(shape, site, "A")),
            "q" => Key::transposed(pair::file_name(shape, site, "B")),
            _ => Key::plain(pair::file_name(shape, site, "E")),
        }
    }

    fn for_files(&self, shape: &Shape) -> Result<Self> {
        Ok(AdaLoraConfig { target_modules: self.target_modules.by_name(shape)?, ..self.clone() })
    }

    fn learned(&self, tuner: &AdaLora, shape: &Shape) -> Self {
        let pattern = tuner.kept().into_iter().map(|(site, kept)| (pattern_name(shape, site), kept)).collect();
        // PEFT reads no file without a number of steps.
        let steps = tuner.config.total_step.unwrap_or(self.tinit + self.tfinal + 1);
        AdaLoraConfig { rank_pattern: Some(pattern), total_step: Some(steps), ..self.clone() }
    }

    fn to_saved(tuner: AdaLora) -> AdaLora {
        tuner.compact()
    }

    fn merge(tuner: &AdaLora) -> Option<&dyn Merge> {
        Some(tuner)
    }
}

fn rank(kept: &[bool]) -> usize {
    kept.iter().filter(|kept| **kept).count()
}

impl LowRank for AdaLora {
    fn pair(&self, site: Site) -> Option<Pair> {
        let Triplets { p, e, q } = self.triplets.get(site)?;
        Some(Pair { a: p.val(), b: e.val() * q.val(), scale: self.scale() })
    }

    fn dropout(&self) -> f64 {
        self.config.lora_dropout
    }
}

impl Adapter for AdaLora {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        f(&Opened::new(self, batch))
    }
}

impl Merge for AdaLora {
    fn weight(&self, site: Site, w: &Weight) -> Option<Tensor<2>> {
        self.pair(site).map(|pair| pair.onto(w))
    }
}

impl Procedure for AdaLora {
    fn prepare(mut self, _base: &Base, data: Probe<'_>) -> Result<Self> {
        let complete = self.kept.values().flatten().all(|kept| *kept);
        if complete && self.config.rank_pattern.is_none() {
            let steps = self.steps(data.steps())?;
            let schedule = self.config.schedule(steps, self.kept.len())?;
            self.config.total_step = Some(steps);
            self.allocation = Some(Allocation::new(&self.triplets, schedule));
        }
        Ok(self)
    }

    fn penalty(&self) -> Option<Tensor<1>> {
        let weight = self.config.orth_reg_weight;
        let factors = self.triplets.iter().map(|(_, triplets)| [triplets.p.val(), triplets.q.val()]);
        (weight != 0.0).then(|| orthogonality(factors)).flatten().map(|distance| distance * weight)
    }

    /// The E of a map that has lost triplets is back at 0, where it started: of one that has lost all, or whose others may not move.
    fn may_rest(&self, name: &str) -> bool {
        let (_, site, leaf) = split_name(name);
        let mask = self.allocation.as_ref().and_then(|allocation| allocation.masks.get(site));
        leaf == "e" && mask.is_some_and(|mask| mask.val().min().into_scalar::<f32>() == 0.0)
    }

    fn gradients(&mut self, gradients: GradientsParams, step: usize) -> GradientsParams {
        if let Some(allocation) = self.allocation.as_mut().filter(|allocation| step < allocation.schedule.last) {
            let all = |(site, Triplets { p, e, q }): (Site, &Triplets)| {
                let get = |param: &Param<Tensor<2>>| gradients.get::<2>(param.id);
                Some((site, [get(p)?, get(e)?, get(q)?]))
            };
            allocation.gradients = self.triplets.iter().filter_map(all).collect();
        }
        gradients
    }

    fn after_step(mut self, _base: &Base, _: &mut Optim, _: &Self, step: usize) -> Result<Self> {
        let Some(allocation) = &mut self.allocation else { return Ok(self) };
        allocation.observe(&self.triplets, self.config.beta1, self.config.beta2);
        let budget = allocation.schedule.budget(step);
        if let Some(budget) = budget {
            allocation.allocate(budget);
        }
        let fixed = step > allocation.schedule.last;
        Ok(if budget.is_some() || fixed { self.masked() } else { self })
    }

    fn finish(self, _base: &Base) -> Result<Self> {
        Ok(self.compact())
    }
}

impl AdaLora {
    /// The number of steps that the schedule counts on, in a run of this many.
    fn steps(&self, run: Option<usize>) -> Result<usize> {
        match (self.config.total_step, run) {
            (Some(steps), Some(run)) if steps > run => {
                Err(Error::config("total_step", steps, format!("no more than the {run} steps of the run")))
            }
            (Some(steps), _) | (None, Some(steps)) => Ok(steps),
            (None, None) => Err(Error::config("total_step", "nothing", "the number of steps, outside of a run")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use peft_core::testing::golden::Case;

    use super::*;

    peft_core::conformance!(AdaLoraConfig::new(3, 2).with_alpha(5.0));

    #[test]
    fn equals_the_reference() {
        for (case, base) in [("adalora", "roberta-classify"), ("adalora-t5", "t5"), ("adalora-llama", "llama")] {
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case);
            Case::open(dir, base).check_method::<AdaLoraConfig>();
        }
    }
}
