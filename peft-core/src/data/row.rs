use serde_json::Value;

use super::answers::{Right, right};
use super::table::{Header, Record};
use crate::loss::IGNORED;
use crate::{Error, Label, Result};

/// Columns that hold a pair of texts, as the common data sets name them.
const PAIRS: [(&str, &str); 6] = [
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question", "context"),
    ("question1", "question2"),
    ("#1 String", "#2 String"),
];
/// Columns that hold a text.
const TEXTS: [&str; 5] = ["sentence", "text", "sentence1", "question", "premise"];
/// Columns that hold the words of a text in an array.
const WORDS: [&str; 2] = ["tokens", "words"];
/// Columns that hold the label.
const LABELS: [&str; 9] =
    ["label", "labels", "score", "gold_label", "Quality", "is_duplicate", "ner_tags", "tags", "answers"];
/// The column that holds conversations.
const MESSAGES: &str = "messages";
/// The column that holds the number of the task.
pub(super) const TASK: &str = "task_id";
/// The column that holds the name of the adapter that is to answer.
pub(super) const ADAPTER: &str = "adapter";

/// What a row gives to the model.
#[derive(Clone, Debug)]
pub(super) enum Input {
    Text {
        a: String,
        b: Option<String>,
    },
    Words(Vec<String>),
    Tokens {
        ids: Vec<u32>,
        mask: Option<Vec<bool>>,
        types: Option<Vec<u32>>,
    },
    /// Messages, each an object with a role and a content.
    // Only a chat template takes them.
    #[cfg_attr(not(feature = "chat"), expect(dead_code))]
    Chat(Vec<Value>),
}

impl Input {
    /// How many things may have a tag, and what they are.
    pub(super) fn tagged(&self) -> Option<(usize, &'static str)> {
        match self {
            Input::Text { .. } | Input::Chat(_) => None,
            Input::Words(words) => Some((words.len(), "words")),
            Input::Tokens { ids, .. } => Some((ids.len(), "input_ids")),
        }
    }
}

/// A row that was read.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) line: usize,
    pub(super) input: Input,
    pub(super) label: Option<Label>,
    /// The text that a model is to write.
    // Only the tokenizer takes it.
    #[cfg_attr(not(feature = "tokenize"), expect(dead_code))]
    pub(super) target: Option<String>,
    /// The right answers to a question.
    pub(super) right: Option<Vec<Right>>,
    pub(super) task: usize,
    /// The name of the adapter that is to answer.
    pub(super) adapter: Option<String>,
}

/// The columns of the input.
pub(super) enum Columns {
    Text { a: usize, b: Option<usize> },
    Tokens { ids: usize, mask: Option<usize>, types: Option<usize> },
    Chat(usize),
}

impl Columns {
    /// Takes the columns that were asked for, else those with the usual names.
    pub(super) fn choose(header: &Header<'_>, text: Option<&str>, pair: Option<&str>) -> Result<Self> {
        if let Some(name) = text.filter(|_| text == pair) {
            return Err(Error::file(header.path, "columns", format!("{name} for both texts"), "two columns"));
        }
        let (usual, named) = (|name: &str| header.find(name), |name: &str| header.column(name));
        if let Some(text) = text {
            return Ok(Columns::Text { a: named(text)?, b: pair.map(named).transpose()? });
        }
        let first = || TEXTS.into_iter().filter(|text| Some(*text) != pair).find_map(usual);
        if let Some(pair) = pair {
            let partner = PAIRS.iter().find(|(_, second)| *second == pair).and_then(|(first, _)| usual(first));
            let a = partner.or_else(first).ok_or_else(|| none_of(header, &TEXTS, "text"))?;
            return Ok(Columns::Text { a, b: Some(named(pair)?) });
        }
        if let Some(ids) = usual("input_ids") {
            return Ok(Columns::Tokens { ids, mask: usual("attention_mask"), types: usual("token_type_ids") });
        }
        if let Some(messages) = usual(MESSAGES) {
            return Ok(Columns::Chat(messages));
        }
        if let Some((a, b)) = PAIRS.iter().find_map(|(a, b)| usual(a).zip(usual(b))) {
            return Ok(Columns::Text { a, b: Some(b) });
        }
        let words = || WORDS.into_iter().filter(|_| header.lists).find_map(usual);
        first().or_else(words).map(|a| Columns::Text { a, b: None }).ok_or_else(|| none_of(header, &TEXTS, "text"))
    }

