use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use peft_additive::{AdapterFusion, AdapterFusionConfig, Sequential, SequentialConfig};
use peft_core::testing::golden::Case;
use peft_core::testing::tolerances::{REFERENCE, SAME_FUNCTION};
use peft_core::testing::{assert_close, base, batch, device, difference, examples, fixtures::SHAPES, randomized};
use peft_core::train::{Run, TrainConfig};
use peft_core::view::{tensors, with_values};
use peft_core::{
    Adapter, AnyTuner, Base, Delta, Head, Method, Part, Procedure, Sequence, Source, Trained, random::Random,
};
use proptest::prelude::*;

use super::bottleneck::values;
use super::run;

fn bases() -> Vec<Base> {
    SHAPES.iter().map(|shape| base(shape, &device())).collect()
}

fn config() -> SequentialConfig {
    SequentialConfig::pfeiffer(5)
}

fn adapter(base: &Base, seed: u64) -> Sequential {
    randomized(&config().init(base, seed).unwrap(), seed)
}

/// At its start.
fn fused(base: &Base, adapters: &[Sequential]) -> AdapterFusion {
    let source = |adapter: &Sequential| {
        let trained = Trained::new(AnyTuner::new(adapter.clone()), Head::classifier(base, 2, 3)).unwrap();
        Source { name: "source".into(), config: config().into(), trained }
    };
    let sources: Vec<Source> = adapters.iter().map(source).collect();
    AdapterFusionConfig::default().init_from(base, 3, &sources).unwrap()
}

/// With values that leave what is added as it is.
fn with_plain_values(fusion: &AdapterFusion) -> AdapterFusion {
    let mut values = tensors(fusion);
    for (_, data) in values.iter_mut().filter(|(name, _)| name.starts_with("value.")) {
        let eye = (0..24 * 24).map(|i| f32::from(u8::from(i / 24 == i % 24))).collect::<Vec<_>>();
        *data = TensorData::new(eye, [24, 24]);
    }
    with_values(fusion.clone(), &values).unwrap()
}

#[test]
fn equals_adapterhubs_fusion() {
    for (case, base) in [("adapter-fusion", "roberta-classify"), ("adapter-fusion-bert", "bert-classify")] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case);
        let case = Case::open(dir, base);
        case.check_logits::<AdapterFusionConfig>();
        let (config, trained) = case.load::<AdapterFusionConfig>();
        let penalty = trained.tuner.penalty().unwrap().into_data();
        assert!(difference(&penalty, &case.expected("penalty")) <= REFERENCE.0);
        case.check_run(trained, |name| case.key(&config, name), |_, trained| trained);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    /// Whatever queries and keys are.
    #[test]
    fn adapters_alike_are_one(seed: u64, copies in 1..4usize) {
        for base in bases() {
            let (one, batch) = (adapter(&base, seed), batch(&base));
            let fusion = randomized(&fused(&base, &vec![one.clone(); copies]), seed);
            let alike = run(&with_plain_values(&fusion), &base, &batch);
            assert_close(alike, run(&one, &base, &batch), SAME_FUNCTION, "one");
            prop_assert_ne!(run(&fusion, &base, &batch).into_data(), run(&one, &base, &batch).into_data());
        }
    }

    #[test]
    fn without_a_query_adapters_are_averaged(seed: u64) {
        for base in bases() {
            let adapters: Vec<Sequential> = (0..3).map(|i| adapter(&base, seed ^ i).valid()).collect();
            let mut values = tensors(&randomized(&fused(&base, &adapters), seed));
            for (_, data) in values.iter_mut().filter(|(name, _)| name.starts_with("query.")) {
                *data = TensorData::zeros::<f32, _>(data.shape().clone());
            }
            let fusion = with_plain_values(&with_values(fused(&base, &adapters), &values).unwrap()).valid();
            let batch = batch(&base);
            let frame = base.frame(&batch, &());
            let draw = |name| Random::new(seed, name).normal_tensor([2, 5, 24], 1.0, base.device());
            let (x, u): (Tensor<3>, Tensor<3>) = (draw("x"), draw("u"));
            for site in base.shape().sites(Part::FeedForward) {
                let input = Sequence { hidden: x.clone(), mask: Default::default(), prompt: 0, offset: 0, past: 0 };
                let found = fusion.open(&batch, |hooks| hooks.sublayer(&frame, site, input, &|_| u.clone()));
                let added = adapters.iter().map(|one| one.to_sublayer(&frame, site, &x, &u).unwrap().delta);
                let mean = added.reduce(|a, b| a + b).unwrap() / 3.0;
                assert_close(found, u.clone() + mean, SAME_FUNCTION, &format!("{site}"));
            }
        }
    }

    /// With scores of order 1. Where the stream is not normalized (T5, LLaMA) queries as they are drawn elsewhere give scores of hundreds, whose
    /// rounding alone, 1e-5 in the exponent, moves a softmax that is near a tie by more than the budget.
    #[test]
    fn the_order_of_the_adapters_does_not_matter(seed: u64) {
        for base in bases() {
            let adapters: Vec<Sequential> = (0..3).map(|i| adapter(&base, seed ^ i)).collect();
            let turned = [adapters[2].clone(), adapters[0].clone(), adapters[1].clone()];
            let own = tensors(&randomized(&fused(&base, &adapters), seed));
            let mut maps: BTreeMap<_, _> = own.into_iter().filter(|(name, _)| !name.starts_with("adapters.")).collect();
            for (_, data) in maps.iter_mut().filter(|(name, _)| name.starts_with("query.")) {
                *data = TensorData::new(data.iter::<f32>().map(|x| 0.01 * x).collect::<Vec<_>>(), data.shape().clone());
            }
            let [a, b] = [&adapters[..], &turned].map(|all| with_values(fused(&base, all), &maps).unwrap());
            let batch = batch(&base);
            assert_close(run(&a, &base, &batch), run(&b, &base, &batch), SAME_FUNCTION, "turned");
        }
    }
}

