use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

use crate::{Error, Result};

/// The most different keys that the objects of a file may have.
const MAX_KEYS: usize = 1000;

/// A file's rows under its column names, parsed one at a time.
pub(super) struct Table<'a> {
    pub(super) header: Header<'a>,
    pub(super) rows: Box<dyn Iterator<Item = Result<Record>> + 'a>,
}

/// The names of a file's columns.
pub(super) struct Header<'a> {
    pub(super) path: &'a Path,
    pub(super) columns: Vec<String>,
    /// Whether a cell may be an array.
    pub(super) lists: bool,
}

/// A row: one cell for each column, `Null` where a JSON object lacks the name.
pub(super) struct Record {
    pub(super) line: usize,
    pub(super) cells: Vec<Value>,
}

impl<'a> Table<'a> {
    /// Reads the column names, unless they are given for a file without a header, and leaves the rows to be iterated. The
    /// extension tells the format.
    pub(super) fn parse(path: &'a Path, text: &'a str, names: Option<Vec<String>>) -> Result<Self> {
        if text.trim().is_empty() {
            return Err(Error::file(path, "content", "nothing", "a header line and rows, or JSON objects"));
        }
        let extension = path.extension().and_then(|extension| extension.to_str());
        let (columns, rows) = match extension {
            Some("tsv") => tsv(path, text, names),
            Some("csv") => csv(path, text, names)?,
            Some("jsonl" | "conll" | "txt") if names.is_some() => {
                let expected = "none: rows of this format name their own";
                return Err(Error::file(path, "columns", "names for them", expected));
            }
            Some("jsonl") => jsonl(path, text)?,
            Some("conll" | "txt") => conll(path, text),
            _ => return Err(Error::file(path, "extension", "another one", "tsv, csv, jsonl, conll or txt")),
        };
        if let Some(name) = repeated(&columns) {
            return Err(Error::file(path, "line 1", format!("the column {name:?} twice"), "distinct names"));
        }
        let lists = !matches!(extension, Some("tsv" | "csv"));
        Ok(Table { header: Header { path, columns, lists }, rows })
    }
}

impl Header<'_> {
    /// The place of a column, if there is one of this name.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column == name)
    }

    /// The place of a column; the error lists the columns there are.
    pub(super) fn column(&self, name: &str) -> Result<usize> {
        self.find(name).ok_or_else(|| {
            let found = format!("no such column among {:?}", self.columns);
            Error::file(self.path, format!("column {name:?}"), found, "a column of the file")
        })
    }
}

type Parsed<'a> = (Vec<String>, Box<dyn Iterator<Item = Result<Record>> + 'a>);

/// GLUE style: no quoting, so a quote is a character like any other.
fn tsv<'a>(path: &'a Path, text: &'a str, names: Option<Vec<String>>) -> Parsed<'a> {
    // Editors leave blank lines at the end.
    let mut lines = text.trim_end_matches(['\r', '\n']).lines().zip(1..);
    let split = |line: &str| line.split('\t').map(str::to_string).collect::<Vec<_>>();
    let columns = names.unwrap_or_else(|| lines.next().map_or(Vec::new(), |(header, _)| split(header)));
    let width = columns.len();
    (columns, Box::new(lines.map(move |(line, number)| record(path, number, width, split(line)))))
}

fn csv<'a>(path: &'a Path, text: &'a str, names: Option<Vec<String>>) -> Result<Parsed<'a>> {
    let fail = move |error: csv::Error| {
        let line = error.position().map_or(1, csv::Position::line);
        Error::file(path, format!("line {line}"), error, "comma-separated fields")
    };
    if let Some(line) = open_quote(text) {
        let expected = "a quote that is closed: it takes in all that follows";
        return Err(Error::file(path, format!("line {line}"), "a quote that is never closed", expected));
    }
    // Rows of another length are reported below, in the words used for all formats.
    let mut builder = csv::ReaderBuilder::new();
    let mut reader = builder.flexible(true).has_headers(names.is_none()).from_reader(text.as_bytes());
    let columns = match names {
        Some(names) => names,
        None => reader.headers().map_err(fail)?.iter().map(str::to_string).collect(),
    };
    let width = columns.len();
    let rows = reader.into_records().map(move |row| {
        let row = row.map_err(fail)?;
        let line = row.position().map_or(0, |position| position.line() as usize);
        record(path, line, width, row.iter().map(str::to_string).collect())
    });
    Ok((columns, Box::new(rows)))
}

