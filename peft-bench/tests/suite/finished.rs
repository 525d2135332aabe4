//! Finished adapters in the settings that PEFT and the tools around it write: PEFT's logits, and a word on all that has no effect.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::TensorData;
use peft_bench::registry::by_peft_type;
use peft_core::io::{Pretrained, peft};
use peft_core::load::{Checkpoint, write_safetensors};
use peft_core::testing::tolerances::REFERENCE;
use peft_core::testing::{difference, golden, warnings};
use peft_core::train::{Workers, predict};
use peft_core::{AnyMethod, Example, Label, Result};
use serde_json::{Map, Value, json};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// The logits of an adapter on some examples, in one tensor.
fn logits(adapter: &Path, model: &Pretrained, examples: &[Example]) -> Result<Vec<f32>> {
    loaded(adapter, model, examples).map(|(_, logits)| logits)
}

/// The same, with the configuration.
fn loaded(adapter: &Path, model: &Pretrained, examples: &[Example]) -> Result<(AnyMethod, Vec<f32>)> {
    let (config, trained) = peft::load_as(&by_peft_type(adapter)?, adapter, model)?;
    let logits = predict(&model.base, &trained, examples, &Workers::new(1)?)?;
    Ok((config, logits.into_iter().flat_map(|logits| logits.values).collect()))
}

/// The directory of an adapter with these settings and the tensors of a case.
fn written(file: &Checkpoint, case: &str, config: &Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let tensors = file.names().filter_map(|name| Some((name.strip_prefix(case)?.strip_prefix('/')?, name)));
    let read = |(key, name): (&str, &str)| (key.to_string(), file.read_f32(name, file.shape(name).unwrap()).unwrap());
    let tensors: BTreeMap<String, TensorData> = tensors.filter(|(key, _)| *key != "logits").map(read).collect();
    write_safetensors(&dir.path().join("adapter_model.safetensors"), &tensors).unwrap();
    fs::write(dir.path().join("adapter_config.json"), config.to_string()).unwrap();
    dir
}

fn examples(file: &Checkpoint, model: &str) -> Vec<Example> {
    let rows = |name: &str| {
        let name = format!("{model}/{name}");
        file.shape(&name)?;
        let (dims, values) = file.read_i64(&name).unwrap();
        Some(values.chunks(dims[1]).map(<[i64]>::to_vec).collect::<Vec<_>>())
    };
    let labels = rows("labels");
    let example = |(i, ids): (usize, Vec<i64>)| Example {
        ids: ids.into_iter().map(|id| id as u32).collect(),
        label: labels.as_ref().map(|labels| Label::Words(labels[i].iter().map(|word| *word as i32).collect())),
        ..Default::default()
    };
    rows("input_ids").unwrap().into_iter().enumerate().map(example).collect()
}

