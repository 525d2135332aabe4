//! # IncreLoRA                              family: reparameterized / low-rank decomposition
//! h = W x + s P diag(E) Q x, s = alpha / (r + 1e-5)        P: [d_in, r], Q: [r, d_out] ~ N(0, 0.02), E: [r, 1] = 0, r of each map by itself
//! a map's score is I U, with I <- b1 I + (1 - b1) i, U <- b2 U + (1 - b2) |i - I|, i = sum |D G| / sqrt(d_in d_out), D = s P diag(E) Q, G = dL/dD
//! after every step t > warm-up that incre_interval divides, the top_h maps of the highest scores get incre_r triplets more, until all have target_r on average
//! triplets to come are trained in advance: incre_r of each map with E = 1e-5 fixed, which is trained from when they count
//! loss + weight mean over all P, Q of ||P^T P - I||_F, ||Q Q^T - I||_F, those to come included
//! Paper: Zhang et al., 2023, arXiv:2308.12043, section 3.   Reference: FeiyuZhang98/IncreLoRA loralib
//! Oracle: code FeiyuZhang98/IncreLoRA loralib/loralib/increlora.py: `a_run_is_that_of_a_derivation_in_float64`
//! Trains: init_r (d_in + d_out + 1) per site, at the end target_r on average.      Merges: yes.
//! Identities:
//! - zero at init: `C1`
//! - merged == unmerged: `C3`
//! - with nothing to grow a run is that of AdaLoRA which takes nothing away: `with_nothing_to_grow_it_is_adalora`
//! - a growth by triplets of E = 0 multiplies the update by (r + 1e-5) / (r + a + 1e-5): `a_growth_scales_what_was_there`
//! - what is to come adds its own triplets and nothing else, and the end leaves it out: `what_is_to_come_is_left_out_at_the_end`
//! - ranks never fall, and end at the budget to the last one: `ranks_grow_to_the_budget`
//! - a step with the product of the factors at hand is a step with the factors: `the_product_is_as_by_the_factors`
//! - what has come warms up by itself, for as long as the run does: `new_triplets_warm_up`
//! - scores, ranks and losses of 24 steps are those of the equations: `a_run_is_that_of_a_derivation_in_float64`
//!
//! Differs from the paper: where incre_r does not divide what is left of the budget the last growth is smaller, where the code goes beyond the budget and then grows on; of equal scores the first maps grow, and no more of them. What was to come goes when the budget is reached, where the code holds it at E = 0, in the penalty alone. After its warm-up a new triplet has the run's learning rate, in the code one that falls from the peak by itself. Steps count from 0, as in the code. If `incre_interval` is not set, it is such that the budget is reached within three quarters of the run. `advance_learn=False` of the code is not offered.

use std::collections::BTreeMap;

use burn::module::{Module, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use indexmap::IndexMap;
use peft_core::random::{Noise, Random};
use peft_core::train::{Optim, Probe};
use peft_core::transfer::read;
use peft_core::{
    Adapter, AnyTuner, Base, Batch, Error, Hooks, Key, Merge, Method, Procedure, Result, Shape, Site, SiteMap, Sites,
    Weight, split_name,
};
use serde::{Deserialize, Serialize};

use super::allocation::{Triplets, orthogonality};
use super::pair::{self, LowRank, Opened, Pair, check_dropout, untrained};
use super::ranks::{check_alpha, check_rank};
use super::sensitivity::{Scores, Updates, drawn};

/// The configuration of IncreLoRA.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IncreLoraConfig {
    /// Rank of each map at the start.
    pub init_r: usize,
    /// Mean rank at the end.
    pub target_r: usize,
    /// By how much the rank of a map grows at once.
    pub incre_r: usize,
    /// How many maps grow at once.
    pub top_h: usize,
    /// The scale of a map of rank r is `lora_alpha / (r + 1e-5)`.
    pub lora_alpha: f64,
    /// Dropout probability on the input of the low-rank path.
    pub lora_dropout: f64,
    /// Where.
    pub target_modules: Sites,
    /// Steps before the first growth.
    pub init_warmup: usize,
    /// Steps from one growth to the next.
    pub incre_interval: Option<usize>,
    /// Decay of the mean of a map's sensitivity.
    pub beta1: f64,
    /// Decay of the mean of its deviation.
    pub beta2: f64,
    /// Weight of the penalty.
    pub orth_reg_weight: f64,
    /// The rank of each map by its path (`roberta.encoder.layer.0.attention.self.query`); `init_r`, if it is not named. If it is set, ranks
    /// are as it says, and stay.
    pub rank_pattern: Option<IndexMap<String, usize>>,
}

