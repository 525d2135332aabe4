use std::path::Path;

use burn::optim::GradientsParams;
use burn::tensor::TensorData;
use peft_core::io::peft::{Labels, load, save};
use peft_core::load::Checkpoint;
use peft_core::testing::golden::named;
use peft_core::testing::tolerances::{
    FINITE_DIFFERENCE, REFERENCE, REFERENCE_TRAJECTORY, SAME_GRADIENT, STANDARD_ERRORS,
};
use peft_core::testing::{batch, conformance::loss, difference, states};
use peft_core::train::{Run, TrainConfig};
use peft_core::view::{tensors, trainable, with_values};
use peft_core::{Bare, Base, Method, Part, Sites, Trained, Tuner, split_name};
use peft_partial::{FullConfig, ThresholdMask, ThresholdMaskConfig};
use proptest::prelude::*;

use super::{
    Values, assert_taken_up, bases, data, key, numbers, recorded, settings, start, train, under, whole, with_each,
};

/// In a third of the masks zeros.
fn config() -> ThresholdMaskConfig {
    ThresholdMaskConfig::new(0.3).with_sites(Part::Query | Part::Down).with_mask_rate(3.0)
}

fn init(base: &Base, seed: u64) -> ThresholdMask {
    config().init(base, seed).unwrap()
}

/// The masks of a method's scores, by the names of full fine-tuning.
fn masks(tuner: &ThresholdMask) -> Values {
    let saved = tensors(&ThresholdMaskConfig::to_saved(tuner.clone()));
    saved.into_iter().map(|(name, mask)| (name.replace("scores.", "weights."), mask)).collect()
}

/// The base's tensors times the masks, by hand.
fn by_hand(base: &Base, masks: &Values) -> Values {
    let mut all = tensors(&FullConfig::default().init(base, 0).unwrap());
    for (name, mask) in masks {
        let weights = &all[name];
        let masked: Vec<f32> = weights.iter::<f32>().zip(mask.iter::<f32>()).map(|(w, m)| w * m).collect();
        all.insert(name.clone(), TensorData::new(masked, weights.shape().clone()));
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]

    #[test]
    fn merging_masks_the_chosen_matrices_and_nothing_else(seed: u64) {
        for base in bases() {
            let tuner = init(&base, seed);
            let (found, masks) = (whole::<ThresholdMaskConfig>(&tuner, &base), masks(&tuner));
            let (scores, threshold) = (tensors(&tuner), 1e-2);
            for (name, mask) in &masks {
                let expected = numbers(&scores[&name.replace("weights.", "scores.")]).into_iter().map(|s| f32::from(s > threshold));
                prop_assert_eq!(numbers(mask), expected.collect::<Vec<f32>>(), "{}", name);
            }
            prop_assert!(found == by_hand(&base, &masks));
            let merged = base.merged(&tuner.clone());
            prop_assert_eq!(states(&Bare {}, &merged).into_data(), states(&tuner, &base).into_data());
        }
    }

    #[test]
    fn masks_of_ones_are_the_base(seed: u64) {
        for base in bases() {
            let tuner = with_each(&init(&base, seed), "scores", |_, score| score.abs() + 0.011);
            let bare = states(&Bare {}, &base).into_data();
            prop_assert_eq!(&states(&tuner, &base).into_data(), &bare);
            let without = with_each(&tuner, "scores", |name, score| if name.ends_with(".1.query") { -score } else { score });
            prop_assert_ne!(&states(&without, &base).into_data(), &bare);
        }
    }

    #[test]
    fn scores_get_the_gradient_of_the_masked_matrix(seed: u64) {
        for base in bases() {
            let (tuner, batch) = (init(&base, seed), batch(&base));
            let gradients = named(&tuner, &GradientsParams::from_grads(loss(tuner.run(&base, &batch).unwrap()).backward(), &tuner));
            let full = FullConfig::default().init(&base, 0).unwrap();
            let weights = tensors(&full);
            let full = with_values(full, &by_hand(&base, &masks(&tuner))).unwrap();
            let whole = named(&full, &GradientsParams::from_grads(loss(full.run(&base, &batch).unwrap()).backward(), &full));
            for (name, found) in gradients {
                let name = name.replace("scores.", "weights.");
                let expected: Vec<f32> = numbers(&whole[&name]).into_iter().zip(numbers(&weights[&name])).map(|(g, w)| g * w).collect();
                let largest = expected.iter().fold(0f32, |largest, g| largest.max(g.abs()));
                let expected = TensorData::new(expected, found.shape().clone());
                prop_assert!(difference(&found, &expected) <= SAME_GRADIENT.0 * largest, "{}", name);
                prop_assert!(largest > 0.0);
            }
        }
    }

    #[test]
    fn masks_start_with_the_share_of_zeros(seed: u64, share in 0.02..0.9) {
        for base in bases() {
            let config = ThresholdMaskConfig::new(share);
            let masks = masks(&config.init(&base, seed).unwrap());
            let all: Vec<f32> = masks.values().flat_map(numbers).collect();
            prop_assert_eq!(all.len(), config.count(base.shape()).unwrap());
            let zeros = all.iter().filter(|m| **m == 0.0).count() as f64 / all.len() as f64;
            let error = (share * (1.0 - share) / all.len() as f64).sqrt();
            prop_assert!((zeros - share).abs() <= f64::from(STANDARD_ERRORS.0) * error, "{} {}", zeros, share);
        }
    }

    #[test]
    fn scores_start_between_their_bounds(seed: u64) {
        for base in bases() {
            let (low, high) = (-0.03, (0.03 + 0.02) / 0.25 - 0.03);
            let tuner = ThresholdMaskConfig::new(0.25).with_threshold(0.02, 0.03).init(&base, seed).unwrap();
            let scores: Vec<f64> = tensors(&tuner).values().flat_map(numbers).map(f64::from).collect();
            let (least, most) = scores.iter().fold((f64::MAX, f64::MIN), |(a, b), s| (a.min(*s), b.max(*s)));
            // Of so many numbers the outermost are this near to the bounds.
            let near = f64::from(FINITE_DIFFERENCE.0) * (high - low);
            prop_assert!((least - low).abs() <= near && (most - high).abs() <= near, "{} {}", least, most);
        }
    }

    #[test]
    fn only_masks_change(seed: u64) {
        for base in bases() {
            let before = start(&config(), &base);
            let (old, fingerprint) = (masks(&before.tuner), base.fingerprint());
            let after = train(settings(seed), &base, before);
            let found = whole::<ThresholdMaskConfig>(&after.tuner, &base);
            prop_assert!(found == by_hand(&base, &masks(&after.tuner)));
            prop_assert!(masks(&after.tuner) != old && base.fingerprint() == fingerprint);
        }
    }

    #[test]
    fn a_run_of_masks_taken_up_ends_with_the_same_bits(seed: u64) {
        assert_taken_up(&config(), seed);
    }

    /// A step of AdamW is the learning rate if the gradient hardly changes; weight decay would be as much here.
    #[test]
    fn scores_have_a_learning_rate_of_their_own_and_no_decay(seed: u64) {
        for base in bases() {
            let settings = TrainConfig { weight_decay: 1.0, max_grad_norm: 0.0, ..settings(seed) };
            let mut run = Run::new(&settings, base.clone(), start(&config(), &base)).unwrap();
            let before = tensors(&run.trained.tuner);
            let rate = run.step(&data(&base)).unwrap().learning_rate as f32;
            for (name, after) in tensors(&run.trained.tuner) {
                let step = difference(&after, &before[&name]);
                prop_assert!((step / (3.0 * rate) - 1.0).abs() <= FINITE_DIFFERENCE.0, "{}: {} of {}", name, step, rate);
            }
        }
    }
}

