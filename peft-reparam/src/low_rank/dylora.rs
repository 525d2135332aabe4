//! # DyLoRA                                 family: reparameterized / low-rank decomposition
//! h = W x + (alpha / b) B_b A_b x        A: [d_in, r] ~ U(-1/sqrt(d_in), 1/sqrt(d_in)), B: [r, d_out] = 0, of each the first b of r components
//! b ~ U{r_min, .., r} for each step, one for all maps; frozen: of the b components only the last is trained
//! Paper: Valipour et al., 2022, arXiv:2210.07558, section 3.   Reference: huawei-noah/KD-NLP DyLoRA
//! Oracle: paper: `dylora_equals_a_derivation_in_float64`
//! Trains: r (d_in + d_out) per site.      Merges: yes, at the rank that is served.
//! Identities:
//! - zero at init: `C1`
//! - merged == unmerged: `C3`
//! - logits, gradients and ten steps of drawn ranks are those of the equations: `dylora_equals_a_derivation_in_float64`
//! - b = r is LoRA, and b the LoRA of the first b components with the same alpha: `a_served_rank_is_a_lora_of_that_rank`
//! - what is behind b changes no bit: `components_behind_the_rank_do_nothing`
//! - a step trains the b components that it drew, frozen the last of them, and leaves every bit of the others: `a_step_trains_what_it_drew`
//! - a frozen step gives the last component the gradient that it has when all are trained: `a_frozen_step_has_the_last_gradient`
//! - every rank from r_min to r is drawn: `every_rank_is_drawn`
//! - with r_min = r a run is LoRA's: `with_one_rank_to_draw_a_run_is_that_of_lora`
//!
//! Differs from the paper: each component is a tensor of its own in files and for the optimizer, so that one that a step did not draw keeps its value and its moments, as the paper's algorithm updates no others; in a dense matrix Adam's momentum and weight decay would move it. Ranks are drawn uniformly; the paper also has a geometric distribution.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::{
    Adapter, Base, Batch, Error, Hooks, Key, Merge, Method, Part, Procedure, Result, Shape, Site, SiteMap, Sites,
    Weight, random::Random, split_name, train::Optim, view::with_values,
};
use serde::{Deserialize, Serialize};

use super::lora::{Lora, LoraConfig};
use super::pair::{self, LowRank, Opened, Pair, check_dropout};
use super::ranks::{check_alpha, check_rank};

/// The configuration of DyLoRA.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DyLoraConfig {
    /// The largest rank.
    pub r: usize,
    /// The smallest rank that is drawn.
    pub r_min: usize,
    /// The rank that is served; the largest, if absent.
    pub rank: Option<usize>,
    /// Whether of the components of a drawn rank only the last is trained.
    pub frozen: bool,
    /// The scale is `lora_alpha / b` at rank b.
    pub lora_alpha: f64,
    /// Dropout probability on the input of the low-rank path.
    pub lora_dropout: f64,
    /// Where.
    pub target_modules: Sites,
}

impl Default for DyLoraConfig {
    /// Ranks 1 to 8, alpha 16, on query and value.
    fn default() -> Self {
        DyLoraConfig {
            r: 8,
            r_min: 1,
            rank: None,
            frozen: false,
            lora_alpha: 16.0,
            lora_dropout: 0.0,
            target_modules: Part::Query | Part::Value,
        }
    }
}

impl DyLoraConfig {
    /// Ranks 1 to `r`, alpha 16, on query and value.
    pub fn new(r: usize) -> Self {
        DyLoraConfig { r, ..Default::default() }
    }

    /// With no rank below this drawn.
    pub fn with_min(self, r_min: usize) -> Self {
        DyLoraConfig { r_min, ..self }
    }

    /// With this rank served.
    pub fn with_rank(self, rank: usize) -> Self {
        DyLoraConfig { rank: Some(rank), ..self }
    }

