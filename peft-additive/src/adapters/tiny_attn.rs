//! # Tiny-Attn adapter                      family: additive / adapter-based
//! A' = A + o Wu + bu, o = D(MHA_H(q, k, v)), [q, k, v] = N(A) Wd + bd     A: [n, d], behind the self-attention, its residual and normalization; Wd: [d, 3 a], Wu: [a, d]; N: a layer normalization of the adapter's own
//! MHA: H heads of width a / H, with projections Wm: [a, 3 a], Wo: [a, a] and biases; D drops attention weights in training
//! Paper: Zhao et al., 2022, arXiv:2211.01979, section 3.   Reference: cindermond/tiny-attn, structure m0
//! Oracle: code cindermond/tiny-attn rewriter/model/tiny_attn.py: `equals_the_derivation_of_tiny_attn`
//! Trains: 3 d + 4 a d + 4 a^2 + 7 a per layer.      Merges: no, it mixes tokens; its heads may be averaged to one.
//! Identities:
//! - A' is what the equation says, padding and later tokens unseen: `a_tiny_attention_is_its_equation`
//! - Wu = 0, bu = 0 is the base: `a_tiny_attention_without_an_output_is_the_base`
//! - a sequence of one token has a linear map of N(A): `a_token_alone_is_mapped_linearly`
//! - averaged heads are the heads where those are alike, and one head is its own average: `averaged_heads_are_the_heads_where_these_are_alike`
//! - D drops a weight for a sample, head, query and key: `dropout_acts_on_the_attention_weights`
//! - keys and values are kept while a text is generated: `C11`
//! - it starts as the reference's: `each_form_starts_as_its_reference`
//!
//! Differs from the paper: the projections Wm and Wo are the reference's, the paper's equations have none. Its decoders (BART, GPT-2) draw one vector in place of q, k and v; here all models have RoBERTa's form. How the paper's experts are averaged is not in the reference: here queries, keys and values are the means of the heads', and the outputs their sum.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use peft_core::ops::attention::{joined, split};
use peft_core::{
    Affine, Attention, Base, Error, Frame, Hooks, Key, Mask, Method, Next, Norm, Part, Procedure, Result, Sequence,
    Shape, Site, SiteMap, Stack, adapter, random::Random, split_name,
};
use serde::{Deserialize, Serialize};

use super::bottleneck::check_dropout;
use crate::layer_path;

/// By how much the reference shrinks what the second map starts from.
const SHRUNK: f64 = 0.01;

/// The configuration of Tiny-Attn adapters, in the reference's names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TinyAttnConfig {
    /// The width a of the attention.
    pub attention_embd: usize,
    /// Its number of heads H, a divisor of a.
    pub attention_head: usize,
    /// Dropout probability of attention weights.
    pub attention_dropout: f64,
    /// Whether the heads are averaged to one after training.
    pub average_heads: bool,
}

impl Default for TinyAttnConfig {
    /// The published one: a single head of width 1.
    fn default() -> Self {
        TinyAttnConfig::new(1)
    }
}

impl TinyAttnConfig {
    /// So many heads of width 1.
    pub fn new(heads: usize) -> Self {
        TinyAttnConfig { attention_embd: heads, attention_head: heads, attention_dropout: 0.1, average_heads: false }
    }

    /// With an attention of this width.
    pub fn with_attention_embd(mut self, width: usize) -> Self {
        self.attention_embd = width;
        self
    }

    /// With attention weights dropped with this probability.
    pub fn with_attention_dropout(mut self, p: f64) -> Self {
        self.attention_dropout = p;
        self
    }

    /// With the heads averaged to one after training.
    pub fn with_average_heads(mut self) -> Self {
        self.average_heads = true;
        self
    }

    /// The sub-layers in front of which there is an adapter: those behind a self-attention.
    fn plan(&self, shape: &Shape) -> Result<Vec<Site>> {
        check_dropout(self.attention_dropout)?;
        if !(1..=shape.hidden).contains(&self.attention_embd) {
            return Err(Error::config("attention_embd", self.attention_embd, format!("1 to {}", shape.hidden)));
        }
        if self.attention_head == 0 || !self.attention_embd.is_multiple_of(self.attention_head) {
            let expected = format!("a divisor of attention_embd {}", self.attention_embd);
            return Err(Error::config("attention_head", self.attention_head, expected));
        }
        let crossed = shape.sites(Part::CrossAttention);
        let ends = shape.sites(Part::FeedForward);
        let first = |site: Site| crossed.iter().find(|c| (c.stack, c.layer) == (site.stack, site.layer)).copied();
        Ok(ends.into_iter().map(|site| first(site).unwrap_or(site)).collect())
    }
}

