//! # ProPETL                                family: unified / any adapter
//! theta_l = theta o m_l, m_l = the k n numbers of |s_l| that are largest       theta: the matrices of one layer's adapter, s_l: scores of layer l, of the same shapes
//! d L / d s_l = sign(s_l) o theta o d L / d theta_l, as if m_l were |s_l|
//! Paper: Zeng, Zhang and Lu, 2023, arXiv:2305.17682, section 3.   Reference: ChaosCodes/ProPETL
//! Oracle: code ChaosCodes/ProPETL propetl-roberta/src/transformers/adapters: `adapters_equal_the_reference`, `prefixes_equal_the_reference`, `lora_equals_the_reference`
//! Trains: an adapter of one layer, and as many scores as all layers' matrices have numbers.      Merges: with LoRA.
//! Identities:
//! - k = 1 is one adapter in all layers: `with_all_numbers_it_is_one_adapter_in_all_layers`
//! - it is the adapter with the masked matrices in its layers: `it_is_the_adapter_with_masked_matrices`
//! - each mask has n - floor((1 - k) n) ones: `a_mask_has_its_share_of_ones`
//! - the gradient of theta is the sum of those of all layers under their masks: `the_prototype_gets_the_gradients_of_all_layers`
//! - the gradient of s_l is theta times that of theta_l, with the sign of s_l: `scores_get_the_gradients_of_numbers_of_one`
//! - c s_l for c > 0 is the same: `only_the_order_of_the_scores_matters`
//! - files hold a bit for each score: `files_hold_a_bit_for_each_score`
//! - prototype and scores start as in the reference: `adapters_start_as_in_the_reference`, `scores_start_within_the_bounds_of_the_reference`
//! - loaded masks stay, and must have as many ones as the settings say: `loaded_masks_stay_and_the_prototype_is_trained_on`
//! - merged == unmerged, with LoRA: `C3`
//!
//! Differs from the paper: masks of tasks are not offered. Biases are shared as they are, and a prefix is masked behind its projection, as in the authors' code. Of an encoder-decoder each stack shares an adapter of its own; the authors' code for T5 (adapters only, with GELU) shares one among both, and its scores start within the bounds of the other matrix, since they do not lie transposed there. Files hold masks, not scores: trained on, loaded masks stay and the prototype moves. The survey's numbers of parameters of its rows for LoRA and prefixes are those without sharing.

use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_additive::{PrefixTuningConfig, SequentialConfig};
use peft_core::view::{Rewrite, shapes, view};
use peft_core::{
    Adapter, AnyTuner, Base, Batch, Error, Hooks, Key, Merge, Method, Procedure, Result, Shape, Site, Slot, Weight,
    random::{Noise, Random},
};
use peft_reparam::{BiasMode, LoraConfig};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::constant::Constant;
use crate::masks::{Matrices, mask_of_largest, matrix, tensors};
use crate::settings;

/// A method whose adapters of all layers have the same form, so that one can stand for all.
pub trait Shared: Method<Tuner: Adapter> {
    /// The name of the method with a shared adapter.
    const SHARED: &'static str;
    /// Its `peft_type`.
    const SHARED_TYPE: &'static str;

    /// The paper's.
    fn paper() -> ProPetlConfig<Self>;

    /// How many numbers the matrices of all layers have; refuses settings by which layers differ.
    fn masked(&self, shape: &Shape) -> Result<usize>;

    /// What bounds the start of a matrix's scores, at 1 / sqrt(fan): torch's count of inputs in the form that the authors' RoBERTa has
    /// them in.
    fn fan(dims: [usize; 2]) -> usize;

    /// Whether a layer uses its part of a tensor that holds all layers.
    fn used(_shape: &Shape, _layer: usize) -> bool {
        true
    }

    /// The weight-space form, if it has one.
    fn merge_shared(_tuner: &ProPetl<Self::Tuner>) -> Option<&dyn Merge> {
        None
    }
}

impl Shared for SequentialConfig {
    const SHARED: &'static str = "propetl-adapter";
    const SHARED_TYPE: &'static str = "PROPETL_ADAPTER";

    fn paper() -> ProPetlConfig<Self> {
        ProPetlConfig { inner: SequentialConfig::pfeiffer(64), sharing: Sharing { density: 0.5, mask_rate: 30.0 } }
    }

