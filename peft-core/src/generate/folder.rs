//! What a model's folder says of generation: `generation_config.json`, or where there is none `config.json`, as in transformers.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::GenerateConfig;
use crate::Result;
use crate::files::read_json;
use crate::io::Pretrained;
use crate::warning::warn;

/// What becomes of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// It decides as it does in transformers.
    Obeyed,
    /// It changes no text.
    Harmless,
    /// A warning names it and its value, unless the value is null or one of these, as JSON, which change nothing.
    Named(&'static [&'static str]),
}

use Use::{Harmless, Named, Obeyed};

/// Every field of transformers' `GenerationConfig` (5.23), and what becomes of it.
pub const FIELDS: &[(&str, Use)] = &[
    ("max_length", Obeyed),
    ("max_new_tokens", Obeyed),
    ("min_length", Obeyed),
    ("min_new_tokens", Obeyed),
    ("early_stopping", Obeyed),
    ("do_sample", Obeyed),
    ("num_beams", Obeyed),
    ("use_cache", Obeyed),
    ("temperature", Obeyed),
    ("top_k", Obeyed),
    ("top_p", Obeyed),
    ("min_p", Obeyed),
    ("typical_p", Obeyed),
    ("epsilon_cutoff", Obeyed),
    ("eta_cutoff", Obeyed),
    ("repetition_penalty", Obeyed),
    ("encoder_repetition_penalty", Obeyed),
    ("length_penalty", Obeyed),
    ("no_repeat_ngram_size", Obeyed),
    ("encoder_no_repeat_ngram_size", Obeyed),
    ("bad_words_ids", Obeyed),
    ("sequence_bias", Obeyed),
    ("renormalize_logits", Obeyed),
    ("forced_bos_token_id", Obeyed),
    ("forced_eos_token_id", Obeyed),
    ("exponential_decay_length_penalty", Obeyed),
    ("suppress_tokens", Obeyed),
    ("begin_suppress_tokens", Obeyed),
    ("eos_token_id", Obeyed),
    ("bos_token_id", Obeyed),
    ("decoder_start_token_id", Obeyed),
    ("max_time", Named(&[])),
    ("stop_strings", Named(&["[]"])),
    ("top_h", Named(&[])),
    ("remove_invalid_values", Named(&["false"])),
    ("guidance_scale", Named(&["1", "1.0"])),
    ("watermarking_config", Named(&[])),
    ("token_healing", Named(&["false"])),
    ("num_return_sequences", Named(&["1"])),
    ("penalty_alpha", Named(&["0", "0.0"])),
    ("dola_layers", Named(&[])),
    ("diversity_penalty", Named(&["0", "0.0"])),
    ("num_beam_groups", Named(&["1"])),
    ("constraints", Named(&["[]"])),
    ("force_words_ids", Named(&["[]"])),
    ("force_bos_token_to_be_generated", Named(&["false"])),
    ("assistant_ensemble_weight", Named(&[])),
    ("low_memory", Named(&["false"])),
    ("cache_implementation", Named(CACHES)),
    // How the cache is kept, and how the computation is cut and compiled.
    ("cache_config", Harmless),
    ("max_cache_len", Harmless),
    ("prefill_chunk_size", Harmless),
    ("compile_config", Harmless),
    ("disable_compile", Harmless),
    ("continuous_batching_config", Harmless),
    // What is given back beside the text.
    ("output_attentions", Harmless),
    ("output_hidden_states", Harmless),
    ("output_scores", Harmless),
    ("output_logits", Harmless),
    ("return_dict_in_generate", Harmless),
    // Ways to draft a text that the model then checks.
    ("use_mtp", Harmless),
    ("is_assistant", Harmless),
    ("num_assistant_tokens", Harmless),
    ("num_assistant_tokens_schedule", Harmless),
    ("assistant_confidence_threshold", Harmless),
    ("assistant_early_exit", Harmless),
    ("assistant_lookbehind", Harmless),
    ("target_lookbehind", Harmless),
    ("prompt_lookup_num_tokens", Harmless),
    ("max_matching_ngram_size", Harmless),
    ("speculation_type", Harmless),
    // Padding is masked.
    ("pad_token_id", Harmless),
    ("_commit_hash", Harmless),
    ("_from_model_config", Harmless),
    ("transformers_version", Harmless),
];

/// Caches that hold what was computed as it was.
const CACHES: &[&str] = &[
    "\"dynamic\"",
    "\"static\"",
    "\"offloaded\"",
    "\"offloaded_static\"",
    "\"hybrid\"",
    "\"hybrid_chunked\"",
    "\"offloaded_hybrid\"",
    "\"sliding_window\"",
    "\"paged\"",
];

/// How a model's folder says to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct FolderSettings {
    /// The settings; where it says nothing, the defaults.
    pub config: GenerateConfig,
    /// The file that says so; none of a model without one.
    pub path: Option<PathBuf>,
    /// The fields that are not at their defaults, with their values.
    pub used: Vec<(String, Value)>,
}