impl Default for IncreLoraConfig {
    /// The authors' for RTE: from rank 1 to 2 on average, 5 maps at once, alpha 32, on all linear maps.
    fn default() -> Self {
        IncreLoraConfig {
            init_r: 1,
            target_r: 2,
            incre_r: 1,
            top_h: 5,
            lora_alpha: 32.0,
            lora_dropout: 0.0,
            target_modules: Sites::Pattern("all-linear".into()),
            init_warmup: 0,
            incre_interval: None,
            beta1: 0.85,
            beta2: 0.85,
            orth_reg_weight: 0.3,
            rank_pattern: None,
        }
    }
}

impl IncreLoraConfig {
    /// To rank `target_r` on average, otherwise as the authors have it for RTE.
    pub fn new(target_r: usize) -> Self {
        IncreLoraConfig { target_r, ..Default::default() }
    }

    /// With so many maps that grow at once, each by `incre_r`.
    pub fn with_growth(self, top_h: usize, incre_r: usize) -> Self {
        IncreLoraConfig { top_h, incre_r, ..self }
    }

    /// With `warmup` steps before the first growth and `interval` steps between two.
    pub fn with_schedule(self, warmup: usize, interval: usize) -> Self {
        IncreLoraConfig { init_warmup: warmup, incre_interval: Some(interval), ..self }
    }

    /// With this numerator of the scale.
    pub fn with_alpha(self, alpha: f64) -> Self {
        IncreLoraConfig { lora_alpha: alpha, ..self }
    }

    /// With dropout of this probability on the low-rank path's input.
    pub fn with_dropout(self, p: f64) -> Self {
        IncreLoraConfig { lora_dropout: p, ..self }
    }

    /// On these linear maps.
    pub fn with_sites(self, sites: impl Into<Sites>) -> Self {
        IncreLoraConfig { target_modules: sites.into(), ..self }
    }

    /// The rank of each adapted linear map before a run.
    fn plan(&self, shape: &Shape) -> Result<BTreeMap<Site, usize>> {
        for (key, rank) in [("init_r", self.init_r), ("target_r", self.target_r), ("incre_r", self.incre_r)] {
            check_rank(key, rank)?;
        }
        check_alpha("lora_alpha", self.lora_alpha)?;
        check_dropout(self.lora_dropout)?;
        for (key, beta) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            if !(beta > 0.0 && beta < 1.0) {
                return Err(Error::config(key, beta, "a number above 0 and below 1"));
            }
        }
        if !(self.orth_reg_weight.is_finite() && self.orth_reg_weight >= 0.0) {
            return Err(Error::config("orth_reg_weight", self.orth_reg_weight, "a finite number, 0 or more"));
        }
        for (key, count) in [("top_h", self.top_h), ("incre_interval", self.incre_interval.unwrap_or(1))] {
            if count == 0 {
                return Err(Error::config(key, count, "1 or more"));
            }
        }
        let sites = self.target_modules.resolve(shape)?;
        let most = sites.iter().flat_map(|site| shape.linear_dims(*site)).min().unwrap_or_default();
        if !(self.init_r..=most.max(self.init_r)).contains(&self.target_r) {
            let expected = format!("init_r, {}, to {most}, the rank of the smallest map", self.init_r);
            return Err(Error::config("target_r", self.target_r, expected));
        }
        let paths: IndexMap<String, Site> =
            sites.into_iter().map(|site| (shape.module_path(site).unwrap_or_default(), site)).collect();
        let mut plan: BTreeMap<Site, usize> = paths.values().map(|site| (*site, self.init_r)).collect();
        for (path, rank) in self.rank_pattern.iter().flatten() {
            check_rank(&format!("rank_pattern of {path}"), *rank)?;
            let some = || paths.keys().take(3).cloned().collect::<Vec<_>>().join(", ");
            let unknown = || Error::config("rank_pattern", path, format!("adapted modules, such as {}", some()));
            plan.insert(*paths.get(path).ok_or_else(unknown)?, *rank);
        }
        Ok(plan)
    }

    /// How many steps there are from one growth to the next in a run of this many.
    fn interval(&self, steps: Option<usize>, maps: usize) -> Result<usize> {
        let outside = || Error::config("incre_interval", "nothing", "the number of steps, outside of a run");
        let Some(steps) = steps else { return self.incre_interval.ok_or_else(outside) };
        let growths = (maps * (self.target_r - self.init_r)).div_ceil(self.top_h.min(maps) * self.incre_r);
        let usual = || (steps * 3 / 4).saturating_sub(self.init_warmup) / growths;
        let interval = self.incre_interval.unwrap_or_else(usual).max(1);
        let last = (self.init_warmup / interval + growths) * interval;
        match last + 1 < steps {
            true => Ok(interval),
            false => {
                let found = format!("{}, and {interval} steps for each of {growths} growths", self.init_warmup);
                let expected = format!("together fewer than the {steps} steps of the run: no rank is left untrained");
                Err(Error::config("init_warmup and incre_interval", found, expected))
            }
        }
    }
}

