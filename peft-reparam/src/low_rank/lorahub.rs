//! # LoRAHub                                family: reparameterized / low-rank decomposition
//! h = W x + s B^ A^ x, s = alpha / r       A^ = sum_i w_i A_i, B^ = sum_i w_i B_i, of N finished LoRAs: A_i: [d_in, r], B_i: [r, d_out]
//! w: (N,) = 0, searched within [-1.5, 1.5] without a gradient for the least loss + 0.05 mean |w_i| on the training examples
//! Paper: Huang et al., 2023, arXiv:2307.13269, section 3.   Reference: sail-sg/lorahub
//! Oracle: paper: `the_composition_is_that_of_the_equations`
//! Trains: N, the weights of the modules.       Merges: yes.
//! Identities:
//! - w = 0 is the base: `C1`
//! - merged == unmerged: `C3`
//! - the weights multiply both factors of each module, before their product: `the_composition_is_that_of_the_equations`
//! - one weight of 1 and no other is that module, w and -w are the same: `a_module_alone_is_itself`
//! - the search never ends above its start, a longer one never above a shorter: `a_longer_search_ends_no_higher`
//! - it stays within its bounds, and a run moves the weights no more: `a_run_keeps_what_the_search_found`
//! - with `head_share` the head is trained first, and the search is under what it has become: `the_search_is_under_the_trained_head`
//!
//! Differs from the paper: the search is a (1+1) evolution strategy with the rule of one fifth, not Shiwa of nevergrad, so that trajectories are not the paper's. The loss is the mean over examples; the code divides the mean of a batch by the number of examples once more. A head for classes, which the paper's models do not have, is trained by the steps of the run: a share `head_share` of them in front of the search, by default none, the others behind it. Under a head at its random start no module is worth its cost. All modules have the settings of this one.

use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData};
use peft_core::{
    Adapter, Base, Batch, Error, Hooks, Key, Merge, Method, Part, Procedure, Result, Shape, Site, SiteMap, Sites,
    Source, Weight,
    random::Random,
    split_name,
    train::{Phase, Probe},
    view::{shapes, tensors},
};
use serde::{Deserialize, Serialize};

use super::lora::LoraConfig;
use super::pair::{self, LowRank, Opened, Pair};

/// The largest size of a weight.
const BOUND: f64 = 1.5;
/// What a weight of 1 in each module costs.
const COST: f64 = 0.05;
/// By what a step of the search grows when it is taken; four that are not shrink it back.
const GROWTH: f64 = 1.5;
/// The most modules: a file could otherwise ask for any amount of memory.
const MOST: usize = 1024;

/// The configuration of LoRAHub.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraHubConfig {
    /// Number N of modules.
    pub modules: usize,
    /// Rank of each.
    pub r: usize,
    /// The scale of each is `lora_alpha / r`.
    pub lora_alpha: f64,
    /// Where each is.
    pub target_modules: Sites,
    /// How many weights the search tries.
    pub max_inference_step: usize,
    /// The share of the steps that train the head alone, in front of the search.
    pub head_share: f64,
}

impl Default for LoraHubConfig {
    /// The paper's: 20 modules of rank 16 and alpha 32 on query and value, 40 steps of the search.
    fn default() -> Self {
        let target_modules = Part::Query | Part::Value;
        LoraHubConfig { modules: 20, r: 16, lora_alpha: 32.0, target_modules, max_inference_step: 40, head_share: 0.0 }
    }
}

impl LoraHubConfig {
    /// Of this many modules of rank `r`, as the paper has it.
    pub fn new(modules: usize, r: usize) -> Self {
        LoraHubConfig { modules, r, ..Default::default() }
    }

    /// With modules of this alpha.
    pub fn with_alpha(self, alpha: f64) -> Self {
        LoraHubConfig { lora_alpha: alpha, ..self }
    }

    /// With so many steps of the search.
    pub fn with_steps(self, max_inference_step: usize) -> Self {
        LoraHubConfig { max_inference_step, ..self }
    }

    /// With this share of the steps, in front of the search, for the head alone.
    pub fn with_head_share(self, head_share: f64) -> Self {
        LoraHubConfig { head_share, ..self }
    }

    /// What each module is.
    fn module(&self) -> LoraConfig {
        LoraConfig::new(self.r).with_alpha(self.lora_alpha).with_sites(self.target_modules.clone())
    }