    fn masked(&self, shape: &Shape) -> Result<usize> {
        if self.train_layernorm {
            return Err(Error::config("train_layernorm", true, "false: each layer has normalizations of its own"));
        }
        for_all_layers(&self.leave_out)?;
        // A bottleneck wider by one unit has d + 1 + d more numbers.
        let wider = self.clone().with_bottleneck(self.bottleneck + 1).count(shape)? - self.count(shape)?;
        Ok(wider / (2 * shape.hidden + 1) * 2 * shape.hidden * self.bottleneck)
    }

    /// Of `[d, m]` and `[m, d]`, which lie there as they do here.
    fn fan([_, columns]: [usize; 2]) -> usize {
        columns
    }
}

/// The layers share what each of them has.
fn for_all_layers(leave_out: &[usize]) -> Result<()> {
    match leave_out.first() {
        None => Ok(()),
        Some(layer) => Err(Error::config("leave_out", layer, "no layer: all share what is trained")),
    }
}

impl Shared for LoraConfig {
    const SHARED: &'static str = "propetl-lora";
    const SHARED_TYPE: &'static str = "PROPETL_LORA";

    fn paper() -> ProPetlConfig<Self> {
        ProPetlConfig {
            inner: LoraConfig::new(32).with_alpha(48.0),
            sharing: Sharing { density: 0.1, mask_rate: 300.0 },
        }
    }

    fn masked(&self, shape: &Shape) -> Result<usize> {
        if self.bias != BiasMode::None {
            return Err(Error::config("bias", format!("{:?}", self.bias), "none: each layer has biases of its own"));
        }
        if self.use_dora {
            return Err(Error::config("use_dora", true, "false: each layer's matrices have lengths of their own"));
        }
        self.count(shape)
    }

    /// Of `[r, d_in]` and `[d_out, r]`, the transposed.
    fn fan([rows, _]: [usize; 2]) -> usize {
        rows
    }

    fn merge_shared(tuner: &ProPetl<Self::Tuner>) -> Option<&dyn Merge> {
        Some(tuner)
    }
}

impl Shared for PrefixTuningConfig {
    const SHARED: &'static str = "propetl-prefix";
    const SHARED_TYPE: &'static str = "PROPETL_PREFIX";

    fn paper() -> ProPetlConfig<Self> {
        ProPetlConfig {
            inner: PrefixTuningConfig::new(64).with_projection(512).with_shift_positions(false),
            sharing: Sharing { density: 0.1, mask_rate: 1.0 },
        }
    }

    fn masked(&self, shape: &Shape) -> Result<usize> {
        for_all_layers(&self.leave_out)?;
        let flat = PrefixTuningConfig { prefix_projection: false, ..self.clone() };
        let layers = flat.count(shape)? / flat.count(&shape.clone().one_layer())?;
        let used = (0..layers).filter(|layer| Self::used(shape, *layer)).count();
        Ok(flat.count(shape)? / layers * used)
    }

    /// Of `[L, l, 2 d]`, one tensor for all layers.
    fn fan([rows, columns]: [usize; 2]) -> usize {
        rows * columns
    }

    /// As PEFT cuts the prefix of a model with two stacks, its layers take every second part in turn.
    fn used(shape: &Shape, layer: usize) -> bool {
        !shape.stacks().get(1).is_some_and(|(_, layers)| layers.is_multiple_of(2)) || layer.is_multiple_of(2)
    }
}

/// What is shared, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct ProPetlConfig<M> {
    /// The adapters.
    pub inner: M,
    /// The masks.
    pub sharing: Sharing,
}

/// The settings of the masks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sharing {
    /// The share k of each matrix that a layer uses.
    pub density: f64,
    /// By which factor the scores' learning rate is higher.
    pub mask_rate: f64,
}

impl<M: Shared> ProPetlConfig<M> {
    /// These adapters, otherwise the paper's settings.
    pub fn new(inner: M) -> Self {
        ProPetlConfig { inner, ..M::paper() }
    }

    /// With this share of each matrix in a layer.
    pub fn with_density(mut self, density: f64) -> Self {
        self.sharing.density = density;
        self
    }

    /// With scores that learn faster by this factor.
    pub fn with_mask_rate(mut self, mask_rate: f64) -> Self {
        self.sharing.mask_rate = mask_rate;
        self
    }

