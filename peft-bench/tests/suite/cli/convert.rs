//! Conversions between the formats of adapter directories.

use std::collections::BTreeMap;

use burn::tensor::TensorData;
use peft_core::load::write_safetensors;

use super::*;

fn convert(model: &str, from: &Path, to: &str, output: &str) -> Output {
    peft(&["convert", "--model", model, "--from", &from.to_string_lossy(), "--to", to, "--output", output])
}

/// Through these formats one after the other; gives the last directory.
#[track_caller]
fn through(folder: &Folder, model: &str, from: &Path, formats: &[&str]) -> PathBuf {
    formats.iter().enumerate().fold(from.to_path_buf(), |from, (i, to)| {
        let output = folder.path(&format!("{i}-{to}"));
        let converted = convert(model, &from, to, &output);
        assert!(converted.status.success(), "{to}: {}", String::from_utf8_lossy(&converted.stderr));
        output.into()
    })
}

fn tensors(path: &Path) -> BTreeMap<String, TensorData> {
    let file = Checkpoint::open_file(path).unwrap();
    let tensor = |name: &str| (name.to_string(), file.read_f32(name, file.shape(name).unwrap()).unwrap());
    file.names().map(tensor).collect()
}

#[test]
fn what_peft_wrote_goes_through_burn_and_back_with_the_same_bits() {
    for (crate_name, case, base) in [
        ("peft-reparam", "lora", "roberta-classify"),
        ("peft-reparam", "lora-patterns", "roberta-classify"),
        ("peft-reparam", "lora-llama", "llama"),
        ("peft-reparam", "adalora-run", "roberta-classify"),
        ("peft-additive", "ia3-t5", "t5"),
        ("peft-additive", "prompt-bert", "bert-classify"),
        ("peft-additive", "prefix-projection", "roberta-classify"),
        ("peft-additive", "p-tuning-lstm", "roberta-classify"),
    ] {
        let (folder, from) = (Folder::new(), golden(crate_name, case).join("adapter"));
        let back = through(&folder, &model(base), &from, &["burn", "hf"]);
        let mut written = tensors(&from.join("adapter_model.safetensors"));
        // PEFT's copies of a head's biases, and maps that have lost their last rank.
        let copy = |name: &str| name.contains(".original_module.") || name.contains(".modules_to_save.");
        written.retain(|name, data| !copy(name) && !data.shape().contains(&0));
        let found = tensors(&back.join("adapter_model.safetensors"));
        assert_eq!(found.keys().collect::<Vec<_>>(), written.keys().collect::<Vec<_>>(), "{case}");
        assert!(found == written, "{case}: bits differ");
        let held = |name: &str| Path::new(&folder.path("0-burn")).join(name).exists();
        assert!(held("trained.bpk") && !held("adapter_model.safetensors"));
        let config = fs::read_to_string(back.join("adapter_config.json")).unwrap();
        assert!(!config.contains("shift_positions"), "{case}: a setting that PEFT does not know");
    }
}

/// See scripts/golden/gguf_adapters.py.
#[test]
fn a_lora_goes_to_gguf_and_back_with_the_same_bits() {
    for case in ["lora-llama", "lora-llama-all", "tables-llama"] {
        let (folder, dir, model) = (Folder::new(), golden("peft-reparam", case), model("llama"));
        let (hf, gguf) = (dir.join("adapter"), dir.join("adapter.gguf"));
        let read = through(&folder, &model, &gguf, &["hf"]);
        let mut from = tensors(&hf.join("adapter_model.safetensors"));
        // PEFT's copies of adapted tables.
        from.retain(|name, _| !name.contains(".base_layer."));
        assert!(tensors(&read.join("adapter_model.safetensors")) == from, "{case}");
        let output = folder.path("adapter.gguf");
        assert!(convert(&model, &hf, "gguf", &output).status.success());
        assert!(tensors(Path::new(&output)) == tensors(&gguf), "{case}");
        names(&succeed(&["inspect", &output]), &["adapter with", "adapter.lora.alpha: ", "attn_q.weight.lora_b"]);
        let alpha = |path: &Path| peft_core::load::Gguf::open(path).unwrap().float("adapter.lora.alpha").unwrap();
        assert_eq!(alpha(Path::new(&output)), alpha(&gguf));
    }
}

