//! Whole files: read under a size limit, written all or nothing.

mod inputs;
#[cfg(feature = "load")]
mod manifest;
mod write;

use std::fmt;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;

use serde::de::{DeserializeOwned, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

pub use inputs::Inputs;
#[cfg(feature = "load")]
pub use manifest::{MANIFEST, Verified, check_replaceable, replace_directory, verify};
#[cfg(feature = "load")]
pub(crate) use manifest::{tell_changed, write_sealed};
#[cfg(feature = "train")]
pub(crate) use write::{LOCK, is_partial, remove_partial};
pub use write::{
    check_file, check_new_directory, hold, lock, remove_scratch, remove_unfinished, write_directory, write_file,
    write_parts,
};

use crate::{Error, Result};

/// The largest JSON file that is read, in bytes.
pub const MAX_JSON: u64 = 64 << 20;

/// Opens a regular file and tells its size. Anything else, such as a pipe, could block or never end.
pub(crate) fn open_regular(path: &Path) -> Result<(File, u64)> {
    let kind = path.metadata().map_err(Error::io("read", path))?;
    if !kind.is_file() {
        let found = if kind.is_dir() { "a directory" } else { "a special file" };
        return Err(Error::file(path, "file type", found, "a regular file"));
    }
    let mut file = File::open(path).map_err(Error::io("read", path))?;
    if kind.len() <= MAX_POINTER {
        refuse_pointer(path, &mut file)?;
    }
    Ok((file, kind.len()))
}

/// A pointer of Git LFS has at most so many bytes.
const MAX_POINTER: u64 = 1024;

/// Refuses the few lines that a checkout without Git LFS has in place of a large file.
fn refuse_pointer(path: &Path, file: &mut File) -> Result<()> {
    const FIRST: &[u8] = b"version https://git-lfs";
    let mut start = Vec::new();
    let read = file.take(FIRST.len() as u64).read_to_end(&mut start).and_then(|_| file.rewind());
    read.map_err(Error::io("read", path))?;
    if start == FIRST {
        let expected = "the file itself: `git lfs pull` in the repository that it is from brings it";
        return Err(Error::file(path, "content", "a pointer of Git LFS to the file", expected));
    }
    Ok(())
}

/// Reads a file of at most `limit` bytes.
pub fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let too_large =
        |size: u64| Error::file(path, "file size", format!("{size} bytes"), format!("at most {limit} bytes"));
    let (file, size) = open_regular(path)?;
    if size > limit {
        return Err(too_large(size));
    }
    // The file may have grown since it was measured.
    let mut bytes = Vec::with_capacity(size as usize);
    file.take(limit + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    if bytes.len() as u64 > limit {
        return Err(too_large(bytes.len() as u64));
    }
    Ok(bytes)
}

/// Reads a text's bytes: what stands behind the byte order mark that editors and spreadsheets put first. That of UTF-16 is refused.
fn read_marked(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let bytes = read_file(path, limit)?;
    match bytes[..] {
        [0xef, 0xbb, 0xbf, ..] => Ok(bytes[3..].to_vec()),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
            let expected = "UTF-8, as which an editor saves it, or `iconv -f UTF-16 -t UTF-8` writes it";
            Err(Error::file(path, "content", "a text in UTF-16", expected))
        }
        _ => Ok(bytes),
    }
}

/// Reads a text of at most `limit` bytes, without a byte order mark; the error names the line that is no UTF-8.
pub fn read_text(path: &Path, limit: u64) -> Result<String> {
    String::from_utf8(read_marked(path, limit)?).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + valid.iter().filter(|byte| **byte == b'\n').count();
        Error::file(path, format!("line {line}"), "bytes that are no text", "UTF-8")
    })
}

/// Reads a JSON file of at most [`MAX_JSON`] bytes; the error names the line and column. A key that stands twice in one
/// object is an error.
pub fn read_json(path: &Path) -> Result<Value> {
    parse_json::<Distinct>(path, "valid JSON").map(|Distinct(value)| value)
}

/// The largest file of JSON lines that is read, in bytes.
const MAX_LINES: u64 = 1 << 30;

/// Reads a file of at most 1 GiB with a JSON value on every line that is not blank: each with the number of its line, from 1.
/// A key that stands twice in one object is an error.
pub fn read_jsonl(path: &Path) -> Result<Vec<(usize, Value)>> {
    let text = read_text(path, MAX_LINES)?;
    let value = |(line, text): (usize, &str)| match serde_json::from_str(text) {
        Ok(Distinct(value)) => Ok((line, value)),
        Err(error) => Err(Error::file(path, format!("line {line}"), error, "a JSON value on a line of its own")),
    };
    let lines = (1..).zip(text.lines());
    lines.filter(|(_, text)| !text.trim().is_empty()).map(value).collect()
}

/// A JSON value whose objects have each key once; of equal keys `serde_json` would take the last in silence.
pub(crate) struct Distinct(pub(crate) Value);

impl<'de> Deserialize<'de> for Distinct {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Distinct;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }
            fn visit_unit<E>(self) -> Result<Distinct, E> {
                Ok(Distinct(Value::Null))
            }
            fn visit_bool<E>(self, value: bool) -> Result<Distinct, E> {
                Ok(Distinct(value.into()))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Distinct, E> {
                Ok(Distinct(value.into()))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Distinct, E> {
                Ok(Distinct(value.into()))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Distinct, E> {
                Ok(Distinct(value.into()))
            }
            fn visit_str<E>(self, value: &str) -> Result<Distinct, E> {
                Ok(Distinct(value.into()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Distinct, A::Error> {
                let mut list = Vec::new();
                while let Some(Distinct(item)) = items.next_element()? {
                    list.push(item);
                }
                Ok(Distinct(Value::Array(list)))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Distinct, A::Error> {
                let mut map = Map::new();
                while let Some((key, Distinct(value))) = entries.next_entry::<String, _>()? {
                    if map.contains_key(&key) {
                        return Err(A::Error::custom(format!("the key {key:?} stands twice")));
                    }
                    map.insert(key, value);
                }
                Ok(Distinct(Value::Object(map)))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

/// Like [`read_json`], into a type of its own.
pub(crate) fn parse_json<T: DeserializeOwned>(path: &Path, expected: &str) -> Result<T> {
    serde_json::from_slice(&read_marked(path, MAX_JSON)?).map_err(|error| {
        let place = format!("line {} column {}", error.line(), error.column());
        Error::file(path, place, error, expected)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_of_texts_are_passed_over_or_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text.json");
        for text in ["{\"a\": \"\u{e9}\"}\r\n", "{}", "7"] {
            for mark in ["", "\u{feff}"] {
                std::fs::write(&path, format!("{mark}{text}")).unwrap();
                assert_eq!(read_text(&path, 100).unwrap(), text);
                assert!(read_json(&path).is_ok() && read_jsonl(&path).is_ok());
            }
            let marked = format!("\u{feff}{text}");
            for bytes in [u16::to_le_bytes, u16::to_be_bytes] {
                std::fs::write(&path, marked.encode_utf16().flat_map(bytes).collect::<Vec<u8>>()).unwrap();
                let errors = [read_text(&path, 100).map(drop), read_json(&path).map(drop), read_jsonl(&path).map(drop)];
                for error in errors.map(|read| read.unwrap_err().to_string()) {
                    assert!(["text.json", "UTF-16", "iconv"].iter().all(|word| error.contains(word)), "{error}");
                }
            }
        }
    }
}
