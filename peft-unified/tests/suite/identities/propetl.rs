use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::TensorData;
use peft_additive::{PrefixTuningConfig, SequentialConfig};
use peft_core::io::peft;
use peft_core::testing::tolerances::SAME_GRADIENT;
use peft_core::testing::{base, device, difference, examples, randomized};
use peft_core::train::{TrainConfig, Trainer};
use peft_core::view::{tensors, trainable, with_values};
use peft_core::{AnyMethod, AnyTuner, Base, Example, Head, Label, Method, Trained, io};
use peft_reparam::LoraConfig;
use peft_unified::{ProPetl, ProPetlConfig};
use proptest::prelude::*;

use super::{bases, bits, gradients, values};

fn random(config: &ProPetlConfig, base: &Base, seed: u64) -> ProPetl {
    randomized(&config.init(base, seed).unwrap(), seed)
}

fn lora(density: f64) -> ProPetlConfig {
    ProPetlConfig::new(LoraConfig::new(3)).with_density(density)
}

/// The mask of scores by its definition.
fn mask(scores: &[f32], density: f64) -> Vec<f32> {
    let ones = scores.len() - ((1.0 - density) * scores.len() as f64).floor() as usize;
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].abs().total_cmp(&scores[*a].abs()));
    (0..scores.len()).map(|i| f32::from(order[..ones].contains(&i))).collect()
}

/// The layer in the name of an adapter's tensor, and the name in the first layer.
fn first(name: &str) -> (usize, String) {
    let mut words: Vec<&str> = name.split('.').collect();
    let layer = words[2].parse().unwrap();
    words[2] = "0";
    (layer, words.join("."))
}

/// What each layer's adapter holds of the shared one, computed here; all of it if there is no mask.
fn masked(
    own: &BTreeMap<String, TensorData>,
    names: impl Iterator<Item = String>,
    density: Option<f64>,
) -> BTreeMap<String, TensorData> {
    let of_layer = |name: String| {
        let (layer, first) = first(&name);
        let shared = own[&format!("prototype.{first}")].clone();
        let scores = own.get(&format!("scores.{layer}.{first}"));
        let mask = scores.zip(density).map(|(scores, density)| mask(&values(scores), density));
        let numbers = values(&shared);
        let kept = mask.map_or(numbers.clone(), |mask| numbers.iter().zip(&mask).map(|(x, m)| x * m).collect());
        (name, TensorData::new(kept, shared.shape().clone()))
    };
    names.map(of_layer).collect()
}

fn check_masked(config: &ProPetlConfig, base: &Base, seed: u64, density: Option<f64>) -> Result<(), TestCaseError> {
    let propetl = random(config, base, seed);
    let inner = config.inner.init(base, 0).unwrap();
    let values = masked(&tensors(&propetl), tensors(&inner).into_keys(), density);
    let layered = with_values(inner, &values).unwrap();
    prop_assert_eq!(bits(&propetl, base), bits(&layered, base));
    prop_assert_eq!(bits(&propetl, base), bits(&propetl.expanded(), base));
    prop_assert_ne!(bits(&propetl, base), bits(&peft_core::Bare {}, base));
    Ok(())
}

