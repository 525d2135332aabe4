//! Every method on a base of four bits, and models that are packed in their files or as they are read.

use peft_bench::registry::METHODS;
use peft_core::io::peft::with_words;
use peft_core::testing::{base, device, examples};
use peft_core::train::{TrainConfig, Trainer};
use peft_core::view::trainable;
use peft_core::{AnyMethod, Base, Head, Label, LanguageModel, Result, Source, Trained};
use peft_quant::quantized;

/// Settings of methods whose own are not for a model so small.
pub(super) fn settings(method: &str) -> &'static [&'static str] {
    match method {
        "parallel" | "mam" => &["bottleneck=8"],
        "adapter-drop" => &["drop=1"],
        "intrinsic-said" => &["intrinsic_dim=100"],
        "lorahub" => &["modules=2"],
        "warp" => &["mask_token_id=5"],
        "qa-lora" => &["qalora_group_size=8", r"target_modules=.*(query|\.q|\.q_proj)"],
        "s4" => &[r#"groups=[["adapter","lora"],["bias","adapter"]]"#, "share=0.2"],
        "s3delta" => &["share=0.1"],
        _ => &[],
    }
}

/// Finished adapters for methods that start from such, each with the settings that it takes.
pub(super) fn sources(method: &AnyMethod, base: &Base) -> Result<Vec<Source>> {
    let adapters: AnyMethod = peft_additive::SequentialConfig::pfeiffer(4).into();
    let lora: AnyMethod = peft_reparam::LoraConfig::new(16).with_alpha(32.0).into();
    let (config, count) = match method.name() {
        "adapter-fusion" | "adapter-soup" | "mera" => (adapters, 2),
        "attempt" | "spot" => (AnyMethod::of::<peft_additive::PromptTuningConfig>(), 2),
        "lorahub" => (lora, 2),
        "laplace-lora" => (AnyMethod::of::<peft_reparam::LoraConfig>(), 1),
        _ => return Ok(vec![]),
    };
    let source = |i: u64| {
        let trained = Trained::new(config.init(base, i)?, Head::classifier(base, 2, i))?;
        Ok(Source { name: format!("source-{i}"), config: config.clone(), trained })
    };
    (0..count).map(source).collect()
}

#[test]
fn every_method_trains_on_a_base_of_four_bits() {
    let mut trained = vec![];
    for shape in ["roberta-tiny", "t5-tiny", "llama-tiny"] {
        let dense = base(shape, &device());
        let (packed, _) = quantized(&dense, "nf4-double".parse().unwrap()).unwrap();
        let before = packed.fingerprint();
        for entry in METHODS {
            let words: Vec<String> = settings(entry.name).iter().map(|word| word.to_string()).collect();
            let method = with_words(&(entry.method)(), &words).unwrap();
            let method = method.clone().from_sources(sources(&method, &packed).unwrap());
            let start = |base: &Base| method.init(base, 3).map_err(|error| error.to_string());
            // What cannot be on this model cannot be on it in either form.
            let tuner = match (start(&packed), start(&dense)) {
                (Ok(tuner), Ok(_)) => tuner,
                (packed, dense) => {
                    let [packed, dense] = [packed, dense].map(|start| start.expect_err("neither starts"));
                    assert_eq!(packed, dense, "{} on {shape}", entry.name);
                    continue;
                }
            };
            let mut data = examples(&packed);
            data.iter_mut().for_each(|example| example.task = 0);
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
