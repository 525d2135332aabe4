use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::TensorData;
use peft_core::testing::fixtures::ENCODERS;
use peft_core::testing::tolerances::FINITE_DIFFERENCE;
use peft_core::testing::{base, batch, device, examples, randomized};
use peft_core::train::{Probe, Procedure};
use peft_core::view::{tensors, with_values};
use peft_core::{Base, Example, Head, Label, LanguageModel, Method, Result, Trained};
use peft_hybrid::{PrunedMam, PrunedMamConfig};

use super::{bases, bits, gradients, values};

fn config() -> PrunedMamConfig {
    PrunedMamConfig::new(5, 7, 0.6)
}

fn both() -> [PrunedMamConfig; 2] {
    [false, true].map(|structured| config().with_structured(structured))
}

fn head(data: &[Example], base: &Base) -> Head {
    match data[0].label {
        Some(Label::Words(_)) => Head::LanguageModel(LanguageModel {}),
        // One at its start would give next to the same logits whatever it reads.
        _ => randomized(&Head::classifier(base, 2, 1), 1),
    }
}

/// At the beginning of the second phase.
fn pruned(start: PrunedMam, base: &Base) -> Result<PrunedMam> {
    let data = examples(base);
    start.prepare(base, Probe::new(&head(&data, base), &data).with_phase(1))
}

fn random(config: &PrunedMamConfig, base: &Base) -> PrunedMam {
    randomized(&config.init(base, 3).unwrap(), 5)
}

/// What each number of a tensor is multiplied by, where there is a mask.
fn masks(pruned: &PrunedMam) -> BTreeMap<String, Vec<f32>> {
    let masks = tensors(pruned).into_iter();
    masks.filter_map(|(name, data)| Some((name.strip_prefix("masks.")?.to_string(), values(&data)))).collect()
}

fn of_mam(pruned: &PrunedMam) -> BTreeMap<String, TensorData> {
    let own = tensors(pruned).into_iter();
    own.filter_map(|(name, data)| Some((name.strip_prefix("mam.")?.to_string(), data))).collect()
}

#[test]
fn with_all_numbers_it_is_mam() {
    for base in bases() {
        for config in both() {
            let whole = PrunedMamConfig { density: 1.0, ..config.clone() };
            let whole = pruned(random(&whole, &base), &base).unwrap();
            let mam = with_values(config.mam().init(&base, 0).unwrap(), &of_mam(&whole)).unwrap();
            assert_eq!(bits(&whole, &base), bits(&mam, &base));
            let part = pruned(random(&config, &base), &base).unwrap();
            assert_ne!(bits(&part, &base), bits(&mam, &base));
        }
    }
}

/// The loss with w (1 - h) less that with w (1 + h), over 2 h.
#[test]
fn scores_are_first_order_changes_of_the_loss() {
    for base in ENCODERS.map(|shape| base(shape, &device())) {
        let (data, pruned) = (examples(&base), random(&config(), &base));
        let head = head(&data, &base);
        let scores = pruned.scores(&base, Probe::new(&head, &data)).unwrap();
        let labels: Vec<&Label> = data.iter().filter_map(|example| example.label.as_ref()).collect();
        let (own, batch, h) = (tensors(&pruned), batch(&base), 0.01);
        let loss = |name: &str, place: usize, factor: f32| {
            let mut moved = values(&own[name]);
            moved[place] *= factor;
            let moved = TensorData::new(moved, own[name].shape().clone());
            let tuner = with_values(pruned.clone(), &BTreeMap::from([(name.to_string(), moved)])).unwrap().valid();
            let trained = Trained::new(tuner, head.clone().valid()).unwrap();
            trained.loss(&base, &batch, &labels).unwrap().into_scalar::<f32>() / labels.len() as f32
        };
        let size = scores.values().flatten().map(|score| score.abs()).fold(0.0, f32::max);
        for (name, scores) in &scores {
            let largest = scores.iter().map(|score| score.abs()).fold(0.0, f32::max);
            let place = scores.iter().position(|score| score.abs() == largest).unwrap();
            let name = format!("mam.{name}");
            let slope = (loss(&name, place, 1.0 - h) - loss(&name, place, 1.0 + h)) / (2.0 * h);
            assert!((slope - scores[place]).abs() <= FINITE_DIFFERENCE.0 * size, "{name}: {slope}, {}", scores[place]);
            assert!(largest > 0.0);
        }
    }
}

