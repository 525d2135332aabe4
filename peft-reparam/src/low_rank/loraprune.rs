//! # LoRAPrune                              family: reparameterized / low-rank decomposition
//! h = m * (W x + s B A x + b), s = alpha / r         A: [d_in, r] ~ U(-1/sqrt(d_in), 1/sqrt(d_in)), B: [r, d_out] = 0, m of zeros and ones over the outputs
//! importance of a number of W + s A B: |(dA B + A dB - dA dB) (W + s A B)|, d of the loss; of a group the sum over its numbers, the sums of each matrix over their norm
//! groups: a head (its outputs of query, key and value, its inputs of output), a channel (its outputs of gate and up, its inputs of down)
//! I <- 0.9 I + 0.1 importance; every prune_freq steps the least important groups of each sub-layer go, their share rises along a cubic to ratio
//! Paper: Zhang et al., 2023, arXiv:2305.18403, section 3.   Reference: aim-uofa/LoRAPrune loraprune
//! Oracle: code aim-uofa/LoRAPrune loraprune/utils.py: `a_run_of_loraprune_is_that_of_a_derivation_in_float64`
//! Trains: r (d_in + d_out) per site.      Merges: yes, and then what is masked may be cut out.
//! Identities:
//! - zero at init: `C1`
//! - merged == unmerged: `C3`, `masked_groups_merge`
//! - with ratio 0 a run is LoRA's: `with_nothing_to_prune_a_run_is_that_of_lora`
//! - dA B + A dB - dA dB is what one step of rate 1 takes from A B: `the_criterion_is_the_change_by_a_step_of_gradient_descent`
//! - of each sub-layer that is pruned floor(ratio groups) go, and none comes back: `as_many_groups_go_as_the_ratio_says`
//! - a factor on a matrix's importances changes no choice: `a_matrix_counts_whatever_its_size`
//! - a head or channel that is masked may be cut out, in a smaller model: `the_compact_model_is_the_masked_one`
//! - importances, masks and losses of a run are those of the equations: `a_run_of_loraprune_is_that_of_a_derivation_in_float64`
//!
//! Differs from the paper: sizes instead of squares, as in the code. Heads that share keys and values are one group. The last choice is at the end of the schedule, at the whole ratio, which the code stops just short of. Unstructured, the numbers of each adapted matrix are groups of their own, which the paper compares with. Cutting heads out needs a model whose layers all have as many, and no table of them: LLaMA, with `spare_layers` off; channels go from all.

use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use peft_core::random::{Noise, Random};
use peft_core::train::{Optim, Probe};
use peft_core::{
    Adapter, AnyTuner, Base, Batch, Error, Hooks, Key, Merge, Method, Next, Part, Procedure, Replaced, Result, Shape,
    Site, SiteMap, Sites, Slot, Weight, split_name,
};
use serde::{Deserialize, Serialize};

use super::pair::{self, Pair, check_dropout, dropped, untrained};
use super::pruning::{self, Group, importances, keep};
use super::ranks::{check_alpha, check_rank};

/// The configuration of LoRAPrune.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraPruneConfig {
    /// Rank.
    pub r: usize,
    /// The scale is `lora_alpha / r`.
    pub lora_alpha: f64,
    /// Dropout probability on the input of the low-rank path.
    pub lora_dropout: f64,
    /// Where.
    pub target_modules: Sites,
    /// The share of groups that go in each sub-layer, or of numbers in each matrix.
    pub ratio: f64,
    /// Whether heads and channels go, not numbers.
    pub structured: bool,
    /// Whether the first tenth of the layers and the last one stay whole.
    pub spare_layers: bool,
    /// Steps from one choice to the next.
    pub prune_freq: usize,
    /// The share of the steps before the first choice.
    pub warmup_iters: f64,
    /// The share of the steps behind the last.
    pub cooldown_iters: f64,
}

impl Default for LoraPruneConfig {
    /// The authors': rank 8, alpha 16, dropout 0.05, on all linear maps; half of the heads and channels, a choice every 10 steps of the middle
    /// four fifths.
    fn default() -> Self {
        LoraPruneConfig {
            r: 8,
            lora_alpha: 16.0,
            lora_dropout: 0.05,
            target_modules: Sites::Pattern("all-linear".into()),
            ratio: 0.5,
            structured: true,
            spare_layers: true,
            prune_freq: 10,
            warmup_iters: 0.1,
            cooldown_iters: 0.1,
        }
    }
}