    fn check(&self, shape: &Shape) -> Result<()> {
        self.module().count(shape)?;
        if !(0.0..1.0).contains(&self.head_share) {
            return Err(Error::config("head_share", self.head_share, "at least 0, below 1"));
        }
        match (1..=MOST).contains(&self.modules) {
            true => Ok(()),
            false => Err(Error::config("modules", self.modules, format!("1 to {MOST}"))),
        }
    }

    /// With the factors that `tensor` gives for each module, site and leaf.
    fn built(
        &self,
        base: &Base,
        tensor: impl Fn(usize, Site, &str, [usize; 2]) -> Result<Tensor<2>>,
    ) -> Result<LoraHub> {
        let (shape, device) = (base.shape(), base.device().clone().autodiff());
        let modules = self.target_modules.resolve(shape)?.into_iter().map(|site| {
            let [rows, columns] = shape.linear_dims(site);
            let stacked = |leaf, dims| {
                let all = (0..self.modules).map(|i| tensor(i, site, leaf, dims)).collect::<Result<Vec<_>>>()?;
                let all = Tensor::from_inner(Tensor::stack::<3>(all, 0));
                Ok::<_, Error>(Param::from_tensor(all).set_require_grad(false))
            };
            Ok((site, Stack { a: stacked("a", [rows, self.r])?, b: stacked("b", [self.r, columns])? }))
        });
        let modules = modules.collect::<Result<SiteMap<Stack>>>()?;
        let weights = Param::from_tensor(Tensor::zeros([self.modules], &device));
        Ok(LoraHub { weights, modules, config: self.clone() })
    }
}

/// Finished LoRAs with a weight each.
#[derive(Module, Debug)]
pub struct LoraHub {
    /// `[N]`.
    weights: Param<Tensor<1>>,
    modules: SiteMap<Stack>,
    #[module(skip)]
    config: LoraHubConfig,
}

/// The factors of all modules at one site, which go along untrained.
#[derive(Module, Debug)]
pub struct Stack {
    /// `[N, d_in, r]`.
    pub a: Param<Tensor<3>>,
    /// `[N, r, d_out]`.
    pub b: Param<Tensor<3>>,
}

impl LoraHub {
    /// The same with these weights.
    fn with_weights(mut self, weights: &[f64]) -> Self {
        let values: Vec<f32> = weights.iter().map(|w| *w as f32).collect();
        self.weights = self.weights.map(|old| {
            let new = Tensor::from_data(TensorData::new(values, [weights.len()]), &old.device());
            if old.is_require_grad() { new.require_grad() } else { new }
        });
        self
    }
}

impl Method for LoraHubConfig {
    const NAME: &'static str = "lorahub";
    const PEFT_TYPE: &'static str = "LORAHUB";
    type Tuner = LoraHub;

    fn init(&self, base: &Base, seed: u64) -> Result<LoraHub> {
        self.init_from(base, seed, &[])
    }

    fn init_from(&self, base: &Base, _seed: u64, sources: &[Source]) -> Result<LoraHub> {
        self.check(base.shape())?;
        if sources.len() != self.modules {
            return Err(Error::config(
                "sources",
                sources.len(),
                format!("as many adapters as modules, {}", self.modules),
            ));
        }
        let expected = self.module();
        let form = shapes(&expected.init(base, 0)?);
        let values = sources.iter().map(|source| {
            let lora = source.tuner::<LoraConfig>()?;
            let same = source.config.downcast_ref::<LoraConfig>().is_some_and(|theirs| {
                [theirs.r as f64, theirs.lora_alpha] == [expected.r as f64, expected.lora_alpha] && !theirs.use_rslora
            });
            if !same || shapes(lora) != form {
                let expected =
                    format!("a LoRA of rank {}, alpha {}, on {:?}", self.r, self.lora_alpha, self.target_modules);
                return Err(Error::config("sources", &source.name, expected));
            }
            Ok(tensors(lora))
        });
        let values = values.collect::<Result<Vec<_>>>()?;
        self.built(base, |i, site, leaf, _| {
            Ok(Tensor::from_data(values[i][&format!("factors.{site}.{leaf}")].clone(), base.device()))
        })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        self.check(shape)?;
        Ok(self.modules)
    }

    fn checked_count(&self, shape: &Shape) -> Result<usize> {
        let all = self.module().checked_count(shape)?.saturating_mul(self.modules);
        let most = shape.count().saturating_mul(8).max(1 << 26);
        match all <= most {
            true => self.count(shape),
            false => Err(Error::config("modules", self.modules, format!("modules of at most {most} numbers in all"))),
        }
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        if name == "weights" {
            return Key::plain("base_model.model.lorahub_weights");
        }
        let (_, site, leaf) = split_name(name);
        Key::plain(pair::file_name(shape, site, &format!("{}.modules", leaf.to_uppercase())))
    }

