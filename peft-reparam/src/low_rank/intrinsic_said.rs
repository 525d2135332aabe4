//! # Intrinsic SAID                         family: reparameterized / low-rank decomposition
//! W_i = W_i,0 + lambda_i P_i theta         theta: [d - m] = 0, one for all m tensors; lambda: (m,) = 1; P_i random, of a seed
//! P = H G Pi H S / c, its first D rows     S: signs, H: Walsh-Hadamard, +-1, of size n = 2^k >= D, Pi: a permutation, G: diag(N(0, 1)), c = ||G|| sqrt(D); theta padded with zeros to n, or cut off at n
//! Paper: Aghajanyan et al., 2021, arXiv:2012.13255, eq. 2 and 3.   Reference: rabeehk/compacter seq2seq/projections
//! Oracle: code rabeehk/compacter seq2seq/projections/intrinsic.py: `it_trains_as_the_reference`
//! Trains: d, whatever the model.      Merges: yes.
//! Identities:
//! - zero at init: `C1`
//! - merged == unmerged: `C3`
//! - Fastfood is the product of its matrices: `fastfood_is_the_product_of_its_matrices`
//! - P is linear: `the_map_is_linear`
//! - its gradient is that of P^T: `backward_is_the_transposed_map`
//! - H H = n: `the_hadamard_transform_is_its_own_inverse_but_for_n`
//! - ||P theta||^2 is ||theta||^2 on average: `norms_are_kept_on_average`
//! - with G = 1 and d = D = n it is orthogonal, and every point is reached: `an_orthogonal_map_reaches_every_point`
//! - no matrix is made: `a_large_layer_needs_no_matrix`
//! - lambda = 1 is DID: `scales_of_one_are_the_form_without_scales`
//! - lambda = 0 is the base: `scales_of_zero_are_the_base`
//! - every tensor moves, by each of the d numbers: `one_vector_moves_every_tensor`, `each_number_has_a_gradient`
//! - files hold d numbers and the seed: `files_hold_d_numbers_and_the_seed`
//! - computed once for a step it is the same as in each of its pieces: `computed_once_it_is_the_same`
//!
//! Differs from the paper: the maps are kept while a program runs, 8 bytes for each number of the tensors (padded to powers of two), as the code keeps them. One lambda for each tensor, as in the code, the paper says for each layer; the code, where all tensors move, has one more, which nothing reads, so that a number of its d is dead. The head is trained apart and not among the d numbers. The gradient is exact, the code's backward divides that of each tensor by n.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor, TensorData};
use peft_core::transfer::send;
use peft_core::{
    Adapter, AnyTuner, Base, Batch, Error, Hooks, Key, Merge, Method, Place, Procedure, Replaced, Result, Shape, Site,
    Sites, Slot, Weight,
    random::{Noise, Random},
};
use serde::{Deserialize, Serialize};

/// How many bits of an index a Hadamard transform takes at a time.
const BITS: u32 = 5;

/// The configuration of Intrinsic SAID.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IntrinsicSaidConfig {
    /// How many numbers are trained.
    pub intrinsic_dim: usize,
    /// Whether each tensor has a scale of its own, one of the numbers (structure-aware, SAID), or not (DID).
    pub intrinsic_said: bool,
    /// Of the random maps; if it is not set, the run's. Files have the one that was used.
    pub projection_seed: Option<u64>,
    /// The linear maps whose tensors move; every tensor of the model, if it is not set.
    pub target_modules: Option<Sites>,
}

impl Default for IntrinsicSaidConfig {
    /// Compacter's baseline: 20,000 numbers move every tensor.
    fn default() -> Self {
        IntrinsicSaidConfig { intrinsic_dim: 20_000, intrinsic_said: true, projection_seed: None, target_modules: None }
    }
}

impl IntrinsicSaidConfig {
    /// This many numbers.
    pub fn new(intrinsic_dim: usize) -> Self {
        IntrinsicSaidConfig { intrinsic_dim, ..Default::default() }
    }