/// A gradient is another, relative to the largest: those of a mean loss are small.
fn check_gradient(found: &TensorData, expected: Vec<f32>, name: &str) -> Result<(), TestCaseError> {
    let largest = expected.iter().fold(0.0f32, |a, b| a.max(b.abs()));
    let expected = TensorData::new(expected, found.shape().clone());
    let differ = difference(found, &expected) / largest;
    prop_assert!(differ <= SAME_GRADIENT.0, "{} differs by {} of the largest, {}", name, differ, largest);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn with_all_numbers_it_is_one_adapter_in_all_layers(seed: u64) {
        for base in bases() {
            check_masked(&lora(1.0), &base, seed, None)?;
            check_masked(&ProPetlConfig::new(SequentialConfig::pfeiffer(5)).with_density(1.0), &base, seed, None)?;
        }
    }

    #[test]
    fn it_is_the_adapter_with_masked_matrices(seed: u64, density in 0.1..0.9) {
        for base in bases() {
            check_masked(&lora(density), &base, seed, Some(density))?;
            check_masked(&ProPetlConfig::new(SequentialConfig::pfeiffer(5)).with_density(density), &base, seed, Some(density))?;
        }
    }

    /// A prefix holds all layers in one tensor: each layer's part is the shared one under its mask.
    #[test]
    fn a_prefix_is_masked_behind_its_projection(seed: u64, density in 0.1..0.9) {
        for base in bases() {
            let config = ProPetlConfig::new(PrefixTuningConfig::new(4).with_projection(7)).with_density(density);
            let propetl = random(&config, &base, seed).valid();
            let (own, expanded) = (tensors(&propetl), tensors(&propetl.expanded()));
            let saved = tensors(&AnyMethod::from(config).to_saved(AnyTuner::new(propetl)));
            let (shared, all) = (&saved["prototype.embedding"], &expanded["embedding"]);
            let [rows, columns] = [shared.shape()[0], shared.shape()[1]];
            let (shared, width) = (values(shared), all.shape()[1]);
            let all = values(all);
            let layers: Vec<_> = (0..width / columns).filter_map(|l| Some((l, own.get(&format!("scores.{l}.embedding"))?))).collect();
            prop_assert!(!layers.is_empty());
            for (layer, scores) in layers {
                let mask = mask(&values(scores), density);
                for (i, row) in (0..rows * columns).map(|i| (i, i / columns)) {
                    prop_assert_eq!(all[row * width + layer * columns + i % columns], shared[i] * mask[i]);
                }
            }
        }
    }

    #[test]
    fn a_mask_has_its_share_of_ones(seed: u64, density in 0.05..=1.0) {
        for base in bases() {
            let saved = tensors(&AnyMethod::from(lora(density)).to_saved(AnyTuner::new(random(&lora(density), &base, seed).valid())));
            for (name, mask) in saved.iter().filter(|(name, _)| name.starts_with("scores.")) {
                let (n, mask) = (mask.shape().num_elements(), values(mask));
                prop_assert!(mask.iter().all(|x| *x == 0.0 || *x == 1.0));
                let ones = n - ((1.0 - density) * n as f64).floor() as usize;
                prop_assert_eq!(mask.iter().sum::<f32>() as usize, ones, "{}", name);
            }
        }
    }

    #[test]
    fn the_prototype_gets_the_gradients_of_all_layers(seed: u64, density in 0.2..0.9) {
        for base in bases() {
            let propetl = random(&lora(density), &base, seed);
            let (own, found) = (tensors(&propetl), gradients(&propetl, &base));
            let inner = LoraConfig::new(3).init(&base, 0).unwrap();
            let names = || tensors(&inner).into_keys();
            let layered = with_values(inner.clone(), &masked(&own, names(), Some(density))).unwrap();
            let apart = gradients(&layered, &base);
            let mut sums: BTreeMap<String, Vec<f32>> = BTreeMap::new();
            for name in names() {
                let (layer, first) = first(&name);
                let mask = mask(&values(&own[&format!("scores.{layer}.{first}")]), density);
                let sum = sums.entry(first).or_insert_with(|| vec![0.0; mask.len()]);
                let terms = values(&apart[&name]).into_iter().zip(mask).map(|(g, m)| g * m);
                sum.iter_mut().zip(terms).for_each(|(sum, term)| *sum += term);
            }
            for (name, sum) in sums {
                let found = &found[&format!("prototype.{name}")];
                check_gradient(found, sum, &name)?;
            }
        }
    }

    #[test]
    fn scores_get_the_gradients_of_numbers_of_one(seed: u64, density in 0.2..0.9) {
        for base in bases() {
            let propetl = random(&lora(density), &base, seed);
            let (own, found) = (tensors(&propetl), gradients(&propetl, &base));
            let inner = LoraConfig::new(3).init(&base, 0).unwrap();
            let layered = masked(&own, tensors(&inner).into_keys(), Some(density));
            let apart = gradients(&with_values(inner, &layered).unwrap(), &base);
            for (name, gradient) in apart {
                let (layer, first) = first(&name);
                let name = format!("scores.{layer}.{first}");
                let terms = values(&gradient).into_iter().zip(values(&own[&format!("prototype.{first}")]));
                let expected: Vec<f32> = terms.zip(values(&own[&name])).map(|((g, t), s)| g * t * s.signum()).collect();
                check_gradient(&found[&name], expected, &name)?;
            }
        }
    }

    #[test]
    fn only_the_order_of_the_scores_matters(seed: u64, factor in 0.1f32..9.0) {
        for base in bases() {
            let propetl = random(&lora(0.3), &base, seed);
            let scaled = |factor: f32| {
                let scores = tensors(&propetl).into_iter().filter(|(name, _)| name.starts_with("scores."));
                let scale = |(name, data): (String, TensorData)| {
                    let scaled = values(&data).into_iter().enumerate().map(|(i, x)| if i % 2 == 0 { x * factor } else { -x * factor });
                    (name, TensorData::new(scaled.collect::<Vec<_>>(), data.shape().clone()))
                };
                with_values(propetl.clone(), &scores.map(scale).collect()).unwrap()
            };
            prop_assert_eq!(bits(&propetl, &base), bits(&scaled(factor), &base));
        }
    }
}