#[test]
fn as_many_are_left_as_asked_for() {
    for base in bases() {
        for config in both() {
            let start = random(&config, &base);
            assert!(masks(&start).values().flatten().all(|mask| *mask == 1.0));
            let masks = masks(&pruned(start, &base).unwrap());
            let left = |masks: &mut dyn Iterator<Item = &Vec<f32>>| {
                let all: Vec<f32> = masks.flatten().copied().collect();
                (all.iter().sum::<f32>() as usize, all.len())
            };
            let (left, n) = match config.structured {
                false => left(&mut masks.values()),
                true => left(&mut masks.iter().filter(|(name, _)| name.ends_with("down.bias")).map(|(_, mask)| mask)),
            };
            assert_eq!(left, (0.6 * n as f64) as usize);
            assert_eq!(n, if config.structured { 7 * masks.len() / 3 } else { config.count(base.shape()).unwrap() });
        }
    }
}

/// No unit that is left has a lower sum than one that is removed, and each is left or removed in all of its three tensors.
#[test]
fn units_are_scored_by_their_columns() {
    for base in bases() {
        let (data, start) = (examples(&base), random(&config().with_structured(true), &base));
        let scores = start.scores(&base, Probe::new(&head(&data, &base), &data)).unwrap();
        let masks = masks(&pruned(start, &base).unwrap());
        let (mut left, mut removed) = (vec![], vec![]);
        for (name, units) in masks.iter().filter_map(|(name, mask)| Some((name.strip_suffix(".down.bias")?, mask))) {
            let [down, up] = ["down", "up"].map(|map| &masks[&format!("{name}.{map}.weight")]);
            for (unit, mask) in units.iter().enumerate() {
                assert!(down.iter().skip(unit).step_by(7).chain(&up[unit * 24..(unit + 1) * 24]).all(|m| m == mask));
                let sum: f32 = scores[&format!("{name}.down.weight")].iter().skip(unit).step_by(7).sum();
                if *mask == 1.0 { left.push(sum) } else { removed.push(sum) }
            }
        }
        assert!(masks.keys().all(|name| name.starts_with("1.")) && !removed.is_empty());
        assert!(
            left.iter().copied().fold(f32::INFINITY, f32::min) >= removed.into_iter().fold(f32::NEG_INFINITY, f32::max)
        );
    }
}

#[test]
fn what_is_removed_is_out() {
    for base in bases() {
        for config in both() {
            let pruned = pruned(random(&config, &base), &base).unwrap();
            let (masks, own, gradients) = (masks(&pruned), of_mam(&pruned), gradients(&pruned, &base));
            let moved = masks.iter().map(|(name, mask)| {
                let numbers = values(&own[name]).into_iter().zip(mask).map(|(w, m)| w + 3.0 * (1.0 - m)).collect();
                (format!("mam.{name}"), TensorData::new::<f32, _>(numbers, own[name].shape().clone()))
            });
            let moved = with_values(pruned.clone(), &moved.collect()).unwrap();
            assert_ne!(of_mam(&moved), own);
            assert_eq!(bits(&moved, &base), bits(&pruned, &base));
            for (name, mask) in &masks {
                let gradient = values(&gradients[&format!("mam.{name}")]);
                assert!(gradient.iter().zip(mask).all(|(g, m)| *m == 1.0 || *g == 0.0), "{name}");
            }
        }
    }
}

#[test]
fn an_untrained_adapter_is_refused() {
    for base in bases() {
        for config in both() {
            let message = pruned(config.init(&base, 1).unwrap(), &base).unwrap_err().to_string();
            assert!(message.contains("dense_steps") && message.contains("scores of 0"), "{message}");
        }
    }
}
