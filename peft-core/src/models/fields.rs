//! Reading a `config.json` by field, with errors that name the file, the key, what was found and what is allowed.

use std::ops::{Range, RangeInclusive};
use std::path::Path;

use serde_json::Value;

use crate::warning::warn;
use crate::{Error, Result};

/// The fields of a model's `config.json`.
pub(crate) struct Fields<'a> {
    pub config: &'a Value,
    pub path: &'a Path,
}

impl Fields<'_> {
    /// A field that is there and not null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.config.get(key).filter(|value| !value.is_null())
    }

    /// The error that says what a field is and what is allowed.
    pub fn wrong(&self, key: &str, expected: impl Into<String>) -> Error {
        Error::file(self.path, key, self.config.get(key).map_or("nothing".into(), Value::to_string), expected)
    }

    /// An integer; without a default the field must be there.
    pub fn number(&self, key: &str, default: Option<usize>, allowed: RangeInclusive<usize>) -> Result<usize> {
        match (self.get(key), default) {
            (None, Some(default)) => Ok(default),
            (value, _) => {
                let number = value.and_then(Value::as_u64).map(|n| n as usize).filter(|n| allowed.contains(n));
                let expected = || format!("an integer from {} to {}", allowed.start(), allowed.end());
                number.ok_or_else(|| self.wrong(key, expected()))
            }
        }
    }

    /// A number.
    pub fn real(&self, key: &str, default: f64, allowed: Range<f64>) -> Result<f64> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_f64()
                .filter(|x| allowed.contains(x))
                .ok_or_else(|| self.wrong(key, format!("a number from {} to below {}", allowed.start, allowed.end))),
        }
    }

    /// Yes or no.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.wrong(key, "true or false")),
        }
    }

    /// A token id or several; `None` where there is none. One outside of the vocabulary can never occur: it is left out, with a
    /// warning if it is not the -1 that stands for none.
    pub fn ids(&self, key: &str, vocab: usize) -> Result<Option<Vec<usize>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let ids = match value {
            Value::Array(items) => items.iter().map(Value::as_i64).collect::<Option<Vec<_>>>(),
            one => one.as_i64().map(|id| vec![id]),
        };
        let ids = ids.ok_or_else(|| self.wrong(key, format!("token ids, from 0 to below the vocabulary {vocab}")))?;
        let (known, unknown): (Vec<i64>, Vec<i64>) = ids.into_iter().partition(|id| (0..vocab as i64).contains(id));
        for id in unknown.into_iter().filter(|id| *id != -1) {
            warn(self.path, key, format!("{id} is no id below the vocabulary {vocab}: no token has it"));
        }
        Ok(Some(known.into_iter().map(|id| id as usize).collect()))
    }

    /// The id of the padding token; none where it is -1, or an id that no token has. Without the field it is the default.
    pub fn pad(&self, vocab: usize, default: usize) -> Result<Option<usize>> {
        match self.get("pad_token_id") {
            Some(Value::Array(_)) => Err(self.wrong("pad_token_id", "one token id, or -1 for none")),
            _ => Ok(self.ids("pad_token_id", vocab)?.map_or(Some(default), |ids| ids.first().copied())),
        }
    }

    /// A text that must be one of some; the first is the default.
    pub fn choice<T: Copy>(&self, key: &str, choices: &[(&str, T)]) -> Result<T> {
        let default = choices[0].1;
        match self.get(key) {
            None => Ok(default),
            Some(value) => {
                let chosen = choices.iter().find(|(name, _)| value.as_str() == Some(name)).map(|(_, choice)| *choice);
                let names = choices.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
                chosen.ok_or_else(|| self.wrong(key, names))
            }
        }
    }

    /// Refuses what must be off: anything but nothing, null, false and an empty object.
    pub fn off(&self, key: &str, expected: &str) -> Result<()> {
        match self.get(key) {
            None | Some(Value::Bool(false)) => Ok(()),
            Some(Value::Object(map)) if map.is_empty() => Ok(()),
            Some(_) => Err(self.wrong(key, expected)),
        }
    }

    /// What every model must be: all heads there, a task of one label or value.
    pub fn check_common(&self) -> Result<()> {
        self.off("pruned_heads", "none: all heads are there")?;
        let kinds = [("single_label_classification", ()), ("regression", ())];
        self.choice("problem_type", &kinds)
    }
}
