use std::collections::BTreeMap;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::TensorData;
use peft_core::random::Noise;
use peft_core::testing::golden::named;
use peft_core::testing::tolerances::{
    FINITE_DIFFERENCE, REFERENCE, REFERENCE_TRAJECTORY, SAME_FUNCTION, STANDARD_ERRORS,
};
use peft_core::testing::{batch, conformance::loss, difference, randomized};
use peft_core::train::{Run, TrainConfig};
use peft_core::view::{tensors, trained, with_values};
use peft_core::{Adapter, Bare, Base, Batch, Method, Procedure, Slot, Trained, Tuner, Weight};
use peft_partial::{BitFitConfig, DiffPruning, DiffPruningConfig, FullConfig};
use proptest::prelude::*;

use super::{Values, assert_taken_up, bases, data, key, numbers, recorded, settings, start, train, under, with_each};

const OPEN: f32 = 20.0;
const CLOSED: f32 = -20.0;

/// Structured, at a random state where gates are between their ends and at either of them.
fn random(base: &Base, seed: u64) -> DiffPruning {
    let config = DiffPruningConfig::new(0.02).with_alpha_init(0.6);
    randomized(&config.init(base, 0).unwrap(), seed)
}

fn noisy(base: &Base, seed: u64, step: u64) -> Batch {
    batch(base).with_noise(Noise { seed, step, samples: (0..data(base).len() as u32).collect() })
}

/// The tensors of a base as the method makes them for a batch, by the names of full fine-tuning.
fn effective(pruning: &DiffPruning, base: &Base, batch: &Batch) -> Values {
    let place = |place: peft_core::Place, hooks: &dyn peft_core::Hooks| match place.slot {
        Slot::Weight => {
            let weight = hooks.weight(place.site, base.weight(place.site).clone()).dense();
            (format!("weights.{}", place.site), weight.into_data())
        }
        slot => {
            let field = if slot == Slot::Gain { "gains" } else { "biases" };
            let vector = hooks.vector(place.site, slot, base.vector(place.site, slot));
            (format!("{field}.{}", place.site), vector.into_data())
        }
    };
    pruning.open(batch, |hooks| base.shape().places().into_iter().map(|p| place(p, hooks)).collect())
}

