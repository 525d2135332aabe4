use std::path::Path;

use serde_json::Value;

use super::table::{Record, Table};
use crate::{Error, Label, Result};

/// Columns that hold a pair of texts, as the common data sets name them.
const PAIRS: [(&str, &str); 5] = [
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question1", "question2"),
    ("#1 String", "#2 String"),
];
/// Columns that hold a text.
const TEXTS: [&str; 5] = ["sentence", "text", "sentence1", "question", "premise"];
/// Columns that hold the label.
const LABELS: [&str; 5] = ["label", "labels", "score", "gold_label", "Quality"];

/// What a row gives to the model.
#[derive(Clone, Debug)]
pub(super) enum Input {
    // Only the tokenizer takes the texts.
    #[cfg_attr(not(feature = "tokenize"), expect(dead_code))]
    Text {
        a: String,
        b: Option<String>,
    },
    Tokens {
        ids: Vec<u32>,
        mask: Option<Vec<bool>>,
        types: Option<Vec<u32>>,
    },
}

/// A row that was read.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) line: usize,
    pub(super) input: Input,
    pub(super) label: Option<Label>,
}

/// The columns of the input.
pub(super) enum Columns {
    Text { a: usize, b: Option<usize> },
    Tokens { ids: usize, mask: Option<usize>, types: Option<usize> },
}

impl Columns {
    /// Takes the columns that were asked for, else those with the usual names.
    pub(super) fn choose(path: &Path, table: &Table, text: Option<&str>, pair: Option<&str>) -> Result<Self> {
        let usual = |name: &str| table.columns.iter().position(|column| column == name);
        let named = |name: &str| table.column(path, name);
        if let Some(text) = text {
            return Ok(Columns::Text { a: named(text)?, b: pair.map(named).transpose()? });
        }
        let first = || TEXTS.into_iter().filter(|text| Some(*text) != pair).find_map(usual);
        if let Some(pair) = pair {
            let partner = PAIRS.iter().find(|(_, second)| *second == pair).and_then(|(first, _)| usual(first));
            let a = partner.or_else(first).ok_or_else(|| no_text(path, table))?;
            return Ok(Columns::Text { a, b: Some(named(pair)?) });
        }
        if let Some(ids) = usual("input_ids") {
            return Ok(Columns::Tokens { ids, mask: usual("attention_mask"), types: usual("token_type_ids") });
        }
        if let Some((a, b)) = PAIRS.iter().find_map(|(a, b)| usual(a).zip(usual(b))) {
            return Ok(Columns::Text { a, b: Some(b) });
        }
        first().map(|a| Columns::Text { a, b: None }).ok_or_else(|| no_text(path, table))
    }

    pub(super) fn input(&self, path: &Path, record: &Record) -> Result<Input> {
        match *self {
            Columns::Text { a, b } => {
                Ok(Input::Text { a: text(path, record, a)?, b: b.map(|b| text(path, record, b)).transpose()? })
            }
            Columns::Tokens { ids, mask, types } => {
                let ids = numbers(path, record, ids, "input_ids", None)?;
                let mask =
                    mask.map(|mask| numbers(path, record, mask, "attention_mask", Some(ids.len()))).transpose()?;
                let types = types.map(|types| numbers(path, record, types, "token_type_ids", Some(ids.len())));
                let mask = mask.map(|mask| flags(path, record.line, &mask)).transpose()?;
                Ok(Input::Tokens { ids, mask, types: types.transpose()? })
            }
        }
    }
}

/// The column of the labels: the one asked for, else one with a usual name, else none.
pub(super) fn label_column(path: &Path, table: &Table, label: Option<&str>) -> Result<Option<usize>> {
    match label {
        Some(label) => table.column(path, label).map(Some),
        None => Ok(LABELS.into_iter().find_map(|name| table.columns.iter().position(|column| column == name))),
    }
}

/// A label as the file writes it.
pub(super) fn label_text(path: &Path, record: &Record, column: usize) -> Result<String> {
    match &record.cells[column] {
        Value::String(text) if !text.trim().is_empty() => Ok(text.trim().to_string()),
        Value::Number(number) => Ok(number.to_string()),
        other => Err(wrong(path, record.line, "label", other, "the name of a class or a number")),
    }
}

fn text(path: &Path, record: &Record, column: usize) -> Result<String> {
    match &record.cells[column] {
        Value::String(text) if !text.trim().is_empty() => Ok(text.clone()),
        other => Err(wrong(path, record.line, "text", other, "a text that is not empty")),
    }
}

/// An array of `length` numbers, or of any number of them from 1.
fn numbers(path: &Path, record: &Record, column: usize, key: &str, length: Option<usize>) -> Result<Vec<u32>> {
    let cell = &record.cells[column];
    let expected = "an array of whole numbers from 0 below 2^32";
    let Value::Array(items) = cell else { return Err(wrong(path, record.line, key, cell, expected)) };
    if items.is_empty() || length.is_some_and(|length| items.len() != length) {
        let expected = length.map_or("at least one".into(), |length| format!("{length}, one for each of input_ids"));
        return Err(Error::file(
            path,
            format!("line {}, {key}", record.line),
            format!("{} items", items.len()),
            expected,
        ));
    }
    let number = |item: &Value| {
        let number = item.as_u64().or(item.as_bool().map(u64::from)).and_then(|number| u32::try_from(number).ok());
        number.ok_or_else(|| wrong(path, record.line, key, item, expected))
    };
    items.iter().map(number).collect()
}

fn flags(path: &Path, line: usize, mask: &[u32]) -> Result<Vec<bool>> {
    if !mask.contains(&1) || mask.iter().any(|flag| *flag > 1) {
        let found = format!("a mask from {:?} to {:?}", mask.iter().min(), mask.iter().max());
        return Err(Error::file(path, format!("line {line}, attention_mask"), found, "0 and 1, with at least one 1"));
    }
    Ok(mask.iter().map(|flag| *flag == 1).collect())
}

fn wrong(path: &Path, line: usize, key: &str, value: &Value, expected: &str) -> Error {
    let found: String = value.to_string().chars().take(80).collect();
    Error::file(path, format!("line {line}, {key}"), found, expected)
}

fn no_text(path: &Path, table: &Table) -> Error {
    let expected = format!("a column {} or input_ids, or the name of the text's column", TEXTS.join(", "));
    Error::file(path, "columns", format!("{:?}", table.columns), expected)
}
