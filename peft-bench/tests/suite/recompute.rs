//! Training whose backward computes layers again, against training that keeps all of its forward.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::ParamId;
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData};
use peft_bench::registry::METHODS;
use peft_core::io::peft::with_words;
use peft_core::random::Random;
use peft_core::testing::tolerances::SAME_GRADIENT;
use peft_core::testing::{base, device, difference, examples};
use peft_core::train::{Probe, Procedure, Run, TrainConfig};
use peft_core::view::{Visit, trainable, visit};
use peft_core::{AnyTuner, Base, Example, Head, Label, LanguageModel, Trained};
use peft_quant::quantized;

use super::packed::{settings, sources};

/// A run's start and its data, if the method can be on the model and trains something.
fn start(method: fn() -> peft_core::AnyMethod, base: &Base) -> Option<(Trained<AnyTuner>, Vec<Example>)> {
    let words: Vec<String> = settings(method().name()).iter().map(|word| word.to_string()).collect();
    let method = with_words(&method(), &words).unwrap();
    let method = method.clone().from_sources(sources(&method, base).unwrap());
    let tuner = method.init(base, 3).ok()?;
    let mut data = examples(base);
    data.iter_mut().for_each(|example| example.task = 0);
    let head = match data[0].label {
        Some(Label::Words(_)) => Head::LanguageModel(LanguageModel {}),
        _ => Head::classifier(base, 2, 3),
    };
    let run = Trained::new(tuner, head).unwrap();
    (trainable(&run) > 0).then_some((run, data))
}

fn config(again: bool) -> TrainConfig {
    let config = TrainConfig::new(1e-2).with_batch_size(5).with_steps(80);
    TrainConfig { threads: 2, dropout: Some(0.1), micro_rows: 12, gradient_checkpointing: again, ..config }
}

/// The gradients of all that is trained, by name.
fn gradients(run: &Run<AnyTuner>, data: &[Example]) -> (f64, BTreeMap<String, TensorData>) {
    struct Named(GradientsParams, BTreeMap<String, TensorData>);
    impl Visit for Named {
        fn tensor<const D: usize>(&mut self, name: &str, id: ParamId, _: Tensor<D>) {
            if let Some(gradient) = self.0.remove::<D>(id) {
                self.1.insert(name.to_string(), gradient.into_data());
            }
        }
    }
    let (loss, gradients) = run.gradients(&run.trained, &data.iter().collect::<Vec<_>>()).unwrap();
    let mut named = Named(gradients, BTreeMap::new());
    visit(&run.trained, &mut named);
    (loss, named.1)
}

/// Of every method, after a first step (many start where their gradients are 0), with dropout, on dense bases and on four bits.
#[test]
fn gradients_are_those_of_a_forward_that_is_kept() {
    let (mut compared, mut refused) = (BTreeSet::new(), BTreeSet::new());
    for shape in ["roberta-tiny", "t5-tiny", "llama-tiny"] {
        let dense = base(shape, &device());
        let packed = quantized(&dense, "nf4-double".parse().unwrap()).unwrap();
        for (base, entry) in METHODS.iter().map(|entry| (if entry.name == "qlora" { &packed } else { &dense }, entry)) {
            let Some((trained, data)) = start(entry.method, base) else { continue };
            let what = format!("{} on {shape}", entry.name);
            let probe = Probe::new(&trained.head, &data);
            let tuner = trained.tuner.clone().prepare(base, probe.with_run(&config(false))).unwrap();
            let trained = Trained { tuner, ..trained.clone() };
            let mut run = Run::new(&config(false), base.clone(), trained.clone()).unwrap();
            let mut again = match Run::new(&config(true), base.clone(), trained) {
                Ok(run) => run,
                Err(error) => {
                    assert!(error.to_string().contains("gradient_checkpointing"), "{what}: {error}");
                    refused.insert(entry.name);
                    continue;
                }
            };
            run.step(&data).unwrap_or_else(|error| panic!("{what}: {error}"));
            run.trained.tuner = run.trained.tuner.sample(&mut Random::new(6, "route"));
            (again.trained, again.step) = (run.trained.clone(), run.step);
            let ((loss, kept), (same, computed)) = (gradients(&run, &data), gradients(&again, &data));
            assert!((loss - same).abs() <= f64::from(SAME_GRADIENT.0) * loss.abs(), "{what}: {loss} and {same}");
            assert!(kept.keys().eq(computed.keys()), "{what}: {:?} and {:?}", kept.keys(), computed.keys());
            // Of the largest of all: some, of a key's bias, are sums that would be 0 without rounding.
            let largest = kept.values().flat_map(|data| data.iter::<f32>()).fold(0f32, |a, b| a.max(b.abs()));
            for (name, data) in &kept {
                let off = difference(data, &computed[name]);
                assert!(off <= SAME_GRADIENT.0 * largest, "{what}, {name}: {off} of {largest}");
            }
            if largest > 0.0 {
                compared.insert(entry.name);
            }
        }
    }
    assert_eq!(refused.iter().copied().collect::<Vec<_>>(), ["attention-fusion", "laplace-lora", "lst"]);
    let left =
        METHODS.iter().map(|entry| entry.name).filter(|name| !compared.contains(name) && !refused.contains(name));
    assert_eq!(left.collect::<Vec<_>>(), Vec::<&str>::new(), "methods that were not compared");
}
