//! Damaged models and adapters.

use super::*;

/// The error of `peft forward`, which must leave no output.
fn forward(model: &Path, adapter: Option<&Path>) -> String {
    let folder = Folder::new();
    let (data, output) = (folder.data(), folder.path("logits"));
    let [model, adapter] = [Some(model), adapter].map(|path| path.map(|p| p.to_string_lossy().into_owned()));
    let mut args = vec!["forward", "--input", &data, "--output", &output];
    args.extend(model.iter().flat_map(|model| ["--model", model]));
    args.extend(adapter.iter().flat_map(|adapter| ["--adapter", adapter]));
    let error = fail(&args);
    folder.holds(&["data.jsonl"]);
    error
}

#[test]
fn damaged_models_are_named_by_file_and_key() {
    let damaged = |change: &dyn Fn(&Path)| {
        let folder = Folder::new();
        let copy = folder.copy(&golden("peft-core", "roberta-classify"));
        change(&copy);
        forward(&copy, None)
    };
    let config = |key: &'static str, value: Value| {
        damaged(&|dir| edit(dir.join("config.json"), &|config| config[key] = value.clone()))
    };
    names(&damaged(&|dir| fs::remove_file(dir.join("config.json")).unwrap()), &["config.json", "cannot read"]);
    names(&damaged(&|dir| fs::write(dir.join("config.json"), "{").unwrap()), &["config.json", "line 1"]);
    names(&config("hidden_size", json!(1e18)), &["config.json", "hidden_size", "65536"]);
    names(&config("intermediate_size", json!(41)), &["intermediate.dense", "[40, 24]", "[41, 24]"]);
    names(&config("num_hidden_layers", json!(4)), &["encoder.layer.3.", "model.safetensors"]);
    names(&config("num_hidden_layers", json!(2)), &["encoder.layer.2.", "nothing uses", "2 layers"]);
    let twice = |dir: &Path| fs::write(dir.join("config.json"), r#"{"vocab_size": 3, "vocab_size": 4}"#).unwrap();
    names(&damaged(&twice), &["config.json", "vocab_size", "twice"]);
    names(&config("id2label", json!({"0": "same", "1": "same"})), &["config.json", "id2label", "3 distinct names"]);
    let untied = |dir: &Path| edit(dir.join("config.json"), &|config| config["tie_word_embeddings"] = json!(false));
    let folder = Folder::new();
    let words = folder.copy(&golden("peft-core", "bert-mlm"));
    untied(&words);
    names(&forward(&words, None), &["config.json", "tie_word_embeddings", "word table"]);
    names(&damaged(&|dir| fs::remove_file(dir.join("model.safetensors")).unwrap()), &["weights", "model.safetensors"]);
    let of_class = |class: &str| {
        let folder = Folder::new();
        let copy = folder.copy(&golden("peft-core", "bert-bare"));
        edit(copy.join("config.json"), &|config| config["architectures"] = json!([class]));
        forward(&copy, None)
    };
    names(&of_class("BertForTokenClassification"), &["classifier.weight", "no head"]);
    names(&of_class("BertForMultipleChoice"), &["architectures", "BertForMultipleChoice"]);
    // What such a class has not is not what is told.
    for class in ["T5EncoderModel", "T5ForTokenClassification"] {
        let folder = Folder::new();
        let copy = folder.copy(&golden("peft-core", "t5"));
        edit(copy.join("config.json"), &|config| config["architectures"] = json!([class]));
        let file = Checkpoint::open_file(&copy.join("model.safetensors")).unwrap();
        let names_left = file.names().filter(|name| !name.starts_with("decoder."));
        let read = |name: &str| (name.to_string(), file.read_f32(name, file.shape(name).unwrap()).unwrap());
        let tensors: std::collections::BTreeMap<_, _> = names_left.map(read).collect();
        peft_core::load::write_safetensors(&copy.join("model.safetensors"), &tensors).unwrap();
        names(&forward(&copy, None), &["architectures", class, "T5ForConditionalGeneration"]);
    }
    let truncate = |dir: &Path| {
        let bytes = fs::read(dir.join("model.safetensors")).unwrap();
        fs::write(dir.join("model.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
    };
    names(&damaged(&truncate), &["model.safetensors"]);
}

#[test]
fn damaged_and_foreign_adapters_are_named_by_file_and_key() {
    let base = golden("peft-core", "roberta-classify");
    let damaged = |change: &dyn Fn(&Path)| {
        let folder = Folder::new();
        let copy = folder.copy(&golden("peft-reparam", "lora/adapter"));
        change(&copy);
        forward(&base, Some(&copy))
    };
    let config = |key: &'static str, value: Value| {
        damaged(&|dir| edit(dir.join("adapter_config.json"), &|config| config[key] = value.clone()))
    };
    names(&config("use_dora", json!(true)), &["adapter_model.safetensors", "lora_magnitude_vector", "no tensor"]);
    names(&config("init_lora_weights", json!("corda")), &["adapter_config.json", "init_lora_weights", "corda"]);
    names(&config("rank_pattern", json!({"(": 2})), &["adapter_config.json", "rank_pattern", "regular expression"]);
    names(&config("r", json!(4)), &["lora_A.weight", "[3, 24]", "[4, 24]"]);
    names(&config("peft_type", json!("LOHA")), &["adapter_config.json", "peft_type", "LOHA", "LORA"]);
    names(&config("target_modules", json!(["query"])), &["value.lora_A.weight", "nothing uses"]);
    names(&config("target_modules", json!(["query", "value", "key"])), &["key.lora_A.weight"]);
    names(&damaged(&|dir| fs::remove_file(dir.join("adapter_model.safetensors")).unwrap()), &["adapter_model"]);
    let garbage = |dir: &Path| fs::write(dir.join("adapter_model.safetensors"), b"12345678").unwrap();
    names(&damaged(&garbage), &["adapter_model.safetensors"]);
    // PEFT saves an adapter with a name in a folder in it, a trainer its checkpoints.
    let into = |names: &'static [&'static str]| {
        damaged(&|dir| {
            let files: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
            for name in names {
                fs::create_dir(dir.join(name)).unwrap();
                for file in &files {
                    fs::copy(file, dir.join(name).join(file.file_name().unwrap())).unwrap();
                }
            }
            files.iter().for_each(|file| fs::remove_file(file).unwrap());
        })
    };
    names(&into(&["sst2"]), &["copy: adapter_config.json: found no such file", "copy/sst2"]);
    names(&into(&["checkpoint-20", "checkpoint-10"]), &["copy/checkpoint-10 or ", "copy/checkpoint-20"]);
    let setup = golden("peft-bench", "adapterhub-setups/stack/setup");
    names(&forward(&base, Some(&setup)), &["setup: adapter: found a setup of AdapterHub"]);
    let on_bert = forward(&golden("peft-core", "bert-classify"), Some(&golden("peft-reparam", "lora/adapter")));
    names(&on_bert, &["base_model.model.bert.encoder.layer.0", "adapter_model.safetensors"]);
}
