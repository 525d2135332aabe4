//! # SparseAdapter                          family: unified / any adapter
//! W_hat = W o M, M = 0 for the ceil(s n) of all n numbers with the lowest z, chosen once before training      W: the matrices of the adapters
//! z = u ~ U(0, 1), |w|, |w dL/dw| (SNIP), w (H g) (GraSP); Erdos-Renyi: random, of a matrix [a, b] a share in proportion to (a + b) / (a b)
//! Paper: He et al., 2022, arXiv:2210.04284, sections 2 and 3.   Reference: Shwai-He/SparseAdapter
//! Trains: what the adapters train, of their matrices n - ceil(s n) numbers.      Merges: with LoRA.
//! Identities:
//! - s = 0 is the adapter: `without_pruning_it_is_the_adapter`
//! - n - ceil(s n) numbers are left by each scorer: `every_scorer_leaves_the_share`
//! - the shares of Erdos-Renyi sum to the whole, are at most 1, and equal for equal shapes: `shares_of_erdos_renyi_are_those_of_the_shapes`
//! - c w for c > 0 has the same magnitude mask: `magnitudes_do_not_depend_on_the_scale`
//! - SNIP is the derivative by the mask: `snip_is_the_derivative_by_the_mask`
//! - GraSP on a quadratic loss is w (H (H w)): `grasp_of_a_quadratic_is_exact`
//! - what is pruned stays 0 with momentum and weight decay: `what_is_pruned_stays_zero`
//! - Large-Sparse has as many numbers left as the narrower adapter: `large_sparse_is_as_large_as_the_narrow_one`
//!
//! Differs from the paper: H g is a difference of two gradients, at w + e g and w - e g. In one round, not several. Where a matrix starts at 0 (the second of LoRA), scores that multiply by w are 0: refused but for a random choice. In the official code `sparsity` is the share that is kept, here as in the paper that which is not.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleDisplay, Param};
use burn::tensor::Tensor;
use peft_additive::SequentialConfig;
use peft_core::train::{Probe, largest};
use peft_core::view::{Rewrite, shapes, view};
use peft_core::{
    Adapter, Base, Batch, Error, Hooks, Key, Merge, Method, Procedure, Result, Shape, Site, Slot, Weight,
    random::Random,
};
use peft_reparam::LoraConfig;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::masks::{Matrices, mask, matrices};
use crate::settings;

