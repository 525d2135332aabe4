//! T5 and LLaMA against transformers: states, logits, losses, and generated texts.

use std::fs;

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use peft_core::generate::{EarlyStopping, GenerateConfig, candidates, generate};
use peft_core::io::Pretrained;
use peft_core::load::Checkpoint;
use peft_core::loss::targets;
use peft_core::testing::tolerances::REFERENCE;
use peft_core::testing::{assert_close, golden};
use peft_core::{Architecture, Bare, Example, Label, Shape, Trained, Tuner};
use serde_json::Value;

fn expected(model: &str, name: &str) -> Option<TensorData> {
    let file = Checkpoint::open_file(&golden::model_dir(model).join("expected.safetensors")).unwrap();
    file.shape(name).map(|dims| file.read_f32(name, dims).unwrap())
}

/// Rows that are not padding: of T5 those of the decoder.
fn rows(example: &Example, shape: &Shape, found: usize) -> usize {
    match (&example.label, shape.architecture) {
        (Some(Label::Words(words)), Architecture::T5(_)) => words.len().min(found),
        _ => example.ids.len().min(found),
    }
}

fn check(model: &str) {
    let Pretrained { base, head, .. } = golden::model(model);
    let examples = golden::examples(&golden::model_dir(model).join("inputs.safetensors"));
    let batch = base.batch(&examples.iter().collect::<Vec<_>>()).unwrap();
    let trained = Trained::new(Bare {}, head.unwrap()).unwrap().valid();
    let compare = |found: Tensor<3>, name: &str| {
        let [_, found_rows, width] = found.dims();
        let Some(wanted) = expected(model, name) else { return };
        let wanted: Tensor<3> = match found_rows {
            1 => Tensor::<2>::from_data(wanted, base.device()).unsqueeze_dim(1),
            _ => Tensor::from_data(wanted, base.device()),
        };
        for (i, example) in examples.iter().enumerate() {
            let cut = |t: &Tensor<3>| t.clone().slice([i..i + 1, 0..rows(example, base.shape(), found_rows), 0..width]);
            assert_close(cut(&found), cut(&wanted), REFERENCE, &format!("{model}: {name} of sequence {i}"));
        }
    };
    compare(trained.tuner.run(&base, &batch).unwrap().states, "hidden");
    compare(trained.logits(&base, &batch).unwrap(), "logits");
    if let Some(loss) = expected(model, "loss") {
        let labels: Vec<&Label> = examples.iter().filter_map(|e| e.label.as_ref()).collect();
        let count = targets(labels.iter().copied(), trained.head.ahead(base.shape()));
        let found = trained.loss(&base, &batch, &labels).unwrap() / count as f32;
        let loss = loss.iter::<f32>().next().unwrap();
        assert_close(found, Tensor::<1>::from_data([loss], base.device()), REFERENCE, model);
    }
}

#[test]
fn states_logits_and_losses_equal_those_of_transformers() {
    for model in ["t5", "t5-gated", "llama", "llama-llama3", "llama-linear", "llama-dynamic", "llama-classify"] {
        check(model);
    }
}

/// A GGUF file as a model: its rows of queries and keys in the order of transformers, its blocks decoded.
#[test]
fn a_gguf_file_is_the_model_of_transformers() {
    let dir = golden::model_dir("gguf");
    let Pretrained { base, head, .. } = golden::model("gguf/llama.gguf");
    let file = Checkpoint::open_file(&dir.join("llama.safetensors")).unwrap();
    let (dims, ids) = file.read_i64("input_ids").unwrap();
    let example = |row: &[i64]| Example { ids: row.iter().map(|id| *id as u32).collect(), ..Default::default() };
    let examples: Vec<Example> = ids.chunks(dims[1]).map(example).collect();
    let batch = base.batch(&examples.iter().collect::<Vec<_>>()).unwrap();
    let trained = Trained::new(Bare {}, head.unwrap()).unwrap().valid();
    let wanted = |name: &str| file.read_f32(name, file.shape(name).unwrap()).unwrap();
    let hidden = trained.tuner.run(&base, &batch).unwrap().states;
    assert_close(hidden, Tensor::from_data(wanted("hidden"), base.device()), REFERENCE, "hidden");
    let logits = trained.logits(&base, &batch).unwrap().narrow(1, dims[1] - 1, 1).squeeze_dim::<2>(1);
    assert_close(logits, Tensor::from_data(wanted("logits"), base.device()), REFERENCE, "logits");
}

