//! # LoftQ                                  family: reparameterized / quantized
//! h = Q x + s B A x, s = alpha / r         A: [d_in, r], B: [r, d_out], Q: [d_in, d_out] of few bits, |W - Q - s B A| made small
//! Q_t = q(W - s B_(t-1) A_(t-1))           s B_t A_t: the best of rank r for W - Q_t, the roots of its singular values in each; t = 1 .. T
//! Paper: Li et al., 2023, arXiv:2310.08659, algorithm 1.   Reference: huggingface/peft utils/loftq_utils.py
//! Oracle: package peft 0.21.2: `equals_the_reference`, `starts_equal_the_reference`
//! Trains: r (d_in + d_out) per site.       Merges: yes, into Q + s B A.
//! Identities:
//! - merged == unmerged: `C3`
//! - the residual is the tail of the singular values of W - Q: `the_residual_is_the_tail_of_the_singular_values`
//! - more steps leave no larger residual, from QLoRA's on: `the_residual_does_not_grow_with_the_steps`
//! - T = 0 is LoRA on the quantized base: `without_steps_it_is_lora_on_the_quantized_base`
//! - r = min(d_in, d_out) starts as the base: `at_full_rank_it_starts_as_the_base`
//! - a W that is quantized already is Q, and B = 0: `a_quantized_base_is_a_fixed_point`
//! - the start of s B A is the same at every alpha: `alpha_does_not_move_the_start`
//! - 2^k W gives 2^k Q, and 2^(k/2) A and B: `the_start_scales_with_the_base`
//! - A A^T and B^T B are the same diagonal: `the_factors_share_the_singular_values`
//! - Q is found again from the base and the file, to the bit: `C4`, `starts_equal_the_reference`
//!
//! Differs from the paper: a step that would leave a larger residual is not taken. The factors start divided by the scale, so that s B A
//! is what was found; the authors' code and PEFT leave it out (`loftq_scaled` false), which is the same at alpha = r. Q is not
//! written into the model, as PEFT does, whose users then save a second one: it is q of the base less the pair of the step before, which
//! goes along untrained where there was one. Bits are 4 (NF4, blocks of 64), 8 (LLM.int8), or 2 and 3 (integers with scale and zero
//! point for each 64 inputs); the authors' two bits are a cut of NF4 to four values.

use std::mem::replace;
use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use peft_core::{
    Adapter, Base, Batch, Error, Hooks, Key, Merge, Method, Packed, Procedure, Result, Shape, Site, SiteMap, Sites,
    Weight, random::Random, split_name,
};
use peft_quant::{Codebook, FourBit, Grouped, Int8Rows};
use serde::{Deserialize, Serialize};

use super::Instead;
use super::matrix::{Matrix, Thin};
use crate::low_rank::pair::{self, LowRank, Opened, Pair, check_dropout, untrained};
use crate::low_rank::ranks::{check_alpha, check_rank};

/// Weights for each scale.
const BLOCK: usize = 64;

/// The most steps of the alternation: it stops by itself long before.
const MOST_STEPS: usize = 100;

/// The configuration of LoftQ, in the names of PEFT's `LoraConfig` and `LoftQConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoftQConfig {
    /// Rank, at most that of each map.
    pub r: usize,
    /// The scale is `lora_alpha / r`.
    pub lora_alpha: f64,
    /// Dropout probability on the input of the low-rank path.
    pub lora_dropout: f64,
    /// Where.
    pub target_modules: Sites,
    /// Bits of a quantized weight: 2, 3, 4 or 8.
    pub loftq_bits: u32,
    /// Steps T of the alternation; 0 starts as QLoRA does.
    pub loftq_iter: usize,
    /// Whether the start takes the scale into account.
    pub loftq_scaled: bool,
}

impl Default for LoftQConfig {
    /// PEFT's rank 8, alpha 8, four bits and one step, on the paper's sites: every linear map.
    fn default() -> Self {
        LoftQConfig {
            r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            target_modules: Sites::Pattern("all-linear".into()),
            loftq_bits: 4,
            loftq_iter: 1,
            loftq_scaled: true,
        }
    }
}

