use std::collections::BTreeMap;

use burn::module::Module;
use burn::optim::AdamWConfig;
use burn::tensor::TensorData;
use peft_additive::SequentialConfig;
use peft_core::testing::tolerances::FINITE_DIFFERENCE;
use peft_core::testing::{batch, examples, randomized};
use peft_core::train::{Optim, Probe, Procedure};
use peft_core::view::{tensors, with_values};
use peft_core::{Base, Head, Method, Result, Trained, Tuner};
use peft_reparam::LoraConfig;
use peft_unified::{Pruned, Scorer, Sparse, SparseConfig};
use proptest::prelude::*;

use crate::{bases, bits, gradients, values};

const SCORERS: [Scorer; 5] = [Scorer::Random, Scorer::ErdosRenyi, Scorer::Magnitude, Scorer::Snip, Scorer::Grasp];

fn adapter() -> SequentialConfig {
    SequentialConfig::houlsby(5).with_train_layernorm(false).with_init_std(0.3)
}

/// As training begins: with the masks that are chosen on data.
fn prepared<M: Pruned>(config: &SparseConfig<M>, base: &Base, seed: u64) -> Sparse<M::Tuner> {
    try_prepare(config, base, seed).unwrap()
}

fn try_prepare<M: Pruned>(config: &SparseConfig<M>, base: &Base, seed: u64) -> Result<Sparse<M::Tuner>> {
    let (head, examples) = (head(base), examples(base));
    Ok(config.init(base, seed)?.prepare(base.clone(), Probe::new(&head, &examples))?.0)
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

    #[test]
    fn what_is_pruned_stays_zero(seed: u64, scorer in 0..5usize) {
        for base in bases() {
            let mut sparse = prepared(&SparseConfig::new(adapter(), 0.4, SCORERS[scorer]), &base, seed);
            let mut optim = Optim::new(AdamWConfig::new().with_weight_decay(0.1).build());
            for _ in 0..3 {
                let loss = peft_core::testing::conformance::loss(sparse.run(&base, &batch(&base)).unwrap());
                let gradients = burn::optim::GradientsParams::from_grads(loss.backward(), &sparse);
                sparse = optim.step(sparse, gradients, |_| 1e-2);
            }
            let (before, after) = (masks(&prepared(&SparseConfig::new(adapter(), 0.4, SCORERS[scorer]), &base, seed)), masks(&sparse));
            prop_assert_eq!(&before, &after);
            for (name, numbers) in values_of_masked(&sparse) {
                let Some(mask) = after.get(&name) else { continue };
                let pruned = values(&numbers).into_iter().zip(mask).filter(|(_, mask)| **mask == 0.0);
                prop_assert!(pruned.map(|(x, _)| x).all(|x| x == 0.0), "{}", name);
            }
        }
    }
}

/// What its ordinary adapters hold.
fn values_of_masked<A: Module>(sparse: &Sparse<A>) -> BTreeMap<String, TensorData> {
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
        let (sparse, _) = config.init(&base, 2).unwrap().prepare(base.clone(), Probe::new(&head, &examples)).unwrap();
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
        assert_eq!(large.inner.bottleneck, 12);
        let left: f32 = masks(&large.init(&base, 1).unwrap()).into_values().flatten().sum();
        let matrices = tensors(&narrow.init(&base, 1).unwrap()).into_values().filter(|data| data.shape().len() == 2);
        assert_eq!(left as usize, matrices.map(|data| data.shape().num_elements()).sum::<usize>());
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
            let message = start.prepare(base.clone(), Probe::new(&head, &examples)).unwrap_err().to_string();
            assert!(message.contains("scorer") && message.contains("erdos_renyi"), "{message}");
        }
        let random = SparseConfig::new(LoraConfig::new(3), 0.4, Scorer::ErdosRenyi);
        let gradients = gradients(&randomized(&random.init(&base, 1).unwrap(), 1), &base);
        assert!(gradients.keys().all(|name| !name.starts_with("masks.")));
    }
}
