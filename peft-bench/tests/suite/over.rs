//! Procedures over methods that no paper has them on, and methods in some layers only.

use burn::module::Module;
use peft_additive::{PromptTuningConfig, SequentialConfig};
use peft_bench::registry::{Entry, METHODS, OVER, by_name};
use peft_core::io::peft::{Labels, load_as, save, with_words};
use peft_core::testing::conformance::{c2, c4, c12};
use peft_core::testing::{base, batch, device, examples, randomized};
use peft_core::train::{TrainConfig, Trainer};
use peft_core::view::tensors;
use peft_core::{AnyMethod, AnyTuner, Base, Common, Head, Label, LanguageModel, Result, Source, Trained};
use peft_reparam::LoraConfig;

/// Over which methods of the registry each procedure trains, wherever the method itself does. All others it refuses.
const TRAINS_OVER: [(&str, &[&str]); 3] = [
    (
        "adamix",
        &[
            "diff-pruning",
            "adapter",
            "parallel",
            "bottleneck",
            "residual",
            "tiny-attn",
            "adapter-drop",
            "adapter-fusion",
            "mera",
            "hyperformer",
            "prompt",
            "warp",
            "p-tuning",
            "spot",
            "attempt",
            "mpt",
            "prefix",
            "ia3",
            "pasta",
            "lora",
            "krona",
            "krona-b",
            "kernel-mix",
            "moelora",
            "loftq",
            "qa-lora",
            "qlora",
            "mam",
            "unipelt",
            "s4",
            "autopeft",
            "sparse-adapter",
            "sparse-lora",
        ],
    ),
    (
        "propetl",
        &[
            "adapter",
            "prompt",
            "warp",
            "spot",
            "prefix",
            "ia3",
            "pasta",
            "lora",
            "krona",
            "krona-b",
            "dylora",
            "moelora",
            "loftq",
            "qa-lora",
            "qlora",
            "sparse-lora",
        ],
    ),
    (
        "sparse",
        &[
            "full",
            "child-tuning",
            "adapter",
            "parallel",
            "bottleneck",
            "residual",
            "adapter-drop",
            "adapter-fusion",
            "mera",
            "adapter-soup",
            "coda",
            "hyperformer",
            "prompt",
            "warp",
            "p-tuning",
            "spot",
            "attempt",
            "mpt",
            "prefix",
            "ia3",
            "pasta",
            "lora",
            "adalora",
            "delta-lora",
            "krona",
            "krona-b",
            "dylora",
            "moelora",
            "loraprune",
            "loftq",
            "qa-lora",
            "qlora",
            "mam",
            "unipelt",
            "s4",
            "autopeft",
            "adamix-adapter",
            "adamix-lora",
        ],
    ),
];

/// Two steps of training, and what they end with again from its files.
fn train_and_load(method: &AnyMethod, tuner: AnyTuner, base: &Base) -> Result<()> {
    let data: Vec<_> = examples(base).into_iter().cycle().take(4).collect();
    let head = match data[0].label {
        Some(Label::Words(_)) => Head::LanguageModel(LanguageModel {}),
        _ => Head::classifier(base, 2, 3),
    };
    let settings = TrainConfig::new(1e-2).with_batch_size(2).with_steps(2);
    let trained = Trainer::new(settings).run(base, Trained::new(tuner, head)?, &data, None, &mut ())?;
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), method, &trained, base.shape(), &Labels::default(), &[])?;
    let (_, loaded) = load_as(method, folder.path(), base)?;
    assert_eq!(tensors(&loaded.tuner), tensors(&method.to_saved(trained.tuner.clone())), "{}", method.name());
    let logits = |t: &Trained<AnyTuner>| t.valid().logits(base, &batch(base)).map(|logits| logits.into_data());
    assert_eq!(logits(&loaded)?, logits(&trained)?, "{}", method.name());
    Ok(())
}

