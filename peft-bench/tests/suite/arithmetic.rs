//! Arithmetic on finished adapters of every method.

use std::collections::BTreeMap;

use peft_bench::registry::METHODS;
use peft_core::combine::{Combination, Majority, Prune, changed, combined};
use peft_core::testing::tolerances::{MERGED, SAME_FUNCTION};
use peft_core::testing::{base, device, randomized};
use peft_core::view::tensors;
use peft_core::{AnyMethod, AnyTuner, Base, Head, Site, Slot, Source, States, Trained};

fn source(base: &Base, method: &AnyMethod, seed: u64) -> Option<Source> {
    // What goes along untrained has one start.
    let tuner: AnyTuner = randomized(&method.init(base, 5).ok()?, seed);
    let trained = Trained::new(tuner, Head::States(States {})).unwrap();
    Some(Source { name: format!("number {seed}"), config: method.clone(), trained })
}

fn numbers(tuner: &AnyTuner) -> BTreeMap<String, Vec<f64>> {
    tensors(tuner).into_iter().map(|(name, data)| (name, data.iter().collect())).collect()
}

fn close(found: &AnyTuner, expected: &BTreeMap<String, Vec<f64>>, what: &str) {
    for (name, values) in numbers(found) {
        let far = values.iter().zip(&expected[&name]).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(far <= f64::from(SAME_FUNCTION.0), "{what}: {name} is off by {far}");
    }
}

/// The mean of copies is the copy, to the bit; a weight of 1 leaves an adapter, and what all have goes through every method.
#[test]
fn of_every_method_the_mean_of_copies_is_the_copy() {
    let base = base("roberta-tiny", &device());
    let mut without_sources = 0;
    for entry in METHODS {
        let Some(one) = source(&base, &(entry.method)(), 1) else { continue };
        without_sources += 1;
        let tuner = &one.trained.tuner;
        let mean = combined(&[one.clone(), one.clone()], &[0.5, 0.5], &Combination::linear(), &base).unwrap();
        assert_eq!(tensors(&mean), tensors(tuner), "{}", entry.name);
        let kept = Some(Prune::Magnitude(1.0));
        for how in [Combination::linear(), Combination { prune: kept, elect: Some(Majority::Frequency) }] {
            let same = combined(std::slice::from_ref(&one), &[1.0], &how, &base).unwrap();
            close(&same, &numbers(tuner), entry.name);
        }
    }
    assert_eq!(without_sources, 48, "methods that start from the base alone");
}

/// What is added up is what was changed: trained biases, and vectors that start at 1, keep their start once.
#[test]
fn sums_are_of_what_was_changed() {
    let base = base("roberta-tiny", &device());
    for name in ["bitfit", "full", "ia3", "hadamard"] {
        let method = peft_bench::registry::by_name(name).unwrap();
        let start = numbers(&method.init(&base, 0).unwrap());
        let [a, b] = [1, 2].map(|seed| source(&base, &method, seed).unwrap());
        let of = |weights: &[f64]| combined(&[a.clone(), b.clone()], weights, &Combination::linear(), &base).unwrap();
        let [x, y] = [&a, &b].map(|source| numbers(&source.trained.tuner));
        for weights in [[1.0, 1.0], [-1.0, 0.5], [0.25, 0.75]] {
            let expected = start.iter().map(|(name, start)| {
                let sum =
                    |i: usize| start[i] + weights[0] * (x[name][i] - start[i]) + weights[1] * (y[name][i] - start[i]);
                (name.clone(), (0..start.len()).map(sum).collect())
            });
            close(&of(&weights), &expected.collect(), &format!("{name} by {weights:?}"));
        }
    }
}

/// In the space of weights a sum of methods that replace the base's tensors is the sum of what they replace.
#[test]
fn sums_of_tensors_are_sums_of_changes() {
    let base = base("roberta-tiny", &device());
    for name in ["bitfit", "full"] {
        let method = peft_bench::registry::by_name(name).unwrap();
        let sources = [1, 2].map(|seed| source(&base, &method, seed).unwrap());
        let merged = sources.each_ref().map(|source| method.merged(&source.trained.tuner, &base).unwrap());
        let weights = [0.6, -1.1];
        for how in
            [Combination::linear(), Combination { prune: Some(Prune::Magnitude(0.4)), elect: Some(Majority::Total) }]
        {
            let sum = combined(&sources, &weights, &how, &base).unwrap();
            let (found, expected) = (method.merged(&sum, &base).unwrap(), changed(&base, &merged, &weights, &how));
            let site = Site::encoder(1, peft_core::Part::Query);
            let off = found.vector(site, Slot::Bias) - expected.vector(site, Slot::Bias);
            assert!(off.abs().max().into_scalar::<f32>() < MERGED.0, "{name}");
            assert!(
                (expected.vector(site, Slot::Bias) - base.vector(site, Slot::Bias)).abs().max().into_scalar::<f32>()
                    > 0.01
            );
        }
    }
}

/// By hand: of TIES what has the sign of most, its mean; of DARE what is left is scaled up; magnitudes of equal size in their order.
#[test]
fn numbers_are_pruned_elected_and_added_up() {
    let all = || vec![vec![1.0, -2.0, 0.5, 0.0], vec![3.0, 1.0, -0.25, 4.0], vec![-1.0, 1.5, -0.5, -1.0]];
    let ties = |prune, majority| Combination { prune, elect: Some(majority) }.of("x", all(), &[1.0, 2.0, 4.0]);
    assert_eq!(ties(None, Majority::Total), [3.5, 4.0, -1.25, 8.0]);
    assert_eq!(ties(None, Majority::Frequency), [3.5, 4.0, -1.25, 8.0]);
    // Of 1, -2; 3, 4; -1, 1.5 are left, and the sum of -2 and 1.5 is below 0.
    assert_eq!(ties(Some(Prune::Magnitude(0.5)), Majority::Total), [3.5, -2.0, 0.0, 8.0]);
    assert_eq!(ties(Some(Prune::Magnitude(0.5)), Majority::Frequency), [3.5, 6.0, 0.0, 8.0]);
    let how = Combination { prune: Some(Prune::Random(0.25, 7)), elect: None };
    let many = how.of("x", vec![vec![1.0; 40_000]], &[1.0]);
    assert!(many.iter().all(|x| *x == 0.0 || *x == 4.0));
    let (kept, variance) = (many.iter().filter(|x| **x > 0.0).count() as f64, 40_000f64 * 0.25 * 0.75);
    assert!(
        (kept - 10_000.0).abs() < f64::from(peft_core::testing::tolerances::STANDARD_ERRORS.0) * variance.sqrt(),
        "{kept}"
    );
    assert_ne!(how.of("y", vec![vec![1.0; 40_000]], &[1.0]), many, "each tensor has masks of its own");
}
