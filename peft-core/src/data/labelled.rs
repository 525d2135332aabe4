use std::path::{Path, PathBuf};

#[cfg(feature = "tokenize")]
use rayon::prelude::*;

use super::classes::{Kind, Written};
use super::row::{Columns, Input, Row, label_column, label_text};
use super::table::Table;
use crate::files::read_file;
#[cfg(feature = "tokenize")]
use crate::load::Tokenizer;
use crate::random::Random;
use crate::{Error, Example, Result};

/// The largest data file that is read, in bytes.
const MAX_DATA: u64 = 1 << 30;

/// Raw rows of a labelled file.
#[derive(Clone, Debug)]
pub struct Labelled {
    path: PathBuf,
    rows: Vec<Row>,
    kind: Kind,
}

/// How to read a labelled file. What is not said is guessed from the names of the columns.
#[must_use]
pub struct Builder {
    path: PathBuf,
    bytes: Vec<u8>,
    text: Option<String>,
    pair: Option<String>,
    label: Option<String>,
    kind: Option<Kind>,
    unlabelled: bool,
}

impl Labelled {
    /// Opens a file of at most 1 GiB. Its extension tells the format: `.tsv` (header line, tabs, no quoting), `.csv` (header line, commas,
    /// double quotes) or `.jsonl` (one object a line, of texts or of `input_ids`, the first naming the columns).
    ///
    /// The column of the text is the first of the usual names (`sentence`, `text`, `premise` and so on), together with
    /// its usual partner if there is one. The label's is `label`, `labels` or `score`; without any of them the rows
    /// have no label. Labels that all are integers are classes, other numbers are values, anything else names a class.
    pub fn open(path: &Path) -> Result<Builder> {
        let bytes = read_file(path, MAX_DATA)?;
        Ok(Builder {
            path: path.to_path_buf(),
            bytes,
            text: None,
            pair: None,
            label: None,
            kind: None,
            unlabelled: false,
        })
    }

    /// The names of the classes, in the order of their numbers; empty for values and for rows without a label.
    pub fn classes(&self) -> &[String] {
        match &self.kind {
            Kind::Classes(names) => names,
            Kind::Unlabelled | Kind::Values => &[],
        }
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
        let part = |rows| Labelled { path: self.path.clone(), rows, kind: self.kind.clone() };
        (part(parts.0), part(parts.1))
    }

    /// Turns rows of texts into examples of at most `max_length` tokens, special tokens included.
    #[cfg(feature = "tokenize")]
    pub fn tokenize(&self, tokenizer: &Tokenizer, max_length: usize) -> Result<Vec<Example>> {
        let example = |row: &Row| {
            let Input::Text { a, b } = &row.input else {
                return Err(self.wrong(row, "input_ids", "texts to tokenize"));
            };
            let encoded = tokenizer.encode(a, b.as_deref(), max_length)?;
            if encoded.ids.is_empty() {
                return Err(self.wrong(row, "a text without tokens", "at least one token"));
            }
            Ok(Example { ids: encoded.ids, mask: None, types: Some(encoded.types), label: row.label.clone() })
        };
        // Collected before the first error is looked for, so that it is always that of the first bad row.
        let examples: Vec<Result<Example>> = self.rows.par_iter().map(example).collect();
        examples.into_iter().collect()
    }

    /// Takes rows of `input_ids` as examples: every id must be below `vocab` and no row longer than `max_length`.
    pub fn examples(&self, vocab: usize, max_length: usize) -> Result<Vec<Example>> {
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
            Ok(Example { ids: ids.clone(), mask: mask.clone(), types: types.clone(), label: row.label.clone() })
        };
        self.rows.iter().map(example).collect()
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

    /// Reads labels as those of another file, so that a class has the same number in both. A class that the other
    /// file lacks is an error.
    pub fn like(self, other: &Labelled) -> Self {
        Builder { kind: Some(other.kind.clone()), ..self }
    }

    /// Ignores labels, whatever they are.
    pub fn without_label(self) -> Self {
        Builder { unlabelled: true, ..self }
    }

    /// Parses the rows.
    pub fn read(self) -> Result<Labelled> {
        let path = &self.path;
        let table = Table::parse(path, utf8(path, &self.bytes)?)?;
        let columns = Columns::choose(path, &table, self.text.as_deref(), self.pair.as_deref())?;
        let label = if self.unlabelled { None } else { label_column(path, &table, self.label.as_deref())? };

        let (mut rows, mut labels) = (Vec::new(), Vec::new());
        for record in table.rows {
            let record = record?;
            rows.push(Row { line: record.line, input: columns.input(path, &record)?, label: None });
            if let Some(column) = label {
                labels.push(Written { line: record.line, text: label_text(path, &record, column)? });
            }
        }
        if rows.is_empty() {
            return Err(Error::file(path, "rows", "none below the header", "at least one"));
        }
        let kind = match (label, self.kind) {
            (None, _) => Kind::Unlabelled,
            (Some(_), Some(kind)) => kind,
            (Some(_), None) => Kind::of(path, &labels)?,
        };
        for (row, label) in rows.iter_mut().zip(&labels) {
            row.label = kind.label(path, label)?;
        }
        Ok(Labelled { path: path.clone(), rows, kind })
    }
}

fn utf8<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a str> {
    std::str::from_utf8(bytes).map_err(|error| {
        let line = 1 + bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
        Error::file(path, format!("line {line}"), "bytes that are no text", "UTF-8")
    })
}
