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
//! AdamW moves it on by its momentum and decays it. Files hold the mean: trained on, a loaded adapter has one expert. It goes over adapters of other methods too: there a map is a tensor, with its bias, and none is shared.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_additive::{Activation, Placement, SequentialConfig};
use peft_core::train::{Optim, Probe};
use peft_core::view::{Rewrite, trained, view};
use peft_core::{
    Adapter, AnyMethod, AnyTuner, Base, Batch, Error, Hooks, Key, Over, Procedure, Readout, Result, Shape, Tuner, loss,
    random::{Noise, Random},
};
use peft_reparam::{AdaLoraConfig, DeltaLoraConfig, IncreLoraConfig, LoraConfig, LoraPruneConfig};
use serde::{Deserialize, Serialize};

use crate::maps::{MapOf, has_pairs, maps};
use crate::masks::{Matrices, check_fits, refused, tensors};

/// What has experts, and how they are mixed.
#[derive(Clone, Debug, PartialEq)]
pub struct AdaMixConfig {
    /// The adapters, of any method that [`Mixing`] goes over.
    pub inner: AnyMethod,
    /// The mixture.
    pub mixing: Mixing,
}

/// The settings of the mixture.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mixing {
    /// The number M of experts of a map.
    pub num_experts: usize,
    /// Whether the first maps of pairs have one expert only.
    pub share_first: bool,
    /// Whether the second maps have one expert only.
    pub share_second: bool,
    /// The weight c of the divergence of two routes.
    pub consistency: f64,
}

/// The most experts.
const MAX_EXPERTS: usize = 256;

impl AdaMixConfig {
    /// These adapters, otherwise the paper's settings.
    pub fn new(inner: impl Into<AnyMethod>) -> Self {
        let inner = inner.into();
        AdaMixConfig { mixing: Mixing::paper(&inner), inner }
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

    /// The start on a model, see [`Over::init`].
    pub fn init(&self, base: &Base, seed: u64) -> Result<AdaMix> {
        self.mixing.start(&self.inner, base, seed)
    }
}

impl Default for AdaMixConfig {
    /// The paper's, over adapters.
    fn default() -> Self {
        let (mixing, inner) = Mixing::usual(AnyMethod::of::<SequentialConfig>());
        AdaMixConfig { inner, mixing }
    }
}

impl From<AdaMixConfig> for AnyMethod {
    fn from(AdaMixConfig { inner, mixing }: AdaMixConfig) -> Self {
        AnyMethod::over(mixing, inner)
    }
}

impl Mixing {
    fn paper(inner: &AnyMethod) -> Self {
        let consistency = if inner.downcast_ref::<LoraConfig>().is_some() { 100.0 } else { 1.0 };
        Mixing { num_experts: 4, share_first: false, share_second: has_pairs(inner), consistency }
    }

    fn check(&self, inner: &AnyMethod) -> Result<()> {
        let Mixing { num_experts, share_first, share_second, consistency } = *self;
        if !(1..=MAX_EXPERTS).contains(&num_experts) {
            return Err(Error::config("num_experts", num_experts, format!("1 to {MAX_EXPERTS}")));
        }
        if num_experts > 1 && share_first && share_second {
            return Err(Error::config("share_first, share_second", "both", "one at most: no map would have experts"));
        }
        if (share_first || share_second) && !has_pairs(inner) {
            let expected = format!("neither: {} has no maps that are known as pairs", inner.name());
            return Err(Error::config("share_first, share_second", "one", expected));
        }
        if !(consistency >= 0.0 && consistency.is_finite()) {
            return Err(Error::config("consistency", consistency, "a finite number from 0"));
        }
        Ok(())
    }

    fn start(&self, inner: &AnyMethod, base: &Base, seed: u64) -> Result<AdaMix> {
        self.check(inner)?;
        let first = fitting(inner.init(base, seed)?, inner)?;
        let (map_of, _) = maps(inner, base.shape())?;
        let one = AdaMix { first, others: Matrices::from_iter([]), routes: None, map_of, mixing: *self };
        Ok(AdaMix { others: one.copies(), ..one })
    }
}

/// The tuner, if there can be several of its maps.
fn fitting(tuner: AnyTuner, inner: &AnyMethod) -> Result<AnyTuner> {
    let refused = |found, expected| Err(refused(Mixing::NAME, inner, found, expected));
    check_fits(Mixing::NAME, inner, &tuner)?;
    if tuner.downcast_ref::<AdaMix>().is_some() {
        return refused("a mixture", "adapters that are no mixture yet");
    }
    let moving = inner.downcast_ref::<AdaLoraConfig>().is_some()
        || inner.downcast_ref::<IncreLoraConfig>().is_some()
        || inner.downcast_ref::<LoraPruneConfig>().is_some()
        || inner.downcast_ref::<DeltaLoraConfig>().is_some();
    if moving || !inner.adds() || trained(&tuner).keys().any(|name| tuner.may_rest(name)) {
        return refused("tensors that its own steps change, or hold", "adapters that gradients alone move");
    }
    Ok(tuner)
}

impl Over for Mixing {
    const NAME: &'static str = "adamix";

