use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use peft_core::io::peft::{Labels, load, save};
use peft_core::testing::tolerances::{MERGED, SAME_FUNCTION};
use peft_core::testing::{assert_close, base, batch, device, randomized, states};
use peft_core::view::tensors;
use peft_core::{
    Adapter, Bare, Base, Head, Mask, Merge, Method, Part, Sequence, Shape, Site, Sites, Trained, Weight, random::Random,
};
use peft_reparam::{Krona, KronaBConfig, KronaConfig, LoraConfig};
use proptest::prelude::*;
use serde_json::Value;

use super::{bases, run, with};

fn everywhere(config: KronaConfig) -> KronaConfig {
    config.with_sites(Sites::Pattern("all-linear".into()))
}

fn random(config: &KronaConfig, base: &Base, seed: u64) -> Krona {
    randomized(&config.init(base, seed).unwrap(), seed).valid()
}

/// A and B at a site, whatever they are products of.
fn factors(krona: &Krona, base: &Base, site: Site) -> [Tensor<2>; 2] {
    let values = tensors(krona);
    ["a", "b"].map(|leaf| {
        let tensor = |end: &str| {
            let data = values.get(&format!("maps.{site}.product.{leaf}.{end}"))?;
            Some(Tensor::<2>::from_data(data.clone(), base.device()))
        };
        let product = || Some(tensor("Split.a")?.matmul(tensor("Split.b")?));
        tensor("Whole").or_else(product).unwrap()
    })
}

/// A (x) B, number by number.
fn product([a, b]: [Tensor<2>; 2]) -> Tensor<2> {
    let ([a1, a2], [b1, b2]) = (a.dims(), b.dims());
    let device = a.device();
    let [a, b]: [Vec<f64>; 2] = [a, b].map(|x| x.into_data().iter().collect());
    let one = |row: usize, column: usize| (a[(row / b1) * a2 + column / b2] * b[(row % b1) * b2 + column % b2]) as f32;
    let values = (0..a1 * b1).flat_map(|row| (0..a2 * b2).map(move |column| (row, column)));
    let values: Vec<f32> = values.map(|(row, column)| one(row, column)).collect();
    Tensor::from_data(TensorData::new(values, [a1 * b1, a2 * b2]), &device)
}

fn update(krona: &Krona, base: &Base, site: Site) -> Tensor<2> {
    let zero = Weight::Dense(Tensor::zeros(base.shape().linear_dims(site), base.device()));
    Merge::weight(krona, site, &zero).unwrap()
}

