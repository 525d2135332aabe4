//! `adapter_config.json`: a method's own fields among those of all methods.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::files::{Distinct, read_json};
use crate::load::Gguf;
use crate::{Error, Method, Result, Shape};

/// Fields that say nothing about the computation.
const DESCRIPTIVE: [&str; 13] = [
    "peft_type",
    "task_type",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "auto_mapping",
    "peft_version",
    "modules_to_save",
    "init_ia3_weights",
    "init_weights",
    "prompt_tuning_init",
    "prompt_tuning_init_text",
    "tokenizer_name_or_path",
];

/// Fields that change nothing at this value (beside null, false and empty ones).
fn is_default(key: &str, value: &Value) -> bool {
    match (key, value) {
        // The other ways to start (PiSSA, OLoRA, CorDA, LoftQ) also change the base, which the adapter's files do not hold.
        ("init_lora_weights", Value::String(way)) => ["gaussian", "orthogonal", "eva"].contains(&way.as_str()),
        ("init_lora_weights", value) => value.is_boolean(),
        ("megatron_core", value) => value == "megatron.core",
        ("bias", value) => value == "none",
        ("qalora_group_size", _) => true,
        _ => false,
    }
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

/// What is expected where an adapter is of another format.
pub(super) const PEFT_FILES: &str =
    "one in the files of Hugging Face PEFT, which `peft convert --to hf` makes from this";

/// The `peft_type` of an adapter directory.
pub fn peft_type(dir: &Path) -> Result<String> {
    let path = dir.join("adapter_config.json");
    if dir.is_file() {
        let (holds, expected) = match Gguf::open(dir)?.is_adapter() {
            true => ("one in GGUF, where general.type is adapter", PEFT_FILES),
            false => ("a model in GGUF", "an adapter's directory"),
        };
        return Err(Error::file(dir, "adapter", holds, expected));
    }
    if dir.join("config.json").exists() && !path.exists() {
        return Err(Error::file(dir, "adapter", "a model's directory", "one with an adapter_config.json"));
    }
    let config = read_json(&path)?;
    match config.get("peft_type") {
        Some(Value::String(kind)) => Ok(kind.clone()),
        None if config.get("config").is_some() => Err(Error::file(dir, "adapter", "one of AdapterHub", PEFT_FILES)),
        other => Err(Error::file(&path, "peft_type", other.map_or("nothing".into(), Value::to_string), "a string")),
    }
}

/// A method's configuration, refusing every field that would change the computation and is not understood.
pub(super) fn read<M: Method>(dir: &Path, shape: &Shape) -> Result<M> {
    let path = &dir.join("adapter_config.json");
    let kind = peft_type(dir)?;
    if kind != M::PEFT_TYPE {
        return Err(Error::file(path, "peft_type", kind, M::PEFT_TYPE));
    }
    let Value::Object(fields) = read_json(path)? else {
        return Err(Error::file(path, "content", "no object", "a JSON object"));
    };
    let own = object(&M::default());
    let derived = M::default().derived(shape);
    let mut config = Map::new();
    for (key, value) in fields {
        if own.contains_key(&key) {
            if !value.is_null() {
                config.insert(key, value);
            }
        } else if let Some(expected) = derived.get(&key) {
            if !value.is_null() && value != *expected {
                return Err(Error::file(path, key, value, format!("{expected}, as in the model")));
            }
        } else if ![&DESCRIPTIVE, M::UNUSED].concat().contains(&key.as_str())
            && !is_off(&value)
            && !is_default(&key, &value)
        {
            let known = own.keys().cloned().collect::<Vec<_>>().join(", ");
            return Err(Error::file(
                path,
                key,
                value,
                format!("null or false, or one of the fields of {}: {known}", M::NAME),
            ));
        }
    }
    if let Some((key, older)) = M::STATED.iter().find(|(key, _)| !config.contains_key(*key)) {
        let expected = format!("a value; if the adapter is of a version that did not write one, {older}");
        return Err(Error::file(path, *key, "nothing", expected));
    }
    parse(config).map_err(|(key, found)| Error::file(path, key, found, format!("a value that {} takes", M::NAME)))
}

/// The largest number of a setting that is no seed. Products of sizes are then far from what a machine counts.
const MOST: u64 = (1 << 31) - 1;

/// A whole number above that in a value, or in the parts of one.
fn too_large(value: &Value) -> Option<&Value> {
    match value {
        Value::Number(number) => (number.as_u64()? > MOST).then_some(value),
        Value::Array(list) => list.iter().find_map(too_large),
        Value::Object(map) => map.values().find_map(too_large),
        _ => None,
    }
}

/// A configuration from fields of its own; the error is the key and what is wrong.
pub(crate) fn parse<M: Method>(fields: Map<String, Value>) -> Result<M, (String, String)> {
    for (key, value) in &fields {
        if !key.contains("seed")
            && let Some(size) = too_large(value)
        {
            return Err((key.clone(), format!("{size} (above {MOST})")));
        }
        let alone = Map::from_iter([(key.clone(), value.clone())]);
        if let Err(error) = serde_json::from_value::<M>(Value::Object(alone)) {
            return Err((key.clone(), format!("{value} ({error})")));
        }
    }
    serde_json::from_value(Value::Object(fields)).map_err(|e| ("content".into(), e.to_string()))
}

pub(crate) fn object<M: Method>(config: &M) -> Map<String, Value> {
    match serde_json::to_value(config) {
        Ok(Value::Object(fields)) => fields,
        other => unreachable!("a configuration is an object of plain values: {other:?}"),
    }
}

/// The whole of `adapter_config.json`.
pub(super) fn write<M: Method>(
    config: &M,
    shape: &Shape,
    base: &str,
    task: Option<&str>,
    head: &[&str],
) -> Result<Value> {
    let mut fields = object(&config.for_files(shape)?);
    let default = object(&M::default());
    fields.retain(|key, value| !M::OWN_SETTINGS.contains(&key.as_str()) || default.get(key) != Some(value));
    fields.extend(config.derived(shape));
    fields.insert("peft_type".into(), json!(M::PEFT_TYPE));
    fields.insert("task_type".into(), json!(task));
    fields.insert("base_model_name_or_path".into(), json!(base));
    fields.insert("inference_mode".into(), json!(true));
    fields.insert("modules_to_save".into(), if head.is_empty() { Value::Null } else { json!(head) });
    fields.sort_keys();
    Ok(Value::Object(fields))
}

/// A configuration from `key=value` words, on top of the defaults. Values are JSON, or text; lists may be written `a,b`.
pub fn from_settings<M: Method>(settings: &[String]) -> Result<M> {
    let own = object(&M::default());
    let mut fields = Map::new();
    for setting in settings {
        let (key, text) =
            setting.split_once('=').ok_or_else(|| Error::config("--set", setting, "KEY=VALUE, such as r=8"))?;
        let Some(default) = own.get(key) else {
            let known = own.keys().cloned().collect::<Vec<_>>().join(", ");
            return Err(Error::config(
                format!("--set {key}"),
                text,
                format!("one of the keys of {}: {known}", M::NAME),
            ));
        };
        // Names are a list where there are several, a list is the default, or there is no default and a list is taken.
        // Anything else, such as a pattern, is a text.
        let words: Vec<&str> = text.split(',').map(str::trim).collect();
        let plain = |word: &&str| !word.is_empty() && word.chars().all(|c| c.is_alphanumeric() || "._".contains(c));
        let list_taken = || parse::<M>(Map::from_iter([(key.to_string(), json!(words))])).is_ok();
        let list =
            words.iter().all(plain) && (words.len() > 1 || default.is_array() || default.is_null() && list_taken());
        let value = match serde_json::from_str::<Value>(text) {
            Ok(_) => serde_json::from_str(text)
                .map(|Distinct(value)| value)
                .map_err(|error| Error::config(format!("--set {key}"), text, format!("each key once ({error})")))?,
            Err(_) if list => json!(words),
            Err(_) => json!(text),
        };
        if fields.insert(key.to_string(), value).is_some() {
            return Err(Error::config(format!("--set {key}"), "given twice", "each key once"));
        }
    }
    parse(fields)
        .map_err(|(key, found)| Error::config(format!("--set {key}"), found, format!("a value like {}", own[&key])))
}
