//! # AdapterFusion                          family: additive / adapter-based
//! u' = u + sum_n a_n (e_n Wv), a = softmax_n(q . k_n), q = z Wq + bq, k_n = e_n Wk + bk     e_n: what adapter n adds to the output u of a sub-layer, z what it reads; Wq, Wk, Wv: [d, d]; adapters are frozen
//! loss + 0.01 sum |I - Wv|^2               over all sub-layers with adapters
//! Paper: Pfeiffer et al., 2021, arXiv:2005.00247, section 3.   Reference: adapter-hub `AdapterFusionConfig`, dynamic
//! Oracle: package adapters 1.3.0: `equals_adapterhubs_fusion`
//! Trains: 3 d^2 + 2 d per sub-layer with adapters, 2 d^2 + 2 d with `value` off (AdapterHub's `static`).      Merges: no, all adapters stay.
//! Identities:
//! - of one adapter, or of copies of one, with Wv = I, it is that adapter: `adapters_alike_are_one`
//! - Wq = 0, bq = 0, Wv = I is the mean of what they add: `without_a_query_adapters_are_averaged`
//! - the order of the adapters does not matter: `the_order_of_the_adapters_does_not_matter`
//! - adapters do not move: `fused_adapters_stay_as_they_are`
//! - Wv starts near I, and the penalty is its distance from that: `fusion_starts_as_the_reference`
//!
//! Differs from the paper: the adapters are finished ones, of any placement; the first training of each is a run of its own. Wv starts with 1e-6 beside its diagonal, as in the reference. Pruning of adapters after the fusion is not part of it.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::adapterhub::{AdapterHub, Fields, HubKey, Kind, Layout, field};
use peft_core::ops::attention::mixed;
use peft_core::{
    Added, Affine, Base, Delta, Error, Frame, Hooks, Key, Method, Next, Procedure, Result, Sequence, Shape, Site,
    SiteMap, Source, adapter, random::Random, split_name,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::bottleneck::key;
use super::hub::hub_key;
use super::sequential::{Sequential, SequentialConfig, alike};

/// More adapters than anybody fuses, so that a file cannot ask for any amount of memory.
const MOST: usize = 256;
/// What queries and keys start from, as BERT.
const STD: f64 = 0.02;
/// What stands beside the diagonal of Wv at the start.
const BESIDE: f64 = 1e-6;
/// The weight of the penalty.
const WEIGHT: f64 = 0.01;

/// The configuration of AdapterFusion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdapterFusionConfig {
    /// The settings of all adapters, which follow from these.
    pub adapter: SequentialConfig,
    /// Their number, likewise.
    pub num_adapters: usize,
    /// Whether values are mapped: `dynamic` in AdapterHub, else `static`.
    pub value: bool,
}

impl Default for AdapterFusionConfig {
    /// Of the paper's adapters.
    fn default() -> Self {
        AdapterFusionConfig { adapter: SequentialConfig::pfeiffer(48), num_adapters: 0, value: true }
    }
}

impl AdapterFusionConfig {
    /// Over these adapters; the seed decides every random number.
    fn fused(&self, base: &Base, seed: u64, adapters: Vec<Sequential>) -> AdapterFusion {
        let (d, device) = (base.shape().hidden, base.device().clone().autodiff());
        let affine = |site: Site, map: &str| {
            (site, Affine::init([d, d], STD, Random::new(seed, &format!("adapter_fusion.{site}.{map}")), &device))
        };
        // Of each site its own: clones of one tensor have one gradient.
        let diagonal = || Tensor::<2>::eye(d, &device) * (1.0 - BESIDE) + BESIDE;
        let sites: Vec<Site> = adapters[0].sites().collect();
        AdapterFusion {
            query: sites.iter().map(|site| affine(*site, "query")).collect(),
            key: sites.iter().map(|site| affine(*site, "key")).collect(),
            value: sites.iter().filter(|_| self.value).map(|site| (*site, Param::from_tensor(diagonal()))).collect(),
            config: AdapterFusionConfig { num_adapters: adapters.len(), ..self.clone() },
            adapters: adapters.into_iter().map(Module::no_grad).collect(),
        }
    }

    fn hub_fields(&self, _: &Shape) -> Result<Fields> {
        let fields = json!({"key": true, "query": true, "value": self.value, "query_before_ln": false, "residual_before": false,
            "temperature": false, "value_before_softmax": true});
        Ok(fields.as_object().cloned().unwrap_or_default())
    }