    /// Where they are.
    pub(super) fn places(&self) -> Vec<usize> {
        match *self {
            Columns::Text { a, b } => std::iter::once(a).chain(b).collect(),
            Columns::Tokens { ids, mask, types } => std::iter::once(ids).chain(mask).chain(types).collect(),
            Columns::Chat(messages) => vec![messages],
        }
    }

    pub(super) fn input(&self, header: &Header<'_>, record: &Record) -> Result<Input> {
        let cell = |column: usize| Cell { header, record, column };
        // What is optional may be missing in a row, or null.
        let given = |column: &usize| !record.cells[*column].is_null();
        match *self {
            Columns::Text { a, b: None } => match cell(a).list_of_texts() {
                Some(words) => Ok(Input::Words(words?)),
                None => Ok(Input::Text { a: cell(a).text()?, b: None }),
            },
            Columns::Text { a, b: Some(b) } => {
                let b = cell(b).text_or_empty()?;
                let a = if b.trim().is_empty() { cell(a).text()? } else { cell(a).text_or_empty()? };
                Ok(Input::Text { a, b: Some(b) })
            }
            Columns::Tokens { ids, mask, types } => {
                let ids = cell(ids).numbers(None, Value::as_u64)?;
                let mask = mask.filter(given).map(|mask| cell(mask).flags(ids.len())).transpose()?;
                let types =
                    types.filter(given).map(|types| cell(types).numbers(Some(ids.len()), Value::as_u64)).transpose()?;
                Ok(Input::Tokens { ids, mask, types })
            }
            Columns::Chat(messages) => cell(messages).messages().map(Input::Chat),
        }
    }
}

/// The column of the labels: the one asked for, else the only one with a usual name.
pub(super) fn label_column(header: &Header<'_>, label: Option<&str>) -> Result<usize> {
    if let Some(label) = label {
        return header.column(label);
    }
    let usual: Vec<&str> = LABELS.into_iter().filter(|name| header.find(name).is_some()).collect();
    match usual[..] {
        [] => Err(none_of(header, &LABELS, "label")),
        [name] => header.column(name),
        _ => {
            let found = format!("{usual:?}, each of which may be the label");
            Err(Error::file(header.path, "columns", found, "one of these, or the name of the label's column"))
        }
    }
}

/// A cell, with what an error says of it.
pub(super) struct Cell<'a> {
    pub(super) header: &'a Header<'a>,
    pub(super) record: &'a Record,
    pub(super) column: usize,
}

