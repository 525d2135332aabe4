//! # Hadamard adapter                       family: additive / others
//! A' = A * w + b                           A: [n, d_a], the joined heads of the self-attention; w = 1, b = 0: (d_a,); the normalization that follows is trained
//! position = output: (A Wo + bo) * w + b   w, b: (d,)
//! Paper: Chen et al., 2023, arXiv:2407.11033.   Reference: none is public
//! Oracle: paper: `equals_the_derivation_of_hadamard`
//! Trains: 2 d_a (or 2 d) and a normalization (2 d, without a bias d) per layer.      Merges: yes, where the map that takes b in has a bias: the output projection, or for the joined heads the value's, which has as many heads.
//! Identities:
//! - the base at init, bit for bit: `C1`
//! - merged == unmerged on BERT and RoBERTa: `a_hadamard_adapter_folds_into_a_projection`
//! - b = 0 on the joined heads is (IA)^3 on the values: `a_hadamard_adapter_without_a_bias_scales_the_values`
//! - two in a row are one: `two_hadamard_adapters_in_a_row_are_one`
//! - a layer that is left out has w = 1, b = 0 and its normalization: `a_layer_left_out_is_the_bases`
//! - in the first stage the head alone moves: `the_head_is_trained_first`
//!
//! Differs from the paper: that A are the joined heads, before the output projection, is our reading of "self-attention outputs"; `position` has the other. Which normalization is trained is told by the count: 0.033% of BERT-base is one per layer, that behind the attention. In a pre-norm model it is the next one, which belongs to the next sub-layer. How long the first stage, the classifier alone, takes is not published: `head_steps`, by default none. w does not decay: it would be pulled to 0, not to 1.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::{
    Base, Error, Hooks, Key, Merge, Method, Next, Part, Place, Procedure, Result, Shape, Site, SiteMap, Slot, Stack,
    Weight, adapter, file_path, split_name,
    train::{Phase, Probe},
};
use serde::{Deserialize, Serialize};

use crate::adapters::bottleneck::Norms;

/// What is scaled and shifted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Position {
    /// The joined heads, in front of the output projection.
    #[default]
    Heads,
    /// What the output projection makes of them.
    Output,
}

/// The configuration of Hadamard adapters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HadamardConfig {
    /// What is scaled and shifted.
    pub position: Position,
    /// The layers with an adapter, of each stack; all, if absent.
    pub layers: Option<Vec<usize>>,
    /// Whether the normalizations that follow the adapters are trained too.
    pub train_layernorm: bool,
    /// How many steps at the start train the head alone.
    pub head_steps: usize,
}

impl Default for HadamardConfig {
    /// The paper's second stage, in all layers.
    fn default() -> Self {
        HadamardConfig { position: Position::Heads, layers: None, train_layernorm: true, head_steps: 0 }
    }
}

/// The output projections with an adapter, each with its width, and the places of the trained normalizations.
type Plan = (Vec<(Site, usize)>, Vec<Place>);

impl HadamardConfig {
    /// An adapter in each layer.
    pub fn new() -> Self {
        Self::default()
    }

    /// In this position.
    pub fn with_position(mut self, position: Position) -> Self {
        self.position = position;
        self
    }

    /// With adapters in these layers only, of each stack.
    pub fn with_layers(mut self, layers: impl IntoIterator<Item = usize>) -> Self {
        self.layers = Some(layers.into_iter().collect());
        self
    }

    /// With the normalizations that follow trained too, or frozen.
    pub fn with_train_layernorm(mut self, train: bool) -> Self {
        self.train_layernorm = train;
        self
    }

    /// With a first stage of so many steps that trains the head alone.
    pub fn with_head_steps(mut self, steps: usize) -> Self {
        self.head_steps = steps;
        self
    }

