//! Instructions with their answers in Alpaca's layout, and the prompt that a model is trained to answer.

use std::path::Path;

use peft_core::files::{read_json, read_jsonl};
use peft_core::{Error, Result};
use serde_json::{Map, Value};

/// The keys of a record.
const FIELDS: [&str; 3] = ["instruction", "input", "output"];

/// An instruction and how it is carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What is to be done.
    pub instruction: String,
    /// What it is to be done with; empty for most.
    pub input: String,
    /// The answer; empty for a few of the original ones.
    pub output: String,
}

impl Record {
    /// What the model reads, to the letter as in Alpaca's training; the answer follows without anything between.
    pub fn prompt(&self) -> String {
        let Record { instruction, input, .. } = self;
        let (given, block) = match input.is_empty() {
            true => ("", String::new()),
            false => (", paired with an input that provides further context", format!("### Input:\n{input}\n\n")),
        };
        format!(
            "Below is an instruction that describes a task{given}. Write a response that appropriately completes the \
             request.\n\n### Instruction:\n{instruction}\n\n{block}### Response:"
        )
    }
}

/// Reads a `.json` file with an array of records, or a `.jsonl` file with one on each line. A record is an object with the
/// texts `instruction`, `input` and `output`; other keys are left alone.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    let array = "an array of objects with instruction, input and output";
    let rows: Vec<(String, Value)> = match path.extension().and_then(|extension| extension.to_str()) {
        Some("jsonl") => read_jsonl(path)?.into_iter().map(|(line, value)| (format!("line {line}"), value)).collect(),
        Some("json") => match read_json(path)? {
            Value::Array(items) => items.into_iter().zip(1..).map(|(item, i)| (format!("record {i}"), item)).collect(),
            other => return Err(Error::file(path, "content", kind(&other), array)),
        },
        _ => return Err(Error::file(path, "extension", "another one", "json or jsonl")),
    };
    if rows.is_empty() {
        return Err(Error::file(path, "content", "no record", "at least one"));
    }
    rows.into_iter().map(|(place, value)| record(path, &place, value)).collect()
}

fn record(path: &Path, place: &str, value: Value) -> Result<Record> {
    let expected = "an object with the texts instruction, input and output";
    let Value::Object(mut object) = value else { return Err(Error::file(path, place, kind(&value), expected)) };
    // An unknown layout is easier to tell by the keys that it has.
    if let Some(field) = FIELDS.into_iter().find(|field| !object.contains_key(*field)) {
        let keys: Vec<&str> = object.keys().map(String::as_str).take(20).collect();
        return Err(Error::file(path, format!("{place}, {field}"), format!("only the keys {keys:?}"), expected));
    }
    let [instruction, input, output] = FIELDS.map(|field| text(path, place, &mut object, field));
    let instruction = instruction?;
    if instruction.trim().is_empty() {
        return Err(Error::file(path, format!("{place}, instruction"), "no text", "an instruction"));
    }
    Ok(Record { instruction, input: input?, output: output? })
}

fn text(path: &Path, place: &str, object: &mut Map<String, Value>, field: &str) -> Result<String> {
    let expected = if field == "input" { "a text, empty where there is no input" } else { "a text" };
    let found = match object[field].take() {
        Value::String(text) => return Ok(text),
        other => kind(&other),
    };
    Err(Error::file(path, format!("{place}, {field}"), found, expected))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn read_content(name: &str, content: &str) -> Result<Vec<Record>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        read(&path)
    }

    #[test]
    fn array_and_lines_are_the_same() {
        let lines = r#"{"instruction": "Add.", "input": "1 and 2", "output": "3", "source": 7}

{"output": "", "instruction": "Say\nnothing.", "input": ""}"#;
        let array = format!("[{}]", lines.replace("\n\n", ","));
        let records = read_content("a.jsonl", lines).unwrap();
        assert_eq!(records, read_content("a.json", &array).unwrap());
        assert_eq!(
            records[0].prompt(),
            "Below is an instruction that describes a task, paired with an input that provides further context. Write \
             a response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n\
             ### Response:"
        );
        assert_eq!(
            records[1].prompt(),
            "Below is an instruction that describes a task. Write a response that appropriately completes the \
             request.\n\n### Instruction:\nSay\nnothing.\n\n### Response:"
        );
        assert_eq!((records[0].output.as_str(), records[1].output.as_str()), ("3", ""));
    }

    #[test]
    fn errors_name_file_and_record() {
        let good = r#"{"instruction": "a", "input": "", "output": "b"}"#;
        let cases = [
            (
                "a.json",
                format!(r#"[{good}, {{"instruction": "a", "output": "b"}}]"#),
                "record 2, input: found only the keys [\"instruction\", \"output\"]",
            ),
            (
                "a.json",
                format!(r#"[{good}, {{"instruction": "a", "input": null, "output": "b"}}]"#),
                "input: found null",
            ),
            (
                "a.json",
                r#"[{"instruction": "a", "input": "", "output": 3}]"#.into(),
                "record 1, output: found a number",
            ),
            ("a.json", r#"[{"instruction": " ", "input": "", "output": "b"}]"#.into(), "instruction: found no text"),
            (
                "a.json",
                r#"[{"name": "x", "instances": []}]"#.into(),
                r#"record 1, instruction: found only the keys ["name", "instances"]"#,
            ),
            ("a.json", format!("[{good}, 3]"), "record 2: found a number"),
            ("a.json", good.into(), "content: found an object, expected an array"),
            ("a.json", "[]".into(), "content: found no record"),
            ("a.json", "[{".into(), "line 1 column 2"),
            (
                "a.jsonl",
                format!("{good}\n\n{{\"instruction\": [], \"input\": \"\", \"output\": \"\"}}"),
                "line 3, instruction: found an array",
            ),
            ("a.jsonl", format!("{good}\n{{\"input\""), "line 2: found EOF"),
            ("a.jsonl", r#"{"instruction": "a", "instruction": "b"}"#.into(), r#"the key "instruction" stands twice"#),
            ("a.jsonl", "\n".into(), "content: found no record"),
            ("a.gz", good.into(), "extension: found another one, expected json or jsonl"),
        ];
        for (name, content, expected) in cases {
            let error = read_content(name, &content).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(expected), "{error}");
        }
    }
}
