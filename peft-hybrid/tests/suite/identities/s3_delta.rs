use std::collections::BTreeMap;

use burn::tensor::TensorData;
use peft_core::random::Random;
use peft_core::testing::tolerances::{SAME_FUNCTION, STANDARD_ERRORS};
use peft_core::testing::{assert_close, base, device, randomized, states};
use peft_core::view::{tensors, trainable, with_values};
use peft_core::{Bare, Base, Method, Procedure};
use peft_hybrid::automatic::structure::{chosen, probabilities, shift};
use peft_hybrid::{S3Delta, S3DeltaConfig};
use proptest::prelude::*;

use super::{bases, bits};

/// Logits and numbers of some parts.
fn parts() -> impl Strategy<Value = (Vec<f64>, Vec<usize>)> {
    prop::collection::vec((-5.0..5.0f64, 1usize..4000), 2..60).prop_map(|parts| parts.into_iter().unzip())
}

fn expected(p: &[f64], counts: &[usize]) -> f64 {
    p.iter().zip(counts).map(|(p, n)| p * *n as f64).sum()
}

proptest! {
    #[test]
    fn the_shift_meets_the_budget((alpha, counts) in parts(), share in 0.01..0.99f64) {
        let all: usize = counts.iter().sum();
        let budget = ((share * all as f64) as usize).max(1);
        let found = expected(&probabilities(&alpha, &counts, budget), &counts);
        prop_assert!((found - budget as f64).abs() <= 1e-6 * budget as f64, "{} of {}", found, budget);
        if budget + 1 < all {
            prop_assert!(shift(&alpha, &counts, budget + 1) < shift(&alpha, &counts, budget));
        }
    }

    #[test]
    fn only_differences_of_logits_count((alpha, counts) in parts(), share in 0.01..0.99f64, c in -20.0..20.0f64) {
        let budget = ((share * counts.iter().sum::<usize>() as f64) as usize).max(1);
        let moved: Vec<f64> = alpha.iter().map(|a| a + c).collect();
        let (p, q) = (probabilities(&alpha, &counts, budget), probabilities(&moved, &counts, budget));
        prop_assert!(p.iter().zip(&q).all(|(p, q)| (p - q).abs() < 1e-9));
    }

    #[test]
    fn the_likeliest_parts_that_fit_are_chosen((alpha, counts) in parts(), share in 0.0..1.0f64) {
        let budget = (share * counts.iter().sum::<usize>() as f64) as usize;
        let kept = chosen(&alpha, &counts, budget);
        let sum = |places: &[usize]| places.iter().map(|i| counts[*i]).sum::<usize>();
        prop_assert!(sum(&kept) <= budget);
        // What was passed over did not fit beside the likelier ones that are there.
        for i in (0..counts.len()).filter(|i| !kept.contains(i)) {
            let likelier: Vec<usize> = kept.iter().copied().filter(|j| alpha[*j] > alpha[i] || alpha[*j] == alpha[i] && *j < i).collect();
            prop_assert!(sum(&likelier) + counts[i] > budget);
        }
    }

    #[test]
    fn a_budget_for_all_chooses_all((alpha, counts) in parts(), more in 0usize..100) {
        let budget = counts.iter().sum::<usize>() + more;
        let p = probabilities(&alpha, &counts, budget);
        prop_assert!(p.iter().all(|p| *p > 1.0 - 1e-9));
        prop_assert_eq!(chosen(&p, &counts, budget).len(), counts.len());
    }
}

/// With alphas of their own.
fn start(base: &Base, share: f64) -> S3Delta {
    let start = S3DeltaConfig::new(share).with_bottleneck(3).init(base, 1).unwrap();
    let alpha = &tensors(&start)["alpha"];
    let mut random = Random::new(3, "alphas");
    let values: Vec<f32> = (0..alpha.shape().num_elements()).map(|_| random.normal() as f32).collect();
    let length = values.len();
    with_values(start, &BTreeMap::from([("alpha".to_string(), TensorData::new(values, [length]))])).unwrap()
}

#[test]
fn a_gate_is_open_with_its_probability() {
    let base = base("roberta-tiny", &device());
    let start = start(&base, 0.1);
    let (parts, likely) = (start.structure(), start.probabilities().unwrap());
    let mut random = Random::new(5, "draws");
    let (draws, mut open) = (2000, vec![0usize; parts.len()]);
    for _ in 0..draws {
        let gates = start.clone().sample(&mut random).open().unwrap();
        open.iter_mut().zip(gates).for_each(|(open, z)| *open += usize::from(z > 0.5));
    }
    for ((p, open), part) in likely.iter().zip(open).zip(&parts) {
        let error = (p * (1.0 - p) / f64::from(draws)).sqrt();
        let found = open as f64 / f64::from(draws);
        assert!((found - p).abs() <= f64::from(STANDARD_ERRORS.0) * error + 1e-9, "{part}: {found}, {p}");
    }
}

#[test]
fn a_gate_multiplies_what_its_part_adds() {
    for base in bases() {
        let start = start(&base, 0.1);
        let (parts, gates) = (start.structure(), start.open().unwrap());
        let bias = parts.iter().position(|part| part.ends_with("value.bias")).unwrap();
        let name = format!("biases.{}", parts[bias].strip_suffix(".bias").unwrap());
        let values =
            Random::new(9, "bias").normal_tensor::<1>([tensors(&start)[&name].shape().num_elements()], 0.5, &device());
        let silent: BTreeMap<_, _> = tensors(&start)
            .into_iter()
            .filter(|(name, _)| name != "alpha")
            .map(|(name, data)| {
                let zeros = TensorData::zeros::<f32, _>(data.shape().clone());
                (name, zeros)
            })
            .collect();
        let with = |tuner: S3Delta, mut values: BTreeMap<String, TensorData>, bias: TensorData| {
            values.insert(name.clone(), bias);
            with_values(tuner, &values).unwrap()
        };
        let gated = with(start.clone(), silent, values.clone().into_data());
        let alone =
            S3DeltaConfig::new(0.1).with_bottleneck(3).with_structure([parts[bias].clone()]).init(&base, 1).unwrap();
        let alone = with(alone, BTreeMap::new(), (values * gates[bias]).into_data());
        assert_close(states(&gated, &base), states(&alone, &base), SAME_FUNCTION, "gated");
        assert_ne!(bits(&gated, &base), bits(&Bare {}, &base));
    }
}

/// Of any random state.
#[test]
fn what_is_found_is_within_the_budget() {
    for base in bases() {
        for (share, seed) in [(0.005, 1), (0.02, 2), (0.2, 3)] {
            let config = S3DeltaConfig::new(share).with_bottleneck(3);
            let found = config.clone().with_structure(randomized(&start(&base, share), seed).likeliest());
            let found = found.init(&base, 0).unwrap();
            assert!(trainable(&found) <= config.budget(base.shape()) && trainable(&found) > 0);
        }
    }
}
