//! # SparseAdapter                          family: unified / any adapter
//! W_hat = W o M, M = 0 for the ceil(s n) of all n numbers with the lowest z, chosen once before training      W: the matrices of the adapters
//! z = u ~ U(0, 1), |w|, |w dL/dw| (SNIP), w (H g) (GraSP); Erdos-Renyi: random, of a matrix [a, b] a share in proportion to (a + b) / (a b)
//! Paper: He et al., 2022, arXiv:2210.04284, sections 2 and 3.   Reference: Shwai-He/SparseAdapter
//! Oracle: code Shwai-He/SparseAdapter petl/petl_factory.py, pruning/pruners.py: `scores_are_those_of_the_reference`, `a_run_is_that_of_the_reference`
//! Trains: what the adapters train, of their matrices n - ceil(s n) numbers.      Merges: with LoRA.
//! Identities:
//! - s = 0 is the adapter: `without_pruning_it_is_the_adapter`
//! - n - ceil(s n) numbers are left by each scorer: `every_scorer_leaves_the_share`
//! - the shares of Erdos-Renyi sum to the whole, are at most 1, and equal for equal shapes: `shares_of_erdos_renyi_are_those_of_the_shapes`
//! - c w for c > 0 has the same magnitude mask: `magnitudes_do_not_depend_on_the_scale`
//! - SNIP is the derivative by the mask: `snip_is_the_derivative_by_the_mask`
//! - GraSP on a quadratic loss is w (H (H w)): `grasp_of_a_quadratic_is_exact`
//! - GraSP leaves what lengthens the gradient: `grasp_keeps_what_lengthens_the_gradient`
//! - what is pruned stays 0 with momentum, weight decay and dropout, what is kept moves: `what_is_pruned_stays_zero`
//! - the adapters are the code's unless said otherwise: `the_usual_adapters_are_those_of_the_code`
//! - Large-Sparse has as many numbers left as the narrower adapter: `large_sparse_is_as_large_as_the_narrow_one`
//!
//! Differs from the paper: H g is a difference of two gradients, at w + e g and w - e g; it sees the kinks of a ReLU, which the code's second
//! derivative does not. In one round, not several. A share that leaves nothing
//! of a matrix is refused. Where a matrix starts at 0 (the second of LoRA), scores that multiply by w are 0: refused but for a random
//! choice. As in the code, scores are sums over the run's batches (for GraSP half as large), without dropout; unlike there their gradients
//! do not run into the first step's, which the code leaves in all tensors but the matrices. The code's adapter after attention is in front
//! of the sub-layer's own dropout, and the epsilon of its normalizations 1e-5, here the model's. In the code `sparsity` is the share that is
//! kept, here as in the paper that which is not.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_additive::SequentialConfig;
use peft_core::train::Probe;
use peft_core::view::{Rewrite, shapes, view};
use peft_core::{
    Adapter, AnyTuner, Base, Batch, Error, Hooks, Key, Merge, Method, Part, Procedure, Result, Shape, Site, Slot,
    Weight,
    random::{Noise, Random},
};
use peft_reparam::LoraConfig;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::masks::{Matrices, mask, matrices};
use crate::scores::{Kept, Numbers, along_gradient, best, erdos_renyi, per_number};
use crate::settings;

/// By what the numbers that are left are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scorer {
    /// At random.
    Random,
    /// At random, more of smaller matrices.
    ErdosRenyi,
    /// By their size.
    Magnitude,
    /// By how the loss changes without them.
    #[default]
    Snip,
    /// By how the norm of the gradient changes without them.
    Grasp,
}

/// A method that can be pruned.
pub trait Pruned: Method<Tuner: Adapter> {
    /// The name of the pruned method.
    const PRUNED: &'static str;
    /// Its `peft_type`.
    const PRUNED_TYPE: &'static str;

    /// What is pruned if nothing is said.
    fn usual() -> Self;

    /// The weight-space form, if it has one.
    fn merge_pruned(_tuner: &Sparse<Self::Tuner>) -> Option<&dyn Merge> {
        None
    }
}

