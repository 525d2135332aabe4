//! # KronA                                  family: reparameterized / low-rank decomposition
//! h = W x + s (A (x) B) x                  A: [a1, a2] = 0, B: [b1, b2] ~ U(-1/sqrt(b1), 1/sqrt(b1)), a1 b1 = d_in, a2 b2 = d_out
//! as LoKr, s = alpha / r, A = Ad Au and B = Bd Bu of rank r, where r is below half of their larger sides (A only with `decompose_both`)
//! Paper: Edalati et al., 2022, arXiv:2212.10650, section 3.1.   Reference: huggingface/peft tuners/lokr
//! Oracle: package peft 0.21.2: `equals_the_reference`
//! Trains: a1 a2 + b1 b2 per site; of a factor that is split r (rows + columns).      Merges: yes.
//! Identities:
//! - zero at init: `C1`
//! - merged == unmerged: `C3`
//! - without the product it is the product: `the_two_small_products_are_the_large_one`
//! - ||A (x) B|| = ||A|| ||B||: `the_norm_is_the_product_of_the_norms`
//! - a2 = b1 = 1 is LoRA of rank 1: `a_column_and_a_row_are_a_lora_of_rank_one`
//! - c A and B / c are A and B: `a_number_may_stand_in_either_factor`
//! - numbers are factorized as in PEFT: `numbers_are_factorized_as_in_peft`
//! - without `r` files name one that splits nothing, at the same scale: `whole_factors_are_written_with_a_rank_that_splits_nothing`
//!
//! Differs from the paper: its text gives no code; A and B start as in PEFT's LoKr (there w1 and w2), whose files are read and written. Without `r` no factor is split, and s = alpha. By default the sides of A are those that LoKr takes, the smaller of the two nearest to the root; `factor` sets others, which LoKr does not have. PEFT's dropouts of LoKr act while it trains only, and are not here.

use burn::module::Module;
use burn::tensor::Tensor;
use indexmap::IndexMap;
use peft_core::{
    Base, Error, Hooks, Key, Merge, Method, Next, Part, Procedure, Result, Shape, Site, SiteMap, Sites, Weight,
    adapter, file_path, split_name,
};
use serde::{Deserialize, Serialize};

use super::kronecker::{Factor, Kronecker, sides};
use super::ranks::{Patterns, check_alpha, check_rank};

/// The configuration of KronA, in the names of PEFT's `LoKrConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KronaConfig {
    /// Rank of factors that are split, those with a side of more than twice that; none are, if it is absent.
    pub r: Option<usize>,
    /// The scale is `alpha / r`, or `alpha` without a rank.
    pub alpha: f64,
    /// Whether A is split too, not only B.
    pub decompose_both: bool,
    /// What to divide the sides of the matrix by; -1: by what is nearest to their root.
    pub decompose_factor: i64,
    /// The sides `[a1, a2]` of A, if they are to be these. Nothing is split then.
    pub factor: Option<[usize; 2]>,
    /// Where.
    pub target_modules: Sites,
    /// Ranks of modules whose path ends in a match of the key; of several keys the first counts.
    pub rank_pattern: IndexMap<String, usize>,
    /// Alphas of modules whose path ends in a match of the key; of several keys the first counts.
    pub alpha_pattern: IndexMap<String, f64>,
}

impl Default for KronaConfig {
    /// Whole factors, scale 1, on query and value.
    fn default() -> Self {
        KronaConfig {
            r: None,
            alpha: 1.0,
            decompose_both: false,
            decompose_factor: -1,
            factor: None,
            target_modules: Part::Query | Part::Value,
            rank_pattern: IndexMap::new(),
            alpha_pattern: IndexMap::new(),
        }
    }
}

/// What one map gets.
struct Plan {
    site: Site,
    /// Of A and B.
    dims: [[usize; 2]; 2],
    /// Of those of the two that are split.
    ranks: [Option<usize>; 2],
    scale: f64,
}

impl KronaConfig {
    /// Whole factors, scale 1, on query and value.
    pub fn new() -> Self {
        Self::default()
    }

    /// As LoKr of this rank: factors that are large against it are split, and the scale is divided by it.
    pub fn lokr(r: usize) -> Self {
        KronaConfig { r: Some(r), ..Self::default() }
    }

    /// With this scale, as LoKr this numerator of it.
    pub fn with_alpha(self, alpha: f64) -> Self {
        KronaConfig { alpha, ..self }
    }

    /// With an A of these sides.
    pub fn with_factor(self, factor: [usize; 2]) -> Self {
        KronaConfig { factor: Some(factor), ..self }
    }

    /// With A split too.
    pub fn with_both_split(self) -> Self {
        KronaConfig { decompose_both: true, ..self }
    }

    /// On these linear maps.
    pub fn with_sites(self, sites: impl Into<Sites>) -> Self {
        KronaConfig { target_modules: sites.into(), ..self }
    }

