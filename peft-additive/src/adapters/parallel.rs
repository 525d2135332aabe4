//! # Parallel adapter                       family: additive / adapter-based
//! u' = u + s (D(act(x Wd + bd)) Wu + bu)   Wd: [d, m], Wu: [m, d] = 0, x the input of a sub-layer, u its output, before its residual addition, D dropout in training
//! Paper: He et al., 2021, arXiv:2110.04366, section 4.6.   Reference: jxhe/unify-parameter-efficient-tuning; adapter-hub `ParBnConfig`
//! Oracle: package adapters 1.3.0: `what_the_package_wrote_gives_its_logits_and_is_what_is_written`
//! Trains: 2 d m + m + d per sub-layer.      Merges: no, the sub-layer is no linear map.
//! Identities:
//! - the base at init: `C1`
//! - u' is what the equation says: `a_parallel_adapter_is_its_equation`
//! - the order of the bottleneck's units does not matter: `the_order_of_the_units_does_not_matter_in_parallel`
//! - Wu = 0, bu = 0 is the base: `a_second_map_of_zeros_adds_nothing_in_parallel`
//! - s -> c s is (Wu, bu) -> c (Wu, bu): `the_scale_multiplies_the_second_map`
//! - D drops a unit of the bottleneck for a sample and position: `dropout_stands_behind_the_activation`
//! - act = identity on a linear map W is W + s Wd Wu, LoRA's form: `without_a_non_linearity_it_is_a_low_rank_update`
//!
//! Differs from the paper: s is a setting, never learned. AdapterHub's dropout stands behind the second map: its files say nothing of ours. x is the residual stream, which a pre-norm model has not normalized yet, as in both references.

use burn::module::Module;
use burn::tensor::Tensor;
use peft_core::adapterhub::{AdapterHub, Fields, Kind, field};
use peft_core::{
    Base, Error, Frame, Hooks, Key, Method, Next, Part, Procedure, Result, Sequence, Shape, Site, SiteMap, adapter,
    random::Random, split_name,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::bottleneck::{Activation, Bottleneck, check_dropout, check_width, count, key, sublayers};
use super::hub::{HUB_FREE, LAYERS, hub_fields, hub_key, hub_settings};

/// The configuration of parallel adapters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ParallelConfig {
    /// Width m of the bottleneck.
    pub bottleneck: usize,
    /// The factor s of what is added.
    pub scaling: f64,
    /// Between the maps.
    pub activation: Activation,
    /// Dropout probability behind the activation; the model's, if absent.
    pub dropout: Option<f64>,
    /// The sub-layers beside which there is an adapter.
    pub sublayers: Vec<Part>,
    /// Layers without an adapter, by their numbers; a decoder's come after its encoder's.
    pub leave_out: Vec<usize>,
}

impl Default for ParallelConfig {
    /// The paper's best: width 512, scale 4, beside the feed-forward network.
    fn default() -> Self {
        let (activation, sublayers) = (Activation::Relu, vec![Part::FeedForward]);
        ParallelConfig { bottleneck: 512, scaling: 4.0, activation, dropout: None, sublayers, leave_out: vec![] }
    }
}

impl ParallelConfig {
    /// The paper's form with a bottleneck of this width.
    pub fn new(bottleneck: usize) -> Self {
        ParallelConfig { bottleneck, ..Default::default() }
    }

    /// With this factor.
    pub fn with_scaling(mut self, scaling: f64) -> Self {
        self.scaling = scaling;
        self
    }

    /// With this non-linearity.
    pub fn with_activation(mut self, activation: Activation) -> Self {
        self.activation = activation;
        self
    }

    /// With dropout of this probability behind the activation.
    pub fn with_dropout(mut self, p: f64) -> Self {
        self.dropout = Some(p);
        self
    }

    /// Beside these sub-layers.
    pub fn with_sublayers(mut self, sublayers: impl IntoIterator<Item = Part>) -> Self {
        self.sublayers = sublayers.into_iter().collect();
        self
    }

    /// Without adapters in these layers.
    pub fn with_leave_out(mut self, layers: impl IntoIterator<Item = usize>) -> Self {
        self.leave_out = layers.into_iter().collect();
        self
    }

    /// The sub-layers with an adapter; refuses settings that cannot be.
    fn plan(&self, shape: &Shape) -> Result<Vec<Site>> {
        check_width(self.bottleneck, shape)?;
        self.dropout.map_or(Ok(()), check_dropout)?;
        // With 0 nothing would ever move.
        if !self.scaling.is_finite() || self.scaling == 0.0 {
            return Err(Error::config("scaling", self.scaling, "a finite number other than 0"));
        }
        shape.leaving_out(sublayers(&self.sublayers, shape)?, &self.leave_out)
    }
}

