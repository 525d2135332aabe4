//! What a model's folder says of its tokenizer beside `tokenizer.json`, merged as transformers does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::class::Class;
use super::fields::{FIELDS, Use};
use crate::files::read_json;
use crate::warning::warn;
use crate::{Error, Result};

/// The roles of special tokens, in the order in which transformers adds them.
pub(super) const ROLES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The files of a folder.
pub(super) struct Folder {
    pub dir: PathBuf,
    /// `config.json`; null without one.
    pub model: Value,
    /// `tokenizer_config.json`, with `special_tokens_map.json` in it where that counts.
    pub config: Map<String, Value>,
    /// Special tokens by role, those of the model's own behind the usual ones.
    special: Vec<(String, Special)>,
    /// Special tokens without a role.
    pub extra: Vec<Special>,
    /// Tokens beside the vocabulary, by their ids.
    pub added: BTreeMap<u64, AddedToken>,
    /// Whether the folder has `tokenizer.json`.
    pub has_file: bool,
    /// Whether nothing but that is there.
    pub bare: bool,
}

/// A special token: a text alone takes the properties that transformers gives it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Special {
    pub content: String,
    pub token: Option<AddedToken>,
}

impl Special {
    /// As it is added to a tokenizer.
    pub fn added(&self) -> AddedToken {
        self.token.clone().unwrap_or_else(|| AddedToken::from(self.content.clone(), true))
    }
}

impl Folder {
    /// Reads what stands beside `file`, which is `tokenizer.json`, if there is one.
    pub fn read(dir: &Path, file: Option<&Value>) -> Result<Self> {
        let read = |name: &str| -> Result<Option<Map<String, Value>>> {
            let path = dir.join(name);
            if !path.exists() {
                return Ok(None);
            }
            match read_json(&path)? {
                Value::Object(map) => Ok(Some(map)),
                other => Err(Error::file(&path, "content", other, "an object")),
            }
        };
        let mut folder = Folder {
            dir: dir.to_path_buf(),
            model: read("config.json")?.map_or(Value::Null, Value::Object),
            config: read("tokenizer_config.json")?.unwrap_or_default(),
            special: vec![],
            extra: vec![],
            added: BTreeMap::new(),
            has_file: file.is_some(),
            bare: false,
        };
        folder.bare = folder.model.is_null() && folder.config.is_empty();
        let (map, added) = (read("special_tokens_map.json")?, read("added_tokens.json")?);
        match folder.config.get("added_tokens_decoder").cloned() {
            Some(Value::Object(tokens)) => {
                for (id, token) in &tokens {
                    let path = folder.config_path();
                    let key = format!("added_tokens_decoder: {id}");
                    let number = id.parse().map_err(|_| Error::file(&path, &key, "no number", "a token's id"))?;
                    folder.added.insert(number, added_token(&path, &key, token, false)?);
                }
                folder.passed_over(map.unwrap_or_default(), added.unwrap_or_default());
            }
            _ => folder.older(map.unwrap_or_default(), added.unwrap_or_default(), file)?,
        }
        if let Some(names) = folder.config.get("additional_special_tokens").cloned() {
            let empty =
                folder.config.get("extra_special_tokens").is_none_or(|extra| extra.is_null() || is_empty(extra));
            if empty {
                folder.config.insert("extra_special_tokens".into(), names);
            }
        }
        Ok(folder)
    }

    /// Before `added_tokens_decoder`: the tokens of `special_tokens_map.json`, `added_tokens.json` and `tokenizer.json`.
    fn older(&mut self, map: Map<String, Value>, added: Map<String, Value>, file: Option<&Value>) -> Result<()> {
        let path = self.dir.join("special_tokens_map.json");
        for (key, mut value) in map {
            if let Some(token) = value.as_object_mut().filter(|_| key != "extra_special_tokens") {
                token.insert("special".into(), true.into());
                token.insert("__type".into(), "AddedToken".into());
            }
            if let (Value::Array(more), "extra_special_tokens") = (&value, key.as_str()) {
                let mut all = self.config.get(&key).and_then(Value::as_array).cloned().unwrap_or_default();
                all.extend(more.iter().filter(|token| !all.contains(token)).cloned().collect::<Vec<_>>());
                value = Value::Array(all);
            }
            let known = ROLES.contains(&key.as_str()) || key.ends_with("_special_tokens") || key.ends_with("_token");
            if !known {
                warn(&path, &key, format!("is {value}: nothing uses it"));
            }
            self.config.insert(key, value);
        }
        let path = self.dir.join("added_tokens.json");
        let special: Vec<String> = ROLES.iter().filter_map(|role| text(self.config.get(*role)?)).collect();
        let extra = self.config.get("extra_special_tokens").and_then(Value::as_array);
        let special: Vec<String> = special.into_iter().chain(extra.into_iter().flatten().filter_map(text)).collect();
        for (token, id) in added {
            let id = id.as_u64().ok_or_else(|| Error::file(&path, format!("{token:?}"), &id, "a token's id"))?;
            let is_special = special.contains(&token);
            self.added.insert(id, AddedToken::from(token, is_special));
        }
        for token in file.and_then(|file| file["added_tokens"].as_array()).into_iter().flatten() {
            let path = self.dir.join("tokenizer.json");
            let id =
                token["id"].as_u64().ok_or_else(|| Error::file(&path, "added_tokens", token, "tokens with ids"))?;
            self.added.insert(id, added_token(&path, "added_tokens", token, false)?);
        }
        Ok(())
    }