impl LoftQConfig {
    /// Rank `r`, alpha 8, four bits and one step, on every linear map.
    pub fn new(r: usize) -> Self {
        LoftQConfig { r, ..Default::default() }
    }

    /// With this numerator of the scale.
    pub fn with_alpha(self, alpha: f64) -> Self {
        LoftQConfig { lora_alpha: alpha, ..self }
    }

    /// On these linear maps.
    pub fn with_sites(self, sites: impl Into<Sites>) -> Self {
        LoftQConfig { target_modules: sites.into(), ..self }
    }

    /// With weights of so many bits.
    pub fn with_bits(self, bits: u32) -> Self {
        LoftQConfig { loftq_bits: bits, ..self }
    }

    /// With so many steps of the alternation.
    pub fn with_steps(self, steps: usize) -> Self {
        LoftQConfig { loftq_iter: steps, ..self }
    }

    /// With PEFT's start, which leaves the scale out.
    pub fn without_scale(self) -> Self {
        LoftQConfig { loftq_scaled: false, ..self }
    }

    fn scale(&self) -> f64 {
        self.lora_alpha / self.r as f64
    }

    /// What the product of the factors is multiplied by where it is to stand for what Q leaves of W.
    fn start_scale(&self) -> f64 {
        if self.loftq_scaled { self.scale() } else { 1.0 }
    }

    fn sites(&self, shape: &Shape) -> Result<Vec<Site>> {
        check_rank("r", self.r)?;
        check_alpha("lora_alpha", self.lora_alpha)?;
        check_dropout(self.lora_dropout)?;
        if ![2, 3, 4, 8].contains(&self.loftq_bits) {
            return Err(Error::config("loftq_bits", self.loftq_bits, "2, 3, 4 or 8"));
        }
        if self.loftq_iter > MOST_STEPS {
            return Err(Error::config("loftq_iter", self.loftq_iter, format!("0 to {MOST_STEPS}")));
        }
        let sites = self.target_modules.resolve(shape)?;
        let widest = |site: &Site| shape.linear_dims(*site).into_iter().min().unwrap_or_default();
        match sites.iter().find(|site| self.r > widest(site)) {
            None => Ok(sites),
            Some(site) => {
                let path = shape.module_path(*site).unwrap_or_default();
                Err(Error::config("r", self.r, format!("at most {}, the rank of {path}", widest(site))))
            }
        }
    }

    /// What the codec makes of a matrix.
    fn quantized(&self, w: &Matrix, device: &Device) -> Result<Arc<dyn Packed>> {
        let [inputs, outputs] = w.dims;
        let (values, dims) = (&w.values, [outputs, inputs]);
        match self.loftq_bits {
            4 => peft_quant::Matrix::packed(FourBit::encode(values, &dims, Codebook::Nf4, BLOCK)?, device),
            8 => peft_quant::Matrix::packed(Int8Rows::encode(values, dims)?, device),
            bits => peft_quant::Matrix::packed(Grouped::encode(values, dims, bits, BLOCK, false)?, device),
        }
    }

    /// The factors after T steps from LoRA's start, those of the step before, and what that made of the matrix.
    fn alternated(&self, w: &Matrix, start: Thin, device: &Device) -> Result<(Thin, Thin, Arc<dyn Packed>)> {
        let (mut before, mut now, mut quantized) = (start.clone(), start, self.quantized(w, device)?);
        let mut least = w.less(&Matrix::decoded(&*quantized)).norm();
        for _ in 0..self.loftq_iter {
            let next_quantized = self.quantized(&w.without(&now, self.start_scale()), device)?;
            let residual = w.less(&Matrix::decoded(&*next_quantized));
            let next = Thin::nearest(&residual, self.r, self.start_scale())?;
            let left = residual.without(&next, self.start_scale()).norm();
            if left >= least {
                break;
            }
            (least, quantized) = (left, next_quantized);
            before = replace(&mut now, next);
        }
        Ok((now, before, quantized))
    }

