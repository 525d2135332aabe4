//! # Compacter                              family: hybrid / manual combination
//! h' = h + act(z Wd + bd) Wu + bu          z = h, the output of a sub-layer before its residual addition; with `normalized` z = LN(h + x), x its input
//! W = sum_i A_i kron (s_i t_i)             A: [n, n, n], one for all W; of each W: [k, d] its own s: [n, k / n, R], t: [n, R, d / n]
//! Paper: Karimi Mahabadi et al., 2021, arXiv:2106.04647, sections 3 and 4.   Reference: rabeehk/compacter; adapter-hub `CompacterConfig`, `CompacterPlusPlusConfig`
//! Oracle: package adapters 1.3.0: `what_the_package_wrote_gives_its_logits_and_is_what_is_written`
//! Trains: n^3, 2 R (d + m) + m + d per sub-layer, and 2 d per layer normalization.      Merges: no, the non-linearity is in front of the residual.
//! Identities:
//! - h' is what the equation says, though no W is ever made: `a_compacter_is_its_equation`
//! - A = 0 and biases of 0 are the base: `without_a_rule_a_compacter_is_the_base`
//! - c A with t / c is the same: `the_rule_scales_as_the_factors_do`
//! - A is one tensor, and gets the gradients of all sub-layers: `the_rule_gets_the_gradients_of_all_layers`
//! - Compacter++ is the same without the adapters after attention: `compacter_plus_plus_is_without_those_after_attention`
//! - it starts as its reference does: `it_starts_as_its_reference`
//!
//! Differs from the paper: of its form with a B_i of full rank (PHM adapters) only that of rank R is offered. AdapterHub trains no normalization, has the exact GELU, and its Compacter++ is `normalized`; those are settings here.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use peft_additive::Activation;
use peft_additive::adapters::bottleneck::{Norms, check_width, key, normalized_sum, sublayers};
use peft_additive::adapters::hub::{hub_fields, hub_key, hub_settings};
use peft_core::adapterhub::{AdapterHub, Fields, HubKey, Kind, Layout, field};
use peft_core::{
    Base, Error, Frame, Hooks, Key, Method, Next, Part, Place, Procedure, Result, Sequence, Shape, Site, SiteMap, Slot,
    adapter, random::Random, split_name,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// The configuration of Compacter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CompacterConfig {
    /// Width m of the bottleneck.
    pub bottleneck: usize,
    /// The number n of Kronecker products in a sum, which divides both widths of a matrix.
    pub phm_dim: usize,
    /// The rank R of the second matrix of each product.
    pub phm_rank: usize,
    /// Standard deviation of the start of A.
    pub phm_init_range: f64,
    /// Between the maps.
    pub activation: Activation,
    /// The sub-layers behind which there is an adapter, in every layer.
    pub sublayers: Vec<Part>,
    /// Whether an adapter reads the normalized sum of its sub-layer with the residual, and not the sub-layer's own output.
    pub normalized: bool,
    /// Whether all layer normalizations of the model are trained too.
    pub train_layernorm: bool,
}

impl Default for CompacterConfig {
    /// The paper's on a model of width 768: a bottleneck of 24, four products of rank 1.
    fn default() -> Self {
        CompacterConfig {
            bottleneck: 24,
            phm_dim: 4,
            phm_rank: 1,
            phm_init_range: 1e-4,
            activation: Activation::GeluNew,
            sublayers: vec![Part::SelfAttention, Part::FeedForward],
            normalized: false,
            train_layernorm: true,
        }
    }
}

impl CompacterConfig {
    /// The paper's form with a bottleneck of this width.
    pub fn new(bottleneck: usize) -> Self {
        CompacterConfig { bottleneck, ..Default::default() }
    }

    /// Compacter++: after the feed-forward network only.
    pub fn plus_plus(bottleneck: usize) -> Self {
        CompacterConfig { sublayers: vec![Part::FeedForward], ..Self::new(bottleneck) }
    }

    /// With sums of so many products of this rank.
    pub fn with_products(mut self, n: usize, rank: usize) -> Self {
        (self.phm_dim, self.phm_rank) = (n, rank);
        self
    }

