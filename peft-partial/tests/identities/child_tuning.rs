use std::collections::BTreeMap;

use burn::module::ParamId;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use peft_core::testing::golden::named;
use peft_core::testing::tolerances::{SAME_FUNCTION, STANDARD_ERRORS};
use peft_core::view::{Visit, tensors, trained, visit};
use peft_core::{Base, Method, Procedure, loss::targets, random::Random};
use peft_partial::{ChildMode, ChildTuning, ChildTuningConfig, FullConfig};
use proptest::prelude::*;

use crate::{Values, assert_taken_up, bases, data, numbers, settings, start, train};

/// Random gradients of all tensors.
fn gradients(child: &ChildTuning, seed: u64) -> GradientsParams {
    struct Fill(u64, GradientsParams);
    impl Visit for Fill {
        fn tensor<const D: usize>(&mut self, name: &str, id: ParamId, t: Tensor<D>) {
            self.1.register(id, Random::new(self.0, name).normal_tensor(t.dims(), 1.0, &t.device().inner()));
        }
    }
    let mut fill = Fill(seed, GradientsParams::new());
    visit(child, &mut fill);
    fill.1
}

/// What F makes of random gradients in the step that `random` is for.
fn drawn(base: &Base, p: f64, seed: u64, step: &str) -> (Values, Values) {
    let child = ChildTuningConfig::new(ChildMode::TaskFree, p).init(base, 0).unwrap();
    let mut child = child.sample(&mut Random::new(seed, step));
    let masked = child.gradients(gradients(&child, seed), 1);
    (named(&child, &gradients(&child, seed)), named(&child, &masked))
}

