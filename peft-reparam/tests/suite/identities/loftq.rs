use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use faer::Mat;
use peft_core::testing::tolerances::{SAME_FUNCTION, Tolerance};
use peft_core::testing::{assert_close, base, batch, device, randomized, states};
use peft_core::view::tensors;
use peft_core::{Bare, Base, Method, Part, Shape, Site, Sites, Weight};
use peft_reparam::{LoftQ, LoftQConfig, LoraConfig};
use proptest::prelude::*;

use super::{bases, run, with};
use crate::packed::nf4;

const RANK: usize = 3;

fn sites() -> Sites {
    Part::Query | Part::Down
}

fn config() -> LoftQConfig {
    LoftQConfig::new(RANK).with_alpha(5.0).with_sites(sites())
}

/// One with the tensors that `change` makes of its own, by their names.
fn changed(loftq: &LoftQ, base: &Base, change: impl Fn(&str, Tensor<2>) -> Tensor<2>) -> LoftQ {
    let value = |(name, data): (String, TensorData)| {
        let value = change(&name, Tensor::from_data(data, base.device()));
        (name, value.into_data())
    };
    with(loftq.clone(), tensors(loftq).into_iter().map(value))
}

/// Its quantized matrices, and with them W' = Q + s A B.
fn merged(loftq: &LoftQ, base: &Base) -> [Base; 2] {
    let without = changed(loftq, base, |name, own| if name.ends_with(".b") { own.zeros_like() } else { own });
    [without, loftq.clone()].map(|loftq| base.merged(&loftq.valid()))
}

/// Matrices of two bases at some sites, the second's taken from the first's.
fn differences(a: &Base, b: &Base) -> Vec<(Site, Tensor<2>)> {
    let sites = sites().resolve(a.shape()).unwrap().into_iter();
    sites.map(|site| (site, a.weight(site).dense() - b.weight(site).dense())).collect()
}

fn norm(x: &Tensor<2>) -> f64 {
    x.to_data().iter::<f64>().map(|x| x * x).sum::<f64>().sqrt()
}

/// The base with other matrices at the sites.
fn mapped(base: &Base, f: impl Fn(Tensor<2>) -> Tensor<2>) -> Base {
    let sites = sites().resolve(base.shape()).unwrap().into_iter();
    sites.fold(base.clone(), |base, site| {
        let w = f(base.weight(site).dense());
        base.with_weight(site, Weight::Dense(w))
    })
}