/// What cannot be generated from is told by name.
#[test]
fn what_cannot_be_generated_is_refused() {
    let refused = |model: &str, prompts: &[Vec<u32>], config: GenerateConfig, words: [&str; 2]| {
        let Pretrained { base, head, .. } = golden::model(model);
        let trained = Trained::new(Bare {}, head.unwrap()).unwrap();
        let error = generate(&base, &trained, prompts, &config, |_, _| Ok(())).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    let new = GenerateConfig::new;
    refused("llama", &[vec![5], vec![]], new(3), ["prompt 1", "no token"]);
    refused("t5", &[vec![]], new(3), ["prompt 0", "no token"]);
    refused("llama", &[vec![97]], new(3), ["input_ids", "97"]);
    refused("llama", &[vec![5; 63]], new(3), ["65", "64"]);
    refused("llama", &[vec![5]], new(0), ["max_new_tokens", "1 to"]);
    refused("t5", &[vec![5]], new(3).with_beams(49), ["num_beams", "1 to 48"]);
    refused("llama", &[vec![5]], GenerateConfig { top_p: 0.0, ..new(3) }, ["top_p", "above 0"]);
    refused("llama", &[vec![5]], GenerateConfig { temperature: f64::NAN, ..new(3) }, ["temperature", "NaN"]);
    refused("llama", &[vec![5]], GenerateConfig { eos_token_id: Some(vec![97]), ..new(3) }, ["eos_token_id", "97"]);
    refused("llama-classify", &[vec![5]], new(3), ["head", "for words"]);
    refused("bert-mlm", &[vec![5]], new(3), ["head", "masked words"]);
}

fn config(settings: &Value) -> GenerateConfig {
    let mut config = GenerateConfig::default();
    for (key, value) in settings.as_object().unwrap() {
        match key.as_str() {
            "max_new_tokens" => config.max_new_tokens = value.as_u64().unwrap() as usize,
            "num_beams" => config.num_beams = value.as_u64().unwrap() as usize,
            "length_penalty" => config.length_penalty = value.as_f64().unwrap(),
            "early_stopping" => {
                config.early_stopping = match value {
                    Value::Bool(true) => EarlyStopping::Yes,
                    Value::Bool(false) => EarlyStopping::No,
                    _ => EarlyStopping::Never,
                }
            }
            "eos_token_id" => config.eos_token_id = Some(ids(&Value::Array(vec![value.clone()])).remove(0)),
            "num_return_sequences" | "do_sample" | "pad_token_id" => {}
            other => panic!("an unknown setting {other}"),
        }
    }
    config
}

/// Lists of ids; a number alone is a list of one.
fn ids(lists: &Value) -> Vec<Vec<u32>> {
    let id = |value: &Value| value.as_u64().unwrap() as u32;
    let list = |value: &Value| value.as_array().map_or_else(|| vec![id(value)], |list| list.iter().map(id).collect());
    lists.as_array().unwrap().iter().map(list).collect()
}

#[test]
fn generated_ids_equal_those_of_transformers() {
    let mut cases = 0;
    for model in ["t5", "t5-gated", "llama", "llama-llama3"] {
        let text = fs::read_to_string(golden::model_dir(model).join("generation.json")).unwrap();
        let Pretrained { base, head, .. } = golden::model(model);
        let trained = Trained::new(Bare {}, head.unwrap()).unwrap();
        for case in serde_json::from_str::<Value>(&text).unwrap().as_array().unwrap() {
            for use_cache in [true, false] {
                let config = GenerateConfig { use_cache, ..config(&case["settings"]) };
                let found = generate(&base, &trained, &ids(&case["input_ids"]), &config, |_, _| Ok(())).unwrap();
                assert_eq!(found, ids(&case["ids"]), "{model}: {case}, cache {use_cache}");
            }
            cases += 1;
        }
    }
    assert!(cases >= 24, "only {cases} cases");
}

/// Of more tokens than the cache makes room for at a time, with prompts of several lengths and beams that change places.
#[test]
fn a_long_text_is_the_same_without_a_cache() {
    for (model, beams) in [("t5", 1), ("t5", 3), ("llama", 1), ("llama", 3)] {
        let Pretrained { base, head, .. } = golden::model(model);
        let trained = Trained::new(Bare {}, head.unwrap()).unwrap();
        let [with, without] = [true, false].map(|use_cache| {
            let config = GenerateConfig { use_cache, eos_token_id: Some(vec![]), ..GenerateConfig::new(50) };
            let prompts = [vec![5, 7, 9], vec![11, 13, 6, 8, 10]];
            generate(&base, &trained, &prompts, &config.with_beams(beams), |_, _| Ok(())).unwrap()
        });
        assert!(with.iter().all(|text| text.len() == 50), "{model}, {beams} beams: {with:?}");
        assert_eq!(with, without, "{model}, {beams} beams");
    }
}

#[test]
fn candidates_for_drawing_are_those_of_transformers() {
    let text = fs::read_to_string(golden::model_dir("sampling.json")).unwrap();
    let file: Value = serde_json::from_str(&text).unwrap();
    let numbers = |value: &Value| value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect::<Vec<_>>();
    let logits: Vec<f32> = numbers(&file["logits"]).into_iter().map(|x| x as f32).collect();
    for case in file["cases"].as_array().unwrap() {
        let settings = &case["settings"];
        let config = GenerateConfig {
            do_sample: true,
            temperature: settings["temperature"].as_f64().unwrap_or(1.0),
            top_k: settings["top_k"].as_u64().unwrap_or(0) as usize,
            top_p: settings["top_p"].as_f64().unwrap_or(1.0),
            ..Default::default()
        };
        let mut found = candidates(&logits, &config);
        found.sort_by_key(|(id, _)| *id);
        let kept: Vec<u32> = found.iter().map(|(id, _)| *id).collect();
        assert_eq!(kept, ids(&Value::Array(vec![case["kept"].clone()]))[0], "{settings}");
        for ((_, p), q) in found.iter().zip(numbers(&case["probabilities"])) {
            assert!((p - q).abs() <= f64::from(REFERENCE.0), "{settings}: {p} and {q}");
        }
    }
}

/// Beyond the positions of the pretraining, too, where its positions are scaled by each row's own length.
#[test]
fn rows_of_dynamic_positions_do_not_depend_on_their_neighbours() {
    let Pretrained { base, head, .. } = golden::model("llama-dynamic");
    assert_eq!(base.shape().max_length(), 16);
    let example = |length: u32| Example { ids: (0..length).map(|i| 4 + 5 * i).collect(), ..Default::default() };
    let examples = [16, 11, 7].map(example);
    let trained = Trained::new(Bare {}, head.unwrap()).unwrap().valid();
    let logits = |examples: &[&Example]| trained.logits(&base, &base.batch(examples).unwrap()).unwrap();
    let together = logits(&examples.iter().collect::<Vec<_>>());
    for (i, example) in examples.iter().enumerate() {
        let (alone, [_, _, width]) = (logits(&[example]), together.dims());
        let same = together.clone().slice([i..i + 1, 0..example.ids.len(), 0..width]);
        assert_close(alone, same, REFERENCE, &format!("{} rows", example.ids.len()));
    }
    let ids = |use_cache| {
        let config = GenerateConfig { use_cache, eos_token_id: Some(vec![]), ..GenerateConfig::new(8) };
        generate(&base, &trained, &[examples[2].ids.clone(), vec![9, 4]], &config, |_, _| Ok(())).unwrap()
    };
    assert_eq!(ids(true), ids(false));
}

/// As in transformers: what the configuration says is tied is not where the tables differ.
#[test]
fn tables_are_tied_where_they_are_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let saved = |model: &str, tied: bool, change: Option<f32>| {
        let dir = folder.path().join(format!("{model}-{}", change.is_some()));
        let golden = golden::model_dir(model);
        let file = Checkpoint::open_file(&golden.join("model.safetensors")).unwrap();
        let read = |name: &str| (name.to_string(), file.read_f32(name, file.shape(name).unwrap()).unwrap());
        let mut tensors: std::collections::BTreeMap<String, TensorData> = file.names().map(read).collect();
        let words = if model == "t5" { "shared.weight" } else { "model.embed_tokens.weight" };
        let mut head: Vec<f32> = tensors[words].iter::<f32>().collect();
        head[7] += change.unwrap_or_default();
        tensors.insert("lm_head.weight".into(), TensorData::new(head, tensors[words].shape().clone()));
        let mut config: Value = serde_json::from_slice(&fs::read(golden.join("config.json")).unwrap()).unwrap();
        config["tie_word_embeddings"] = tied.into();
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("config.json"), config.to_string()).unwrap();
        peft_core::load::write_safetensors(&dir.join("model.safetensors"), &tensors).unwrap();
        let opened = Pretrained::open(dir.to_str().unwrap(), &peft_core::testing::device()).unwrap();
        let shape = Pretrained::shape(dir.to_str().unwrap()).unwrap();
        assert_eq!(shape.tied, opened.base.shape().tied, "{model}: the shape alone");
        shape.tied
    };
    assert!(saved("t5", true, None) && saved("llama", true, None));
    assert!(!saved("t5", true, Some(0.5)) && !saved("llama", true, Some(0.5)));
}

/// Where positions would be counted otherwise than in transformers.
#[test]
fn a_mask_with_a_hole_is_refused_on_llama() {
    let base = golden::model("llama").base;
    let example = |mask: &[u8]| Example {
        ids: vec![5; mask.len()],
        mask: Some(mask.iter().map(|real| *real == 1).collect()),
        ..Default::default()
    };
    let message = base.batch(&[&example(&[1, 1, 0, 1])]).unwrap_err().to_string();
    assert!(message.contains("attention_mask") && message.contains("hole"), "{message}");
    assert!(base.batch(&[&example(&[0, 1, 1, 1])]).is_ok() && base.batch(&[&example(&[1, 1, 1, 0])]).is_ok());
}