impl LoraPruneConfig {
    /// Of rank `r`, otherwise the authors'.
    pub fn new(r: usize) -> Self {
        LoraPruneConfig { r, ..Default::default() }
    }

    /// With this numerator of the scale.
    pub fn with_alpha(self, alpha: f64) -> Self {
        LoraPruneConfig { lora_alpha: alpha, ..self }
    }

    /// With dropout of this probability on the low-rank path's input.
    pub fn with_dropout(self, p: f64) -> Self {
        LoraPruneConfig { lora_dropout: p, ..self }
    }

    /// On these linear maps.
    pub fn with_sites(self, sites: impl Into<Sites>) -> Self {
        LoraPruneConfig { target_modules: sites.into(), ..self }
    }

    /// With this share that goes, chosen every so many steps.
    pub fn with_ratio(self, ratio: f64, prune_freq: usize) -> Self {
        LoraPruneConfig { ratio, prune_freq, ..self }
    }

    /// With every layer pruned, the first and the last too.
    pub fn with_all_layers(self) -> Self {
        LoraPruneConfig { spare_layers: false, ..self }
    }

    /// With single numbers that go, and no dropout.
    pub fn unstructured(self) -> Self {
        LoraPruneConfig { structured: false, lora_dropout: 0.0, ..self }
    }

    /// The adapted maps; refuses settings that cannot be.
    fn plan(&self, shape: &Shape) -> Result<Vec<Site>> {
        check_rank("r", self.r)?;
        check_alpha("lora_alpha", self.lora_alpha)?;
        check_dropout(self.lora_dropout)?;
        if !self.structured && self.lora_dropout > 0.0 {
            return Err(Error::config("lora_dropout", self.lora_dropout, "0 where structured is false"));
        }
        if self.prune_freq == 0 {
            return Err(Error::config("prune_freq", self.prune_freq, "1 or more"));
        }
        if !(0.0..1.0).contains(&self.ratio) {
            return Err(Error::config("ratio", self.ratio, "a number from 0 to below 1: something must be left"));
        }
        let shares = [("warmup_iters", self.warmup_iters), ("cooldown_iters", self.cooldown_iters)];
        for (key, share) in shares {
            if !(share >= 0.0 && self.warmup_iters + self.cooldown_iters < 1.0) {
                return Err(Error::config(key, share, "0 or more, and the two together below 1"));
            }
        }
        self.target_modules.resolve(shape)
    }

    /// What is chosen among: for each sub-layer its groups, or for each matrix its numbers.
    fn groups(&self, shape: &Shape) -> Result<BTreeMap<Site, [usize; 2]>> {
        let spared = |site: &Site| {
            let layers =
                shape.stacks().into_iter().find(|(stack, _)| *stack == site.stack).map_or(0, |(_, layers)| layers);
            self.spare_layers && (site.layer < layers / 10 || site.layer + 1 == layers)
        };
        let sites = self.plan(shape)?.into_iter().filter(|site| site.part != Part::Pooler && !spared(site));
        Ok(match self.structured {
            false => sites.map(|site| (site, shape.linear_dims(site))).collect(),
            true => sites
                .filter_map(|site| Group::of(site).filter(|group| group.outputs))
                .map(|group| (group.block, [pruning::count(shape, group.block), 1]))
                .collect(),
        })
    }
}

/// Low-rank factors at some sites, and what is left of the heads and channels there.
#[derive(Module, Debug)]
pub struct LoraPrune {
    factors: SiteMap<Pruned>,
    /// 1 for what is left: of a sub-layer `[groups, 1]`, of a matrix `[d_in, d_out]`.
    masks: SiteMap<Param<Tensor<2>>>,
    /// In a run, in the form of the masks.
    importances: SiteMap<Param<Tensor<2>>>,
    /// The gradients of the step that is being made.
    #[module(skip)]
    gradients: BTreeMap<Site, [Tensor<2>; 2]>,
    #[module(skip)]
    steps: usize,
    #[module(skip)]
    config: LoraPruneConfig,
}

/// The factors at one site.
#[derive(Module, Debug)]
pub struct Pruned {
    /// A, `[d_in, r]`.
    pub a: Param<Tensor<2>>,
    /// B, `[r, d_out]`.
    pub b: Param<Tensor<2>>,
}