    /// Without scales: DID.
    pub fn without_scales(self) -> Self {
        IntrinsicSaidConfig { intrinsic_said: false, ..self }
    }

    /// With random maps of this seed.
    pub fn with_seed(self, seed: u64) -> Self {
        IntrinsicSaidConfig { projection_seed: Some(seed), ..self }
    }

    /// On the tensors of these linear maps.
    pub fn with_sites(self, sites: impl Into<Sites>) -> Self {
        IntrinsicSaidConfig { target_modules: Some(sites.into()), ..self }
    }

    /// The tensors that move, in the order of their scales.
    fn plan(&self, shape: &Shape) -> Result<Vec<Place>> {
        let mut places = shape.places();
        if let Some(sites) = &self.target_modules {
            let sites = sites.resolve(shape)?;
            places.retain(|place| sites.contains(&place.site));
        }
        let least = 1 + if self.intrinsic_said { places.len() } else { 0 };
        if self.intrinsic_dim < least {
            let allowed = match self.intrinsic_said {
                true => format!("more than the {} tensors, each of which has a scale", places.len()),
                false => "1 or more".to_string(),
            };
            return Err(Error::config("intrinsic_dim", self.intrinsic_dim, allowed));
        }
        // The map of a tensor takes as many numbers as its size, rounded up to a power of two. What none takes would be trained in vain.
        let most = places.iter().map(|place| place.count().next_power_of_two()).max().unwrap_or_default();
        if self.intrinsic_dim - (least - 1) > most {
            let allowed = format!("at most {}: no tensor's map takes more", most + least - 1);
            return Err(Error::config("intrinsic_dim", self.intrinsic_dim, allowed));
        }
        Ok(places)
    }
}

/// One vector that moves many tensors.
#[derive(Module, Debug)]
pub struct IntrinsicSaid {
    /// `[d - m]`, without scales `[d]`.
    pub theta: Param<Tensor<1>>,
    /// One for each tensor, `[m]`.
    pub lambda: Option<Param<Tensor<1>>>,
    #[module(skip)]
    places: Vec<Place>,
    #[module(skip)]
    seed: u64,
    /// The map of each tensor, made when the first is asked for.
    #[module(skip)]
    maps: Arc<OnceLock<Vec<Fastfood>>>,
}

impl Method for IntrinsicSaidConfig {
    const NAME: &'static str = "intrinsic-said";
    const PEFT_TYPE: &'static str = "INTRINSIC_SAID";
    type Tuner = IntrinsicSaid;

    fn init(&self, base: &Base, seed: u64) -> Result<IntrinsicSaid> {
        let (places, device) = (self.plan(base.shape())?, base.device().clone().autodiff());
        let scales = if self.intrinsic_said { places.len() } else { 0 };
        let theta = Param::from_tensor(Tensor::zeros([self.intrinsic_dim - scales], &device));
        let lambda = self.intrinsic_said.then(|| Param::from_tensor(Tensor::ones([scales], &device)));
        let seed = self.projection_seed.unwrap_or(seed);
        Ok(IntrinsicSaid { theta, lambda, places, seed, maps: Default::default() })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        self.plan(shape).map(|_| self.intrinsic_dim)
    }

    fn key(&self, name: &str, _shape: &Shape) -> Key {
        Key::plain(format!("base_model.intrinsic_said.{name}"))
    }

    fn for_files(&self, shape: &Shape) -> Result<Self> {
        let sites = self.target_modules.as_ref().map(|sites| sites.by_name(shape)).transpose()?;
        Ok(IntrinsicSaidConfig { target_modules: sites, ..self.clone() })
    }

    fn learned(&self, tuner: &IntrinsicSaid, _shape: &Shape) -> Self {
        self.clone().with_seed(tuner.seed)
    }

    fn for_loading(&self, base: &Base) -> Result<IntrinsicSaid> {
        match self.projection_seed {
            Some(seed) => self.init(base, seed),
            None => {
                Err(Error::config("projection_seed", "nothing", "the seed of the maps, on which every number depends"))
            }
        }
    }