impl Pruned for SequentialConfig {
    const PRUNED: &'static str = "sparse-adapter";
    const PRUNED_TYPE: &'static str = "SPARSE_ADAPTER";

    /// The MAM code's adapters, of which the official code's are: of width 64, with a normalization in front after both sub-layers.
    fn usual() -> Self {
        SequentialConfig::survey().with_bottleneck(64).with_inner_norm([Part::SelfAttention, Part::FeedForward])
    }
}

impl Pruned for LoraConfig {
    const PRUNED: &'static str = "sparse-lora";
    const PRUNED_TYPE: &'static str = "SPARSE_LORA";

    fn usual() -> Self {
        LoraConfig::new(8)
    }

    fn merge_pruned(tuner: &Sparse<Self::Tuner>) -> Option<&dyn Merge> {
        Some(tuner)
    }
}

/// What is pruned, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct SparseConfig<M> {
    /// The adapters.
    pub inner: M,
    /// The pruning.
    pub pruning: Pruning,
}

/// The settings of the pruning.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pruning {
    /// The share s of the numbers that are pruned.
    pub sparsity: f64,
    /// By what.
    pub scorer: Scorer,
    /// On how many training examples SNIP and GraSP look.
    pub samples: usize,
}

impl<M: Pruned> SparseConfig<M> {
    /// These adapters without this share of their numbers.
    pub fn new(inner: M, sparsity: f64, scorer: Scorer) -> Self {
        SparseConfig { inner, pruning: Pruning { sparsity, scorer, samples: 320 } }
    }

    /// With so many training examples for SNIP and GraSP.
    pub fn with_samples(mut self, samples: usize) -> Self {
        self.pruning.samples = samples;
        self
    }

    fn check(&self) -> Result<()> {
        let Pruning { sparsity, samples, .. } = self.pruning;
        if !(0.0..1.0).contains(&sparsity) {
            return Err(Error::config("sparsity", sparsity, "a number from 0 to below 1"));
        }
        if samples == 0 {
            return Err(Error::config("samples", samples, "at least 1"));
        }
        Ok(())
    }
}

impl SparseConfig<SequentialConfig> {
    /// Large-Sparse: adapters wider by 1 / (1 - s), of which as many numbers are left as the given ones have.
    pub fn large(inner: SequentialConfig, sparsity: f64, scorer: Scorer) -> Self {
        let width = (inner.bottleneck as f64 / (1.0 - sparsity)).round() as usize;
        SparseConfig::new(inner.with_bottleneck(width), sparsity, scorer)
    }
}

impl<M: Pruned> Default for SparseConfig<M> {
    /// The paper's: without 40 %, by SNIP on 320 examples; of LoRA, whose second matrix starts at 0, at random.
    fn default() -> Self {
        let scorer = if M::PRUNED == LoraConfig::PRUNED { Scorer::Random } else { Scorer::Snip };
        SparseConfig::new(M::usual(), 0.4, scorer)
    }
}

impl<M: Pruned> Serialize for SparseConfig<M> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        settings::serialize(&self.pruning, &self.inner, serializer)
    }
}

impl<'de, M: Pruned> Deserialize<'de> for SparseConfig<M> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let SparseConfig { inner, pruning } = Self::default();
        let (pruning, inner) = settings::deserialize(deserializer, &pruning, &inner)?;
        Ok(SparseConfig { inner, pruning })
    }
}

/// Adapters, and which of their numbers are there.
#[derive(Module, Debug)]
pub struct Sparse<A: Module> {
    adapter: A,
    /// 1 where a matrix has a number, else 0, by the name of the matrix; not trained.
    masks: Matrices,
    #[module(skip)]
    pruning: Pruning,
}

impl<M: Pruned> Method for SparseConfig<M> {
    const NAME: &'static str = M::PRUNED;
    const PEFT_TYPE: &'static str = M::PRUNED_TYPE;
    const HEAD_PREFIX: &'static str = M::HEAD_PREFIX;
    type Tuner = Sparse<M::Tuner>;