/// Factors in the form of a singular value decomposition at some sites, whose number grows.
#[derive(Module, Debug)]
pub struct IncreLora {
    /// What each map started with, and each of rank 1 what has come since and what is to come.
    pub(super) maps: SiteMap<Vec<Triplets>>,
    /// While ranks grow.
    pub(super) scores: Option<Scores>,
    /// In a run that lets ranks grow: for how many steps P and Q, and for how many E, of each of a map's `maps` has been trained, `[n, 2]`.
    pub(super) ages: SiteMap<Param<Tensor<2>>>,
    /// How many of each map's triplets are to come.
    #[module(skip)]
    pub(super) to_come: usize,
    #[module(skip)]
    pub(super) interval: usize,
    #[module(skip)]
    pub(super) warmup: usize,
    #[module(skip)]
    pub(super) seed: u64,
    #[module(skip)]
    pub(super) config: IncreLoraConfig,
}

impl Method for IncreLoraConfig {
    const NAME: &'static str = "increlora";
    const PEFT_TYPE: &'static str = "INCRELORA";
    type Tuner = IncreLora;

    fn init(&self, base: &Base, seed: u64) -> Result<IncreLora> {
        let (shape, device) = (base.shape(), base.device().clone().autodiff());
        let map = |(site, rank)| {
            let random = |leaf: &str| Random::new(seed, &format!("increlora.{site}.0.{leaf}"));
            (site, vec![drawn(random, shape.linear_dims(site), rank, &device)])
        };
        let (maps, ages) = (self.plan(shape)?.into_iter().map(map).collect(), SiteMap::from_iter([]));
        Ok(IncreLora { maps, scores: None, ages, to_come: 0, interval: 0, warmup: 0, seed, config: self.clone() })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        let count = |(site, rank): (Site, usize)| rank * (shape.linear_dims(site).iter().sum::<usize>() + 1);
        Ok(self.plan(shape)?.into_iter().map(count).sum())
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        let (_, site, leaf) = split_name(name);
        match leaf.rsplit('.').next() {
            Some("p") => Key::transposed(pair::file_name(shape, site, "A")),
            Some("q") => Key::transposed(pair::file_name(shape, site, "B")),
            _ => Key::plain(pair::file_name(shape, site, "E")),
        }
    }

    fn for_files(&self, shape: &Shape) -> Result<Self> {
        Ok(IncreLoraConfig { target_modules: self.target_modules.by_name(shape)?, ..self.clone() })
    }

    fn learned(&self, tuner: &IncreLora, shape: &Shape) -> Self {
        let rank = |(site, triplets): (Site, &Vec<Triplets>)| {
            (shape.module_path(site).unwrap_or_default(), tuner.rank(triplets))
        };
        IncreLoraConfig { rank_pattern: Some(tuner.maps.iter().map(rank).collect()), ..self.clone() }
    }

    fn to_saved(tuner: IncreLora) -> IncreLora {
        tuner.compact()
    }

    fn merge(tuner: &IncreLora) -> Option<&dyn Merge> {
        Some(tuner)
    }
}

impl LowRank for IncreLora {
    fn pair(&self, site: Site) -> Option<Pair> {
        let triplets = self.maps.get(site)?;
        let a = Tensor::cat(triplets.iter().map(|triplets| triplets.p.val()).collect(), 1);
        let b = Tensor::cat(triplets.iter().map(|triplets| triplets.e.val() * triplets.q.val()).collect(), 0);
        Some(Pair { a, b, scale: self.config.lora_alpha / (self.rank(triplets) as f64 + 1e-5) })
    }

    fn dropout(&self) -> f64 {
        self.config.lora_dropout
    }
}

impl Adapter for IncreLora {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        f(&Opened::new(self, batch))
    }

    /// In a step that scores maps, with the update of each at hand, for its gradient.
    fn view(&self, _base: &Base, noise: Option<&Noise>) -> Result<Option<AnyTuner>> {
        let Some(scores) = self.scores.as_ref().filter(|_| noise.is_some()) else { return Ok(None) };
        let update = |(site, id): (&Site, &ParamId)| Some((*site, Param::initialized(*id, self.pair(*site)?.update())));
        let updates = scores.updates.iter().filter_map(update).collect();
        Ok(Some(AnyTuner::new(Updates { updates, dropout: self.config.lora_dropout })))
    }
}