/// Settings that fit a tiny model and few sources.
pub(super) fn settings(name: &str) -> Vec<String> {
    let words: &[&str] = match name {
        "parallel" | "mam" => &["bottleneck=8"],
        "adapter-drop" => &["drop=0"],
        "warp" => &["mask_token_id=5"],
        "intrinsic-said" => &["intrinsic_dim=60"],
        "lorahub" => &["modules=2"],
        "qa-lora" => &["qalora_group_size=8"],
        "mpt" => &["num_tasks=8"],
        "prefix" | "propetl-prefix" => &["num_virtual_tokens=4"],
        "s4" => &[r#"groups=[["adapter","lora"]]"#, "share=0.5"],
        "s3delta" => &["share=0.1"],
        "s-bitfit" => &["keep_ratio=0.5"],
        _ => &[],
    };
    words.iter().map(ToString::to_string).collect()
}

/// The finished adapters that a method starts from.
pub(super) fn sources(name: &str, base: &Base) -> Vec<Source> {
    let (config, count): (AnyMethod, _) = match name {
        "adapter-fusion" | "mera" => (SequentialConfig::pfeiffer(48).into(), 2),
        "adapter-soup" => (SequentialConfig::pfeiffer(64).into(), 2),
        "spot" | "attempt" => (AnyMethod::of::<PromptTuningConfig>(), 2),
        "lorahub" => (LoraConfig::new(16).with_alpha(32.0).into(), 2),
        "laplace-lora" => (AnyMethod::of::<LoraConfig>(), 1),
        _ => return vec![],
    };
    let source = |seed: u64| Source {
        name: format!("source {seed}"),
        trained: Trained::new(randomized(&config.init(base, seed).unwrap(), seed), Head::classifier(base, 2, 3))
            .unwrap(),
        config: config.clone(),
    };
    (0..count).map(source).collect()
}

#[test]
fn every_method_is_trained_and_loaded_or_refused() {
    let mut faults = vec![];
    for shape in ["roberta-tiny", "t5-tiny"] {
        let base = base(shape, &device());
        for ((procedure, over), (same, trains_over)) in OVER.into_iter().zip(TRAINS_OVER) {
            assert_eq!(procedure, same);
            for Entry { name, method, .. } in METHODS {
                let (words, sources) = (settings(name), sources(name, &base));
                let inner = with_words(&method(), &words).unwrap();
                if let Err(error) = inner.clone().from_sources(sources.clone()).init(&base, 1) {
                    assert_ne!(shape, "roberta-tiny", "{name} has no settings here that it starts with: {error}");
                    continue;
                }
                let method = with_words(&over(inner), &words).unwrap().from_sources(sources);
                let what = format!("{procedure} over {name}");
                match (trains_over.contains(name), method.init(&base, 1)) {
                    (true, Ok(tuner)) => {
                        let result = train_and_load(&method, tuner, &base);
                        faults.extend(result.err().map(|error| format!("{what} on {shape}: {error}")));
                    }
                    (false, Ok(_)) => faults.push(format!("{what} starts on {shape}")),
                    (true, Err(error)) => faults.push(format!("{what} on {shape}: {error}")),
                    (false, Err(error)) => {
                        // Matrices of one number lose it.
                        let why = match (procedure, *name) {
                            ("sparse", "diff-pruning" | "tiny-attn") => "nothing is left of",
                            _ => &what,
                        };
                        if !error.to_string().contains(why) {
                            faults.push(format!("{what} on {shape}: {error}"));
                        }
                    }
                }
            }
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn procedures_go_over_methods_with_matrices() {
    for (procedure, _) in OVER {
        for shape in ["roberta-tiny", "llama-tiny"] {
            let base = base(shape, &device());
            for name in ["krona", "ia3", "lora"] {
                let over = by_name(&format!("{procedure}-{name}")).unwrap();
                for check in [c2, c4, c12] {
                    check(&over, &base).unwrap_or_else(|fault| panic!("{procedure} over {name} on {shape}: {fault}"));
                }
            }
        }
        let base = base("roberta-tiny", &device());
        for name in ["bitfit", "lst", "hadamard"] {
            let error = by_name(&format!("{procedure}-{name}")).unwrap().init(&base, 1).unwrap_err().to_string();
            assert!(error.contains(&format!("{procedure} over {name}")), "{error}");
        }
    }
}

#[test]
fn methods_stay_within_layers() {
    let base = base("roberta-tiny", &device());
    for name in ["lora", "adapter", "bitfit"] {
        let method = by_name(name).unwrap();
        let within = method.narrowed(&Common::within(1..2), base.shape()).unwrap();
        assert!(within.count(base.shape()).unwrap() < by_name(name).unwrap().count(base.shape()).unwrap_or(usize::MAX));
    }
    let error = by_name("prompt").unwrap().narrowed(&Common::within(1..2), base.shape()).unwrap_err().to_string();
    assert!(error.contains("prompt") && error.contains("layers"), "{error}");
}
