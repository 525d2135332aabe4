use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

#[cfg(feature = "tokenize")]
use rayon::prelude::*;

#[cfg(feature = "tokenize")]
use super::answers;
use super::classes::{FINITE, Kind, Written};
#[cfg(feature = "tokenize")]
use super::prompts::{prompted, room};
use super::row::{ADAPTER, Cell, Columns, Input, Row, TASK, label_column};
use super::table::Table;
#[cfg(feature = "tokenize")]
use super::tags::spread;
use super::tags::{Tagged, classes};
use crate::files::read_text;
#[cfg(feature = "tokenize")]
use crate::load::Tokenizer;
#[cfg(feature = "chat")]
use crate::loss::IGNORED;
use crate::random::Random;
use crate::{Error, Example, Label, Result, Shape};

/// The largest data file that is read, in bytes.
const MAX_DATA: u64 = 1 << 30;
/// The most rows that are left out as broken; with more of them, something is wrong with the file.
const MAX_BROKEN: usize = 100;

/// Raw rows of a labelled file.
#[derive(Clone, Debug)]
pub struct Labelled {
    path: PathBuf,
    rows: Vec<Row>,
    kind: Kind,
    columns: Vec<String>,
    broken: Vec<String>,
}

/// What is asked in a row of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question<'a> {
    /// The text, or the first of a pair.
    pub text: &'a str,
    /// The second text.
    pub pair: Option<&'a str>,
    /// The name of the adapter that is to answer, if the file has a column for it.
    pub adapter: Option<&'a str>,
    /// The number of the task.
    pub task: usize,
}

/// How to read a labelled file. What is not said is guessed from the names of the columns.
#[must_use]
pub struct Builder {
    path: PathBuf,
    content: String,
    columns: Option<Vec<String>>,
    text: Option<String>,
    pair: Option<String>,
    label: Option<String>,
    target: Option<String>,
    kind: Option<Kind>,
    unlabelled: bool,
    skip_broken: bool,
}

impl Labelled {
    /// The columns that were taken: texts or tokens, then what is to be written or the label.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Opens a file of at most 1 GiB. Its extension tells the format: `.tsv` (header line, tabs, no quoting), `.csv` (header line, commas,
    /// double quotes), `.jsonl` (one object a line, of texts or of `input_ids`, whose keys are the columns), `.conll` or `.txt` (a word
    /// and its tag in a line, blank lines between texts).
    ///
    /// The column of the text is the first of the usual names (`sentence`, `text`, `premise` and so on), together with
    /// its usual partner if there is one. An array there holds the words of a text, each of which may have a tag. The label's is
    /// `label`, `labels`, `score` and so on. Labels that all are integers are classes, other numbers are values, arrays are tags of words,
    /// or words to predict at `input_ids`, anything else names a class. With `question` and `context` the objects in `answers` are parts of
    /// the context (`{"text": [..], "answer_start": [..]}`, as SQuAD has them; no text, where it has no answer). A column `task_id` that is neither holds the number of each row's
    /// task, from 0. A column `messages` holds conversations, arrays of objects with `role` and `content`, which need no label: of those
    /// the assistant's turns are learnt.
    pub fn open(path: &Path) -> Result<Builder> {
        Ok(Builder {
            path: path.to_path_buf(),
            content: read_text(path, MAX_DATA)?,
            columns: None,
            text: None,
            pair: None,
            label: None,
            target: None,
            kind: None,
            unlabelled: false,
            skip_broken: false,
        })
    }

    /// The names of the classes, in the order of their numbers; empty for values and for rows without a label.
    pub fn classes(&self) -> &[String] {
        match &self.kind {
            Kind::Classes(names) | Kind::Tags(names) => names,
            Kind::Unlabelled | Kind::Values(_) | Kind::Words | Kind::Answers => &[],
        }
    }

    /// What is wrong with the rows that were left out, see [`Builder::skip_broken_rows`].
    pub fn broken_rows(&self) -> &[String] {
        &self.broken
    }