    fn init(&self, base: &Base, seed: u64) -> Result<Self::Tuner> {
        self.check()?;
        let adapter = self.inner.init(base, seed)?;
        let weights = weights(&adapter);
        let scores = match self.pruning.scorer {
            Scorer::Magnitude => per_number(&weights, |_, weight| weight.abs()),
            // Until `prepare` has looked at the data.
            Scorer::Snip | Scorer::Grasp => return Ok(Sparse::new(adapter, &Kept::new(), self.pruning)),
            Scorer::Random | Scorer::ErdosRenyi => {
                let draw = |(name, weight): (&String, &Vec<f32>)| {
                    let mut random = Random::new(seed, &format!("sparse.{name}"));
                    (name.clone(), weight.iter().map(|_| random.unit() as f32).collect())
                };
                weights.iter().map(draw).collect()
            }
        };
        let kept = match self.pruning.scorer {
            Scorer::ErdosRenyi => {
                let shapes: Vec<_> =
                    shapes(&adapter).into_iter().filter(|(name, _)| scores.contains_key(name)).collect();
                erdos_renyi(&shapes, &scores, self.pruning.sparsity)?
            }
            _ => best(&scores, self.pruning.sparsity)?,
        };
        Ok(Sparse::new(adapter, &kept, self.pruning))
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        self.check()?;
        self.inner.count(shape)
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        match name.split_once('.') {
            Some(("masks", name)) => Key::plain(format!("{}.mask", self.inner.key(name, shape).name)),
            Some((_, name)) => self.inner.key(name, shape),
            None => unreachable!("every tensor is in a field"),
        }
    }

    fn is_mask(&self, name: &str) -> bool {
        name.starts_with("masks.")
    }

    fn for_files(&self, shape: &Shape) -> Result<Self> {
        Ok(SparseConfig { inner: self.inner.for_files(shape)?, ..self.clone() })
    }

    /// Its masks are in the file, and not to be chosen anew.
    fn for_loading(&self, base: &Base) -> Result<Self::Tuner> {
        self.check()?;
        let chosen = Pruning { scorer: Scorer::Random, ..self.pruning };
        Ok(Sparse::new(self.inner.for_loading(base)?, &Kept::new(), chosen))
    }

    fn derived(&self, shape: &Shape) -> Map<String, Value> {
        self.inner.derived(shape)
    }

    /// With zeros where nothing is left.
    fn to_saved(tuner: Self::Tuner) -> Self::Tuner {
        Sparse { adapter: M::to_saved(tuner.masked()), ..tuner }
    }

    fn merge(tuner: &Self::Tuner) -> Option<&dyn Merge> {
        M::merge_pruned(tuner)
    }
}

/// The numbers of an adapter's matrices.
fn weights<A: Module>(adapter: &A) -> Numbers {
    let numbers = |(name, tensor): (String, Tensor<2>)| (name, tensor.into_data().iter::<f32>().collect());
    matrices(adapter).into_iter().map(numbers).collect()
}

/// A module with these numbers in its matrices.
struct With<'a>(&'a Numbers);

impl Rewrite for With<'_> {
    fn tensor<const D: usize>(&mut self, name: &str, tensor: Tensor<D>) -> Tensor<D> {
        let Some(values) = self.0.get(name) else { return tensor };
        let data = burn::tensor::TensorData::new(values.clone(), tensor.dims());
        Tensor::from_data(data, &tensor.device()).require_grad()
    }
}

impl<A: Module> Sparse<A> {
    /// Those matrices masked that `kept` names.
    fn new(adapter: A, kept: &Kept, pruning: Pruning) -> Self {
        let mask = |(name, tensor): (String, Tensor<2>)| {
            let mask = match kept.get(&name) {
                Some(kept) => mask(kept, &tensor),
                None => tensor.without_autodiff().ones_like(),
            };
            (name, Param::from_tensor(mask).set_require_grad(false))
        };
        let masks = matrices(&adapter).into_iter().map(mask).collect();
        Sparse { adapter, masks, pruning }
    }

