//! What holds of every method that masks an update.

use std::path::Path;

use burn::tensor::TensorData;
use peft_core::io::peft::{Labels, load, save};
use peft_core::load::{Checkpoint, write_safetensors};
use peft_core::testing::randomized;
use peft_core::train::{Run, TrainConfig};
use peft_core::view::{tensors, trainable};
use peft_core::{Base, Head, Method, Place, Trained};
use peft_partial::{ChildMode, ChildTuningConfig, FishMaskConfig, FullConfig, LtSftConfig, SamConfig};
use proptest::prelude::*;

use super::{Values, assert_taken_up, bases, data, masks, numbers, settings, start, train, under, whole};

fn child(share: f64) -> ChildTuningConfig {
    ChildTuningConfig::new(ChildMode::TaskDriven, share)
}

/// Asserts that all tensors after a run are those before it but where the method's masks are, under weight decay.
fn assert_keeps<M: Method>(config: &M, seed: u64) {
    for base in bases() {
        let before = tensors(&FullConfig::default().init(&base, 0).unwrap());
        let tuner = train(settings(seed), &base, start(config, &base)).tuner;
        let own =
            tensors(&tuner).into_iter().map(|(name, data)| (name.trim_start_matches("update.").to_string(), data));
        let (masks, after) = (masks(&own.collect(), &base.shape().places()), whole::<M>(&tuner, &base));
        let (mut moved, mut all) = (0, 0);
        for (name, before) in before {
            for ((old, new), moves) in numbers(&before).into_iter().zip(numbers(&after[&name])).zip(&masks[&name]) {
                assert!(*moves || old.to_bits() == new.to_bits(), "{name}: {old} {new}");
                all += usize::from(*moves);
                moved += usize::from(old.to_bits() != new.to_bits());
            }
        }
        assert_eq!(all, config.count(base.shape()).unwrap());
        // Not quite all: behind a ReLU that lets nothing through in these steps there is no gradient.
        assert!(2 * moved >= all, "{moved} of {all} moved");
    }
}

/// Asserts that a run with all numbers trained is one of full fine-tuning.
fn assert_full<M: Method>(config: &M, seed: u64) {
    for base in bases() {
        // The norm of all gradients is another sum where they are one vector.
        let settings = TrainConfig { max_grad_norm: 0.0, ..settings(seed) };
        let full = train(settings.clone(), &base, start(&FullConfig::default(), &base));
        let own = train(settings, &base, start(config, &base));
        assert_eq!(tensors(&own.head), tensors(&full.head));
        assert!(whole::<M>(&own.tuner, &base) == whole::<FullConfig>(&full.tuner, &base), "{}", M::NAME);
    }
}

/// How many numbers the optimizer remembers of what a run trains, beside the head.
fn remembered<M: Method>(config: &M, base: &Base) -> usize {
    let run = |steps| TrainConfig { warmup_steps: 0, ..settings(1) }.with_steps(steps);
    let mut run = Run::new(&run(2), base.clone(), start(config, base)).unwrap();
    run.step(&data(base)).unwrap();
    let states = run.optim.save(&run.trained).tensors;
    states.iter().filter(|(name, _)| name.starts_with("tuner.")).map(|(_, state)| state.shape().num_elements()).sum()
}

