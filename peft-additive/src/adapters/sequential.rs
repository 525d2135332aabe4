//! # Sequential adapter                     family: additive / adapter-based
//! h' = h + D(act(h Wd + bd)) Wu + bu       Wd: [d, m], Wu: [m, d], h the output of a sub-layer, before its residual addition, D dropout in training
//! pfeiffer: u' = u + D(act(z Wd + bd)) Wu + bu, z = LN(u + x), u the output of the feed-forward sub-layer, x its input, LN the model's after it, if there is one
//! Paper: Houlsby et al., 2019, arXiv:1902.00751, section 2.1.   Reference: google-research/adapter-bert; adapter-hub `DoubleSeqBnConfig`, `SeqBnConfig`
//! Oracle: package adapters 1.3.0: `what_the_package_wrote_gives_its_logits_and_is_what_is_written`
//! Trains: 2 d m + m + d per sub-layer, and 2 d per layer normalization.      Merges: no, unless act = identity and no normalization is in front.
//! Identities:
//! - the base at init with `zero_up`: `C1`
//! - h' is what the equation says: `an_adapter_is_its_equation`
//! - the order of the bottleneck's units does not matter: `the_order_of_the_units_does_not_matter`
//! - Wu = 0, bu = 0 is the base, but for trained normalizations: `a_second_map_of_zeros_is_the_base`
//! - Wu = 0 adds bu to the output projection's bias: `the_second_bias_alone_shifts_the_output_projection`
//! - act = identity folds into an output projection with a bias: `a_linear_adapter_folds_into_the_output_projection`
//! - trained normalizations are those of another base: `trained_normalizations_are_those_of_another_base`
//! - z goes through LN as the methods beside this one have made it: `a_method_sees_the_base_as_the_others_rewrite_it`
//! - D drops a unit of the bottleneck for a sample and position: `dropout_stands_between_the_maps`
//! - each form starts as its reference does: `each_form_starts_as_its_reference`
//!
//! Differs from the paper: GELU is exact, the official code's is the approximation by tanh. `pfeiffer` is AdapterHub's, `survey` the form that the survey's parameter counts fit: the Houlsby adapter of the MAM code (jxhe/unify-parameter-efficient-tuning), there after attention in front of the sub-layer's own dropout, here behind it.

mod config;

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use peft_core::adapterhub::{AdapterHub, Kind};
use peft_core::{
    Added, Base, Delta, Error, Frame, Hooks, Key, Merge, Method, Next, Place, Procedure, Result, Sequence, Shape, Site,
    SiteMap, Slot, Source, Weight, adapter, random::Random, split_name, view::copied,
};
use serde_json::Value;

pub use self::config::{Init, Placement, SequentialConfig};
use super::bottleneck::{Activation, Bottleneck, Norms, count, key, normalized_sum, projection};
use super::hub::{HUB_FREE, hub_key};

/// Finished adapters as a method that is made of such starts from them, and their settings, which must be the same.
pub(super) fn alike(sources: &[Source]) -> Result<(SequentialConfig, Vec<Sequential>)> {
    let settings = |source: &Source| {
        source.tuner::<SequentialConfig>()?;
        let known = source.config.downcast_ref::<SequentialConfig>().cloned();
        Ok::<_, Error>(known.unwrap_or_else(|| unreachable!("the tuner of a method has its configuration")))
    };
    let [first, ..] = sources else { return Err(Error::config("sources", "none", "at least one adapter")) };
    let config = settings(first)?;
    for source in sources {
        if settings(source)? != config {
            let [own, all] = [source, first].map(|source| source.config.settings());
            let other = all.iter().find(|(key, value)| own.get(*key) != Some(value));
            let told = |value: Option<&Value>| value.map_or_else(|| "nothing".into(), Value::to_string);
            let (found, expected) = match other {
                Some((key, value)) => {
                    (format!("{}, of {key} {}", source.name, told(own.get(key))), format!("{key} {value}, "))
                }
                None => (source.name.clone(), String::new()),
            };
            let expected = format!("{expected}an adapter with the same settings as {}", first.name);
            return Err(Error::config("sources", found, expected));
        }
    }
    let adapters = sources.iter().map(|source| Ok(copied(source.tuner::<SequentialConfig>()?.clone())));
    Ok((config, adapters.collect::<Result<_>>()?))
}

/// Adapters after sub-layers.
#[derive(Module, Debug)]
pub struct Sequential {
    adapters: SiteMap<Bottleneck>,
    norms: Norms,
    #[module(skip)]
    placement: Placement,
    /// Whether the maps at the ends of sub-layers have a bias, in which that of an adapter can be folded.
    #[module(skip)]
    biased: bool,
    #[module(skip)]
    activation: Activation,
    #[module(skip)]
    dropout: f64,
}

impl Method for SequentialConfig {
    const NAME: &'static str = "adapter";
    const PEFT_TYPE: &'static str = "SEQUENTIAL_ADAPTER";
    type Tuner = Sequential;