    /// `tokenizer_config.json` with its own list of tokens makes `special_tokens_map.json` and `added_tokens.json` count for nothing.
    fn passed_over(&self, map: Map<String, Value>, added: Map<String, Value>) {
        for (token, id) in added {
            if !self.added.values().any(|known| known.content == token) {
                let what = format!("is {id}: added_tokens_decoder of tokenizer_config.json counts, which lacks it");
                warn(self.dir.join("added_tokens.json"), format!("{token:?}"), what);
            }
        }
        for (key, value) in map {
            let (found, counts) = (text(&value), self.config.get(&key).and_then(text));
            if found.is_some() && found != counts {
                let what = format!(
                    "is {value}: tokenizer_config.json says {}, which counts",
                    counts.unwrap_or("nothing".into())
                );
                warn(self.dir.join("special_tokens_map.json"), key, what);
            }
        }
    }

    /// Takes the special tokens in their roles (without a role, those that a vocabulary's file has, unless others are given; T5 has its
    /// sentinels), and says which fields have no effect on a tokenizer of this class.
    pub fn settle(&mut self, class: Class, found: Vec<Value>) -> Result<()> {
        let path = self.config_path();
        if self.config.get("extra_special_tokens").is_none_or(Value::is_null) {
            let mut extra = found;
            if class == Class::T5
                && !extra.iter().any(|token| text(token).is_some_and(|text| text.contains("<extra_id_")))
            {
                extra.extend((0..self.extra_ids()?).map(|i| Value::String(format!("<extra_id_{i}>"))));
            }
            self.config.insert("extra_special_tokens".into(), Value::Array(extra));
        }
        let by_text: BTreeMap<String, AddedToken> =
            self.added.values().map(|token| (token.content.clone(), token.clone())).collect();
        let mut roles: Vec<(String, Special)> = vec![];
        for role in ROLES {
            let told = match self.config.get(role) {
                Some(Value::Null) => None,
                Some(value) => {
                    let mut token = special(&path, role, value)?;
                    token.token = by_text.get(&token.content).cloned().or(token.token);
                    Some(token)
                }
                None => class
                    .defaults()
                    .iter()
                    .find(|(key, _)| *key == role)
                    .map(|(_, text)| Special { content: text.to_string(), token: None }),
            };
            roles.extend(told.map(|token| (role.to_string(), token)));
        }
        let own = self.config.iter().filter(|(key, value)| {
            key.ends_with("_token") && !ROLES.contains(&key.as_str()) && (value.is_string() || is_token(value))
        });
        let named = self
            .config
            .get("extra_special_tokens")
            .and_then(Value::as_object)
            .filter(|map| !map.contains_key("__type"));
        for (key, value) in own.chain(named.into_iter().flatten()) {
            roles.push((key.clone(), special(&path, key, value)?));
        }
        if let Some(Value::Array(extra)) = self.config.get("extra_special_tokens") {
            self.extra =
                extra.iter().map(|token| special(&path, "extra_special_tokens", token)).collect::<Result<_>>()?;
        }
        self.special = roles;
        self.tell_idle(class);
        Ok(())
    }