    fn merge(tuner: &IntrinsicSaid) -> Option<&dyn Merge> {
        Some(tuner)
    }
}

impl IntrinsicSaid {
    /// What is added to a tensor, row by row; `None` where nothing is.
    fn update(&self, site: Site, slot: Slot) -> Option<Tensor<1>> {
        let index = self.places.iter().position(|place| place.site == site && place.slot == slot)?;
        let theta = self.theta.val();
        let map = |place: &Place| Fastfood::new(self.seed, &place.name, theta.dims()[0], place.count());
        let update = self.maps.get_or_init(|| self.places.iter().map(map).collect())[index].apply(theta.clone());
        Some(match &self.lambda {
            Some(lambda) => update * lambda.val().narrow(0, index, 1),
            None => update,
        })
    }

    fn updates(&self) -> Updates {
        let update = |place: &Place| Some(((place.site, place.slot), self.update(place.site, place.slot)?));
        Updates(self.places.iter().filter_map(update).collect())
    }
}

/// A random linear map from `d` numbers to `outputs`. Its three parts are functions of a seed and a name, made when they are
/// needed.
#[derive(Clone, Debug)]
pub(crate) struct Fastfood {
    outputs: usize,
    /// S, of the numbers that are not padding.
    signs: Vec<f32>,
    /// The size of the first transform. One of n numbers of which only the first are not 0 is that of these few, over and over.
    first: usize,
    /// Pi, in that repetition.
    order: Vec<i32>,
    /// G / c.
    gauss: Vec<f32>,
}

impl Fastfood {
    pub(crate) fn new(seed: u64, name: &str, d: usize, outputs: usize) -> Self {
        let random = |part| Random::new(seed, &format!("said.{name}.{part}"));
        let n = outputs.next_power_of_two();
        let (inputs, mut signs, mut gauss) = (d.min(n), random("signs"), random("gauss"));
        let first = inputs.next_power_of_two();
        let signs = (0..inputs).map(|_| if signs.bits() & 1 == 0 { 1.0 } else { -1.0 }).collect();
        let gauss: Vec<f64> = (0..n).map(|_| gauss.normal()).collect();
        let c = (gauss.iter().map(|g| g * g).sum::<f64>() * outputs as f64).sqrt();
        let order = random("order").permutation(n).into_iter().map(|i| (i % first) as i32).collect();
        Fastfood { outputs, signs, first, order, gauss: gauss.into_iter().map(|g| (g / c) as f32).collect() }
    }

    pub(crate) fn apply(&self, x: Tensor<1>) -> Tensor<1> {
        let device = x.device().without_autodiff();
        let signs: Tensor<1> = send(self.signs.as_slice(), &device);
        let x = x.narrow(0, 0, self.signs.len()) * signs;
        let padding = Tensor::zeros([self.first - self.signs.len()], &device);
        let order = send::<1, Int>(self.order.as_slice(), &device);
        let gauss: Tensor<1> = send(self.gauss.as_slice(), &device);
        let mixed = hadamard(Tensor::cat(vec![x, padding], 0)).select(0, order) * gauss;
        hadamard(mixed).narrow(0, 0, self.outputs)
    }
}

/// H x, where the size of x is a power of two. It falls apart into transforms along some bits of the index at a time, each of which
/// then moves to the front: n log n operations, as products with one small matrix.
fn hadamard(x: Tensor<1>) -> Tensor<1> {
    let (n, device) = (x.dims()[0], x.device().without_autodiff());
    let (mut x, mut left) = (x, n.trailing_zeros());
    while left > 0 {
        let bits = left.min(BITS);
        let size = 1 << bits;
        x = x.reshape([n / size, size]).matmul(walsh(size, &device)).transpose().reshape([n]);
        left -= bits;
    }
    x
}

