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
use peft_core::train::{Optim, Probe};
use peft_core::view::{Rewrite, shapes, trained, view};
use peft_core::{
    Adapter, AnyMethod, AnyTuner, Base, Batch, Error, Hooks, Key, Over, Procedure, Readout, Result, Shape, Tuner,
    random::{Noise, Random},
};
use peft_reparam::LoraConfig;
use serde::{Deserialize, Serialize};

use crate::masks::{Matrices, check_fits, mask_of_largest, matrix, tensors};
use crate::shared::{NAME, fan, is_used, masked, refused};

/// What is shared, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct ProPetlConfig {
    /// The adapters, of a method that has the same form in all layers.
    pub inner: AnyMethod,
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

impl ProPetlConfig {
    /// These adapters, otherwise the paper's settings.
    pub fn new(inner: impl Into<AnyMethod>) -> Self {
        let inner = inner.into();
        ProPetlConfig { sharing: Sharing::paper(&inner), inner }
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

    /// The start on a model, see [`Over::init`].
    pub fn init(&self, base: &Base, seed: u64) -> Result<ProPetl> {
        self.sharing.start(&self.inner, prototype(&self.inner, base, seed)?, base, seed)
    }
}

impl From<ProPetlConfig> for AnyMethod {
    fn from(ProPetlConfig { inner, sharing }: ProPetlConfig) -> Self {
        AnyMethod::over(sharing, inner)
    }
}

/// One adapter for all layers, and a mask for each.
#[derive(Module, Debug)]
pub struct ProPetl {
    /// Of a model with one layer.
    prototype: AnyTuner,
    /// Of each matrix of the prototype in each layer, by name: `3.factors.encoder.0.query.a` in the fourth.
    scores: Matrices,
    /// Adapters of all layers, whose tensors are not used.
    #[module(skip)]
    layered: AnyTuner,
    /// By which the prototype's tensors are computed, such as a prefix by its projection.
    #[module(skip)]
    inner: AnyMethod,
    #[module(skip)]
    sharing: Sharing,
}

impl Sharing {
    fn paper(inner: &AnyMethod) -> Self {
        let (density, mask_rate) = match inner {
            lora if lora.downcast_ref::<LoraConfig>().is_some() => (0.1, 300.0),
            prefix if prefix.downcast_ref::<PrefixTuningConfig>().is_some() => (0.1, 1.0),
            _ => (0.5, 30.0),
        };
        Sharing { density, mask_rate }
    }

    fn check(&self) -> Result<()> {
        let Sharing { density, mask_rate } = *self;
        if !(density > 0.0 && density <= 1.0) {
            return Err(Error::config("density", density, "a number above 0, at most 1"));
        }
        if !(mask_rate > 0.0 && mask_rate.is_finite()) {
            return Err(Error::config("mask_rate", mask_rate, "a finite number above 0"));
        }
        Ok(())
    }

    fn start(&self, inner: &AnyMethod, prototype: AnyTuner, base: &Base, seed: u64) -> Result<ProPetl> {
        self.check()?;
        // With what it has from its sources.
        let inner = &inner.learned(&prototype, base.shape());
        let expected = masked(inner, base.shape())?;
        check_fits(NAME, inner, &prototype)?;
        let (layered, device) = (inner.for_loading(base)?, base.device().clone().autodiff());
        let shared: BTreeMap<String, Vec<usize>> = shapes(&inner.to_saved(prototype.clone())).into_iter().collect();
        let (own, moving) = (shapes(&prototype), trained(&prototype));
        let rests = |name: &String| own.iter().any(|(own, _)| own == name) && !moving.contains_key(name);
        let (mut scores, mut numbers) = (vec![], 0);
        for (name, dims) in shapes(&layered) {
            let (layers, first) = match (in_layer(&name), &dims[..]) {
                (Some((layer, first)), _) => (layer..layer + 1, first),
                (None, [_, columns]) => (0..columns / shared.get(&name).map_or(1, |own| own[1]), name.clone()),
                (None, _) => (0..1, name.clone()),
            };
            let Some(own) = shared.get(&first).filter(|own| dims.len() == own.len() && dims[0] == own[0]) else {
                let first = shared.get(&first).map_or_else(|| "nothing".into(), |own| format!("{own:?}"));
                let found = format!("{name} of shape {dims:?}, where the first layer has {first}");
                return Err(refused(inner, found, "the same in each layer, since all share one adapter"));
            };
            if let ([rows, columns], false) = (&own[..], rests(&first)) {
                let bound = 1.0 / (fan(inner, [*rows, *columns]) as f64).sqrt();
                numbers += dims.iter().product::<usize>();
                for layer in layers.filter(|layer| is_used(inner, base.shape(), *layer)) {
                    let name = format!("{layer}.{first}");
                    let random = Random::new(seed, &format!("propetl.{name}"));
                    let score = random.uniform_tensor([*rows, *columns], -bound, bound, &device);
                    scores.push((name, Param::from_tensor(score)));
                }
            }
        }
        let found: usize = scores.iter().map(|(_, score)| score.shape().num_elements()).sum();
        if found != expected {
            let found = format!("{numbers} numbers in matrices of its layers, of {expected}");
            return Err(refused(inner, found, "only such: it is not known how many scores it has"));
        }
        Ok(ProPetl { prototype, scores: scores.into_iter().collect(), layered, inner: inner.clone(), sharing: *self })
    }
}

/// What all layers share.
fn prototype(inner: &AnyMethod, base: &Base, seed: u64) -> Result<AnyTuner> {
    match inner.init(&base.one_layer(), seed) {
        // Finished adapters of all layers are none of one.
        Err(error) if inner.init(base, seed).is_ok() => {
            let found = format!("a start that needs all layers ({error})");
            Err(refused(inner, found, "one on a model of one layer, which all others share"))
        }
        started => started,
    }
}

impl Over for Sharing {
    const NAME: &'static str = NAME;

