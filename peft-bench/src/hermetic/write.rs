//! The files: what the grammar says, in the formats of others.

use std::collections::HashSet;
use std::path::Path;

use peft_core::files::write_file;
use peft_core::random::Random;
use peft_core::{Error, Result};
use serde_json::json;

use super::tasks::{Example, TASKS, Task};
use super::vocabulary::Tokenizer;

/// Training examples of a task.
const TRAIN: usize = 2000;
/// Development examples of a task.
const DEV: usize = 500;
/// Lines of the corpus.
const LINES: usize = 100_000;
/// Special tokens by id, as RoBERTa names them.
const SPECIAL: [&str; 5] = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"];

/// Writes `corpus.txt`, `tokenizer.json` and the eight tasks under `glue/` into a directory; every byte follows from the seed.
///
/// A line of the corpus is one text, or two with a tab between them, then what one says of them in a word, without a full
/// stop. No texts of a training example are those of a development example or of a line of the corpus, in either order; one
/// sentence of a pair may be.
pub fn write(directory: &Path, seed: u64) -> Result<()> {
    save(directory, files(seed))?;
    save(directory, vec![("tokenizer_config.json".to_string(), Tokenizer::config(&SPECIAL))])
}

/// Writes files by their paths in a directory.
pub(super) fn save(directory: &Path, files: Vec<(String, String)>) -> Result<()> {
    for (name, content) in files {
        let path = directory.join(name);
        let folder = path.parent().unwrap_or(directory);
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        write_file(&path, content.as_bytes())?;
    }
    Ok(())
}

/// The files by their paths.
pub(super) fn files(seed: u64) -> Vec<(String, String)> {
    let (mut files, mut seen) = (Vec::new(), HashSet::new());
    for task in &TASKS {
        for (file, count) in [(task.glue.dev, DEV), ("train.tsv", TRAIN)] {
            let path = format!("{}/{file}", task.glue.directory);
            let rows = draw(task, &mut Random::new(seed, &path), count, &mut seen);
            files.push((format!("glue/{path}"), table(task, &rows, file != "train.tsv")));
        }
    }
    let corpus = corpus(seed, &seen);
    files.push(("tokenizer.json".to_string(), tokenizer(&corpus)));
    files.push(("corpus.txt".to_string(), corpus));
    files
}

/// Examples whose classes take turns and whose texts are new.
fn draw(task: &Task, random: &mut Random, count: usize, seen: &mut HashSet<String>) -> Vec<Example> {
    let classes = classes(task);
    let mut rows = Vec::with_capacity(count);
    while rows.len() < count {
        let example = (task.draw)(random, rows.len() % classes);
        if seen.insert(unordered(&example)) {
            rows.push(example);
        }
    }
    rows
}

/// How many classes to draw from; a score counts by its whole points.
fn classes(task: &Task) -> usize {
    if task.glue.classes.is_empty() { 6 } else { task.glue.classes.len() }
}

/// The texts of an example as one.
fn text(example: &Example) -> String {
    example.second.iter().fold(example.first.clone(), |first, second| format!("{first}\t{second}"))
}

/// The same for both orders of a pair.
fn unordered(example: &Example) -> String {
    let mut texts: Vec<&str> = std::iter::once(&example.first).chain(&example.second).map(String::as_str).collect();
    texts.sort_unstable();
    texts.join("\t")
}

/// A file of a task in the columns of GLUE, a column that nothing reads filled with its row's number or nothing.
fn table(task: &Task, rows: &[Example], dev: bool) -> String {
    let mut columns = task.columns.split('\t').collect::<Vec<_>>();
    // MNLI's development file has the label of every annotator.
    if dev && task.glue.directory == "MNLI" {
        columns.splice(11..11, ["label2", "label3", "label4", "label5"]);
    }
    let used = task.used();
    // CoLA alone has no header: its columns are named elsewhere.
    let header = task.glue.columns.is_empty().then(|| columns.join("\t"));
    let line = |(index, example): (usize, &Example)| {
        let label = match task.glue.classes {
            [] => format!("{:.3}", example.class as f64 / 4.0),
            labels => labels[example.class].to_string(),
        };
        let cell = |column: &&str| match *column {
            column if column == used[0] => example.first.clone(),
            column if column == used[1] => example.second.clone().unwrap_or_default(),
            column if column == used[2] || column.starts_with("label") => label.clone(),
            column if column.to_lowercase().contains("id") || column.contains("index") => index.to_string(),
            _ => String::new(),
        };
        columns.iter().map(cell).collect::<Vec<_>>().join("\t")
    };
    let lines: Vec<String> = header.into_iter().chain(rows.iter().enumerate().map(line)).collect();
    lines.join("\n") + "\n"
}

/// The corpus: texts as the tasks have them, and what one says of them.
fn corpus(seed: u64, seen: &HashSet<String>) -> String {
    let mut random = Random::new(seed, "corpus");
    let shares: Vec<&Task> = TASKS.iter().flat_map(|task| std::iter::repeat_n(task, task.share)).collect();
    let mut lines = Vec::with_capacity(LINES);
    while lines.len() < LINES {
        let task = shares[random.below(shares.len())];
        // Nothing unacceptable is ever said.
        let class = if task.glue.directory == "CoLA" { 1 } else { random.below(classes(task)) };
        let example = (task.draw)(&mut random, class);
        if !seen.contains(&unordered(&example)) {
            lines.push(format!("{} {}", text(&example), example.verdict).trim_end().to_string());
        }
    }
    lines.join("\n") + "\n"
}

/// A tokenizer with RoBERTa's special tokens.
fn tokenizer(corpus: &str) -> String {
    let tokenizer = Tokenizer {
        special: &SPECIAL,
        sentinels: &[],
        unknown: "<unk>",
        normalizer: json!({ "type": "Lowercase" }),
        cut: json!({ "type": "WhitespaceSplit" }),
        finish: json!({
            "type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0], "trim_offsets": true, "add_prefix_space": false,
        }),
    };
    tokenizer.file(&corpus.split_whitespace().collect())
}