#[test]
fn what_gguf_cannot_hold_is_refused_by_name() {
    let folder = Folder::new();
    let output = folder.path("out.gguf");
    for (crate_name, case, base, words) in [
        ("peft-reparam", "lora", "roberta-classify", &["model", "LLaMA"][..]),
        ("peft-reparam", "dora-llama", "llama", &["use_dora", "GGUF"]),
        ("peft-reparam", "tokens-llama", "llama", &["trainable_token_indices", "GGUF"]),
        ("peft-reparam", "saved-llama", "llama", &["modules_to_save", "GGUF"]),
        ("peft-reparam", "tables-llama-tied", "llama-llama3", &["target_modules", "embed_tokens", "llama.cpp"]),
        ("peft-additive", "ia3-llama", "llama", &["method", "ia3", "lora"]),
    ] {
        let refused = convert(&model(base), &golden(crate_name, case).join("adapter"), "gguf", &output);
        assert!(!refused.status.success());
        names(&String::from_utf8(refused.stderr).unwrap(), words);
        folder.holds(&[]);
    }
}

#[test]
fn what_is_trained_goes_through_adapterhub_and_back_with_the_same_bytes() {
    for (base, settings) in [
        ("roberta-classify", "adapter --set bottleneck=5 --set train_layernorm=false"),
        // AdapterHub's files do not say how an adapter started, nor our dropout: as the package has them is what they are read as.
        (
            "bert-classify",
            "adapter --set bottleneck=30 --set train_layernorm=false --set placement=pfeiffer --set init=normal --set init_std=0.02",
        ),
        ("bert-classify", "parallel --set bottleneck=7 --set sublayers=self_attention,feed_forward --set dropout=0.0"),
        ("roberta-classify", "lora --set r=3 --set target_modules=query,output.dense,layer.1.attention.output.dense"),
        ("roberta-classify", "prefix --set num_virtual_tokens=3 --set shift_positions=false"),
        ("llama", "lora --set r=2 --set target_modules=q_proj,up_proj"),
        ("llama", "prefix --set num_virtual_tokens=3 --set shift_positions=false"),
        ("shape:roberta-tiny", "adapter --set bottleneck=5 --set train_layernorm=false"),
    ] {
        let (folder, model) = (Folder::new(), if base.contains(':') { base.to_string() } else { model(base) });
        let (data, trained) = (folder.data(), folder.path("trained"));
        let mut args =
            vec!["train", "--model", &model, "--data", &data, "--steps", "2", "--output", &trained, "--method"];
        args.extend(settings.split(' '));
        succeed(&args);
        let trained = Path::new(&trained);
        let told: Value = serde_json::from_slice(&fs::read(trained.join("adapter_config.json")).unwrap()).unwrap();
        assert_eq!(told["base_model_name_or_path"], json!(model), "{settings}");
        if settings.contains("attention.output.dense") {
            // AdapterHub has nothing at the attention's output projection.
            let output = folder.path("refused");
            let refused = convert(&model, trained, "adapterhub", &output);
            names(&String::from_utf8_lossy(&refused.stderr), &["target_modules", "attention.output.dense"]);
            continue;
        }
        if settings.starts_with("prefix") {
            // Under the usual name PEFT would load it, and shift positions.
            let held = tensors(&trained.join("adapter_model.safetensors"));
            assert!(held.contains_key("prompt_embeddings_in_place") && !held.contains_key("prompt_embeddings"));
        }
        for formats in [&["adapterhub", "hf"][..], &["burn", "adapterhub", "hf"]] {
            let folder = Folder::new();
            let back = through(&folder, &model, trained, formats);
            for name in ["adapter_config.json", "adapter_model.safetensors"] {
                assert!(
                    fs::read(back.join(name)).unwrap() == fs::read(trained.join(name)).unwrap(),
                    "{settings}: {name}"
                );
            }
            // AdapterHub's files do not tell the base by its numbers.
            let told =
                |dir: &Path| -> Value { serde_json::from_slice(&fs::read(dir.join("labels.json")).unwrap()).unwrap() };
            let mut expected = told(trained);
            assert!(expected.as_object_mut().unwrap().shift_remove("fingerprint").is_some());
            assert_eq!(told(&back), expected, "{settings}");
        }
    }
}