/// z z_g of a batch, by the names of full fine-tuning: what a difference of 1 makes of a base of zeros.
fn gates(pruning: &DiffPruning, base: &Base, batch: &Batch) -> BTreeMap<String, Vec<f32>> {
    let zeros = base.shape().places().into_iter().fold(base.clone(), |base, place| match place.slot {
        Slot::Weight => {
            let zero = base.weight(place.site).dense().zeros_like();
            base.with_weight(place.site, Weight::Dense(zero))
        }
        slot => {
            let zero = base.vector(place.site, slot).zeros_like();
            base.with_vector(place.site, slot, zero)
        }
    });
    let ones = with_each(pruning, "differences", |_, _| 1.0);
    effective(&ones, &zeros, batch).into_iter().map(|(name, z)| (name, numbers(&z))).collect()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// dz/dalpha, from z alone.
fn slope(z: f32) -> f32 {
    let s = (z + 1.5) / 3.0;
    if 0.0 < z && z < 1.0 { 3.0 * s * (1.0 - s) } else { 0.0 }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]

    #[test]
    fn gates_are_hard_concrete(seed: u64, alpha in -6f32..7.0) {
        for base in bases() {
            let pruning = DiffPruningConfig::new(0.02).unstructured().init(&base, 0).unwrap();
            let pruning = with_each(&pruning, "gates", |_, _| alpha);
            let z: Vec<f32> = (0..2).flat_map(|step| gates(&pruning, &base, &noisy(&base, seed, step))).flat_map(|z| z.1).collect();
            prop_assert!(z.iter().all(|z| (0.0..=1.0).contains(z)));
            let alpha = f64::from(alpha);
            for (end, probability) in [(0.0, sigmoid(-alpha)), (1.0, sigmoid(alpha - 5f64.ln()))] {
                let share = z.iter().filter(|z| **z == end).count() as f64 / z.len() as f64;
                let error = (probability * (1.0 - probability) / z.len() as f64).sqrt();
                let bound = f64::from(STANDARD_ERRORS.0) * error;
                prop_assert!((share - probability).abs() <= bound, "{}: {} not {}", end, share, probability);
            }
        }
    }

    /// Few seeds: with others a gate may be an end exactly, where it has either slope.
    #[test]
    fn gradients_of_differences_and_gates_are_tied(seed in 0u64..3) {
        for base in bases() {
            let base = base.with_dropout(0.0);
            let pruning = random(&base, seed);
            let batch = noisy(&base, seed, 3);
            let gradients = |tuner: &DiffPruning| {
                let loss = loss(tuner.run(&base, &batch).unwrap());
                named(tuner, &GradientsParams::from_grads(loss.backward(), tuner))
            };
            let found = gradients(&pruning);
            let full = FullConfig::default().init(&base, 0).unwrap();
            let full = with_values(full, &effective(&pruning, &base, &batch)).unwrap();
            let whole = loss(full.run(&base, &batch).unwrap());
            let whole = named(&full, &GradientsParams::from_grads(whole.backward(), &full));
            let z = gates(&with_each(&pruning, "groups", |_, _| OPEN), &base, &batch);
            let group = gates(&with_each(&pruning, "gates", |_, _| OPEN), &base, &batch);
            let differences = tensors(&pruning);
            let largest = whole.values().flat_map(numbers).map(f32::abs).fold(0.0, f32::max);
            for (name, whole) in whole {
                let (z, group) = (&z[&name], group[&name][0]);
                let w = numbers(&differences[&format!("differences.{name}")]);
                let whole = numbers(&whole);
                let each = |f: &dyn Fn(usize) -> f32| (0..w.len()).map(f).collect::<Vec<f32>>();
                let sum: f64 = (0..w.len()).map(|i| f64::from(whole[i] * w[i] * z[i] * slope(group))).sum();
                for (kind, expected, terms) in [
                    ("differences", each(&|i| whole[i] * z[i] * group), 1),
                    ("gates", each(&|i| whole[i] * w[i] * group * slope(z[i])), 1),
                    ("groups", vec![sum as f32], w.len()),
                ] {
                    let found = &found[&format!("{kind}.{name}")];
                    let error = difference(found, &TensorData::new(expected, found.shape().clone()));
                    let allowed = SAME_FUNCTION.0 * largest * (terms as f32).sqrt();
                    prop_assert!(error <= allowed, "{}.{}: {} of {}", kind, name, error, largest);
                }
            }
        }
    }

    #[test]
    fn gates_of_tensors_open_and_close_them(seed: u64) {
        for base in bases() {
            let (pruning, batch) = (random(&base, seed), noisy(&base, seed, 2));
            let unstructured = DiffPruningConfig::new(0.02).unstructured().init(&base, 0).unwrap();
            let unstructured = with_values(unstructured, &tensors(&pruning)).unwrap();
            let open = effective(&with_each(&pruning, "groups", |_, _| OPEN), &base, &batch);
            prop_assert_eq!(&open, &effective(&unstructured, &base, &batch));
            let untouched = FullConfig::default().init(&base, 0).unwrap();
            for (name, own) in tensors(&untouched) {
                let closed = |gate: &str, _| if gate == format!("groups.{name}") { CLOSED } else { OPEN };
                let closed = effective(&with_each(&pruning, "groups", closed), &base, &batch);
                for (other, found) in closed {
                    prop_assert_eq!(&found, if other == name { &own } else { &open[&other] }, "{} {}", name, other);
                }
            }
            let none = with_each(&pruning, "groups", |_, _| CLOSED).valid();
            let states = none.run(&base, &batch).unwrap().states.into_data();
            prop_assert_eq!(states, Bare {}.run(&base, &batch).unwrap().states.into_data());
        }
    }

    #[test]
    fn the_penalty_is_the_expected_number_of_open_gates(seed: u64) {
        for base in bases() {
            let config = DiffPruningConfig { concrete_lower: -0.4, sparsity_pen: 0.3, ..Default::default() };
            let pruning = randomized(&config.with_alpha_init(0.5).init(&base, 0).unwrap(), seed);
            let open = |alpha: f32| sigmoid(f64::from(alpha) - (0.4f64 / 1.5).ln());
            let values = tensors(&pruning);
            let gates = values.iter().filter(|(name, _)| !name.starts_with("differences"));
            let expected: f64 = 0.3 * gates.clone().flat_map(|(_, alpha)| numbers(alpha)).map(open).sum::<f64>();
            let penalty = pruning.penalty().unwrap();
            let found = f64::from(penalty.clone().into_scalar::<f32>());
            prop_assert!((found / expected - 1.0).abs() <= f64::from(SAME_FUNCTION.0), "{} {}", found, expected);
            let gradients = named(&pruning, &GradientsParams::from_grads(penalty.backward(), &pruning));
            prop_assert_eq!(gradients.len(), gates.clone().count());
            for (name, alpha) in gates {
                let slope = |alpha: f32| (0.3 * open(alpha) * (1.0 - open(alpha))) as f32;
                let expected: Vec<f32> = numbers(alpha).into_iter().map(slope).collect();
                let expected = TensorData::new(expected, alpha.shape().clone());
                prop_assert!(difference(&gradients[name], &expected) <= SAME_FUNCTION.0, "{}", name);
            }
        }
    }

    #[test]
    fn all_pieces_of_a_batch_see_the_same_gates(seed: u64) {
        for base in bases() {
            let config = DiffPruningConfig::new(0.02).with_alpha_init(0.6);
            let tuner = random(&base, seed);
            let step = |micro_rows| {
                let mut trained = start(&config, &base);
                trained.tuner = with_values(trained.tuner, &tensors(&tuner)).unwrap();
                let settings = TrainConfig { micro_rows, dropout: Some(0.0), batch_size: 5, ..settings(seed) };
                let report = Run::new(&settings, base.clone(), trained).unwrap().step(&data(&base)).unwrap();
                (report.loss, report.grad_norm)
            };
            let ((loss, norm), (whole_loss, whole_norm)) = (step(12), step(100_000));
            let tolerance = f64::from(SAME_FUNCTION.0);
            prop_assert!((loss / whole_loss - 1.0).abs() <= tolerance, "{} {}", loss, whole_loss);
            prop_assert!((norm / whole_norm - 1.0).abs() <= tolerance, "{} {}", norm, whole_norm);
            let at = |seed, step| effective(&tuner, &base, &noisy(&base, seed, step));
            prop_assert!(at(seed, 1) == at(seed, 1) && at(seed, 1) != at(seed, 2) && at(seed, 1) != at(seed ^ 1, 1));
        }
    }

    #[test]
    fn the_largest_differences_are_left(seed: u64, share in 0.005..0.6) {
        for base in bases() {
            let config = DiffPruningConfig::new(share);
            // Every gate is between its ends: no difference is 0.
            let pruning = randomized(&config.with_alpha_init(0.8).init(&base, 0).unwrap(), seed);
            let pruning = with_each(&pruning, "g", |_, alpha| alpha.clamp(0.1, 1.5));
            let before = tensors(&DiffPruningConfig::to_saved(pruning.clone()));
            let after = tensors(&pruning.finish(&base).unwrap());
            prop_assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
            let (mut least, mut most, mut left) = (f32::INFINITY, 0f32, 0);
            for (name, before) in before {
                for (old, new) in numbers(&before).into_iter().zip(numbers(&after[&name])) {
                    if new == 0.0 {
                        most = most.max(old.abs());
                    } else {
                        prop_assert_eq!(old, new);
                        (least, left) = (least.min(old.abs()), left + 1);
                    }
                }
            }
            prop_assert_eq!(left, (share * base.shape().count() as f64) as usize);
            prop_assert!(least >= most, "{} left, {} gone", least, most);
        }
    }

    #[test]
    fn what_was_pruned_stays_pruned(seed: u64) {
        for base in bases() {
            let config = DiffPruningConfig { alpha_learning_rate: 0.1, ..DiffPruningConfig::new(0.003) };
            let first = train(settings(seed), &base, start(&config, &base));
            let before = tensors(&first.tuner);
            let second = train(settings(seed ^ 1), &base, first).tuner;
            let (moving, after) = (trained(&second), tensors(&second));
            let mut left = 0;
            for (name, before) in &before {
                for (old, new) in numbers(before).into_iter().zip(numbers(&after[name])) {
                    prop_assert_eq!(old != 0.0, old.to_bits() != new.to_bits(), "{}: {} {}", name, old, new);
                    left += usize::from(new != 0.0);
                }
                let some = numbers(before).iter().any(|w| *w != 0.0);
                prop_assert_eq!(moving.contains_key(name), some, "{}", name);
            }
            prop_assert_eq!(left, config.left(base.shape()).unwrap());
            prop_assert!(moving.len() < before.len(), "every tensor has something left");
        }
    }

    #[test]
    fn a_run_of_gates_taken_up_ends_with_the_same_bits(seed: u64) {
        assert_taken_up(&DiffPruningConfig { alpha_learning_rate: 0.1, ..DiffPruningConfig::new(0.02) }, seed);
    }

    /// A step of AdamW is the learning rate if the gradient hardly changes, as that of the penalty: for the gates the same in all steps,
    /// and no weight decay beside it, which would be of half a step here.
    #[test]
    fn gates_have_a_learning_rate_of_their_own(seed: u64) {
        for base in bases() {
            let config = DiffPruningConfig { alpha_learning_rate: 1e-3, sparsity_pen: 100.0, ..DiffPruningConfig::new(0.02) };
            let settings = TrainConfig { weight_decay: 0.1, max_grad_norm: 0.0, dropout: Some(0.0), ..settings(seed) };
            let mut run = Run::new(&settings, base.clone(), start(&config, &base)).unwrap();
            for _ in 0..3 {
                let before = tensors(&run.trained.tuner);
                let rate = run.step(&data(&base)).unwrap().learning_rate as f32;
                for (name, after) in tensors(&run.trained.tuner) {
                    let step = difference(&after, &before[&name]);
                    match name.starts_with("differences") {
                        true => prop_assert!(step <= 2.0 * rate, "{}: {} of {}", name, step, rate),
                        false => prop_assert!((step / 1e-3 - 1.0).abs() <= FINITE_DIFFERENCE.0, "{}: {}", name, step),
                    }
                }
            }
        }
    }
}

