use burn::tensor::TensorData;
use peft_core::testing::tolerances::{FINITE_DIFFERENCE, REFERENCE, REFERENCE_TRAJECTORY, SAME_FUNCTION};
use peft_core::testing::{device, fixtures::ENCODERS};
use peft_core::train::{Probe, TrainConfig};
use peft_core::view::tensors;
use peft_core::{Base, Method, Procedure, testing};
use peft_partial::bias_update::pruned_bitfit::{Numbers, Unit, Vectors};
use peft_partial::{FullConfig, PrunedBitFit, PrunedBitFitConfig, SBitFitConfig, UBitFitConfig};
use proptest::prelude::*;

use super::{
    Values, assert_taken_up_on, data, key, numbers, recorded, settings, start, train, under, whole, with_each,
};

fn bases() -> impl Iterator<Item = Base> {
    ENCODERS.into_iter().map(|shape| testing::base(shape, &device()))
}

fn masks(tuner: &PrunedBitFit) -> Values {
    under(&tensors(tuner), "masks.")
}

fn left(tuner: &PrunedBitFit) -> usize {
    masks(tuner).values().flat_map(numbers).filter(|m| *m != 0.0).count()
}

/// Asserts that after a run what is pruned has the base's bits and the rest has not.
fn assert_pruned<U: Unit>(config: PrunedBitFitConfig<U>, seed: u64) {
    for base in bases() {
        let before = tensors(&FullConfig::default().init(&base, 0).unwrap());
        let tuner = train(settings(seed).with_steps(9), &base, start(&config, &base)).tuner;
        let (masks, after) = (masks(&tuner), whole::<PrunedBitFitConfig<U>>(&tuner, &base));
        let all = config.count(base.shape()).unwrap();
        let budget = (config.keep_ratio * all as f64) as usize;
        match U::WHOLE {
            true => assert!(left(&tuner) <= budget && left(&tuner) > 0),
            false => assert_eq!(left(&tuner), budget),
        }
        let mut moved = 0;
        for (name, before) in before {
            let mask = name.strip_prefix("biases.").map(|site| numbers(&masks[site]));
            assert!(!U::WHOLE || mask.as_ref().is_none_or(|mask| mask.iter().all(|m| *m == mask[0])), "{name}");
            for (i, (old, new)) in numbers(&before).into_iter().zip(numbers(&after[&name])).enumerate() {
                let moves = mask.as_ref().is_some_and(|mask| mask[i] == 1.0);
                assert!(moves || old.to_bits() == new.to_bits(), "{name}: {old} {new}");
                moved += usize::from(old != new);
            }
        }
        assert!(2 * moved >= left(&tuner), "{moved} of {} moved", left(&tuner));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2))]

    #[test]
    fn what_is_pruned_is_the_base_again(seed: u64) {
        assert_pruned(UBitFitConfig::new(0.3), seed);
        assert_pruned(UBitFitConfig::new(0.3).with_rounds(2), seed);
        assert_pruned(SBitFitConfig::new(0.3), seed);
    }

    #[test]
    fn all_biases_are_kept_with_the_whole_budget(seed: u64) {
        for base in bases() {
            let tuner = train(settings(seed), &base, start(&UBitFitConfig::new(1.0), &base)).tuner;
            prop_assert!(masks(&tuner).values().flat_map(numbers).all(|m| m == 1.0));
        }
    }

    #[test]
    fn rounds_are_nested(seed: u64) {
        for base in bases() {
            let config = UBitFitConfig::new(0.2).with_rounds(2);
            let mut tuner = with_each(&config.init(&base, 0).unwrap(), "updates", |_, _| 0.01);
            let (head, examples) = (start(&config, &base).head, data(&base));
            let settings = settings(seed);
            let mut before = masks(&tuner);
            let all = config.count(base.shape()).unwrap() as f64;
            for (phase, share) in [(1, 0.2f64.sqrt()), (2, 0.2)] {
                tuner = tuner.prepare(&base, Probe::new(&head, &examples).with_run(&settings).with_phase(phase)).unwrap();
                prop_assert_eq!(left(&tuner), (share * all) as usize);
                for (name, mask) in masks(&tuner) {
                    prop_assert!(numbers(&before[&name]).into_iter().zip(numbers(&mask)).all(|(old, new)| new <= old));
                }
                let zero = under(&tensors(&tuner), "updates.").values().flat_map(numbers).all(|d| d == 0.0);
                prop_assert_eq!(zero, phase == 2);
                before = masks(&tuner);
            }
        }
    }

    #[test]
    fn a_pruned_run_taken_up_ends_with_the_same_bits(seed: u64) {
        assert_taken_up_on(bases(), &UBitFitConfig::new(0.3), seed);
        assert_taken_up_on(bases(), &SBitFitConfig::new(0.3).with_rounds(2), seed);
    }

    /// The loss without an update less that with it, along that update alone, for small updates.
    #[test]
    fn scores_are_the_first_order_change_of_the_loss(seed: u64) {
        for base in bases() {
            let config = UBitFitConfig::new(0.5);
            let small = |name: &str, _| 1e-3 * if name.len().is_multiple_of(2) { 1.0 } else { -1.0 };
            let tuner = with_each(&config.init(&base, 0).unwrap(), "updates", small);
            let (head, examples) = (start(&config, &base).head, data(&base));
            let settings = TrainConfig { batch_size: examples.len(), ..settings(seed) };
            let chosen = tuner.clone().prepare(&base, Probe::new(&head, &examples).with_run(&settings).with_phase(1)).unwrap();
            let loss = |tuner: PrunedBitFit| {
                let trained = peft_core::Trained::new(tuner, head.clone()).unwrap();
                let labels: Vec<_> = examples.iter().map(|example| example.label.as_ref().unwrap()).collect();
                let batch = base.batch(&examples.iter().collect::<Vec<_>>()).unwrap();
                let loss = trained.loss(&base, &batch, &labels).unwrap() / examples.len() as f32;
                f64::from(loss.into_scalar::<f32>())
            };
            let with = loss(tuner.clone());
            // What is kept would raise the loss most if it went: together all that is kept more than all that is not.
            let without = |kept: f32| {
                let masks = masks(&chosen);
                let place = std::cell::RefCell::new(std::collections::BTreeMap::<String, usize>::new());
                loss(with_each(&tuner, "updates", |name, d| {
                    let site = name.strip_prefix("updates.").unwrap().to_string();
                    let mut places = place.borrow_mut();
                    let i = places.entry(site.clone()).or_default();
                    *i += 1;
                    if numbers(&masks[&site])[*i - 1] == kept { 0.0 } else { d }
                })) - with
            };
            let (gone, stay) = (without(1.0), without(0.0));
            prop_assert!(gone > stay && gone > 0.0, "{} {}", gone, stay);
            // In all, the loss changes as if it were linear.
            let all = loss(with_each(&tuner, "updates", |_, _| 0.0)) - with;
            let size = gone.abs().max(stay.abs());
            prop_assert!((gone + stay - all).abs() <= 5.0 * f64::from(FINITE_DIFFERENCE.0) * size, "{} {} {}", gone, stay, all);
        }
    }
}