    /// With only the last component of a drawn rank trained.
    pub fn with_frozen(self) -> Self {
        DyLoraConfig { frozen: true, ..self }
    }

    /// With this numerator of the scale.
    pub fn with_alpha(self, alpha: f64) -> Self {
        DyLoraConfig { lora_alpha: alpha, ..self }
    }

    /// With dropout of this probability on the low-rank path's input.
    pub fn with_dropout(self, p: f64) -> Self {
        DyLoraConfig { lora_dropout: p, ..self }
    }

    /// On these linear maps.
    pub fn with_sites(self, sites: impl Into<Sites>) -> Self {
        DyLoraConfig { target_modules: sites.into(), ..self }
    }

    /// The adapted maps; refuses settings that cannot be.
    fn plan(&self, shape: &Shape) -> Result<Vec<Site>> {
        check_rank("r", self.r)?;
        for (key, rank) in [("r_min", self.r_min), ("rank", self.rank.unwrap_or(self.r))] {
            if !(1..=self.r).contains(&rank) {
                return Err(Error::config(key, rank, format!("1 to r, {}", self.r)));
            }
        }
        check_alpha("lora_alpha", self.lora_alpha)?;
        check_dropout(self.lora_dropout)?;
        self.target_modules.resolve(shape)
    }
}

/// Low-rank factors of many ranks at once at some sites.
#[derive(Module, Debug)]
pub struct DyLora {
    maps: SiteMap<Vec<Component>>,
    /// The rank of the step that is being made.
    #[module(skip)]
    drawn: Option<usize>,
    #[module(skip)]
    config: DyLoraConfig,
}

/// One rank's part of the factors.
#[derive(Module, Debug)]
pub struct Component {
    /// A column of A, `[d_in, 1]`.
    pub a: Param<Tensor<2>>,
    /// A row of B, `[1, d_out]`.
    pub b: Param<Tensor<2>>,
}

impl DyLora {
    /// The rank at which it runs.
    fn rank(&self) -> usize {
        self.drawn.or(self.config.rank).unwrap_or(self.config.r)
    }

    /// The same with another rank served.
    pub fn with_rank(mut self, rank: usize) -> Self {
        self.config.rank = Some(rank);
        self
    }
}

impl DyLoraConfig {
    /// An adapter at the rank that it serves, as an ordinary LoRA of that rank: the same function.
    pub fn as_lora(&self, tuner: &DyLora, base: &Base) -> Result<(LoraConfig, Lora)> {
        let config = LoraConfig::new(tuner.rank()).with_alpha(self.lora_alpha).with_dropout(self.lora_dropout);
        let config = config.with_sites(self.target_modules.clone());
        let factors = tuner.maps.iter().filter_map(|(site, _)| Some((site, tuner.pair(site)?)));
        let values = factors.flat_map(|(site, Pair { a, b, .. })| {
            [("a", a), ("b", b)].map(|(leaf, value)| (format!("factors.{site}.{leaf}"), value.into_data()))
        });
        let lora = with_values(config.init(base, 0)?, &values.collect())?;
        Ok((config, lora))
    }
}

impl Method for DyLoraConfig {
    const NAME: &'static str = "dylora";
    const PEFT_TYPE: &'static str = "DYLORA";
    type Tuner = DyLora;

    fn init(&self, base: &Base, seed: u64) -> Result<DyLora> {
        let (shape, device) = (base.shape(), base.device().clone().autodiff());
        let map = |site| {
            let [rows, columns] = shape.linear_dims(site);
            let a = pair::start([rows, self.r], Random::new(seed, &format!("lora.{site}.a")), &device);
            let component = |i| Component {
                a: Param::from_tensor(a.clone().narrow(1, i, 1)),
                b: Param::from_tensor(Tensor::zeros([1, columns], &device)),
            };
            (site, (0..self.r).map(component).collect())
        };
        Ok(DyLora { maps: self.plan(shape)?.into_iter().map(map).collect(), drawn: None, config: self.clone() })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        let sides = self.plan(shape)?.into_iter().flat_map(|site| shape.linear_dims(site));
        Ok(self.r * sides.sum::<usize>())
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        let (_, site, leaf) = split_name(name);
        let (component, leaf) = leaf.split_once('.').unwrap_or_default();
        Key::transposed(pair::file_name(shape, site, &format!("{}.{component}.weight", leaf.to_uppercase())))
    }