/// u is from 1e-4 to 1 - 1e-4, so that its logit is within 9.21: an alpha a little above that closes no gate, one of ln 5 less than
/// minus that opens none to the end.
#[test]
fn no_draw_is_nearer_to_an_end_than_the_reference_has_it() {
    let count = |alpha: f32, end: f32| -> usize {
        let of = |base: Base| {
            let pruning = DiffPruningConfig::new(0.02).unstructured().init(&base, 0).unwrap();
            let pruning = with_each(&pruning, "gates", |_, _| alpha);
            let z = (0..2).flat_map(|step| gates(&pruning, &base, &noisy(&base, 3, step))).flat_map(|z| z.1);
            z.filter(|z| *z == end).count()
        };
        bases().map(of).sum()
    };
    assert!(count(8.9, 0.0) > 0 && count(-7.3, 1.0) > 0);
    assert_eq!([count(9.3, 0.0), count(-7.7, 1.0)], [0, 0]);
}

#[test]
fn a_run_is_that_of_the_reference() {
    let golden = recorded("diff-pruning-run");
    let config = DiffPruningConfig {
        sparsity_pen: 3e-5,
        concrete_lower: -1.2,
        concrete_upper: 1.4,
        alpha_init: 0.6,
        ..DiffPruningConfig::new(0.015)
    };
    let settings = TrainConfig {
        weight_decay: 0.1,
        adam_epsilon: 1e-3,
        shuffle: false,
        ..TrainConfig::new(1e-2).with_batch_size(8).with_steps(10).with_seed(5)
    };
    let mut run = golden.begin(&settings, config.init(&golden.base, 0).unwrap());
    let (mut losses, mut closed) = (vec![], vec![]);
    for step in 0..10 {
        let open = with_each(&run.trained.tuner, "groups", |_, _| OPEN);
        let gates = gates(&open, &golden.base, &noisy(&golden.base, settings.seed, step));
        closed.push(gates.into_values().flatten().filter(|z| *z == 0.0).count() as f32);
        losses.push(run.step(&golden.examples).unwrap().loss as f32);
    }
    golden.compare("losses", &TensorData::new(losses, [10]), REFERENCE);
    golden.compare("closed", &TensorData::new(closed, [10]), SAME_FUNCTION);
    let Trained { tuner, head, copies } = run.trained;
    let (after, key) = (tensors(&tuner), |name: &str| key(name, &golden.base));
    for kind in ["differences", "gates", "groups"] {
        golden.compare_all(kind, &under(&after, &format!("{kind}.")), key, REFERENCE_TRAJECTORY);
    }
    let tuner = tuner.finish(&run.base).unwrap();
    golden.compare_all("left", &under(&tensors(&tuner), "differences."), key, REFERENCE_TRAJECTORY);
    golden.compare_logits("logits", &run.base, &Trained { tuner, head, copies }, REFERENCE_TRAJECTORY);
}