    fn check(&self) -> Result<()> {
        let Sharing { density, mask_rate } = self.sharing;
        if !(density > 0.0 && density <= 1.0) {
            return Err(Error::config("density", density, "a number above 0, at most 1"));
        }
        if !(mask_rate > 0.0 && mask_rate.is_finite()) {
            return Err(Error::config("mask_rate", mask_rate, "a finite number above 0"));
        }
        Ok(())
    }
}

impl<M: Shared> Default for ProPetlConfig<M> {
    fn default() -> Self {
        M::paper()
    }
}

impl<M: Shared> Serialize for ProPetlConfig<M> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        settings::serialize(&self.sharing, &self.inner, serializer)
    }
}

impl<'de, M: Shared> Deserialize<'de> for ProPetlConfig<M> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ProPetlConfig { inner, sharing } = M::paper();
        let (sharing, inner) = settings::deserialize(deserializer, &sharing, &inner)?;
        Ok(ProPetlConfig { inner, sharing })
    }
}

/// One adapter for all layers, and a mask for each.
#[derive(Module, Debug)]
pub struct ProPetl<A: Module> {
    /// Of a model with one layer.
    prototype: A,
    /// Of each matrix of the prototype in each layer, by name: `3.factors.encoder.0.query.a` in the fourth.
    scores: Matrices,
    form: Constant<Form<A>>,
    #[module(skip)]
    sharing: Sharing,
}

/// What is known of the adapters beside their tensors.
#[derive(Clone, Debug)]
struct Form<A> {
    /// Adapters of all layers, whose tensors are not used.
    layered: A,
    /// What the prototype's tensors are computed by, such as a prefix's projection.
    computed: fn(A) -> A,
}

impl<M: Shared> Method for ProPetlConfig<M> {
    const NAME: &'static str = M::SHARED;
    const PEFT_TYPE: &'static str = M::SHARED_TYPE;
    const HEAD_PREFIX: &'static str = M::HEAD_PREFIX;
    type Tuner = ProPetl<M::Tuner>;

    fn init(&self, base: &Base, seed: u64) -> Result<Self::Tuner> {
        self.start(self.inner.init(&base.one_layer(), seed)?, base, seed)
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        self.check()?;
        Ok(self.inner.count(&shape.clone().one_layer())? + self.inner.masked(shape)?)
    }

    fn virtual_tokens(&self) -> usize {
        self.inner.virtual_tokens()
    }

    fn room(&self, shape: &Shape) -> usize {
        self.inner.room(shape)
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        let shape = &shape.clone().one_layer();
        let (field, name) = name.split_once('.').unwrap_or_default();
        match (field, name.split_once('.')) {
            ("scores", Some((layer, name))) => Key::plain(format!("{}.mask.{layer}", self.inner.key(name, shape).name)),
            _ => self.inner.key(name, shape),
        }
    }

    fn is_mask(&self, name: &str) -> bool {
        name.starts_with("scores.")
    }

    fn for_files(&self, shape: &Shape) -> Result<Self> {
        Ok(ProPetlConfig { inner: self.inner.for_files(shape)?, ..self.clone() })
    }

    fn derived(&self, shape: &Shape) -> Map<String, Value> {
        self.inner.derived(shape)
    }

    /// Masks in the place of scores: the largest numbers of a mask are the same mask.
    fn to_saved(tuner: Self::Tuner) -> Self::Tuner {
        let scores = view(&tuner.scores, &mut Masks(tuner.sharing.density));
        ProPetl { prototype: M::to_saved(tuner.prototype), scores, ..tuner }
    }

    fn for_loading(&self, base: &Base) -> Result<Self::Tuner> {
        // Files hold masks, not the scores that they came from: these stay as they are, and the prototype is trained on.
        let tuner = self.start(self.inner.for_loading(&base.one_layer())?, base, 0)?;
        Ok(ProPetl { scores: tuner.scores.no_grad(), ..tuner })
    }

    fn merge(tuner: &Self::Tuner) -> Option<&dyn Merge> {
        M::merge_shared(tuner)
    }
}

