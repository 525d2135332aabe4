//! What the methods are equal to: transformers, and, those that mask, each other, on random states, every architecture and whole runs.

mod child_tuning;
mod diff_pruning;
mod fish_mask;
mod lt_sft;
mod masked_update;
mod pruned_bitfit;
mod reference;
mod sam;
mod threshold_mask;

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::TensorData;
use peft_core::loss::targets;
use peft_core::random::Random;
use peft_core::testing::golden::named;
use peft_core::testing::tolerances::SAME_FUNCTION;
use peft_core::testing::{self, device, fixtures::SHAPES, recorded::Recorded};
use peft_core::train::{Checkpoints, Observer, StepReport, TrainConfig, Trainer};
use peft_core::view::{tensors, with_values};
use peft_core::{
    Architecture, Base, Error, Example, Head, Key, Label, LanguageModel, Method, Place, Procedure, Result, Trained,
    slot_name,
};
use peft_partial::FullConfig;

/// The run in this directory of golden files.
fn recorded(name: &str) -> Recorded {
    Recorded::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name), "roberta-classify")
}

/// What files call a tensor that full fine-tuning names so.
fn key(name: &str, base: &Base) -> Key {
    FullConfig::default().key(name, base.shape())
}

/// Those tensors whose names start so, by the rest of their names.
fn under(tensors: &Values, start: &str) -> Values {
    let rest = |(name, data): (&String, &TensorData)| Some((name.strip_prefix(start)?.to_string(), data.clone()));
    tensors.iter().filter_map(rest).collect()
}

type Values = BTreeMap<String, TensorData>;

/// The models that every identity is tested on.
fn bases() -> impl Iterator<Item = Base> {
    SHAPES.into_iter().map(|shape| testing::base(shape, &device()))
}

/// Dropout, weight decay and batches that are cut.
fn settings(seed: u64) -> TrainConfig {
    let settings = TrainConfig::new(1e-2).with_batch_size(4).with_steps(5).with_seed(seed);
    TrainConfig { weight_decay: 0.3, dropout: Some(0.1), micro_rows: 20, threads: 1, ..settings }
}

/// Labelled examples. LLaMA predicts words, since a class says nothing to its vocabulary.
fn data(base: &Base) -> Vec<Example> {
    let mut examples = testing::examples(base);
    if let Architecture::Llama(_) = base.shape().architecture {
        for example in &mut examples {
            example.label = Some(Label::Words(example.ids.iter().map(|id| *id as i32).collect()));
        }
    }
    examples
}

fn start<M: Method>(config: &M, base: &Base) -> Trained<M::Tuner> {
    let head = match base.shape().architecture {
        Architecture::Llama(_) => Head::LanguageModel(LanguageModel {}),
        _ => Head::classifier(base, 2, 0),
    };
    Trained::new(config.init(base, 0).unwrap(), head).unwrap()
}

fn train<T: Procedure>(settings: TrainConfig, base: &Base, trained: Trained<T>) -> Trained<T> {
    Trainer::new(settings).run(base, trained, &data(base), None, &mut ()).unwrap()
}

/// Asserts that a run that is stopped in its third step and taken up from its checkpoints ends as one that is not.
fn assert_taken_up<M: Method>(config: &M, seed: u64) {
    assert_taken_up_on(bases(), config, seed);
}

/// The same on these models.
fn assert_taken_up_on<M: Method>(bases: impl Iterator<Item = Base>, config: &M, seed: u64) {
    struct Stop(bool);
    impl Observer for Stop {
        fn step(&mut self, report: &StepReport) -> Result<()> {
            match report.step {
                3 if self.0 => Err(Error::config("step", 3, "a run that is not stopped")),
                _ => Ok(()),
            }
        }
    }
    for base in bases {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints { dir: folder.path().join("checkpoints"), every: Some(1), resume: true };
        let trainer = Trainer::new(settings(seed)).with_checkpoints(checkpoints);
        let run = |stop| trainer.run(&base, start(config, &base), &data(&base), None, &mut Stop(stop));
        assert!(run(true).is_err());
        let taken_up = run(false).unwrap();
        assert_eq!(tensors(&taken_up), tensors(&train(settings(seed), &base, start(config, &base))));
    }
}