/// Whole layers under other masks, and the bits on disk: what has n scores takes n / 8 bytes.
#[test]
fn files_hold_a_bit_for_each_score() {
    let base = peft_core::testing::base("roberta-tiny", &peft_core::testing::device());
    let config = lora(0.3);
    let trained = Trained::new(random(&config, &base, 1), Head::classifier(&base, 2, 0)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter");
    io::peft::save(&path, &config, &trained, base.shape(), &Default::default(), &[]).unwrap();
    let file = peft_core::load::Checkpoint::open_file(&path.join("adapter_model.safetensors")).unwrap();
    let bytes = |mask: bool| -> usize {
        file.names().filter(|name| name.contains(".mask.") == mask).map(|name| file.bytes(name).unwrap().len()).sum()
    };
    let scores: usize = tensors(&trained.tuner)
        .iter()
        .filter(|(name, _)| name.starts_with("scores."))
        .map(|(_, data)| data.shape().num_elements().div_ceil(8))
        .sum();
    let numbers = config.inner.count(&base.shape().clone().one_layer()).unwrap() + Head::count(base.shape(), 2);
    assert_eq!((bytes(true), bytes(false)), (scores, 4 * numbers));
    let (_, loaded) = io::peft::load_as(&lora(0.3).into(), &path, &base).unwrap();
    assert_eq!(bits(&trained.tuner, &base), bits(&loaded.tuner, &base));
}

/// A file has masks, from which no scores can be had: they stay, the prototype is trained on, and both is what is counted.
#[test]
fn loaded_masks_stay_and_the_prototype_is_trained_on() {
    {
        let base = base("roberta-tiny", &device());
        let (config, folder) = (lora(0.5), tempfile::tempdir().unwrap());
        let dir = folder.path().join("adapter");
        let trained = Trained::new(random(&config, &base, 3), Head::classifier(&base, 2, 0)).unwrap();
        peft::save(&dir, &config, &trained, base.shape(), &peft::Labels::default(), &[]).unwrap();
        let (_, loaded) = peft::load_as(&lora(0.5).into(), &dir, &base).unwrap();
        let data: Vec<Example> =
            examples(&base).into_iter().map(|e| Example { label: Some(Label::Class(e.task)), ..e }).collect();
        let trainer = Trainer::new(TrainConfig::new(1e-1).with_steps(4).with_batch_size(5));
        let after = trainer.run(&base, loaded.clone(), &data, None, &mut ()).unwrap();
        let (before, after) = (tensors(&loaded.tuner), tensors(&after.tuner));
        let prototype: usize =
            before.iter().filter(|(name, _)| !name.starts_with("scores.")).map(|(_, data)| data.num_elements()).sum();
        assert_eq!(trainable(&loaded.tuner), prototype);
        for (name, values) in &before {
            assert_eq!(values == &after[name], name.starts_with("scores."), "{name}");
        }
        let path = dir.join("adapter_config.json");
        let other = std::fs::read_to_string(&path).unwrap().replace("\"density\": 0.5", "\"density\": 0.25");
        std::fs::write(&path, other).unwrap();
        let message = peft::load_as(&lora(0.5).into(), &dir, &base).unwrap_err().to_string();
        assert!(message.contains("mask") && message.contains("settings"), "{message}");
    }
}
