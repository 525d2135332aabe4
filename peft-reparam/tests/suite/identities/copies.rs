//! Copies of a base's tensors beside a method: `modules_to_save`.

use std::path::Path;

use burn::module::Module;
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::TensorData;
use peft_core::io::{Pretrained, peft, record};
use peft_core::testing::golden::Case;
use peft_core::testing::tolerances::{MERGED, SAME_FUNCTION};
use peft_core::testing::{batch, difference, examples, randomized};
use peft_core::train::{Length, Optim, Schedule, TrainConfig, Trainer};
use peft_core::view::tensors;
use peft_core::{Architecture, Bare, Base, Copies, Head, Label, LanguageModel, Method, Purpose, Trained};
use peft_reparam::{Lora, LoraConfig};

use super::bases;

/// A table, normalizations, and where there is one a table for logits or a linear map with a bias.
fn modules(base: &Base) -> Vec<String> {
    let words = if base.shape().pre_norm() { "embed_tokens" } else { "word_embeddings" };
    let (norm, other) = match base.shape().prefix {
        "bert." => ("LayerNorm", "pooler"),
        "roberta." => ("layer.1.output.LayerNorm", "position_embeddings"),
        "model." => ("norm", "lm_head"),
        _ => ("final_layer_norm", "lm_head"),
    };
    [words, norm, other].map(str::to_string).to_vec()
}

fn start(config: &LoraConfig, base: &Base, modules: &[String]) -> Trained<Lora> {
    let head = match base.shape().pre_norm() {
        true => Head::LanguageModel(LanguageModel {}),
        false => Head::classifier(base, 3, 3),
    };
    let trained = Trained::new(config.init(base, 3).unwrap(), head).unwrap();
    trained.with_copies(Copies::new(base, modules).unwrap()).unwrap()
}

fn logits(trained: &Trained<impl peft_core::Tuner>, base: &Base) -> TensorData {
    trained.valid().logits(base, &batch(base)).unwrap().into_data()
}

#[test]
fn saved_modules_equal_the_reference() {
    let cases = [
        ("saved", "roberta-classify"),
        ("saved-bert", "bert-classify"),
        ("saved-t5", "t5"),
        ("saved-llama", "llama"),
        ("saved-llama-tied", "llama-llama3"),
    ];
    for (case, base) in cases {
        let case = Case::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case), base);
        case.check_method::<LoraConfig>();
        case.check_merged::<LoraConfig>();
    }
}

#[test]
fn at_the_start_they_are_the_base() {
    for base in bases() {
        let (with, without) =
            (start(&LoraConfig::new(2), &base, &modules(&base)), start(&LoraConfig::new(2), &base, &[]));
        assert!(tensors(&with.copies).len() > 2 && without.copies.is_empty());
        assert_eq!(logits(&with, &base), logits(&without, &base), "{:?}", base.shape().architecture);
    }
}

#[test]
fn what_is_saved_is_loaded_and_merged() {
    for base in bases() {
        let config = LoraConfig::new(2);
        let trained = randomized(&start(&config, &base, &modules(&base)), 5);
        let (folder, labels) = (tempfile::tempdir().unwrap(), peft::Labels::default());
        let dir = |name: &str| folder.path().join(name);
        peft::save(&dir("peft"), &config, &trained, base.shape(), &labels, &[]).unwrap();
        record::save(&dir("record"), &config, &trained, base.shape(), &labels).unwrap();
        for (_, loaded) in
            [peft::load::<LoraConfig>(&dir("peft"), &base).unwrap(), record::load(&dir("record"), &base).unwrap()]
        {
            assert_eq!(tensors(&loaded), tensors(&trained));
            assert_eq!(loaded.copies.modules(), trained.copies.modules());
        }
        let merged = trained.valid().copies.onto(&base).merged(&trained.tuner.valid());
        let bare = Trained::new(Bare {}, trained.head.clone()).unwrap();
        let (merged, unmerged) = (logits(&bare, &merged), logits(&trained, &base));
        let size = unmerged.iter::<f32>().map(f32::abs).fold(1.0, f32::max);
        assert!(difference(&merged, &unmerged) <= MERGED.0 * size);
        assert!(difference(&merged, &logits(&bare, &base)) > MERGED.0 * size);
    }
}

