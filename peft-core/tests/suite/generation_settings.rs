//! `generation_config.json`: each setting against transformers, and what is said of those without effect.

use std::collections::BTreeSet;
use std::fs;

use peft_core::generate::{FIELDS, FolderSettings, GenerateConfig, Use, candidates, generate};
use peft_core::io::Pretrained;
use peft_core::testing::tolerances::REFERENCE;
use peft_core::testing::{device, golden, warnings};
use peft_core::{Bare, Result, Trained};
use serde_json::{Value, json};
use tempfile::TempDir;

fn read(name: &str) -> Value {
    serde_json::from_slice(&fs::read(golden::model_dir(name)).unwrap()).unwrap()
}

fn ids(list: &Value) -> Vec<u32> {
    list.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// A model whose folder says how to generate.
fn folder(model: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(golden::model_dir(model).join(name), dir.path().join(name)).unwrap();
    }
    dir
}

fn settings(dir: &TempDir, config: &Value) -> Result<FolderSettings> {
    fs::write(dir.path().join("generation_config.json"), config.to_string()).unwrap();
    FolderSettings::of(&Pretrained::open(dir.path().to_str().unwrap(), &device())?)
}

#[test]
fn each_setting_does_what_it_does_in_transformers() {
    let mut seen = BTreeSet::new();
    for name in ["t5", "llama"] {
        let (dir, model) = (folder(name), golden::model(name));
        let trained = Trained::new(Bare {}, model.head.unwrap()).unwrap();
        for case in read(&format!("{name}/generation_settings.json")).as_array().unwrap() {
            let mut config = case["settings"].clone();
            if config.get("max_length").is_none() && config.get("max_new_tokens").is_none() {
                config["max_new_tokens"] = json!(12);
            }
            if config.get("eos_token_id").is_none() {
                config["eos_token_id"] = json!(model.base.shape().stop);
            }
            let (told, warned) = warnings(|| settings(&dir, &config).unwrap());
            let prompt = [ids(&case["prompt"])];
            for use_cache in [true, false] {
                let config = GenerateConfig { use_cache, ..told.config.clone() };
                let found = generate(&model.base, &trained, &prompt, &config, |_, _| Ok(())).unwrap();
                assert_eq!(found, [ids(&case["ids"])], "{name}: {case}, cache {use_cache}");
            }
            assert!(warned.is_empty(), "{name}: {case}: {warned:?}");
            for key in case["settings"].as_object().unwrap().keys() {
                assert!(told.used.iter().any(|(used, _)| used == key), "{key} is not told: {:?}", told.used);
                seen.insert(key.clone());
            }
        }
    }
    assert!(seen.len() >= 20, "{seen:?}");
}

#[test]
fn candidates_for_drawing_are_those_of_transformers() {
    let file = read("sampling_more.json");
    let numbers = |value: &Value| value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect::<Vec<_>>();
    let logits: Vec<f32> = numbers(&file["logits"]).into_iter().map(|x| x as f32).collect();
    for case in file["cases"].as_array().unwrap() {
        let mut config = serde_json::to_value(GenerateConfig::default()).unwrap();
        for (key, value) in case["settings"].as_object().unwrap() {
            config[key] = value.clone();
        }
        let mut found = candidates(&logits, &serde_json::from_value(config).unwrap());
        found.sort_by_key(|(id, _)| *id);
        let kept: Vec<u32> = found.iter().map(|(id, _)| *id).collect();
        assert_eq!(kept, ids(&case["kept"]), "{}", case["settings"]);
        for ((_, p), q) in found.iter().zip(numbers(&case["probabilities"])) {
            assert!((p - q).abs() <= f64::from(REFERENCE.0), "{}: {p} and {q}", case["settings"]);
        }
    }
}

/// The table has every field that transformers knows, and does what it says.
#[test]
fn every_field_is_obeyed_harmless_or_named() {
    let known: BTreeSet<&str> = FIELDS.iter().map(|(name, _)| *name).collect();
    assert_eq!(known.len(), FIELDS.len(), "a field twice");
    let all = read("generation_fields.json");
    let missing: Vec<&Value> =
        all.as_array().unwrap().iter().filter(|name| !known.contains(name.as_str().unwrap())).collect();
    assert!(missing.is_empty(), "{missing:?}");
    let dir = folder("llama");
    let told = |key: &str, value: &Value| {
        let (settings, told) = warnings(|| settings(&dir, &json!({"eos_token_id": 2, key: value})));
        settings.unwrap();
        told
    };
    for (key, uses) in FIELDS {
        let value = json!("x");
        match uses {
            Use::Named(neutral) => {
                let line = format!("generation_config.json: {key}: is {value}");
                assert!(told(key, &value).iter().any(|told| told.contains(&line)), "{key} is not named");
                for neutral in neutral.iter().chain(&["null"]) {
                    let told = told(key, &serde_json::from_str(neutral).unwrap());
                    assert!(told.is_empty(), "{key} {neutral}: {told:?}");
                }
            }
            Use::Harmless => assert!(told(key, &value).is_empty(), "{key}"),
            // Of these a wrong value is an error that names it, if it is more than what a decoder starts with.
            Use::Obeyed => {
                let error =
                    settings(&dir, &json!({key.to_string(): json!({"x": 1})})).err().map(|error| error.to_string());
                let optional = ["bos_token_id", "decoder_start_token_id"].contains(key);
                let named =
                    error.as_ref().is_some_and(|error| error.contains("generation_config.json") && error.contains(key));
                assert!(optional || named, "{key}: {error:?}");
            }
        }
    }
    assert!(told("some_setting", &json!(3))[0].contains("some_setting: is 3"));
}

#[test]
fn where_settings_come_from_and_what_depends_on_others() {
    let dir = folder("llama");
    let of = |config: Value| settings(&dir, &config).unwrap().config;
    assert_eq!(of(json!({})).eos_token_id, Some(vec![]));
    assert_eq!(of(json!({"eos_token_id": [1, 5]})).eos_token_id, Some(vec![1, 5]));
    assert_eq!(of(json!({"eos_token_id": -1})).eos_token_id, Some(vec![]));
    assert_eq!(of(json!({"do_sample": true})).top_k, 50);
    let both = of(json!({"max_length": 9, "max_new_tokens": 3}));
    assert_eq!((both.max_length, both.max_new_tokens), (None, 3));
    let error = settings(&dir, &json!({"repetition_penalty": 0.0})).unwrap_err().to_string();
    assert!(error.contains("generation_config.json: repetition_penalty") && error.contains("above 0"), "{error}");
    let error = settings(&dir, &json!({"bad_words_ids": [[3], [500]]})).unwrap_err().to_string();
    assert!(error.contains("bad_words_ids") && error.contains("500"), "{error}");
    // Without the file, config.json says it, as before there was such a file.
    fs::remove_file(dir.path().join("generation_config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&fs::read(dir.path().join("config.json")).unwrap()).unwrap();
    config["no_repeat_ngram_size"] = json!(2);
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let (told, warned) =
        warnings(|| FolderSettings::of(&Pretrained::open(dir.path().to_str().unwrap(), &device()).unwrap()).unwrap());
    assert_eq!((told.config.no_repeat_ngram_size, told.config.eos_token_id), (2, None));
    assert!(warned.is_empty() && told.path.unwrap().ends_with("config.json"), "{warned:?}");
}