impl<M: Shared> ProPetlConfig<M> {
    fn start(&self, prototype: M::Tuner, base: &Base, seed: u64) -> Result<ProPetl<M::Tuner>> {
        self.check()?;
        self.inner.masked(base.shape())?;
        let (layered, device) = (self.inner.for_loading(base)?, base.device().clone().autodiff());
        let shared: BTreeMap<String, Vec<usize>> = shapes(&M::to_saved(prototype.clone())).into_iter().collect();
        let mut scores = Vec::new();
        for (name, dims) in shapes(&layered) {
            let (layers, first) = match in_layer(&name) {
                Some((layer, first)) => (layer..layer + 1, first),
                None => (0..dims[1] / shared.get(&name).map_or(1, |own| own[1]), name.clone()),
            };
            let Some(own) = shared.get(&first).filter(|own| dims.len() == own.len() && dims[0] == own[0]) else {
                let expected = format!("what the first layer has: {shared:?}; one adapter is shared by all layers");
                return Err(Error::config("layers", format!("{name} of shape {dims:?}"), expected));
            };
            if let [rows, columns] = own[..] {
                let bound = 1.0 / (M::fan([rows, columns]) as f64).sqrt();
                for layer in layers.filter(|layer| M::used(base.shape(), *layer)) {
                    let name = format!("{layer}.{first}");
                    let random = Random::new(seed, &format!("propetl.{name}"));
                    let score = random.uniform_tensor([rows, columns], -bound, bound, &device);
                    scores.push((name, Param::from_tensor(score)));
                }
            }
        }
        let form = Constant(Form { layered, computed: M::to_saved as fn(M::Tuner) -> M::Tuner });
        Ok(ProPetl { prototype, scores: scores.into_iter().collect(), form, sharing: self.sharing })
    }
}

/// The layer in a tensor's name, `factors.encoder.3.query.a`, and the name that it has in the first layer. `None` for a tensor
/// that holds all layers, as columns.
fn in_layer(name: &str) -> Option<(usize, String)> {
    let words: Vec<&str> = name.split('.').collect();
    let layer = words.get(2)?.parse().ok()?;
    Some((layer, [&words[..2], &["0"], &words[3..]].concat().join(".")))
}

/// The plain mask of scores.
fn mask_of(scores: &Tensor<2>, density: f64) -> Tensor<2> {
    let count = scores.shape().num_elements();
    mask_of_largest(scores, count - ((1.0 - density) * count as f64) as usize)
}

/// Masks in the place of scores.
struct Masks(f64);

impl Rewrite for Masks {
    fn tensor<const D: usize>(&mut self, _: &str, scores: Tensor<D>) -> Tensor<D> {
        let dims = scores.dims();
        mask_of(&matrix(scores), self.0).reshape(dims)
    }
}

impl<A: Module> ProPetl<A> {
    /// Ordinary adapters of all layers, each with its numbers of the shared one.
    pub fn expanded(&self) -> A {
        let Constant(Form { layered, computed }) = &self.form;
        let shared = tensors(&computed(self.prototype.clone()));
        view(layered, &mut Expand { shared, scores: &self.scores, density: self.sharing.density })
    }
}

struct Expand<'a> {
    shared: BTreeMap<String, Tensor<2>>,
    scores: &'a Matrices,
    density: f64,
}

impl Expand<'_> {
    /// A tensor of the first layer as another has it.
    fn of_layer(&self, layer: usize, name: &str) -> Tensor<2> {
        let shared = self.shared[name].clone();
        let Some(scores) = self.scores.named(&format!("{layer}.{name}")) else { return shared };
        let sizes = scores.val().abs();
        // The mask in value, the sizes in the gradient.
        shared * (sizes.clone() - sizes.detach() + mask_of(&scores.val(), self.density))
    }
}

impl Rewrite for Expand<'_> {
    fn tensor<const D: usize>(&mut self, name: &str, form: Tensor<D>) -> Tensor<D> {
        let tensor = match in_layer(name) {
            Some((layer, first)) => self.of_layer(layer, &first),
            None => {
                let layers = form.dims()[1] / self.shared[name].dims()[1];
                Tensor::cat((0..layers).map(|layer| self.of_layer(layer, name)).collect(), 1)
            }
        };
        tensor.reshape(form.dims())
    }
}

impl<A: Adapter> Adapter for ProPetl<A> {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        self.expanded().open(batch, f)
    }

    fn view(&self, _base: &Base, _noise: Option<&Noise>) -> Result<Option<AnyTuner>> {
        Ok(Some(AnyTuner::new(self.expanded())))
    }
}

