use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData};
use peft_additive::{Activation, Init, Placement, SequentialConfig};
use peft_core::testing::recorded::Recorded;
use peft_core::testing::tolerances::{
    FINITE_DIFFERENCE, REFERENCE, REFERENCE_RUN, REFERENCE_TRAJECTORY, SAME_FUNCTION,
};
use peft_core::testing::{examples, golden::named, randomized};
use peft_core::train::{Probe, Procedure, Run, Schedule, TrainConfig, Trainer};
use peft_core::view::{tensors, with_values};
use peft_core::{AnyMethod, AnyTuner, Base, Example, Head, Key, Label, Method, Part, Result, Trained};
use peft_reparam::{AdaLoraConfig, LoraConfig};
use peft_unified::{Scorer, Sparse, SparseConfig, sparse};
use proptest::prelude::*;

use super::{bases, bits, gradients, values};

const SCORERS: [Scorer; 5] = [Scorer::Random, Scorer::ErdosRenyi, Scorer::Magnitude, Scorer::Snip, Scorer::Grasp];

fn adapter() -> SequentialConfig {
    SequentialConfig::houlsby(5).with_train_layernorm(false).with_init_std(0.3)
}

/// As training begins: with the masks that are chosen on data.
fn prepared(config: &SparseConfig, base: &Base, seed: u64) -> Sparse {
    try_prepare(config, base, seed).unwrap()
}

fn try_prepare(config: &SparseConfig, base: &Base, seed: u64) -> Result<Sparse> {
    let (head, examples) = (head(base), examples(base));
    config.init(base, seed)?.prepare(base, Probe::new(&head, &examples))
}

fn head(base: &Base) -> Head {
    match base.shape().architecture {
        peft_core::Architecture::T5(_) => Head::LanguageModel(peft_core::LanguageModel {}),
        _ => Head::classifier(base, 2, 3),
    }
}

