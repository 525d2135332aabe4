use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Tensor, TensorData};
use peft_additive::{Mera, MeraConfig, Merging, Sequential, SequentialConfig};
use peft_core::testing::golden::{Case, examples as golden_examples};
use peft_core::testing::tolerances::{REFERENCE, SAME_FUNCTION};
use peft_core::testing::{assert_close, base, batch, device, difference, examples, fixtures::SHAPES, randomized};
use peft_core::train::Probe;
use peft_core::view::{tensors, with_values};
use peft_core::{Base, Example, Head, Method, Procedure};
use proptest::prelude::*;

use super::bottleneck::values;
use super::{finished, pick, run, sources};

const WAYS: [Merging; 4] = [Merging::Sum, Merging::Average, Merging::Weights, Merging::Activations];

fn bases() -> Vec<Base> {
    SHAPES.iter().map(|shape| base(shape, &device())).collect()
}

fn config() -> SequentialConfig {
    SequentialConfig::houlsby(5)
}

fn adapter(base: &Base, seed: u64) -> Sequential {
    randomized(&config().init(base, seed).unwrap(), seed)
}

fn started(config: &MeraConfig, base: &Base, adapters: &[Sequential]) -> Mera {
    config.init_from(base, 3, &sources(&self::config(), &Head::classifier(base, 2, 3), adapters)).unwrap()
}

/// As a run begins.
fn merged(config: &MeraConfig, base: &Base, adapters: &[Sequential]) -> Sequential {
    let (head, data) = (Head::classifier(base, 2, 3), examples(base));
    let mera = started(config, base, adapters).prepare(base, Probe::new(&head, &data)).unwrap();
    assert!(!tensors(&mera).keys().any(|name| name.starts_with("adapters.")));
    mera.adapter().clone()
}

/// The same function with its units in another order.
fn turned(adapter: &Sequential, order: &[usize; 5]) -> Sequential {
    let of = |(name, data): (String, TensorData)| {
        let device = device();
        let matrix = || Tensor::<2>::from_data(data.clone(), &device);
        let data = match name.rsplit_once('.').unwrap() {
            (map, "weight") if map.ends_with("down") => pick(matrix(), 1, order).into_data(),
            (map, "weight") if map.ends_with("up") => pick(matrix(), 0, order).into_data(),
            (map, "bias") if map.ends_with("down") => pick(Tensor::<1>::from_data(data, &device), 0, order).into_data(),
            _ => data,
        };
        (name, data)
    };
    with_values(adapter.clone(), &tensors(adapter).into_iter().map(of).collect()).unwrap()
}

/// What each way makes of the same adapters, and the steps that follow one of them.
#[test]
fn equals_the_derivation_of_mera() {
    for (case, base) in [("mera", "roberta-classify"), ("mera-bert", "bert-classify")] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case);
        let case = Case::open(dir.clone(), base);
        let sources = finished(&case, &dir);
        let data: Vec<Example> = golden_examples(&dir.join("inputs.safetensors"));
        for (way, config) in [
            ("sum", MeraConfig::new(Merging::Sum)),
            ("weights", MeraConfig::new(Merging::Weights)),
            ("sinkhorn", MeraConfig::new(Merging::Weights).with_sinkhorn(0.1)),
            ("activations", MeraConfig::new(Merging::Activations)),
        ] {
            let start = config.init_from(&case.base, 0, &sources).unwrap();
            let made = start.prepare(&case.base, Probe::new(&sources[0].trained.head, &data)).unwrap();
            let config = config.learned(&made, case.base.shape());
            let found = case.check_tensors(way, tensors(&made), &|name| case.key(&config, name), REFERENCE);
            assert_eq!(found, tensors(&made).len(), "{way}");
        }
        case.check_method::<MeraConfig>();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5))]

    #[test]
    fn one_adapter_merges_to_itself(seed: u64, copies in 1..4usize) {
        for base in bases() {
            let one = adapter(&base, seed);
            for way in WAYS.into_iter().filter(|way| copies == 1 || *way != Merging::Sum) {
                let found = merged(&MeraConfig::new(way), &base, &vec![one.clone(); copies]);
                prop_assert_eq!(tensors(&found), tensors(&one), "{:?}", way);
            }
        }
    }

    #[test]
    fn units_in_another_order_align(seed: u64, turns in 1..5usize) {
        let mut order = [0, 1, 2, 3, 4];
        order.rotate_left(turns);
        order.swap(0, 1);
        for base in bases() {
            let (one, batch) = (adapter(&base, seed), batch(&base));
            let other = turned(&one, &order);
            let expected = run(&one, &base, &batch);
            assert_close(run(&other, &base, &batch), expected.clone(), SAME_FUNCTION, "turned");
            let both = [one.clone(), other];
            for way in [Merging::Weights, Merging::Activations] {
                let found = merged(&MeraConfig::new(way), &base, &both);
                assert_close(run(&found, &base, &batch), expected.clone(), SAME_FUNCTION, &format!("{way:?}"));
            }
            for blurred in [MeraConfig::new(Merging::Average), MeraConfig::new(Merging::Weights).with_sinkhorn(10.0)] {
                let found = run(&merged(&blurred, &base, &both), &base, &batch);
                prop_assert!(difference(&found.into_data(), &expected.to_data()) > REFERENCE.0);
            }
        }
    }

    #[test]
    fn a_sum_is_n_averages(seed: u64) {
        for base in bases() {
            let all: Vec<Sequential> = (0..3).map(|i| adapter(&base, seed ^ i)).collect();
            let [sum, average] =
                [Merging::Sum, Merging::Average].map(|way| merged(&MeraConfig::new(way), &base, &all));
            let means = tensors(&average);
            for (name, data) in tensors(&sum) {
                let times = if name.contains("norm") { 1.0 } else { 3.0 };
                let mean = values(&means[&name]).into_iter().map(|x| times * x);
                let close = |(a, b): (f64, f64)| (a - b).abs() <= f64::from(SAME_FUNCTION.0);
                prop_assert!(values(&data).into_iter().zip(mean).all(close), "{}", name);
            }
            let batch = batch(&base);
            let bare = run(&peft_core::Bare {}, &base, &batch);
            let [sum, average] = [sum, average].map(|one| run(&one, &base, &batch) - bare.clone());
            prop_assert!(difference(&sum.into_data(), &(average * 3.0).into_data()) > REFERENCE.0);
        }
    }

    /// Which of two is the first decides the order of the units alone.
    #[test]
    fn of_two_either_is_the_first(seed: u64) {
        for base in bases() {
            let (one, other, batch) = (adapter(&base, seed), adapter(&base, !seed), batch(&base));
            for way in [Merging::Weights, Merging::Activations] {
                let [a, b] = [[one.clone(), other.clone()], [other.clone(), one.clone()]]
                    .map(|all| merged(&MeraConfig::new(way), &base, &all));
                assert_close(run(&a, &base, &batch), run(&b, &base, &batch), SAME_FUNCTION, &format!("{way:?}"));
            }
        }
    }
}

/// Until a run begins those that are aligned by activations are their average, and their files hold one adapter.
#[test]
fn activations_wait_for_a_run() {
    let base = base("bert-tiny", &device());
    let all = [adapter(&base, 1), adapter(&base, 2)];
    let start = started(&MeraConfig::new(Merging::Activations), &base, &all);
    let average = started(&MeraConfig::new(Merging::Average), &base, &all);
    assert_eq!(tensors(start.adapter()), tensors(average.adapter()));
    let saved: BTreeMap<_, _> = tensors(&MeraConfig::to_saved(start));
    assert_eq!(saved, tensors(&average));
}
