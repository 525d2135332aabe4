use std::collections::BTreeMap;

use burn::module::ParamId;
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData};
use peft_core::testing::golden::named;
use peft_core::testing::tolerances::{REFERENCE, REFERENCE_TRAJECTORY, SAME_FUNCTION, STANDARD_ERRORS};
use peft_core::train::TrainConfig;
use peft_core::view::{Visit, tensors, visit};
use peft_core::{Base, Example, Method, Place, Procedure, random::Random, slot_name};
use peft_partial::{ChildMode, ChildTuning, ChildTuningConfig, FullConfig};
use proptest::prelude::*;

use super::{
    Values, assert_largest, assert_taken_up, bases, data, dense, drawn, gradient, key, masks, numbers, recorded,
    settings, start, train, under, whole,
};

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
fn masked(base: &Base, p: f64, seed: u64, step: &str) -> (Values, Values) {
    let child = ChildTuningConfig::new(ChildMode::TaskFree, p).init(base, 0).unwrap();
    let mut child = child.sample(&mut Random::new(seed, step));
    let masked = child.gradients(gradients(&child, seed), 1);
    (named(&child, &gradients(&child, seed)), named(&child, &masked))
}

/// What D masks. The tensors that belong to a stack as a whole are of part norm_final, pooler, .. of layer 0.
fn layers(base: &Base) -> Vec<Place> {
    let outside = ["words", "positions", "types", "norm_embedding", "pooler", "vocabulary"];
    let llama = base.shape().places().iter().any(|place| place.name == "norm.weight");
    let inside = |place: &Place| {
        let part = place.site.part.name();
        !(outside.contains(&part) || llama && part == "norm_final")
    };
    base.shape().places().into_iter().filter(inside).collect()
}

/// The child that D has chosen.
fn child(tuner: &ChildTuning, base: &Base) -> BTreeMap<String, Vec<bool>> {
    masks(&under(&tensors(tuner), "update."), &layers(base))
}

/// The squared gradients of the mean loss of batches, each tensor's clipped first, summed, of the tensors of the layers.
fn fisher(base: &Base, settings: &TrainConfig) -> BTreeMap<String, Vec<f32>> {
    let (data, layers) = (data(base), layers(base));
    let mut sums: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for batch in drawn(settings.seed, base).chunks(settings.batch_size) {
        let examples: Vec<&Example> = batch.iter().map(|i| &data[*i]).collect();
        for (name, gradient) in gradient(base, &examples) {
            let norm = gradient.iter().map(|g| g * g).sum::<f32>().sqrt();
            let factor = (settings.max_grad_norm as f32 / norm).min(1.0);
            let sum = sums.entry(name).or_insert_with(|| vec![0.0; gradient.len()]);
            sum.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += (factor * g).powi(2));
        }
    }
    sums.retain(|name, _| layers.iter().any(|place| slot_name(place.site, place.slot) == *name));
    sums
}

/// The run of the golden files, after all of its steps; their names begin with the letter of the mode.
fn check_run(mode: ChildMode, share: f64, letter: &str) {
    let golden = recorded("child-tuning-run");
    let settings = TrainConfig {
        weight_decay: 0.1,
        max_grad_norm: 0.5,
        adam_epsilon: 1e-3,
        shuffle: false,
        ..TrainConfig::new(1e-2).with_batch_size(8).with_steps(10).with_seed(3)
    };
    let mut run = golden.begin(&settings, ChildTuningConfig::new(mode, share).init(&golden.base, 0).unwrap());
    if mode == ChildMode::TaskDriven {
        let masks = dense(child(&run.trained.tuner, &golden.base), &golden.base);
        golden.compare_all("d.mask", &masks, |name| key(name, &golden.base), SAME_FUNCTION);
    }
    let losses = (0..10).map(|_| run.step(&golden.examples).unwrap().loss as f32).collect::<Vec<_>>();
    golden.compare(&format!("{letter}.losses"), &TensorData::new(losses, [10]), REFERENCE);
    let after = tensors(&run.trained);
    let full = whole::<ChildTuningConfig>(&run.trained.tuner, &golden.base);
    let head = under(&after, "head.");
    let key = |name: &str| match name.strip_prefix("classifier.") {
        Some(name) => golden.head_key(name),
        None => key(name, &golden.base),
    };
    let head = head.into_iter().map(|(name, data)| (format!("classifier.{name}"), data));
    let final_tensors = full.into_iter().chain(head).collect();
    golden.compare_all(&format!("{letter}.final"), &final_tensors, key, REFERENCE_TRAJECTORY);
    golden.compare_logits(&format!("{letter}.logits"), &run.base, &run.trained, REFERENCE_TRAJECTORY);
}

