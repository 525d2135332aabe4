//! Every method on a base of four bits, and models that are packed in their files or as they are read.

use peft_bench::registry::METHODS;
use peft_core::testing::{base, device, examples};
use peft_core::train::{TrainConfig, Trainer};
use peft_core::view::trainable;
use peft_core::{AnyMethod, Base, Head, Label, LanguageModel, Result, Source, Trained};
use peft_quant::quantized;

/// Finished adapters for methods that start from such.
fn sources(method: &AnyMethod, base: &Base) -> Result<Vec<Source>> {
    let of = match method.name() {
        "adapter-fusion" | "attempt" | "spot" | "lorahub" => method.name(),
        _ => return Ok(vec![]),
    };
    let source = |i: u64| {
        let config = match of {
            "adapter-fusion" => AnyMethod::of::<peft_additive::SequentialConfig>(),
            "lorahub" => AnyMethod::of::<peft_reparam::LoraConfig>(),
            _ => AnyMethod::of::<peft_additive::PromptTuningConfig>(),
        };
        let trained = Trained::new(config.init(base, i)?, Head::classifier(base, 2, i))?;
        Ok(Source { name: format!("source-{i}"), config, trained })
    };
    (0..2).map(source).collect()
}

#[test]
fn every_method_trains_on_a_base_of_four_bits() {
    let mut trained = vec![];
    for shape in ["roberta-tiny", "t5-tiny", "llama-tiny"] {
        let dense = base(shape, &device());
        let (packed, _) = quantized(&dense, "nf4-double".parse().unwrap()).unwrap();
        let before = packed.fingerprint();
        for entry in METHODS {
            let method = (entry.method)();
            let method = method.clone().from_sources(sources(&method, &packed).unwrap());
            let start = |base: &Base| method.init(base, 3).map_err(|error| error.to_string());
            // What cannot be on this model cannot be on it in either form.
            let tuner = match (start(&packed), start(&dense)) {
                (Ok(tuner), Ok(_)) => tuner,
                (packed, dense) => {
                    let [packed, dense] = [packed, dense].map(|start| start.err().expect("neither starts"));
                    assert_eq!(packed, dense, "{} on {shape}", entry.name);
                    continue;
                }
            };
            let data = examples(&packed);
            let head = match data[0].label {
                Some(Label::Words(_)) => Head::LanguageModel(LanguageModel {}),
                _ => Head::classifier(&packed, 2, 3),
            };
            let run = Trained::new(tuner, head).unwrap();
            if trainable(&run) == 0 {
                continue;
            }
            let settings = TrainConfig { threads: 1, ..TrainConfig::new(1e-2).with_batch_size(5).with_steps(12) };
            // It checks that every trained tensor has a gradient and has moved.
            let result = Trainer::new(settings).run(&packed, run, &data, None, &mut ());
            let result = result.unwrap_or_else(|error| panic!("{} on {shape}: {error}", entry.name));
            let batch = packed.batch(&data.iter().collect::<Vec<_>>()).unwrap();
            let logits = result.logits(&packed, &batch).unwrap().into_data();
            assert!(logits.iter::<f32>().all(f32::is_finite), "{} on {shape}", entry.name);
            assert_eq!(packed.fingerprint(), before, "{} on {shape}", entry.name);
            trained.push(entry.name);
        }
    }
    let left = METHODS.iter().map(|entry| entry.name).filter(|name| !trained.contains(name));
    assert_eq!(left.collect::<Vec<_>>(), Vec::<&str>::new(), "methods that trained on no model");
}