#[test]
fn an_adapter_without_a_head_gets_the_models() {
    let folder = Folder::new();
    let from = folder.copy(&golden("peft-bench", "adapterhub/lora/adapter"));
    fs::remove_file(from.join("head_config.json")).unwrap();
    fs::remove_file(from.join("model_head.safetensors")).unwrap();
    let hf = through(&folder, &model("roberta-classify"), &from, &["hf"]);
    let (found, own) = (
        tensors(&hf.join("adapter_model.safetensors")),
        tensors(&golden("peft-core", "roberta-classify/model.safetensors")),
    );
    for (name, data) in own.iter().filter(|(name, _)| name.starts_with("classifier.")) {
        assert_eq!(&found[&format!("base_model.model.{name}")], data);
    }
    let bare = convert(&model("bert-bare"), &from, "hf", &folder.path("bare"));
    names(&String::from_utf8_lossy(&bare.stderr), &["model_type", "roberta", "bert"]);
}

#[test]
fn what_a_format_cannot_express_is_refused_by_name() {
    for (crate_name, case, base, words) in [
        ("peft-reparam", "lora-patterns", "roberta-classify", &["rank_pattern", "one rank"][..]),
        ("peft-reparam", "lora-bias", "roberta-classify", &["bias", "no bias of the model"]),
        ("peft-additive", "prefix-t5", "t5", &["model", "t5", "all three attentions"]),
        ("peft-additive", "prefix-llama", "llama", &["shift_positions", "true", "false"]),
        ("peft-additive", "ia3-t5", "t5", &["feedforward_modules", "wo", "outputs"]),
        (
            "peft-reparam",
            "adalora",
            "roberta-classify",
            &["method", "adalora", "adapter, parallel, bottleneck, compacter, lora, ia3 or prefix"],
        ),
        (
            "peft-additive",
            "prompt",
            "roberta-classify",
            &["method", "prompt", "adapter, parallel, bottleneck, compacter, lora, ia3 or prefix"],
        ),
        ("peft-additive", "ia3", "roberta-classify", &["feedforward_modules", "attention.output.dense", "outputs"]),
        ("peft-additive", "prefix", "roberta-classify", &["shift_positions", "true", "false"]),
    ] {
        let (folder, from) = (Folder::new(), golden(crate_name, case).join("adapter"));
        let output = folder.path("out");
        let from = from.to_string_lossy();
        let args = ["convert", "--model", &model(base), "--from", &from, "--output", &output, "--to"];
        names(&fail(&[&args[..], &["adapterhub"]].concat()), words);
        names(&fail(&[&args[..], &["hf"]].concat()), &["--to", "hf", "another format"]);
        folder.holds(&[]);
    }
    let folder = Folder::new();
    let (model, llama, data) = (model("bert-classify"), model("llama"), folder.data());
    let (trained, output) = (folder.path("trained"), folder.path("out"));
    for (settings, words) in [
        ("adapter", ["train_layernorm", "no normalization of the model"]),
        ("adapter --set train_layernorm=false --set inner_norm=feed_forward", ["inner_norm", "epsilon"]),
        ("lora --set use_rslora=true", ["use_rslora", "alpha / r"]),
        ("lora --set target_modules=pooler.dense", ["target_modules", "pooler.dense"]),
        (
            "lora --set target_modules=query,layer.1.attention.self.key",
            ["target_modules", "layer.1.attention.self.key"],
        ),
        ("lora --set alpha_pattern={\"query\":3}", ["alpha_pattern", "one alpha"]),
        ("lora --set target_modules=q_proj,gate_proj", ["target_modules", "gate_proj"]),
    ] {
        let model = if settings.contains("gate_proj") { &llama } else { &model };
        let mut args =
            vec!["train", "--model", &model, "--data", &data, "--steps", "1", "--output", &trained, "--method"];
        args.extend(settings.split(' '));
        succeed(&args);
        names(
            &fail(&["convert", "--model", model, "--from", &trained, "--to", "adapterhub", "--output", &output]),
            &words,
        );
        folder.holds(&["data.jsonl", "trained"]);
        fs::remove_dir_all(&trained).unwrap();
    }
}

