//! The identities of LoRA, on one linear map of random size with random factors.

use std::collections::BTreeMap;

use burn::module::{Lora as BurnLora, Module};
use burn::nn::LinearConfig;
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData};
use peft_core::random::{Noise, Random};
use peft_core::testing::tolerances::{MERGED, SAME_FUNCTION, STANDARD_ERRORS, Tolerance};
use peft_core::testing::{device, difference, golden::named};
use peft_core::view::{tensors, with_values};
use peft_core::{Adapter, Base, Batch, Example, Merge, Method, Part, Shape, Site, Slot, Stack, Weight};
use peft_reparam::{Lora, LoraConfig};
use proptest::prelude::*;

const UP: Site = Site { stack: Stack::Encoder, layer: 0, part: Part::Up };
const DOWN: Site = Site { stack: Stack::Encoder, layer: 0, part: Part::Down };

/// A model of one layer whose map `UP` is `[rows, columns]`, with what to put on it.
#[derive(Debug)]
struct Setting {
    rows: usize,
    columns: usize,
    rank: usize,
    alpha: f64,
    seed: u64,
    base: Base,
}

impl Setting {
    fn new((rows, columns, rank, alpha, seed): (usize, usize, usize, f64, u64)) -> Self {
        let shape =
            Shape { layers: 1, hidden: rows, heads: 1, intermediate: columns, ..Shape::named("roberta-tiny").unwrap() };
        let base = Base::random(shape, seed, &device());
        let weight = Random::new(seed, "w").normal_tensor([rows, columns], 0.5, base.device());
        let base = base.with_weight(UP, Weight::Dense(weight));
        Setting { rows, columns, rank, alpha, seed, base }
    }

    fn config(&self) -> LoraConfig {
        LoraConfig::new(self.rank).with_alpha(self.alpha).with_sites(UP.part)
    }

    fn draw<const D: usize>(&self, name: &str, dims: [usize; D]) -> Tensor<D> {
        Random::new(self.seed, name).normal_tensor(dims, 0.5, self.base.device())
    }

    fn factors(&self) -> (Tensor<2>, Tensor<2>) {
        (self.draw("a", [self.rows, self.rank]), self.draw("b", [self.rank, self.columns]))
    }

    fn input(&self) -> Tensor<3> {
        self.draw("x", [3, 4, self.rows])
    }

    /// A LoRA with these factors at a site.
    fn lora_at(&self, site: Site, config: &LoraConfig, a: &Tensor<2>, b: &Tensor<2>) -> Lora {
        let values = [("a", a), ("b", b)].map(|(leaf, t)| (format!("factors.{site}.{leaf}"), t.clone().into_data()));
        let lora = with_values(config.init(&self.base, 0).unwrap(), &BTreeMap::from(values)).unwrap();
        assert!(tensors(&lora)[&format!("factors.{site}.b")] == b.to_data(), "the factors are there");
        lora
    }

    fn lora(&self, config: &LoraConfig, (a, b): (Tensor<2>, Tensor<2>)) -> Lora {
        self.lora_at(UP, config, &a, &b)
    }

    fn output(&self, adapter: &impl Adapter, x: Tensor<3>) -> Tensor<3> {
        let w = self.base.weight(UP);
        let next = |x| w.linear(x, Some(self.base.vector(UP, Slot::Bias)));
        adapter.open(&batch(x.dims()[0], &self.base), |hooks| hooks.linear(UP, x, &next))
    }

    /// A loss without symmetries.
    fn loss(&self, output: Tensor<3>) -> Tensor<1> {
        let weights = self.draw("loss", output.dims());
        (output * weights).sum()
    }
}

fn batch(size: usize, base: &Base) -> Batch {
    let example = Example { ids: vec![5], ..Default::default() };
    Batch::new(vec![&example; size], base.shape().pad, base.device()).unwrap()
}

fn settings() -> impl Strategy<Value = Setting> {
    (5..9usize, 10..14usize, 2..4usize, 0.5..3.0, any::<u64>()).prop_map(Setting::new)
}

/// What a LoRA adds to the weight at a site.
fn delta(lora: &Lora, site: Site, dims: [usize; 2]) -> Tensor<2> {
    let zero = Weight::Dense(Tensor::zeros(dims, &device()));
    Merge::weight(&lora.valid(), site, &zero).unwrap()
}

fn close<const D: usize>(found: Tensor<D>, expected: Tensor<D>, tolerance: Tolerance) -> Result<(), TestCaseError> {
    let size = expected.clone().abs().max().into_scalar::<f32>();
    let differ = difference(&(found / size).into_data(), &(expected / size).into_data());
    prop_assert!(differ <= tolerance.0, "differs by {} of {}, allowed {:?}", differ, size, tolerance);
    Ok(())
}

