//! `peft predict`

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use clap::Args;
use peft_core::data::{Labelled, Question};
use peft_core::io::{Pretrained, peft::Labels};
use peft_core::load::Tokenizer;
use peft_core::loss::log_sum_exp;
use peft_core::train::{Logits, Served, Tuned, argmax};
use peft_core::{AnyTuner, Bare, Base, Error, Example, Head, Purpose, Result, Trained, answer};
use serde_json::{Map, Value, json};

use super::options::{ModelArgs, Setup, TaskArg, lines, print, workers};
use crate::machine::threads;
use crate::registry::load;

/// Label texts, or each of their tokens, with a trained adapter, or with the one of many that each asks for; prints one JSON object a line
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  peft predict --model DIR --adapter out/lora --text 'a charming journey'\n  \
    peft predict --model DIR --adapter out/lora --file lines.txt\n  \
    peft predict --model DIR --adapter films=out/films --adapter topics=out/topics --data rows.csv")]
pub struct Predict {
    #[command(flatten)]
    model: ModelArgs,
    /// An adapter directory, or several at once, the first outermost, whose head counts; without one the model's own head is used. With
    /// NAME= before each they are adapters that the column `adapter` of --data chooses from
    #[arg(long, value_name = "[NAME=]DIR")]
    adapter: Vec<String>,
    /// A directory of AdapterHub's with a composition of adapters (adapter_setup.json) or a fusion, in place of an adapter
    #[arg(long, value_name = "DIR", conflicts_with = "adapter")]
    setup: Option<PathBuf>,
    /// A text
    #[arg(long, required_unless_present_any = ["file", "data"])]
    text: Vec<String>,
    /// A file of texts, one a line
    #[arg(long)]
    file: Option<PathBuf>,
    /// A file of texts or pairs of texts: .tsv, .csv or .jsonl; a column `adapter` names the adapter that is to answer
    #[arg(long, conflicts_with_all = ["text", "file", "context", "for_task"])]
    data: Option<PathBuf>,
    /// The column of the text, or of the first text of a pair [default: by the usual names]
    #[arg(long, value_name = "NAME", requires = "data")]
    text_column: Option<String>,
    /// The column of the second text
    #[arg(long, value_name = "NAME", requires = "data")]
    pair_column: Option<String>,
    /// The text in which the answer to each question is looked for, with a head for answers
    #[arg(long)]
    context: Option<String>,
    #[command(flatten)]
    for_task: TaskArg,
    /// Tokens to which a text is cut
    #[arg(long, default_value_t = 128)]
    max_length: usize,
}

/// What is used of a finished adapter, or of the model's own head.
struct Ready {
    base: Base,
    trained: Trained<AnyTuner>,
    labels: Labels,
    room: usize,
    /// The task that is asked for.
    task: usize,
}

/// A text in tokens, and what of it each token is.
struct Encoded {
    example: Example,
    /// The number of each token's word.
    words: Vec<Option<usize>>,
    /// Of the text in which an answer is looked for, the bytes of each token.
    places: Vec<Option<Range<usize>>>,
}

