//! The program from the outside: its fixed forms, and clear errors that leave nothing behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use peft_core::load::Checkpoint;
use serde_json::{Value, json};

mod commands;
mod convert;
mod damaged;
mod data;
mod heads;
mod merge_adapters;
mod messages;
mod outputs;
mod refused;
mod search;
mod several;
mod signals;
mod tasks;
mod words;

fn golden(crate_name: &str, case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(crate_name).join("tests/golden").join(case)
}

fn model(name: &str) -> String {
    golden("peft-core", name).to_string_lossy().into_owned()
}

fn peft(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_peft")).args(args).output().unwrap()
}

fn succeed(args: &[&str]) -> String {
    let output = peft(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The error of a command that must fail without a panic.
fn fail(args: &[&str]) -> String {
    let output = peft(args);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{args:?} succeeded");
    assert!(!error.contains("panicked"), "{args:?}: {error}");
    error
}

#[track_caller]
fn names(error: &str, words: &[&str]) {
    assert!(words.iter().all(|word| error.contains(word)), "{words:?}: {error}");
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_string_lossy().into_owned()
    }

    fn write(&self, name: &str, content: &str) -> String {
        fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    /// Twenty examples of two classes that the first token tells apart.
    fn data(&self) -> String {
        let line = |i: usize| {
            let token = |t: usize| if t == 0 { 10 + 60 * (i % 2) } else { 4 + (7 * i + t) % 80 };
            let ids: Vec<usize> = (0..3 + i % 5).map(token).collect();
            json!({"input_ids": ids, "label": i % 2}).to_string() + "\n"
        };
        self.write("data.jsonl", &(0..20).map(line).collect::<String>())
    }

    /// A copy of a golden directory, to be damaged.
    fn copy(&self, from: &Path) -> PathBuf {
        let to = self.0.path().join("copy");
        fs::create_dir(&to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
        to
    }

    /// Only these names are left, hidden ones included.
    fn holds(&self, names: &[&str]) {
        let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().to_string_lossy().into_owned();
        let mut found: Vec<String> = fs::read_dir(self.0.path()).unwrap().map(name).collect();
        found.sort();
        assert_eq!(found, names);
    }
}

/// A golden model with a tokenizer: a letter, a digit or a point is a token.
fn spelling_model(folder: &Folder, name: &str) -> String {
    let copy = folder.copy(&golden("peft-core", name));
    let vocab: serde_json::Map<String, Value> = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        .map(String::from)
        .into_iter()
        .chain(('a'..='z').chain('0'..='9').chain(['.']).map(String::from))
        .enumerate()
        .map(|(id, token)| (token, json!(id)))
        .collect();
    let tokenizer = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": false},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"}});
    fs::write(copy.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    copy.to_string_lossy().into_owned()
}

fn edit(path: PathBuf, change: &dyn Fn(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}
