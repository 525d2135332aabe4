//! Every method on a base of four bits, and models that are packed in their files or as they are read.

use std::path::Path;

use peft_bench::registry::METHODS;
use peft_core::io::Pretrained;
use peft_core::io::peft::with_words;
use peft_core::load::Checkpoint;
use peft_core::testing::tolerances::REFERENCE;
use peft_core::testing::{base, device, difference, examples, golden};
use peft_core::train::{TrainConfig, Trainer};
use peft_core::view::trainable;
use peft_core::{AnyMethod, AnyTuner, Bare, Base, Head, Label, LanguageModel, Result, Source, Trained};
use peft_quant::{open, quantized};
use peft_reparam::{LoraConfig, QaLoraConfig};

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
        let packed = quantized(&dense, "nf4-double".parse().unwrap()).unwrap();
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

/// GPTQ's and AWQ's models with PEFT's LoRA, and GGUF's: what is packed stays, is predicted with and trained upon.
#[test]
fn loras_of_peft_run_on_words_of_gptq_and_awq() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../peft-quant/tests/golden");
    for name in ["gptq", "gptq-2", "gptq-3", "gptq-4-order", "gptq-8", "awq"] {
        let dir = folder.join(name);
        let model = open(dir.to_str().unwrap(), &device(), None).unwrap();
        let tuned = peft_bench::registry::load(&[dir.join("adapter")], &model).unwrap();
        let examples = golden::examples(&dir.join("expected.safetensors"));
        let batch = model.base.batch(&examples.iter().collect::<Vec<_>>()).unwrap();
        let found = tuned.trained.logits(&model.base, &batch).unwrap().into_data();
        let file = Checkpoint::open_file(&dir.join("expected.safetensors")).unwrap();
        let off = difference(&found, &file.read_f32("adapted", &[2, 9, 32]).unwrap());
        assert!(off < REFERENCE.0, "{name}: {off}");
        // Merged it is a model of dense weights, which says nothing of words.
        let out = tempfile::tempdir().unwrap();
        tuned.merge(&examples, REFERENCE.0).unwrap().save(out.path().join("merged")).unwrap();
        let merged = Pretrained::open(out.path().join("merged").to_str().unwrap(), &device()).unwrap();
        let own = Trained::new(Bare {}, merged.own_head().unwrap()).unwrap().logits(&merged.base, &batch).unwrap();
        let off = difference(&own.into_data(), &file.read_f32("adapted", &[2, 9, 32]).unwrap());
        assert!(off < REFERENCE.0, "{name}, merged: {off}");
    }
}

#[test]
fn loras_train_on_models_as_they_are_packed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (dir, method) in [
        ("../peft-core/tests/golden/gguf/llama.gguf", LoraConfig::new(2).into()),
        ("../peft-quant/tests/golden/gptq", LoraConfig::new(2).into()),
        ("../peft-quant/tests/golden/awq", AnyMethod::from(QaLoraConfig::new(2).with_groups(4, 32))),
    ] {
        let base = open(root.join(dir).to_str().unwrap(), &device(), None).unwrap().base;
        let (before, data) = (base.fingerprint(), examples(&base));
        let loss = |run: &Trained<AnyTuner>| {
            let batch = base.batch(&data.iter().collect::<Vec<_>>()).unwrap();
            let labels: Vec<&Label> = data.iter().filter_map(|example| example.label.as_ref()).collect();
            run.loss(&base, &batch, &labels).unwrap().into_scalar::<f32>()
        };
        let run = Trained::new(method.init(&base, 3).unwrap(), Head::classifier(&base, 2, 3)).unwrap();
        let settings = TrainConfig { threads: 1, ..TrainConfig::new(1e-2).with_batch_size(5).with_steps(12) };
        let first = loss(&run);
        let trained = Trainer::new(settings).run(&base, run, &data, None, &mut ()).unwrap();
        assert!(loss(&trained) < first, "{dir}: {} after {first}", loss(&trained));
        assert_eq!(base.fingerprint(), before, "{dir}");
    }
}