    fn tell_idle(&self, class: Class) {
        let path = self.config_path();
        for (key, value) in self.config.iter().filter(|(_, value)| !value.is_null()) {
            let why = match FIELDS.iter().find(|(name, _)| name == key).map(|(_, uses)| *uses) {
                Some(Use::Obeyed | Use::Harmless) => continue,
                Some(Use::By(classes)) if classes.contains(&class) => continue,
                Some(Use::By(_)) => format!("{} has no such setting", class.name()),
                // What contradicts the file is told where its special tokens are known.
                Some(Use::WithoutFile) => continue,
                Some(Use::Named(neutral)) if neutral.contains(&&*value.to_string()) => continue,
                Some(Use::Named(_)) => "it has no effect here".to_string(),
                None if key.ends_with("_token") => continue,
                None => "no setting of a tokenizer has this name".to_string(),
            };
            warn(&path, key, format!("is {}: {why}", short(value)));
        }
    }

    pub fn config_path(&self) -> PathBuf {
        self.dir.join("tokenizer_config.json")
    }

    /// The text of the token in a role, before these are [settled](Self::settle).
    pub fn text(&self, role: &str, class: Class) -> Option<String> {
        let default = || class.defaults().iter().find(|(key, _)| *key == role).map(|(_, text)| text.to_string());
        self.config.get(role).map_or_else(default, text)
    }

    /// The token in a role.
    pub fn special(&self, role: &str) -> Option<&Special> {
        self.special.iter().find(|(key, _)| key == role).map(|(_, token)| token)
    }

    /// All roles and their tokens.
    pub fn specials(&self) -> &[(String, Special)] {
        &self.special
    }

    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        Ok(self.flag_or_none(key)?.unwrap_or(default))
    }

    pub fn flag_or_none(&self, key: &str) -> Result<Option<bool>> {
        match self.config.get(key).filter(|value| !value.is_null()) {
            None => Ok(None),
            Some(value) => match value.as_bool() {
                Some(flag) => Ok(Some(flag)),
                None => Err(Error::file(self.config_path(), key, value, "true, false or null")),
            },
        }
    }

    /// The number of T5's sentinels.
    pub fn extra_ids(&self) -> Result<u64> {
        match self.config.get("extra_ids").filter(|value| !value.is_null()) {
            None => Ok(100),
            Some(value) => match value.as_u64().filter(|count| *count <= 100_000) {
                Some(count) => Ok(count),
                None => Err(Error::file(self.config_path(), "extra_ids", value, "a number from 0 to 100000")),
            },
        }
    }

    /// Gives the tokens of a vocabulary the texts that `added_tokens_decoder` has for their ids.
    pub fn rename_placeholders(&self, vocab: &mut Map<String, Value>) {
        let mut texts: BTreeMap<u64, String> =
            vocab.iter().filter_map(|(text, id)| Some((id.as_u64()?, text.clone()))).collect();
        for (id, token) in &self.added {
            if let Some(old) = texts.get(id).filter(|old| **old != token.content && !vocab.contains_key(&token.content))
            {
                let value = vocab.remove(old.as_str());
                vocab.insert(token.content.clone(), value.unwrap_or_default());
                texts.insert(*id, token.content.clone());
            }
        }
    }
}

fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(Map::is_empty)
}

fn is_token(value: &Value) -> bool {
    value.get("content").is_some()
}

/// The text of a token.
fn text(token: &Value) -> Option<String> {
    token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_string)
}

fn special(path: &Path, key: &str, value: &Value) -> Result<Special> {
    match value {
        Value::String(content) => Ok(Special { content: content.clone(), token: None }),
        _ => {
            let token = added_token(path, key, value, true)?;
            Ok(Special { content: token.content.clone(), token: Some(token) })
        }
    }
}

/// A token with its properties; what is not said is as in transformers.
fn added_token(path: &Path, key: &str, value: &Value, is_special: bool) -> Result<AddedToken> {
    let wrong = || Error::file(path, key, short(value), "a text, or an object with a text as content and flags");
    let flag = |name: &str| match value.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(flag) => flag.as_bool().map(Some).ok_or_else(wrong),
    };
    let content = value.get("content").and_then(Value::as_str).ok_or_else(wrong)?;
    let token = AddedToken::from(content, flag("special")?.unwrap_or(is_special));
    let normalized = flag("normalized")?.unwrap_or(token.normalized);
    Ok(token
        .normalized(normalized)
        .single_word(flag("single_word")?.unwrap_or(false))
        .lstrip(flag("lstrip")?.unwrap_or(false))
        .rstrip(flag("rstrip")?.unwrap_or(false)))
}

/// A value as a message shows it.
fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(120) {
        Some((end, _)) => format!("{}..", &text[..end]),
        None => text,
    }
}