    /// The paper's.
    fn usual(inner: AnyMethod) -> (Self, AnyMethod) {
        let paper: AnyMethod = match inner {
            adapter if adapter.downcast_ref::<SequentialConfig>().is_some() => SequentialConfig::pfeiffer(64).into(),
            lora if lora.downcast_ref::<LoraConfig>().is_some() => LoraConfig::new(32).with_alpha(48.0).into(),
            prefix if prefix.downcast_ref::<PrefixTuningConfig>().is_some() => {
                PrefixTuningConfig::new(64).with_projection(512).with_shift_positions(false).into()
            }
            other => other,
        };
        (Sharing::paper(&paper), paper)
    }

    fn init(&self, inner: &AnyMethod, base: &Base, seed: u64) -> Result<AnyTuner> {
        self.start(inner, prototype(inner, base, seed)?, base, seed).map(AnyTuner::new)
    }

    fn count(&self, inner: &AnyMethod, shape: &Shape) -> Result<usize> {
        self.check()?;
        Ok(inner.count(&shape.clone().one_layer())? + masked(inner, shape)?)
    }

    fn key(&self, inner: &AnyMethod, name: &str, shape: &Shape) -> Key {
        let shape = &shape.clone().one_layer();
        let (field, name) = name.split_once('.').unwrap_or_default();
        match (field, name.split_once('.')) {
            ("scores", Some((layer, name))) => Key::plain(format!("{}.mask.{layer}", inner.key(name, shape).name)),
            _ => inner.key(name, shape),
        }
    }

    fn is_mask(name: &str) -> bool {
        name.starts_with("scores.")
    }

    /// Masks in the place of scores: the largest numbers of a mask are the same mask.
    fn to_saved(&self, inner: &AnyMethod, tuner: AnyTuner) -> AnyTuner {
        let shared = of(&tuner).clone();
        let scores = view(&shared.scores, &mut Masks(shared.sharing.density));
        AnyTuner::new(ProPetl { prototype: inner.to_saved(shared.prototype.clone()), scores, ..shared })
    }

    fn for_loading(&self, inner: &AnyMethod, base: &Base) -> Result<AnyTuner> {
        // Files hold masks, not the scores that they came from: these stay as they are, and the prototype is trained on.
        let tuner = self.start(inner, inner.for_loading(&base.one_layer())?, base, 0)?;
        Ok(AnyTuner::new(ProPetl { scores: tuner.scores.no_grad(), ..tuner }))
    }

    fn loaded(&self, inner: &AnyMethod, tuner: AnyTuner, base: &Base) -> Result<AnyTuner> {
        let shared = of(&tuner).clone();
        let prototype = inner.loaded(shared.prototype, &base.one_layer())?;
        Ok(AnyTuner::new(ProPetl { prototype, ..shared }))
    }