    /// With this non-linearity.
    pub fn with_activation(mut self, activation: Activation) -> Self {
        self.activation = activation;
        self
    }

    /// With adapters that read the normalized sum, or the sub-layer's own output.
    pub fn with_normalized(mut self, normalized: bool) -> Self {
        self.normalized = normalized;
        self
    }

    /// With the model's layer normalizations trained too, or frozen.
    pub fn with_train_layernorm(mut self, train: bool) -> Self {
        self.train_layernorm = train;
        self
    }

    /// The sub-layers with an adapter; refuses settings that cannot be.
    fn plan(&self, shape: &Shape) -> Result<Vec<Site>> {
        check_width(self.bottleneck, shape)?;
        let (n, widths) = (self.phm_dim, [shape.hidden, self.bottleneck]);
        if n == 0 || widths.iter().any(|width| width % n != 0) {
            let expected =
                format!("a divisor of {} and {}, the model's width and the bottleneck's", widths[0], widths[1]);
            return Err(Error::config("phm_dim", n, expected));
        }
        if !(1..=shape.hidden).contains(&self.phm_rank) {
            return Err(Error::config("phm_rank", self.phm_rank, format!("1 to {}, the model's width", shape.hidden)));
        }
        // From 0 no factor would ever move: the gradient of each is a product with A.
        if !(self.phm_init_range > 0.0 && self.phm_init_range <= 1.0) {
            return Err(Error::config("phm_init_range", self.phm_init_range, "a number above 0, at most 1"));
        }
        sublayers(&self.sublayers, shape)
    }
}

/// AdapterHub's `CompacterConfig` and `CompacterPlusPlusConfig`.
impl CompacterConfig {
    fn hub_fields(&self, shape: &Shape) -> Result<Fields> {
        if self.train_layernorm {
            let expected = "false: AdapterHub's files hold no normalization of the model";
            return Err(Error::config("train_layernorm", true, expected));
        }
        let places = [Part::SelfAttention, Part::FeedForward].map(|part| self.sublayers.contains(&part));
        let own = [
            ("original_ln_before", json!(self.normalized)),
            ("is_parallel", json!(false)),
            ("scaling", json!(1.0)),
            ("init_weights", json!("bert")),
            ("phm_layer", json!(true)),
            ("phm_dim", json!(self.phm_dim)),
            ("phm_rank", json!(self.phm_rank)),
            ("phm_init_range", json!(self.phm_init_range)),
        ];
        Ok(hub_fields(shape, self.bottleneck, self.activation, places, own))
    }

    fn of_hub(fields: &Fields, shape: &Shape) -> Result<Self> {
        let (bottleneck, activation) = hub_settings(fields, shape)?;
        let on = |key: &str| field::<bool>(fields, key, "true or false");
        let attention = on("mh_adapter")?.then_some(Part::SelfAttention);
        let feed_forward = on("output_adapter")?.then_some(Part::FeedForward);
        Ok(CompacterConfig {
            bottleneck,
            phm_dim: field(fields, "phm_dim", "a divisor of both widths")?,
            phm_rank: field(fields, "phm_rank", "a rank, from 1")?,
            phm_init_range: field(fields, "phm_init_range", "a number above 0")?,
            activation,
            sublayers: attention.into_iter().chain(feed_forward).collect(),
            normalized: on("original_ln_before")?,
            train_layernorm: false,
        })
    }

    fn hub_key(&self, name: &str, adapter: &str, shape: &Shape) -> HubKey {
        if name == "rule" {
            return HubKey::new(format!("{}shared_parameters.{adapter}.phm_rule", shape.prefix), Layout::Same);
        }
        let (_, site, leaf) = split_name(name);
        let path = hub_key(shape, site, leaf, adapter).name;
        let (map, leaf) = path.rsplit_once('.').unwrap_or_default();
        let leaf = match leaf {
            "left" => "W_left",
            "right" => "W_right",
            _ => "b",
        };
        HubKey::new(format!("{map}.{leaf}"), Layout::Same)
    }
}