impl FolderSettings {
    /// What the folder of a model says. Fields that have no effect here are named in a warning with their values.
    pub fn of(model: &Pretrained) -> Result<Self> {
        let Some(dir) = &model.dir else {
            return Ok(FolderSettings { config: GenerateConfig::default(), path: None, used: vec![] });
        };
        let (file, own) = (dir.join("generation_config.json"), dir.join("config.json"));
        let (path, fields, alone) = match (file.exists(), own.exists()) {
            (true, _) => (file.clone(), read_json(&file)?, true),
            // What there is of these belongs to the model, which has it.
            (false, true) => {
                (own, without(&model.config, &["eos_token_id", "bos_token_id", "decoder_start_token_id"]), false)
            }
            (false, false) => {
                return Ok(FolderSettings { config: GenerateConfig::default(), path: None, used: vec![] });
            }
        };
        let shape = model.base.shape();
        let behind = shape.architecture.is_encoder_decoder();
        let (config, used) = read(&path, &fields, alone, behind, shape.vocab)?;
        Ok(FolderSettings { config, path: Some(path), used })
    }
}

fn without(config: &Value, keys: &[&str]) -> Value {
    let mut config = config.clone();
    if let Some(map) = config.as_object_mut() {
        keys.iter().for_each(|key| drop(map.remove(*key)));
    }
    config
}

/// The settings in a file that is all of them, or in one that holds other things too; `behind` an encoder or not.
fn read(
    path: &Path,
    fields: &Value,
    alone: bool,
    behind: bool,
    vocab: usize,
) -> Result<(GenerateConfig, Vec<(String, Value)>)> {
    let expected = "an object";
    let given = fields.as_object().ok_or_else(|| crate::Error::file(path, "content", fields, expected))?;
    let (mut config, mut used) = (GenerateConfig::default(), vec![]);
    let ignored = |key: &str, value: &Value, why: &str| warn(path, key, format!("is {value}: {why}"));
    for (key, value) in given.iter().filter(|(_, value)| !value.is_null()) {
        match FIELDS.iter().find(|(name, _)| name == key).map(|(_, uses)| *uses) {
            Some(Obeyed) => {
                let value = normal(key, value, vocab);
                if key == "bos_token_id" || (key == "decoder_start_token_id" && !behind) {
                    continue;
                }
                let next =
                    set(&config, key, &value).map_err(|why| crate::Error::file(path, key, given[key].clone(), why))?;
                if next != config || key == "eos_token_id" {
                    used.push((key.clone(), given[key].clone()));
                }
                config = next;
            }
            Some(Named(neutral)) if !neutral.contains(&&*value.to_string()) => {
                ignored(key, value, "this setting of generation has no effect here");
            }
            Some(_) => {}
            None if alone => ignored(key, value, "no setting of generation has this name"),
            None => {}
        }
    }
    // The defaults of transformers where a field depends on others.
    if config.do_sample && !given.contains_key("top_k") {
        config.top_k = 50;
        used.push(("top_k".into(), json!(50)));
    }
    match (given.get("max_new_tokens").filter(|value| !value.is_null()), config.max_length) {
        (Some(_), Some(length)) => {
            ignored("max_length", &json!(length), "max_new_tokens counts instead");
            used.retain(|(key, _)| key != "max_length");
            config.max_length = None;
        }
        (None, Some(length)) => config.max_new_tokens = length,
        _ => {}
    }
    if behind && alone && config.decoder_start_token_id.is_none() {
        let bos = given.get("bos_token_id").and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
        config.decoder_start_token_id = bos.filter(|id| (*id as usize) < vocab);
    }
    if alone && config.eos_token_id.is_none() {
        // A text then ends by its length only.
        warn(path, "eos_token_id", "is nothing: a text ends by its length only");
        config.eos_token_id = Some(vec![]);
    }
    config.check(vocab).map_err(|error| error.in_file(path))?;
    Ok((config, used))
}

/// A value as [`GenerateConfig`] has it. What ends a text has been checked when the model was opened.
fn normal(key: &str, value: &Value, vocab: usize) -> Value {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
    match (key, value) {
        ("early_stopping", Value::Bool(true)) => json!("yes"),
        ("early_stopping", Value::Bool(false)) => json!("no"),
        ("eos_token_id", _) => {
            let known = |id: &Value| id.as_u64().is_some_and(|id| id < vocab as u64);
            list(value).into_iter().filter(known).collect()
        }
        ("forced_eos_token_id", _) => list(value).into(),
        _ => value.clone(),
    }
}

/// The same settings with one of them as JSON; else what is allowed.
fn set(config: &GenerateConfig, key: &str, value: &Value) -> Result<GenerateConfig, String> {
    let mut fields = serde_json::to_value(config).map_err(|error| error.to_string())?;
    let old = std::mem::replace(&mut fields[key], value.clone());
    serde_json::from_value(fields).map_err(|_| format!("a value such as {old}"))
}