/// By how much of its length GraSP moves the weights to tell how the gradient changes.
const GRASP_STEP: f64 = 1e-2;

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

    /// Width 64 after both sub-layers, normalizations frozen, from BERT's standard deviation.
    fn usual() -> Self {
        SequentialConfig::houlsby(64).with_train_layernorm(false).with_init_std(0.02)
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
            Scorer::Snip | Scorer::Grasp => return Ok(Sparse::new(adapter, &BTreeMap::new(), self.pruning)),
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
                erdos_renyi(&shapes, &scores, self.pruning.sparsity)
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

/// Numbers by the name of their matrix.
type Numbers = BTreeMap<String, Vec<f32>>;

/// The numbers of an adapter's matrices.
fn weights<A: Module>(adapter: &A) -> Numbers {
    let numbers = |(name, tensor): (String, Tensor<2>)| (name, tensor.into_data().iter::<f32>().collect());
    matrices(adapter).into_iter().map(numbers).collect()
}

fn per_number(weights: &Numbers, of: impl Fn((&str, usize), f32) -> f32) -> Numbers {
    let scores = |(name, weights): (&String, &Vec<f32>)| {
        (name.clone(), weights.iter().enumerate().map(|(i, weight)| of((name, i), *weight)).collect())
    };
    weights.iter().map(scores).collect()
}

/// All but the share of the numbers with the lowest scores.
fn best(scores: &Numbers, sparsity: f64) -> Result<BTreeMap<String, Vec<bool>>> {
    if let Some((name, _)) = scores.iter().find(|(_, scores)| scores.iter().all(|score| *score == 0.0)) {
        let expected = "random or erdos_renyi, or an adapter no matrix of which starts at 0 (init near_identity)";
        return Err(Error::config("scorer", format!("scores of 0 for all of {name}"), expected));
    }
    Ok(largest(scores, left(scores.values().map(Vec::len).sum(), sparsity)))
}

/// How many of n numbers are left.
fn left(n: usize, sparsity: f64) -> usize {
    n - (sparsity * n as f64).ceil() as usize
}

/// Of each matrix a share of its own, by random scores.
fn erdos_renyi(shapes: &[(String, Vec<usize>)], scores: &Numbers, sparsity: f64) -> BTreeMap<String, Vec<bool>> {
    let dims: Vec<[usize; 2]> = shapes.iter().map(|(_, dims)| [dims[0], dims[1]]).collect();
    let kept = |((name, _), k): (&(String, Vec<usize>), usize)| {
        let own = BTreeMap::from([(name.clone(), scores[name].clone())]);
        (name.clone(), largest(&own, k).remove(name).unwrap_or_default())
    };
    shapes.iter().zip(shares(&dims, sparsity)).map(kept).collect()
}

/// How many numbers are left of each matrix `[a, b]`: in proportion to a + b, none more than it has, the whole to the unit.
fn shares(dims: &[[usize; 2]], sparsity: f64) -> Vec<usize> {
    let sizes: Vec<usize> = dims.iter().map(|[a, b]| a * b).collect();
    let whole = left(sizes.iter().sum(), sparsity);
    let mut full = vec![false; dims.len()];
    // Which matrices stay whole follows from the factor, and the factor from these.
    let exact: Vec<f64> = loop {
        let fixed: usize = (0..dims.len()).filter(|i| full[*i]).map(|i| sizes[i]).sum();
        let free: usize = (0..dims.len()).filter(|i| !full[*i]).map(|i| dims[i][0] + dims[i][1]).sum();
        let factor = whole.saturating_sub(fixed) as f64 / free.max(1) as f64;
        let share = |i: usize| if full[i] { sizes[i] as f64 } else { factor * (dims[i][0] + dims[i][1]) as f64 };
        let exact: Vec<f64> = (0..dims.len()).map(share).collect();
        let over: Vec<usize> = (0..dims.len()).filter(|i| !full[*i] && exact[*i] > sizes[*i] as f64).collect();
        if over.is_empty() {
            break exact;
        }
        over.into_iter().for_each(|i| full[i] = true);
    };
    // Rounded so that the whole is right: what is cut off goes to the first.
    let mut shares: Vec<usize> = exact.iter().map(|share| *share as usize).collect();
    let mut missing = whole - shares.iter().sum::<usize>();
    for (share, size) in shares.iter_mut().zip(&sizes) {
        let more = usize::from(missing > 0 && *share < *size);
        *share += more;
        missing -= more;
    }
    shares
}

/// The change of a loss's gradient along itself, H g, by the gradients at two places beside `weights`.
fn along_gradient(weights: &Numbers, mut gradient: impl FnMut(&Numbers) -> Result<Numbers>) -> Result<Numbers> {
    let norm = |numbers: &Numbers| numbers.values().flatten().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let g = gradient(weights)?;
    if norm(&g) == 0.0 {
        return Ok(per_number(weights, |_, _| 0.0));
    }
    let step = GRASP_STEP * norm(weights) / norm(&g);
    let mut at = |step: f64| {
        gradient(&per_number(weights, |(name, i), weight| (f64::from(weight) + step * f64::from(g[name][i])) as f32))
    };
    let (after, before) = (at(step)?, at(-step)?);
    Ok(per_number(&after, |(name, i), after| ((f64::from(after) - f64::from(before[name][i])) / (2.0 * step)) as f32))
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

/// Does not train matrices of which nothing is left.
struct Freeze<'a>(&'a BTreeMap<String, Vec<bool>>);

impl Rewrite for Freeze<'_> {
    fn tensor<const D: usize>(&mut self, name: &str, tensor: Tensor<D>) -> Tensor<D> {
        let gone = self.0.get(name).is_some_and(|kept| !kept.contains(&true));
        if gone { tensor.set_require_grad(false) } else { tensor }
    }
}