/// The error of a conversion of a golden adapter of AdapterHub's that was changed; it leaves nothing.
fn changed(case: &str, change: impl Fn(&Path)) -> String {
    let folder = Folder::new();
    let copy = folder.copy(&golden("peft-bench", "adapterhub").join(case).join("adapter"));
    change(&copy);
    let base = ["bert", "t5-gated", "t5", "llama"].into_iter().find(|base| case.ends_with(&format!("-{base}")));
    let base = base.map_or("roberta-classify", |base| if base == "bert" { "bert-classify" } else { base });
    let (from, output) = (copy.to_string_lossy(), folder.path("out"));
    let error = fail(&["convert", "--model", &model(base), "--from", &from, "--to", "hf", "--output", &output]);
    folder.holds(&["copy"]);
    error
}

#[test]
fn settings_of_adapterhub_that_change_the_computation_are_refused_by_name() {
    for (case, key, value) in [
        ("seq-bn", "original_ln_before", Value::Null),
        ("seq-bn", "phm_layer", json!(true)),
        ("seq-bn", "inv_adapter", json!("nice")),
        ("seq-bn", "inv_adapter", json!("glow")),
        ("seq-bn", "scaling", json!("twice")),
        ("seq-bn", "scaling", json!(0.0)),
        ("seq-bn", "residual_before_ln", json!("late")),
        ("seq-bn", "reduction_factor", json!({"1": 2})),
        ("seq-bn", "reduction_factor", json!({"1": 0, "default": 4})),
        ("seq-bn", "dropout", json!(1.0)),
        ("seq-bn-t5", "residual_before_ln", json!("post_add")),
        ("seq-bn", "leave_out", json!("first")),
        ("seq-bn", "reduction_factor", json!(-4)),
        ("seq-bn", "non_linearity", json!("mish")),
        ("compacter", "phm_bias", json!(false)),
        ("compacter", "shared_phm_rule", json!(false)),
        ("compacter", "factorized_phm_W", json!(false)),
        ("compacter", "phm_dim", json!(5)),
        ("compacter", "phm_rank", json!(0)),
        ("compacter", "is_parallel", json!(true)),
        ("seq-bn", "is_parallel", json!("yes")),
        ("seq-bn", "architecture", json!("union")),
        ("seq-bn", "some_new_thing", json!(3)),
        ("lora", "use_dora", json!(true)),
        ("lora", "use_gating", json!(true)),
        ("lora", "vera_d", json!(0.1)),
        ("lora", "composition_mode", json!("multiply")),
        ("lora", "attn_matrices", json!(["q", "o"])),
        ("lora", "r", json!("3")),
        ("lora", "alpha", json!(0)),
        ("lora", "leave_out", json!([7])),
        ("ia3", "alpha", json!(2)),
        ("ia3", "r", json!(2)),
        ("prefix", "non_linearity", json!("relu")),
        ("prefix", "use_gating", json!(true)),
        ("prefix", "leave_out", json!("first")),
        ("prefix", "prefix_length", json!(0)),
        ("prefix-flat", "flat", json!("yes")),
        ("prefix-flat-llama", "flat", json!(false)),
        ("lora-t5-gated", "leave_out", json!([5])),
    ] {
        let edited = |dir: &Path| edit(dir.join("adapter_config.json"), &|whole| whole["config"][key] = value.clone());
        // A configuration of ours has other names for some.
        let named = match key {
            "alpha" if case == "lora" => "lora_alpha",
            "prefix_length" => "num_virtual_tokens",
            // Its maps would be sums of four products, which do not divide its width.
            "phm_layer" => "phm_dim",
            key => key,
        };
        names(&changed(case, edited), &["adapter_config.json", named]);
    }
    // What is known here, of which the file has not the tensors.
    for (case, key, value, tensor) in [
        ("seq-bn", "ln_after", json!(true), "adapter_norm_after"),
        ("seq-bn", "ln_before", json!(true), "adapter_down.1"),
        ("seq-bn", "scaling", json!("channel"), "adapters.adapter.scaling"),
        ("seq-bn", "use_gating", json!(true), "adapters.adapter.gate"),
        ("seq-bn", "mh_adapter", json!(true), "attention.output.adapters"),
        ("seq-bn", "reduction_factor", json!({"1": 2, "default": 4}), "adapter_down.0"),
        ("double-seq-bn", "output_adapter", json!(false), "0.output.adapters"),
        ("par-bn", "ln_after", json!(true), "adapter_norm_after"),
        ("seq-bn-t5", "cross_adapter", json!(true), "layer.1.adapters"),
    ] {
        let edited = |dir: &Path| edit(dir.join("adapter_config.json"), &|whole| whole["config"][key] = value.clone());
        names(&changed(case, edited), &["adapter.safetensors", tensor]);
    }
    for (case, key, value) in [
        ("seq-bn-flex-two-bert", "layers", json!(3)),
        ("seq-bn-flex-two-bert", "layers", json!(1)),
        ("seq-bn-flex-two-bert", "use_pooler", json!(true)),
        ("seq-bn-flex-two-bert", "activation_function", json!("gelu")),
        ("seq-bn-flex-bert", "layers", json!(2)),
        ("seq-bn-flex", "layers", json!(1)),
    ] {
        let edited = |dir: &Path| edit(dir.join("head_config.json"), &|whole| whole["config"][key] = value.clone());
        let named = match (case, value.as_u64()) {
            ("seq-bn-flex-two-bert", Some(1)) => "use_pooler",
            ("seq-bn-flex-bert", Some(2)) => "activation_function",
            _ => key,
        };
        names(&changed(case, edited), &["head_config.json", named]);
    }
    for (key, value) in [
        ("layers", json!(3)),
        ("use_pooler", json!(true)),
        ("activation_function", json!("relu")),
        ("head_type", json!("tagging")),
        ("bias", json!(false)),
        ("label2id", json!({"no": 0, "yes": 1, "perhaps": 3})),
    ] {
        let edited = |dir: &Path| edit(dir.join("head_config.json"), &|whole| whole["config"][key] = value.clone());
        // A head for tags has one layer.
        let named = if key == "head_type" { "layers" } else { key };
        names(&changed("seq-bn-flex", edited), &["head_config.json", named]);
    }
}

