//! # AdaMix                                 family: unified / any adapter
//! h = U_j (act(D_i h)), or W h + s B_j A_i h: of the M experts of each map one at a time, i and j drawn apart for each adapter and step
//! loss = L(p1) + c (KL(p1 || p2) + KL(p2 || p1)) / 2       p1, p2: what two routes predict, each divergence with its first argument held fixed
//! files and predictions: the mean of the experts of each map
//! Paper: Wang et al., 2022, arXiv:2205.12410, sections 3.1 to 3.3.   Reference: microsoft/AdaMix
//! Oracle: code microsoft/AdaMix src/transformers/models/expert_soup.py, roberta/modeling_roberta.py: `routes_and_steps_are_those_of_the_reference`
//! Trains: the adapter, and M - 1 times its maps that are not shared.      Merges: with LoRA.
//! Identities:
//! - M = 1 is the adapter: `one_expert_is_the_adapter`
//! - experts that are the same are one, whatever the route: `the_same_experts_are_one_on_every_route`
//! - the mean is that of the tensors, in any order of the experts, and its own mean: `the_mean_is_that_of_the_experts`
//! - a step moves the experts of its two routes and no others: `only_drawn_experts_get_gradients`
//! - the divergence is 0 for the same logits, and symmetric: `the_divergence_is_symmetric`
//! - its gradient holds each other prediction fixed: `the_divergence_holds_the_other_fixed`
//! - p2 is under dropout of its own: `routes_have_dropout_of_their_own`
//! - it counts predictions that the loss counts: `tokens_without_a_class_do_not_diverge`
//! - merged == unmerged, with LoRA: `C3`
//!
//! Differs from the paper: as in the authors' code one map of a pair is shared, experts start as copies of one another, and predictions are
//! the mean's also while it trains. Routes are drawn once a step, there for each batch that is run. An expert that is not drawn rests, there
//! AdamW moves it on by its momentum and decays it. Files hold the mean: trained on, a loaded adapter has one expert.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_additive::{Activation, Placement, SequentialConfig};
use peft_core::train::Optim;
use peft_core::view::{Rewrite, view};
use peft_core::{
    Adapter, AnyTuner, Base, Batch, Error, Hooks, Key, Merge, Method, Procedure, Readout, Result, Shape, Site, Slot,
    Tuner, Weight, loss,
    random::{Noise, Random},
};
use peft_reparam::LoraConfig;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::masks::{Matrices, tensors};
use crate::settings;

/// A method whose adapters are pairs of maps, of each of which there can be several.
pub trait Mixed: Method<Tuner: Adapter> {
    /// The name of the method with experts.
    const MIXED: &'static str;
    /// Its `peft_type`.
    const MIXED_TYPE: &'static str;

    /// The paper's.
    fn paper() -> AdaMixConfig<Self>;

    /// How many numbers the first maps of all pairs have, and how many the second.
    fn sizes(&self, shape: &Shape) -> Result<[usize; 2]>;

    /// The map that a tensor is of, by their names, and whether it is the second of its pair.
    fn map_of(name: &str) -> Option<(&str, bool)>;

    /// The weight-space form, if it has one.
    fn merge_mixed(_tuner: &AdaMix<Self::Tuner>) -> Option<&dyn Merge> {
        None
    }
}

impl Mixed for SequentialConfig {
    const MIXED: &'static str = "adamix";
    const MIXED_TYPE: &'static str = "ADAMIX_ADAPTER";

    fn paper() -> AdaMixConfig<Self> {
        let inner = SequentialConfig::pfeiffer(16).with_placement(Placement::FeedForward);
        AdaMixConfig { inner: inner.with_activation(Activation::Gelu), mixing: Mixing::paper() }
    }

    fn sizes(&self, shape: &Shape) -> Result<[usize; 2]> {
        SequentialConfig::sizes(self, shape)
    }

    fn map_of(name: &str) -> Option<(&str, bool)> {
        let (map, _) = name.rsplit_once('.')?;
        match map.rsplit_once('.')?.1 {
            "down" => Some((map, false)),
            "up" => Some((map, true)),
            _ => None,
        }
    }
}

