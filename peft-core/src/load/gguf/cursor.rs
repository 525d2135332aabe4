use std::path::Path;

use super::value::{Array, Value};
use crate::{Error, Result};

/// How deep arrays may lie in arrays.
const MAX_DEPTH: usize = 4;

/// Reads little-endian values from the front of a file. Nothing is taken, counted or allocated that is not there.
pub(super) struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    /// The size of the file, of which the bytes may be the beginning.
    size: usize,
    /// Whether something was asked for that the file has behind the bytes.
    pub(super) short: bool,
    /// The place of the next byte.
    pub(super) at: usize,
    /// What is being read, for errors.
    pub(super) key: String,
}

impl<'a> Cursor<'a> {
    /// A cursor at a place in the first bytes of a file of this size; a place behind the end is an error of `key`.
    pub(super) fn new(path: &'a Path, (bytes, size): (&'a [u8], usize), at: usize, key: &str) -> Self {
        Cursor { path, bytes, size, short: false, at, key: key.to_string() }
    }

    /// How many bytes the file has from here.
    fn left(&self) -> usize {
        self.size.saturating_sub(self.at)
    }

    fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    pub(super) fn refuse(&self, found: impl ToString, expected: impl Into<String>) -> Error {
        Error::file(self.path, &self.key, found, expected)
    }

    fn take(&mut self, count: usize, what: &str) -> Result<&'a [u8]> {
        let Some(taken) = self.rest().get(..count) else {
            self.short |= count <= self.left();
            let found = format!("the end of the file after {} bytes", self.left());
            return Err(self.refuse(found, format!("{count} bytes of {what}; is the file truncated?")));
        };
        self.at += count;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let taken = self.take(N, what)?;
        Ok(std::array::from_fn(|i| taken[i]))
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A number of things, each of which takes at least `size` bytes of what follows.
    pub(super) fn count(&mut self, what: &str, size: usize, limit: usize) -> Result<usize> {
        let count = self.u64(what)?;
        let rest = self.left();
        let allowed = limit.min(rest / size);
        match usize::try_from(count) {
            Ok(count) if count <= allowed => Ok(count),
            _ => {
                let expected = format!("at most {allowed}, with {rest} bytes left in the file; is it truncated?");
                Err(self.refuse(format!("{count} {what}"), expected))
            }
        }
    }

    pub(super) fn text(&mut self, what: &str) -> Result<&'a str> {
        let length = self.count(&format!("bytes of {what}"), 1, usize::MAX)?;
        let bytes = self.take(length, what)?;
        std::str::from_utf8(bytes).map_err(|error| self.refuse(format!("{what} that is no text ({error})"), "UTF-8"))
    }

    /// A value with its type.
    pub(super) fn value(&mut self) -> Result<Value> {
        let kind = self.u32("a type")?;
        self.value_of(kind, 0)
    }

    fn value_of(&mut self, kind: u32, depth: usize) -> Result<Value> {
        Ok(match kind {
            0 => Value::Integer(self.array("a value").map(u8::from_le_bytes)?.into()),
            1 => Value::Integer(self.array("a value").map(i8::from_le_bytes)?.into()),
            2 => Value::Integer(self.array("a value").map(u16::from_le_bytes)?.into()),
            3 => Value::Integer(self.array("a value").map(i16::from_le_bytes)?.into()),
            4 => Value::Integer(self.u32("a value")?.into()),
            5 => Value::Integer(self.array("a value").map(i32::from_le_bytes)?.into()),
            6 => Value::Float(shortest(f32::from_le_bytes(self.array("a value")?))),
            7 => match self.array("a value")? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => return Err(self.refuse(format!("the byte {other}"), "0 or 1, for a bool")),
            },
            8 => Value::Text(self.text("a text")?.to_string()),
            9 => Value::Array(self.values(depth)?),
            10 => Value::Integer(self.u64("a value")?.into()),
            11 => Value::Integer(self.array("a value").map(i64::from_le_bytes)?.into()),
            12 => Value::Float(f64::from_le_bytes(self.array("a value")?)),
            _ => return Err(self.refuse(format!("type {kind}"), "a type from 0 (u8) to 12 (f64)")),
        })
    }

    /// Checks an array and steps over it; its elements are read when they are asked for.
    fn values(&mut self, depth: usize) -> Result<Array> {
        if depth == MAX_DEPTH {
            return Err(self.refuse("arrays in arrays", format!("at most {MAX_DEPTH} of them in one another")));
        }
        let kind = self.u32("an element type")?;
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => 12,
            _ => return Err(self.refuse(format!("elements of type {kind}"), "a type from 0 (u8) to 12 (f64)")),
        };
        let length = self.count("elements", size, usize::MAX)?;
        let start = self.at;
        match kind {
            7..=9 => {
                for _ in 0..length {
                    match kind {
                        8 => drop(self.text("a text")?),
                        _ => drop(self.value_of(kind, depth + 1)?),
                    }
                }
            }
            _ => drop(self.take(length * size, "elements")?),
        }
        Ok(Array { kind, length, start })
    }

    /// The elements of an array that was checked before.
    pub(super) fn elements(&mut self, array: &Array) -> impl Iterator<Item = Result<Value>> {
        (0..array.length).map(|_| self.value_of(array.kind, 0))
    }
}

/// The shortest decimal that gives this f32: 1e-5, where the exact value is 9.99999974e-6.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(value.into())
}