    fn tuner(&self, factors: SiteMap<Approximation>, instead: Instead) -> LoftQ {
        LoftQ { factors, instead, scale: self.scale(), dropout: self.lora_dropout }
    }
}

/// Low-rank factors at some sites, and the quantized matrices that they stand beside.
#[derive(Module, Debug)]
pub struct LoftQ {
    factors: SiteMap<Approximation>,
    #[module(skip)]
    instead: Instead,
    #[module(skip)]
    scale: f64,
    #[module(skip)]
    dropout: f64,
}

/// The factors at one site.
#[derive(Module, Debug)]
pub struct Approximation {
    /// A, `[d_in, r]`.
    pub a: Param<Tensor<2>>,
    /// B, `[r, d_out]`.
    pub b: Param<Tensor<2>>,
    /// What the matrix was quantized without, if the alternation has more than one step.
    pub before: Option<Earlier>,
}

impl Approximation {
    fn new(now: [Tensor<2>; 2], before: Option<[Tensor<2>; 2]>) -> Self {
        let earlier = |[a, b]: [Tensor<2>; 2]| Earlier { a: untrained(a), b: untrained(b) };
        let [a, b] = now.map(Param::from_tensor);
        Approximation { a, b, before: before.map(earlier) }
    }
}

/// Factors of an earlier step, which go along untrained.
#[derive(Module, Debug)]
pub struct Earlier {
    /// A, `[d_in, r]`.
    pub a: Param<Tensor<2>>,
    /// B, `[r, d_out]`.
    pub b: Param<Tensor<2>>,
}

impl LowRank for LoftQ {
    fn pair(&self, site: Site) -> Option<Pair> {
        let of = self.factors.get(site)?;
        Some(Pair { a: of.a.val(), b: of.b.val(), scale: self.scale })
    }

    fn dropout(&self) -> f64 {
        self.dropout
    }
}

impl Method for LoftQConfig {
    const NAME: &'static str = "loftq";
    const PEFT_TYPE: &'static str = "LOFTQ";
    type Tuner = LoftQ;

    fn init(&self, base: &Base, seed: u64) -> Result<LoftQ> {
        let (shape, plain) = (base.shape(), base.device());
        let device = plain.clone().autodiff();
        let (mut factors, mut instead) = (vec![], vec![]);
        for site in self.sites(shape)? {
            let w = Matrix::of(base.weight(site));
            let [inputs, outputs] = w.dims;
            let a = pair::start([inputs, self.r], Random::new(seed, &format!("lora.{site}.a")), plain);
            let start = Thin::of(a, Tensor::zeros([self.r, outputs], plain));
            let of = |error: Error| error.of(&shape.module_path(site).unwrap_or_default());
            let (now, before, quantized) = self.alternated(&w, start, plain).map_err(of)?;
            let before = (self.loftq_iter > 1).then(|| before.tensors(self.r, &device));
            factors.push((site, Approximation::new(now.tensors(self.r, &device), before)));
            instead.push((site, Weight::Packed(quantized)));
        }
        Ok(self.tuner(factors.into_iter().collect(), instead.into_iter().collect()))
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        let dims = self.sites(shape)?.into_iter().map(|site| shape.linear_dims(site));
        Ok(dims.map(|[inputs, outputs]| self.r * (inputs + outputs)).sum())
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        let (_, site, leaf) = split_name(name);
        let word = match leaf {
            "a" => "A.weight",
            "b" => "B.weight",
            "before.a" => "before_A.weight",
            _ => "before_B.weight",
        };
        Key::transposed(pair::file_name(shape, site, word))
    }

    fn for_files(&self, shape: &Shape) -> Result<Self> {
        Ok(LoftQConfig { target_modules: self.target_modules.by_name(shape)?, ..self.clone() })
    }

