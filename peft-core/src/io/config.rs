//! `adapter_config.json`: a method's own fields among those of all methods.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::fields::{self, Verdict};
use super::sites;
use crate::files::{Distinct, read_json};
use crate::load::Gguf;
use crate::warning::warn;
use crate::{AnyMethod, Common, Error, Few, Method, Result, Shape, Start};

/// The file of a record of burn.
pub(super) const RECORD: &str = "trained.bpk";
/// What is expected where an adapter is of another format.
pub(super) const PEFT_FILES: &str = "one in the files of Hugging Face PEFT, to which this can be converted";

/// The `peft_type` of each part of an adapter directory of several methods at once.
pub fn part_types(dir: &Path) -> Result<Vec<String>> {
    let Settings { path, fields, .. } = Settings::read(dir)?;
    let wrong = |found: String| Error::file(&path, "parts", found, "a list of settings, each with its peft_type");
    let parts = fields.get("parts").and_then(Value::as_array).ok_or_else(|| wrong("nothing".into()))?;
    let kind = |part: &Value| part.get("peft_type").and_then(Value::as_str).map(str::to_string);
    parts.iter().map(|part| kind(part).ok_or_else(|| wrong(part.to_string()))).collect()
}

/// The `peft_type` of an adapter directory.
pub fn peft_type(dir: &Path) -> Result<String> {
    Ok(Settings::read(dir)?.kind)
}

/// Refuses a folder without an `adapter_config.json` by what it has instead: adapters in folders of their own, as PEFT saves one of another
/// name than `default` and as checkpoints of a run lie, or a composition of AdapterHub's.
fn check_folder(dir: &Path) -> Result<()> {
    if ["adapter_setup.json", "adapter_fusion_config.json"].iter().any(|name| dir.join(name).exists()) {
        return Err(Error::file(dir, "adapter", "a setup of AdapterHub", "the directory of one adapter"));
    }
    let entries = dir.read_dir().into_iter().flatten().flatten().map(|entry| entry.path());
    let mut inner: Vec<PathBuf> = entries.filter(|entry| entry.join("adapter_config.json").exists()).collect();
    inner.sort();
    match &inner[..] {
        [] => Ok(()),
        inner => {
            let expected = inner.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(" or ");
            Err(Error::file(dir, "adapter_config.json", "no such file", format!("an adapter's directory: {expected}")))
        }
    }
}

/// `adapter_config.json` as it stands, read once for all that it says.
pub(super) struct Settings {
    pub(super) path: PathBuf,
    pub(super) fields: Map<String, Value>,
    kind: String,
}

impl Settings {
    /// Of an adapter's directory.
    pub(super) fn read(dir: &Path) -> Result<Self> {
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
        if !path.exists() {
            check_folder(dir)?;
        }
        let Value::Object(fields) = read_json(&path)? else {
            return Err(Error::file(&path, "content", "no object", "a JSON object"));
        };
        let kind = match fields.get("peft_type") {
            Some(Value::String(kind)) => kind.clone(),
            None if fields.contains_key("config") => {
                return Err(Error::file(dir, "adapter", "one of AdapterHub", PEFT_FILES));
            }
            other => {
                let found = other.map_or("nothing".into(), Value::to_string);
                return Err(Error::file(&path, "peft_type", found, "a string"));
            }
        };
        Ok(Settings { path, fields, kind })
    }

    /// The modules that are saved beside the adapter.
    pub(super) fn modules_to_save(&self) -> Result<Vec<String>> {
        let value = self.fields.get("modules_to_save").cloned().unwrap_or_default();
        let names: Option<Few<String>> = serde_json::from_value(value.clone())
            .map_err(|_| Error::file(&self.path, "modules_to_save", value, "null, or a list of names of modules"))?;
        Ok(names.map_or(vec![], |names| names.all().to_vec()))
    }
}

/// What `adapter_config.json` says.
pub(super) struct Read {
    /// A method's configuration as its tensors lie in the file.
    pub(super) config: AnyMethod,
    /// How it started, if that is no part of them.
    pub(super) start: Option<Start>,
    told: sites::Notes,
}

impl Read {
    /// The configuration, once a warning has named what does not enter it.
    pub(super) fn tell(&self, settings: &Settings) -> AnyMethod {
        self.told.iter().for_each(|(key, what)| warn(&settings.path, key, what));
        self.config.clone()
    }
}