/// Adapters after sub-layers whose matrices are sums of Kronecker products.
#[derive(Module, Debug)]
pub struct Compacter {
    /// A of all matrices, `[n, n, n]`.
    rule: Param<Tensor<3>>,
    adapters: SiteMap<Phm>,
    norms: Norms,
    #[module(skip)]
    activation: Activation,
    #[module(skip)]
    normalized: bool,
}

/// The maps of one adapter.
#[derive(Module, Debug)]
pub struct Phm {
    down: PhmLinear,
    up: PhmLinear,
}

/// A linear map whose matrix is a sum of Kronecker products, each of an A_i with s_i t_i.
#[derive(Module, Debug)]
pub struct PhmLinear {
    /// s, `[n, in / n, R]`.
    left: Param<Tensor<3>>,
    /// t, `[n, R, out / n]`.
    right: Param<Tensor<3>>,
    /// `[out]`.
    bias: Param<Tensor<1>>,
}

impl PhmLinear {
    /// Each s_i and t_i uniform as Glorot and Bengio start a map into a ReLU, biases of 0.
    fn new(
        [n, rank]: [usize; 2],
        [rows, columns]: [usize; 2],
        random: impl Fn(&str) -> Random,
        device: &Device,
    ) -> Self {
        let factor = |name: &str, rows: usize, columns: usize| {
            let bound = (12.0 / (rows + columns) as f64).sqrt();
            Param::from_tensor(random(name).uniform_tensor([n, rows, columns], -bound, bound, device))
        };
        PhmLinear {
            left: factor("left", rows / n, rank),
            right: factor("right", rank, columns / n),
            bias: Param::from_tensor(Tensor::zeros([columns], device)),
        }
    }

    /// x W + b. W[(p, q), (u, v)] is the sum of A_i[p, u] s_i[q, r] t_i[r, v] over i and r: one sum after the other never makes W.
    fn forward(&self, rule: Tensor<3>, x: Tensor<3>) -> Tensor<3> {
        let [batch, tokens, _] = x.dims();
        let ([n, inner, rank], [_, _, outer], rows) = (self.left.dims(), self.right.dims(), batch * tokens);
        let left = self.left.val().swap_dims(0, 1).reshape([inner, n * rank]);
        // [row, p, i, r] to [i, (row, r), p], with A to [i, (row, r), u], and to [(row, u), (i, r)].
        let x = x.reshape([rows * n, inner]).matmul(left).reshape([rows, n, n, rank]);
        let x = x.permute([2, 0, 3, 1]).reshape([n, rows * rank, n]).matmul(rule);
        let x = x.reshape([n, rows, rank, n]).permute([1, 3, 0, 2]).reshape([rows * n, n * rank]);
        let y = x.matmul(self.right.val().reshape([n * rank, outer]));
        y.reshape([batch, tokens, n * outer]) + self.bias.val().unsqueeze()
    }
}

impl Method for CompacterConfig {
    const NAME: &'static str = "compacter";
    const PEFT_TYPE: &'static str = "COMPACTER";
    type Tuner = Compacter;

    fn init(&self, base: &Base, seed: u64) -> Result<Compacter> {
        let (shape, device) = (base.shape(), base.device().clone().autodiff());
        let ([d, m], n) = ([shape.hidden, self.bottleneck], self.phm_dim);
        let adapters = self.plan(shape)?.into_iter().map(|site| {
            let map = |map: &str, dims| {
                let random = |name: &str| Random::new(seed, &format!("compacter.{site}.{map}.{name}"));
                PhmLinear::new([n, self.phm_rank], dims, random, &device)
            };
            (site, Phm { down: map("down", [d, m]), up: map("up", [m, d]) })
        });
        let rule = Random::new(seed, "compacter.rule").normal_tensor([n; 3], self.phm_init_range, &device);
        Ok(Compacter {
            adapters: adapters.collect(),
            rule: Param::from_tensor(rule),
            norms: Norms::new(base, &Norms::places(base.shape(), self.train_layernorm)),
            activation: self.activation,
            normalized: self.normalized,
        })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        let (d, m) = (shape.hidden, self.bottleneck);
        let adapters = self.plan(shape)?.len() * (2 * self.phm_rank * (d + m) + m + d);
        let norms: usize = Norms::places(shape, self.train_layernorm).iter().map(Place::count).sum();
        Ok(self.phm_dim.pow(3) + adapters + norms)
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        if let Some(name) = name.strip_prefix("norms.") {
            return Norms::key(name, shape);
        }
        if name == "rule" {
            return Key::plain("base_model.model.phm_rule");
        }
        let (_, site, leaf) = split_name(name);
        key(shape, site, leaf)
    }