fn norm(x: Tensor<2>) -> Tensor<1> {
    x.powi_scalar(2).sum().sqrt()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn the_two_small_products_are_the_large_one(seed: u64, alpha in 0.5..2.0) {
        for base in bases() {
            let shape = base.shape();
            let split = everywhere(KronaConfig::lokr(1)).with_both_split();
            let sides = KronaConfig::new().with_factor([3, 2]).with_sites(Part::Output);
            for config in [everywhere(KronaConfig::new()), split, sides] {
                let krona = random(&config.clone().with_alpha(alpha), &base, seed);
                let changed = config.target_modules.resolve(shape).unwrap().into_iter().fold(base.clone(), |changed, site| {
                    let w = base.weight(site).dense() + product(factors(&krona, &base, site)) * alpha;
                    changed.with_weight(site, Weight::Dense(w))
                });
                let batch = batch(&base);
                assert_close(run(&krona, &base, &batch), run(&Bare {}, &changed, &batch), MERGED, "the product");
            }
        }
    }

    #[test]
    fn the_norm_is_the_product_of_the_norms(seed: u64) {
        for base in bases() {
            let config = everywhere(KronaConfig::new());
            let krona = random(&config, &base, seed);
            for site in config.target_modules.resolve(base.shape()).unwrap() {
                let [a, b] = factors(&krona, &base, site).map(norm);
                assert_close(norm(update(&krona, &base, site)) / (a * b), Tensor::ones([1], base.device()), SAME_FUNCTION, "the norm");
            }
        }
    }

    #[test]
    fn a_number_may_stand_in_either_factor(seed: u64, c in 0.3..3.0) {
        for base in bases() {
            let krona = random(&everywhere(KronaConfig::new()), &base, seed);
            let scaled = tensors(&krona).into_iter().map(|(name, data)| {
                let by: f64 = if name.contains(".product.a.") { c } else { 1.0 / c };
                (name, (Tensor::<2>::from_data(data, base.device()) * by).into_data())
            });
            let moved = with(krona.clone(), scaled);
            let batch = batch(&base);
            assert_close(run(&moved, &base, &batch), run(&krona, &base, &batch), SAME_FUNCTION, "c A and B / c");
        }
    }

    #[test]
    fn a_column_and_a_row_are_a_lora_of_rank_one(seed: u64, alpha in 0.5..2.0) {
        for base in bases() {
            let shape = base.shape();
            // The same number of inputs in all, so that one setting fits them.
            let config = KronaConfig::new().with_factor([shape.hidden, 1]).with_sites(Part::Query).with_alpha(alpha);
            let krona = random(&config, &base, seed);
            let lora = LoraConfig::new(1).with_alpha(alpha).with_sites(Part::Query);
            let sites = Sites::from(Part::Query).resolve(shape).unwrap().into_iter();
            let values = sites.flat_map(|site| {
                let [a, b] = factors(&krona, &base, site).map(Tensor::into_data);
                [(format!("factors.{site}.a"), a), (format!("factors.{site}.b"), b)]
            });
            let lora = with(lora.init(&base, 0).unwrap(), values);
            let batch = batch(&base);
            assert_close(run(&krona, &base, &batch), run(&lora, &base, &batch), SAME_FUNCTION, "a LoRA of rank 1");
        }
    }

    /// x is what the network's first map reads.
    #[test]
    fn beside_the_network_is_its_equation(seed: u64, scale in 0.5..2.0) {
        for base in bases() {
            let shape = base.shape();
            let krona = KronaBConfig::new().with_residual().with_scale(scale).with_factor([4, 3]);
            let krona = randomized(&krona.init(&base, seed).unwrap(), seed).valid();
            let values = tensors(&krona);
            let tensor = |name: String| Tensor::<2>::from_data(values[&name].clone(), base.device());
            for site in shape.sites(Part::FeedForward) {
                let factors = ["a", "b"].map(|leaf| tensor(format!("maps.{site}.product.{leaf}.Whole")));
                let t = Tensor::<1>::from_data(values[&format!("maps.{site}.residual")].clone(), base.device());
                let dense = product(factors) * scale + Tensor::eye(shape.hidden, base.device()) * t.unsqueeze();
                let x = Random::new(seed, "x").normal_tensor([2, 3, shape.hidden], 1.0, base.device());
                let (found, read) = beside(&base, site, &krona, x);
                assert_close(found, read.matmul(dense.unsqueeze()), SAME_FUNCTION, "what is added");
            }
        }
    }
}

/// What an adapter adds to a network that gives 0, and what that would read.
fn beside(base: &Base, site: Site, adapter: &impl Adapter, x: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
    let batch = batch(base);
    let sequence = Sequence { hidden: x.clone(), mask: Mask::default(), prompt: 0, offset: 0, past: 0 };
    adapter.open(&batch, |hooks| {
        let frame = base.frame(&batch, hooks);
        let added = hooks.sublayer(&frame, site, sequence.clone(), &|x| x.hidden.zeros_like());
        let norm = Site { part: Part::NormFeedForward, ..site };
        let read = if base.shape().pre_norm() { frame.norm(norm, x.clone()) } else { x.clone() };
        (added, read)
    })
}

#[test]
fn without_a_residual_it_is_krona_b() {
    for base in bases() {
        let (plain, residual) = (KronaBConfig::new(), KronaBConfig::new().with_residual());
        let plain = randomized(&plain.init(&base, 3).unwrap(), 5);
        let residual = with(residual.init(&base, 3).unwrap(), tensors(&plain));
        assert_close(states(&plain, &base), states(&residual, &base), SAME_FUNCTION, "t = 0");
    }
}

