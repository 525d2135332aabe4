//! Vocabularies in files of their own, in the forms of `tokenizer.json`.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::files::{read_json, read_text};
use crate::{Error, Result};

/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 64 << 20;

/// `vocab.txt`: a token on each line, whose number is its id; of equal ones the last counts.
pub(super) fn lines(path: &Path) -> Result<Value> {
    let text = read_text(path, MAX_FILE)?;
    let ids: Map<String, Value> =
        text.lines().enumerate().map(|(id, line)| (line.trim_end().to_string(), json!(id))).collect();
    Ok(Value::Object(ids))
}

/// `vocab.json`: ids by tokens.
pub(super) fn numbered(path: &Path) -> Result<Value> {
    let ids = read_json(path)?;
    let number = |id: &Value| id.as_u64().is_some_and(|id| u32::try_from(id).is_ok());
    match ids.as_object().and_then(|ids| ids.iter().find(|(_, id)| !number(id))) {
        None if ids.is_object() => Ok(ids),
        None => Err(Error::file(path, "content", "no object", "ids by tokens")),
        Some((token, id)) => Err(Error::file(path, format!("{token:?}"), id, "an id from 0 below 2^32")),
    }
}

/// `merges.txt`: two tokens on each line, in the order in which they merge.
pub(super) fn merges(path: &Path) -> Result<Value> {
    let text = read_text(path, MAX_FILE)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with("#version") && !line.is_empty());
    let pair = |(i, line): (usize, &str)| match line.split_once(' ') {
        Some((left, right)) if !right.contains(' ') => Ok(json!([left, right])),
        _ => {
            let expected = "two tokens with a space between them";
            Err(Error::file(path, format!("line {}", i + 1), format!("{line:?}"), expected))
        }
    };
    lines.map(pair).collect::<Result<Vec<_>>>().map(Value::Array)
}

/// The normalizer of a table.
pub(super) fn charsmap(bytes: &[u8]) -> Value {
    json!({"type": "Precompiled", "precompiled_charsmap": STANDARD.encode(bytes)})
}