/// AdapterHub's `ParBnConfig`.
impl ParallelConfig {
    fn hub_fields(&self, shape: &Shape) -> Result<Fields> {
        let places = [Part::SelfAttention, Part::FeedForward].map(|part| self.sublayers.contains(&part));
        let own = [
            ("original_ln_before", json!(false)),
            ("is_parallel", json!(true)),
            ("scaling", json!(self.scaling)),
            ("init_weights", json!("mam_adapter")),
            ("leave_out", json!(self.leave_out)),
        ];
        Ok(hub_fields(shape, self.bottleneck, self.activation, places, own))
    }

    fn of_hub(fields: &Fields, shape: &Shape) -> Result<Self> {
        let (bottleneck, activation) = hub_settings(fields, shape)?;
        let on = |key: &str| field::<bool>(fields, key, "true or false");
        let attention = on("mh_adapter")?.then_some(Part::SelfAttention);
        let feed_forward = on("output_adapter")?.then_some(Part::FeedForward);
        let config =
            Self::new(bottleneck).with_scaling(field(fields, "scaling", "a number: it is never learned here")?);
        let config = config.with_activation(activation).with_dropout(0.0);
        let leave_out: Vec<usize> = field(fields, "leave_out", LAYERS)?;
        Ok(config.with_sublayers(attention.into_iter().chain(feed_forward)).with_leave_out(leave_out))
    }
}

/// Adapters beside sub-layers.
#[derive(Module, Debug)]
pub struct Parallel {
    adapters: SiteMap<Bottleneck>,
    #[module(skip)]
    activation: Activation,
    #[module(skip)]
    dropout: Option<f64>,
    #[module(skip)]
    scaling: f64,
}

impl Method for ParallelConfig {
    const NAME: &'static str = "parallel";
    const PEFT_TYPE: &'static str = "PARALLEL_ADAPTER";
    type Tuner = Parallel;

    fn init(&self, base: &Base, seed: u64) -> Result<Parallel> {
        let (shape, device) = (base.shape(), base.device().clone().autodiff());
        let (d, m) = (shape.hidden, self.bottleneck);
        let bottleneck =
            |site: Site| Bottleneck::kaiming(d, m, Random::new(seed, &format!("parallel.{site}")), &device);
        Ok(Parallel {
            adapters: self.plan(shape)?.into_iter().map(|site| (site, bottleneck(site))).collect(),
            activation: self.activation,
            dropout: self.dropout,
            scaling: self.scaling,
        })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        Ok(self.plan(shape)?.len() * count(shape.hidden, self.bottleneck))
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        let (_, site, leaf) = split_name(name);
        key(shape, site, leaf)
    }

    fn adapterhub() -> Option<AdapterHub<Self>> {
        let key = |_: &Self, name: &str, adapter: &str, shape: &Shape| {
            let (_, site, leaf) = split_name(name);
            hub_key(shape, site, leaf, adapter)
        };
        Some(AdapterHub { kind: Kind::Parallel, fields: Self::hub_fields, config: Self::of_hub, free: HUB_FREE, key })
    }
}

impl Hooks for Parallel {
    fn sublayer(&self, frame: &Frame<'_>, site: Site, x: Sequence, next: Next<'_, Sequence, Tensor<3>>) -> Tensor<3> {
        let Some(adapter) = self.adapters.get(site) else { return next(x) };
        let p = self.dropout.unwrap_or(frame.shape().dropout);
        let drop = |inner| frame.dropout(inner, p, format_args!("parallel.{site}"));
        let added = adapter.forward_with(x.hidden.clone(), self.activation, drop) * self.scaling;
        next(x) + added
    }
}

adapter!(Parallel);
impl Procedure for Parallel {}

#[cfg(test)]
mod tests {
    use super::*;

    mod feed_forward {
        use super::*;
        peft_core::conformance!(
            ParallelConfig::new(5).with_scaling(2.0),
            skip(C3: "a sub-layer is no linear map that could take the adapter in")
        );
    }

    mod some_layers {
        use super::*;
        peft_core::conformance!(
            ParallelConfig::new(5).with_leave_out([1]),
            skip(C3: "a sub-layer is no linear map that could take the adapter in")
        );
    }

    mod both_sublayers {
        use super::*;
        peft_core::conformance!(
            ParallelConfig::new(5).with_sublayers([Part::FeedForward, Part::SelfAttention]).with_activation(Activation::Swish),
            skip(C3: "a sub-layer is no linear map that could take the adapter in")
        );
    }

    #[test]
    fn has_as_many_parameters_as_the_references() {
        let base = Shape::named("roberta-base").unwrap();
        let count = |m| ParallelConfig::new(m).count(&base).unwrap();
        assert_eq!([16, 384, 512].map(count), [304_320, 7_091_712, 9_452_544]);
        let both = ParallelConfig::new(512).with_sublayers([Part::SelfAttention, Part::FeedForward]);
        assert_eq!(both.count(&base).unwrap(), 2 * 9_452_544);
    }
}
