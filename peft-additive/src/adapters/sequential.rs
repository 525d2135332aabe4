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

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use peft_core::adapterhub::{AdapterHub, Fields, Kind, field};
use peft_core::{
    Added, Base, Delta, Error, Frame, Hooks, Key, Merge, Method, Next, Part, Place, Procedure, Result, Sequence, Shape,
    Site, SiteMap, Slot, Source, Weight, adapter, random::Random, split_name, view::copied,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::bottleneck::{
    Activation, Bottleneck, HUB_FREE, LAYERS, Norms, check_dropout, check_width, count, hub_fields, hub_key,
    hub_settings, key, normalized_sum, projection,
};

/// Where in a layer the adapters are, and what they read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// After attention and after the feed-forward network, each on the sub-layer's own output.
    #[default]
    Houlsby,
    /// After the feed-forward network only, on its normalized sum with the residual.
    Pfeiffer,
    /// After the feed-forward network only, on its own output.
    FeedForward,
}

/// What the adapters start from; biases start at 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// Both matrices normal with standard deviation `init_std`, cut off at twice that.
    #[default]
    NearIdentity,
    /// The same, not cut off.
    Normal,
    /// As `NearIdentity`, but the second matrix 0: the model is unchanged, to the bit.
    ZeroUp,
}

/// The configuration of sequential adapters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SequentialConfig {
    /// Width m of the bottleneck.
    pub bottleneck: usize,
    /// Where.
    pub placement: Placement,
    /// Between the maps.
    pub activation: Activation,
    /// The start.
    pub init: Init,
    /// Standard deviation of the start.
    pub init_std: f64,
    /// Dropout probability behind the activation.
    pub dropout: f64,
    /// Whether all layer normalizations of the model are trained too.
    pub train_layernorm: bool,
    /// Sub-layers whose adapter begins with a layer normalization of its own, with the model's epsilon.
    pub inner_norm: Vec<Part>,
    /// Layers without an adapter, by their numbers; a decoder's come after its encoder's.
    pub leave_out: Vec<usize>,
}

impl Default for SequentialConfig {
    /// The paper's: width 64.
    fn default() -> Self {
        SequentialConfig {
            bottleneck: 64,
            placement: Placement::Houlsby,
            activation: Activation::Gelu,
            init: Init::NearIdentity,
            init_std: 1e-3,
            dropout: 0.0,
            train_layernorm: true,
            inner_norm: vec![],
            leave_out: vec![],
        }
    }
}

impl SequentialConfig {
    /// The paper's form with a bottleneck of this width.
    pub fn houlsby(bottleneck: usize) -> Self {
        SequentialConfig { bottleneck, ..Default::default() }
    }

    /// AdapterHub's `seq_bn` form with a bottleneck of this width: one adapter a layer, the normalizations frozen, and a start near
    /// that of BERT.
    pub fn pfeiffer(bottleneck: usize) -> Self {
        SequentialConfig { placement: Placement::Pfeiffer, ..Self::like_bert(bottleneck) }
    }

    /// The form that fits the survey's parameter counts, the MAM code's Houlsby adapter: width 200, a normalization inside the adapter
    /// after attention, and RoBERTa's dropout.
    pub fn survey() -> Self {
        SequentialConfig { inner_norm: vec![Part::SelfAttention], dropout: 0.1, ..Self::like_bert(200) }
    }

    /// What AdapterHub and the MAM code share: both matrices start as BERT's, and only adapters are trained.
    fn like_bert(bottleneck: usize) -> Self {
        let (activation, init) = (Activation::Relu, Init::Normal);
        SequentialConfig { bottleneck, activation, init, init_std: 0.02, train_layernorm: false, ..Default::default() }
    }

    /// With a bottleneck of this width.
    pub fn with_bottleneck(mut self, width: usize) -> Self {
        self.bottleneck = width;
        self
    }

    /// In these places.
    pub fn with_placement(mut self, placement: Placement) -> Self {
        self.placement = placement;
        self
    }

    /// With this non-linearity.
    pub fn with_activation(mut self, activation: Activation) -> Self {
        self.activation = activation;
        self
    }

    /// From this start.
    pub fn with_init(mut self, init: Init) -> Self {
        self.init = init;
        self
    }

