//! Training whose backward computes layers again, against training that keeps all of its forward.

use std::collections::BTreeMap;

use burn::tensor::TensorData;
use peft_bench::registry::by_name;
use peft_core::io::peft::with_words;
use peft_core::testing::{base, device, examples};
use peft_core::train::{TrainConfig, Trainer};
use peft_core::view::{tensors, trainable};
use peft_core::{AnyTuner, Base, Example, Head, Label, LanguageModel, Trained};
use peft_quant::quantized;

use super::packed::{settings, sources};

/// A run's start and its data, if the method can be on the model and trains something.
fn start(name: &str, base: &Base) -> Option<(Trained<AnyTuner>, Vec<Example>)> {
    let words: Vec<String> = settings(name).iter().map(|word| word.to_string()).collect();
    let method = with_words(&by_name(name).unwrap(), &words).unwrap();
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

/// What four steps with dropout end with.
fn run(base: &Base, name: &str, threads: usize, again: bool) -> Option<BTreeMap<String, TensorData>> {
    let (start, data) = start(name, base)?;
    let settings = TrainConfig {
        threads,
        dropout: Some(0.1),
        micro_rows: 12,
        gradient_checkpointing: again,
        ..TrainConfig::new(1e-2).with_batch_size(5).with_steps(4)
    };
    let result = Trainer::new(settings).run(base, start, &data, None, &mut ());
    Some(tensors(&result.unwrap_or_else(|error| panic!("{name}, {again}: {error}"))))
}

/// On a base of four bits, on one thread and on two. LoRA on an encoder, and QLoRA on all but LLaMA, end with other roundings: see
/// `recompute.rs` of the core.
#[test]
fn runs_end_with_the_same_bits() {
    let everywhere = ["roberta-tiny", "t5-tiny", "llama-tiny"];
    for (name, shapes) in
        [("adapter", &everywhere[..]), ("prefix", &everywhere), ("lora", &everywhere[1..]), ("qlora", &everywhere[2..])]
    {
        for shape in shapes {
            let (base, _) = quantized(&base(shape, &device()), "nf4-double".parse().unwrap()).unwrap();
            let kept = run(&base, name, 1, false);
            assert!(kept.is_some(), "{name} on {shape}");
            for threads in [1, 2] {
                assert!(run(&base, name, threads, true) == kept, "{name} on {shape}, {threads} threads");
            }
        }
    }
}