/// The Walsh-Hadamard matrix.
fn walsh(size: usize, device: &Device) -> Tensor<2> {
    let sign = |i: usize| if ((i / size) & (i % size)).count_ones().is_multiple_of(2) { 1f32 } else { -1.0 };
    Tensor::from_data(TensorData::new((0..size * size).map(sign).collect::<Vec<_>>(), [size, size]), device)
}

/// What is added to the tensors in one run.
#[derive(Debug)]
struct Updates(BTreeMap<(Site, Slot), Tensor<1>>);

impl Hooks for Updates {
    fn weight(&self, site: Site, w: Weight) -> Weight {
        match self.0.get(&(site, Slot::Weight)) {
            Some(update) => Weight::Dense(sum(w.dense(), update.clone())),
            None => w,
        }
    }

    fn vector(&self, site: Site, slot: Slot, v: Tensor<1>) -> Tensor<1> {
        match self.0.get(&(site, slot)) {
            Some(update) => v + update.clone(),
            None => v,
        }
    }
}

fn sum(w: Tensor<2>, update: Tensor<1>) -> Tensor<2> {
    let dims = w.dims();
    w + update.reshape(dims)
}

impl Adapter for IntrinsicSaid {
    fn open<R>(&self, _batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        f(&self.updates())
    }

    fn view(&self, base: &Base, _noise: Option<&Noise>) -> Result<Option<AnyTuner>> {
        Ok(Some(AnyTuner::new(Replaced::by(&self.updates(), base))))
    }
}

impl Merge for IntrinsicSaid {
    fn weight(&self, site: Site, w: &Weight) -> Option<Tensor<2>> {
        let (w, update) = (w.dense(), self.update(site, Slot::Weight)?);
        Some(sum(w.clone(), update.to_device(&w.device())))
    }

    fn vector(&self, site: Site, slot: Slot, v: &Tensor<1>) -> Option<Tensor<1>> {
        Some(v.clone() + self.update(site, slot)?.to_device(&v.device()))
    }
}