#[test]
fn two_layers_on_a_bert_are_trained_on_and_not_merged() {
    let (folder, model) = (Folder::new(), model("bert-classify"));
    let hf = through(&folder, &model, &golden("peft-bench", "adapterhub/seq-bn-flex-two-bert/adapter"), &["hf"]);
    // Under a BERT's name PEFT would load one of the layers, and compute something else.
    let held = tensors(&hf.join("adapter_model.safetensors"));
    assert!(held.contains_key("base_model.model.classifier.out_proj.weight"), "{:?}", held.keys());
    assert!(!held.contains_key("base_model.model.classifier.weight"));
    let (data, more, merged) = (folder.data(), folder.path("more"), folder.path("merged"));
    edit(hf.join("labels.json"), &|labels| labels["classes"] = json!(["0", "1"]));
    let hf = hf.to_string_lossy();
    let steps = ["--steps", "2", "--data", &data, "--output", &more];
    succeed(&[&["train", "--model", &model, "--adapter", &hf][..], &steps].concat());
    let trained = tensors(&Path::new(&more).join("adapter_model.safetensors"));
    assert!(trained.keys().eq(held.keys()) && trained.iter().all(|(name, data)| *data != held[name]));
    let other = Folder::new();
    let lora = through(&other, &model, &golden("peft-bench", "adapterhub/lora-bert/adapter"), &["hf"]);
    let (config, file) = ("adapter_config.json", "adapter_model.safetensors");
    let mut both = tensors(&lora.join(file));
    both.retain(|name, _| !name.contains("classifier"));
    both.extend(held.into_iter().filter(|(name, _)| name.contains("classifier")));
    let joined = PathBuf::from(folder.path("joined"));
    fs::create_dir(&joined).unwrap();
    fs::copy(lora.join(config), joined.join(config)).unwrap();
    write_safetensors(&joined.join(file), &both).unwrap();
    let refused = fail(&["merge", "--model", &model, "--adapter", &joined.to_string_lossy(), "--output", &merged]);
    names(&refused, &["task head", "two layers", "one layer"]);
    assert!(!Path::new(&merged).exists());
}