    fn of_hub(fields: &Fields, _: &Shape) -> Result<Self> {
        Ok(AdapterFusionConfig { value: field(fields, "value", "true or false")?, ..Default::default() })
    }

    fn check(count: usize, key: &str) -> Result<()> {
        if (1..=MOST).contains(&count) {
            return Ok(());
        }
        Err(Error::config(key, count, format!("1 to {MOST} adapters to fuse")))
    }
}

/// Adapters, and attentions over what they add.
#[derive(Module, Debug)]
pub struct AdapterFusion {
    /// Not trained.
    adapters: Vec<Sequential>,
    /// Wq and bq, each at a sub-layer.
    query: SiteMap<Affine>,
    /// Wk and bk.
    key: SiteMap<Affine>,
    /// Wv, `[d, d]`.
    value: SiteMap<Param<Tensor<2>>>,
    #[module(skip)]
    config: AdapterFusionConfig,
}

impl Method for AdapterFusionConfig {
    const NAME: &'static str = "adapter-fusion";
    const PEFT_TYPE: &'static str = "ADAPTER_FUSION";
    type Tuner = AdapterFusion;

    fn init(&self, base: &Base, seed: u64) -> Result<AdapterFusion> {
        self.init_from(base, seed, &[])
    }

    fn init_from(&self, base: &Base, seed: u64, sources: &[Source]) -> Result<AdapterFusion> {
        Self::check(sources.len(), "sources")?;
        let (adapter, adapters) = alike(sources)?;
        if adapter.train_layernorm || !adapter.inner_norm.is_empty() {
            let expected = "adapters without normalizations of their own or trained ones";
            return Err(Error::config("sources", &sources[0].name, expected));
        }
        Ok(AdapterFusionConfig { adapter, ..self.clone() }.fused(base, seed, adapters))
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        let d = shape.hidden;
        let maps = if self.value { 3 } else { 2 };
        Ok(self.adapter.plan(shape)?.len() * (maps * d * d + 2 * d))
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        if let Some((number, name)) = name.strip_prefix("adapters.").and_then(|name| name.split_once('.')) {
            let Key { name, transposed } = self.adapter.key(name, shape);
            return Key { name: name.replace(".adapter_", &format!(".adapter_{number}_")), transposed };
        }
        let (field, site, leaf) = split_name(name);
        let leaf = if leaf.is_empty() { "weight" } else { leaf };
        let Key { name, .. } = key(shape, site, &format!("fusion_{field}.{leaf}"));
        Key { name, transposed: leaf == "weight" }
    }

    fn learned(&self, tuner: &AdapterFusion, _shape: &Shape) -> Self {
        tuner.config.clone()
    }

    fn adapterhub() -> Option<AdapterHub<Self>> {
        let key = |config: &Self, name: &str, fusion: &str, shape: &Shape| {
            let Key { transposed, .. } = config.key(name, shape);
            let (field, site, leaf) = split_name(name);
            let leaf = if leaf.is_empty() { "weight" } else { leaf };
            let HubKey { name, .. } = hub_key(shape, site, "up.weight", "");
            let module = name.trim_end_matches(".adapters..adapter_up.weight");
            let layout = if transposed { Layout::Transposed } else { Layout::Same };
            HubKey::new(format!("{module}.adapter_fusion_layer.{fusion}.{field}.{leaf}"), layout)
        };
        let free = &["dropout_prob", "regularization", "value_initialized", "value_before_softmax"];
        Some(AdapterHub { kind: Kind::Fusion, fields: Self::hub_fields, config: Self::of_hub, free, key })
    }

    fn for_loading(&self, base: &Base) -> Result<AdapterFusion> {
        Self::check(self.num_adapters, "num_adapters")?;
        let fresh = (0..self.num_adapters).map(|_| self.adapter.init(base, 0));
        Ok(self.fused(base, 0, fresh.collect::<Result<_>>()?))
    }
}