impl<A: Module + Merge> Merge for ProPetl<A> {
    fn weight(&self, site: Site, w: &Weight) -> Option<Tensor<2>> {
        self.expanded().weight(site, w)
    }

    fn vector(&self, site: Site, slot: Slot, v: &Tensor<1>) -> Option<Tensor<1>> {
        self.expanded().vector(site, slot, v)
    }
}

impl<A: Adapter> Procedure for ProPetl<A> {
    fn rate(&self, name: &str, rate: f64) -> f64 {
        if name.starts_with("scores.") { self.sharing.mask_rate * rate } else { rate }
    }
}

#[cfg(test)]
mod tests {
    use peft_additive::Init;
    use peft_core::Head;
    use peft_core::io::peft::from_settings;

    use super::*;

    mod adapter {
        use super::*;
        peft_core::conformance!(
            ProPetlConfig::new(SequentialConfig::pfeiffer(5).with_init(Init::ZeroUp)),
            skip(C3: "the non-linearity stands between the output projection and the residual")
        );
    }

    mod prefix {
        use super::*;
        peft_core::conformance!(
            ProPetlConfig::new(PrefixTuningConfig::new(5).with_projection(11)).with_density(0.5),
            skip(C1: "the prefix takes its share of every softmax", C3: "a prefix is no weight")
        );
    }

    mod lora {
        use super::*;
        peft_core::conformance!(ProPetlConfig::new(LoraConfig::new(3).with_alpha(5.0)).with_density(0.5));
    }

    /// The survey's 1.87M with the head; for its other two rows it counts the adapters of all layers.
    #[test]
    fn counts_are_those_of_the_paper() {
        let shape = Shape::named("roberta-base").unwrap();
        let adapter = ProPetlConfig::<SequentialConfig>::default().count(&shape).unwrap();
        assert_eq!([adapter, adapter + Head::count(&shape, 2)], [1_278_784, 1_870_914]);
        assert_eq!(ProPetlConfig::<LoraConfig>::default().count(&shape).unwrap(), 1_277_952);
        assert_eq!(ProPetlConfig::<PrefixTuningConfig>::default().count(&shape).unwrap(), 2_410_496);
    }

    #[test]
    fn settings_are_those_of_both() {
        let settings = ["r=4", "density=0.25", "lora_alpha=8"].map(String::from);
        let config: ProPetlConfig<LoraConfig> = from_settings(&settings).unwrap();
        assert_eq!(config, ProPetlConfig::new(LoraConfig::new(4).with_alpha(8.0)).with_density(0.25));
        let message = from_settings::<ProPetlConfig<LoraConfig>>(&["rank=4".into()]).unwrap_err().to_string();
        assert!(message.contains("density") && message.contains("lora_dropout"), "{message}");
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let base = peft_core::testing::base("roberta-tiny", &peft_core::testing::device());
        let lora = || ProPetlConfig::new(LoraConfig::new(3));
        for (config, word) in [
            (lora().with_density(0.0), "density: 0 "),
            (lora().with_density(1.5), "density: 1.5 "),
            (lora().with_mask_rate(f64::INFINITY), "mask_rate: inf "),
            (ProPetlConfig::new(LoraConfig::new(3).with_bias(BiasMode::All)), "bias: All "),
        ] {
            for message in [config.init(&base, 0).unwrap_err(), config.count(base.shape()).unwrap_err()] {
                assert!(message.to_string().contains(word), "{message}");
            }
        }
        let ranks = [(r"layer\.1\.attention\.self\.query".to_string(), 5)].into();
        let uneven = ProPetlConfig::new(LoraConfig { rank_pattern: ranks, ..LoraConfig::new(3) });
        let message = uneven.init(&base, 0).unwrap_err().to_string();
        assert!(message.contains("factors.encoder.1.query.a") || message.contains("rank_pattern"), "{message}");
        let left_out = SequentialConfig::pfeiffer(5).with_leave_out([0]);
        let message = ProPetlConfig::new(left_out).init(&base, 0).unwrap_err().to_string();
        assert!(message.contains("leave_out") && message.contains("no layer"), "{message}");
        let norms = ProPetlConfig::new(SequentialConfig::houlsby(5)).init(&base, 0).unwrap_err().to_string();
        assert!(norms.contains("train_layernorm"), "{norms}");
    }
}
