//! # KronA_B and KronA_B_res                family: reparameterized / low-rank decomposition
//! y = FFN(x) + s (A (x) B) x               A: [a1, a2] = 0, B: [b1, b2] ~ U(-1/sqrt(b1), 1/sqrt(b1)), a1 b1 = a2 b2 = d
//! y = FFN(x) + s (A (x) B) x + t x         of KronA_B_res, t a number per layer, trained
//! Paper: Edalati et al., 2022, arXiv:2212.10650, section 3.2.   Reference: none, the authors have published no code
//! Oracle: paper: `equals_a_derivation_in_float64`
//! Trains: a1 a2 + b1 b2 per layer, with the residual 1 more.      Merges: no, the feed-forward network is no linear map.
//! Identities:
//! - zero at init: `C1`
//! - logits, gradients and ten steps are those of the equations: `equals_a_derivation_in_float64`
//! - what is added is s (A (x) B) x + t x: `beside_the_network_is_its_equation`
//! - t = 0 is KronA_B: `without_a_residual_it_is_krona_b`
//!
//! Differs from the paper: s is a setting and t starts at 0, not at 1 as elsewhere, so that a run starts from the model; `residual` sets another start. x is what the network's first linear map reads: on a pre-norm model it is normalized. The paper is on T5; RoBERTa, BERT and LLaMA are an extension.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::{
    Base, Error, Frame, Hooks, Key, Method, Next, Part, Procedure, Result, Sequence, Shape, Site, SiteMap, adapter,
    file_path, split_name,
};
use serde::{Deserialize, Serialize};

use super::kronecker::{Kronecker, sides};
use super::ranks::check_alpha;

/// The configuration of KronA_B, and of KronA_B_res.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KronaBConfig {
    /// The scale s.
    pub scale: f64,
    /// The sides `[a1, a2]` of A; the smaller of the two nearest to the root of the model's width, if absent.
    pub factor: Option<[usize; 2]>,
    /// What t starts at; it is not there, if absent.
    pub residual: Option<f64>,
}

impl Default for KronaBConfig {
    /// Scale 1, without a residual.
    fn default() -> Self {
        KronaBConfig { scale: 1.0, factor: None, residual: None }
    }
}

impl KronaBConfig {
    /// KronA_B: scale 1, without a residual.
    pub fn new() -> Self {
        Self::default()
    }

    /// KronA_B_res: with a residual of 0 at the start.
    pub fn with_residual(self) -> Self {
        KronaBConfig { residual: Some(0.0), ..self }
    }

    /// With this scale.
    pub fn with_scale(self, scale: f64) -> Self {
        KronaBConfig { scale, ..self }
    }

    /// With an A of these sides.
    pub fn with_factor(self, factor: [usize; 2]) -> Self {
        KronaBConfig { factor: Some(factor), ..self }
    }

    /// The sides of A and B.
    fn sides(&self, shape: &Shape) -> Result<[[usize; 2]; 2]> {
        check_alpha("scale", self.scale)?;
        if let Some(start) = self.residual.filter(|start| !start.is_finite()) {
            return Err(Error::config("residual", start, "a finite number"));
        }
        sides([shape.hidden; 2], self.factor, None, "the residual stream")
    }
}

/// Kronecker products beside feed-forward networks.
#[derive(Module, Debug)]
pub struct KronaB {
    maps: SiteMap<Beside>,
    #[module(skip)]
    scale: f64,
}

/// What is added to the output of one network.
#[derive(Module, Debug)]
pub struct Beside {
    product: Kronecker,
    /// `[1]`.
    residual: Option<Param<Tensor<1>>>,
}

impl Method for KronaBConfig {
    const NAME: &'static str = "krona-b";
    const PEFT_TYPE: &'static str = "KRONA_B";
    type Tuner = KronaB;

    fn init(&self, base: &Base, seed: u64) -> Result<KronaB> {
        let (shape, device) = (base.shape(), base.device().clone().autodiff());
        let sides = self.sides(shape)?;
        let beside = |site| {
            let product = Kronecker::init(sides, [None; 2], &format!("krona_b.{site}"), seed, &device);
            let residual = self.residual.map(|start| Param::from_tensor(Tensor::full([1], start, &device)));
            (site, Beside { product, residual })
        };
        Ok(KronaB { maps: shape.sites(Part::FeedForward).into_iter().map(beside).collect(), scale: self.scale })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        let factors: usize = self.sides(shape)?.into_iter().map(|[rows, columns]| rows * columns).sum();
        Ok(shape.sites(Part::FeedForward).len() * (factors + usize::from(self.residual.is_some())))
    }

    /// Beside the last map of the network.
    fn key(&self, name: &str, shape: &Shape) -> Key {
        let (_, site, leaf) = split_name(name);
        let path = file_path(shape, Site { part: Part::Down, ..site });
        match leaf {
            "residual" => Key::plain(format!("{path}.krona_residual")),
            "product.a.Whole" => Key::transposed(format!("{path}.krona_w1")),
            _ => Key::transposed(format!("{path}.krona_w2")),
        }
    }
}

impl Hooks for KronaB {
    fn sublayer(&self, frame: &Frame<'_>, site: Site, x: Sequence, next: Next<'_, Sequence, Tensor<3>>) -> Tensor<3> {
        let Some(Beside { product, residual }) = self.maps.get(site) else { return next(x) };
        let input = match frame.shape().pre_norm() {
            true => frame.norm(Site { part: Part::NormFeedForward, ..site }, x.hidden.clone()),
            false => x.hidden.clone(),
        };
        let y = next(x) + product.forward(input.clone()) * self.scale;
        match residual {
            Some(t) => y + input * t.val().unsqueeze(),
            None => y,
        }
    }
}

adapter!(KronaB);
impl Procedure for KronaB {}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use peft_core::testing::golden::Case;

    use super::*;

    mod plain {
        use super::*;
        peft_core::conformance!(
            KronaBConfig::new().with_scale(0.7),
            skip(C3: "a feed-forward network is no linear map that could take the product in")
        );
    }

    mod residual {
        use super::*;
        peft_core::conformance!(
            KronaBConfig::new().with_factor([6, 2]).with_residual(),
            skip(C3: "a feed-forward network is no linear map that could take the product in")
        );
    }

    #[test]
    fn equals_a_derivation_in_float64() {
        for (case, base) in [("krona-b", "roberta-classify"), ("krona-b-res", "roberta-classify"), ("krona-b-t5", "t5")]
        {
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case);
            Case::open(dir, base).check_method::<KronaBConfig>();
        }
    }
}