    fn plain(tuner: &AnyTuner) -> AnyTuner {
        of(tuner).expanded()
    }
}

fn of(tuner: &AnyTuner) -> &ProPetl {
    tuner.downcast_ref().unwrap_or_else(|| panic!("a shared adapter is asked for, not {tuner:?}"))
}

/// The layer in a tensor's name, `factors.encoder.3.query.a`, and the name that it has in the first layer. `None` for a tensor
/// that holds all layers, as columns.
fn in_layer(name: &str) -> Option<(usize, String)> {
    let mut words: Vec<&str> = name.split('.').collect();
    let place = words
        .windows(2)
        .position(|pair| matches!(pair[0], "encoder" | "decoder") && pair[1].parse::<usize>().is_ok())?;
    let layer = words[place + 1].parse().ok()?;
    words[place + 1] = "0";
    Some((layer, words.join(".")))
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

impl ProPetl {
    /// Ordinary adapters of all layers, each with its numbers of the shared one.
    pub fn expanded(&self) -> AnyTuner {
        let shared = tensors(&self.inner.to_saved(self.prototype.clone()));
        view(&self.layered, &mut Expand { shared, scores: &self.scores, density: self.sharing.density })
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

impl Adapter for ProPetl {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        self.expanded().opened(batch, f)
    }

    fn view(&self, _base: &Base, _noise: Option<&Noise>) -> Result<Option<AnyTuner>> {
        Ok(Some(self.expanded()))
    }

    fn tasks(&self) -> Option<usize> {
        self.layered.as_adapter().and_then(|adapter| adapter.tasks())
    }
}

/// The method's steps are those of the prototype, on a model of one layer.
impl Procedure for ProPetl {
    fn parts(&self) -> Vec<(String, &AnyTuner)> {
        vec![("prototype.".into(), &self.prototype)]
    }

    fn parts_mut(&mut self) -> Vec<&mut AnyTuner> {
        vec![&mut self.prototype]
    }

    fn prepare(self, base: &Base, data: Probe<'_>) -> Result<Self> {
        let prototype = self.prototype.clone().prepare(&base.one_layer(), data)?;
        self.with(prototype)
    }

    /// Of all layers.
    fn loss(&self, readout: &Readout<'_>) -> Result<Option<Tensor<1>>> {
        self.expanded().loss(readout)
    }

    fn rate(&self, name: &str, rate: f64) -> f64 {
        match name.strip_prefix("prototype.") {
            Some(name) => self.prototype.rate(name, rate),
            None => self.sharing.mask_rate * rate,
        }
    }

    fn after_step(self, base: &Base, optim: &mut Optim, before: &Self, step: usize) -> Result<Self> {
        let prototype = self.prototype.clone().after_step(&base.one_layer(), optim, &before.prototype, step)?;
        self.with(prototype)
    }

    fn finish(self, base: &Base) -> Result<Self> {
        let prototype = self.prototype.clone().finish(&base.one_layer())?;
        self.with(prototype)
    }
}

impl ProPetl {
    /// The same with another prototype, of the same tensors.
    fn with(self, prototype: AnyTuner) -> Result<Self> {
        match shapes(&prototype) == shapes(&self.prototype) {
            true => Ok(ProPetl { prototype, ..self }),
            false => {
                Err(refused(&self.inner, "tensors that come or go while it trains", "tensors that keep their shapes"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use peft_additive::Init;
    use peft_core::Head;
    use peft_core::io::peft::with_words;
    use peft_reparam::BiasMode;

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
        let count = |inner: AnyMethod| AnyMethod::usual_over::<Sharing>(inner).count(&shape).unwrap();
        let adapter = count(AnyMethod::of::<SequentialConfig>());
        assert_eq!([adapter, adapter + Head::count(&shape, 2)], [1_278_784, 1_870_914]);
        assert_eq!(count(AnyMethod::of::<LoraConfig>()), 1_277_952);
        assert_eq!(count(AnyMethod::of::<PrefixTuningConfig>()), 2_410_496);
    }

    #[test]
    fn settings_are_those_of_both() {
        let settings = ["r=4", "density=0.25", "lora_alpha=8"].map(String::from);
        let usual = AnyMethod::usual_over::<Sharing>(AnyMethod::of::<LoraConfig>());
        let config = with_words(&usual, &settings).unwrap();
        assert_eq!(config, ProPetlConfig::new(LoraConfig::new(4).with_alpha(8.0)).with_density(0.25).into());
        let message = with_words(&usual, &["rank=4".into()]).unwrap_err().to_string();
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
            for message in
                [config.init(&base, 0).unwrap_err(), AnyMethod::from(config).count(base.shape()).unwrap_err()]
            {
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