    /// What is asked in each row: a text, or a pair of texts, of an adapter that a column `adapter` may name.
    pub fn questions(&self) -> Result<Vec<Question<'_>>> {
        let all = self.rows.iter().map(|row| match &row.input {
            Input::Text { a, b } => {
                Ok(Question { text: a, pair: b.as_deref(), adapter: row.adapter.as_deref(), task: row.task })
            }
            _ => Err(self.wrong(row, "words, input_ids or messages", "a text, or a pair of texts")),
        });
        all.collect()
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no row; a file always has one, a part of it may not.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Whether the rows hold token ids instead of texts.
    pub(super) fn has_tokens(&self) -> bool {
        self.rows.first().is_some_and(|row| matches!(row.input, Input::Tokens { .. }))
    }

    /// Moves a `fraction` of the rows, from 0 to 1, to a second part. Which rows is a function of seed and row count
    /// only; both parts keep the order of the file and all its classes.
    pub fn split(self, fraction: f64, seed: u64) -> (Self, Self) {
        let count = self.rows.len();
        let moved = (count as f64 * fraction.clamp(0.0, 1.0)).round() as usize;
        let mut second = vec![false; count];
        for row in &Random::new(seed, "split").permutation(count)[..moved] {
            second[*row] = true;
        }
        let mut parts = (Vec::with_capacity(count - moved), Vec::with_capacity(moved));
        for (row, second) in self.rows.into_iter().zip(second) {
            if second { parts.1.push(row) } else { parts.0.push(row) }
        }
        let part = |rows| Labelled {
            rows,
            path: self.path.clone(),
            kind: self.kind.clone(),
            columns: self.columns.clone(),
            broken: self.broken.clone(),
        };
        (part(parts.0), part(parts.1))
    }

    /// Whether the rows hold texts that a model is to write.
    #[cfg(feature = "tokenize")]
    pub(super) fn has_targets(&self) -> bool {
        self.rows.first().is_some_and(|row| row.target.is_some())
    }

    /// Whether the rows hold conversations.
    #[cfg(feature = "tokenize")]
    pub(super) fn has_chats(&self) -> bool {
        self.rows.first().is_some_and(|row| matches!(row.input, Input::Chat(_)))
    }

    /// Turns rows of conversations into examples as the model's chat template writes them, cut to `max_length` at the end, of which the
    /// tokens of the assistant's turns count: all of them, as with `assistant_only_loss` in trl.
    #[cfg(feature = "chat")]
    pub(super) fn chats(&self, shape: &Shape, tokenizer: &Tokenizer, max_length: usize) -> Result<Vec<Example>> {
        if !shape.architecture.is_decoder() {
            return Err(Error::config("data", "messages", "a model that writes behind what it reads, LLaMA"));
        }
        let example = |row: &Row| {
            let Input::Chat(messages) = &row.input else {
                return Err(self.wrong(row, "no messages", "a conversation"));
            };
            let (ids, counts) = tokenizer.turns(messages, max_length)?;
            if !counts.contains(&true) {
                let expected = format!("a message of the role assistant within the first {max_length} tokens");
                return Err(self.wrong(row, "nothing that the assistant writes", expected));
            }
            let word = |(id, counts): (&u32, &bool)| if *counts { *id as i32 } else { IGNORED };
            let words: Vec<i32> = ids.iter().zip(&counts).map(word).collect();
            Ok(Example { ids, label: Some(Label::Words(words.into())), task: row.task, ..Default::default() })
        };
        let examples: Vec<Result<Example>> = self.rows.par_iter().map(example).collect();
        examples.into_iter().collect()
    }

    /// Conversations need the feature `chat`.
    #[cfg(all(feature = "tokenize", not(feature = "chat")))]
    pub(super) fn chats(&self, _shape: &Shape, _tokenizer: &Tokenizer, _max_length: usize) -> Result<Vec<Example>> {
        Err(Error::config("data", "messages", "texts, or this program built with the feature `chat`"))
    }