impl Merge for IncreLora {
    fn weight(&self, site: Site, w: &Weight) -> Option<Tensor<2>> {
        self.pair(site).map(|pair| pair.onto(w))
    }
}

impl Procedure for IncreLora {
    fn prepare(mut self, base: &Base, data: Probe<'_>) -> Result<Self> {
        if self.config.rank_pattern.is_none() && self.config.target_r > self.config.init_r {
            let device = base.device().clone().autodiff();
            self.interval = self.config.interval(data.steps(), self.maps.iter().count())?;
            self.warmup = data.settings().warmup_steps;
            self.scores = Some(Scores::new(&self.maps, &device));
            let ages = self.maps.iter().map(|(site, _)| (site, untrained(Tensor::zeros([1, 2], &device))));
            self.ages = ages.collect();
        }
        Ok(self)
    }

    fn resumed(self, base: &Base, _phase: usize, shapes: &BTreeMap<String, Vec<usize>>) -> Result<Self> {
        let (config, grows) = (self.config.clone(), shapes.contains_key("scores.sensitivity"));
        let count = |site| {
            let mine = format!("maps.{site}.");
            shapes.keys().filter(|name| name.starts_with(&mine) && name.ends_with(".p")).count()
        };
        let begun = self.maps.iter().any(|(site, _)| count(site) > 1);
        let to_come = if grows && begun { config.incre_r } else { 0 };
        let device = base.device().clone().autodiff();
        let resumed = self.clone().with_maps(|site, mut triplets| {
            triplets.truncate(1);
            triplets.extend((1..count(site)).map(|number| match number + to_come < count(site) {
                true => Triplets {
                    e: Param::from_tensor(Tensor::zeros([1, 1], &device)),
                    ..self.coming(base, site, number)
                },
                false => self.coming(base, site, number),
            }));
            triplets
        });
        Ok(IncreLora { scores: grows.then(|| Scores::new(&resumed.maps, &device)), to_come, ..resumed })
    }

    fn penalty(&self) -> Option<Tensor<1>> {
        let weight = self.config.orth_reg_weight;
        let joined = |triplets: &[Triplets], leaf: fn(&Triplets) -> &Param<Tensor<2>>, dim| {
            Tensor::cat(triplets.iter().map(|triplets| leaf(triplets).val()).collect(), dim)
        };
        let factors = self.maps.iter().map(|(_, all)| [joined(all, |t| &t.p, 1), joined(all, |t| &t.q, 0)]);
        (weight != 0.0).then(|| orthogonality(factors)).flatten().map(|distance| distance * weight)
    }

    /// What is new warms up as the run did.
    fn rate(&self, name: &str, rate: f64) -> f64 {
        let (_, site, leaf) = split_name(name);
        let (number, leaf) = leaf.split_once('.').unwrap_or_default();
        let (number, e) = (number.parse::<usize>().unwrap_or_default(), leaf == "e");
        let age = |ages: &Param<Tensor<2>>| read(ages.val()).iter::<f32>().nth(2 * number + usize::from(e));
        match self.ages.get(site).filter(|_| number > 0).and_then(age) {
            Some(age) if (age as usize) < self.warmup => rate * f64::from(age) / self.warmup as f64,
            _ => rate,
        }
    }

    fn gradients(&mut self, mut gradients: GradientsParams, _step: usize) -> GradientsParams {
        let Some(scores) = self.scores.take() else { return gradients };
        let betas = [self.config.beta1, self.config.beta2];
        self.scores = Some(scores.smoothed(betas, |site, id| {
            let (gradient, pair) = gradients.remove::<2>(id).zip(self.pair(site))?;
            let size = gradient.shape().num_elements() as f64;
            Some((pair.update().without_autodiff() * gradient).abs().sum() / size.sqrt())
        }));
        gradients
    }

    fn after_step(self, base: &Base, _: &mut Optim, _: &Self, step: usize) -> Result<Self> {
        let (done, aged) = (step - 1, self.with_ages(|_, _, _, age| age + 1.0));
        let grows = aged.scores.is_some() && done > aged.config.init_warmup && done.is_multiple_of(aged.interval);
        Ok(match done {
            0 if aged.scores.is_some() => aged.advanced(base),
            _ if grows => aged.grown(base),
            _ => aged,
        })
    }

    fn finish(self, _base: &Base) -> Result<Self> {
        Ok(self.compact())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    peft_core::conformance!(IncreLoraConfig::new(2).with_growth(20, 1).with_alpha(5.0));
}
