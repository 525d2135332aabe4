//! # Bottleneck adapter, any variant        family: additive / adapter-based
//! y = LN(a + x), a = out(D(s act(N1(z) Wd + bd) Wu + bu)), of a sub-layer with the input x and the output u     Wd: [d, m], Wu: [m, d]
//! z = u, LN(u + x) by `original_ln_before`, or x by `is_parallel`; out(e) = N2(e) + r, or N2(e + r) by `adapter_residual_before_ln`; r = u, z, or u + x by `residual_before_ln`; u, beside a sub-layer
//! s a number, a trained one, or d trained ones; N1, N2 trained normalizations or none; a gate: e times the mean over the tokens of sigmoid(z wg + bg); y = a without `original_ln_after`
//! nice: the states h = [h1, h2] behind the embeddings become [h1 + F(h2), h2 + G(h1 + F(h2))], F and G two maps with act between
//! Paper: Pfeiffer et al., 2020, arXiv:2005.00052, section 3.   Reference: adapter-hub `BnConfig`, whose settings these are; MAD-X is `SeqBnInvConfig`
//! Oracle: package adapters 1.3.0: `what_the_package_wrote_gives_its_logits_and_is_what_is_written`
//! Trains: 2 d m + m + d per place, 2 d per normalization, 1 or d per scale, d + 1 per gate; 4 c^2 / f + 2 c / f + d by `nice` of a factor f, where d = 2 c.      Merges: no, but for the sequential adapter's special cases.
//! Identities:
//! - Wu = 0, bu = 0 is the base, without normalizations inside: `maps_of_zeros_are_the_base`
//! - with the settings of a sequential or a parallel adapter it is that: `plain_settings_are_the_plain_adapters`
//! - a trained scale of s is the number s, d equal ones too: `a_trained_scale_is_the_number`
//! - the invertible block turned back is the identity: `the_block_can_be_turned_back`
//!
//! Differs from the paper: the invertible block is not turned back before a head for words, as on the package's LLaMA and T5 (where it is the encoder's alone); the package's `glow` fails on every model. A gate averages over padding too.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, activation, module};
use peft_core::adapterhub::{AdapterHub, Kind};
use peft_core::{
    Affine, Base, Frame, Hooks, Key, Method, Next, Norm, Part, Procedure, Result, Sequence, Shape, Site, SiteMap,
    Stack, adapter, random::Random, split_name,
};

use super::bn_config::{BnConfig, Invertible, ResidualAt, ResidualName, Scaling, TrainedScaling};
use super::bottleneck::{Bottleneck, count, key, normalized_sum};
use super::hub::HUB_IDLE;
use super::invertible::{Block, Coupling, block_name, inner_width};

/// PyTorch's, whatever the model's.
const EPS: f64 = 1e-5;
/// What matrices start from, as BERT.
const STD: f64 = 0.02;

/// Bottleneck adapters of one variant.
#[derive(Module, Debug)]
pub struct Bn {
    adapters: SiteMap<Variant>,
    block: Option<Block>,
    /// The stack behind whose word table the block stands, where nothing else makes the embeddings.
    #[module(skip)]
    block_at: Option<Stack>,
    #[module(skip)]
    config: BnConfig,
}

/// One adapter.
#[derive(Module, Debug)]
pub struct Variant {
    maps: Bottleneck,
    /// Gain and bias `[d]` each.
    after: Option<Norm>,
    /// `[1]` or `[d]`.
    scaling: Option<Param<Tensor<1>>>,
    /// Weight `[d, 1]`, bias `[1]`.
    gate: Option<Affine>,
}

impl Bn {
    /// The block behind the embeddings.
    pub fn block(&self) -> Option<&Block> {
        self.block.as_ref()
    }
}

impl Method for BnConfig {
    const NAME: &'static str = "bottleneck";
    const PEFT_TYPE: &'static str = "BOTTLENECK_ADAPTER";
    type Tuner = Bn;