#[test]
fn it_starts_as_the_reference() {
    let base = bases().next().unwrap();
    for (name, values) in tensors(&DiffPruningConfig::default().init(&base, 0).unwrap()) {
        let start = if name.starts_with("differences.") { 0.0 } else { 5.0 };
        assert!(numbers(&values).into_iter().all(|x| x == start), "{name}");
    }
    let DiffPruningConfig { sparsity_pen, concrete_lower, concrete_upper, target_sparsity, .. } = Default::default();
    assert_eq!([sparsity_pen, concrete_lower, concrete_upper, target_sparsity], [1.25e-7, -1.5, 1.5, 0.005]);
}

#[test]
fn a_tuple_asks_each_for_its_rates() {
    let base = bases().next().unwrap();
    let both = (
        DiffPruningConfig::default().init(&base, 0).unwrap(),
        (BitFitConfig::new().init(&base, 0).unwrap(), DiffPruningConfig::new(0.1).init(&base, 0).unwrap()),
    );
    let of = |start: &str| {
        let names = tensors(&both);
        let name = names.keys().find(|name| name.starts_with(start)).unwrap();
        (both.rate(name, 3e-5), both.decays(name))
    };
    let (own, gate) = ((3e-5, true), (0.1, false));
    let found = ["0.differences", "0.gates", "1.0.biases", "1.1.differences", "1.1.groups"].map(of);
    assert_eq!(found, [own, gate, own, own, gate]);
}