impl Procedure for IntrinsicSaid {}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use burn::optim::GradientsParams;
    use peft_core::Tuner;
    use peft_core::testing::conformance::loss;
    use peft_core::testing::golden::{Case, named};
    use peft_core::testing::tolerances::{SAME_FUNCTION, STANDARD_ERRORS};
    use peft_core::testing::{a_view_is_as_by_hooks, assert_close, batch, device, randomized};
    use proptest::prelude::*;

    use super::*;

    peft_core::conformance!(IntrinsicSaidConfig::new(307));

    mod did {
        use super::*;
        peft_core::conformance!(IntrinsicSaidConfig::new(307).without_scales());
    }

    #[test]
    fn computed_once_it_is_the_same() {
        a_view_is_as_by_hooks(&IntrinsicSaidConfig::new(307));
    }

    #[test]
    fn it_trains_as_the_reference() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/intrinsic-said-t5");
        Case::open(dir, "t5").check_method::<IntrinsicSaidConfig>();
    }

    /// Whatever moves: no number of the d that nothing reads, as the code's scale of the vector itself.
    #[test]
    fn each_number_has_a_gradient() {
        let base = peft_core::testing::base("t5-tiny", &device());
        let places = base.shape().places();
        let largest = places.iter().map(|place| place.count().next_power_of_two()).max().unwrap();
        for config in [IntrinsicSaidConfig::new(places.len() + 300), IntrinsicSaidConfig::new(places.len() + largest)] {
            let said = randomized(&config.init(&base, 3).unwrap(), 3);
            let loss = loss(said.run(&base, &batch(&base)).unwrap());
            let gradients = named(&said, &GradientsParams::from_grads(loss.backward(), &said));
            let numbers: Vec<f32> = gradients.values().flat_map(|gradient| gradient.iter::<f32>()).collect();
            assert_eq!(numbers.iter().filter(|g| **g != 0.0).count(), config.intrinsic_dim);
        }
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let base = peft_core::testing::base("roberta-tiny", &device());
        let places = base.shape().places();
        let (scales, largest) = (places.len(), places.iter().map(Place::count).max().unwrap().next_power_of_two());
        let refused = |found: Result<IntrinsicSaid>, words: [&str; 2]| {
            let message = found.unwrap_err().to_string();
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        };
        assert!(IntrinsicSaidConfig::new(scales + largest).init(&base, 0).is_ok());
        refused(IntrinsicSaidConfig::new(scales + largest + 1).init(&base, 0), ["intrinsic_dim", "at most"]);
        refused(IntrinsicSaidConfig::new(scales).init(&base, 0), ["intrinsic_dim", "more than"]);
        refused(IntrinsicSaidConfig::new(100).for_loading(&base), ["projection_seed", "nothing"]);
    }

    /// H, by its definition.
    fn entry(i: usize, j: usize) -> f64 {
        (0..usize::BITS).fold(1.0, |sign, bit| if i >> bit & j >> bit & 1 == 1 { -sign } else { sign })
    }

    /// H G Pi H S / c of which each is a matrix, without rows and columns that do not count: `[outputs, d]`.
    fn matrix(seed: u64, d: usize, outputs: usize) -> Vec<Vec<f64>> {
        let random = |part| Random::new(seed, &format!("said.w.{part}"));
        let n = outputs.next_power_of_two();
        let (mut signs, mut gauss) = (random("signs"), random("gauss"));
        let signs: Vec<f64> = (0..n).map(|_| if signs.bits() & 1 == 0 { 1.0 } else { -1.0 }).collect();
        let gauss: Vec<f64> = (0..n).map(|_| gauss.normal()).collect();
        let order = random("order").permutation(n);
        let product = |a: &dyn Fn(usize, usize) -> f64, b: &dyn Fn(usize, usize) -> f64| -> Vec<Vec<f64>> {
            (0..n).map(|i| (0..n).map(|j| (0..n).map(|k| a(i, k) * b(k, j)).sum()).collect()).collect()
        };
        let diagonal = |values: &[f64], i: usize, j: usize| if i == j { values[i] } else { 0.0 };
        let hs = product(&entry, &|i, j| diagonal(&signs, i, j));
        let phs = product(&|i, j| f64::from(u8::from(order[i] == j)), &|i, j| hs[i][j]);
        let gphs = product(&|i, j| diagonal(&gauss, i, j), &|i, j| phs[i][j]);
        let all = product(&entry, &|i, j| gphs[i][j]);
        let c = (gauss.iter().map(|g| g * g).sum::<f64>() * outputs as f64).sqrt();
        let column = |row: &Vec<f64>, j: usize| if j < n { row[j] / c } else { 0.0 };
        all[..outputs].iter().map(|row| (0..d).map(|j| column(row, j)).collect()).collect()
    }

    fn draw(seed: u64, name: &str, size: usize) -> Tensor<1> {
        Random::new(seed, name).normal_tensor([size], 1.0, &device())
    }

    fn values(x: Tensor<1>) -> Vec<f64> {
        x.into_data().iter().collect()
    }

    fn tensor(values: Vec<f64>) -> Tensor<1> {
        Tensor::from_data(values.into_iter().map(|x| x as f32).collect::<Vec<_>>().as_slice(), &device())
    }

    fn squares(x: Tensor<1>) -> f64 {
        values(x).into_iter().map(|x| x * x).sum()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// With fewer and with more numbers than outputs.
        #[test]
        fn fastfood_is_the_product_of_its_matrices(seed: u64, d in 2..90usize, outputs in 3..70usize) {
            let x = draw(seed, "x", d);
            let row = |row: Vec<f64>| row.iter().zip(values(x.clone())).map(|(p, x)| p * x).sum();
            let expected = tensor(matrix(seed, d, outputs).into_iter().map(row).collect());
            let found = Fastfood::new(seed, "w", d, outputs).apply(x);
            assert_close(found, expected, SAME_FUNCTION, "H G Pi H S x / c");
        }

        #[test]
        fn the_map_is_linear(seed: u64, d in 2..90usize, outputs in 3..70usize, a in 0.3..2.0, b in -2.0..-0.3) {
            let (map, x, y) = (Fastfood::new(seed, "w", d, outputs), draw(seed, "x", d), draw(seed, "y", d));
            let both = map.apply(x.clone() * a + y.clone() * b);
            assert_close(both, map.apply(x) * a + map.apply(y) * b, SAME_FUNCTION, "P (a x + b y)");
        }

        #[test]
        fn backward_is_the_transposed_map(seed: u64, d in 2..90usize, outputs in 3..70usize) {
            let y = draw(seed, "y", outputs);
            let x = Tensor::from_inner(draw(seed, "x", d)).require_grad();
            let loss = (Fastfood::new(seed, "w", d, outputs).apply(x.clone()) * y.clone()).sum();
            let found = x.grad(&loss.backward()).unwrap();
            let (p, y) = (matrix(seed, d, outputs), values(y));
            let column = |j: usize| p.iter().zip(&y).map(|(row, y)| row[j] * y).sum();
            assert_close(found, tensor((0..d).map(column).collect()), SAME_FUNCTION, "P^T y");
        }

        #[test]
        fn the_hadamard_transform_is_its_own_inverse_but_for_n(seed: u64, bits in 1..13u32) {
            let n = 1 << bits;
            let x = draw(seed, "x", n);
            assert_close(hadamard(hadamard(x.clone())) / n as f64, x.clone(), SAME_FUNCTION, "H H / n");
            let first: f64 = values(x.clone()).iter().enumerate().map(|(i, x)| entry(n - 2, i) * x).sum();
            assert_close(hadamard(x).narrow(0, n - 2, 1), tensor(vec![first]), SAME_FUNCTION, "a row of H");
        }

        /// With P^T as backward has it, theta = P^T y is mapped to y.
        #[test]
        fn an_orthogonal_map_reaches_every_point(seed: u64, bits in 2..11u32) {
            let n = 1 << bits;
            let map = Fastfood { gauss: vec![1.0 / n as f32; n], ..Fastfood::new(seed, "w", n, n) };
            let (x, y) = (draw(seed, "x", n), draw(seed, "y", n));
            let leaf = Tensor::from_inner(x.clone()).require_grad();
            let loss = (map.apply(leaf.clone()) * y.clone()).sum();
            let theta = leaf.grad(&loss.backward()).unwrap();
            assert_close(map.apply(theta), y, SAME_FUNCTION, "P P^T y");
            let (before, after) = (squares(x.clone()), squares(map.apply(x)));
            prop_assert!((after / before - 1.0).abs() <= f64::from(SAME_FUNCTION.0), "{} to {}", before, after);
        }
    }

    #[test]
    fn norms_are_kept_on_average() {
        for (d, outputs) in [(7, 48), (40, 37), (64, 64)] {
            let ratio = |seed| {
                let x = draw(seed, "x", d);
                squares(Fastfood::new(seed, "w", d, outputs).apply(x.clone())) / squares(x.narrow(0, 0, d.min(64)))
            };
            let ratios: Vec<f64> = (0..400).map(ratio).collect();
            let mean = ratios.iter().sum::<f64>() / 400.0;
            let variance = ratios.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / 399.0;
            let errors = (mean - 1.0) / (variance / 400.0).sqrt();
            assert!(errors.abs() <= f64::from(STANDARD_ERRORS.0), "{d} to {outputs}: {mean}, {errors} standard errors");
        }
    }

    /// The matrix would have 20,000 columns of a million rows: 80 GB.
    #[test]
    fn a_large_layer_needs_no_matrix() {
        let x = draw(3, "x", 20_000);
        let y = Fastfood::new(3, "w", 20_000, 1_000_003).apply(x.clone());
        assert_eq!(y.dims(), [1_000_003]);
        // The variance of the ratio is about 2 / n.
        let errors = (squares(y) / squares(x) - 1.0) / (2.0f64 / (1 << 20) as f64).sqrt();
        println!("{errors} standard errors");
        assert!(errors.abs() <= f64::from(STANDARD_ERRORS.0));
    }
}