    /// Turns rows of texts, and of texts to write, into examples for a model of this shape, see [`prompted`].
    #[cfg(feature = "tokenize")]
    pub(super) fn targets(&self, shape: &Shape, tokenizer: &Tokenizer, max_length: usize) -> Result<Vec<Example>> {
        let example = |row: &Row| {
            let (Input::Text { a, b: None }, Some(target)) = (&row.input, &row.target) else {
                return Err(self.wrong(row, "a pair of texts or input_ids", "one text and the text to write"));
            };
            let example = prompted(shape, tokenizer, (a, target), max_length)?;
            let expected = || format!("room for an answer: at most {} of {max_length} tokens", room(max_length));
            let example = example.ok_or_else(|| self.wrong(row, "a text that is too long", expected()))?;
            Ok(Example { task: row.task, ..example })
        };
        let examples: Vec<Result<Example>> = self.rows.par_iter().map(example).collect();
        examples.into_iter().collect()
    }

    /// Turns rows of texts into examples of at most `max_length` tokens, special tokens included.
    #[cfg(feature = "tokenize")]
    pub fn tokenize(&self, tokenizer: &Tokenizer, max_length: usize) -> Result<Vec<Example>> {
        let example = |row: &Row| {
            if let (Input::Text { a, b: Some(b) }, Some(right)) = (&row.input, &row.right) {
                return Ok(Example { task: row.task, ..answers::example(tokenizer, (a, b), right, max_length)? });
            }
            let (a, b) = match &row.input {
                Input::Text { a, b } => (a, b),
                Input::Words(words) => {
                    let (encoded, of_words) = tokenizer.encode_words(words, max_length)?;
                    if encoded.ids.is_empty() {
                        return Err(self.wrong(row, "words without tokens", "at least one token"));
                    }
                    let label = match &row.label {
                        Some(Label::Tags(tags)) => Some(spread(&of_words, tags)),
                        label => label.clone(),
                    };
                    let types = Some(encoded.types);
                    return Ok(Example { ids: encoded.ids, mask: None, types, label, task: row.task });
                }
                Input::Tokens { .. } => return Err(self.wrong(row, "input_ids", "texts to tokenize")),
                Input::Chat(_) => return Err(self.wrong(row, "messages", "texts to tokenize")),
            };
            let encoded = tokenizer.encode(a, b.as_deref(), max_length)?;
            if encoded.ids.is_empty() {
                return Err(self.wrong(row, "a text without tokens", "at least one token"));
            }
            let (types, label) = (Some(encoded.types), row.label.clone());
            Ok(Example { ids: encoded.ids, mask: None, types, label, task: row.task })
        };
        // Collected before the first error is looked for, so that it is always that of the first bad row.
        let examples: Vec<Result<Example>> = self.rows.par_iter().map(example).collect();
        examples.into_iter().collect()
    }

    /// Takes rows of `input_ids` as examples for a model of this shape: every id must be in its tables, and no row longer
    /// than `max_length` or than its positions.
    pub fn examples(&self, shape: &Shape, max_length: usize) -> Result<Vec<Example>> {
        let (vocab, max_length) = (shape.vocab, max_length.min(shape.max_length()));
        let example = |row: &Row| {
            let Input::Tokens { ids, mask, types } = &row.input else {
                return Err(self.wrong(row, "a text", "input_ids, or a tokenizer"));
            };
            if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
                let expected = format!("ids below {vocab}, the vocabulary of the model");
                return Err(self.wrong(row, format!("id {id} in input_ids"), expected));
            }
            if ids.len() > max_length {
                return Err(self.wrong(row, format!("{} input_ids", ids.len()), format!("at most {max_length}")));
            }
            if let Some(Label::Words(words)) = &row.label {
                if let Some(word) = words.iter().find(|word| **word >= vocab as i32) {
                    let expected = format!("words below {vocab}, the vocabulary of the model");
                    return Err(self.wrong(row, format!("word {word} in the labels"), expected));
                }
                let behind = shape.architecture.is_encoder_decoder();
                if !behind && words.len() != ids.len() {
                    let expected = format!("{}, one for each of input_ids", ids.len());
                    return Err(self.wrong(row, format!("{} labels", words.len()), expected));
                }
            }
            let (mask, types, label) = (mask.clone(), types.clone(), row.label.clone());
            Ok(Example { ids: ids.clone(), mask, types, label, task: row.task })
        };
        let examples = self.rows.iter().map(example).collect::<Result<Vec<_>>>()?;
        self.with_types_of(shape, examples)
    }

    /// Refuses token types that a model of this shape lacks. For one without types a tokenizer's are dropped, as transformers does.
    pub(super) fn with_types_of(&self, shape: &Shape, mut examples: Vec<Example>) -> Result<Vec<Example>> {
        for (row, example) in self.rows.iter().zip(&mut examples) {
            if shape.types == 0 && !matches!(row.input, Input::Tokens { .. }) {
                example.types = None;
            }
            if let Some(kind) = example.types.iter().flatten().find(|kind| **kind as usize >= shape.types.max(1)) {
                let expected = format!("types below {}, those of the model", shape.types.max(1));
                return Err(self.wrong(row, format!("type {kind} in token_type_ids"), expected));
            }
        }
        Ok(examples)
    }

    fn wrong(&self, row: &Row, found: impl ToString, expected: impl Into<String>) -> Error {
        Error::file(&self.path, format!("line {}", row.line), found, expected)
    }
}