    /// From numbers of this standard deviation.
    pub fn with_init_std(mut self, std: f64) -> Self {
        self.init_std = std;
        self
    }

    /// With dropout of this probability behind the activation.
    pub fn with_dropout(mut self, p: f64) -> Self {
        self.dropout = p;
        self
    }

    /// With the model's layer normalizations trained too, or frozen.
    pub fn with_train_layernorm(mut self, train: bool) -> Self {
        self.train_layernorm = train;
        self
    }

    /// With a layer normalization in front of the adapters of these sub-layers.
    pub fn with_inner_norm(mut self, sublayers: impl IntoIterator<Item = Part>) -> Self {
        self.inner_norm = sublayers.into_iter().collect();
        self
    }

    /// Without adapters in these layers.
    pub fn with_leave_out(mut self, layers: impl IntoIterator<Item = usize>) -> Self {
        self.leave_out = layers.into_iter().collect();
        self
    }

    /// How many numbers the first maps of all adapters have, and how many the second, biases included.
    pub fn sizes(&self, shape: &Shape) -> Result<[usize; 2]> {
        let (d, m, adapters) = (shape.hidden, self.bottleneck, self.plan(shape)?.len());
        Ok([adapters * (d * m + m), adapters * (m * d + d)])
    }

    /// The sub-layers with an adapter; refuses settings that cannot be.
    pub(super) fn plan(&self, shape: &Shape) -> Result<Vec<Site>> {
        check_width(self.bottleneck, shape)?;
        check_dropout(self.dropout)?;
        // From 0 no matrix would ever move: the gradient of each is a product with the other.
        if !(self.init_std > 0.0 && self.init_std <= 1.0) {
            return Err(Error::config("init_std", self.init_std, "a number above 0, at most 1"));
        }
        let parts: &[Part] = match self.placement {
            Placement::Houlsby => &[Part::SelfAttention, Part::FeedForward],
            Placement::Pfeiffer | Placement::FeedForward => &[Part::FeedForward],
        };
        if let Some(part) = self.inner_norm.iter().find(|part| !parts.contains(part)) {
            let allowed: Vec<&str> = parts.iter().map(|part| part.name()).collect();
            return Err(Error::config("inner_norm", part.name(), allowed.join(", ")));
        }
        shape.leaving_out(parts.iter().flat_map(|part| shape.sites(*part)).collect(), &self.leave_out)
    }
}

/// AdapterHub's `DoubleSeqBnConfig` and `SeqBnConfig`.
impl SequentialConfig {
    fn hub_fields(&self, shape: &Shape) -> Result<Fields> {
        if self.train_layernorm {
            let expected = "false: AdapterHub's files hold no normalization of the model";
            return Err(Error::config("train_layernorm", true, expected));
        }
        if let Some(part) = self.inner_norm.first() {
            let expected = "none: AdapterHub's has an epsilon of its own";
            return Err(Error::config("inner_norm", part.name(), expected));
        }
        let pfeiffer = self.placement == Placement::Pfeiffer;
        let own = [
            ("original_ln_before", json!(pfeiffer)),
            ("is_parallel", json!(false)),
            ("scaling", json!(1.0)),
            ("init_weights", json!("bert")),
            ("leave_out", json!(self.leave_out)),
        ];
        let attention = self.placement == Placement::Houlsby;
        Ok(hub_fields(shape, self.bottleneck, self.activation, [attention, true], own))
    }

    fn of_hub(fields: &Fields, shape: &Shape) -> Result<Self> {
        let (bottleneck, activation) = hub_settings(fields, shape)?;
        let on = |key: &str| field::<bool>(fields, key, "true or false");
        let config = match (on("original_ln_before")?, on("mh_adapter")?) {
            (true, _) => Self::pfeiffer(bottleneck),
            (false, true) => Self::houlsby(bottleneck),
            (false, false) => Self::pfeiffer(bottleneck).with_placement(Placement::FeedForward),
        };
        let leave_out: Vec<usize> = field(fields, "leave_out", LAYERS)?;
        Ok(config.with_activation(activation).with_train_layernorm(false).with_leave_out(leave_out))
    }
}

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