    fn plan(&self, shape: &Shape) -> Result<Vec<Plan>> {
        let divisor = match self.decompose_factor {
            -1 => None,
            divisor if divisor > 0 => Some(divisor as usize),
            other => return Err(Error::config("decompose_factor", other, "-1, or 1 or more")),
        };
        let adapted = self.target_modules.resolve(shape)?;
        let paths: Vec<String> = adapted.iter().filter_map(|site| shape.module_path(*site)).collect();
        if let (None, Some(key)) = (self.r, self.rank_pattern.keys().next()) {
            return Err(Error::config("rank_pattern", key, "none, unless r says which rank other modules have"));
        }
        let ranks = Patterns::new("rank_pattern", &self.rank_pattern, &paths)?;
        let alphas = Patterns::new("alpha_pattern", &self.alpha_pattern, &paths)?;
        let plan = |(site, path): (Site, &String)| {
            let rank = ranks.first(path).or(self.r);
            let alpha = alphas.first(path).unwrap_or(self.alpha);
            rank.map_or(Ok(()), |rank| check_rank(&format!("r at {path}"), rank))?;
            check_alpha(&format!("alpha at {path}"), alpha)?;
            let dims = sides(shape.linear_dims(site), self.factor, divisor, path)?;
            let split = |i: usize| {
                let may = self.factor.is_none() && (i == 1 || self.decompose_both);
                rank.filter(|r| may && 2 * r < dims[i][0].max(dims[i][1]))
            };
            Ok(Plan { site, dims, ranks: [0, 1].map(split), scale: alpha / rank.unwrap_or(1) as f64 })
        };
        adapted.into_iter().zip(&paths).map(plan).collect()
    }
}

/// Kronecker products at some sites.
#[derive(Module, Debug)]
pub struct Krona {
    maps: SiteMap<Scaled>,
}

/// s A (x) B.
#[derive(Module, Debug)]
pub struct Scaled {
    product: Kronecker,
    #[module(skip)]
    scale: f64,
}

impl Method for KronaConfig {
    const NAME: &'static str = "krona";
    const PEFT_TYPE: &'static str = "LOKR";
    const OWN_SETTINGS: &'static [&'static str] = &["factor"];
    const STATED: &'static [(&'static str, &'static str)] = &[("r", "8"), ("alpha", "8")];
    type Tuner = Krona;

    fn init(&self, base: &Base, seed: u64) -> Result<Krona> {
        let device = base.device().clone().autodiff();
        let map = |Plan { site, dims, ranks, scale }| {
            let product = Kronecker::init(dims, ranks, &format!("krona.{site}"), seed, &device);
            (site, Scaled { product, scale })
        };
        Ok(Krona { maps: self.plan(base.shape())?.into_iter().map(map).collect() })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        let count = |plan: Plan| (0..2).map(|i| Factor::count(plan.dims[i], plan.ranks[i])).sum::<usize>();
        Ok(self.plan(shape)?.into_iter().map(count).sum())
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        let (_, site, leaf) = split_name(name);
        // Files hold both factors transposed, and so what a split one is the product of in the other order.
        let leaf = match leaf {
            "product.a.Whole" => "w1",
            "product.a.Split.a" => "w1_b",
            "product.a.Split.b" => "w1_a",
            "product.b.Whole" => "w2",
            "product.b.Split.a" => "w2_b",
            _ => "w2_a",
        };
        Key::transposed(format!("{}.lokr_{leaf}", file_path(shape, site)))
    }

    /// PEFT has no LoKr without a rank: one so large that it splits nothing, a power of 2 so that the scale keeps its bits.
    fn for_files(&self, shape: &Shape) -> Result<Self> {
        let config = KronaConfig { target_modules: self.target_modules.by_name(shape)?, ..self.clone() };
        if self.r.is_some() {
            return Ok(config);
        }
        let sides = self.plan(shape)?.into_iter().flat_map(|plan| plan.dims.concat());
        let r = sides.max().unwrap_or(1).div_ceil(2).next_power_of_two();
        let alpha_pattern = self.alpha_pattern.iter().map(|(key, alpha)| (key.clone(), alpha * r as f64)).collect();
        Ok(KronaConfig { r: Some(r), alpha: self.alpha * r as f64, alpha_pattern, ..config })
    }

    fn merge(tuner: &Krona) -> Option<&dyn Merge> {
        Some(tuner)
    }
}

impl Hooks for Krona {
    fn linear(&self, site: Site, x: Tensor<3>, next: Next<'_, Tensor<3>>) -> Tensor<3> {
        match self.maps.get(site) {
            Some(Scaled { product, scale }) => next(x.clone()) + product.forward(x) * *scale,
            None => next(x),
        }
    }
}

adapter!(Krona);

impl Merge for Krona {
    fn weight(&self, site: Site, w: &Weight) -> Option<Tensor<2>> {
        let (Scaled { product, scale }, w) = (self.maps.get(site)?, w.dense());
        Some((product.dense() * *scale).to_device(&w.device()) + w)
    }
}

impl Procedure for Krona {}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use peft_core::testing::golden::Case;

    use super::*;

    mod whole {
        use super::*;
        peft_core::conformance!(KronaConfig::new().with_alpha(0.7));
    }

    mod other_sides {
        use super::*;
        peft_core::conformance!(KronaConfig::new().with_factor([2, 6]).with_sites(Part::Query | Part::Output));
    }

    mod split {
        use super::*;
        peft_core::conformance!(KronaConfig::lokr(1).with_alpha(3.0).with_both_split());
    }

    #[test]
    fn equals_the_reference() {
        let cases = [
            ("lokr", "roberta-classify"),
            ("lokr-both", "bert-classify"),
            ("lokr-first", "roberta-classify"),
            ("lokr-patterns", "roberta-classify"),
            ("lokr-t5", "t5"),
            ("lokr-llama", "llama"),
        ];
        for (case, base) in cases {
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case);
            let case = Case::open(dir, base);
            case.check_method::<KronaConfig>();
            case.check_merged::<KronaConfig>();
        }
    }
}