/// Adapters behind self-attentions.
#[derive(Module, Debug)]
pub struct TinyAttn {
    adapters: SiteMap<Tiny>,
    #[module(skip)]
    config: TinyAttnConfig,
}

/// One adapter.
#[derive(Module, Debug)]
struct Tiny {
    norm: Norm,
    /// Wd, `[d, 3 a]`.
    down: Affine,
    /// Wm, `[a, 3 a]`: of queries, keys and values.
    mix: Affine,
    /// Wo, `[a, a]`.
    out: Affine,
    /// Wu, `[a, d]`.
    up: Affine,
}

impl Tiny {
    /// As PyTorch starts linear maps and multi-head attentions, the second map shrunk.
    fn new(d: usize, a: usize, random: impl Fn(&str) -> Random, device: &Device) -> Self {
        let uniform = |name: &str, dims: [usize; 2], bound: f64, bias: f64| {
            let bias = random(&format!("{name}.bias")).uniform_tensor([dims[1]], -bias, bias, device);
            let weight = random(name).uniform_tensor(dims, -bound, bound, device);
            Affine { weight: Param::from_tensor(weight), bias: Param::from_tensor(bias) }
        };
        let [gain, bias] = [1.0, 0.0].map(|value| Param::from_tensor(Tensor::full([d], value, device)));
        let (wide, narrow) = (1.0 / (d as f64).sqrt(), 1.0 / (a as f64).sqrt());
        Tiny {
            norm: Norm { gain, bias },
            down: uniform("down", [d, 3 * a], wide, wide),
            mix: uniform("mix", [a, 3 * a], (6.0 / (4 * a) as f64).sqrt(), 0.0),
            out: uniform("out", [a, a], narrow, 0.0),
            up: uniform("up", [a, d], SHRUNK * narrow, SHRUNK * narrow),
        }
    }

    /// o Wu + bu.
    fn forward(&self, frame: &Frame<'_>, site: Site, x: &Sequence, config: &TinyAttnConfig) -> Tensor<3> {
        let (a, heads) = (config.attention_embd, config.attention_head);
        let input = self.down.forward(self.norm.forward(x.hidden.clone(), frame.shape().eps));
        let project = |i: usize| {
            let (weight, bias) = (self.mix.weight.val().narrow(1, i * a, a), self.mix.bias.val().narrow(0, i * a, a));
            split(input.clone().narrow(2, i * a, a).matmul(weight.unsqueeze()) + bias.unsqueeze(), heads)
        };
        let (query, key, value) = (project(0), project(1), project(2));
        let (key, value) = match site.stack {
            Stack::Encoder => (key, value),
            Stack::Decoder => frame.remember_own(self.up.weight.id, key, value),
        };
        // The model's biases are for its own heads.
        let mask = Mask { bias: None, ..x.mask.clone() };
        let drops = frame.drops(config.attention_dropout, format_args!("tiny_attn.{site}"));
        let context = Attention { input, query, key, value, mask }.context(true, drops);
        self.up.forward(self.out.forward(joined(context)))
    }

    /// One head whose query, key and value are the means of those of `heads`, and whose output is their sum.
    fn averaged(self, heads: usize) -> Self {
        let (device, width) = (self.up.weight.device(), self.up.weight.dims()[0] / heads);
        let eye: Tensor<2> = Tensor::eye(width, &device);
        let mean = eye.clone().repeat_dim(0, heads) / heads as f64;
        let affine = |weight: Tensor<2>, bias: Tensor<2>| Affine {
            weight: Param::from_tensor(weight),
            bias: Param::from_tensor(bias.squeeze_dim(0)),
        };
        let thirds = |x: Tensor<2>| x.chunk(3, 1);
        let mix = thirds(self.mix.weight.val()).into_iter().map(|map| map.matmul(mean.clone())).collect::<Vec<_>>();
        let through = |x: Tensor<2>| thirds(x).into_iter().zip(&mix).map(|(x, map)| x.matmul(map.clone())).collect();
        let own = thirds(self.mix.bias.val().unsqueeze()).into_iter().map(|bias| bias.matmul(mean.clone())).collect();
        let down = affine(
            Tensor::cat(through(self.down.weight.val()), 1),
            Tensor::cat(through(self.down.bias.val().unsqueeze()), 1) + Tensor::cat(own, 1),
        );
        let same = |n: usize| affine(eye.clone().repeat_dim(1, n), Tensor::zeros([1, n * width], &device));
        let summed = mean.transpose() * heads as f64;
        let up = affine(
            summed.matmul(self.out.weight.val()).matmul(self.up.weight.val()),
            self.up.forward(self.out.bias.val().unsqueeze::<2>()),
        );
        Tiny { norm: self.norm, down, mix: same(3), out: same(1), up }
    }
}

