use std::collections::BTreeMap;

use burn::tensor::TensorData;
use peft_core::testing::tolerances::{REFERENCE, REFERENCE_TRAJECTORY, SAME_FUNCTION};
use peft_core::train::{Run, TrainConfig};
use peft_core::view::tensors;
use peft_core::{Base, Method};
use peft_partial::{FullConfig, LtSft, LtSftConfig};
use proptest::prelude::*;

use super::{
    Values, assert_largest, bases, data, dense, key, masks, numbers, recorded, settings, start, train, under, whole,
};

fn mask(tuner: &LtSft, base: &Base) -> BTreeMap<String, Vec<bool>> {
    masks(&under(&tensors(tuner), "update."), &base.shape().places())
}

/// The run, without its end, whose first phase has four of eight steps.
fn run(config: &LtSftConfig, base: &Base, seed: u64) -> Run<LtSft> {
    use peft_core::{Procedure, train::Probe};
    let settings = settings(seed).with_steps(8);
    let trained = start(config, base);
    let examples = data(base);
    let tuner = trained.tuner.prepare(base, Probe::new(&trained.head, &examples).with_run(&settings)).unwrap();
    let trained = peft_core::Trained::new(tuner, trained.head).unwrap();
    Run::new(&settings, base.clone(), trained).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2))]

    #[test]
    fn the_mask_is_what_has_moved_furthest(seed: u64, share in 0.01..0.6) {
        for base in bases() {
            let mut run = run(&LtSftConfig::new(share), &base, seed);
            for _ in 0..4 {
                run.step(&data(&base)).unwrap();
            }
            // The first phase is full fine-tuning of four steps.
            let full = train(settings(seed).with_steps(4), &base, start(&FullConfig::default(), &base));
            let (before, after) = (tensors(&FullConfig::default().init(&base, 0).unwrap()), whole::<FullConfig>(&full.tuner, &base));
            prop_assert!(whole::<LtSftConfig>(&run.trained.tuner, &base) == after);
            let moved = after.iter().map(|(name, after)| {
                let pairs = numbers(after).into_iter().zip(numbers(&before[name]));
                (name.clone(), pairs.map(|(after, before)| (after - before).abs()).collect())
            });
            run.step(&data(&base)).unwrap();
            let count = (share * base.shape().count() as f64) as usize;
            assert_largest(&mask(&run.trained.tuner, &base), &moved.collect(), count);
        }
    }

    /// A step of AdamW is at most about the learning rate, beside weight decay.
    #[test]
    fn the_second_phase_begins_from_the_base(seed: u64) {
        for base in bases() {
            let mut run = run(&LtSftConfig::new(0.1), &base, seed);
            let before = tensors(&FullConfig::default().init(&base, 0).unwrap());
            for _ in 0..4 {
                run.step(&data(&base)).unwrap();
            }
            let rate = run.step(&data(&base)).unwrap().learning_rate as f32;
            let (mask, after) = (mask(&run.trained.tuner, &base), whole::<LtSftConfig>(&run.trained.tuner, &base));
            let mut moved = 0;
            for (name, before) in before {
                for ((old, new), moves) in numbers(&before).into_iter().zip(numbers(&after[&name])).zip(&mask[&name]) {
                    let allowed = if *moves { rate * (1.0 + SAME_FUNCTION.0 + 0.3 * old.abs()) + SAME_FUNCTION.0 } else { 0.0 };
                    prop_assert!((new - old).abs() <= allowed, "{}: {} {}", name, old, new);
                    moved += usize::from(new != old);
                }
            }
            prop_assert!(moved > 0);
        }
    }
}

#[test]
fn a_run_of_lt_sft_is_that_of_the_reference() {
    let golden = recorded("lt-sft-run");
    let settings = TrainConfig {
        weight_decay: 0.1,
        max_grad_norm: 0.5,
        adam_epsilon: 1e-3,
        shuffle: false,
        ..TrainConfig::new(1e-2).with_batch_size(8).with_steps(10).with_seed(3)
    };
    let config = LtSftConfig::new(0.02).with_full_share(0.4);
    let mut run = golden.begin(&settings, config.init(&golden.base, 0).unwrap());
    let losses = (0..10).map(|_| run.step(&golden.examples).unwrap().loss as f32).collect::<Vec<_>>();
    golden.compare("losses", &TensorData::new(losses, [10]), REFERENCE);
    let key_of = |name: &str| key(name, &golden.base);
    golden.compare_all("mask", &dense(mask(&run.trained.tuner, &golden.base), &golden.base), key_of, SAME_FUNCTION);
    let head = under(&tensors(&run.trained), "head.");
    let head = head.into_iter().map(|(name, data)| (format!("classifier.{name}"), data));
    let all: Values = whole::<LtSftConfig>(&run.trained.tuner, &golden.base).into_iter().chain(head).collect();
    let key = |name: &str| match name.strip_prefix("classifier.") {
        Some(name) => golden.head_key(name),
        None => key_of(name),
    };
    golden.compare_all("final", &all, key, REFERENCE_TRAJECTORY);
    golden.compare_logits("logits", &run.base, &run.trained, REFERENCE_TRAJECTORY);
}