impl Builder {
    /// The column of the text, or of the first text of a pair.
    pub fn text(self, column: &str) -> Self {
        Builder { text: Some(column.to_string()), ..self }
    }

    /// The column of the second text.
    pub fn pair(self, column: &str) -> Self {
        Builder { pair: Some(column.to_string()), ..self }
    }

    /// The column of the label.
    pub fn label(self, column: &str) -> Self {
        Builder { label: Some(column.to_string()), ..self }
    }

    /// The column of the text that a model which writes is to give, in place of a label.
    pub fn target(self, column: &str) -> Self {
        Builder { target: Some(column.to_string()), ..self }
    }

    /// The file has no header line; its columns have these names. Not for `.jsonl`.
    pub fn columns(self, names: &[impl AsRef<str>]) -> Self {
        Builder { columns: Some(names.iter().map(|name| name.as_ref().to_string()).collect()), ..self }
    }

    /// Reads labels as classes of these names, in the order of their numbers; any other label is an error.
    pub fn classes(self, names: &[impl AsRef<str>]) -> Self {
        let names = names.iter().map(|name| name.as_ref().to_string()).collect();
        Builder { kind: Some(Kind::Classes(names)), ..self }
    }

    /// Reads labels as numbers, integers too.
    pub fn values(self) -> Self {
        self.values_within(FINITE)
    }

    /// Reads labels as numbers of this range; any other is an error.
    pub fn values_within(self, range: RangeInclusive<f32>) -> Self {
        Builder { kind: Some(Kind::Values(range)), ..self }
    }

    /// Reads labels as those of another file, so that a class has the same number in both. A class that the other
    /// file lacks is an error.
    pub fn like(self, other: &Labelled) -> Self {
        Builder { kind: Some(other.kind.clone()), ..self }
    }

    /// Ignores labels, whatever they are, and needs none.
    pub fn without_label(self) -> Self {
        Builder { unlabelled: true, ..self }
    }

    /// Leaves out rows with more or fewer fields than columns instead of refusing the file, for published data that is
    /// known to have some; at most 100 of them. [`Labelled::broken_rows`] says which.
    pub fn skip_broken_rows(self) -> Self {
        Builder { skip_broken: true, ..self }
    }