/// The file of a trained adapter.
fn saved<M: Method>(config: &M, base: &Base, folder: &Path) -> Checkpoint {
    let trained = train(settings(1), base, start(config, base));
    save(&folder.join("adapter"), config, &trained, base.shape(), &Labels::default(), &[]).unwrap();
    Checkpoint::open_file(&folder.join("adapter/adapter_model.safetensors")).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2))]

    #[test]
    fn what_is_not_masked_in_keeps_its_bits(seed: u64) {
        assert_keeps(&FishMaskConfig::new(0.05), seed);
        assert_keeps(&SamConfig::new(0.05), seed);
        assert_keeps(&SamConfig::new(0.05).per_tensor(), seed);
        assert_keeps(&LtSftConfig::new(0.05), seed);
    }

    #[test]
    fn all_numbers_are_full_fine_tuning(seed: u64) {
        assert_full(&FishMaskConfig::new(1.0), seed);
        assert_full(&SamConfig::new(1.0), seed);
    }

    #[test]
    fn a_masked_run_taken_up_ends_with_the_same_bits(seed: u64) {
        assert_taken_up(&FishMaskConfig::new(0.03), seed);
        assert_taken_up(&SamConfig::new(0.03).per_tensor(), seed);
        // Stopped in the first phase, and in the second.
        assert_taken_up(&LtSftConfig::new(0.03).with_full_share(0.8), seed);
        assert_taken_up(&LtSftConfig::new(0.03).with_full_share(0.4), seed);
    }

    #[test]
    fn merging_writes_the_trained_numbers_and_nothing_else(seed: u64) {
        for base in bases() {
            let tuner = randomized(&FishMaskConfig::new(0.1).init(&base, 0).unwrap(), seed);
            let (own, masks) = (tensors(&tuner), masks(&tensors(&tuner), &base.shape().places()));
            let before = tensors(&FullConfig::default().init(&base, 0).unwrap());
            let after = whole::<FishMaskConfig>(&tuner, &base);
            let mut values = numbers(&own["values"]).into_iter();
            for place in base.shape().places() {
                let name = peft_core::slot_name(place.site, place.slot);
                for ((old, new), moves) in numbers(&before[&name]).into_iter().zip(numbers(&after[&name])).zip(&masks[&name]) {
                    let expected = if *moves { values.next().unwrap() } else { old };
                    prop_assert_eq!(new.to_bits(), expected.to_bits(), "{}", name);
                }
            }
            prop_assert!(values.next().is_none());
        }
    }
}

/// AdamW's are two for each number that moves.
#[test]
fn optimizers_have_states_of_what_is_trained() {
    for base in bases() {
        let (whole, shape) = (base.shape().count(), base.shape());
        assert_eq!(remembered(&FullConfig::default(), &base), 2 * whole);
        let (fish, sam, child) = (FishMaskConfig::new(0.01), SamConfig::new(0.01), child(0.1));
        assert_eq!(remembered(&fish, &base), 2 * (whole / 100));
        assert_eq!(remembered(&sam, &base), 2 * (whole / 100));
        assert_eq!(remembered(&child, &base), 2 * child.count(shape).unwrap());
    }
}

#[test]
fn files_hold_indices_and_values() {
    for base in bases() {
        let (folder, shape) = (tempfile::tempdir().unwrap(), base.shape());
        let (k, config) = (shape.count() / 50, FishMaskConfig::new(0.02));
        let file = saved(&config, &base, folder.path());
        let of = |name: &str| file.entry(&format!("base_model.model.{name}")).unwrap();
        let found = ["values", "indices", "counts"].map(|name| (of(name).dtype.clone(), of(name).shape.clone()));
        let int = |n: usize| ("I32".to_string(), vec![n]);
        assert_eq!(found, [("F32".to_string(), vec![k]), int(k), int(shape.places().len())]);
        // Four bytes for a value, four for its index; a dense difference has four for each number of the base.
        let bytes = |name: &str| file.bytes(name).unwrap().len();
        let own: usize = file.names().filter(|name| !name.contains("classifier")).map(bytes).sum();
        assert_eq!(own, 8 * k + 4 * shape.places().len());
        assert!(10 * own < 4 * shape.count(), "{own} of {}", 4 * shape.count());
    }
}

/// The start of a second run is what the first one has left, and the numbers stay the chosen ones.
#[test]
fn a_loaded_mask_stays_and_is_trained_on() {
    for base in bases() {
        let folder = tempfile::tempdir().unwrap();
        // On another example a run with another seed would choose other numbers.
        saved(&FishMaskConfig::new(0.02).with_num_samples(1), &base, folder.path());
        let (config, loaded) = load::<FishMaskConfig>(&folder.path().join("adapter"), &base).unwrap();
        assert_eq!(trainable(&loaded.tuner), config.count(base.shape()).unwrap());
        let head = start(&config, &base).head;
        let before = tensors(&loaded.tuner);
        let after = tensors(&train(settings(5), &base, Trained::new(loaded.tuner, head).unwrap()).tuner);
        assert_eq!((&before["indices"], &before["counts"]), (&after["indices"], &after["counts"]));
        let pairs = numbers(&before["values"]).into_iter().zip(numbers(&after["values"]));
        assert!(pairs.filter(|(before, after)| before != after).count() * 2 > config.count(base.shape()).unwrap());
    }
}