    fn init(&self, base: &Base, seed: u64) -> Result<Bn> {
        let (shape, device) = (base.shape(), base.device().clone().autodiff());
        let d = shape.hidden;
        let random = |name: String| Random::new(seed, &format!("bottleneck.{name}"));
        let affine = |name: String, dims| Affine::init(dims, STD, random(name), &device);
        let filled = |n: usize, value: f64| Param::from_tensor(Tensor::full([n], value, &device));
        let variant = |(site, m): (Site, usize)| {
            let draw = |map: &str, dims| random(format!("{site}.{map}")).normal_tensor(dims, STD, &device);
            let maps = Bottleneck::new(draw("down", [d, m]), draw("up", [m, d]));
            let variant = Variant {
                maps: if self.ln_before { maps.with_norm() } else { maps },
                after: self.ln_after.then(|| Norm { gain: filled(d, 1.0), bias: filled(d, 0.0) }),
                scaling: match self.scaling {
                    Scaling::Number(_) => None,
                    Scaling::Trained(TrainedScaling::Learned) => Some(filled(1, 1.0)),
                    Scaling::Trained(TrainedScaling::Channel) => Some(filled(d, 1.0)),
                },
                gate: self.use_gating.then(|| affine(format!("{site}.gate"), [d, 1])),
            };
            (site, variant)
        };
        let adapters = self.plan(shape)?.into_iter().map(variant).collect();
        let block = match self.inv_adapter {
            None => None,
            Some(Invertible::Nice) => {
                let (first, [f, g]) = (d / 2, inner_width(shape, self.inv_adapter_reduction_factor)?);
                let coupling = |name: &str, [from, inner, to]: [usize; 3]| Coupling {
                    down: affine(format!("{name}.down"), [from, inner]),
                    up: affine(format!("{name}.up"), [inner, to]),
                };
                Some(Block {
                    first: coupling("first", [d - first, f, first]),
                    second: coupling("second", [first, g, d - first]),
                })
            }
        };
        let block_at = shape.pre_norm().then(|| shape.stacks()[0].0);
        Ok(Bn { adapters, block, block_at, config: self.clone() })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        let d = shape.hidden;
        let adapters: usize = self.plan(shape)?.into_iter().map(|(_, m)| count(d, m) + self.beside(d)).sum();
        let block = match self.inv_adapter {
            None => 0,
            Some(Invertible::Nice) => {
                let (first, [f, g]) = (d / 2, inner_width(shape, self.inv_adapter_reduction_factor)?);
                (d - first) * f + f + f * first + first + first * g + g + g * (d - first) + (d - first)
            }
        };
        Ok(adapters + block)
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        if let Some(name) = name.strip_prefix("block.") {
            let [map, place, leaf] = block_name(name);
            let name = format!("base_model.model.invertible_adapter.{map}.{place}.{leaf}");
            return Key { name, transposed: leaf == "weight" };
        }
        let (_, site, leaf) = split_name(name);
        match leaf.strip_prefix("maps.").unwrap_or(leaf) {
            "after.gain" => key(shape, site, "norm_after.weight"),
            "after.bias" => key(shape, site, "norm_after.bias"),
            "gate.weight" => Key { transposed: true, ..key(shape, site, "gate.weight") },
            leaf => key(shape, site, leaf),
        }
    }

    fn adapterhub() -> Option<AdapterHub<Self>> {
        let (fields, config, key) = (Self::hub_fields, Self::of_hub, Self::hub_key);
        Some(AdapterHub { kind: Kind::Bottleneck, fields, config, free: HUB_IDLE, key })
    }
}

impl Variant {
    /// What it makes of what it reads, and the residual that is added beside it.
    fn forward(
        &self,
        frame: &Frame<'_>,
        site: Site,
        read: Tensor<3>,
        residual: Option<Tensor<3>>,
        config: &BnConfig,
    ) -> Tensor<3> {
        let up = self.maps.forward(self.maps.read(read.clone(), EPS), config.non_linearity);
        let up = match (&self.scaling, config.scaling) {
            (Some(scaling), _) => up * scaling.val().unsqueeze(),
            (None, Scaling::Number(1.0)) | (None, Scaling::Trained(_)) => up,
            (None, Scaling::Number(scaling)) => up * scaling,
        };
        let mut output = frame.dropout(up, config.dropout, format_args!("bottleneck.{site}"));
        if let Some(gate) = &self.gate {
            output = output * activation::sigmoid(gate.forward(read)).mean_dim(1);
        }
        let (first, last) = if config.adapter_residual_before_ln { (residual, None) } else { (None, residual) };
        if let Some(residual) = first {
            output = output + residual;
        }
        if let Some(norm) = &self.after {
            output = module::layer_norm(output, norm.gain.val(), Some(norm.bias.val()), EPS);
        }
        match last {
            Some(residual) => output + residual,
            None => output,
        }
    }
}

impl Hooks for Bn {
    /// The block stands behind all that makes the embeddings of an encoder.
    fn layer(&self, frame: &Frame<'_>, site: Site, x: Sequence, next: Next<'_, Sequence>) -> Sequence {
        match &self.block {
            Some(block) if site.layer == 0 && !frame.shape().pre_norm() => {
                let hidden = block.forward(x.hidden, self.config.non_linearity);
                next(Sequence { hidden, ..x })
            }
            _ => next(x),
        }
    }

    /// Of other models it stands behind the word table of the first stack.
    fn embed(&self, stack: Stack, x: Sequence) -> Sequence {
        match &self.block {
            Some(block) if self.block_at == Some(stack) => {
                let hidden = block.forward(x.hidden, self.config.non_linearity);
                Sequence { hidden, ..x }
            }
            _ => x,
        }
    }