impl LoraPrune {
    fn pair(&self, site: Site) -> Option<Pair> {
        let Pruned { a, b } = self.factors.get(site)?;
        Some(Pair { a: a.val(), b: b.val(), scale: self.config.lora_alpha / self.config.r as f64 })
    }

    /// The mask over the outputs of a map, `[d_out]`.
    fn outputs(&self, site: Site, width: usize) -> Option<Tensor<1>> {
        let group = Group::of(site).filter(|group| group.outputs && self.config.structured)?;
        let mask = self.masks.get(group.block)?.val().without_autodiff();
        let groups = mask.dims()[0];
        Some(mask.expand([groups, width / groups]).reshape([width]))
    }

    /// The masks, by sub-layer or by map.
    pub fn masks(&self) -> &SiteMap<Param<Tensor<2>>> {
        &self.masks
    }

    /// The model with the method folded in and all that is masked cut out of it: a smaller one.
    pub fn compacted(&self, base: &Base) -> Result<Base> {
        match self.config.structured {
            true => pruning::compacted(&base.merged(self), &self.masks),
            false => Err(Error::config("structured", false, "true: only heads and channels can be cut out")),
        }
    }
}

impl Method for LoraPruneConfig {
    const NAME: &'static str = "loraprune";
    const PEFT_TYPE: &'static str = "LORAPRUNE";
    type Tuner = LoraPrune;

    fn init(&self, base: &Base, seed: u64) -> Result<LoraPrune> {
        let (shape, device) = (base.shape(), base.device().clone().autodiff());
        let factors = self.plan(shape)?.into_iter().map(|site| {
            let [rows, columns] = shape.linear_dims(site);
            let a = pair::start([rows, self.r], Random::new(seed, &format!("lora.{site}.a")), &device);
            (
                site,
                Pruned { a: Param::from_tensor(a), b: Param::from_tensor(Tensor::zeros([self.r, columns], &device)) },
            )
        });
        let masks = self.groups(shape)?.into_iter().map(|(site, dims)| (site, untrained(Tensor::ones(dims, &device))));
        let (factors, masks, importances) = (factors.collect(), masks.collect(), SiteMap::from_iter([]));
        Ok(LoraPrune { factors, masks, importances, gradients: BTreeMap::new(), steps: 0, config: self.clone() })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        let sides = self.plan(shape)?.into_iter().flat_map(|site| shape.linear_dims(site));
        Ok(self.r * sides.sum::<usize>())
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        match split_name(name) {
            ("masks", site, _) => Key::plain(pair::file_name(shape, pruning::first(site), "mask")),
            (_, site, leaf) => {
                Key::transposed(pair::file_name(shape, site, &format!("{}.weight", leaf.to_uppercase())))
            }
        }
    }

    fn is_mask(&self, name: &str) -> bool {
        name.starts_with("masks.")
    }

    fn for_files(&self, shape: &Shape) -> Result<Self> {
        Ok(LoraPruneConfig { target_modules: self.target_modules.by_name(shape)?, ..self.clone() })
    }

    fn to_saved(tuner: LoraPrune) -> LoraPrune {
        LoraPrune { importances: SiteMap::from_iter([]), ..tuner }
    }

    fn merge(tuner: &LoraPrune) -> Option<&dyn Merge> {
        Some(tuner)
    }
}

/// LoRAPrune during one run: with the run's dropout.
struct Opened<'a>(&'a LoraPrune, Option<&'a Noise>);

impl Hooks for Opened<'_> {
    fn linear(&self, site: Site, x: Tensor<3>, next: Next<'_, Tensor<3>>) -> Tensor<3> {
        let Opened(method, noise) = *self;
        let y = match method.pair(site).filter(|_| method.config.structured) {
            Some(pair) => next(x.clone()) + pair.forward(dropped(x, noise, method.config.lora_dropout, site)),
            None => next(x),
        };
        match method.outputs(site, y.dims()[2]) {
            Some(mask) => y * mask.unsqueeze(),
            None => y,
        }
    }

    fn weight(&self, site: Site, w: Weight) -> Weight {
        match self.0.config.structured {
            true => w,
            false => Merge::weight(self.0, site, &w).map_or(w, Weight::Dense),
        }
    }
}