#[test]
fn counts_are_those_of_the_factors() {
    let (roberta, llama) = (Shape::named("roberta-base").unwrap(), Shape::named("llama-7b").unwrap());
    let count = |config: KronaConfig, shape: &Shape| config.count(shape).unwrap();
    assert_eq!(count(KronaConfig::new().with_factor([32, 24]), &roberta), 36_864);
    assert_eq!(count(KronaConfig::new(), &roberta), 24 * (24 * 24 + 32 * 32));
    assert_eq!(count(KronaConfig::new(), &llama), 524_288);
    assert_eq!(count(KronaConfig::lokr(8), &roberta), 26_112);
    assert_eq!(count(KronaConfig::lokr(8), &llama), 327_680);
    let beside = KronaBConfig::new().with_factor([32, 24]);
    assert_eq!(beside.count(&roberta).unwrap(), 18_432);
    assert_eq!(beside.with_residual().count(&roberta).unwrap(), 18_444);
}

/// PEFT has no LoKr without a rank: the files name one that splits nothing, and a numerator that gives the same scale.
#[test]
fn whole_factors_are_written_with_a_rank_that_splits_nothing() {
    let base = base("t5-tiny", &device());
    let config = KronaConfig::new().with_alpha(0.7).with_sites(Part::Query | Part::Down);
    let trained = Trained::new(randomized(&config.init(&base, 1).unwrap(), 1), Head::classifier(&base, 2, 0)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("adapter");
    save(&dir, &config, &trained, base.shape(), &Labels::default(), &[]).unwrap();
    let text = std::fs::read_to_string(dir.join("adapter_config.json")).unwrap();
    let fields: Value = serde_json::from_str(&text).unwrap();
    let [r, alpha] = ["r", "alpha"].map(|key| fields[key].as_f64().unwrap());
    assert!(alpha / r == 0.7 && fields["peft_type"] == "LOKR" && fields.get("factor").is_none(), "{text}");
    let largest = config.target_modules.resolve(base.shape()).unwrap().into_iter();
    let largest = largest.map(|site| product_side(base.shape().linear_dims(site))).max().unwrap();
    assert!(2.0 * r >= largest as f64, "{r} splits a side of {largest}");
    let (loaded, again) = load::<KronaConfig>(&dir, &base).unwrap();
    assert_eq!(loaded.r, Some(r as usize));
    assert_eq!(states(&again.tuner, &base).into_data(), states(&trained.tuner, &base).into_data());
}

/// The larger number of those that the sides are factorized into.
fn product_side(dims: [usize; 2]) -> usize {
    dims.into_iter().map(|n| (1..=n).find(|m| n % m == 0 && m * m >= n).unwrap()).max().unwrap()
}

#[test]
fn impossible_settings_are_named() {
    let base = base("roberta-tiny", &device());
    let told = |config: KronaConfig| config.init(&base, 0).map(|_| ()).unwrap_err().to_string();
    let pattern = KronaConfig { rank_pattern: [("query".to_string(), 2)].into_iter().collect(), ..KronaConfig::new() };
    for (config, key) in [
        (KronaConfig::lokr(0), "r at roberta.encoder.layer.0.attention.self.query: 0"),
        (KronaConfig::new().with_alpha(0.0), "alpha at roberta.encoder.layer.0.attention.self.query: 0"),
        (KronaConfig { decompose_factor: 0, ..KronaConfig::new() }, "decompose_factor: 0"),
        (KronaConfig::new().with_factor([5, 4]), "factor: [5, 4]"),
        (KronaConfig::new().with_factor([0, 4]), "factor: [0, 4]"),
        (pattern, "rank_pattern: query"),
    ] {
        let message = told(config);
        assert!(message.contains(key), "{key} is not in: {message}");
    }
    let told = |config: KronaBConfig| config.init(&base, 0).map(|_| ()).unwrap_err().to_string();
    assert!(told(KronaBConfig::new().with_scale(f64::NAN)).contains("scale: NaN"));
    assert!(told(KronaBConfig::new().with_factor([7, 4])).contains("factor: [7, 4]"));
    assert!(told(KronaBConfig { residual: Some(f64::INFINITY), ..KronaBConfig::new() }).contains("residual: inf"));
}