/// In the package's flexible model T5 lies in a module of its own.
#[test]
fn an_adapter_of_the_flexible_t5_is_that_of_the_plain_one() {
    let (folder, model, from) = (Folder::new(), model("t5"), golden("peft-bench", "adapterhub/seq-bn-t5/adapter"));
    let copy = folder.copy(&from);
    let path = copy.join("adapter.safetensors");
    let wrapped = tensors(&path).into_iter().map(|(name, data)| (format!("transformer.{name}"), data)).collect();
    write_safetensors(&path, &wrapped).unwrap();
    let convert_to = |from: &Path, name: &str| {
        let output = folder.path(name);
        succeed(&["convert", "--model", &model, "--from", &from.to_string_lossy(), "--to", "hf", "--output", &output]);
        fs::read(Path::new(&output).join("adapter_model.safetensors")).unwrap()
    };
    assert!(convert_to(&from, "plain") == convert_to(&copy, "flexible"));
}

#[test]
fn what_is_not_known_of_t5_and_llama_is_refused_by_name() {
    let prefix = |dir: &Path| {
        let fields = fs::read(golden("peft-bench", "adapterhub/prefix-flat/adapter/adapter_config.json")).unwrap();
        let fields: Value = serde_json::from_slice(&fields).unwrap();
        edit(dir.join("adapter_config.json"), &|whole| whole["config"] = fields["config"].clone());
    };
    names(&changed("seq-bn-t5", prefix), &["adapter_config.json", "model", "t5", "all three attentions"]);
    for case in ["lora-t5-gated", "par-bn-t5", "lora-llama"] {
        let other = changed(case, |dir| {
            let path = dir.join("model_head.safetensors");
            let mut values = tensors(&path);
            let table = values.get_mut("lm_head.weight").unwrap();
            let mut numbers: Vec<f32> = table.iter::<f32>().collect();
            numbers[7] += 1.0;
            *table = TensorData::new(numbers, table.shape().to_vec());
            write_safetensors(&path, &values).unwrap();
        });
        names(&other, &["lm_head.weight", "other numbers", "without head_config.json"]);
    }
    let flexible = |dir: &Path| {
        edit(dir.join("head_config.json"), &|whole| {
            (whole["config"], whole["model_class"]) = (json!({"layers": 2}), json!("LlamaAdapterModel"));
        });
    };
    let known = "LlamaForSequenceClassification or LlamaForTokenClassification or LlamaForCausalLM";
    names(&changed("lora-llama", flexible), &["head_config.json", "model_class", known]);
}