impl<A: Module> Sparse<A> {
    /// Those matrices masked that `kept` names.
    fn new(adapter: A, kept: &BTreeMap<String, Vec<bool>>, pruning: Pruning) -> Self {
        let mask = |(name, tensor): (String, Tensor<2>)| {
            let mask = match kept.get(&name) {
                Some(kept) => mask(kept, &tensor),
                None => tensor.without_autodiff().ones_like(),
            };
            (name, Param::from_tensor(mask).set_require_grad(false))
        };
        let masks = matrices(&adapter).into_iter().map(mask).collect();
        Sparse { adapter: view(&adapter, &mut Freeze(kept)), masks, pruning }
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
}

impl<A: Module + Merge> Merge for Sparse<A> {
    fn weight(&self, site: Site, w: &Weight) -> Option<Tensor<2>> {
        self.masked().weight(site, w)
    }

    fn vector(&self, site: Site, slot: Slot, v: &Tensor<1>) -> Option<Tensor<1>> {
        self.masked().vector(site, slot, v)
    }
}

impl<A: Adapter + ModuleDisplay> Procedure for Sparse<A> {
    fn prepare(self, base: Base, data: Probe<'_>) -> Result<(Self, Base)> {
        let Pruning { sparsity, scorer, samples } = self.pruning;
        // The official code's batches; for GraSP, which needs more memory there, half as many.
        let size = match scorer {
            Scorer::Snip => 32,
            Scorer::Grasp => 16,
            _ => return Ok((self, base)),
        };
        let mut examples = Random::new(0, "sparse adapter").permutation(data.examples().len());
        examples.truncate(samples);
        let weights = weights(&self.adapter);
        let gradient = |weights: &Numbers| {
            let moved = view(&self.adapter, &mut With(weights));
            data.summed(&moved, &base, examples.chunks(size), |gradient| gradient)
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
        Ok((Sparse::new(self.adapter, &kept, self.pruning), base))
    }
}

#[cfg(test)]
mod tests {
    use peft_core::io::peft::from_settings;
    use peft_core::testing::tolerances::FINITE_DIFFERENCE;
    use proptest::prelude::*;

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
        let (n, biases) = (2_359_296, 24 * 832);
        assert_eq!(config.count(&shape).unwrap(), n + biases);
        assert_eq!(left(n, 0.4) + biases, 1_435_545);
    }

    proptest! {
        #[test]
        fn shares_of_erdos_renyi_are_those_of_the_shapes(
            dims in prop::collection::vec((1..40usize, 1..40usize).prop_map(|(a, b)| [a, b]), 1..9),
            sparsity in 0.0..0.99,
        ) {
            let shares = shares(&dims, sparsity);
            let sizes: Vec<usize> = dims.iter().map(|[a, b]| a * b).collect();
            prop_assert_eq!(shares.iter().sum::<usize>(), left(sizes.iter().sum(), sparsity));
            for (i, share) in shares.iter().enumerate() {
                prop_assert!(*share <= sizes[i]);
                for (j, other) in shares.iter().enumerate() {
                    let [own, its] = [i, j].map(|k| (dims[k][0] + dims[k][1]) as f64);
                    // Where neither is whole, they are in proportion, up to rounding.
                    if *share < sizes[i] && *other < sizes[j] {
                        prop_assert!((*share as f64 * its - *other as f64 * own).abs() <= own + its, "{:?} {:?}", dims, shares);
                    }
                }
            }
        }

        /// Of the loss 1/2 w H w the gradient is H w, and its change along itself H (H w).
        #[test]
        fn grasp_of_a_quadratic_is_exact(w in prop::collection::vec(0.1f32..2.0, 3), h in prop::collection::vec(-1f32..1.0, 6)) {
            let at = |i: usize, j: usize| f64::from(h[[0, 1, 3][i.max(j)] + i.min(j)]) + if i == j { 2.0 } else { 0.0 };
            let times = |x: &[f64]| -> Vec<f64> { (0..3).map(|i| (0..3).map(|j| at(i, j) * x[j]).sum()).collect() };
            let numbers = |x: &[f64]| BTreeMap::from([("w".to_string(), x.iter().map(|x| *x as f32).collect::<Vec<_>>())]);
            let double = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
            let start = double(&w);
            let found = along_gradient(&numbers(&start), |x| Ok(numbers(&times(&double(&x["w"]))))).unwrap();
            let expected = times(&times(&start));
            let largest = expected.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
            for (found, expected) in found["w"].iter().zip(&expected) {
                prop_assert!((f64::from(*found) - expected).abs() <= f64::from(FINITE_DIFFERENCE.0) * largest, "{} {}", found, expected);
            }
        }
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