    fn for_files(&self, shape: &Shape) -> Result<Self> {
        Ok(DyLoraConfig { target_modules: self.target_modules.by_name(shape)?, ..self.clone() })
    }

    fn merge(tuner: &DyLora) -> Option<&dyn Merge> {
        Some(tuner)
    }
}

impl LowRank for DyLora {
    fn pair(&self, site: Site) -> Option<Pair> {
        let rank = self.rank();
        let components = &self.maps.get(site)?[..rank];
        let frozen = self.config.frozen && self.drawn.is_some();
        let joined = |leaf: fn(&Component) -> &Param<Tensor<2>>, dim| {
            let value = |(i, component)| match leaf(component).val() {
                value if frozen && i + 1 < rank => value.detach(),
                value => value,
            };
            Tensor::cat(components.iter().enumerate().map(value).collect(), dim)
        };
        let scale = self.config.lora_alpha / rank as f64;
        Some(Pair { a: joined(|component| &component.a, 1), b: joined(|component| &component.b, 0), scale })
    }

    fn dropout(&self) -> f64 {
        self.config.lora_dropout
    }
}

impl Adapter for DyLora {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        f(&Opened::new(self, batch))
    }
}

impl Merge for DyLora {
    fn weight(&self, site: Site, w: &Weight) -> Option<Tensor<2>> {
        self.pair(site).map(|pair| pair.onto(w))
    }
}

impl Procedure for DyLora {
    fn sample(self, random: &mut Random) -> Self {
        let DyLoraConfig { r, r_min, .. } = self.config;
        DyLora { drawn: Some(r_min + random.below(r + 1 - r_min)), ..self }
    }

    /// A component that no step drew, or, frozen, none drew as the last.
    fn may_rest(&self, name: &str) -> bool {
        let component = split_name(name).2.split('.').next().and_then(|i| i.parse::<usize>().ok());
        self.config.frozen || component.is_some_and(|i| i >= self.config.r_min)
    }

    fn after_step(self, _base: &Base, _: &mut Optim, _: &Self, _: usize) -> Result<Self> {
        Ok(DyLora { drawn: None, ..self })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use peft_core::testing::golden::Case;
    use peft_core::{Trained, view::tensors};

    use super::*;

    mod largest {
        use super::*;
        peft_core::conformance!(DyLoraConfig::new(3).with_alpha(5.0));
    }

    mod frozen_and_served_at_two {
        use super::*;
        peft_core::conformance!(
            DyLoraConfig::new(3).with_alpha(3.0).with_frozen().with_rank(2),
            skip(C5: "what is behind the rank that is served has no gradient until a step draws it")
        );
    }

    #[test]
    fn dylora_equals_a_derivation_in_float64() {
        for (name, base) in [("dylora", "roberta-classify"), ("dylora-frozen", "roberta-classify"), ("dylora-t5", "t5")]
        {
            let case = Case::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name), base);
            let (config, trained) = case.load::<DyLoraConfig>();
            case.check_logits_of(&trained);
            case.check_run(
                trained,
                |name| case.key(&config, name),
                |step, Trained { tuner, head, copies }| {
                    let tuner = match step {
                        10 => with_values(config.init(&case.base, 0).unwrap(), &tensors(&tuner)).unwrap(),
                        _ => tuner.sample(&mut Random::new(0, &format!("sample of step {step}"))),
                    };
                    Trained { tuner, head, copies }
                },
            );
        }
    }
}
