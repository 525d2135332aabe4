//! GGUF, the file of llama.cpp: metadata, a tokenizer and tensors, most of them quantized, in one.

pub(super) mod adapter;
pub(super) mod blocks;
mod cursor;
mod llama;
mod tokenizer;
mod value;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Place;
use std::ffi::OsStr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use self::blocks::Blocks;
use self::blocks::KINDS;
use self::cursor::Cursor;
use self::value::Value;
use super::entry::{Entry, MAX_TENSORS, Stored, check_name};
use super::source::{Opened, Source};
use super::weights;
use crate::{Error, Result};

/// The most keys of metadata a file may hold.
const MAX_KEYS: usize = 100_000;
/// The most dimensions of a tensor.
const MAX_DIMS: u32 = 4;

/// So many bytes are read first; four times as many, if the metadata goes on behind them.
const HEAD: usize = 1 << 20;

/// A GGUF file: its metadata, and where its tensors lie, which are not yet read.
pub struct Gguf {
    path: Arc<Path>,
    file: Arc<Opened>,
    /// What stands in front of the tensors' data.
    head: Vec<u8>,
    metadata: Metadata,
    tensors: Tensors,
}

type Metadata = BTreeMap<String, Value>;
type Tensors = BTreeMap<String, (Entry, Range<usize>)>;

impl Gguf {
    /// Opens a file of version 2 or 3 and checks all of it but the values of its tensors.
    pub fn open(path: &Path) -> Result<Self> {
        let file = Opened::open(path, 24, "a GGUF file: the letters GGUF, a version, two counts, metadata, tensors")?;
        let file = Arc::new(file);
        let mut size = HEAD.min(file.size());
        loop {
            let head = file.read(0..size)?;
            let mut cursor = Cursor::new(path, (&head[..], file.size()), 0, "header");
            match Self::parse(path, &mut cursor) {
                Err(_) if cursor.short => size = (4 * size).min(file.size()),
                parsed => {
                    let (metadata, tensors) = parsed?;
                    let start = cursor.at;
                    let head = head[..start].to_vec();
                    let mut gguf = Gguf { path: path.into(), file, head, metadata, tensors };
                    gguf.place(start)?;
                    return Ok(gguf);
                }
            }
        }
    }

    fn parse(path: &Path, cursor: &mut Cursor) -> Result<(Metadata, Tensors)> {
        let magic: [u8; 4] = cursor.array("the letters GGUF")?;
        if magic != *b"GGUF" {
            return Err(cursor.refuse(format!("\"{}\"", magic.escape_ascii()), "the letters GGUF"));
        }
        let version = cursor.u32("a version")?;
        if !matches!(version, 2 | 3) {
            return Err(cursor.refuse(format!("version {version}"), "version 2 or 3, little-endian"));
        }
        // A tensor has at least a name's length, the number of dimensions, one of them, a type and an offset; a key at
        // least its length, a type and a byte.
        let tensor_count = cursor.count("tensors", 32, MAX_TENSORS)?;
        let key_count = cursor.count("keys", 13, MAX_KEYS)?;
        let metadata = metadata(cursor, path, key_count)?;
        Ok((metadata, tensors(cursor, path, tensor_count)?))
    }