/// The pivots of an elimination with complete pivoting: their number above rounding is the rank.
fn pivots(matrix: Tensor<2>) -> Vec<f64> {
    let [rows, columns] = matrix.dims();
    let values: Vec<f64> = matrix.into_data().iter().collect();
    let mut m: Vec<Vec<f64>> = values.chunks(columns).map(<[f64]>::to_vec).collect();
    let mut pivots = vec![];
    for _ in 0..rows.min(columns) {
        let places = (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j)));
        let (p, q) = places.max_by(|x, y| m[x.0][x.1].abs().total_cmp(&m[y.0][y.1].abs())).unwrap();
        let pivot = m[p].clone();
        pivots.push(pivot[q].abs());
        for row in m.iter_mut().filter(|_| pivot[q] != 0.0) {
            let factor = row[q] / pivot[q];
            row.iter_mut().zip(&pivot).for_each(|(x, y)| *x -= factor * y);
        }
    }
    pivots
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn alpha_scales_as_b_does(s in settings(), c in 0.3..3.0) {
        let (a, b) = s.factors();
        let louder = s.lora(&s.config().with_alpha(s.alpha * c), (a.clone(), b.clone()));
        let scaled = s.lora(&s.config(), (a, b * c));
        close(s.output(&louder, s.input()), s.output(&scaled, s.input()), SAME_FUNCTION)?;
    }

    #[test]
    fn the_scale_is_alpha_over_r_and_with_rslora_over_its_root(s in settings()) {
        let product = s.factors().0.matmul(s.factors().1);
        let r = s.rank as f64;
        let plain = s.lora(&s.config(), s.factors());
        close(delta(&plain, UP, product.dims()), product * (s.alpha / r), SAME_FUNCTION)?;
        let rooted = s.lora(&s.config().with_rslora(), s.factors());
        let louder = s.lora(&s.config().with_alpha(s.alpha * r.sqrt()), s.factors());
        close(s.output(&rooted, s.input()), s.output(&louder, s.input()), SAME_FUNCTION)?;
    }

    /// R = I + u v^T, whose inverse is I - u v^T / (1 + v^T u).
    #[test]
    fn an_invertible_matrix_between_the_factors_changes_nothing(s in settings()) {
        let (u, v) = (s.draw("u", [s.rank, 1]), s.draw("v", [1, s.rank]));
        let determinant = 1.0 + v.clone().matmul(u.clone()).into_scalar::<f32>();
        prop_assume!(determinant.abs() > 0.3);
        let identity = Tensor::<2>::eye(s.rank, s.base.device());
        let (r, inverse) = (identity.clone() + u.clone().matmul(v.clone()), identity - u.matmul(v) / determinant);
        let (a, b) = s.factors();
        let other = s.lora(&s.config(), (a.clone().matmul(r), inverse.matmul(b.clone())));
        prop_assert!(difference(&a.to_data(), &tensors(&other)["factors.encoder.0.up.a"]) > MERGED.0);
        let one = s.lora(&s.config(), (a, b));
        close(s.output(&other, s.input()), s.output(&one, s.input()), MERGED)?;
    }

    #[test]
    fn two_adapters_are_one_of_the_sum_of_their_ranks(s in settings()) {
        let scale = s.alpha / s.rank as f64;
        let (a, b) = s.factors();
        let (a1, b1) = (s.draw("a1", [s.rows, 1]), s.draw("b1", [1, s.columns]));
        let single = s.lora(&LoraConfig { r: 1, lora_alpha: scale, ..s.config() }, (a1.clone(), b1.clone()));
        let sum = LoraConfig { r: s.rank + 1, lora_alpha: scale * (s.rank + 1) as f64, ..s.config() };
        let sum = s.lora(&sum, (Tensor::cat(vec![a.clone(), a1], 1), Tensor::cat(vec![b.clone(), b1], 0)));
        let pair = (s.lora(&s.config(), (a, b)), single);
        close(s.output(&pair, s.input()), s.output(&sum, s.input()), SAME_FUNCTION)?;
        let weight = |merge: &dyn Merge| s.base.merged(merge).weight(UP).dense();
        close(weight(&pair), weight(&sum), SAME_FUNCTION)?;
    }

    /// With G the gradient of the weight, that of A is s G B^T and that of B is s A^T G.
    #[test]
    fn gradients_of_the_factors_are_tied(s in settings()) {
        let (a, b) = s.factors();
        let lora = s.lora(&s.config(), (a.clone(), b.clone()));
        let loss = s.loss(s.output(&lora, s.input()));
        let gradients = named(&lora, &GradientsParams::from_grads(loss.backward(), &lora));
        let gradient = |leaf: &str| Tensor::<2>::from_data(gradients[&format!("factors.{UP}.{leaf}")].clone(), s.base.device());
        let (ga, gb) = (gradient("a"), gradient("b"));
        close(a.clone().transpose().matmul(ga.clone()), gb.clone().matmul(b.clone().transpose()), MERGED)?;
        let (a_ga, b_gb) = (a.clone() * ga.clone(), b.clone() * gb.clone());
        let size = a_ga.clone().abs().sum();
        let traces = difference(&(a_ga.sum() / size.clone()).into_data(), &(b_gb.sum() / size).into_data());
        prop_assert!(traces <= MERGED.0, "<A, gA> and <B, gB> differ by {}", traces);
        let x = s.input().reshape([12, s.rows]);
        let g = x.transpose().matmul(s.draw("loss", [3, 4, s.columns]).reshape([12, s.columns]));
        close(ga, g.clone().matmul(b.transpose()) * (s.alpha / s.rank as f64), MERGED)?;
        close(gb, a.transpose().matmul(g) * (s.alpha / s.rank as f64), MERGED)?;
    }

    #[test]
    fn only_b_has_a_gradient_at_the_start(s in settings()) {
        let lora = s.config().init(&s.base, s.seed).unwrap();
        let loss = s.loss(s.output(&lora, s.input()));
        let gradients = named(&lora, &GradientsParams::from_grads(loss.backward(), &lora));
        let size = |leaf: &str| gradients[&format!("factors.{UP}.{leaf}")].iter::<f32>().fold(0.0, |m: f32, g| m.max(g.abs()));
        prop_assert!(size("a") == 0.0 && size("b") > MERGED.0, "{gradients:?}");
        let (a, bound) = (&tensors(&lora)[&format!("factors.{UP}.a")], (s.rows as f32).sqrt().recip());
        prop_assert!(a.iter::<f32>().all(|a| a != 0.0 && a.abs() <= bound), "{a:?}");
    }

    #[test]
    fn the_update_has_rank_r(s in settings()) {
        let pivots = pivots(delta(&s.lora(&s.config(), s.factors()), UP, [s.rows, s.columns]));
        prop_assert!(pivots[0] > 0.0 && pivots[s.rank] <= pivots[0] * f64::from(SAME_FUNCTION.0), "{pivots:?}");
    }

    #[test]
    fn full_rank_expresses_every_update(s in settings()) {
        let config = LoraConfig { r: s.rows, target_modules: UP.part | DOWN.part, ..s.config() };
        let (scale, identity) = (s.alpha / s.rows as f64, Tensor::<2>::eye(s.rows, s.base.device()));
        let (wide, tall) = (s.draw("wide", [s.rows, s.columns]), s.draw("tall", [s.columns, s.rows]));
        let up = s.lora_at(UP, &config, &identity, &(wide.clone() / scale));
        close(delta(&up, UP, wide.dims()), wide, SAME_FUNCTION)?;
        let down = s.lora_at(DOWN, &config, &(tall.clone() / scale), &identity);
        close(delta(&down, DOWN, tall.dims()), tall, SAME_FUNCTION)?;
    }

    #[test]
    fn merging_is_the_same_function_and_leaves_the_original(s in settings()) {
        let (lora, before) = (s.lora(&s.config(), s.factors()), s.base.fingerprint());
        let merged = s.base.merged(&lora);
        let by_weight = merged.weight(UP).linear(s.input(), Some(merged.vector(UP, Slot::Bias)));
        close(by_weight, s.output(&lora.valid(), s.input()), MERGED)?;
        for place in s.base.shape().places() {
            let same = s.base.tensor_data(&place) == merged.tensor_data(&place);
            prop_assert_eq!(same, (place.site, place.slot) != (UP, Slot::Weight), "{}", place.name);
        }
        prop_assert_eq!(s.base.fingerprint(), before);
    }

    #[test]
    fn equals_the_lora_of_burn(s in settings()) {
        let tracked = s.base.device().clone().autodiff();
        let (w, bias) = (s.base.weight(UP).dense(), s.base.vector(UP, Slot::Bias));
        let (a, b) = s.factors();
        let linear = LinearConfig::new(s.rows, s.columns).init(&tracked).apply_lora(BurnLora::new(s.rank, s.alpha));
        let values = [("weight", w.into_data()), ("bias", bias.into_data()), ("weight.lora.a", a.to_data()), ("weight.lora.b", b.to_data())];
        let values = BTreeMap::from(values.map(|(name, data)| (name.to_string(), data)));
        let linear = with_values(linear, &values).unwrap();
        prop_assert_eq!(&tensors(&linear), &values);
        let theirs = linear.forward(Tensor::from_inner(s.input()));
        let lora = s.lora(&s.config(), (a, b));
        let ours = s.output(&lora, s.input());
        close(ours.clone().inner(), theirs.clone().inner(), MERGED)?;
        let theirs = named(&linear, &GradientsParams::from_grads(s.loss(theirs).backward(), &linear));
        let ours = named(&lora, &GradientsParams::from_grads(s.loss(ours).backward(), &lora));
        prop_assert_eq!(theirs.keys().collect::<Vec<_>>(), ["weight.lora.a", "weight.lora.b"]);
        for leaf in ["a", "b"] {
            let tensor = |data: &TensorData| Tensor::<2>::from_data(data.clone(), s.base.device());
            let (ours, theirs) = (tensor(&ours[&format!("factors.{UP}.{leaf}")]), tensor(&theirs[&format!("weight.lora.{leaf}")]));
            close(ours, theirs, MERGED)?;
        }
    }

    /// Factors [I] and [I 0] show what is left of the input, without a rounding. A sample keeps its mask wherever it lies.
    #[test]
    fn masks_follow_the_sample(s in settings(), p in 0.2..0.8) {
        let config = LoraConfig { r: s.rows, lora_alpha: s.rows as f64, ..s.config().with_dropout(p) };
        let a = Tensor::eye(s.rows, s.base.device());
        let b = Tensor::cat(vec![a.clone(), Tensor::zeros([s.rows, s.columns - s.rows], s.base.device())], 1);
        let lora = s.lora(&config, (a, b)).valid();
        let dropped = |x: Tensor<3>, samples: &[u32], step| {
            let [size, tokens, _] = x.dims();
            let batch = batch(size, &s.base).with_noise(Noise { seed: s.seed, step, samples: samples.iter().copied().collect() });
            let next = |base_input: Tensor<3>| {
                assert!(base_input.to_data() == x.to_data(), "the input of the base is not dropped");
                Tensor::zeros([size, tokens, s.columns], s.base.device())
            };
            lora.open(&batch, |hooks| hooks.linear(UP, x.clone(), &next)).narrow(2, 0, s.rows)
        };
        let same = |x: Tensor<3>, y: Tensor<3>| difference(&x.into_data(), &y.into_data()) == 0.0;
        let x = s.input();
        let whole = dropped(x.clone(), &[0, 1, 2], 0);
        prop_assert!(same(dropped(x.clone().narrow(0, 1, 2), &[1, 2], 0), whole.clone().narrow(0, 1, 2)), "cut");
        let padded = Tensor::cat(vec![x.clone(), s.draw("padding", [3, 2, s.rows])], 1);
        prop_assert!(same(dropped(padded, &[0, 1, 2], 0).narrow(1, 0, 4), whole.clone()), "padded");
        prop_assert!(!same(dropped(x.clone(), &[3, 4, 5], 0), whole.clone()), "other samples");
        prop_assert!(!same(dropped(x.clone(), &[0, 1, 2], 1), whole.clone()), "another step");
        close(whole.clone(), (x / (1.0 - p)).mask_fill(whole.equal_elem(0.0), 0.0), SAME_FUNCTION)?;
    }
}

#[test]
fn dropout_is_right_on_average() {
    let s = Setting::new((7, 11, 3, 2.0, 1));
    let lora = s.lora(&s.config().with_dropout(0.3), s.factors()).valid();
    let draws = 500;
    let (mut sum, mut squares) =
        (Tensor::zeros([3, 4, 11], s.base.device()), Tensor::zeros([3, 4, 11], s.base.device()));
    let expected = s.output(&lora, s.input());
    for step in 0..draws {
        let batch = batch(3, &s.base).with_noise(Noise { seed: 9, step, samples: (0..3).collect() });
        let next = |x| s.base.weight(UP).linear(x, Some(s.base.vector(UP, Slot::Bias)));
        let off = lora.open(&batch, |hooks| hooks.linear(UP, s.input(), &next)) - expected.clone();
        sum = sum + off.clone();
        squares = squares + off.clone() * off;
    }
    let largest = (sum / squares.sqrt()).abs().max().into_scalar::<f32>();
    assert!(largest > 0.0 && largest <= STANDARD_ERRORS.0, "the mean is off by {largest} standard errors");
}