impl Hooks for AdapterFusion {
    fn sublayer(&self, frame: &Frame<'_>, site: Site, x: Sequence, next: Next<'_, Sequence, Tensor<3>>) -> Tensor<3> {
        let (Some(query), Some(key)) = (self.query.get(site), self.key.get(site)) else { return next(x) };
        let residual = x.hidden.clone();
        let output = next(x);
        let each = self.adapters.iter().filter_map(|adapter| adapter.to_sublayer(frame, site, &residual, &output));
        let (reads, added): (Vec<_>, Vec<_>) = each.map(|Added { read, delta }| (read, delta)).unzip();
        let Some(read) = reads.into_iter().next() else { return output };
        let added = Tensor::stack::<4>(added, 2);
        let scores = key.forward(added.clone()).matmul(query.forward(read).unsqueeze_dim(3));
        let p = frame.shape().attention_dropout;
        let scores = frame.dropout(scores, p, format_args!("adapter_fusion.{site}"));
        let values = match self.value.get(site) {
            Some(value) => added.matmul(value.val().unsqueeze()),
            None => added,
        };
        output + mixed(values, scores)
    }
}

adapter!(AdapterFusion);

impl Procedure for AdapterFusion {
    fn penalty(&self) -> Option<Tensor<1>> {
        let distance = |(_, value): (Site, &Param<Tensor<2>>)| {
            let value = value.val();
            (Tensor::eye(value.dims()[0], &value.device().inner()) - value).powi_scalar(2).sum()
        };
        self.value.iter().map(distance).reduce(|a, b| a + b).map(|sum| sum * WEIGHT)
    }
}

#[cfg(test)]
mod tests {
    use burn::optim::GradientsParams;
    use peft_core::testing::{base, device, randomized};
    use peft_core::{AnyTuner, Head, Trained};

    use super::*;

    fn sources(base: &Base) -> Vec<Source> {
        let config = SequentialConfig::pfeiffer(5);
        let one = |(seed, name): (u64, &str)| {
            let tuner = AnyTuner::new(randomized(&config.init(base, seed).unwrap(), seed));
            let trained = Trained::new(tuner, Head::classifier(base, 2, 3)).unwrap();
            Source { name: name.into(), config: config.clone().into(), trained }
        };
        [(3, "first"), (4, "second")].into_iter().map(one).collect()
    }

    peft_core::conformance!(
        AdapterFusionConfig { adapter: SequentialConfig::pfeiffer(5), ..Default::default() },
        from(sources),
        skip(C1: "it starts near the mean of its adapters", C3: "all adapters stay")
    );

    /// From the start, before any step has moved the maps apart.
    #[test]
    fn each_map_has_a_gradient_of_its_own() {
        let base = base("roberta-tiny", &device());
        let config = AdapterFusionConfig { adapter: SequentialConfig::pfeiffer(5), ..Default::default() };
        let fusion = config.init_from(&base, 0, &sources(&base)).unwrap();
        let gradients = GradientsParams::from_grads(fusion.penalty().unwrap().backward(), &fusion);
        let of = |(_, value): (Site, &Param<Tensor<2>>)| gradients.get::<2>(value.id).map(Tensor::into_data);
        let all: Vec<_> = fusion.value.iter().map(of).collect();
        assert!(all.len() > 1 && all[0].is_some() && all.iter().all(|one| *one == all[0]), "{all:?}");
    }

    #[test]
    fn has_as_many_parameters_as_the_reference() {
        let shape = Shape::named("roberta-base").unwrap();
        assert_eq!(AdapterFusionConfig::default().count(&shape).unwrap(), 21_252_096);
    }

    #[test]
    fn what_is_no_adapter_to_fuse_is_refused_by_name() {
        let base = base("bert-tiny", &device());
        let config = AdapterFusionConfig::default();
        let of = |sources: &[Source]| config.init_from(&base, 0, sources).unwrap_err().to_string();
        let trained = |config: SequentialConfig| {
            let tuner = AnyTuner::new(config.init(&base, 0).unwrap());
            let trained = Trained::new(tuner, Head::classifier(&base, 2, 3)).unwrap();
            Source { name: "other".into(), config: config.into(), trained }
        };
        let [first, _] = &sources(&base)[..] else { unreachable!() };
        for (message, words) in [
            (of(&[]), ["sources: 0", "1 to 256"]),
            (of(&[first.clone(), trained(SequentialConfig::pfeiffer(6))]), ["sources: other", "the same settings"]),
            (of(&[trained(SequentialConfig::houlsby(5))]), ["sources: other", "trained ones"]),
            (config.for_loading(&base).unwrap_err().to_string(), ["num_adapters: 0", "1 to 256"]),
        ] {
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
    }
}