    fn for_loading(&self, base: &Base) -> Result<LoftQ> {
        let (shape, device) = (base.shape(), base.device().clone().autodiff());
        let empty = |site| {
            let [inputs, outputs] = shape.linear_dims(site);
            let pair = || [Tensor::zeros([inputs, self.r], &device), Tensor::zeros([self.r, outputs], &device)];
            (site, Approximation::new(pair(), (self.loftq_iter > 1).then(pair)))
        };
        Ok(self.tuner(self.sites(shape)?.into_iter().map(empty).collect(), Instead::default()))
    }

    /// Quantizes the base as it was quantized at the start.
    fn loaded(&self, tuner: LoftQ, base: &Base) -> Result<LoftQ> {
        let quantized = |(site, of): (Site, &Approximation)| {
            let w = Matrix::of(base.weight(site));
            let w = match &of.before {
                Some(Earlier { a, b }) => w.without(&Thin::of(a.val(), b.val()), self.start_scale()),
                None => w,
            };
            let of = |error: Error| error.of(&base.shape().module_path(site).unwrap_or_default());
            Ok((site, Weight::Packed(self.quantized(&w, base.device()).map_err(of)?)))
        };
        let instead = tuner.factors.iter().map(quantized).collect::<Result<_>>()?;
        Ok(LoftQ { instead, ..tuner })
    }

    fn merge(tuner: &LoftQ) -> Option<&dyn Merge> {
        Some(tuner)
    }
}

impl Adapter for LoftQ {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        f(&(Opened::new(self, batch), &self.instead))
    }
}

impl Merge for LoftQ {
    fn weight(&self, site: Site, _w: &Weight) -> Option<Tensor<2>> {
        Some(self.pair(site)?.onto(self.instead.get(site)?))
    }
}

impl Procedure for LoftQ {}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use burn::tensor::TensorData;
    use peft_core::testing::golden::Case;
    use peft_core::testing::tolerances::{REFERENCE, SAME_FUNCTION};
    use peft_core::testing::{assert_close, difference};
    use peft_core::{Part, Trained};

    use super::*;

    peft_core::conformance!(
        LoftQConfig::new(3).with_alpha(5.0).with_sites(Part::Query | Part::Down),
        skip(C1: "it starts near the base, at its quantized matrices and the best factors beside them")
    );

    mod of_several_steps {
        use super::*;
        peft_core::conformance!(
            LoftQConfig::new(3).with_alpha(-2.0).with_steps(3).with_bits(8).with_sites(Part::Value),
            skip(C1: "it starts near the base, at its quantized matrices and the best factors beside them")
        );
    }

    fn cases() -> impl Iterator<Item = Case> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let cases = [("loftq", "roberta-classify"), ("loftq-steps", "bert-classify"), ("loftq-t5", "t5")];
        cases.into_iter().map(move |(case, base)| Case::open(folder.join(case), base))
    }

    #[test]
    fn equals_the_reference() {
        cases().for_each(|case| case.check_method::<LoftQConfig>());
    }

    /// From the base alone, and from the file; products of factors, since singular vectors have no sign.
    #[test]
    fn starts_equal_the_reference() {
        for case in cases() {
            let (config, Trained { tuner: loaded, .. }) = case.load::<LoftQConfig>();
            let own = config.init(&case.base, 0).unwrap();
            for (site, _) in own.factors.iter() {
                let path = case.base.shape().module_path(site).unwrap();
                let expected = case.expected(&format!("base.base_model.model.{path}"));
                for of in [&own, &loaded] {
                    let Some(Weight::Packed(w)) = of.instead.get(site) else { panic!("{path} is dense") };
                    let [inputs, outputs] = w.dims();
                    let found = TensorData::new(w.outputs(0..outputs), [outputs, inputs]);
                    // PEFT adds up what later steps take away in another order, in f32.
                    let allowed = if config.loftq_iter == 1 { 0.0 } else { SAME_FUNCTION.0 };
                    assert!(difference(&found, &expected) <= allowed, "{path}");
                }
                let [found, expected] = [&own, &loaded].map(|of| of.pair(site).unwrap().update().inner());
                assert_close(found, expected, REFERENCE, &path);
            }
        }
    }
}