impl Mixed for LoraConfig {
    const MIXED: &'static str = "adamix-lora";
    const MIXED_TYPE: &'static str = "ADAMIX_LORA";

    fn paper() -> AdaMixConfig<Self> {
        let inner = LoraConfig::new(4).with_alpha(32.0).with_dropout(0.1);
        AdaMixConfig { inner, mixing: Mixing { consistency: 100.0, ..Mixing::paper() } }
    }

    fn sizes(&self, shape: &Shape) -> Result<[usize; 2]> {
        LoraConfig::sizes(self, shape)
    }

    fn map_of(name: &str) -> Option<(&str, bool)> {
        match name.rsplit_once('.')?.1 {
            "a" => Some((name, false)),
            "b" => Some((name, true)),
            _ => None,
        }
    }

    fn merge_mixed(tuner: &AdaMix<Self::Tuner>) -> Option<&dyn Merge> {
        Some(tuner)
    }
}

/// What has experts, and how they are mixed.
#[derive(Clone, Debug, PartialEq)]
pub struct AdaMixConfig<M> {
    /// The adapters.
    pub inner: M,
    /// The mixture.
    pub mixing: Mixing,
}

/// The settings of the mixture.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mixing {
    /// The number M of experts of a map.
    pub num_experts: usize,
    /// Whether the first maps have one expert only.
    pub share_first: bool,
    /// Whether the second maps have one expert only.
    pub share_second: bool,
    /// The weight c of the divergence of two routes.
    pub consistency: f64,
}

impl Mixing {
    fn paper() -> Self {
        Mixing { num_experts: 4, share_first: false, share_second: true, consistency: 1.0 }
    }
}

/// The most experts.
const MAX_EXPERTS: usize = 256;

impl<M: Mixed> AdaMixConfig<M> {
    /// These adapters, otherwise the paper's settings.
    pub fn new(inner: M) -> Self {
        AdaMixConfig { inner, ..M::paper() }
    }

    /// With so many experts of a map.
    pub fn with_experts(mut self, num_experts: usize) -> Self {
        self.mixing.num_experts = num_experts;
        self
    }

    /// With one expert only of the first or of the second maps.
    pub fn with_shared(mut self, first: bool, second: bool) -> Self {
        (self.mixing.share_first, self.mixing.share_second) = (first, second);
        self
    }

    /// With this weight of the divergence.
    pub fn with_consistency(mut self, consistency: f64) -> Self {
        self.mixing.consistency = consistency;
        self
    }

    fn check(&self) -> Result<()> {
        let Mixing { num_experts, share_first, share_second, consistency } = self.mixing;
        if !(1..=MAX_EXPERTS).contains(&num_experts) {
            return Err(Error::config("num_experts", num_experts, format!("1 to {MAX_EXPERTS}")));
        }
        if num_experts > 1 && share_first && share_second {
            return Err(Error::config("share_first, share_second", "both", "one at most: no map would have experts"));
        }
        if !(consistency >= 0.0 && consistency.is_finite()) {
            return Err(Error::config("consistency", consistency, "a finite number from 0"));
        }
        Ok(())
    }

    /// Whether a tensor has several experts.
    fn has_experts(&self, name: &str) -> bool {
        let shared = |second| if second { self.mixing.share_second } else { self.mixing.share_first };
        M::map_of(name).is_some_and(|(_, second)| !shared(second))
    }
}

impl<M: Mixed> Default for AdaMixConfig<M> {
    fn default() -> Self {
        M::paper()
    }
}

impl<M: Mixed> Serialize for AdaMixConfig<M> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        settings::serialize(&self.mixing, &self.inner, serializer)
    }
}

impl<'de, M: Mixed> Deserialize<'de> for AdaMixConfig<M> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let AdaMixConfig { inner, mixing } = M::paper();
        let (mixing, inner) = settings::deserialize(deserializer, &mixing, &inner)?;
        Ok(AdaMixConfig { inner, mixing })
    }
}