/// CoNLL: a word first and its tag last in each line, between tabs or spaces; texts between blank lines, and between documents.
fn conll<'a>(path: &'a Path, text: &'a str) -> Parsed<'a> {
    let mut lines = text.lines().zip(1..).peekable();
    let between = |line: &str| line.trim().is_empty() || line.starts_with("-DOCSTART-");
    let rows = std::iter::from_fn(move || {
        while lines.next_if(|(line, _)| between(line)).is_some() {}
        let (mut words, mut tags, line) = (vec![], vec![], lines.peek()?.1);
        while let Some((text, number)) = lines.next_if(|(line, _)| !between(line)) {
            let mut fields: Vec<&str> = text.trim().split('\t').map(str::trim).collect();
            if fields.len() == 1 {
                fields = text.split_whitespace().collect();
            }
            let [word, .., tag] = fields[..] else {
                let expected = "a word and its tag, between tabs or spaces";
                return Some(Err(Error::file(path, format!("line {number}"), format!("{text:?}"), expected)));
            };
            words.push(Value::from(word));
            tags.push(Value::from(tag));
        }
        Some(Ok(Record { line, cells: vec![words.into(), tags.into()] }))
    });
    (vec!["tokens".to_string(), "tags".to_string()], Box::new(rows))
}

/// The line of a field whose quote is open at the end of the text, where the reader would take it for closed.
fn open_quote(text: &str) -> Option<usize> {
    enum Field {
        Start,
        Plain,
        Quoted(usize),
        /// A quote in a quoted field: its end, or the first of two that stand for one.
        Quote(usize),
    }
    let (mut field, mut line) = (Field::Start, 1);
    for byte in text.bytes() {
        field = match (field, byte) {
            (Field::Start, b'"') => Field::Quoted(line),
            (Field::Quoted(opened), b'"') => Field::Quote(opened),
            (Field::Quote(opened), b'"') | (Field::Quoted(opened), _) => Field::Quoted(opened),
            (_, b',' | b'\n') => Field::Start,
            _ => Field::Plain,
        };
        line += usize::from(byte == b'\n');
    }
    if let Field::Quoted(opened) = field { Some(opened) } else { None }
}

fn record(path: &Path, line: usize, width: usize, fields: Vec<String>) -> Result<Record> {
    if fields.len() != width {
        let expected = format!("{width}, one for each column");
        return Err(Error::file(path, format!("line {line}"), format!("{} fields", fields.len()), expected));
    }
    Ok(Record { line, cells: fields.into_iter().map(Value::String).collect() })
}

/// One JSON object a line; the columns are the keys of all of them.
fn jsonl<'a>(path: &'a Path, text: &'a str) -> Result<Parsed<'a>> {
    let lines = text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty());
    let (mut columns, mut known) = (Vec::new(), BTreeSet::new());
    for line in lines.clone() {
        let (line, Keys(keys)) = parse(path, line)?;
        if let Some(key) = repeated(&keys) {
            return Err(Error::file(path, format!("line {line}"), format!("the key {key:?} twice"), "distinct keys"));
        }
        columns.extend(keys.into_iter().filter(|key| known.insert(key.clone())));
        if columns.len() > MAX_KEYS {
            let found = format!("{} different keys so far", columns.len());
            return Err(Error::file(path, format!("line {line}"), found, format!("at most {MAX_KEYS}")));
        }
    }
    let names = columns.clone();
    let rows = lines.map(move |line| {
        let (line, mut object): (_, Map<String, Value>) = parse(path, line)?;
        let cells = names.iter().map(|name| object.get_mut(name).map_or(Value::Null, Value::take)).collect();
        Ok(Record { line, cells })
    });
    Ok((columns, Box::new(rows)))
}

fn parse<'a, T: Deserialize<'a>>(path: &Path, (text, line): (&'a str, usize)) -> Result<(usize, T)> {
    serde_json::from_str(text)
        .map(|object| (line, object))
        .map_err(|error| Error::file(path, format!("line {line}"), error, "a JSON object on a line of its own"))
}

fn repeated(names: &[String]) -> Option<&String> {
    let mut known = BTreeSet::new();
    names.iter().find(|name| !known.insert(*name))
}

/// The keys of a JSON object in the order of the text, repeated ones included.
struct Keys(Vec<String>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(KeyVisitor)
    }
}

struct KeyVisitor;

impl<'de> Visitor<'de> for KeyVisitor {
    type Value = Keys;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
        let mut keys = Vec::new();
        while let Some((key, IgnoredAny)) = map.next_entry()? {
            keys.push(key);
        }
        Ok(Keys(keys))
    }
}
