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
//! choice. Not over methods that train in phases or masks, or whose ranks grow: the masks are chosen once. As in the code, scores are sums over the run's batches (for GraSP half as large), without dropout; unlike there their gradients
//! do not run into the first step's, which the code leaves in all tensors but the matrices. The code's adapter after attention is in front
//! of the sub-layer's own dropout, and the epsilon of its normalizations 1e-5, here the model's. In the code `sparsity` is the share that is
//! kept, here as in the paper that which is not.

use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_additive::SequentialConfig;
use peft_core::train::Probe;
use peft_core::view::{Rewrite, shapes, tensors, view, with_values};
use peft_core::{
    Adapter, AnyMethod, AnyTuner, Base, Batch, Error, Hooks, Key, Over, Part, Procedure, Readout, Result, Shape, Tuner,
    random::{Noise, Random},
    train::Optim,
};
use peft_reparam::IncreLoraConfig;
use serde::{Deserialize, Serialize};

use crate::masks::{Matrices, all_matrices, check_fits, mask, matrices, refused, weights};
use crate::scores::{Kept, Numbers, along_gradient, best, erdos_renyi, per_number};

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

/// What is pruned, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct SparseConfig {
    /// The adapters, of any method.
    pub inner: AnyMethod,
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

/// The MAM code's adapters, of which the official code's are: of width 64, with a normalization in front after both sub-layers.
pub fn adapters() -> SequentialConfig {
    SequentialConfig::survey().with_bottleneck(64).with_inner_norm([Part::SelfAttention, Part::FeedForward])
}

impl SparseConfig {
    /// These adapters without this share of their numbers.
    pub fn new(inner: impl Into<AnyMethod>, sparsity: f64, scorer: Scorer) -> Self {
        SparseConfig { inner: inner.into(), pruning: Pruning { sparsity, scorer, samples: 320 } }
    }

    /// With so many training examples for SNIP and GraSP.
    pub fn with_samples(mut self, samples: usize) -> Self {
        self.pruning.samples = samples;
        self
    }

    /// Large-Sparse: adapters wider by 1 / (1 - s), of which as many numbers are left as the given ones have.
    pub fn large(inner: SequentialConfig, sparsity: f64, scorer: Scorer) -> Self {
        let width = (inner.bottleneck as f64 / (1.0 - sparsity)).round() as usize;
        SparseConfig::new(inner.with_bottleneck(width), sparsity, scorer)
    }

    /// The start on a model, see [`Over::init`].
    pub fn init(&self, base: &Base, seed: u64) -> Result<Sparse> {
        self.pruning.start(&self.inner, base, seed)
    }
}

impl Default for SparseConfig {
    /// The paper's, over the code's adapters.
    fn default() -> Self {
        let (pruning, inner) = Pruning::usual(AnyMethod::of::<SequentialConfig>());
        SparseConfig { inner, pruning }
    }
}

impl From<SparseConfig> for AnyMethod {
    fn from(SparseConfig { inner, pruning }: SparseConfig) -> Self {
        AnyMethod::over(pruning, inner)
    }
}

/// Adapters, and which of their numbers are there.
#[derive(Module, Debug)]
pub struct Sparse {
    adapter: AnyTuner,
    /// 1 where a matrix has a number, else 0, by the name of the matrix; not trained.
    masks: Matrices,
    #[module(skip)]
    pruning: Pruning,
}

impl Pruning {
    fn check(&self) -> Result<()> {
        let Pruning { sparsity, samples, .. } = *self;
        if !(0.0..1.0).contains(&sparsity) {
            return Err(Error::config("sparsity", sparsity, "a number from 0 to below 1"));
        }
        if samples == 0 {
            return Err(Error::config("samples", samples, "at least 1"));
        }
        Ok(())
    }

    fn start(&self, inner: &AnyMethod, base: &Base, seed: u64) -> Result<Sparse> {
        self.check()?;
        let adapter = fitting(inner.init(base, seed)?, inner)?;
        let weights = weights(&adapter);
        let scores = match self.scorer {
            Scorer::Magnitude => per_number(&weights, |_, weight| weight.abs()),
            // Until `prepare` has looked at the data.
            Scorer::Snip | Scorer::Grasp => return Ok(Sparse::new(adapter, &Kept::new(), *self)),
            Scorer::Random | Scorer::ErdosRenyi => {
                let draw = |(name, weight): (&String, &Vec<f32>)| {
                    let mut random = Random::new(seed, &format!("sparse.{name}"));
                    (name.clone(), weight.iter().map(|_| random.unit() as f32).collect())
                };
                weights.iter().map(draw).collect()
            }
        };
        let kept = match self.scorer {
            Scorer::ErdosRenyi => {
                let shapes: Vec<_> =
                    shapes(&adapter).into_iter().filter(|(name, _)| scores.contains_key(name)).collect();
                erdos_renyi(&shapes, &scores, self.sparsity)?
            }
            _ => best(&scores, self.sparsity)?,
        };
        Ok(Sparse::new(adapter, &kept, *self))
    }
}