impl TinyAttn {
    /// The same adapters with their heads averaged to one.
    pub fn averaged(self) -> Self {
        let (heads, width) = (self.config.attention_head, self.config.attention_embd);
        let adapters = self.adapters.iter().map(|(site, tiny)| (site, tiny.valid().averaged(heads).train())).collect();
        let one =
            TinyAttnConfig { attention_embd: width / heads, attention_head: 1, average_heads: false, ..self.config };
        TinyAttn { adapters, config: one }
    }
}

impl Method for TinyAttnConfig {
    const NAME: &'static str = "tiny-attn";
    const PEFT_TYPE: &'static str = "TINY_ATTN_ADAPTER";
    type Tuner = TinyAttn;

    fn init(&self, base: &Base, seed: u64) -> Result<TinyAttn> {
        let (shape, device) = (base.shape(), base.device().clone().autodiff());
        let tiny = |site: Site| {
            let random = |name: &str| Random::new(seed, &format!("tiny_attn.{site}.{name}"));
            (site, Tiny::new(shape.hidden, self.attention_embd, random, &device))
        };
        Ok(TinyAttn { adapters: self.plan(shape)?.into_iter().map(tiny).collect(), config: self.clone() })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        let (d, a) = (shape.hidden, self.attention_embd);
        Ok(self.plan(shape)?.len() * (3 * d + 4 * a * d + 4 * a * a + 7 * a))
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        let (_, site, leaf) = split_name(name);
        let path = layer_path(shape, site) + ".tiny_attn";
        match leaf {
            "norm.gain" => Key::plain(format!("{path}.norm.weight")),
            "norm.bias" => Key::plain(format!("{path}.norm.bias")),
            "mix.weight" => Key::transposed(format!("{path}.attention.in_proj_weight")),
            "mix.bias" => Key::plain(format!("{path}.attention.in_proj_bias")),
            _ => {
                let (map, leaf) = leaf.split_once('.').unwrap_or((leaf, ""));
                let map = match map {
                    "down" => "linear1",
                    "out" => "attention.out_proj",
                    _ => "linear2",
                };
                Key { name: format!("{path}.{map}.{leaf}"), transposed: leaf == "weight" }
            }
        }
    }

    fn learned(&self, tuner: &TinyAttn, _shape: &Shape) -> Self {
        tuner.config.clone()
    }
}

impl Hooks for TinyAttn {
    fn sublayer(&self, frame: &Frame<'_>, site: Site, x: Sequence, next: Next<'_, Sequence, Tensor<3>>) -> Tensor<3> {
        let Some(tiny) = self.adapters.get(site) else { return next(x) };
        let added = tiny.forward(frame, site, &x, &self.config);
        next(Sequence { hidden: x.hidden.clone() + added.clone(), ..x }) + added
    }
}

adapter!(TinyAttn);

impl Procedure for TinyAttn {
    fn finish(self, _base: &Base) -> Result<Self> {
        Ok(if self.config.average_heads { self.averaged() } else { self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    mod one_head {
        use super::*;
        peft_core::conformance!(
            TinyAttnConfig::default(),
            skip(C1: "near identity only", C3: "it mixes tokens")
        );
    }

    mod two_heads {
        use super::*;
        peft_core::conformance!(
            TinyAttnConfig::new(2).with_attention_embd(6),
            skip(C1: "near identity only", C3: "it mixes tokens")
        );
    }

    mod averaged {
        use super::*;
        peft_core::conformance!(
            TinyAttnConfig::new(2).with_average_heads(),
            skip(C1: "near identity only", C3: "it mixes tokens")
        );
    }

    #[test]
    fn has_as_many_parameters_as_the_closed_form_says() {
        let [roberta, t5] = ["roberta-base", "t5-base"].map(|name| Shape::named(name).unwrap());
        assert_eq!(TinyAttnConfig::default().count(&roberta).unwrap(), 64_644);
        assert_eq!(TinyAttnConfig::default().count(&t5).unwrap(), 2 * 64_644);
        assert_eq!(TinyAttnConfig::new(4).count(&roberta).unwrap(), 12 * (19 * 768 + 64 + 28));
    }
}