impl Adapter for LoraPrune {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        f(&Opened(self, batch.noise.as_deref()))
    }

    /// Matrices of which numbers are masked, computed once.
    fn view(&self, base: &Base, _noise: Option<&Noise>) -> Result<Option<AnyTuner>> {
        Ok((!self.config.structured).then(|| AnyTuner::new(Replaced::by(&Opened(self, None), base))))
    }
}

impl Merge for LoraPrune {
    fn weight(&self, site: Site, w: &Weight) -> Option<Tensor<2>> {
        let sum = |pair: Option<Pair>| pair.map_or_else(|| w.dense(), |pair| pair.onto(w));
        let (pair, mask) = (self.pair(site), self.masks.get(site).filter(|_| !self.config.structured));
        if let Some(mask) = mask {
            return Some(sum(pair) * mask.val().without_autodiff());
        }
        let outputs = self.outputs(site, w.dense().dims()[1]);
        match (&pair, outputs) {
            (None, None) => None,
            (_, None) => Some(sum(pair)),
            (_, Some(mask)) => Some(sum(pair) * mask.unsqueeze()),
        }
    }

    fn vector(&self, site: Site, slot: Slot, v: &Tensor<1>) -> Option<Tensor<1>> {
        let mask = self.outputs(site, v.dims()[0]).filter(|_| slot == Slot::Bias)?;
        Some(v.clone() * mask)
    }
}

impl Procedure for LoraPrune {
    fn prepare(mut self, _base: &Base, data: Probe<'_>) -> Result<Self> {
        if self.config.ratio > 0.0 {
            let outside =
                || Error::config("ratio", self.config.ratio, "0 outside of a run: its steps decide what goes when");
            self.steps = data.steps().ok_or_else(outside)?;
            let zeros = |(site, mask): (Site, &Param<Tensor<2>>)| (site, untrained(mask.val().zeros_like()));
            self.importances = self.masks.iter().map(zeros).collect();
        }
        Ok(self)
    }

    fn gradients(&mut self, gradients: GradientsParams, _step: usize) -> GradientsParams {
        if !self.importances.is_empty() {
            let both = |(site, of): (Site, &Pruned)| {
                Some((site, [gradients.get::<2>(of.a.id)?, gradients.get::<2>(of.b.id)?]))
            };
            self.gradients = self.factors.iter().filter_map(both).collect();
        }
        gradients
    }

    fn after_step(mut self, base: &Base, _: &mut Optim, before: &Self, step: usize) -> Result<Self> {
        if self.importances.is_empty() {
            return Ok(self);
        }
        let numbers = std::mem::take(&mut self.gradients).into_iter().filter_map(|(site, slopes)| {
            let pair = before.pair(site)?;
            Some((site, pruning::importance(&pair, slopes, base.weight(site))))
        });
        let seen = importances(numbers, &self.masks, self.config.structured);
        let smooth = |(site, old): (Site, &Param<Tensor<2>>)| {
            let old = old.val().without_autodiff();
            let new = seen.get(&site).cloned().unwrap_or_else(|| old.zeros_like());
            (site, untrained(old * 0.9 + new * 0.1))
        };
        self.importances = self.importances.iter().map(smooth).collect();
        let LoraPruneConfig { ratio, prune_freq, warmup_iters, cooldown_iters, .. } = self.config;
        if let Some(share) = pruning::share(step - 1, self.steps, [warmup_iters, cooldown_iters], prune_freq) {
            let chosen = |(site, mask): (Site, &Param<Tensor<2>>)| match self.importances.get(site) {
                Some(importance) => (site, untrained(keep(&mask.val(), &importance.val(), share * ratio))),
                None => (site, mask.clone()),
            };
            self.masks = self.masks.iter().map(chosen).collect();
        }
        Ok(self)
    }

    fn finish(self, _base: &Base) -> Result<Self> {
        Ok(LoraPrune { importances: SiteMap::from_iter([]), ..self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    mod structured {
        use super::*;
        peft_core::conformance!(LoraPruneConfig::new(3).with_alpha(5.0).with_ratio(0.4, 1));
    }

    mod unstructured {
        use super::*;
        peft_core::conformance!(LoraPruneConfig::new(3).with_alpha(5.0).with_ratio(0.4, 1).unstructured());
    }
}