impl Cell<'_> {
    /// A label as the file writes it.
    pub(super) fn label(&self) -> Result<String> {
        match self.value() {
            Value::String(text) if !text.trim().is_empty() => Ok(text.trim().to_string()),
            Value::Number(number) => Ok(number.to_string()),
            other => Err(self.wrong(other, "the name of a class or a number")),
        }
    }

    /// The number of a task.
    pub(super) fn task(&self) -> Result<usize> {
        let number = match self.value() {
            Value::Number(number) => number.as_u64().and_then(|number| usize::try_from(number).ok()),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        number.ok_or_else(|| self.wrong(self.value(), "the number of the row's task, from 0"))
    }

    /// An array of texts, each with a letter in it, at least one.
    fn list_of_texts(&self) -> Option<Result<Vec<String>>> {
        let Value::Array(items) = self.value() else { return None };
        let expected = "an array of words, none of them empty";
        let word = |item: &Value| match item {
            Value::String(word) if !word.is_empty() => Ok(word.clone()),
            other => Err(self.wrong(other, expected)),
        };
        Some(match items.is_empty() {
            true => Err(self.wrong(self.value(), expected)),
            false => items.iter().map(word).collect(),
        })
    }

    /// A label that is an array of tags, one for each word (or, as texts, for each token id); null where none is to be predicted.
    pub(super) fn tags(&self, input: &Input) -> Option<Result<Vec<Option<String>>>> {
        let Value::Array(items) = self.value() else { return None };
        let (length, what) = input.tagged()?;
        if matches!(input, Input::Tokens { .. }) && !items.iter().any(Value::is_string) {
            return None;
        }
        let tag = |item: &Value| match item {
            Value::Null => Ok(None),
            Value::String(tag) if !tag.trim().is_empty() => Ok(Some(tag.trim().to_string())),
            Value::Number(number) if number.as_i64() == Some(IGNORED.into()) => Ok(None),
            Value::Number(number) => Ok(Some(number.to_string())),
            other => Err(self.wrong(other, "an array of tags: texts, numbers of classes, or null for none")),
        };
        Some(match items.len() == length {
            true => items.iter().map(tag).collect(),
            false => Err(self.error(format!("{} tags", items.len()), &format!("{length}, one for each of the {what}"))),
        })
    }

    /// A label that is an object: the right answers to the first text, parts of the second.
    pub(super) fn answers(&self, input: &Input) -> Option<Result<Vec<Right>>> {
        let Input::Text { b: Some(context), .. } = input else { return None };
        let answers = self.value();
        let expected = r#"{"text": [..], "answer_start": [..]}, as many of both: parts of the context and the characters at which they begin"#;
        answers.is_object().then(|| right(answers, context).map_err(|found| self.error(shown(&found), expected)))
    }

    /// A label that is an array: a word for each token, -100 where none is to be predicted.
    pub(super) fn words(&self) -> Option<Result<Label>> {
        let Value::Array(items) = self.value() else { return None };
        let word = |item: &Value| {
            let word = item.as_i64().and_then(|word| i32::try_from(word).ok()).filter(|word| *word >= IGNORED);
            word.ok_or_else(|| self.wrong(item, "an array of words from 0, or -100 where none is to be predicted"))
        };
        let words = items.iter().map(word).collect::<Result<Vec<_>>>();
        Some(words.and_then(|words| match words.iter().any(|word| *word != IGNORED) {
            true => Ok(Label::Words(words.into())),
            false => Err(self.error(format!("{} words, none of which counts", words.len()), "a word other than -100")),
        }))
    }

    pub(super) fn text(&self) -> Result<String> {
        match self.value() {
            Value::String(text) if !text.trim().is_empty() => Ok(text.clone()),
            other => Err(self.wrong(other, "a text that is not empty")),
        }
    }

    /// One text of a pair: in published data some pairs have only one.
    fn text_or_empty(&self) -> Result<String> {
        match self.value() {
            Value::String(text) => Ok(text.clone()),
            other => Err(self.wrong(other, "a text")),
        }
    }

    fn messages(&self) -> Result<Vec<Value>> {
        match self.value() {
            Value::Array(items) if !items.is_empty() && items.iter().all(Value::is_object) => Ok(items.clone()),
            other => Err(self.wrong(other, "an array of messages, objects with a role and a content")),
        }
    }

    /// An array of `length` numbers, or of any number of them from 1; `read` takes one.
    fn numbers(&self, length: Option<usize>, read: impl Fn(&Value) -> Option<u64>) -> Result<Vec<u32>> {
        let expected = "an array of whole numbers from 0 below 2^32";
        let Value::Array(items) = self.value() else { return Err(self.wrong(self.value(), expected)) };
        if items.is_empty() || length.is_some_and(|length| items.len() != length) {
            let expected =
                length.map_or("at least one".into(), |length| format!("{length}, one for each of input_ids"));
            return Err(self.error(format!("{} items", items.len()), &expected));
        }
        let number = |item: &Value| {
            let number = read(item).and_then(|number| u32::try_from(number).ok());
            number.ok_or_else(|| self.wrong(item, expected))
        };
        items.iter().map(number).collect()
    }

    fn flags(&self, length: usize) -> Result<Vec<bool>> {
        let mask = self.numbers(Some(length), |item| item.as_u64().or(item.as_bool().map(u64::from)))?;
        if !mask.contains(&1) || mask.iter().any(|flag| *flag > 1) {
            return Err(self.error(format!("{mask:?}"), "0 and 1, with at least one 1"));
        }
        Ok(mask.iter().map(|flag| *flag == 1).collect())
    }

    fn value(&self) -> &Value {
        &self.record.cells[self.column]
    }

    fn wrong(&self, value: &Value, expected: &str) -> Error {
        self.error(shown(&value.to_string()), expected)
    }

    fn error(&self, found: String, expected: &str) -> Error {
        let column = &self.header.columns[self.column];
        Error::file(self.header.path, format!("line {}, {column}", self.record.line), found, expected)
    }
}

/// What an error shows of a value.
fn shown(found: &str) -> String {
    found.chars().take(80).collect()
}

fn none_of(header: &Header<'_>, usual: &[&str], what: &str) -> Error {
    let or = if what == "text" { " or input_ids" } else { "" };
    let expected = format!("a column {}{or}, or the name of the {what}'s column", usual.join(", "));
    Error::file(header.path, "columns", format!("{:?}", header.columns), expected)
}