/// Bases of other random matrices, of which some numbers are far larger than others.
fn drawn(seed: u64) -> Vec<Base> {
    let other = |base: Base| {
        let random = |site: Site, w: Tensor<2>| {
            let mut random = peft_core::random::Random::new(seed, &site.to_string());
            let values: Vec<f32> =
                (0..w.dims().iter().product()).map(|_| (random.normal().powi(3) * 0.2) as f32).collect();
            Tensor::from_data(TensorData::new(values, w.dims()), base.device())
        };
        sites().resolve(base.shape()).unwrap().into_iter().fold(base.clone(), |base, site| {
            let w = random(site, base.weight(site).dense());
            base.with_weight(site, Weight::Dense(w))
        })
    };
    bases().into_iter().map(other).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn the_residual_is_the_tail_of_the_singular_values(seed: u64, steps in 1..4usize) {
        for base in drawn(seed) {
            let [quantized, whole] = merged(&config().with_steps(steps).init(&base, seed).unwrap(), &base);
            for ((_, of_q), (site, left)) in differences(&base, &quantized).into_iter().zip(differences(&base, &whole)) {
                let values: Vec<f64> = of_q.to_data().iter().collect();
                let columns = of_q.dims()[1];
                let of_q = Mat::from_fn(of_q.dims()[0], columns, |i, j| values[i * columns + j]);
                let tail = of_q.singular_values().unwrap()[RANK..].iter().map(|s| s * s).sum::<f64>().sqrt();
                prop_assert!((norm(&left) - tail).abs() <= 1e-5 * tail, "{}: {} and {}", site, norm(&left), tail);
            }
        }
    }

    #[test]
    fn the_residual_does_not_grow_with_the_steps(seed: u64, bits in prop::sample::select(vec![4u32, 8])) {
        for base in drawn(seed) {
            let left = |steps: usize| -> Vec<f64> {
                let loftq = config().with_bits(bits).with_steps(steps).init(&base, seed).unwrap();
                differences(&base, &merged(&loftq, &base)[1]).iter().map(|(_, left)| norm(left)).collect()
            };
            let all: Vec<Vec<f64>> = (0..6).map(left).collect();
            for (steps, pair) in all.windows(2).enumerate() {
                for (less, more) in pair[0].iter().zip(&pair[1]) {
                    prop_assert!(*more <= less * (1.0 + 1e-6), "{} after {}, then {}", less, steps, more);
                    prop_assert!(steps > 0 || *more < less * 0.99, "the first step has left {} of {}", more, less);
                }
            }
        }
    }

    #[test]
    fn without_steps_it_is_lora_on_the_quantized_base(seed: u64) {
        for base in bases() {
            let start = config().with_steps(0).init(&base, seed).unwrap();
            let quantized = nf4(&base, &sites());
            prop_assert_eq!(states(&start, &base).into_data(), states(&Bare {}, &quantized).into_data());
            let lora = LoraConfig::new(RANK).with_alpha(5.0).with_sites(sites()).init(&base, seed).unwrap();
            prop_assert_eq!(tensors(&start), tensors(&lora));
            let loftq = randomized(&start, seed);
            let (lora, batch) = (with(lora, tensors(&loftq)), batch(&base));
            assert_close(run(&loftq, &base, &batch), run(&lora, &quantized, &batch), SAME_FUNCTION, "a LoRA");
        }
    }

    #[test]
    fn a_quantized_base_is_a_fixed_point(seed: u64, steps in 0..4usize) {
        for base in drawn(seed) {
            let base = nf4(&base, &sites());
            let loftq = config().with_steps(steps).init(&base, seed).unwrap();
            prop_assert_eq!(states(&loftq, &base).into_data(), states(&Bare {}, &base).into_data());
            // A still is LoRA's, without which B would never have a gradient.
            let lora = LoraConfig::new(RANK).with_sites(sites()).init(&base, seed).unwrap();
            let own = tensors(&loftq);
            prop_assert!(tensors(&lora).iter().all(|(name, data)| own[name] == *data));
        }
    }

    #[test]
    fn alpha_does_not_move_the_start(seed: u64, alpha in prop::sample::select(vec![-7.0, -0.5, 1.0, 40.0]), steps in 1..3usize) {
        for base in drawn(seed) {
            let at = |alpha: f64| states(&config().with_alpha(alpha).with_steps(steps).init(&base, seed).unwrap(), &base);
            let unscaled = config().with_alpha(RANK as f64).with_steps(steps).without_scale().init(&base, seed).unwrap();
            assert_close(at(alpha), at(RANK as f64), SAME_FUNCTION, "alpha");
            assert_close(at(alpha), states(&unscaled, &base), SAME_FUNCTION, "PEFT's start at alpha = r");
        }
    }

    #[test]
    fn the_start_scales_with_the_base(seed: u64, power in prop::sample::select(vec![-2i32, 2, 4])) {
        for base in drawn(seed) {
            let by = 2f32.powi(power);
            let config = config().with_steps(2);
            let (one, scaled) = (config.init(&base, seed).unwrap(), mapped(&base, |w| w * by));
            let other = config.init(&scaled, seed).unwrap();
            let [small, large] = [merged(&one, &base), merged(&other, &scaled)].map(|[quantized, _]| quantized);
            for site in sites().resolve(base.shape()).unwrap() {
                let [small, large] = [&small, &large].map(|base| base.weight(site).dense());
                prop_assert_eq!((small * by).into_data(), large.into_data());
            }
            let theirs = tensors(&other);
            // Of the pair before the last the product counts: where no second step was taken that is LoRA's start, and 0.
            for (name, data) in tensors(&one).into_iter().filter(|(name, _)| !name.contains(".before.")) {
                let [own, theirs] = [data, theirs[&name].clone()].map(|data| Tensor::<2>::from_data(data, base.device()));
                assert_close(own * by.sqrt(), theirs, SAME_FUNCTION, &name);
            }
        }
    }

    #[test]
    fn the_factors_share_the_singular_values(seed: u64, alpha in prop::sample::select(vec![-2.0, 5.0])) {
        for base in drawn(seed) {
            let values = tensors(&config().with_alpha(alpha).init(&base, seed).unwrap());
            for (name, a) in values.iter().filter(|(name, _)| name.ends_with(".a")) {
                let b = &values[&name.replace(".a", ".b")];
                let [a, b] = [a, b].map(|data| Tensor::<2>::from_data(data.clone(), base.device()));
                let [of_a, of_b] = [a.clone().transpose().matmul(a), b.clone().matmul(b.transpose())];
                let diagonal = of_b.clone() * Tensor::eye(RANK, base.device());
                assert_close(of_a, of_b.clone(), SAME_FUNCTION, "of A and of B");
                assert_close(of_b, diagonal, SAME_FUNCTION, "its diagonal");
            }
        }
    }
}