/// Asserts that files whose masks cannot be are refused by name; of these tensors the method trains some numbers.
fn assert_checks<M: Method>(config: &M, base: &Base, places: &[Place]) {
    let tuner = config.init(base, 0).unwrap();
    let trained = Trained::new(tuner.clone(), Head::classifier(base, 2, 0)).unwrap();
    let of = |words: &str| {
        let (name, data) = tensors(&tuner).into_iter().find(|(name, _)| name.ends_with(words)).unwrap();
        (config.key(&name, base.shape()).name, data.iter::<i64>().collect::<Vec<_>>())
    };
    let [(counts_name, counts), (indices_name, indices)] = ["counts", "indices"].map(of);
    let first = counts.iter().position(|count| *count > 1).unwrap();
    let last = counts.iter().rposition(|count| *count > 0).unwrap();
    let start = counts[..first].iter().sum::<i64>() as usize;
    let with = |numbers: &[i64], at: usize, number: i64| {
        let mut numbers = numbers.to_vec();
        numbers[at] = number;
        numbers
    };
    let elements = places[first].count() as i64;
    for (counts, indices, words) in [
        (counts.clone(), with(&indices, start, -1), "indices: found -1,"),
        (counts.clone(), with(&indices, start + counts[first] as usize - 1, elements), "indices: found "),
        (counts.clone(), with(&indices, start + 1, indices[start]), "in rising order"),
        (with(&counts, first, -1), indices.clone(), "counts: found -1 of "),
        (with(&counts, first, i64::from(i32::MAX)), indices.clone(), "counts: found 2147483647 of "),
        (with(&counts, last, counts[last] - 1), indices.clone(), " in all"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let adapter = folder.path().join("adapter");
        save(&adapter, config, &trained, base.shape(), &Labels::default(), &[]).unwrap();
        let path = adapter.join("adapter_model.safetensors");
        let file = Checkpoint::open_file(&path).unwrap();
        let whole = |numbers: &[i64]| TensorData::new(numbers.to_vec(), [numbers.len()]);
        let mut contents: Values = file
            .names()
            .filter(|name| ![&counts_name, &indices_name].contains(&&name.to_string()))
            .map(|name| (name.to_string(), file.read_f32(name, file.shape(name).unwrap()).unwrap()))
            .collect();
        contents.insert(counts_name.clone(), whole(&counts));
        contents.insert(indices_name.clone(), whole(&indices));
        write_safetensors(&path, &contents).unwrap();
        let message = load::<M>(&adapter, base).unwrap_err().to_string();
        assert!(message.contains(words) && message.contains("adapter_model.safetensors"), "{words}: {message}");
    }
}

#[test]
fn what_no_mask_has_is_refused_by_name() {
    let base = bases().next().unwrap();
    let places = base.shape().places();
    assert_checks(&FishMaskConfig::new(0.01), &base, &places);
    assert_checks(&SamConfig::new(0.01), &base, &places);
    assert_checks(&LtSftConfig::new(0.01), &base, &places);
    let layers: Vec<Place> = places.into_iter().filter(|place| place.name.contains("layer")).collect();
    assert_checks(&child(0.01), &base, &layers);
}

/// What stands in the file of D is the rest of the base and the child.
#[test]
fn files_of_a_chosen_child_hold_the_child_and_the_rest() {
    for base in bases() {
        let (folder, config) = (tempfile::tempdir().unwrap(), child(0.1));
        let file = saved(&config, &base, folder.path());
        let bytes = |name: &str| file.bytes(name).unwrap().len();
        let own: usize = file.names().filter(|name| !name.contains("classifier")).map(bytes).sum();
        let layers = base.shape().places().into_iter().filter(|place| place.name.contains("layer")).count();
        let child = config.reserved(base.shape()).unwrap();
        assert_eq!(own, 4 * config.count(base.shape()).unwrap() + 4 * child + 4 * layers);
        let (_, loaded) = load::<ChildTuningConfig>(&folder.path().join("adapter"), &base).unwrap();
        assert!(!under(&tensors(&loaded.tuner), "update.").is_empty());
    }
}