#[test]
fn a_score_at_the_threshold_is_masked_out() {
    for base in bases() {
        let threshold = 1e-2f32;
        let at = |bits: u32| with_each(&init(&base, 1), "scores", |_, _| f32::from_bits(threshold.to_bits() + bits));
        assert!(masks(&at(0)).values().flat_map(numbers).all(|m| m == 0.0));
        assert!(masks(&at(1)).values().flat_map(numbers).all(|m| m == 1.0));
    }
}

#[test]
fn only_scores_in_units_of_the_threshold_matter() {
    for base in bases() {
        let of = |unit: f64| ThresholdMaskConfig::new(0.3).with_threshold(unit, 2.0 * unit).init(&base, 4).unwrap();
        assert_eq!(masks(&of(0.01)), masks(&of(0.08)));
    }
}

/// Beside the head's numbers.
#[test]
fn files_hold_a_bit_for_each_score() {
    for base in bases() {
        let folder = tempfile::tempdir().unwrap();
        let trained = train(settings(2), &base, start(&config(), &base));
        let dir = folder.path().join("adapter");
        save(&dir, &config(), &trained, base.shape(), &Labels::default(), &[]).unwrap();
        let file = Checkpoint::open_file(Path::new(&dir.join("adapter_model.safetensors"))).unwrap();
        let bytes = |name: &str| file.bytes(name).unwrap().len();
        let found: usize = file.names().filter(|name| name.ends_with(".mask")).map(bytes).sum();
        let each =
            tensors(&trained.tuner).values().map(|scores| scores.shape().num_elements().div_ceil(8)).sum::<usize>();
        assert_eq!(found, each);
        let (_, loaded) = load::<ThresholdMaskConfig>(&dir, &base).unwrap();
        assert_eq!(trainable(&loaded.tuner), 0);
        assert_eq!(states(&loaded.tuner, &base).into_data(), states(&trained.tuner, &base).into_data());
        let head = start(&config(), &base).head;
        if trainable(&head) > 0 {
            let again = train(settings(3), &base, Trained::new(loaded.tuner, head).unwrap());
            assert_eq!(masks(&again.tuner), masks(&trained.tuner));
        }
    }
}

#[test]
fn a_run_of_threshold_mask_is_that_of_the_reference() {
    let golden = recorded("threshold-mask-run");
    let sites = Sites::Names(vec!["query".into(), "output.dense".into()]);
    let config = ThresholdMaskConfig::new(0.2).with_threshold(0.02, 0.03).with_sites(sites).with_mask_rate(2.5);
    let settings = TrainConfig {
        weight_decay: 0.1,
        max_grad_norm: 0.5,
        adam_epsilon: 1e-3,
        shuffle: false,
        ..TrainConfig::new(1e-2).with_batch_size(8).with_steps(10).with_seed(7)
    };
    let mut run = golden.begin(&settings, config.init(&golden.base, 7).unwrap());
    let (mut losses, mut zeros) = (vec![], vec![]);
    for _ in 0..10 {
        zeros.push(masks(&run.trained.tuner).values().flat_map(numbers).filter(|m| *m == 0.0).count() as f32);
        losses.push(run.step(&golden.examples).unwrap().loss as f32);
    }
    golden.compare("losses", &TensorData::new(losses, [10]), REFERENCE);
    golden.compare("zeros", &TensorData::new(zeros, [10]), REFERENCE);
    let scores = under(&tensors(&run.trained.tuner), "scores.");
    let of = |name: &str| key(&format!("weights.{}", split_name(&format!("scores.{name}")).1), &golden.base);
    golden.compare_all("scores", &scores, of, REFERENCE_TRAJECTORY);
    golden.compare_logits("logits", &run.base, &run.trained, REFERENCE_TRAJECTORY);
}