/// Adapters with several experts of a map.
#[derive(Module, Debug)]
pub struct AdaMix<A: Module> {
    /// With the first expert of each map.
    first: A,
    /// The tensors of the others, `1.NAME` and on, vectors as matrices of one row.
    others: Matrices,
    /// Which expert of each map the two routes of a step take, by the map's name. Between steps there are none.
    #[module(skip)]
    routes: Option<BTreeMap<String, [usize; 2]>>,
    #[module(skip)]
    experts: usize,
    #[module(skip)]
    map_of: MapOf,
    #[module(skip)]
    consistency: f64,
}

/// See [`Mixed::map_of`].
type MapOf = fn(&str) -> Option<(&str, bool)>;

impl<M: Mixed> Method for AdaMixConfig<M> {
    const NAME: &'static str = M::MIXED;
    const PEFT_TYPE: &'static str = M::MIXED_TYPE;
    const HEAD_PREFIX: &'static str = M::HEAD_PREFIX;
    type Tuner = AdaMix<M::Tuner>;

    fn init(&self, base: &Base, seed: u64) -> Result<Self::Tuner> {
        self.check()?;
        let first = self.inner.init(base, seed)?;
        let copied: Vec<_> = tensors(&first).into_iter().filter(|(name, _)| self.has_experts(name)).collect();
        let copy = |i: usize, (name, tensor): &(String, Tensor<2>)| {
            let copy = Tensor::from_inner(tensor.clone().without_autodiff());
            (format!("{i}.{name}"), Param::from_tensor(copy))
        };
        let others = (1..self.mixing.num_experts).flat_map(|i| copied.iter().map(move |tensor| copy(i, tensor)));
        Ok(AdaMix { others: others.collect(), experts: self.mixing.num_experts, ..self.of_one(first) })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        self.check()?;
        let Mixing { num_experts, share_first, share_second, .. } = self.mixing;
        let [first, second] = self.inner.sizes(shape)?;
        let maps = [(first, share_first), (second, share_second)].into_iter();
        let copied: usize = maps.filter(|(_, shared)| !shared).map(|(numbers, _)| numbers).sum();
        Ok(self.inner.count(shape)? + (num_experts - 1) * copied)
    }

    fn virtual_tokens(&self) -> usize {
        self.inner.virtual_tokens()
    }

    fn room(&self, shape: &Shape) -> usize {
        self.inner.room(shape)
    }

    /// Files hold the mean only.
    fn key(&self, name: &str, shape: &Shape) -> Key {
        self.inner.key(name.trim_start_matches("first."), shape)
    }

    fn for_files(&self, shape: &Shape) -> Result<Self> {
        Ok(AdaMixConfig { inner: self.inner.for_files(shape)?, ..self.clone() })
    }

    fn derived(&self, shape: &Shape) -> Map<String, Value> {
        self.inner.derived(shape)
    }

    fn to_saved(tuner: Self::Tuner) -> Self::Tuner {
        let mean = M::to_saved(tuner.routed(None));
        AdaMix { first: mean, others: Matrices::from_iter([]), experts: 1, ..tuner }
    }

    fn for_loading(&self, base: &Base) -> Result<Self::Tuner> {
        self.check()?;
        Ok(self.of_one(self.inner.for_loading(base)?))
    }

    fn merge(tuner: &Self::Tuner) -> Option<&dyn Merge> {
        M::merge_mixed(tuner)
    }
}

impl<M: Mixed> AdaMixConfig<M> {
    /// One expert of each map.
    fn of_one(&self, first: M::Tuner) -> AdaMix<M::Tuner> {
        let consistency = self.mixing.consistency;
        AdaMix { first, others: Matrices::from_iter([]), routes: None, experts: 1, map_of: M::map_of, consistency }
    }
}