impl Predict {
    pub(super) fn run(self) -> Result<()> {
        let model: Pretrained = self.model.open()?;
        let tokenizer = model.tokenizer()?;
        let (rows, mut texts) = (self.data.as_deref().map(|path| self.rows(path)).transpose()?, self.text.clone());
        if let Some(path) = &self.file {
            texts.extend(lines(path)?);
        }
        let asked = |text| Question { text, pair: self.context.as_deref(), adapter: None, task: 0 };
        let questions = match &rows {
            Some(rows) => rows.questions()?,
            None => texts.iter().map(|text| asked(text.as_str())).collect(),
        };
        if questions.is_empty() {
            return Err(Error::config("texts", "none", "at least one, by --text or --file"));
        }
        let chooses = questions[0].adapter.is_some();
        let adapters = self.adapters(&model, chooses)?;
        let of = |(i, question): (usize, &Question<'_>)| {
            let name = question.adapter.unwrap_or_default();
            let path = self.data.as_deref().unwrap_or(Path::new(""));
            let names = || adapters.keys().cloned().collect::<Vec<_>>().join(", ");
            let expected = || format!("one of {}, as --adapter NAME=DIR says", names());
            let unknown = || Error::file(path, format!("row {}, adapter", i + 1), name, expected());
            adapters.get_key_value(name).ok_or_else(unknown)
        };
        let ready = questions.iter().enumerate().map(of).collect::<Result<Vec<_>>>()?;
        let given = self.text.len();
        let encode = |(i, (question, (_, ready))): (usize, (&Question<'_>, &(&String, &Ready)))| {
            self.encode(question, ready, &tokenizer).map_err(|error| match (&self.data, &self.file) {
                (Some(path), _) => error.of(&format!("row {}", i + 1)).in_file(path),
                (None, Some(path)) if i >= given => error.of(&format!("line {}", i - given + 1)).in_file(path),
                _ => error,
            })
        };
        let encoded = questions.iter().zip(&ready).enumerate().map(encode).collect::<Result<Vec<_>>>()?;
        let mut served = Served::default();
        for (name, ready) in &adapters {
            served.insert(name, &ready.base, &ready.trained)?;
        }
        let asked = ready.iter().zip(&encoded).map(|((name, _), encoded)| (name.as_str(), &encoded.example));
        let logits = served.predict(&asked.collect::<Vec<_>>(), &workers(threads(), questions.len())?)?;
        for (i, logits) in logits.iter().enumerate() {
            let mut told = Map::new();
            told.extend(questions[i].adapter.map(|name| ("adapter".to_string(), json!(name))));
            told.insert("text".into(), json!(questions[i].text));
            if let Some(pair) = questions[i].pair.filter(|_| self.context.is_none()) {
                told.insert("pair".into(), json!(pair));
            }
            let task = ready[i].1.labels.tasks.get(encoded[i].example.task);
            told.extend(task.map(|task| ("task".to_string(), json!(task.name))));
            told.extend(self.told(&questions[i], &encoded[i], logits, ready[i].1, &tokenizer)?);
            print(Value::Object(told))?;
        }
        Ok(())
    }

    /// The rows of a file.
    fn rows(&self, path: &Path) -> Result<Labelled> {
        let builder = Labelled::open(path)?.without_label();
        let builder = self.text_column.iter().fold(builder, |builder, name| builder.text(name));
        self.pair_column.iter().fold(builder, |builder, name| builder.pair(name)).read()
    }

    /// The adapters by their names, or what answers all: several directories of one name are one adapter.
    fn adapters(&self, model: &Pretrained, chooses: bool) -> Result<BTreeMap<String, Ready>> {
        let mut dirs: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
        for adapter in &self.adapter {
            let (name, dir) = match adapter.split_once('=') {
                Some((name, dir)) if chooses && !name.is_empty() && !dir.is_empty() => (name, dir),
                _ if chooses => {
                    return Err(Error::config("--adapter", adapter, "NAME=DIR, as the data has a column `adapter`"));
                }
                Some(_) if !Path::new(adapter).exists() => {
                    return Err(Error::config(
                        "--adapter",
                        adapter,
                        "a directory: no column `adapter` chooses by names",
                    ));
                }
                _ => ("", adapter.as_str()),
            };
            dirs.entry(name.to_string()).or_default().push(dir.into());
        }
        if dirs.is_empty() && chooses {
            return Err(Error::config("--adapter", "nothing", "NAME=DIR, as the data has a column `adapter`"));
        }
        if let Some(dir) = &self.setup {
            let Setup { base, trained, classes, room } = Setup::open(dir, model)?;
            check_labels(&trained.head)?;
            let labels = Labels { classes, ..Labels::default() };
            return Ok(BTreeMap::from([(String::new(), Ready { base, trained, labels, room, task: 0 })]));
        }
        if dirs.is_empty() {
            let (head, room) = (model.own_head()?, model.base.shape().max_length());
            if let Some(task) = &self.for_task.for_task {
                return Err(Error::config("--for-task", task, "none without --adapter"));
            }
            check_labels(&head)?;
            let (base, labels) = (model.base.for_purpose(head.purpose()), model.name_classes(Labels::default(), &head));
            let ready = Ready { base, trained: Trained::new(Bare {}, head)?.erased(), labels, room, task: 0 };
            return Ok(BTreeMap::from([(String::new(), ready)]));
        }
        let ready = |(name, dirs): (String, Vec<PathBuf>)| {
            let tuned = load(&dirs, model)?;
            // Rows of a file say their tasks in a column.
            let task = if self.data.is_none() { self.for_task.among(&tuned)? } else { None };
            let Tuned { base, config, trained, labels, .. } = tuned;
            let labels = model.name_classes(labels, &trained.head);
            check_labels(&trained.head)?;
            let room = config.room(base.shape());
            Ok((name, Ready { base, trained, labels, room, task: task.unwrap_or(0) }))
        };
        dirs.into_iter().map(ready).collect()
    }

    /// A text in the tokens that its adapter's head needs.
    fn encode(&self, question: &Question<'_>, ready: &Ready, tokenizer: &Tokenizer) -> Result<Encoded> {
        let (longest, mut places) = (self.max_length.min(ready.room), vec![]);
        let answers = ready.trained.head.purpose() == Purpose::Answers;
        let (encoded, words) = match (question.pair, answers) {
            (Some(context), true) => {
                let (encoded, found) = tokenizer.encode_question(question.text.trim_start(), context, longest)?;
                places = found;
                (encoded, vec![])
            }
            (None, true) => {
                let expected = "--context TEXT, in which answers are looked for, or a column `context`";
                return Err(Error::config("--context", "none", expected));
            }
            (Some(_), false) if self.context.is_some() => {
                return Err(Error::config("--context", "a text", "none: the head is not for answers (QUESTION_ANS)"));
            }
            (Some(pair), false) => (tokenizer.encode(question.text, Some(pair), longest)?, vec![]),
            (None, false) => tokenizer.encode_text(question.text, longest)?,
        };
        let (ids, types) = (encoded.ids, Some(encoded.types));
        let task = question.task.max(ready.task);
        let example = Example { ids, types, task, ..Default::default() };
        Ok(Encoded { example, words, places })
    }

    /// What the logits of a text say.
    fn told(
        &self,
        question: &Question<'_>,
        encoded: &Encoded,
        logits: &Logits,
        ready: &Ready,
        tokenizer: &Tokenizer,
    ) -> Result<Map<String, Value>> {
        let outputs = logits.dims.last().copied().unwrap_or(1);
        let classes = ready.labels.of_task(encoded.example.task);
        let name = |i: usize| classes.get(i).cloned().unwrap_or_else(|| format!("LABEL_{i}"));
        let probability = |row: &[f32], i: usize| (f64::from(row[i]) - log_sum_exp(row)).exp() as f32;
        let told = match (ready.trained.head.purpose(), &logits.dims[..]) {
            (Purpose::Answers, _) => {
                let context = question.pair.unwrap_or_default();
                let Some(found) = answer::found(&logits.values, &encoded.places) else {
                    return Err(Error::config("--context", "a text without tokens", "one with an answer"));
                };
                let all = |side: usize| logits.values.chunks(2).map(|row| row[side]).collect::<Vec<_>>();
                let score = f64::from(found.logit) - log_sum_exp(&all(0)) - log_sum_exp(&all(1));
                let (start, end) = (found.place.start, found.place.end);
                let text = context[start..end].trim();
                json!({"answer": text, "start": start, "end": end, "score": score.exp() as f32})
            }
            (_, [1]) => json!({"value": logits.values[0]}),
            (_, [_]) => {
                let score = |i: usize| (name(i), json!(probability(&logits.values, i)));
                let scores: Map<_, _> = (0..outputs).map(score).collect();
                json!({"label": name(argmax(&logits.values)), "scores": scores})
            }
            _ => {
                // Special tokens are of no word; of a pair it is not told which are.
                let is_of_word = |i: usize| encoded.words.is_empty() || encoded.words[i].is_some();
                let rows = logits.values.chunks(outputs).zip(&encoded.example.ids).enumerate();
                let rows: Vec<_> = rows.filter(|(i, _)| is_of_word(*i)).map(|(_, row)| row).collect();
                json!({
                    "tokens": rows.iter().map(|(_, id)| tokenizer.token(**id)).collect::<Vec<_>>(),
                    "labels": rows.iter().map(|(row, _)| name(argmax(row))).collect::<Vec<_>>(),
                    "scores": rows.iter().map(|(row, _)| probability(row, argmax(row))).collect::<Vec<_>>(),
                })
            }
        };
        match told {
            Value::Object(told) => Ok(told),
            _ => unreachable!("an object is told"),
        }
    }
}

/// Refuses heads that label nothing.
fn check_labels(head: &Head) -> Result<()> {
    let (found, instead) = match head.purpose() {
        _ if head.is_of_texts() => return Ok(()),
        Purpose::States => ("none", ": `peft forward` writes states (FEATURE_EXTRACTION)"),
        Purpose::Words => ("one for words", "; `peft generate` writes texts"),
        Purpose::Texts | Purpose::Tokens | Purpose::Answers => return Ok(()),
    };
    Err(Error::config("head", found, format!("one for classes or values{instead}")))
}