/// A word table that was tied is written as two, also where the head for masked words has the second.
#[test]
fn a_merged_model_with_two_tables_is_written_and_read() {
    for base in bases() {
        let base = base.for_purpose(Purpose::Words);
        let (model, folder, table) = (Pretrained::of(base.clone()), tempfile::tempdir().unwrap(), &modules(&base)[..1]);
        let head = match base.shape().pre_norm() {
            true => Head::LanguageModel(LanguageModel {}),
            false => Head::masked_lm(&base, 3),
        };
        let trained = Trained::new(LoraConfig::new(2).init(&base, 3).unwrap(), head).unwrap();
        let trained = randomized(&trained.with_copies(Copies::new(&base, table).unwrap()).unwrap(), 5);
        let merged = trained.valid().copies.onto(&base).merged(&trained.tuner.valid());
        let path = folder.path().join("merged");
        let written = model.save(&path, &merged, &trained.head, &[]);
        if let Architecture::T5(_) = base.shape().architecture {
            let message = written.unwrap_err().to_string();
            assert!(message.contains("modules_to_save") && message.contains("embed_tokens"), "{message}");
            continue;
        }
        written.unwrap();
        let again = Pretrained::open(path.to_str().unwrap(), base.device()).unwrap();
        let bare = Trained::new(Bare {}, again.own_head().unwrap()).unwrap();
        let (found, expected) = (logits(&bare, &again.base), logits(&trained, &base));
        let size = expected.iter::<f32>().map(f32::abs).fold(1.0, f32::max);
        assert!(difference(&found, &expected) <= MERGED.0 * size, "{:?}", base.shape().architecture);
    }
}

/// A run rewrites the base once for a step where the method only rewrites (DoRA), its copies included.
#[test]
fn a_run_steps_as_the_loss_says() {
    for base in bases() {
        let base = base.with_dropout(0.0);
        for config in [LoraConfig::new(2), LoraConfig::new(2).with_dora()] {
            // At random: from B = 0 the first steps of A would be nothing but rounding.
            let (data, trained) = (examples(&base), randomized(&start(&config, &base, &modules(&base)), 7));
            let head = match data[0].label {
                Some(Label::Words(_)) => trained.head.clone(),
                _ => Head::classifier(&base, 2, 3),
            };
            let trained = Trained::new(trained.tuner, head).unwrap().with_copies(trained.copies).unwrap();
            let settings = TrainConfig {
                learning_rate: 1e-2,
                // Smooth: a gradient that is nothing but rounding makes no step.
                adam_epsilon: 0.5,
                length: Length::Steps(2),
                batch_size: data.len(),
                lr_scheduler_type: Schedule::Constant,
                max_grad_norm: 0.0,
                shuffle: false,
                micro_rows: 12,
                threads: 2,
                ..Default::default()
            };
            let found = Trainer::new(settings.clone()).run(&base, trained.clone(), &data, None, &mut ()).unwrap();
            let (mut expected, mut optim) =
                (trained, Optim::new(AdamWConfig::new().with_epsilon(0.5).with_weight_decay(0.0).build()));
            let whole = base.batch(&data.iter().collect::<Vec<_>>()).unwrap();
            let labels: Vec<&Label> = data.iter().map(|example| example.label.as_ref().unwrap()).collect();
            let count = peft_core::loss::targets(labels.iter().copied(), expected.head.ahead(base.shape()));
            for _ in 0..2 {
                let loss = expected.loss(&base, &whole, &labels).unwrap() / count as f32;
                let gradients = GradientsParams::from_grads(loss.backward(), &expected);
                expected = optim.step(expected, gradients, |_| 1e-2);
            }
            let expected = tensors(&expected);
            for (name, found) in tensors(&found) {
                assert!(difference(&found, &expected[&name]) <= SAME_FUNCTION.0, "{name}");
            }
        }
    }
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let refused = |shape: &str, config: &LoraConfig, names: &[&str], told: &str| {
        let base = peft_core::testing::base(shape, &peft_core::testing::device());
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        let message = match Copies::new(&base, &names) {
            Err(error) => error.to_string(),
            Ok(_) => {
                let (trained, folder) = (start(config, &base, &names), tempfile::tempdir().unwrap());
                let path = folder.path().join("adapter");
                let labels = peft::Labels::default();
                peft::save(&path, config, &trained, base.shape(), &labels, &[]).unwrap_err().to_string()
            }
        };
        assert!(message.contains("modules_to_save") && message.contains(told), "{message}");
    };
    let config = LoraConfig::new(2);
    refused("llama-tiny", &config, &["embed_tokens", "wte"], "wte");
    refused("llama-tiny", &config, &[""], "embed_tokens, input_layernorm");
    refused("t5-tiny", &config, &["shared"], "shared");
    refused("roberta-tiny", &config, &["layer.1"], "encoder.layer.1.attention.self.query");
    refused("bert-tiny", &config.with_sites(peft_core::Part::Pooler), &["pooler"], "bert.pooler.dense");
    assert!(Copies::new(&bases()[0], &["classifier".into(), "score".into()]).unwrap().is_empty());
}