    fn plan(&self, shape: &Shape) -> Result<Plan> {
        let most = shape.stacks().into_iter().map(|(_, layers)| layers).max().unwrap_or(0);
        let known = |layers: &[usize]| BTreeSet::from_iter(layers.iter().filter(|layer| **layer < most)).len();
        if let Some(layers) = self.layers.as_ref().filter(|layers| layers.is_empty() || known(layers) != layers.len()) {
            let expected = format!("different layers from 0 to {}", most - 1);
            return Err(Error::config("layers", format!("{layers:?}"), expected));
        }
        if self.head_steps > 1_000_000_000 {
            return Err(Error::config("head_steps", self.head_steps, "at most 1000000000"));
        }
        let kept = |site: &Site| self.layers.as_ref().is_none_or(|layers| layers.contains(&site.layer));
        let sites: Vec<Site> = shape.sites(Part::Output).into_iter().filter(kept).collect();
        let next: BTreeSet<Site> = sites.iter().map(|site| next_norm(shape, *site)).collect();
        let mut norms = Norms::places(shape, self.train_layernorm);
        norms.retain(|place| next.contains(&place.site));
        let end = usize::from(self.position == Position::Output);
        Ok((sites.into_iter().map(|site| (site, shape.linear_dims(site)[end])).collect(), norms))
    }
}

/// The normalization that follows a self-attention.
fn next_norm(shape: &Shape, site: Site) -> Site {
    let crossed = shape.stacks().len() == 2 && site.stack == Stack::Decoder;
    let part = match (shape.pre_norm(), crossed) {
        (false, _) => Part::NormAttention,
        (true, true) => Part::NormCrossAttention,
        (true, false) => Part::NormFeedForward,
    };
    Site { part, ..site }
}

/// Factors and shifts behind self-attentions, and the normalizations that follow.
#[derive(Module, Debug)]
pub struct Hadamard {
    /// w, `[d_a]` or `[d]`, each at an output projection.
    weights: SiteMap<Param<Tensor<1>>>,
    /// b, as wide.
    biases: SiteMap<Param<Tensor<1>>>,
    norms: Norms,
    /// Whether the maps that are to take the adapters in can.
    #[module(skip)]
    merges: bool,
    /// Whether the head is trained alone.
    #[module(skip)]
    rests: bool,
    #[module(skip)]
    config: HadamardConfig,
}

impl Hadamard {
    /// As it is in a phase of a run.
    fn in_phase(self, phase: usize) -> Self {
        Hadamard { rests: phase == 0 && self.config.head_steps > 0, ..self }
    }

    /// x * w + b, where there is an adapter.
    fn apply<const D: usize>(&self, site: Site, x: Tensor<D>) -> Tensor<D> {
        match (self.weights.get(site), self.biases.get(site)) {
            (Some(w), Some(b)) => x * w.val().unsqueeze() + b.val().unsqueeze(),
            _ => x,
        }
    }
}

impl Method for HadamardConfig {
    const NAME: &'static str = "hadamard";
    const PEFT_TYPE: &'static str = "HADAMARD_ADAPTER";
    type Tuner = Hadamard;

    fn init(&self, base: &Base, _seed: u64) -> Result<Hadamard> {
        let (shape, device) = (base.shape(), base.device().clone().autodiff());
        let (sites, norms) = self.plan(shape)?;
        let all = |value: f64| {
            let start =
                |(site, width): &(Site, usize)| (*site, Param::from_tensor(Tensor::full([*width], value, &device)));
            sites.iter().map(start).collect()
        };
        let holder = folded(self.position);
        let biased = shape.places().iter().any(|place| place.site.part == holder && place.slot == Slot::Bias);
        Ok(Hadamard {
            weights: all(1.0),
            biases: all(0.0),
            norms: Norms::new(base, &norms),
            merges: biased && (self.position == Position::Output || shape.kv_heads() == shape.heads),
            rests: false,
            config: self.clone(),
        })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        let (sites, norms) = self.plan(shape)?;
        let adapters: usize = sites.iter().map(|(_, width)| 2 * width).sum();
        Ok(adapters + norms.iter().map(Place::count).sum::<usize>())
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        if let Some(name) = name.strip_prefix("norms.") {
            return Norms::key(name, shape);
        }
        let (field, site, _) = split_name(name);
        let leaf = if field == "weights" { "weight" } else { "bias" };
        Key::plain(format!("{}.hadamard_{leaf}", file_path(shape, site)))
    }