    /// The GGUF file that `path` is or, as a directory, has as its only weights. Several are an error.
    pub fn find(path: &Path) -> Result<Option<PathBuf>> {
        let is_gguf = |path: &Path| path.extension() == Some(OsStr::new("gguf"));
        if !path.is_dir() {
            return Ok(is_gguf(path).then(|| path.to_path_buf()));
        }
        if weights(path).is_some() {
            return Ok(None);
        }
        let entries = path.read_dir().and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
        let paths = entries.map_err(Error::io("read", path))?.into_iter().map(|entry| entry.path());
        let mut found: Vec<_> = paths.filter(|path| is_gguf(path)).collect();
        found.sort();
        match &found[..] {
            [] => Ok(None),
            [one] => Ok(Some(one.clone())),
            [first, second, ..] => {
                let name = |path: &Path| path.file_name().unwrap_or_default().display().to_string();
                let several = format!("{} GGUF files, {} and {} among them", found.len(), name(first), name(second));
                Err(Error::file(path, "weights", several, "one; or name the file instead of its directory"))
            }
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The keys of the metadata, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(String::as_str)
    }

    /// Whether the metadata has this key.
    pub fn has(&self, key: &str) -> bool {
        self.metadata.contains_key(key)
    }

    /// A text of the metadata.
    pub fn text(&self, key: &str) -> Result<&str> {
        self.get(key, "a text", |value| if let Value::Text(text) = value { Some(text.as_str()) } else { None })
    }

    /// A number of the metadata that counts something.
    pub fn count(&self, key: &str) -> Result<usize> {
        self.get(key, "an integer of at least 0", |value| match value {
            Value::Integer(value) => usize::try_from(*value).ok(),
            _ => None,
        })
    }

    /// A finite number of the metadata; one of f32 as its shortest decimal, 1e-5 and not 9.99999974e-6.
    pub fn float(&self, key: &str) -> Result<f64> {
        self.get(key, "a finite floating-point number", |value| match value {
            Value::Float(value) => Some(*value).filter(|value| value.is_finite()),
            _ => None,
        })
    }

    /// A truth value of the metadata.
    pub fn flag(&self, key: &str) -> Result<bool> {
        self.get(key, "true or false", |value| if let Value::Bool(value) = value { Some(*value) } else { None })
    }

    /// An array of texts of the metadata.
    pub fn texts(&self, key: &str) -> Result<Vec<String>> {
        self.array(key, "an array of texts", |value| if let Value::Text(text) = value { Some(text) } else { None })
    }

    /// An array of numbers of the metadata, all finite.
    pub fn floats(&self, key: &str) -> Result<Vec<f64>> {
        self.array(key, "an array of finite floating-point numbers", |value| match value {
            Value::Float(value) => Some(value).filter(|value| value.is_finite()),
            _ => None,
        })
    }

    /// An array of integers of the metadata.
    pub fn integers(&self, key: &str) -> Result<Vec<i64>> {
        self.array(key, "an array of integers of 64 bits", |value| match value {
            Value::Integer(value) => i64::try_from(value).ok(),
            _ => None,
        })
    }

    /// What a getter gives for a key that may be missing.
    fn optional<'a, T>(&'a self, key: &str, get: impl FnOnce(&'a Self, &str) -> Result<T>) -> Result<Option<T>> {
        self.has(key).then(|| get(self, key)).transpose()
    }

    fn get<'a, T>(&'a self, key: &str, expected: &str, get: impl FnOnce(&'a Value) -> Option<T>) -> Result<T> {
        let value = self.metadata.get(key).ok_or_else(|| self.refuse(key, "nothing", expected))?;
        get(value).ok_or_else(|| self.refuse(key, value.describe(), expected))
    }

    fn array<T>(&self, key: &str, expected: &str, get: impl Fn(Value) -> Option<T>) -> Result<Vec<T>> {
        let array =
            self.get(key, expected, |value| if let Value::Array(array) = value { Some(array) } else { None })?;
        let mut cursor = Cursor::new(&self.path, (&self.head[..], self.head.len()), array.start, key);
        let take = |(i, value): (usize, Result<Value>)| {
            let value = value?;
            let found = value.describe();
            get(value).ok_or_else(|| self.refuse(key, format!("{found} as element {i}"), expected))
        };
        cursor.elements(array).enumerate().map(take).collect()
    }

    fn refuse(&self, key: &str, found: impl ToString, expected: impl Into<String>) -> Error {
        Error::file(&self.path, key, found, expected)
    }

    /// Moves the tensors from offsets to places in the file, whose data begin at the first aligned byte from `start`.
    fn place(&mut self, start: usize) -> Result<()> {
        let align = self.optional("general.alignment", Self::count)?.unwrap_or(32);
        if !align.is_power_of_two() || align > 1 << 16 {
            return Err(self.refuse("general.alignment", align, "a power of two up to 65536"));
        }
        let start = start.next_multiple_of(align);
        let data = self.file.size().saturating_sub(start);
        for (name, (_, range)) in &mut self.tensors {
            let bytes = range.len();
            if range.start % align != 0 {
                let found = format!("the offset {}", range.start);
                return Err(Error::file(&self.path, name, found, format!("a multiple of {align}, the alignment")));
            }
            if start.checked_add(range.end).is_none_or(|end| end > self.file.size()) {
                let found = format!("{bytes} bytes at the offset {}", range.start);
                let expected = format!("a place within the {data} bytes of data; is the file truncated?");
                return Err(Error::file(&self.path, name, found, expected));
            }
            *range = start + range.start..start + range.end;
        }
        let mut placed: Vec<_> = self.tensors.iter().map(|(name, (_, range))| (range.start, range.end, name)).collect();
        placed.sort();
        for pair in placed.windows(2) {
            let ((_, end, first), (begin, _, second)) = (pair[0], pair[1]);
            if begin < end {
                let expected = format!("a place behind the tensor {first}, in which it begins");
                return Err(self.refuse(second, format!("the offset {}", begin - start), expected));
            }
        }
        Ok(())
    }

    /// All tensors, with names and rows as in the file.
    pub(super) fn tensors(&self) -> Vec<(String, Stored)> {
        let stored = self.tensors.iter().map(|(name, (entry, range))| {
            let source = Source::File(self.file.clone(), range.clone());
            (name.clone(), Stored { path: self.path.clone(), entry: entry.clone(), source })
        });
        stored.collect()
    }
}

fn metadata(cursor: &mut Cursor, path: &Path, count: usize) -> Result<Metadata> {
    let mut metadata = BTreeMap::new();
    for i in 0..count {
        cursor.key = format!("key {i} of {count}");
        let key = cursor.text("a key")?.to_string();
        check_name(path, &key)?;
        cursor.key.clone_from(&key);
        let value = cursor.value()?;
        if metadata.insert(key, value).is_some() {
            return Err(cursor.refuse("a second value of this key", "one value for each key"));
        }
    }
    Ok(metadata)
}

/// The tensors with their offsets, which are not checked yet.
fn tensors(cursor: &mut Cursor, path: &Path, count: usize) -> Result<Tensors> {
    let mut tensors = BTreeMap::new();
    for i in 0..count {
        cursor.key = format!("tensor {i} of {count}");
        let name = cursor.text("a name")?.to_string();
        check_name(path, &name)?;
        cursor.key.clone_from(&name);
        let tensor = tensor(cursor)?;
        match tensors.entry(name) {
            Place::Vacant(place) => place.insert(tensor),
            Place::Occupied(_) => {
                return Err(cursor.refuse("a second tensor of this name", "one tensor for each name"));
            }
        };
    }
    Ok(tensors)
}

fn tensor(cursor: &mut Cursor) -> Result<(Entry, Range<usize>)> {
    let dims = cursor.u32("a number of dimensions")?;
    if !(1..=MAX_DIMS).contains(&dims) {
        return Err(cursor.refuse(format!("{dims} dimensions"), format!("1 to {MAX_DIMS}")));
    }
    let dims = (0..dims).map(|_| cursor.u64("a dimension")).collect::<Result<Vec<_>>>()?;
    if dims.contains(&0) {
        return Err(cursor.refuse(format!("the dimensions {dims:?}"), "dimensions of at least 1"));
    }
    let id = cursor.u32("an element type")?;
    let Some(kind) = KINDS.iter().find(|kind| kind.id == id) else {
        let known = KINDS.map(|kind| format!("{} ({})", kind.id, kind.name)).join(", ");
        return Err(cursor.refuse(format!("element type {id}"), format!("one of {known}")));
    };
    let offset = cursor.u64("an offset")?;
    // The fastest dimension comes first.
    let shape = dims.iter().rev().map(|dim| usize::try_from(*dim).ok()).collect::<Option<Vec<_>>>();
    let elements =
        shape.as_ref().and_then(|shape| shape.iter().try_fold(1usize, |all, extent| all.checked_mul(*extent)));
    let (Some(shape), Some(elements)) = (shape, elements) else {
        return Err(cursor.refuse(format!("the dimensions {dims:?}"), "a tensor that fits memory"));
    };
    let row = shape.last().copied().unwrap_or(1);
    if row % kind.elements != 0 {
        let expected = format!("a multiple of {}, the elements of a block of {}", kind.elements, kind.name);
        return Err(cursor.refuse(format!("rows of {row} elements"), expected));
    }
    let bytes = (elements / kind.elements).checked_mul(kind.bytes);
    let range =
        usize::try_from(offset).ok().zip(bytes).and_then(|(start, bytes)| Some(start..start.checked_add(bytes)?));
    let Some(range) = range else {
        let found = format!("the dimensions {dims:?} at the offset {offset}");
        return Err(cursor.refuse(found, "a place in the file"));
    };
    Ok((Entry { shape, dtype: kind.name.to_string() }, range))
}