    /// The paper's.
    fn usual(inner: AnyMethod) -> (Self, AnyMethod) {
        let paper: AnyMethod = match inner {
            adapter if adapter.downcast_ref::<SequentialConfig>().is_some() => {
                let adapter = SequentialConfig::pfeiffer(16).with_placement(Placement::FeedForward);
                adapter.with_activation(Activation::Gelu).into()
            }
            lora if lora.downcast_ref::<LoraConfig>().is_some() => {
                LoraConfig::new(4).with_alpha(32.0).with_dropout(0.1).into()
            }
            other => other,
        };
        (Mixing::paper(&paper), paper)
    }

    fn init(&self, inner: &AnyMethod, base: &Base, seed: u64) -> Result<AnyTuner> {
        self.start(inner, base, seed).map(AnyTuner::new)
    }

    fn count(&self, inner: &AnyMethod, shape: &Shape) -> Result<usize> {
        self.check(inner)?;
        let (_, [first, second]) = maps(inner, shape)?;
        let maps = [(first, self.share_first), (second, self.share_second)].into_iter();
        let copied: usize = maps.filter(|(_, shared)| !shared).map(|(numbers, _)| numbers).sum();
        Ok(inner.count(shape)? + (self.num_experts - 1) * copied)
    }

    /// Files hold the mean only.
    fn key(&self, inner: &AnyMethod, name: &str, shape: &Shape) -> Key {
        inner.key(name.trim_start_matches("first."), shape)
    }

    fn is_mask(_name: &str) -> bool {
        false
    }

    fn to_saved(&self, inner: &AnyMethod, tuner: AnyTuner) -> AnyTuner {
        let mix = of(&tuner);
        AnyTuner::new(mix.clone().of_one(inner.to_saved(mix.routed(None))))
    }

    fn for_loading(&self, inner: &AnyMethod, base: &Base) -> Result<AnyTuner> {
        self.check(inner)?;
        let first = fitting(inner.for_loading(base)?, inner)?;
        let (map_of, _) = maps(inner, base.shape())?;
        Ok(AnyTuner::new(AdaMix { first, others: Matrices::from_iter([]), routes: None, map_of, mixing: *self }))
    }

    fn loaded(&self, inner: &AnyMethod, tuner: AnyTuner, base: &Base) -> Result<AnyTuner> {
        let mix = of(&tuner).clone();
        let first = inner.loaded(mix.first.clone(), base)?;
        Ok(AnyTuner::new(AdaMix { first, ..mix }))
    }

    fn plain(tuner: &AnyTuner) -> AnyTuner {
        of(tuner).routed(None)
    }
}

fn of(tuner: &AnyTuner) -> &AdaMix {
    tuner.downcast_ref().unwrap_or_else(|| panic!("a mixture is asked for, not {tuner:?}"))
}

/// Adapters with several experts of a map.
#[derive(Module, Debug)]
pub struct AdaMix {
    /// With the first expert of each map.
    first: AnyTuner,
    /// The tensors of the others, `1.NAME` and on, vectors as matrices of one row.
    others: Matrices,
    /// Which expert of each map the two routes of a step take, by the map's name. Between steps there are none.
    #[module(skip)]
    routes: Option<BTreeMap<String, [usize; 2]>>,
    #[module(skip)]
    map_of: MapOf,
    #[module(skip)]
    mixing: Mixing,
}

impl AdaMix {
    /// The other experts, copies of the first.
    fn copies(&self) -> Matrices {
        let Mixing { num_experts, share_first, share_second, .. } = self.mixing;
        let trained = trained(&self.first);
        let shared = |second| if second { share_second } else { share_first };
        let has_experts = |name: &String| {
            let map = (self.map_of)(name).filter(|_| trained.contains_key(name));
            map.is_some_and(|(_, second)| !second.is_some_and(shared))
        };
        let copied: Vec<_> = tensors(&self.first).into_iter().filter(|(name, _)| has_experts(name)).collect();
        let copy = |i: usize, (name, tensor): &(String, Tensor<2>)| {
            let copy = Tensor::from_inner(tensor.clone().without_autodiff());
            (format!("{i}.{name}"), Param::from_tensor(copy))
        };
        (1..num_experts).flat_map(|i| copied.iter().map(move |tensor| copy(i, tensor))).collect()
    }

    /// With this as the one expert of each map.
    fn of_one(self, first: AnyTuner) -> Self {
        AdaMix { first, others: Matrices::from_iter([]), routes: None, ..self }
    }

    /// How many experts a map has, if it has several.
    fn experts(&self) -> usize {
        if self.others.is_empty() { 1 } else { self.mixing.num_experts }
    }