    fn merge(tuner: &Hadamard) -> Option<&dyn Merge> {
        if tuner.merges { Some(tuner) } else { None }
    }
}

impl Hooks for Hadamard {
    fn linear(&self, site: Site, x: Tensor<3>, next: Next<'_, Tensor<3>>) -> Tensor<3> {
        match self.config.position {
            Position::Heads => next(self.apply(site, x)),
            Position::Output => self.apply(site, next(x)),
        }
    }

    fn vector(&self, site: Site, slot: Slot, v: Tensor<1>) -> Tensor<1> {
        self.norms.get(site, slot).unwrap_or(v)
    }
}

adapter!(Hadamard);

/// The linear map that takes an adapter in. The weights of an attention have the sum 1, so that what is done to every value is done to
/// the heads.
fn folded(position: Position) -> Part {
    match position {
        Position::Heads => Part::Value,
        Position::Output => Part::Output,
    }
}

/// W diag(w), and c * w + b for the bias c of W.
impl Merge for Hadamard {
    fn weight(&self, site: Site, w: &Weight) -> Option<Tensor<2>> {
        let own = self.weights.get(Site { part: Part::Output, ..site });
        let own = own.filter(|_| site.part == folded(self.config.position))?;
        let w = w.dense();
        Some(w.clone() * own.val().to_device(&w.device()).unsqueeze())
    }

    fn vector(&self, site: Site, slot: Slot, v: &Tensor<1>) -> Option<Tensor<1>> {
        if site.part != folded(self.config.position) {
            return self.norms.get(site, slot);
        }
        let site = Site { part: Part::Output, ..site };
        self.weights.get(site).map(|_| self.apply(site, v.clone()))
    }
}

impl Procedure for Hadamard {
    fn phases(&self, steps: usize) -> Vec<Phase> {
        let phase = |name, steps| Phase { name, steps, rate: 1.0 };
        match self.config.head_steps {
            0 => vec![phase("adapters", steps)],
            head => vec![phase("head", head), phase("adapters", steps.saturating_sub(head))],
        }
    }

    fn prepare(self, _base: &Base, data: Probe<'_>) -> Result<Self> {
        Ok(self.in_phase(data.phase()))
    }

    fn resumed(self, _base: &Base, phase: usize, _shapes: &BTreeMap<String, Vec<usize>>) -> Result<Self> {
        Ok(self.in_phase(phase))
    }

    fn rate(&self, _name: &str, rate: f64) -> f64 {
        if self.rests { 0.0 } else { rate }
    }

    fn decays(&self, name: &str) -> bool {
        !name.starts_with("weights.")
    }
}

#[cfg(test)]
mod tests {
    use peft_core::testing::fixtures::DECODERS;

    use super::*;

    mod heads {
        use super::*;
        peft_core::conformance!(
            HadamardConfig::new(),
            skip(C3 on DECODERS: "T5 and LLaMA have no bias that could take in the adapter's; for encoders a property of its own tests it")
        );
    }

    mod output {
        use super::*;
        peft_core::conformance!(
            HadamardConfig::new().with_position(Position::Output).with_layers([1]).with_head_steps(3),
            skip(C3 on DECODERS: "T5 and LLaMA have no bias that could take in the adapter's; for encoders a property of its own tests it")
        );
    }

    #[test]
    fn has_as_many_parameters_as_the_paper_says() {
        let count = |config: HadamardConfig, name| config.count(&Shape::named(name).unwrap()).unwrap();
        // 0.033% of BERT-base, and 0.022% in 8 of 12 layers.
        assert_eq!(count(HadamardConfig::new(), "bert-base"), 36_864);
        assert_eq!(count(HadamardConfig::new().with_layers(4..12), "bert-base"), 24_576);
        assert_eq!(count(HadamardConfig::new().with_train_layernorm(false), "roberta-base"), 18_432);
        assert_eq!(count(HadamardConfig::new(), "t5-base"), 36_864 + 18_432);
        assert_eq!(count(HadamardConfig::new().with_position(Position::Output), "llama-7b"), 32 * 3 * 4096);
    }
}