    /// Ordinary adapters with zeros where nothing is left.
    pub fn masked(&self) -> A {
        struct Mask<'a>(&'a Matrices);
        impl Rewrite for Mask<'_> {
            fn tensor<const D: usize>(&mut self, name: &str, tensor: Tensor<D>) -> Tensor<D> {
                let Some(mask) = self.0.named(name) else { return tensor };
                let dims = tensor.dims();
                tensor * mask.val().without_autodiff().reshape(dims)
            }
        }
        view(&self.adapter, &mut Mask(&self.masks))
    }
}

impl<A: Adapter> Adapter for Sparse<A> {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        self.masked().open(batch, f)
    }

    fn view(&self, _base: &Base, _noise: Option<&Noise>) -> Result<Option<AnyTuner>> {
        Ok(Some(AnyTuner::new(self.masked())))
    }
}

impl<A: Module + Merge> Merge for Sparse<A> {
    fn weight(&self, site: Site, w: &Weight) -> Option<Tensor<2>> {
        self.masked().weight(site, w)
    }

    fn vector(&self, site: Site, slot: Slot, v: &Tensor<1>) -> Option<Tensor<1>> {
        self.masked().vector(site, slot, v)
    }
}

impl<A: Adapter> Procedure for Sparse<A> {
    fn prepare(self, base: &Base, data: Probe<'_>) -> Result<Self> {
        let Pruning { sparsity, scorer, samples } = self.pruning;
        // The run's batches; for GraSP, which needs more memory in the official code, half as large.
        let size = match scorer {
            Scorer::Snip => data.settings().batch_size,
            Scorer::Grasp => data.settings().batch_size.div_ceil(2),
            _ => return Ok(self),
        };
        let examples = data.draw(samples);
        let weights = weights(&self.adapter);
        let gradient = |weights: &Numbers| {
            let moved = view(&self.adapter, &mut With(weights));
            data.summed(&moved, base, examples.chunks(size), |_, gradient| gradient)
        };
        let scores = match scorer {
            Scorer::Grasp => {
                let change = along_gradient(&weights, gradient)?;
                per_number(&weights, |(name, i), weight| weight * change[name][i])
            }
            _ => {
                let gradient = gradient(&weights)?;
                per_number(&weights, |(name, i), weight| (weight * gradient[name][i]).abs())
            }
        };
        let kept = best(&scores, sparsity)?;
        Ok(Sparse::new(self.adapter, &kept, self.pruning))
    }
}

#[cfg(test)]
mod tests {
    use peft_core::io::peft::from_settings;

    use super::*;

    mod adapter {
        use super::*;
        peft_core::conformance!(
            SparseConfig::new(SequentialConfig::houlsby(5).with_train_layernorm(false), 0.4, Scorer::Magnitude),
            skip(C1: "the start is near the identity, not it",
                C3: "the non-linearity stands between the output projection and the residual")
        );
    }

    mod lora {
        use super::*;
        peft_core::conformance!(SparseConfig::new(LoraConfig::new(3).with_alpha(5.0), 0.4, Scorer::ErdosRenyi));
    }

    #[test]
    fn counts_are_those_of_the_card() {
        let (shape, config) = (Shape::named("roberta-base").unwrap(), SparseConfig::<SequentialConfig>::default());
        // Biases, and a gain and a bias of the normalization in front.
        let (n, vectors) = (2_359_296, 24 * (832 + 2 * 768));
        assert_eq!(config.count(&shape).unwrap(), n + vectors);
        assert_eq!(crate::scores::left(n, 0.4) + vectors, 1_472_409);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let base = peft_core::testing::base("roberta-tiny", &peft_core::testing::device());
        let lora = |sparsity, scorer| SparseConfig::new(LoraConfig::new(3), sparsity, scorer);
        for (config, word) in [
            (lora(1.0, Scorer::Random), "sparsity: 1 "),
            (lora(f64::NAN, Scorer::Random), "sparsity: NaN "),
            (lora(0.5, Scorer::Random).with_samples(0), "samples: 0 "),
            (lora(0.5, Scorer::Magnitude), "scorer"),
        ] {
            let message = config.init(&base, 0).unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
        let message = from_settings::<SparseConfig<LoraConfig>>(&["scorer=synflow".into()]).unwrap_err().to_string();
        assert!(message.contains("scorer") && message.contains("snip"), "{message}");
    }
}