    fn adapterhub() -> Option<AdapterHub<Self>> {
        let free = &[
            "reduction_factor",
            "non_linearity",
            "init_weights",
            "init_weights_seed",
            "adapter_residual_before_ln",
            "inv_adapter_reduction_factor",
            "phm_c_init",
            "learn_phm",
            "hypercomplex_nonlinearity",
        ];
        Some(AdapterHub {
            kind: Kind::Compacter,
            fields: Self::hub_fields,
            config: Self::of_hub,
            free,
            key: Self::hub_key,
        })
    }
}

impl Hooks for Compacter {
    fn sublayer(&self, frame: &Frame<'_>, site: Site, x: Sequence, next: Next<'_, Sequence, Tensor<3>>) -> Tensor<3> {
        let Some(Phm { down, up }) = self.adapters.get(site) else { return next(x) };
        let (residual, rule) = (x.hidden.clone(), self.rule.val());
        let output = next(x);
        let read = match self.normalized {
            true => normalized_sum(frame, site, output.clone(), residual),
            false => output.clone(),
        };
        output + up.forward(rule.clone(), self.activation.apply(down.forward(rule, read)))
    }

    fn vector(&self, site: Site, slot: Slot, v: Tensor<1>) -> Tensor<1> {
        self.norms.get(site, slot).unwrap_or(v)
    }
}

adapter!(Compacter);
impl Procedure for Compacter {}

#[cfg(test)]
mod tests {
    use super::*;

    mod compacter {
        use super::*;
        peft_core::conformance!(
            CompacterConfig::new(6).with_products(2, 3),
            skip(C1: "near identity only", C3: "the non-linearity stands between the output projection and the residual")
        );
    }

    mod compacter_plus_plus {
        use super::*;
        peft_core::conformance!(
            CompacterConfig::plus_plus(8).with_normalized(true).with_train_layernorm(false),
            skip(C1: "near identity only", C3: "the non-linearity stands between the output projection and the residual")
        );
    }

    #[test]
    fn has_as_many_parameters_as_the_reference() {
        let shape = Shape::named("roberta-base").unwrap();
        let count = |config: CompacterConfig| config.count(&shape).unwrap();
        assert_eq!([CompacterConfig::new(24), CompacterConfig::plus_plus(24)].map(count), [95_488, 66_976]);
        let frozen = |config: CompacterConfig| count(config.with_train_layernorm(false));
        assert_eq!([CompacterConfig::new(24), CompacterConfig::plus_plus(24)].map(frozen), [57_088, 28_576]);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let base = peft_core::testing::base("roberta-tiny", &peft_core::testing::device());
        for (config, words) in [
            (CompacterConfig::new(6), "phm_dim: 4 is not allowed, expected a divisor of 24 and 6"),
            (CompacterConfig::new(10).with_products(5, 1), "phm_dim: 5"),
            (CompacterConfig::new(6).with_products(0, 1), "phm_dim: 0"),
            (CompacterConfig::new(8).with_products(4, 0), "phm_rank: 0"),
            (CompacterConfig { sublayers: vec![Part::Query], ..CompacterConfig::new(8) }, "sublayers: query"),
            (CompacterConfig { sublayers: vec![], ..CompacterConfig::new(8) }, "sublayers: none"),
            (CompacterConfig { phm_init_range: 0.0, ..CompacterConfig::new(8) }, "phm_init_range: 0"),
        ] {
            let message = config.init(&base, 0).unwrap_err().to_string();
            assert!(message.contains(words), "{message}");
        }
    }
}