impl<A: Module> AdaMix<A> {
    /// The adapter on the first or the second route of the step; between steps, and without a route, the mean of the experts.
    pub fn routed(&self, route: Option<usize>) -> A {
        struct Routed<'a, A: Module>(&'a AdaMix<A>, Option<usize>);
        impl<A: Module> Rewrite for Routed<'_, A> {
            fn tensor<const D: usize>(&mut self, name: &str, first: Tensor<D>) -> Tensor<D> {
                let Routed(mix, route) = self;
                let other = |i: usize| {
                    let other = mix.others.named(&format!("{i}.{name}"));
                    other.map(|other| other.val().reshape(first.dims()))
                };
                if let (Some(routes), Some(route), Some((map, _))) = (&mix.routes, route, (mix.map_of)(name)) {
                    let expert = routes.get(map).map_or(0, |routes| routes[*route]);
                    return other(expert).unwrap_or(first);
                }
                let others: Vec<Tensor<D>> = (1..mix.experts).filter_map(other).collect();
                let experts = others.len() + 1;
                let sum = others.into_iter().fold(first, |sum, other| sum + other);
                if experts == 1 { sum } else { sum / experts as f32 }
            }
        }
        view(&self.first, &mut Routed(self, route))
    }

    /// Whether a tensor of the first expert has others.
    fn has_others(&self, name: &str) -> bool {
        self.others.named(&format!("1.{name}")).is_some()
    }
}

impl<A: Adapter> Adapter for AdaMix<A> {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        self.routed(Some(0)).open(batch, f)
    }

    /// Of a step every route is another adapter.
    fn view(&self, _base: &Base, _noise: Option<&Noise>) -> Result<Option<AnyTuner>> {
        Ok(self.routes.is_none().then(|| AnyTuner::new(self.routed(None))))
    }
}

impl<A: Module + Merge> Merge for AdaMix<A> {
    fn weight(&self, site: Site, w: &Weight) -> Option<Tensor<2>> {
        self.routed(None).weight(site, w)
    }

    fn vector(&self, site: Site, slot: Slot, v: &Tensor<1>) -> Option<Tensor<1>> {
        self.routed(None).vector(site, slot, v)
    }
}

impl<A: Adapter> Procedure for AdaMix<A> {
    fn sample(self, random: &mut Random) -> Self {
        let names = self.others.names().filter_map(|name| (self.map_of)(name.split_once('.')?.1));
        let maps: BTreeSet<String> = names.map(|(map, _)| map.to_string()).collect();
        let routes = maps.into_iter().map(|map| (map, [0, 1].map(|_| random.below(self.experts)))).collect();
        AdaMix { routes: Some(routes), ..self }
    }

    fn loss(&self, readout: &Readout<'_>) -> Result<Tensor<1>> {
        let logits = self.logits(readout)?;
        let task = readout.loss(logits.clone())?;
        if self.routes.is_none() || self.consistency == 0.0 {
            return Ok(task);
        }
        let mut batch = readout.batch.clone().into_owned();
        if let Some(noise) = batch.noise.take() {
            batch = batch.with_noise(Noise { seed: !noise.seed, ..(*noise).clone() });
        }
        let other = readout.logits(self.routed(Some(1)).run(readout.base, &batch)?)?;
        match (readout.predictions(logits)?, readout.predictions(other)?) {
            (Some(first), Some(second)) => Ok(task + loss::divergence(first, second) * self.consistency),
            _ => Ok(task),
        }
    }

    fn may_rest(&self, name: &str) -> bool {
        name.starts_with("others.") || name.strip_prefix("first.").is_some_and(|name| self.has_others(name))
    }

    fn after_step(self, _base: &Base, _optim: &mut Optim, _before: &Self, _step: usize) -> Result<Self> {
        Ok(AdaMix { routes: None, ..self })
    }
}

#[cfg(test)]
mod tests {
    use peft_additive::Init;

    use super::*;

    fn adapter() -> AdaMixConfig<SequentialConfig> {
        AdaMixConfig::new(SequentialConfig::houlsby(5).with_init(Init::ZeroUp)).with_experts(3)
    }

    mod adapters {
        use super::*;
        peft_core::conformance!(
            adapter(),
            skip(C3: "the non-linearity stands between the output projection and the residual")
        );
    }

    mod lora {
        use super::*;
        peft_core::conformance!(
            AdaMixConfig::new(LoraConfig::new(3).with_alpha(5.0)).with_experts(2).with_shared(false, false)
        );
    }
}
