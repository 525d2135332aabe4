//! What the methods are equal to: transformers, and, those that mask, each other, on random states, every architecture and whole runs.

mod child_tuning;
mod diff_pruning;
mod reference;

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::tensor::TensorData;
use peft_core::testing::{self, device, fixtures::SHAPES, recorded::Recorded};
use peft_core::train::{Checkpoints, Observer, StepReport, TrainConfig, Trainer};
use peft_core::view::{tensors, with_values};
use peft_core::{
    Architecture, Base, Error, Example, Head, Key, Label, LanguageModel, Method, Procedure, Result, Trained,
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
    struct Stop(bool);
    impl Observer for Stop {
        fn step(&mut self, report: &StepReport) -> Result<()> {
            match report.step {
                3 if self.0 => Err(Error::config("step", 3, "a run that is not stopped")),
                _ => Ok(()),
            }
        }
    }
    for base in bases() {
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