/// The squared gradients of the loss of each example, summed, of the tensors of the layers.
fn fisher(base: &Base) -> BTreeMap<String, Vec<f32>> {
    let trained = start(&FullConfig::default(), base);
    let mut sums: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for example in data(base) {
        let labels = [example.label.as_ref().unwrap()];
        let count = targets(labels, trained.head.ahead(base.shape())) as f32;
        let loss = trained.loss(base, &base.batch(&[&example]).unwrap(), &labels).unwrap() / count;
        let gradients = named(&trained.tuner, &GradientsParams::from_grads(loss.backward(), &trained.tuner));
        for (name, gradient) in gradients {
            let sum = sums.entry(name).or_insert_with(|| vec![0.0; gradient.num_elements()]);
            sum.iter_mut().zip(gradient.iter::<f32>()).for_each(|(sum, g)| *sum += g * g);
        }
    }
    // The tensors that belong to the stack as a whole are of part norm_final, pooler, .. of layer 0.
    let outside = ["words", "positions", "types", "norm_embedding", "pooler", "vocabulary"];
    sums.retain(|name, _| !outside.iter().any(|part| name.ends_with(&format!(".{part}"))));
    if base.shape().places().iter().any(|place| place.name == "norm.weight") {
        sums.retain(|name, _| !name.ends_with("norm_final"));
    }
    sums
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2))]

    #[test]
    fn everything_reserved_is_full_fine_tuning(seed: u64) {
        for base in bases() {
            let full = train(settings(seed), &base, start(&FullConfig::default(), &base));
            for mode in [ChildMode::TaskFree, ChildMode::TaskDriven] {
                let child = train(settings(seed), &base, start(&ChildTuningConfig::new(mode, 1.0), &base));
                let found = tensors(&child);
                for (name, expected) in tensors(&full) {
                    prop_assert_eq!(&found[&name.replace("tuner.", "tuner.full.")], &expected, "{:?} {}", mode, name);
                }
            }
        }
    }

    #[test]
    fn a_drawn_gradient_is_right_on_average(seed: u64, p in 0.15..0.85) {
        for base in bases() {
            let (gradients, masked) = drawn(&base, p, seed, "a step");
            let (mut kept, mut all) = (0, 0);
            for (name, gradient) in gradients {
                for (g, m) in numbers(&gradient).into_iter().zip(numbers(&masked[&name])) {
                    all += 1;
                    kept += usize::from(m != 0.0);
                    prop_assert!(m == 0.0 || (m * p as f32 / g - 1.0).abs() <= SAME_FUNCTION.0, "{}: {} {}", name, g, m);
                }
            }
            let error = (p * (1.0 - p) / all as f64).sqrt();
            prop_assert!((kept as f64 / all as f64 - p).abs() <= f64::from(STANDARD_ERRORS.0) * error, "{} of {}", kept, all);
        }
    }

    #[test]
    fn masks_are_drawn_anew_in_each_step_and_alike_from_one_seed(seed: u64) {
        for base in bases() {
            let masks = |seed, step| drawn(&base, 0.4, seed, step).1;
            let (first, second) = (masks(seed, "step 1"), masks(seed, "step 2"));
            prop_assert_eq!(&first, &masks(seed, "step 1"));
            let kept = |masks: &Values| masks.values().flat_map(numbers).map(|m| m != 0.0).collect::<Vec<_>>();
            let same = kept(&first).into_iter().zip(kept(&second)).filter(|(a, b)| a == b).count();
            // Independent masks agree with probability 0.4^2 + 0.6^2.
            let all = base.shape().count() as f64;
            let error = (0.52 * 0.48 / all).sqrt();
            prop_assert!((same as f64 / all - 0.52).abs() <= f64::from(STANDARD_ERRORS.0) * error, "{} of {}", same, all);
        }
    }

    #[test]
    fn a_run_taken_up_ends_with_the_same_bits(seed: u64) {
        for mode in [ChildMode::TaskFree, ChildMode::TaskDriven] {
            assert_taken_up(&ChildTuningConfig::new(mode, 0.3), seed);
        }
    }

    #[test]
    fn the_child_is_what_has_the_largest_squared_gradients(p in 0.05..0.95) {
        for base in bases() {
            let config = ChildTuningConfig::new(ChildMode::TaskDriven, p);
            let found = tensors(&train(settings(0), &base, start(&config, &base)).tuner);
            let scores = fisher(&base);
            let masks: Vec<&String> = found.keys().filter(|name| name.starts_with("masks.")).collect();
            prop_assert_eq!(masks.len(), scores.len());
            let (mut least, mut most, mut count) = (f32::INFINITY, 0f32, 0);
            for (name, scores) in &scores {
                for (mask, score) in numbers(&found[&format!("masks.{name}")]).into_iter().zip(scores) {
                    match mask {
                        1.0 => (least, count) = (least.min(*score), count + 1),
                        _ => most = most.max(*score),
                    }
                }
            }
            let all: usize = scores.values().map(Vec::len).sum();
            prop_assert_eq!(count, (p * all as f64) as usize);
            prop_assert!(least >= most * (1.0 - SAME_FUNCTION.0), "{} in the child, {} outside", least, most);
        }
    }

    /// With few numbers in the child some tensors have none.
    #[test]
    fn only_the_child_moves(seed: u64, few: bool) {
        for base in bases() {
            let config = ChildTuningConfig::new(ChildMode::TaskDriven, if few { 0.001 } else { 0.3 });
            let before = tensors(&config.init(&base, 0).unwrap());
            let after = train(settings(seed), &base, start(&config, &base)).tuner;
            let (moving, after) = (trained(&after), tensors(&after));
            prop_assert!(!few || moving.len() < before.len(), "every tensor has numbers in the child");
            for (name, before) in before {
                let mask = after.get(&name.replace("full.", "masks.")).map(numbers);
                let in_child = |i: usize| mask.as_ref().is_none_or(|mask| mask[i] == 1.0);
                let pairs = numbers(&before).into_iter().zip(numbers(&after[&name]));
                let (mut moved, mut children) = (0, 0);
                for (i, (old, new)) in pairs.enumerate() {
                    prop_assert!(in_child(i) || old.to_bits() == new.to_bits(), "{} of {}: {} {}", i, name, old, new);
                    children += usize::from(in_child(i));
                    moved += usize::from(old.to_bits() != new.to_bits());
                }
                // Not quite all: behind a ReLU that lets nothing through in these steps there is no gradient.
                prop_assert!(2 * moved >= children, "{} of {} moved of {}", moved, children, name);
                prop_assert_eq!(moving.contains_key(&name), mask.is_none_or(|mask| mask.contains(&1.0)), "{}", name);
            }
        }
    }

    /// An estimate on some of the examples chooses others.
    #[test]
    fn fisher_samples_limit_the_examples(samples in 1usize..4) {
        for base in bases() {
            let config = ChildTuningConfig::new(ChildMode::TaskDriven, 0.3);
            let masks = |config: &ChildTuningConfig| {
                let trained = train(settings(0), &base, start(config, &base));
                tensors(&trained.tuner).into_iter().filter(|(name, _)| name.starts_with("masks")).collect::<Values>()
            };
            prop_assert_ne!(masks(&config.clone().with_fisher_samples(samples)), masks(&config));
            prop_assert_eq!(masks(&config.clone().with_fisher_samples(1000)), masks(&config));
        }
    }
}