/// The tuner, if its matrices can have masks.
fn fitting(tuner: AnyTuner, inner: &AnyMethod) -> Result<AnyTuner> {
    let refused = |found, expected| Err(refused(Pruning::NAME, inner, found, expected));
    check_fits(Pruning::NAME, inner, &tuner)?;
    if tuner.downcast_ref::<Sparse>().is_some() {
        return refused("pruned adapters", "others: one file holds one mask of each matrix");
    }
    if inner.downcast_ref::<IncreLoraConfig>().is_some() {
        return refused("ranks that come while it trains", "matrices that are all there when the masks are chosen");
    }
    Ok(tuner)
}

impl Over for Pruning {
    const NAME: &'static str = "sparse";

    /// The paper's: without 40 %, by SNIP on 320 examples, of the code's adapters. Of another method at random, since a matrix that
    /// starts at 0, as LoRA's second, has no other score.
    fn usual(inner: AnyMethod) -> (Self, AnyMethod) {
        let pruning = |scorer| Pruning { sparsity: 0.4, scorer, samples: 320 };
        match inner.downcast_ref::<SequentialConfig>() {
            Some(_) => (pruning(Scorer::Snip), adapters().into()),
            None => (pruning(Scorer::Random), inner),
        }
    }

    fn init(&self, inner: &AnyMethod, base: &Base, seed: u64) -> Result<AnyTuner> {
        self.start(inner, base, seed).map(AnyTuner::new)
    }

    fn count(&self, inner: &AnyMethod, shape: &Shape) -> Result<usize> {
        self.check()?;
        inner.count(shape)
    }

    fn key(&self, inner: &AnyMethod, name: &str, shape: &Shape) -> Key {
        match name.split_once('.') {
            Some(("masks", name)) => Key::plain(format!("{}.mask", inner.key(name, shape).name)),
            Some((_, name)) => inner.key(name, shape),
            None => unreachable!("every tensor is in a field"),
        }
    }

    fn is_mask(name: &str) -> bool {
        name.starts_with("masks.")
    }

    /// With zeros where nothing is left, and the masks of what files hold.
    fn to_saved(&self, inner: &AnyMethod, tuner: AnyTuner) -> AnyTuner {
        let sparse = of(&tuner);
        let masked = sparse.masked();
        let (adapter, before) = (inner.to_saved(masked.clone()), all_matrices(&masked));
        let mask = |(name, tensor): (String, Tensor<2>)| {
            let own = sparse.masks.named(&name)?.val();
            // What is computed of masked matrices is whole.
            let same = before.get(&name).is_some_and(|before| before.clone().into_data() == tensor.clone().into_data());
            let mask = if same { own } else { tensor.without_autodiff().ones_like() };
            Some((name, Param::from_tensor(mask).set_require_grad(false)))
        };
        let masks = all_matrices(&adapter).into_iter().filter_map(mask).collect();
        AnyTuner::new(Sparse { adapter, masks, pruning: sparse.pruning })
    }

    /// Its masks are in the file, and not to be chosen anew.
    fn for_loading(&self, inner: &AnyMethod, base: &Base) -> Result<AnyTuner> {
        self.check()?;
        let chosen = Pruning { scorer: Scorer::Random, ..*self };
        let adapter = fitting(inner.for_loading(base)?, inner)?;
        Ok(AnyTuner::new(Sparse::new(adapter, &Kept::new(), chosen)))
    }

    fn loaded(&self, inner: &AnyMethod, tuner: AnyTuner, base: &Base) -> Result<AnyTuner> {
        let sparse = of(&tuner).clone();
        let adapter = inner.loaded(sparse.adapter, base)?;
        Ok(AnyTuner::new(Sparse { adapter, ..sparse }))
    }

    fn plain(tuner: &AnyTuner) -> AnyTuner {
        of(tuner).masked()
    }
}