    fn init(&self, base: &Base, seed: u64) -> Result<Sequential> {
        let (shape, device) = (base.shape(), base.device().clone().autodiff());
        let draw = |site: Site, map: &str, dims| {
            let random = Random::new(seed, &format!("sequential.{site}.{map}"));
            match self.init {
                Init::Normal => random.normal_tensor(dims, self.init_std, &device),
                Init::NearIdentity | Init::ZeroUp => truncated_normal(random, dims, self.init_std, &device),
            }
        };
        let (d, m) = (shape.hidden, self.bottleneck);
        let bottleneck = |site: Site| {
            let up = match self.init {
                Init::ZeroUp => Tensor::zeros([m, d], &device),
                _ => draw(site, "up", [m, d]),
            };
            let maps = Bottleneck::new(draw(site, "down", [d, m]), up);
            if self.inner_norm.contains(&site.part) { maps.with_norm() } else { maps }
        };
        let (sites, places) = (self.plan(shape)?, shape.places());
        let biased = |site: &Site| places.iter().any(|p| p.site == projection(*site) && p.slot == Slot::Bias);
        Ok(Sequential {
            adapters: sites.iter().map(|site| (*site, bottleneck(*site))).collect(),
            norms: Norms::new(base, &Norms::places(shape, self.train_layernorm)),
            placement: self.placement,
            biased: sites.iter().all(biased),
            activation: self.activation,
            dropout: self.dropout,
        })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        let (d, m) = (shape.hidden, self.bottleneck);
        let inner = |site: Site| if self.inner_norm.contains(&site.part) { 2 * d } else { 0 };
        let adapters: usize = self.plan(shape)?.into_iter().map(|site| count(d, m) + inner(site)).sum();
        Ok(adapters + Norms::places(shape, self.train_layernorm).iter().map(Place::count).sum::<usize>())
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        if let Some(name) = name.strip_prefix("norms.") {
            return Norms::key(name, shape);
        }
        let (_, site, leaf) = split_name(name);
        key(shape, site, leaf)
    }

    fn adapterhub() -> Option<AdapterHub<Self>> {
        let key = |_: &Self, name: &str, adapter: &str, shape: &Shape| {
            let (_, site, leaf) = split_name(name);
            hub_key(shape, site, leaf, adapter)
        };
        Some(AdapterHub { kind: Kind::Sequential, fields: Self::hub_fields, config: Self::of_hub, free: HUB_FREE, key })
    }

    fn merge(tuner: &Sequential) -> Option<&dyn Merge> {
        let linear = tuner.activation == Activation::Identity && tuner.placement != Placement::Pfeiffer && tuner.biased;
        let bare = tuner.adapters.iter().all(|(_, adapter)| adapter.norm.is_none());
        if linear && bare { Some(tuner) } else { None }
    }
}

/// Normal numbers with this standard deviation, none beyond twice that.
fn truncated_normal(mut random: Random, dims: [usize; 2], std: f64, device: &Device) -> Tensor<2> {
    let mut draw = || {
        loop {
            let x = random.normal();
            if x.abs() <= 2.0 {
                return (x * std) as f32;
            }
        }
    };
    let values: Vec<f32> = (0..dims[0] * dims[1]).map(|_| draw()).collect();
    Tensor::from_data(TensorData::new(values, dims), device)
}

impl Delta for Sequential {
    fn to_sublayer(&self, frame: &Frame<'_>, site: Site, residual: &Tensor<3>, output: &Tensor<3>) -> Option<Added> {
        let adapter = self.adapters.get(site)?;
        let read = match self.placement {
            Placement::Houlsby | Placement::FeedForward => output.clone(),
            Placement::Pfeiffer => normalized_sum(frame, site, output.clone(), residual.clone()),
        };
        let read = adapter.read(read, frame.shape().eps);
        let drop = |inner| frame.dropout(inner, self.dropout, format_args!("sequential.{site}"));
        Some(Added { delta: adapter.forward_with(read.clone(), self.activation, drop), read })
    }
}

impl Hooks for Sequential {
    fn sublayer(&self, frame: &Frame<'_>, site: Site, x: Sequence, next: Next<'_, Sequence, Tensor<3>>) -> Tensor<3> {
        let residual = x.hidden.clone();
        let output = next(x);
        match self.to_sublayer(frame, site, &residual, &output) {
            Some(Added { delta, .. }) => output + delta,
            None => output,
        }
    }

    fn vector(&self, site: Site, slot: Slot, v: Tensor<1>) -> Tensor<1> {
        self.norms.get(site, slot).unwrap_or(v)
    }
}

adapter!(Sequential);

impl Sequential {
    /// The adapters of these layers only.
    pub(super) fn only(self, layers: std::ops::Range<usize>) -> Self {
        let kept = self.adapters.iter().filter(|(site, _)| layers.contains(&site.layer));
        Sequential { adapters: kept.map(|(site, adapter)| (site, adapter.clone())).collect(), ..self }
    }