/// Reads the settings of a method. Every field that would change the computation and is not understood is refused.
pub(super) fn read(method: &AnyMethod, settings: &Settings, shape: &Shape) -> Result<Read> {
    let Settings { path, fields, kind } = settings;
    if kind != method.peft_type() {
        return Err(Error::file(path, "peft_type", kind, method.peft_type()));
    }
    let default = method.with_defaults();
    let (own, derived) = (default.settings(), default.derived(shape));
    let (mut config, mut start, mut told) = (Map::new(), None, vec![]);
    for (key, value) in sites::settled(method, fields.clone(), shape, path, &mut told)? {
        if derived.get(&key).is_some_and(|expected| value.is_null() || value == *expected) {
            continue;
        }
        if let Some(default) = own.get(&key) {
            match (&value, default) {
                (Value::Null, Value::Number(_) | Value::String(_)) => {
                    return Err(Error::file(path, key, "null", format!("a value like {default}")));
                }
                (Value::Null, _) => {}
                _ => drop(config.insert(key, value)),
            }
        } else if let Some(expected) = derived.get(&key) {
            return Err(Error::file(path, key, value, format!("{expected}, as in the model")));
        } else {
            match fields::judge(kind, &key, &value) {
                Verdict::Free => {}
                Verdict::Said(why) => told.push((key, format!("is {value}: {why}"))),
                Verdict::Start(way) => {
                    const WHY: &str = "read as an adapter of twice the rank, which takes that start out of the base";
                    told.push((key, format!("is {value}: {WHY}")));
                    start = Some(way);
                }
                Verdict::Refused(expected) => return Err(Error::file(path, key, value, expected)),
                Verdict::Unknown => {
                    told.push((key, format!("is {value}: nothing here, nor in PEFT, has such a setting")))
                }
            }
        }
    }
    if let Some((key, older)) = method.stated().iter().find(|(key, _)| !config.contains_key(*key)) {
        let expected = format!("a value; if the adapter is of a version that did not write one, {older}");
        return Err(Error::file(path, *key, "nothing", expected));
    }
    let wrong = |(key, found)| Error::file(path, key, found, format!("a value that {} takes", method.name()));
    Ok(Read { config: parse(method, config).map_err(wrong)?, start, told })
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
pub(crate) fn parse(method: &AnyMethod, fields: Map<String, Value>) -> Result<AnyMethod, (String, String)> {
    let sizes = || fields.iter().filter(|(key, _)| !key.contains("seed"));
    match sizes().find_map(|(key, value)| Some((key, too_large(value)?))) {
        Some((key, size)) => Err((key.clone(), format!("{size} (above {MOST})"))),
        None => method.with_settings(fields),
    }
}

/// The whole of `adapter_config.json`.
pub(super) fn write(
    config: &AnyMethod,
    shape: &Shape,
    base: &str,
    task: Option<&str>,
    head: &[&str],
    copies: &[String],
) -> Result<Value> {
    let mut fields = config.for_files(shape)?.settings();
    let default = config.with_defaults().settings();
    fields.retain(|key, value| !config.own_settings().contains(&key.as_str()) || default.get(key) != Some(value));
    fields.extend(config.derived(shape));
    fields.insert("peft_type".into(), json!(config.peft_type()));
    fields.insert("task_type".into(), json!(task));
    fields.insert("base_model_name_or_path".into(), json!(base));
    fields.insert("inference_mode".into(), json!(true));
    let modules: Vec<&str> = head.iter().copied().chain(copies.iter().map(String::as_str)).collect();
    fields.insert("modules_to_save".into(), if modules.is_empty() { Value::Null } else { json!(modules) });
    fields.sort_keys();
    Ok(Value::Object(fields))
}

/// Takes the settings that every method has beside its own out of `key=value` words.
pub fn split_common(settings: &[String]) -> Result<(Common, Vec<String>)> {
    let own = Map::from_iter(Common::KEYS.map(|key| (key.to_string(), Value::Null)));
    let key = |setting: &String| setting.split_once('=').map_or("", |(key, _)| key).to_string();
    let (common, others): (Vec<String>, Vec<String>) =
        settings.iter().cloned().partition(|setting| own.contains_key(&key(setting)));
    let read = |fields: Map<String, Value>| serde_json::from_value::<Common>(Value::Object(fields));
    let fields = words(&common, &own, "a method", |fields| read(fields).is_ok())?;
    for (key, value) in &fields {
        let expected = match key.as_str() {
            "modules_to_save" => "names of modules, such as embed_tokens",
            "exclude_modules" => "names of modules, or an expression, such as query",
            "layers_to_transform" => "a layer's number, or a list of them, such as 0,2",
            _ => "a name, or a list of them, such as layers",
        };
        let has_empty = value.as_array().is_some_and(|list| list.iter().any(|name| name == ""));
        if has_empty || read(Map::from_iter([(key.clone(), value.clone())])).is_err() {
            return Err(Error::config(key, value, expected));
        }
    }
    let common = read(fields).map_err(|error| Error::config("settings", error, "settings that every method has"))?;
    Ok((common, others))
}

/// [`with_words`] of a method that is known.
pub fn from_settings<M: Method>(settings: &[String]) -> Result<M> {
    let method = with_words(&AnyMethod::of::<M>(), settings)?;
    Ok(method.downcast_ref().cloned().unwrap_or_else(|| unreachable!("settings change no type")))
}

/// [`with_words`] of several methods at once.
fn composed(parts: &[AnyMethod], settings: &[String]) -> Result<AnyMethod> {
    let mut words = vec![vec![]; parts.len()];
    for setting in settings {
        let key = setting.split('=').next().unwrap_or_default();
        let named = parts.iter().position(|part| key.split_once('.').is_some_and(|(name, _)| name == part.name()));
        let having: Vec<usize> =
            (0..parts.len()).filter(|i| parts[*i].with_defaults().settings().contains_key(key)).collect();
        let (part, word) = match (named, &having[..]) {
            (Some(part), _) => (part, setting[parts[part].name().len() + 1..].to_string()),
            (None, [part]) => (*part, setting.clone()),
            (None, _) => {
                let names = parts.iter().map(|part| format!("{}.{key}", part.name())).collect::<Vec<_>>().join(" or ");
                let found = if having.is_empty() { "a setting of none of the methods" } else { "a setting of several" };
                return Err(Error::config(key, found, names));
            }
        };
        words[part].push(word);
    }
    let parts = parts.iter().zip(words).map(|(part, words)| with_words(part, &words));
    parts.collect::<Result<_>>().map(AnyMethod::composed)
}

/// A method's configuration from `key=value` words, on top of the defaults. Values are JSON, or text; lists may be written `a,b`. Of
/// several methods at once a word goes to the one that has such a setting, or to the one that it names, `lora.r=8`.
pub fn with_words(method: &AnyMethod, settings: &[String]) -> Result<AnyMethod> {
    if !method.parts().is_empty() && !settings.iter().any(|setting| setting.starts_with("parts=")) {
        return composed(method.parts(), settings);
    }
    let own = method.with_defaults().settings();
    let fields = words(settings, &own, method.name(), |fields| parse(method, fields).is_ok())?;
    parse(method, fields).map_err(|(key, found)| {
        let expected = format!("a value like {}", own[&key]);
        Error::config(key, found, expected)
    })
}

/// The values of `key=value` words, for settings with these defaults.
fn words(
    settings: &[String],
    own: &Map<String, Value>,
    of: &str,
    is_taken: impl Fn(Map<String, Value>) -> bool,
) -> Result<Map<String, Value>> {
    let mut fields = Map::new();
    for setting in settings {
        let (key, text) =
            setting.split_once('=').ok_or_else(|| Error::config("setting", setting, "KEY=VALUE, such as r=8"))?;
        let Some(default) = own.get(key) else {
            let known = own.keys().cloned().collect::<Vec<_>>().join(", ");
            return Err(Error::config(key, text, format!("one of the keys of {of}: {known}")));
        };
        // Names are a list where there are several, a list is the default, or there is no default and a list is taken.
        // Anything else, such as a pattern, is a text.
        let words: Vec<&str> = text.split(',').map(str::trim).collect();
        let plain = |word: &&str| !word.is_empty() && word.chars().all(|c| c.is_alphanumeric() || "._".contains(c));
        let numbers = words.iter().map(|word| word.parse().ok().map(|number: u64| json!(number)));
        let lists = [Some(json!(words)), numbers.collect::<Option<Vec<_>>>().map(Value::from)];
        let taken = |list: &Value| is_taken(Map::from_iter([(key.to_string(), list.clone())]));
        let list = lists.into_iter().flatten().find(taken);
        let is_list =
            words.iter().all(plain) && (words.len() > 1 || default.is_array() || default.is_null() && list.is_some());
        let value = match serde_json::from_str::<Value>(text) {
            Ok(_) => serde_json::from_str(text)
                .map(|Distinct(value)| value)
                .map_err(|error| Error::config(key, text, format!("each key once ({error})")))?,
            Err(_) if is_list => list.unwrap_or_else(|| json!(words)),
            Err(_) => json!(text),
        };
        if fields.insert(key.to_string(), value).is_some() {
            return Err(Error::config(key, "given twice", "each key once"));
        }
    }
    Ok(fields)
}