#[test]
fn pruning_before_training_is_an_error() {
    for base in bases() {
        let (head, examples) = (start(&UBitFitConfig::default(), &base).head, data(&base));
        let tuner = UBitFitConfig::default().init(&base, 0).unwrap();
        let message = tuner.prepare(&base, Probe::new(&head, &examples).with_phase(1)).unwrap_err().to_string();
        assert!(message.contains("0 for every bias") && message.contains("first phase"), "{message}");
    }
}

fn check_run<U: Unit>(case: &str) {
    let golden = recorded(case);
    let settings = TrainConfig {
        weight_decay: 0.1,
        max_grad_norm: 0.5,
        adam_epsilon: 1e-3,
        shuffle: false,
        ..TrainConfig::new(1e-2).with_batch_size(8).with_steps(10).with_seed(3)
    };
    let config = PrunedBitFitConfig::<U>::new(0.3);
    let mut run = golden.begin(&settings, config.init(&golden.base, 0).unwrap());
    let losses = (0..10).map(|_| run.step(&golden.examples).unwrap().loss as f32).collect::<Vec<_>>();
    golden.compare("losses", &TensorData::new(losses, [10]), REFERENCE);
    let of = |field: &str| under(&tensors(&run.trained.tuner), field);
    let key = |site: &str| key(&format!("biases.{site}"), &golden.base);
    golden.compare_all("mask", &of("masks."), key, SAME_FUNCTION);
    golden.compare_all("updates", &of("updates."), key, REFERENCE_TRAJECTORY);
    golden.compare_logits("logits", &run.base, &run.trained, REFERENCE_TRAJECTORY);
}

#[test]
fn a_run_of_pruning_is_that_of_the_equations() {
    check_run::<Numbers>("u-bitfit-run");
    check_run::<Vectors>("s-bitfit-run");
}