    /// The adapter on the first or the second route of the step; between steps, and without a route, the mean of the experts.
    pub fn routed(&self, route: Option<usize>) -> AnyTuner {
        struct Routed<'a>(&'a AdaMix, Option<usize>);
        impl Rewrite for Routed<'_> {
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
                let others: Vec<Tensor<D>> = (1..mix.experts()).filter_map(other).collect();
                let experts = others.len() + 1;
                let sum = others.into_iter().fold(first, |sum, other| sum + other);
                if experts == 1 { sum } else { sum / experts as f32 }
            }
        }
        view(&self.first, &mut Routed(self, route))
    }

    /// The adapter that is trained now.
    fn current(&self) -> AnyTuner {
        self.routed(Some(0))
    }
}

/// The name in the adapter of a tensor of the first or of another expert.
fn inside(name: &str) -> &str {
    let other = name.strip_prefix("others.").and_then(|name| name.split_once('.'));
    other.map_or(name.trim_start_matches("first."), |(_, name)| name)
}

impl Adapter for AdaMix {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        self.current().opened(batch, f)
    }

    /// Of a step every route is another adapter.
    fn view(&self, _base: &Base, _noise: Option<&Noise>) -> Result<Option<AnyTuner>> {
        Ok(self.routes.is_none().then(|| self.routed(None)))
    }

    fn tasks(&self) -> Option<usize> {
        self.first.as_adapter().and_then(|adapter| adapter.tasks())
    }
}

impl Procedure for AdaMix {
    fn parts(&self) -> Vec<(String, &AnyTuner)> {
        vec![("first.".into(), &self.first)]
    }

    fn parts_mut(&mut self) -> Vec<&mut AnyTuner> {
        vec![&mut self.first]
    }

    /// All experts start as the first one does.
    fn prepare(self, base: &Base, data: Probe<'_>) -> Result<Self> {
        let before = peft_core::view::tensors(&self.first);
        let prepared = AdaMix { first: self.first.clone().prepare(base, data)?, ..self };
        match peft_core::view::tensors(&prepared.first) == before {
            true => Ok(prepared),
            false => Ok(AdaMix { others: prepared.copies(), ..prepared }),
        }
    }

    fn sample(self, random: &mut Random) -> Self {
        let names = self.others.names().filter_map(|name| (self.map_of)(name.split_once('.')?.1));
        let maps: BTreeSet<String> = names.map(|(map, _)| map.to_string()).collect();
        let experts = self.experts();
        let routes = maps.into_iter().map(|map| (map, [0, 1].map(|_| random.below(experts)))).collect();
        AdaMix { routes: Some(routes), first: self.first.clone().sample(random), ..self }
    }

    fn loss(&self, readout: &Readout<'_>) -> Result<Option<Tensor<1>>> {
        let own = self.current().loss(readout)?;
        if self.routes.is_none() || self.mixing.consistency == 0.0 {
            return Ok(own);
        }
        let logits = self.logits(readout)?;
        let task = own.map_or_else(|| readout.loss(logits.clone()), Ok)?;
        let mut batch = readout.batch.clone().into_owned();
        if let Some(noise) = batch.noise.take() {
            batch = batch.with_noise(Noise { seed: !noise.seed, ..(*noise).clone() });
        }
        let second = Readout { batch: Cow::Owned(batch), ..readout.clone() };
        let other = second.logits(second.run(&self.routed(Some(1)))?)?;
        Ok(Some(match (readout.predictions(logits)?, readout.predictions(other)?) {
            (Some(first), Some(second)) => task + loss::divergence(first, second) * self.mixing.consistency,
            _ => task,
        }))
    }

    fn penalty(&self) -> Option<Tensor<1>> {
        self.current().penalty()
    }

    fn rate(&self, name: &str, rate: f64) -> f64 {
        self.first.rate(inside(name), rate)
    }

    fn decays(&self, name: &str) -> bool {
        self.first.decays(inside(name))
    }

    fn may_rest(&self, name: &str) -> bool {
        self.others.named(&format!("1.{}", inside(name))).is_some()
    }

    fn after_step(self, base: &Base, optim: &mut Optim, before: &Self, step: usize) -> Result<Self> {
        let first = self.first.clone().after_step(base, optim, &before.first, step)?;
        Ok(AdaMix { first, routes: None, ..self })
    }

    /// What a method makes of the last state it makes of the mean.
    fn finish(self, base: &Base) -> Result<Self> {
        let mean = self.routed(None);
        let finished = mean.clone().finish(base)?;
        let changed = peft_core::view::tensors(&finished) != peft_core::view::tensors(&mean);
        Ok(if changed { self.of_one(finished) } else { self })
    }
}

#[cfg(test)]
mod tests {
    use peft_additive::Init;

    use super::*;

    fn adapter() -> AdaMixConfig {
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