    fn for_files(&self, shape: &Shape) -> Result<Self> {
        Ok(LoraHubConfig { target_modules: self.target_modules.by_name(shape)?, ..self.clone() })
    }

    fn for_loading(&self, base: &Base) -> Result<LoraHub> {
        self.check(base.shape())?;
        self.built(base, |_, _, _, dims| Ok(Tensor::zeros(dims, base.device())))
    }

    fn merge(tuner: &LoraHub) -> Option<&dyn Merge> {
        Some(tuner)
    }
}

impl LowRank for LoraHub {
    fn pair(&self, site: Site) -> Option<Pair> {
        let Stack { a, b } = self.modules.get(site)?;
        let weights: Tensor<3> = self.weights.val().reshape([self.config.modules, 1, 1]);
        let sum = |all: Tensor<3>| (all * weights.clone()).sum_dim(0).squeeze_dim::<2>(0);
        Some(Pair { a: sum(a.val()), b: sum(b.val()), scale: self.config.lora_alpha / self.config.r as f64 })
    }

    fn dropout(&self) -> f64 {
        0.0
    }
}

impl Adapter for LoraHub {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        f(&Opened::new(self, batch))
    }
}

impl Merge for LoraHub {
    fn weight(&self, site: Site, w: &Weight) -> Option<Tensor<2>> {
        self.pair(site).map(|pair| pair.onto(w))
    }
}

impl Procedure for LoraHub {
    fn phases(&self, steps: usize) -> Vec<Phase> {
        let share = self.config.head_share;
        let head = (share * steps as f64).floor() as usize;
        let mut phases = vec![Phase { name: "hub", steps: steps - head, rate: 1.0 }];
        if share > 0.0 {
            phases.insert(0, Phase { name: "head", steps: head, rate: 1.0 });
        }
        phases
    }

    /// Searches the weights, once the head is trained.
    fn prepare(self, base: &Base, data: Probe<'_>) -> Result<Self> {
        if data.phase() == 0 && self.config.head_share > 0.0 {
            return Ok(self);
        }
        let cost = |weights: &[f64]| {
            let size = weights.iter().map(|w| w.abs()).sum::<f64>() / weights.len() as f64;
            Ok::<_, Error>(data.loss(&self.clone().with_weights(weights), base)? + COST * size)
        };
        let mut random = Random::new(data.settings().seed, "lorahub");
        let (mut best, mut step) = (vec![0.0; self.config.modules], BOUND / 3.0);
        let mut least = cost(&best)?;
        for _ in 0..self.config.max_inference_step {
            let tried = best.iter().map(|w| (w + step * random.normal()).clamp(-BOUND, BOUND)).collect::<Vec<_>>();
            let found = cost(&tried)?;
            if found < least {
                (best, least, step) = (tried, found, step * GROWTH);
            } else {
                step /= GROWTH.powf(0.25);
            }
        }
        Ok(self.with_weights(&best))
    }

    fn gradients(&mut self, mut gradients: GradientsParams, _step: usize) -> GradientsParams {
        gradients.remove::<1>(self.weights.id);
        gradients
    }

    fn may_rest(&self, name: &str) -> bool {
        name == "weights"
    }
}

#[cfg(test)]
mod tests {
    use peft_core::testing::randomized;
    use peft_core::{AnyTuner, Head, Trained};

    use super::*;

    fn sources(base: &Base) -> Vec<Source> {
        let config = LoraConfig::new(2).with_alpha(3.0);
        let one = |seed: u64| Source {
            name: format!("task {seed}"),
            config: config.clone().into(),
            trained: Trained::new(
                AnyTuner::new(randomized(&config.init(base, seed).unwrap(), seed)),
                Head::classifier(base, 2, seed),
            )
            .unwrap(),
        };
        (1..4).map(one).collect()
    }

    mod at_once {
        use super::*;
        peft_core::conformance!(LoraHubConfig::new(3, 2).with_alpha(3.0).with_steps(2), from(sources));
    }

    mod behind_the_head {
        use super::*;
        peft_core::conformance!(
            LoraHubConfig::new(3, 2).with_alpha(3.0).with_steps(2).with_head_share(0.5),
            from(sources)
        );
    }
}