#[test]
fn fusion_starts_as_the_reference() {
    let base = base("bert-tiny", &device());
    let fusion = fused(&base, &[adapter(&base, 1)]);
    for (name, data) in tensors(&fusion).into_iter().filter(|(name, _)| !name.starts_with("adapters.")) {
        let numbers = values(&data);
        let near = |x: f64, expected: f64| (x - expected).abs() <= f64::from(f32::EPSILON);
        let spread = (numbers.iter().map(|x| x * x).sum::<f64>() / numbers.len() as f64).sqrt();
        let held = match name.split('.').next().unwrap() {
            "value" => numbers.iter().enumerate().all(|(i, x)| near(*x, if i / 24 == i % 24 { 1.0 } else { 1e-6 })),
            _ if name.ends_with("bias") => numbers.iter().all(|x| *x == 0.0),
            _ => (0.018..0.022).contains(&spread),
        };
        assert!(held, "{name}");
    }
    let moved = randomized(&fusion, 5);
    let distance = |(name, data): (String, TensorData)| {
        let from = |i: usize| f64::from(u8::from(i / 24 == i % 24));
        let squares = values(&data).into_iter().enumerate().map(|(i, x)| (x - from(i)).powi(2)).sum::<f64>();
        if name.starts_with("value.") { 0.01 * squares } else { 0.0 }
    };
    let expected: f64 = tensors(&moved).into_iter().map(distance).sum();
    let expected = Tensor::<1>::from_data([expected as f32], &device());
    assert_close(moved.valid().penalty().unwrap(), expected, SAME_FUNCTION, "penalty");
}

#[test]
fn fused_adapters_stay_as_they_are() {
    let base = base("roberta-tiny", &device());
    let start = fused(&base, &[adapter(&base, 1), adapter(&base, 2)]);
    assert_eq!(AdapterFusionConfig::default().learned(&start, base.shape()).num_adapters, 2);
    let settings = TrainConfig { weight_decay: 0.1, ..TrainConfig::new(1e-2).with_steps(2) };
    let trained = Trained::new(start.clone(), Head::classifier(&base, 2, 3)).unwrap();
    let mut steps = Run::new(&settings, base.clone(), trained).unwrap();
    steps.step(&examples(&base)).unwrap();
    let before = tensors(&start);
    for (name, data) in tensors(&steps.trained.tuner) {
        assert_eq!(data == before[&name], name.starts_with("adapters."), "{name}");
    }
}