#[test]
fn damaged_directories_are_named_by_file_and_key() {
    let top = |file: &'static str, key: &'static str, value: Value| {
        changed("seq-bn", |dir| edit(dir.join(file), &|whole| whole[key] = value.clone()))
    };
    for (key, value) in [
        ("version", Value::Null),
        ("version", json!("0.1.2")),
        ("version", json!("adapters.1.0.1")),
        ("model_type", json!("bert")),
        ("hidden_size", json!(32)),
        ("name", json!(7)),
        ("config", json!("pfeiffer")),
    ] {
        names(&top("adapter_config.json", key, value), &["adapter_config.json", key]);
    }
    names(&top("adapter_config.json", "name", json!("other")), &["adapter.safetensors", "adapters.other.adapter_down"]);
    names(
        &top("head_config.json", "model_class", json!("RobertaForMultipleChoice")),
        &["head_config.json", "model_class"],
    );
    names(&top("head_config.json", "label2id", json!({"yes": 0})), &["head_config.json", "label2id", "3 names"]);
    let without = |name: &'static str| changed("seq-bn", |dir| fs::remove_file(dir.join(name)).unwrap());
    names(&without("adapter_config.json"), &["adapter_config.json", "cannot read"]);
    names(&without("adapter.safetensors"), &["weights", "adapter.safetensors or pytorch_adapter.bin"]);
    names(&without("model_head.safetensors"), &["weights", "model_head.safetensors"]);
    names(
        &changed("seq-bn", |dir| fs::write(dir.join("adapter_config.json"), "{}").unwrap()),
        &["neither", "peft_type"],
    );
    let rewrite = |dir: &Path, name: &str, change: &dyn Fn(&mut BTreeMap<String, TensorData>)| {
        let mut values = tensors(&dir.join(name));
        change(&mut values);
        write_safetensors(&dir.join("adapter.safetensors"), &values).unwrap();
    };
    let more = changed("lora", |dir| {
        rewrite(dir, "adapter.safetensors", &|values| {
            values.insert("roberta.shared_parameters".into(), TensorData::from([1f32]));
        });
    });
    names(&more, &["roberta.shared_parameters", "nothing uses"]);
    // Layer 1 with another prefix than the one that all layers share.
    let torn = changed("prefix-flat", |dir| {
        rewrite(dir, "pytorch_adapter.bin", &|values| {
            let (_, copy) = values.iter_mut().find(|(name, _)| name.contains("layer.1.")).unwrap();
            let shape = copy.shape().to_vec();
            *copy = TensorData::new(copy.iter::<f32>().map(|x| x + 1.0).collect::<Vec<_>>(), shape);
        });
    });
    names(&torn, &["layer.1.attention.self.prefix_tuning.pool", "other numbers"]);

    let folder = Folder::new();
    let (from, model) = (golden("peft-reparam", "lora/adapter"), model("roberta-classify"));
    let burn = through(&folder, &model, &from, &["burn"]);
    let error = |to: &str| String::from_utf8(convert(&model, &burn, to, &folder.path("out")).stderr).unwrap();
    let record = burn.join("trained.bpk");
    let good = fs::read(&record).unwrap();
    fs::write(&record, &good[..good.len() - 9]).unwrap();
    names(&error("hf"), &["trained.bpk", "record", "truncated"]);
    fs::write(&record, "no record").unwrap();
    names(&error("hf"), &["trained.bpk", "record"]);
    fs::write(&record, &good).unwrap();
    edit(burn.join("adapter_config.json"), &|config| config["r"] = json!(4));
    names(&error("hf"), &["trained.bpk", "tuner.factors.encoder.0.query.a", "[24, 3]", "[24, 4]"]);
    fs::write(burn.join("adapter_model.safetensors"), "").unwrap();
    names(&error("adapterhub"), &["adapter_model.safetensors and trained.bpk", "one of them"]);
    assert!(!Path::new(&folder.path("out")).exists());
}