    fn sublayer(&self, frame: &Frame<'_>, site: Site, x: Sequence, next: Next<'_, Sequence, Tensor<3>>) -> Tensor<3> {
        let Some(variant) = self.adapters.get(site) else { return next(x) };
        let (input, config) = (x.hidden.clone(), &self.config);
        let output = next(x);
        let adapted = if config.is_parallel {
            variant.forward(frame, site, input.clone(), None, config) + output
        } else {
            let sum = || output.clone() + input.clone();
            let read = match config.original_ln_before {
                true => normalized_sum(frame, site, output.clone(), input.clone()),
                false => output.clone(),
            };
            let residual = match config.residual_before_ln {
                ResidualAt::BeforeNorm(true) => output.clone(),
                ResidualAt::BeforeNorm(false) => read.clone(),
                ResidualAt::Named(ResidualName::PostAdd) => sum(),
            };
            variant.forward(frame, site, read, Some(residual), config)
        };
        // What is added to the input is to be the adapter's output itself then.
        if config.original_ln_after { adapted } else { adapted - input }
    }

    fn norm(&self, site: Site, x: Tensor<3>, next: Next<'_, Tensor<3>>) -> Tensor<3> {
        let part = if site.part == Part::NormAttention { Part::SelfAttention } else { Part::FeedForward };
        match !self.config.original_ln_after && self.adapters.get(Site { part, ..site }).is_some() {
            true => x,
            false => next(x),
        }
    }
}

adapter!(Bn);
impl Procedure for Bn {}

#[cfg(test)]
mod tests {
    use super::super::bn_config::Reduction;
    use super::*;

    fn narrow() -> BnConfig {
        BnConfig { reduction_factor: Reduction::All(4.0), ..Default::default() }
    }

    mod mad_x {
        use super::*;
        peft_core::conformance!(
            BnConfig { reduction_factor: Reduction::All(4.0), ..BnConfig::mad_x() },
            skip(C1: "both matrices start at random", C3: "the non-linearity stands before the residual")
        );
    }

    mod everything {
        use super::*;
        peft_core::conformance!(
            BnConfig {
                mh_adapter: true,
                cross_adapter: true,
                original_ln_after: false,
                ln_before: true,
                ln_after: true,
                scaling: Scaling::Trained(TrainedScaling::Channel),
                residual_before_ln: ResidualAt::BeforeNorm(false),
                adapter_residual_before_ln: true,
                ..narrow()
            },
            skip(C1: "both matrices start at random", C3: "the non-linearity stands before the residual")
        );
    }

    mod parallel {
        use super::*;
        peft_core::conformance!(
            BnConfig {
                is_parallel: true,
                scaling: Scaling::Trained(TrainedScaling::Learned),
                ..narrow()
            },
            skip(C1: "both matrices start at random", C3: "the non-linearity stands before the residual")
        );
    }

    #[test]
    fn has_as_many_parameters_as_the_reference() {
        let shape = Shape::named("roberta-base").unwrap();
        // 12 (2 * 768 * 48 + 48 + 768) and 2 (2 * 384 * 192 + 192 + 384).
        assert_eq!(BnConfig::mad_x().count(&shape).unwrap(), 894_528 + 296_064);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let [bert, t5] = ["bert-base", "t5-base"].map(|name| Shape::named(name).unwrap());
        let of = |config: BnConfig, shape: &Shape| config.count(shape).unwrap_err().to_string();
        let default = BnConfig::default;
        let post_add = ResidualAt::Named(ResidualName::PostAdd);
        let layers = Reduction::Layers([("0".to_string(), 2.0)].into_iter().collect());
        for (message, words) in [
            (
                of(BnConfig { reduction_factor: Reduction::All(0.0), ..default() }, &bert),
                ["reduction_factor: 0", "above 0"],
            ),
            (
                of(BnConfig { reduction_factor: layers, ..default() }, &bert),
                ["reduction_factor", "layer 1 or as default"],
            ),
            (of(BnConfig { scaling: Scaling::Number(0.0), ..default() }, &bert), ["scaling: 0", "learned or channel"]),
            (
                of(BnConfig { residual_before_ln: post_add, ..default() }, &t5),
                ["residual_before_ln: post_add", "true or false"],
            ),
            (
                of(BnConfig { inv_adapter: None, ..BnConfig::mad_x() }, &bert),
                ["inv_adapter_reduction_factor: 2", "none without"],
            ),
            (
                of(BnConfig { inv_adapter_reduction_factor: Some(1e9), ..BnConfig::mad_x() }, &bert),
                ["inv_adapter_reduction_factor", "at most 384"],
            ),
            (of(BnConfig { leave_out: vec![12], ..default() }, &bert), ["leave_out: 12", "below 12"]),
        ] {
            assert!(words.iter().all(|word| message.contains(word)), "{words:?}: {message}");
        }
    }
}