    /// The adapters by their sites.
    pub(super) fn bottlenecks(&self) -> impl Iterator<Item = (Site, &Bottleneck)> {
        self.adapters.iter()
    }

    /// With each adapter changed.
    pub(super) fn with_each(self, change: impl Fn(Site, Bottleneck) -> Result<Bottleneck>) -> Result<Self> {
        let changed = self.adapters.iter().map(|(site, adapter)| Ok((site, change(site, adapter.clone())?)));
        let adapters = changed.collect::<Result<_>>()?;
        Ok(Sequential { adapters, ..self })
    }

    /// The activations of the adapter at a sub-layer, which has one, on what it reads.
    pub(super) fn inner(&self, site: Site, read: Tensor<3>) -> Tensor<3> {
        let adapter = self.adapters.get(site).unwrap_or_else(|| unreachable!("the sub-layer has an adapter"));
        self.activation.apply(adapter.down.forward(read))
    }

    /// The sub-layers with an adapter.
    pub(super) fn sites(&self) -> impl Iterator<Item = Site> {
        self.adapters.iter().map(|(site, _)| site)
    }

    /// The adapter that follows a linear map.
    fn after(&self, site: Site) -> Option<&Bottleneck> {
        self.adapters.iter().find(|(place, _)| projection(*place) == site).map(|(_, adapter)| adapter)
    }
}

/// Without a non-linearity: W (I + Wd Wu), b (I + Wd Wu) + bd Wu + bu.
impl Merge for Sequential {
    fn weight(&self, site: Site, w: &Weight) -> Option<Tensor<2>> {
        let Bottleneck { down, up, .. } = self.after(site)?;
        let w = w.dense();
        Some(w.clone() + w.matmul(down.weight.val()).matmul(up.weight.val()))
    }

    fn vector(&self, site: Site, slot: Slot, v: &Tensor<1>) -> Option<Tensor<1>> {
        match (slot, self.after(site)) {
            (Slot::Bias, Some(Bottleneck { down, up, .. })) => {
                let row = v.clone().unsqueeze::<2>();
                Some((row.clone() + up.forward(down.forward(row))).squeeze_dim(0))
            }
            _ => self.norms.get(site, slot),
        }
    }
}

impl Procedure for Sequential {}

#[cfg(test)]
mod tests {
    use peft_core::Part;
    use peft_core::testing::fixtures::DECODERS;

    use super::*;

    mod houlsby {
        use super::*;
        peft_core::conformance!(
            SequentialConfig::houlsby(5).with_init(Init::ZeroUp),
            skip(C3: "the non-linearity stands between the output projection and the residual")
        );
    }

    mod near_identity {
        use super::*;
        peft_core::conformance!(
            SequentialConfig::houlsby(5),
            skip(C1: "near identity only", C3: "the non-linearity stands between the output projection and the residual")
        );
    }

    mod pfeiffer {
        use super::*;
        peft_core::conformance!(
            SequentialConfig::pfeiffer(5).with_activation(Activation::Swish).with_init(Init::ZeroUp),
            skip(C3: "the non-linearity stands between the output projection and the residual")
        );
    }

    mod some_layers {
        use super::*;
        peft_core::conformance!(
            SequentialConfig::pfeiffer(5).with_init(Init::ZeroUp).with_leave_out([1]),
            skip(C3: "the non-linearity stands between the output projection and the residual")
        );
    }

    mod pfeiffer_with_trained_norms {
        use super::*;
        peft_core::conformance!(
            SequentialConfig::pfeiffer(5).with_train_layernorm(true).with_inner_norm([Part::FeedForward]),
            skip(
                C1: "near identity only",
                C3: "the non-linearity stands between the output projection and the residual"
            )
        );
    }

    mod inner_norm {
        use super::*;
        peft_core::conformance!(
            SequentialConfig::survey().with_bottleneck(5).with_init(Init::ZeroUp),
            skip(C3: "the non-linearity stands between the output projection and the residual")
        );
    }

    mod identity {
        use super::*;
        peft_core::conformance!(
            SequentialConfig::houlsby(5).with_activation(Activation::Identity).with_init(Init::ZeroUp),
            skip(C3 on DECODERS: "T5 and LLaMA have no bias that could take in the adapter's; for encoders a property of its own tests it")
        );
    }

    #[test]
    fn has_as_many_parameters_as_paper_and_survey_say() {
        let [base, large] = ["roberta-base", "roberta-large"].map(|name| Shape::named(name).unwrap());
        assert_eq!(SequentialConfig::houlsby(64).count(&base).unwrap(), 2_417_664);
        assert_eq!(SequentialConfig::houlsby(64).with_train_layernorm(false).count(&base).unwrap(), 2_379_264);
        assert_eq!(SequentialConfig::pfeiffer(48).count(&base).unwrap(), 894_528);
        assert_eq!(SequentialConfig::survey().count(&base).unwrap(), 7_414_464);
        assert_eq!(SequentialConfig::survey().count(&large).unwrap(), 19_768_704);
    }
}