    /// Parses the rows.
    pub fn read(self) -> Result<Labelled> {
        let Table { header, rows: records } = Table::parse(&self.path, &self.content, self.columns)?;
        let columns = Columns::choose(&header, self.text.as_deref(), self.pair.as_deref())?;
        let target = self.target.as_deref().map(|name| header.column(name)).transpose()?;
        // Of a conversation the assistant's turns are learnt.
        let labelled = !self.unlabelled && target.is_none() && !matches!(columns, Columns::Chat(_));
        let label = labelled.then(|| label_column(&header, self.label.as_deref())).transpose()?;
        let name = label.map(|label| &header.columns[label]);
        if let Some(name) = name.filter(|name| [&self.text, &self.pair].into_iter().flatten().any(|text| text == *name))
        {
            return Err(Error::file(header.path, "columns", format!("{name} for a text and the label"), "two columns"));
        }
        let taken = [&self.text, &self.pair, &self.label, &self.target].into_iter().flatten().any(|name| name == TASK);
        let task = header.find(TASK).filter(|_| !taken);
        let adapter =
            header.find(ADAPTER).filter(|column| !columns.places().contains(column) && Some(*column) != label);

        let (mut rows, mut labels, mut tagged, mut broken) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for record in records {
            let record = match record {
                Err(error) if self.skip_broken && broken.len() < MAX_BROKEN => {
                    broken.push(error.to_string());
                    continue;
                }
                record => record?,
            };
            let cell = |column| Cell { header: &header, record: &record, column };
            let task = task.map_or(Ok(0), |column| cell(column).task())?;
            let target = target.map(|column| cell(column).text()).transpose()?;
            let adapter = adapter.map(|column| cell(column).text()).transpose()?;
            let mut row = Row {
                line: record.line,
                input: columns.input(&header, &record)?,
                label: None,
                target,
                task,
                right: None,
                adapter,
            };
            if let Some(column) = label {
                let cell = cell(column);
                if let Some(right) = cell.answers(&row.input) {
                    row.right = Some(right?);
                    rows.push(row);
                    continue;
                }
                match (cell.tags(&row.input), cell.words()) {
                    (Some(tags), _) if tagged.len() == rows.len() => {
                        tagged.push(Tagged { line: record.line, tags: tags? })
                    }
                    (None, Some(words)) if labels.is_empty() => row.label = Some(words?),
                    _ => labels.push(Written { line: record.line, text: cell.label()? }),
                }
            }
            rows.push(row);
        }
        let (path, column) = (header.path, label.map_or("", |column| &header.columns[column]));
        if rows.is_empty() {
            return Err(Error::file(path, "rows", "none below the header", "at least one"));
        }
        let answered = rows.iter().filter(|row| row.right.is_some()).count();
        if let Some(row) = rows.iter().find(|row| row.right.is_some()).filter(|_| answered < rows.len()) {
            let expected = "an object in every row, or in none";
            return Err(Error::file(path, format!("line {}, {column}", row.line), "answers, an object", expected));
        }
        if let Some(first) = tagged.first().filter(|_| tagged.len() < rows.len()) {
            let expected = "an array of tags in every row, or in none";
            return Err(Error::file(path, format!("line {}, {column}", first.line), "an array of tags", expected));
        }
        let kind = match (label, self.kind) {
            (None, _) => Kind::Unlabelled,
            (Some(_), _) if answered > 0 => Kind::Answers,
            (Some(_), Some(Kind::Classes(names) | Kind::Tags(names))) if !tagged.is_empty() => Kind::Tags(names),
            (Some(_), _) if !tagged.is_empty() => Kind::Tags(classes(path, column, &tagged)?),
            (Some(_), _) if labels.is_empty() => Kind::Words,
            (Some(_), Some(kind)) => kind,
            (Some(_), None) => Kind::of(path, column, &labels)?,
        };
        if let Some(row) = rows.iter().find(|row| row.label.is_some()).filter(|_| kind != Kind::Words) {
            let expected = "words in every row, or in none";
            return Err(Error::file(path, format!("line {}, {column}", row.line), "an array of words", expected));
        }
        for (row, label) in rows.iter_mut().zip(&labels) {
            row.label = kind.label(path, column, label)?;
        }
        if let Kind::Tags(names) = &kind {
            for (row, tagged) in rows.iter_mut().zip(&tagged) {
                row.label = Some(tagged.label(path, column, names)?);
            }
        }
        let taken =
            columns.places().into_iter().chain(target).chain(label).map(|column| header.columns[column].clone());
        Ok(Labelled { path: path.to_path_buf(), rows, kind, columns: taken.collect(), broken })
    }
}