#[test]
fn at_full_rank_it_starts_as_the_base() {
    for base in bases() {
        let config = LoftQConfig::new(24).with_alpha(5.0).with_sites(Part::Query);
        for steps in 1..3 {
            let start = config.clone().with_steps(steps).init(&base, 1).unwrap();
            assert_close(states(&start, &base), states(&Bare {}, &base), SAME_FUNCTION, "the base");
        }
        // Its quantized matrices alone are not.
        let quantized = states(&config.with_steps(0).init(&base, 1).unwrap(), &base);
        let Tolerance(tolerance) = SAME_FUNCTION;
        assert!((quantized - states(&Bare {}, &base)).abs().max().into_scalar::<f32>() > 10.0 * tolerance);
    }
}

#[test]
fn counts_are_those_of_lora() {
    let count = |r: usize| LoftQConfig::new(r).count(&Shape::named("llama-7b").unwrap()).unwrap();
    assert_eq!([count(64), count(16)], [159_907_840, 39_976_960]);
}

#[test]
fn impossible_settings_and_weights_are_named() {
    let plain = base("roberta-tiny", &device());
    let refused = |config: LoftQConfig, base: &Base, words: &[&str]| {
        let message = config.init(base, 0).map(|_| ()).unwrap_err().to_string();
        assert!(words.iter().all(|word| message.contains(word)), "{words:?} are not in: {message}");
    };
    let query = "roberta.encoder.layer.0.attention.self.query";
    refused(LoftQConfig { r: 0, ..config() }, &plain, &["r: 0"]);
    refused(LoftQConfig { r: 25, ..config() }, &plain, &["r: 25", "at most 24", query]);
    refused(config().with_alpha(0.0), &plain, &["lora_alpha: 0"]);
    refused(LoftQConfig { lora_dropout: 1.0, ..config() }, &plain, &["lora_dropout: 1"]);
    refused(config().with_bits(5), &plain, &["loftq_bits: 5", "2, 3, 4 or 8"]);
    refused(config().with_steps(101), &plain, &["loftq_iter: 101", "0 to 100"]);
    // 24 inputs are no blocks of 64.
    refused(config().with_bits(2), &plain, &["group_size", query, "64", "24"]);
    for bad in [f32::NAN, f32::INFINITY] {
        let site = Site::encoder(1, Part::Query);
        let w = plain.weight(site).dense();
        let w = w.clone().slice_assign([2..3, 5..6], Tensor::full([1, 1], bad, plain.device()));
        let base = plain.clone().with_weight(site, Weight::Dense(w));
        for bits in [4, 8] {
            // Of 24 inputs an output, the third of the sixth.
            let words = ["element 122", "layer.1.attention.self.query", "finite"];
            refused(config().with_bits(bits), &base, &words);
        }
    }
}