fn numbers(data: &TensorData) -> Vec<f32> {
    data.iter::<f32>().collect()
}

/// The module with other values in those of its tensors whose names start so.
fn with_each<M: Module>(module: &M, start: &str, value: impl Fn(&str, f32) -> f32) -> M {
    let changed = |(name, data): (String, TensorData)| {
        let values: Vec<f32> = data.iter::<f32>().map(|x| value(&name, x)).collect();
        (name, TensorData::new(values, data.shape().clone()))
    };
    let values: Values = tensors(module).into_iter().filter(|(name, _)| name.starts_with(start)).map(changed).collect();
    assert!(!values.is_empty(), "no tensor {start}");
    with_values(module.clone(), &values).unwrap()
}

/// All tensors of a base with a method folded in, by the names of full fine-tuning.
fn whole<M: Method>(tuner: &M::Tuner, base: &Base) -> Values {
    let merged = base.merged(M::merge(&tuner.valid()).expect("the method merges"));
    tensors(&FullConfig::default().init(&merged, 0).unwrap())
}

/// Which numbers a masked update trains, by its own tensors and the tensors that it is of.
fn masks(update: &Values, places: &[Place]) -> BTreeMap<String, Vec<bool>> {
    let mut indices = update["indices"].iter::<i64>();
    let counts = update["counts"].iter::<i64>().collect::<Vec<_>>();
    assert_eq!(counts.len(), places.len());
    let mask = |(place, count): (&Place, &i64)| {
        let mut mask = vec![false; place.count()];
        for index in indices.by_ref().take(*count as usize) {
            mask[index as usize] = true;
        }
        (slot_name(place.site, place.slot), mask)
    };
    places.iter().zip(&counts).map(mask).collect()
}

/// The places of the examples as methods draw them before the first step.
fn drawn(seed: u64, base: &Base) -> Vec<usize> {
    Random::new(seed, "examples before the first step").permutation(data(base).len())
}

/// The gradient of the mean loss of some examples, of all tensors of the base, without dropout.
fn gradient(base: &Base, examples: &[&Example]) -> BTreeMap<String, Vec<f32>> {
    let trained = start(&FullConfig::default(), base);
    let labels: Vec<&Label> = examples.iter().map(|example| example.label.as_ref().unwrap()).collect();
    let count = targets(labels.iter().copied(), trained.head.ahead(base.shape())) as f32;
    let loss = trained.loss(base, &base.batch(examples).unwrap(), &labels).unwrap() / count;
    let gradients = named(&trained.tuner, &GradientsParams::from_grads(loss.backward(), &trained.tuner));
    gradients.into_iter().map(|(name, gradient)| (name, numbers(&gradient))).collect()
}

/// Asserts that a mask has as many numbers as asked for, none with a smaller score than one that is left out.
fn assert_largest(mask: &BTreeMap<String, Vec<bool>>, scores: &BTreeMap<String, Vec<f32>>, count: usize) {
    let (mut least, mut most, mut found) = (f32::INFINITY, 0f32, 0);
    for (name, kept) in mask {
        for (kept, score) in kept.iter().zip(&scores[name]) {
            match kept {
                true => (least, found) = (least.min(*score), found + 1),
                false => most = most.max(*score),
            }
        }
    }
    assert_eq!(found, count);
    assert!(least >= most * (1.0 - SAME_FUNCTION.0), "{least} in the mask, {most} outside");
}

/// Masks as tensors of zeros and ones.
fn dense(masks: BTreeMap<String, Vec<bool>>, base: &Base) -> Values {
    let of = |place: Place| {
        let name = slot_name(place.site, place.slot);
        let mask: Vec<f32> = masks.get(&name)?.iter().map(|kept| f32::from(*kept)).collect();
        Some((name, TensorData::new(mask, place.dims)))
    };
    base.shape().places().into_iter().filter_map(of).collect()
}