/// The masks of a tuner, by the name of their matrix.
fn masks(tuner: &impl Module) -> BTreeMap<String, Vec<f32>> {
    let own = tensors(tuner).into_iter();
    own.filter_map(|(name, data)| Some((name.strip_prefix("masks.")?.to_string(), values(&data)))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn without_pruning_it_is_the_adapter(seed: u64, scorer in 0..5usize) {
        for base in bases() {
            let sparse = prepared(&SparseConfig::new(adapter(), 0.0, SCORERS[scorer]), &base, seed);
            let dense = adapter().init(&base, seed).unwrap();
            prop_assert_eq!(bits(&sparse, &base), bits(&dense, &base));
            prop_assert_ne!(bits(&sparse, &base), bits(&peft_core::Bare {}, &base));
        }
    }

    #[test]
    fn every_scorer_leaves_the_share(seed: u64, sparsity in 0.01..0.95) {
        for base in bases() {
            for scorer in SCORERS {
                let sparse = match try_prepare(&SparseConfig::new(adapter(), sparsity, scorer), &base, seed) {
                    Ok(sparse) => sparse,
                    // So few may be none of some matrix, which is refused; half are always some of each.
                    Err(error) => {
                        prop_assert!(sparsity > 0.5 && error.to_string().contains("nothing is left of"), "{}", error);
                        continue;
                    }
                };
                let masks: Vec<f32> = masks(&sparse).into_values().flatten().collect();
                let removed = (sparsity * masks.len() as f64).ceil() as usize;
                prop_assert_eq!(masks.iter().sum::<f32>() as usize, masks.len() - removed, "{:?}", scorer);
                // And it is the adapter with zeros there.
                let zeros = values_of_masked(&sparse);
                let dense = with_values(adapter().init(&base, seed).unwrap(), &zeros).unwrap();
                prop_assert_eq!(bits(&sparse, &base), bits(&dense, &base));
            }
        }
    }

    #[test]
    fn magnitudes_do_not_depend_on_the_scale(seed: u64, factor in 0.1..3.0) {
        for base in bases() {
            let of = |std: f64| {
                let config = SparseConfig::new(adapter().with_init_std(std), 0.4, Scorer::Magnitude);
                let sparse = config.init(&base, seed).unwrap();
                (masks(&sparse), tensors(&sparse))
            };
            let ((masks, own), (scaled, _)) = (of(0.3), of(0.3 * factor));
            prop_assert_eq!(&masks, &scaled);
            let numbers = |kept: f32| masks.iter().flat_map(|(name, mask)| {
                let weights = values(&own[&format!("adapter.{name}")]);
                weights.into_iter().zip(mask.clone()).filter(|(_, m)| *m == kept).map(|(w, _)| w.abs()).collect::<Vec<_>>()
            }).collect::<Vec<f32>>();
            let least = numbers(1.0).into_iter().fold(f32::INFINITY, f32::min);
            prop_assert!(numbers(0.0).into_iter().all(|removed| removed <= least));
        }
    }

    /// Numbers that are pruned have no gradient: below their mask they decay, and no more. In files and for the function they are 0.
    #[test]
    fn what_is_pruned_stays_zero(seed: u64, scorer in 0..5usize) {
        for base in bases() {
            let config = SparseConfig::new(adapter().with_dropout(0.2), 0.4, SCORERS[scorer]);
            let settings = TrainConfig {
                weight_decay: 0.3,
                dropout: Some(0.1),
                micro_rows: 20,
                threads: 1,
                lr_scheduler_type: Schedule::Constant,
                ..TrainConfig::new(1e-2).with_batch_size(3).with_steps(4).with_seed(seed)
            };
            let (head, examples) = (head(&base), examples(&base));
            let probe = Probe::new(&head, &examples).with_run(&settings);
            let tuner = config.init(&base, seed).unwrap().prepare(&base, probe).unwrap();
            let (before, chosen) = (tensors(&tuner), masks(&tuner));
            let mut run = Run::new(&settings, base.clone(), Trained::new(tuner, head.clone()).unwrap()).unwrap();
            for _ in 0..4 {
                run.step(&examples).unwrap();
                let saved = tensors(&AnyMethod::from(config.clone()).to_saved(AnyTuner::new(run.trained.tuner.clone())));
                for (name, mask) in &chosen {
                    prop_assert_eq!(&values(&saved[&format!("masks.{name}")]), mask);
                    let numbers = values(&saved[&format!("adapter.{name}")]);
                    for (x, kept) in numbers.into_iter().zip(mask) {
                        prop_assert_eq!(x != 0.0, *kept == 1.0, "{}", name);
                    }
                }
            }
            let tuner = run.trained.tuner;
            let after = tensors(&tuner);
            let (mut all, mut moved) = (0, 0);
            for (name, mask) in &chosen {
                let name = format!("adapter.{name}");
                let pairs = values(&before[&name]).into_iter().zip(values(&after[&name])).zip(mask);
                for ((old, new), kept) in pairs {
                    let by_gradients = (new - old * (1.0f32 - 0.3 * 1e-2).powi(4)).abs() > SAME_FUNCTION.0;
                    prop_assert!(*kept == 1.0 || !by_gradients, "{}: {} {}", name, old, new);
                    all += usize::from(*kept == 1.0);
                    moved += usize::from(by_gradients);
                }
            }
            // Not quite all: a unit may have lost all numbers of its other matrix.
            prop_assert!(10 * moved >= 9 * all, "{} of {} moved", moved, all);
            let dense = with_values(adapter().init(&base, seed).unwrap(), &values_of_masked(&tuner)).unwrap();
            prop_assert_eq!(bits(&tuner, &base), bits(&dense, &base));
        }
    }
}

fn golden() -> Recorded {
    Recorded::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/sparse-adapter-run"), "roberta-classify")
}

/// As in the golden files: adapters as the code has them, but wider starts and no dropout.
fn of_golden(scorer: Scorer, activation: Activation) -> (SparseConfig, TrainConfig) {
    let inner = sparse::adapters().with_bottleneck(5).with_init_std(0.3).with_dropout(0.0).with_activation(activation);
    let settings = TrainConfig {
        weight_decay: 0.1,
        adam_epsilon: 1e-3,
        shuffle: false,
        ..TrainConfig::new(1e-2).with_batch_size(8).with_steps(10).with_seed(7)
    };
    (SparseConfig::new(inner, 0.4, scorer), settings)
}

/// What is kept has no lower score than what is pruned, up to a share of the largest: GraSP's is a difference here, which sees the kinks
/// of a ReLU, so that it is compared on GELU.
#[test]
fn scores_are_those_of_the_reference() {
    let golden = golden();
    for (scorer, name, tolerance) in [
        (Scorer::Magnitude, "magnitude", SAME_FUNCTION),
        (Scorer::Snip, "snip", SAME_FUNCTION),
        (Scorer::Grasp, "grasp", REFERENCE_RUN),
    ] {
        let activation = if scorer == Scorer::Grasp { Activation::Gelu } else { Activation::Relu };
        let (config, settings) = of_golden(scorer, activation);
        let run = golden.begin(&settings, config.init(&golden.base, settings.seed).unwrap());
        let (mut kept, mut pruned) = (vec![], vec![]);
        for (matrix, mask) in masks(&run.trained.tuner) {
            let scores = values(&golden.expected(&format!("scores.{name}.{matrix}")));
            scores.into_iter().zip(mask).for_each(|(score, mask)| match mask {
                1.0 => kept.push(score),
                _ => pruned.push(score),
            });
        }
        let largest = kept.iter().chain(&pruned).fold(0f32, |a, score| a.max(score.abs()));
        let (least, most) = (kept.into_iter().fold(f32::MAX, f32::min), pruned.into_iter().fold(f32::MIN, f32::max));
        assert!(least >= most - tolerance.0 * largest, "{name}: {least} is kept, {most} is not, of {largest}");
    }
}

#[test]
fn a_run_is_that_of_the_reference() {
    let golden = golden();
    let (config, settings) = of_golden(Scorer::Snip, Activation::Relu);
    let mut run = golden.begin(&settings, config.init(&golden.base, settings.seed).unwrap());
    golden.compare_logits("logits", &run.base, &run.trained, REFERENCE);
    let batch = golden.base.batch(&golden.examples[..8].iter().collect::<Vec<_>>()).unwrap();
    let labels: Vec<&Label> = golden.examples[..8].iter().map(|example| example.label.as_ref().unwrap()).collect();
    let loss = run.trained.loss(&golden.base, &batch, &labels).unwrap() / 8.0;
    let gradients = named(&run.trained.tuner, &GradientsParams::from_grads(loss.backward(), &run.trained.tuner));
    let own = |tensors: &BTreeMap<String, TensorData>, start: &str| {
        let rest = |(name, data): (&String, &TensorData)| Some((name.strip_prefix(start)?.to_string(), data.clone()));
        tensors.iter().filter_map(rest).collect::<BTreeMap<_, _>>()
    };
    golden.compare_all("grad", &own(&gradients, "adapter."), |name| Key::plain(name), REFERENCE);
    let losses: Vec<f32> = (0..10).map(|_| run.step(&golden.examples).unwrap().loss as f32).collect();
    golden.compare("losses", &TensorData::new(losses, [10]), REFERENCE);
    golden.compare_all(
        "final",
        &own(&tensors(&run.trained), "tuner.adapter."),
        |name| Key::plain(name),
        REFERENCE_TRAJECTORY,
    );
    golden.compare_logits("logits_final", &run.base, &run.trained, REFERENCE_TRAJECTORY);
}

#[test]
fn the_usual_adapters_are_those_of_the_code() {
    let SparseConfig { inner, pruning } = SparseConfig::default();
    let expected = SequentialConfig {
        bottleneck: 64,
        placement: Placement::Houlsby,
        activation: Activation::Relu,
        init: Init::Normal,
        init_std: 0.02,
        dropout: 0.1,
        train_layernorm: false,
        inner_norm: vec![Part::SelfAttention, Part::FeedForward],
        leave_out: vec![],
    };
    assert_eq!(inner.downcast_ref(), Some(&expected));
    assert_eq!((pruning.sparsity, pruning.scorer, pruning.samples), (0.4, Scorer::Snip, 320));
}

/// What its ordinary adapters hold.
fn values_of_masked(sparse: &Sparse) -> BTreeMap<String, TensorData> {
    tensors(&sparse.masked().valid())
}

/// Before the first step: what is before or behind a matrix of which nothing is left would not be trained.
#[test]
fn no_matrix_is_left_empty() {
    for base in bases() {
        for scorer in SCORERS {
            let message = try_prepare(&SparseConfig::new(adapter(), 0.995, scorer), &base, 1).unwrap_err().to_string();
            assert!(["sparsity", "0.995", "nothing is left of"].iter().all(|word| message.contains(word)), "{message}");
        }
    }
}

/// The numbers that GraSP leaves are those that lengthen the gradient most, to first order in their factors: the derivative of
/// |g|^2 / 2 by the factor of w is w (H g). The factors are moved by hand.
#[test]
fn grasp_keeps_what_lengthens_the_gradient() {
    // T5's ReLU has no curvature but at its kinks, where differences depend on their steps.
    for base in bases().into_iter().filter(|base| !matches!(base.shape().architecture, peft_core::Architecture::T5(_)))
    {
        let (head, examples) = (head(&base), examples(&base));
        let config = SparseConfig::new(adapter(), 0.5, Scorer::Grasp).with_samples(examples.len());
        let (dense, sparse) = (adapter().init(&base, 2).unwrap(), prepared(&config, &base, 2));
        let masks = masks(&sparse);
        let (probe, all) = (Probe::new(&head, &examples), (0..examples.len()).collect::<Vec<_>>());
        let half = |name: &str, place: usize, factor: f32| {
            let tuner = scaled(&dense, name, place, factor);
            let gradient = probe.summed(&tuner, &base, [&all[..]], |_, gradient| gradient).unwrap();
            let matrices =
                gradient.iter().filter(|(name, _)| masks.contains_key(*name)).flat_map(|(_, numbers)| numbers);
            matrices.map(|g| f64::from(*g).powi(2)).sum::<f64>() / 2.0
        };
        let h = 0.02;
        let mut scores: Vec<(f64, f32)> = Vec::new();
        for (name, mask) in &masks {
            for place in (0..mask.len()).step_by(11) {
                let slope = (half(name, place, 1.0 + h) - half(name, place, 1.0 - h)) / f64::from(2.0 * h);
                scores.push((slope, mask[place]));
            }
        }
        let (kept, all): (f64, f64) = scores
            .iter()
            .fold((0.0, 0.0), |(kept, all), (score, mask)| (kept + score * f64::from(*mask), all + score.abs()));
        let count = scores.iter().filter(|(_, mask)| *mask == 1.0).count();
        scores.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        let best: f64 = scores[..count].iter().map(|(score, _)| score).sum();
        // The method's H g is a difference too: those at the border may change places.
        assert!(best - kept <= f64::from(FINITE_DIFFERENCE.0) * all, "{kept} of at most {best}, {all} in all");
    }
}

/// The module with one number of a tensor times a factor.
fn scaled<M: Module>(module: &M, name: &str, place: usize, factor: f32) -> M {
    let own = tensors(module).remove(name).unwrap();
    let mut moved = values(&own);
    moved[place] *= factor;
    let data = TensorData::new(moved, own.shape().clone());
    with_values(module.clone(), &BTreeMap::from([(name.to_string(), data)])).unwrap()
}

/// Of the numbers that SNIP leaves each changes the loss, to first order in its own factor, by no less than each that it removes.
/// The factors are moved by hand: the loss with w (1 + h) against that with w (1 - h).
#[test]
fn snip_is_the_derivative_by_the_mask() {
    for base in bases() {
        let (head, examples) = (head(&base), examples(&base));
        let config = SparseConfig::new(adapter(), 0.5, Scorer::Snip).with_samples(examples.len());
        let dense = adapter().init(&base, 2).unwrap();
        let sparse = config.init(&base, 2).unwrap().prepare(&base, Probe::new(&head, &examples)).unwrap();
        let masks = masks(&sparse);
        let labels: Vec<_> = examples.iter().map(|example| example.label.as_ref().unwrap()).collect();
        let refs: Vec<_> = examples.iter().collect();
        let batch = base.batch(&refs).unwrap();
        let loss = |name: &str, place: usize, factor: f32| {
            let tuner = scaled(&dense, name, place, factor);
            let trained = Trained::new(tuner.valid(), head.clone().valid()).unwrap();
            f64::from(trained.loss(&base, &batch, &labels).unwrap().into_scalar::<f32>())
        };
        let h = 0.1;
        let mut scores: Vec<(f64, f32)> = Vec::new();
        for (name, mask) in &masks {
            for place in (0..mask.len()).step_by(7) {
                let slope = (loss(name, place, 1.0 + h) - loss(name, place, 1.0 - h)) / f64::from(2.0 * h);
                scores.push((slope.abs(), mask[place]));
            }
        }
        let largest = scores.iter().fold(0.0, |a: f64, (score, _)| a.max(*score));
        let least = scores.iter().filter(|(_, kept)| *kept == 1.0).fold(f64::INFINITY, |a, (score, _)| a.min(*score));
        for (score, _) in scores.iter().filter(|(_, kept)| *kept == 0.0) {
            assert!(*score <= least + f64::from(FINITE_DIFFERENCE.0) * largest, "{score} is removed, {least} is left");
        }
    }
}

#[test]
fn large_sparse_is_as_large_as_the_narrow_one() {
    for base in bases() {
        let narrow = adapter().with_bottleneck(6);
        let large = SparseConfig::large(narrow.clone(), 0.5, Scorer::Magnitude);
        assert_eq!(large.inner, narrow.clone().with_bottleneck(12).into());
        let left: f32 = masks(&large.init(&base, 1).unwrap()).into_values().flatten().sum();
        let matrices = tensors(&narrow.init(&base, 1).unwrap()).into_values().filter(|data| data.shape().len() == 2);
        assert_eq!(left as usize, matrices.map(|data| data.shape().num_elements()).sum::<usize>());
    }
}

/// To the nearest width.
#[test]
fn large_sparse_has_a_rounded_width() {
    for (narrow, wide) in [(5, 8), (6, 10), (7, 12)] {
        let large = SparseConfig::large(adapter().with_bottleneck(narrow), 0.4, Scorer::Magnitude);
        assert_eq!(large.inner, adapter().with_bottleneck(wide).into());
    }
}

/// Scores of one drawn example are those of data that have no other.
#[test]
fn as_many_examples_as_asked_for_make_the_scores() {
    for base in bases() {
        let (head, examples) = (head(&base), examples(&base));
        let drawn = Probe::new(&head, &examples).draw(1)[0];
        for scorer in [Scorer::Snip, Scorer::Grasp] {
            let masks_of = |examples: &[Example], samples| {
                let start = SparseConfig::new(adapter(), 0.5, scorer).with_samples(samples).init(&base, 1).unwrap();
                masks(&start.prepare(&base, Probe::new(&head, examples)).unwrap())
            };
            let one = masks_of(&examples, 1);
            assert_eq!(one, masks_of(&examples[drawn..=drawn], 320));
            assert_ne!(one, masks_of(&examples, 2));
        }
    }
}

/// With the second matrix 0, `w dL/dw` is 0 everywhere: no mask follows from it.
#[test]
fn scores_of_zero_are_refused() {
    for base in bases() {
        let head = head(&base);
        let examples = examples(&base);
        for scorer in [Scorer::Snip, Scorer::Grasp] {
            let start = SparseConfig::new(LoraConfig::new(3), 0.4, scorer).init(&base, 0).unwrap();
            let message = start.prepare(&base, Probe::new(&head, &examples)).unwrap_err().to_string();
            assert!(message.contains("scorer") && message.contains("erdos_renyi"), "{message}");
        }
        let random = SparseConfig::new(LoraConfig::new(3), 0.4, Scorer::ErdosRenyi);
        let gradients = gradients(&randomized(&random.init(&base, 1).unwrap(), 1), &base);
        assert!(gradients.keys().all(|name| !name.starts_with("masks.")));
    }
}

/// The penalty of the method that is pruned is that of the matrices that are left, and moves them.
#[test]
fn the_penalty_and_the_steps_of_the_method_are_kept() {
    for base in bases() {
        let inner = AdaLoraConfig::new(4, 2).with_schedule(1, 1, 1).with_penalty(0.5);
        let config = SparseConfig::new(inner, 0.4, Scorer::Random);
        let tuner = randomized(&config.init(&base, 1).unwrap(), 1);
        let plain: AnyTuner = tuner.masked();
        let penalty = |tuner: Option<Tensor<1>>| tuner.unwrap().into_scalar::<f32>();
        assert_eq!(penalty(tuner.penalty()), penalty(plain.penalty()));
        let gradients = named(&tuner, &GradientsParams::from_grads(tuner.penalty().unwrap().backward(), &tuner));
        let moved = gradients.iter().filter(|(_, gradient)| values(gradient).iter().any(|x| *x != 0.0));
        assert!(moved.count() > 0 && gradients.keys().all(|name| !name.ends_with(".e")));
        // Dense, the penalty is another.
        let dense = SparseConfig::new(config.inner.clone(), 0.0, Scorer::Random);
        let dense = randomized(&dense.init(&base, 1).unwrap(), 1);
        assert_ne!(penalty(tuner.penalty()), penalty(dense.penalty()));

        let trainer = Trainer::new(TrainConfig::new(1e-2).with_batch_size(2).with_steps(6));
        let data: Vec<Example> = examples(&base).into_iter().cycle().take(8).collect();
        let method = AnyMethod::from(config.clone());
        let start = Trained::new(method.init(&base, 1).unwrap(), head(&base)).unwrap();
        let numbers = |tuner: &AnyTuner| tensors(tuner).values().map(|data| data.num_elements()).sum::<usize>();
        let before = numbers(&start.tuner);
        let after = trainer.run(&base, start, &data, None, &mut ()).unwrap();
        assert!(numbers(&after.tuner) < before, "no rank has gone");
        let masks = masks(&after.tuner);
        let (all, left) = masks.values().flatten().fold((0, 0.0), |(all, left), mask| (all + 1, left + mask));
        assert!(!masks.is_empty() && left < all as f32, "{left} of {all} are left");
    }
}