#[test]
fn a_run_of_a_drawn_child_is_that_of_the_reference() {
    check_run(ChildMode::TaskFree, 0.4, "f");
}

#[test]
fn a_run_of_a_chosen_child_is_that_of_the_reference() {
    check_run(ChildMode::TaskDriven, 0.3, "d");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2))]

    #[test]
    fn everything_reserved_is_full_fine_tuning(seed: u64) {
        for base in bases() {
            // The norm of all gradients is another sum where the child is one vector.
            let settings = TrainConfig { max_grad_norm: 0.0, ..settings(seed) };
            let full = train(settings.clone(), &base, start(&FullConfig::default(), &base));
            for mode in [ChildMode::TaskFree, ChildMode::TaskDriven] {
                let child = train(settings.clone(), &base, start(&ChildTuningConfig::new(mode, 1.0), &base));
                prop_assert_eq!(tensors(&child.head), tensors(&full.head), "{:?}", mode);
                let found = whole::<ChildTuningConfig>(&child.tuner, &base);
                prop_assert!(found == whole::<FullConfig>(&full.tuner, &base), "{:?}", mode);
            }
        }
    }

    #[test]
    fn a_drawn_gradient_is_right_on_average(seed: u64, p in 0.15..0.85) {
        for base in bases() {
            let (gradients, masked) = masked(&base, p, seed, "a step");
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
            let masks = |seed, step| masked(&base, 0.4, seed, step).1;
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
            // So short that nearly every tensor's gradient is clipped, and three batches, the last of one example.
            let settings = TrainConfig { batch_size: 2, max_grad_norm: 0.05, dropout: Some(0.0), ..settings(1) };
            let scores = fisher(&base, &settings);
            let tuner = train(settings, &base, start(&config, &base)).tuner;
            let all: usize = scores.values().map(Vec::len).sum();
            assert_largest(&child(&tuner, &base), &scores, (p * all as f64) as usize);
        }
    }

    /// With few numbers in the child some tensors have none. What is outside of the layers is trained as a whole.
    #[test]
    fn only_the_child_moves(seed: u64, few: bool) {
        for base in bases() {
            let config = ChildTuningConfig::new(ChildMode::TaskDriven, if few { 0.001 } else { 0.3 });
            let before = tensors(&FullConfig::default().init(&base, 0).unwrap());
            let tuner = train(settings(seed), &base, start(&config, &base)).tuner;
            let (child, after) = (child(&tuner, &base), whole::<ChildTuningConfig>(&tuner, &base));
            prop_assert!(!few || child.values().any(|mask| !mask.contains(&true)), "every tensor has numbers in the child");
            for (name, before) in before {
                let mask = child.get(&name);
                let in_child = |i: usize| mask.is_none_or(|mask| mask[i]);
                let pairs = numbers(&before).into_iter().zip(numbers(&after[&name]));
                let (mut moved, mut children) = (0, 0);
                for (i, (old, new)) in pairs.enumerate() {
                    prop_assert!(in_child(i) || old.to_bits() == new.to_bits(), "{} of {}: {} {}", i, name, old, new);
                    children += usize::from(in_child(i));
                    moved += usize::from(old.to_bits() != new.to_bits());
                }
                // Not quite all: behind a ReLU that lets nothing through in these steps there is no gradient.
                prop_assert!(2 * moved >= children, "{} of {} moved of {}", moved, children, name);
            }
        }
    }

    /// An estimate on some of the examples chooses others.
    #[test]
    fn fisher_samples_limit_the_examples(samples in 1usize..4) {
        for base in bases() {
            let config = ChildTuningConfig::new(ChildMode::TaskDriven, 0.3);
            let masks = |config: &ChildTuningConfig| child(&train(settings(0), &base, start(config, &base)).tuner, &base);
            prop_assert_ne!(masks(&config.clone().with_fisher_samples(samples)), masks(&config));
            prop_assert_eq!(masks(&config.clone().with_fisher_samples(1000)), masks(&config));
        }
    }
}
