use std::path::Path;

use serde_json::{Map, Value};

use crate::{Error, Result};

/// A file's rows under its column names, parsed one at a time.
pub(super) struct Table<'a> {
    pub(super) columns: Vec<String>,
    pub(super) rows: Box<dyn Iterator<Item = Result<Record>> + 'a>,
}

/// A row: one cell for each column, `Null` where a JSON object lacks the name.
pub(super) struct Record {
    pub(super) line: usize,
    pub(super) cells: Vec<Value>,
}

impl<'a> Table<'a> {
    /// Reads the column names and leaves the rows to be iterated. The extension tells the format.
    pub(super) fn parse(path: &'a Path, text: &'a str) -> Result<Self> {
        // Spreadsheets put a byte order mark first.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        if text.trim().is_empty() {
            return Err(Error::file(path, "content", "nothing", "a header line and rows, or JSON objects"));
        }
        let table = match path.extension().and_then(|extension| extension.to_str()) {
            Some("tsv") => tsv(path, text),
            Some("csv") => csv(path, text)?,
            Some("jsonl") => jsonl(path, text)?,
            _ => return Err(Error::file(path, "extension", "another one", "tsv, csv or jsonl")),
        };
        let twice = table.columns.iter().enumerate().find(|(place, name)| table.columns[..*place].contains(name));
        match twice {
            Some((_, name)) => Err(Error::file(path, "line 1", format!("the column {name:?} twice"), "distinct names")),
            None => Ok(table),
        }
    }

    /// The place of a column; the error lists the columns there are.
    pub(super) fn column(&self, path: &Path, name: &str) -> Result<usize> {
        self.columns.iter().position(|column| column == name).ok_or_else(|| {
            let found = format!("no such column among {:?}", self.columns);
            Error::file(path, format!("column {name:?}"), found, "a column of the file")
        })
    }
}

/// GLUE style: no quoting, so a quote is a character like any other.
fn tsv<'a>(path: &'a Path, text: &'a str) -> Table<'a> {
    let mut lines = text.lines().zip(1..);
    let split = |line: &str| line.split('\t').map(str::to_string).collect::<Vec<_>>();
    let columns = lines.next().map_or(Vec::new(), |(header, _)| split(header));
    let width = columns.len();
    let rows = lines.map(move |(line, number)| record(path, number, width, split(line)));
    Table { columns, rows: Box::new(rows) }
}

fn csv<'a>(path: &'a Path, text: &'a str) -> Result<Table<'a>> {
    let fail = move |error: csv::Error| {
        let line = error.position().map_or(1, csv::Position::line);
        Error::file(path, format!("line {line}"), error, "comma-separated fields")
    };
    // Rows of another length are reported below, in the words used for all formats.
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(text.as_bytes());
    let columns: Vec<String> = reader.headers().map_err(fail)?.iter().map(str::to_string).collect();
    let width = columns.len();
    let rows = reader.into_records().map(move |row| {
        let row = row.map_err(fail)?;
        let line = row.position().map_or(0, |position| position.line() as usize);
        record(path, line, width, row.iter().map(str::to_string).collect())
    });
    Ok(Table { columns, rows: Box::new(rows) })
}

fn record(path: &Path, line: usize, width: usize, fields: Vec<String>) -> Result<Record> {
    if fields.len() != width {
        let expected = format!("{width}, as in the header");
        return Err(Error::file(path, format!("line {line}"), format!("{} fields", fields.len()), expected));
    }
    Ok(Record { line, cells: fields.into_iter().map(Value::String).collect() })
}

/// One JSON object a line; the first names the columns.
fn jsonl<'a>(path: &'a Path, text: &'a str) -> Result<Table<'a>> {
    let parse = move |(text, line): (&str, usize)| {
        let object: Result<Map<String, Value>, _> = serde_json::from_str(text);
        object
            .map(|object| (line, object))
            .map_err(|error| Error::file(path, format!("line {line}"), error, "a JSON object on a line of its own"))
    };
    let lines = text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty());
    let first = lines.clone().next().map(parse).transpose()?;
    let columns: Vec<String> = first.map_or(Vec::new(), |(_, object)| object.keys().cloned().collect());
    let names = columns.clone();
    let rows = lines.map(move |line| {
        let (line, mut object) = parse(line)?;
        let cells = names.iter().map(|name| object.get_mut(name).map_or(Value::Null, Value::take)).collect();
        Ok(Record { line, cells })
    });
    Ok(Table { columns, rows: Box::new(rows) })
}