#[test]
fn what_peft_loads_gives_its_logits_and_what_has_no_effect_is_told() {
    let cases: Vec<Value> = serde_json::from_slice(&fs::read(folder().join("finished/cases.json")).unwrap()).unwrap();
    let file = Checkpoint::open_file(&folder().join("finished/tensors.safetensors")).unwrap();
    let mut models: BTreeMap<String, Pretrained> = BTreeMap::new();
    let mut wrong = vec![];
    for case in &cases {
        let [name, model] = ["name", "model"].map(|key| case[key].as_str().unwrap());
        let dir = written(&file, name, &case["config"]);
        let base = models.entry(model.into()).or_insert_with(|| golden::model(model));
        let examples = examples(&file, model);
        let (found, told) = warnings(|| logits(dir.path(), base, &examples));
        let expected = format!("{name}/logits");
        let expected = file.read_f32(&expected, file.shape(&expected).unwrap()).unwrap();
        match found {
            Err(error) => wrong.push(format!("{name}: {error}")),
            Ok(found) if found.len() != expected.shape().iter().product::<usize>() => {
                wrong.push(format!("{name}: {} logits", found.len()));
            }
            Ok(found) => {
                let differ = difference(&TensorData::new(found, expected.shape()), &expected);
                if differ > REFERENCE.0 {
                    wrong.push(format!("{name}: differs by {differ}"));
                }
            }
        }
        let words: Vec<&str> = case["warns"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        if words.len() != told.len() || !words.iter().all(|word| told.iter().any(|told| told.contains(word))) {
            wrong.push(format!("{name}: warnings of {words:?} were {told:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

/// Puts more tensors into an adapter's file.
fn add(dir: &Path, more: &[(&str, &[usize])]) {
    let path = dir.join("adapter_model.safetensors");
    let saved = Checkpoint::open_file(&path).unwrap();
    let read = |name: &str| (name.to_string(), saved.read_f32(name, saved.shape(name).unwrap()).unwrap());
    let mut tensors: BTreeMap<String, TensorData> = saved.names().map(read).collect();
    drop(saved);
    for (name, dims) in more {
        tensors.insert(name.to_string(), TensorData::new(vec![0.5f32; dims.iter().product()], dims.to_vec()));
    }
    write_safetensors(&path, &tensors).unwrap();
}

/// PEFT gives other logits than its own merged model, which are ours, and a part of a head that was to be whole is missed.
#[test]
fn where_peft_contradicts_itself_and_what_a_head_lacks_is_told() {
    let cases: Vec<Value> = serde_json::from_slice(&fs::read(folder().join("finished/cases.json")).unwrap()).unwrap();
    let file = Checkpoint::open_file(&folder().join("finished/tensors.safetensors")).unwrap();
    let model = golden::model("roberta-mlm");
    let mut config = cases.iter().find(|it| it["name"] == "head-dense").unwrap()["config"].clone();
    config["trainable_token_indices"] = json!([5]);
    let dir = written(&file, "head-dense", &config);
    let table = "base_model.model.roberta.embeddings.word_embeddings";
    add(dir.path(), &[(&format!("{table}.token_adapter.trainable_tokens_delta"), &[1, model.base.shape().hidden])]);
    let (found, told) = warnings(|| logits(dir.path(), &model, &examples(&file, "roberta-mlm")));
    found.unwrap();
    assert!(told.len() == 1 && told[0].contains("trainable_token_indices") && told[0].contains("bias"), "{told:?}");
    config["trainable_token_indices"] = Value::Null;
    config["modules_to_save"] = json!(["lm_head"]);
    let dir = written(&file, "head-dense", &config);
    let error = logits(dir.path(), &model, &examples(&file, "roberta-mlm")).unwrap_err().to_string();
    assert!(error.contains("lm_head.") && error.contains("no tensor"), "{error}");
}

/// An adapter of a case with other settings, or more tensors: what is said of it, and the words of that.
#[test]
fn what_cannot_be_computed_is_refused_by_name_and_what_nothing_uses_is_told() {
    let cases: Vec<Value> = serde_json::from_slice(&fs::read(folder().join("finished/cases.json")).unwrap()).unwrap();
    let file = Checkpoint::open_file(&folder().join("finished/tensors.safetensors")).unwrap();
    let model = golden::model("llama");
    let examples = examples(&file, "llama");
    let load = |case: &str, (key, value): (&str, Value), more: &[(&str, &[usize])]| {
        let mut config = cases.iter().find(|it| it["name"] == case).unwrap()["config"].clone();
        config[key] = value;
        let dir = written(&file, case, &config);
        add(dir.path(), more);
        warnings(|| logits(dir.path(), &model, &examples))
    };
    let refused = |case, field: (&'static str, Value), more: &[(&str, &[usize])], words: &[&str]| {
        let message = load(case, field, more).0.unwrap_err().to_string();
        assert!(words.iter().all(|word| message.contains(word)), "{words:?}: {message}");
    };
    let told = |field: (&'static str, Value), more: &[(&str, &[usize])], words: &[&str]| {
        let (found, told) = load("start-gaussian", field, more);
        found.unwrap();
        assert!(told.len() == 1 && words.iter().all(|word| told[0].contains(word)), "{words:?}: {told:?}");
    };
    let same = || ("r", json!(2));
    for way in ["pissa_niter_4", "corda", "loftq", "unheard_of"] {
        refused("start-pissa", ("init_lora_weights", json!(way)), &[], &["init_lora_weights", way, "pissa or olora"]);
    }
    for (key, value, words) in [
        ("target_modules", json!(["query_key_value", "W_pack"]), ["target_modules", "query_key_value"]),
        ("target_modules", json!("(?<=q_proj"), ["target_modules", "regular expression"]),
        ("target_modules", json!({"a": 1}), ["target_modules", "a list of names"]),
        ("exclude_modules", json!(["q_proj", "v_proj"]), ["target_modules", "all left out"]),
        ("exclude_modules", json!("("), ["exclude_modules", "regular expression"]),
        ("layers_to_transform", json!([77]), ["target_modules", "all left out"]),
        ("layers_to_transform", json!("1"), ["layers_to_transform", "a layer's number"]),
        ("layers_pattern", json!("layers"), ["layers_pattern", "layers_to_transform"]),
        ("modules_to_save", json!({"a": 1}), ["modules_to_save", "a list of names"]),
        ("rank_pattern", json!({"(": 2}), ["rank_pattern", "regular expression"]),
        ("target_modules", json!(r"(.|..|...)*(?=c)c"), ["target_modules", "steps"]),
    ] {
        refused("start-gaussian", (key, value), &[], &words);
    }
    // Of a regular expression PEFT takes all layers.
    refused("look-ahead", ("layers_to_transform", json!([1])), &[], &["layers_to_transform", "target_modules"]);
    let front = "base_model.model.";
    let of = |name: &str| format!("{front}{name}");
    refused("start-gaussian", same(), &[(&of("lm_head.lora_A.weight"), &[2, 24])], &["lm_head", "target_modules"]);
    refused(
        "start-gaussian",
        same(),
        &[(&of("model.layers.7.self_attn.q_proj.lora_A.weight"), &[2, 24])],
        &["layers.7"],
    );
    refused("start-gaussian", same(), &[(&of("model.norm.weight"), &[24])], &["model.norm.weight", "other values"]);
    refused(
        "start-gaussian",
        same(),
        &[(&of("model.layers.1.self_attn.q_proj.base_layer.weight"), &[24, 24])],
        &["base_layer"],
    );
    told(
        same(),
        &[(&of("v_head.weight"), &[24])],
        &["adapter_model.safetensors", "v_head.weight", "nothing here uses"],
    );
    let many: Vec<String> = (0..15).map(|i| of(&format!("extra.{i:02}.weight"))).collect();
    let many: Vec<(&str, &[usize])> = many.iter().map(|name| (name.as_str(), &[2usize][..])).collect();
    told(same(), &many, &["extra.00", "extra.11", "15 in all"]);
    told(
        ("modules_to_save", json!(["embed_tokens"])),
        &[(&of("model.embed_tokens.weight"), &[0])],
        &["embed_tokens", "no elements", "ZeRO-3"],
    );
}

/// What becomes of a field of this value.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    /// It is a setting: it stands in the configuration that is read, or the tensors do not fit it.
    Setting,
    /// It chooses modules: the table of cases has those.
    Sites,
    /// No effect and no word.
    Free,
    /// No effect, and a warning that names it.
    Said,
    /// An error that names it.
    Refused,
}

/// A value that is not the default for each field of PEFT, and what becomes of it; for one type alone, or for all.
fn outcomes() -> Vec<(&'static str, &'static str, Value, Outcome)> {
    use Outcome::*;
    let some = json!({"a": 1});
    vec![
        ("", "auto_mapping", some.clone(), Free),
        ("", "base_model_name_or_path", json!("elsewhere"), Free),
        ("", "inference_mode", json!(false), Free),
        ("", "modules_to_save", json!(["nothing"]), Said),
        ("", "peft_type", json!("LOHA"), Refused),
        ("", "peft_version", json!("9.9"), Free),
        ("", "revision", json!("main"), Free),
        ("", "task_type", json!("CAUSAL_LM"), Free),
        ("", "target_modules", json!(["o_proj"]), Sites),
        ("", "exclude_modules", json!(["v_proj"]), Sites),
        ("", "feedforward_modules", json!(["v_proj"]), Sites),
        ("", "layers_to_transform", json!([0]), Sites),
        ("", "layers_pattern", json!("layers"), Sites),
        ("", "fan_in_fan_out", json!(true), Said),
        ("", "init_ia3_weights", json!(false), Free),
        ("", "lora_alpha", json!(9.0), Setting),
        ("", "lora_dropout", json!(0.25), Setting),
        ("LORA", "r", json!(5), Setting),
        ("LORA", "use_rslora", json!(true), Setting),
        ("LORA", "alpha_pattern", json!({"v_proj": 9.0}), Setting),
        ("LORA", "lora_bias", json!(true), Refused),
        ("LORA", "bias", json!("all"), Setting),
        ("LORA", "init_lora_weights", json!("gaussian"), Free),
        ("LORA", "rank_pattern", json!({"v_proj": 5}), Setting),
        ("ADALORA", "r", json!(5), Said),
        ("ADALORA", "use_rslora", json!(true), Said),
        ("ADALORA", "alpha_pattern", json!({"v_proj": 9.0}), Said),
        ("ADALORA", "lora_bias", json!(true), Said),
        ("ADALORA", "bias", json!("all"), Refused),
        ("ADALORA", "init_lora_weights", json!("gaussian"), Said),
        ("ADALORA", "rank_pattern", json!({"nothing": [true]}), Setting),
        ("ADALORA", "init_r", json!(5), Setting),
        ("ADALORA", "target_r", json!(1), Setting),
        ("ADALORA", "tinit", json!(2), Setting),
        ("ADALORA", "tfinal", json!(2), Setting),
        ("ADALORA", "deltaT", json!(2), Setting),
        ("ADALORA", "beta1", json!(0.5), Setting),
        ("ADALORA", "beta2", json!(0.5), Setting),
        ("ADALORA", "orth_reg_weight", json!(0.25), Setting),
        ("ADALORA", "total_step", json!(20), Setting),
        ("LOKR", "r", json!(5), Setting),
        ("LOKR", "alpha", json!(9.0), Setting),
        ("LOKR", "decompose_both", json!(true), Setting),
        ("LOKR", "decompose_factor", json!(2), Setting),
        ("LOKR", "rank_pattern", json!({"v_proj": 5}), Setting),
        ("LOKR", "alpha_pattern", json!({"v_proj": 9.0}), Setting),
        ("LOKR", "rank_dropout", json!(0.25), Said),
        ("LOKR", "module_dropout", json!(0.25), Said),
        ("LOKR", "rank_dropout_scale", json!(true), Said),
        ("LOKR", "use_effective_conv2d", json!(true), Said),
        ("", "eva_config", some.clone(), Said),
        ("", "corda_config", some.clone(), Said),
        ("", "lora_ga_config", some.clone(), Said),
        ("", "loftq_config", some.clone(), Said),
        ("", "velora_config", some.clone(), Said),
        ("", "runtime_config", json!({"ephemeral_gpu_offload": true}), Said),
        ("", "qalora_group_size", json!(32), Said),
        ("", "megatron_core", json!("elsewhere"), Free),
        ("", "megatron_config", some.clone(), Refused),
        ("", "alora_invocation_tokens", json!([1, 2]), Refused),
        ("", "arrow_config", some.clone(), Refused),
        ("", "kasa_config", some.clone(), Refused),
        ("", "monteclora_config", some.clone(), Refused),
        ("", "use_bdlora", some.clone(), Refused),
        ("", "use_qalora", json!(true), Refused),
        ("LORA", "use_dora", json!(true), Setting),
        ("ADALORA", "use_dora", json!(true), Refused),
        ("", "layer_replication", json!([[0, 1]]), Refused),
        ("", "target_parameters", json!(["q_proj.weight"]), Refused),
        ("LORA", "trainable_token_indices", json!([1]), Setting),
        ("ADALORA", "trainable_token_indices", json!([1]), Refused),
        ("", "ensure_weight_tying", json!(true), Said),
        ("", "num_virtual_tokens", json!(7), Setting),
        ("", "num_layers", json!(9), Refused),
        ("", "num_attention_heads", json!(9), Refused),
        ("", "num_transformer_submodules", json!(2), Refused),
        ("", "token_dim", json!(9), Refused),
        ("", "prompt_tuning_init", json!("SAMPLE_VOCAB"), Setting),
        ("", "prompt_tuning_init_text", json!("a text"), Free),
        ("", "prompt_tuning_init_task", json!(1), Setting),
        ("", "prompt_tuning_init_state_dict_path", json!("elsewhere"), Said),
        ("", "num_tasks", json!(2), Setting),
        ("", "num_ranks", json!(3), Setting),
        ("", "tokenizer_name_or_path", json!("elsewhere"), Free),
        ("", "tokenizer_kwargs", some, Free),
        ("", "init_weights", json!(true), Free),
        ("", "prefix_projection", json!(true), Setting),
        ("", "encoder_hidden_size", json!(7), Setting),
        ("", "encoder_dropout", json!(0.25), Setting),
        ("", "encoder_num_layers", json!(3), Setting),
        ("", "encoder_reparameterization_type", json!("LSTM"), Setting),
    ]
}

#[test]
fn every_field_of_peft_is_obeyed_or_harmless_or_refused_by_name() {
    let table: Map<String, Value> =
        serde_json::from_slice(&fs::read(folder().join("peft-fields.json")).unwrap()).unwrap();
    let model = golden::model("llama");
    let examples = [Example { ids: vec![5, 6, 7, 8], ..Default::default() }];
    let outcomes = outcomes();
    let cases = [
        ("LORA", "peft-reparam", "lora-llama"),
        ("ADALORA", "peft-reparam", "adalora-llama"),
        ("LOKR", "peft-reparam", "lokr-llama"),
        ("IA3", "peft-additive", "ia3-llama"),
        ("PROMPT_TUNING", "peft-additive", "prompt-llama"),
        ("PREFIX_TUNING", "peft-additive", "prefix-llama"),
        ("P_TUNING", "peft-additive", "p-tuning-llama"),
        ("MULTITASK_PROMPT_TUNING", "peft-additive", "mpt-llama"),
    ];
    let mut met = vec![false; outcomes.len()];
    let mut wrong = vec![];
    for (kind, family, case) in cases {
        let from = folder().join("../../..").join(family).join("tests/golden").join(case).join("adapter");
        let dir = tempfile::tempdir().unwrap();
        fs::copy(from.join("adapter_model.safetensors"), dir.path().join("adapter_model.safetensors")).unwrap();
        let good: Value = serde_json::from_slice(&fs::read(from.join("adapter_config.json")).unwrap()).unwrap();
        let load = |key: &str, value: &Value| {
            let mut config = good.clone();
            config[key] = value.clone();
            fs::write(dir.path().join("adapter_config.json"), config.to_string()).unwrap();
            warnings(|| loaded(dir.path(), &model, &examples))
        };
        let (first, told) = load("peft_type", &json!(kind));
        let logits = first.unwrap().1;
        assert!(told.is_empty(), "{kind}: {told:?}");
        for (key, field) in table[kind].as_object().unwrap() {
            let of = |(_, outcome): &(usize, &(&str, &str, Value, Outcome))| {
                outcome.1 == key && ["", kind].contains(&outcome.0)
            };
            let Some((i, (_, _, value, outcome))) = outcomes.iter().enumerate().find(of) else {
                wrong.push(format!("{kind} {key}: no outcome"));
                continue;
            };
            met[i] = true;
            let (found, told) = load(key, value);
            let named = |error: &peft_core::Error| error.to_string().contains(key.as_str());
            let right = match (outcome, &found) {
                (Outcome::Free, Ok((_, found))) => *found == logits && told.is_empty(),
                // Twice, once for the configuration and once for the logits.
                (Outcome::Said, Ok((_, found))) => {
                    *found == logits && !told.is_empty() && told.iter().all(|told| told.contains(key.as_str()))
                }
                (Outcome::Refused, Err(error)) => named(error),
                (Outcome::Setting, Ok((config, _))) => config.settings()[key] == *value,
                (Outcome::Sites, Ok((_, found))) => *found != logits,
                (Outcome::Setting | Outcome::Sites, Err(_)) => true,
                _ => false,
            };
            if !right {
                let found = found.map(|(config, found)| (config.settings().get(key).cloned(), found == logits));
                wrong.push(format!("{kind} {key} {value}: not {outcome:?}, but {found:?}, {told:?}"));
            }
            // PEFT itself wants these.
            let wanted = ["peft_type", "num_virtual_tokens", "num_tasks", "num_ranks", "total_step"];
            let wanted = wanted.contains(&key.as_str());
            match load(key, &Value::Null).0 {
                Ok((_, found)) if found == logits => {}
                Err(error) if (wanted || field["null"] == false) && named(&error) => {}
                found => wrong.push(format!(
                    "{kind} {key} null: {:?}",
                    found.map(|(config, _)| config.settings().get(key).cloned())
                )),
            }
        }
    }
    let never: Vec<&str> = outcomes.iter().zip(met).filter(|(_, met)| !met).map(|(outcome, _)| outcome.1).collect();
    assert!(never.is_empty(), "PEFT has no {never:?}");
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}