fn of(tuner: &AnyTuner) -> &Sparse {
    tuner.downcast_ref().unwrap_or_else(|| panic!("a pruned adapter is asked for, not {tuner:?}"))
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

impl Sparse {
    /// Those matrices masked that `kept` names.
    fn new(adapter: AnyTuner, kept: &Kept, pruning: Pruning) -> Self {
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
    pub fn masked(&self) -> AnyTuner {
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

    /// Refuses a method whose matrices have not the shapes of their masks any more.
    fn check_shapes(&self) -> Result<()> {
        let own: BTreeMap<String, Vec<usize>> = shapes(&self.adapter).into_iter().collect();
        let fits = |(name, dims): &(String, Vec<usize>)| own.get(name) == Some(dims);
        match shapes(&self.masks).iter().find(|mask| !fits(mask)) {
            None => Ok(()),
            Some((name, dims)) => {
                let found = format!("{name}, {dims:?} at first, now {:?}", own.get(name));
                Err(Error::config("sparse", found, "a method whose matrices keep their shapes while it trains"))
            }
        }
    }
}

impl Adapter for Sparse {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        self.masked().opened(batch, f)
    }

    fn view(&self, _base: &Base, _noise: Option<&Noise>) -> Result<Option<AnyTuner>> {
        Ok(Some(self.masked()))
    }

    fn tasks(&self) -> Option<usize> {
        self.adapter.as_adapter().and_then(|adapter| adapter.tasks())
    }
}

impl Procedure for Sparse {
    fn parts(&self) -> Vec<(String, &AnyTuner)> {
        vec![("adapter.".into(), &self.adapter)]
    }

    fn parts_mut(&mut self) -> Vec<&mut AnyTuner> {
        vec![&mut self.adapter]
    }

    fn prepare(self, base: &Base, data: Probe<'_>) -> Result<Self> {
        let adapter = self.adapter.prepare(base, data)?;
        let Pruning { sparsity, scorer, samples } = self.pruning;
        // The run's batches; for GraSP, which needs more memory in the official code, half as large.
        let size = match scorer {
            Scorer::Snip if data.phase() == 0 => data.settings().batch_size,
            Scorer::Grasp if data.phase() == 0 => data.settings().batch_size.div_ceil(2),
            _ => return Ok(Sparse { adapter, ..self }),
        };
        let examples = data.draw(samples);
        let weights = weights(&adapter);
        let gradient = |weights: &Numbers| {
            let moved = view(&adapter, &mut With(weights));
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
        Ok(Sparse::new(adapter, &kept, self.pruning))
    }

    fn loss(&self, readout: &Readout<'_>) -> Result<Option<Tensor<1>>> {
        self.masked().loss(readout)
    }

    /// Of the matrices that are there.
    fn penalty(&self) -> Option<Tensor<1>> {
        self.masked().penalty()
    }

    fn after_step(self, base: &Base, optim: &mut Optim, before: &Self, step: usize) -> Result<Self> {
        let adapter = self.adapter.after_step(base, optim, &before.adapter, step)?;
        let sparse = Sparse { adapter, ..self };
        sparse.check_shapes().map(|()| sparse)
    }

    /// A method that ends with smaller matrices leaves out what it likes of the masked ones: the masks are then what is not 0.
    fn finish(self, base: &Base) -> Result<Self> {
        let finished = Sparse { adapter: self.adapter.clone().finish(base)?, ..self.clone() };
        if finished.check_shapes().is_ok() {
            return Ok(finished);
        }
        let zeroed = with_values(self.adapter.clone(), &tensors(&self.masked()))?;
        let adapter = zeroed.finish(base)?;
        let kept = weights(&adapter)
            .into_iter()
            .map(|(name, numbers)| (name, numbers.into_iter().map(|number| number != 0.0).collect()));
        Ok(Sparse::new(adapter, &kept.collect(), self.pruning))
    }
}

#[cfg(test)]
mod tests {
    use peft_core::io::peft::with_words;
    use peft_reparam::LoraConfig;

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
        let (shape, config) = (Shape::named("roberta-base").unwrap(), SparseConfig::default());
        // Biases, and a gain and a bias of the normalization in front.
        let (n, vectors) = (2_359_296, 24 * (832 + 2 * 768));
        assert_eq!(AnyMethod::from(config).count(&shape).unwrap(), n + vectors);
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
        let sparse = AnyMethod::usual_over::<Pruning>(AnyMethod::of::<LoraConfig>());
        let message = with_words(&sparse, &["scorer=synflow".into()]).unwrap_err().to_string();
        assert!(message.contains("scorer") && message.contains("snip"), "{message}");
    }
}
