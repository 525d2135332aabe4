use std::collections::BTreeMap;
use std::collections::btree_map;
use std::path::{Path, PathBuf};

use burn::tensor::TensorData;
use half::{bf16, f16};

use super::entry::{Entry, Stored, check_count, check_name};
use super::gguf::{Blocks, blocks};
use super::source::{Source, halves};
use super::{guard, torch};
use crate::{Error, Result};

/// Named tensors of a model or adapter directory, not yet read.
///
/// A file that is cut or changed in place while the checkpoint is open is an error when one of its tensors is read. Replacing it by
/// renaming another file over it, as everything here writes, is fine.
pub struct Checkpoint {
    path: PathBuf,
    tensors: BTreeMap<String, Stored>,
    /// Tensors that an index lists and no shard holds, with the shards that it names.
    pub(super) absent: BTreeMap<String, String>,
}

impl Checkpoint {
    pub(super) fn gather(path: PathBuf, stored: impl IntoIterator<Item = (String, Stored)>) -> Result<Self> {
        let mut tensors: BTreeMap<String, Stored> = BTreeMap::new();
        for (name, tensor) in stored {
            check_name(&tensor.path, &name)?;
            match tensors.entry(name) {
                btree_map::Entry::Vacant(place) => place.insert(tensor),
                btree_map::Entry::Occupied(first) => {
                    let found = format!("a second tensor of this name, the first is in {}", first.get().path.display());
                    return Err(Error::file(&tensor.path, first.key(), found, "one tensor for each name"));
                }
            };
        }
        check_count(&path, tensors.len())?;
        Ok(Checkpoint { path, tensors, absent: BTreeMap::new() })
    }

    /// The file or index that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The names of tensors that an index of shards lists, but no shard holds, sorted.
    pub fn absent(&self) -> impl Iterator<Item = &str> {
        self.absent.keys().map(String::as_str)
    }

    /// Gives a tensor another name. Nothing happens without a tensor of the first name, or if one has the second.
    pub fn rename(&mut self, from: &str, to: impl Into<String>) {
        let to = to.into();
        if !self.tensors.contains_key(&to)
            && let Some(tensor) = self.tensors.remove(from)
        {
            self.tensors.insert(to, tensor);
        }
    }

    /// Puts a tensor in, in memory.
    pub fn put(&mut self, name: String, data: TensorData) {
        let entry = Entry { shape: data.shape().to_vec(), dtype: "F32".into() };
        let source = Source::Memory(data.iter::<f32>().flat_map(f32::to_le_bytes).collect());
        self.tensors.insert(name, Stored { path: self.path.as_path().into(), entry, source });
    }

    /// Takes a tensor out.
    pub fn remove(&mut self, name: &str) {
        self.tensors.remove(name);
    }

    /// Shape and element type of a tensor, if there is one of this name.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.tensors.get(name).map(|stored| &stored.entry)
    }

    /// Shape of a tensor, if there is one of this name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entry(name).map(|entry| entry.shape.as_slice())
    }

    /// The file that holds a tensor; for an unknown name the file or index that was opened.
    pub fn path_of(&self, name: &str) -> &Path {
        self.tensors.get(name).map_or(&self.path, |stored| &stored.path)
    }

    /// Reads a tensor of floating-point numbers (F32, F16, BF16, F64 or blocks of GGUF) of the expected shape as f32.
    ///
    /// A value that is not finite is an error: no trained weight is, and one of them spoils every output.
    pub fn read_f32(&self, name: &str, expected_shape: &[usize]) -> Result<TensorData> {
        let stored = self.get(name, || format!("a tensor of shape {expected_shape:?}"))?;
        let Entry { shape, dtype } = &stored.entry;
        if shape != expected_shape {
            let expected = format!("shape {expected_shape:?}");
            return Err(Error::file(&stored.path, name, format!("shape {shape:?}"), expected));
        }
        let mut values: Vec<f32> = Vec::with_capacity(shape.iter().product());
        // The bytes that are decoded at least.
        let mut read = |unit: usize, decode: &dyn Fn(&[u8]) -> Vec<f32>| {
            stored.source.pieces(unit, |bytes| values.extend(decode(bytes)), || stored.bytes(name))
        };
        match (dtype.as_str(), blocks::quantized(dtype)) {
            (_, Some(kind)) => read(kind.unit(), &|bytes| kind.decoded(bytes))?,
            ("F32", _) => read(4, &|bytes| decode(bytes, f32::from_le_bytes))?,
            ("F16", _) => read(2, &|bytes| decode(bytes, |value| f16::from_le_bytes(value).to_f32()))?,
            ("BF16", _) => read(2, &|bytes| decode(bytes, |value| bf16::from_le_bytes(value).to_f32()))?,
            ("F64", _) => read(8, &|bytes| decode(bytes, |value| f64::from_le_bytes(value) as f32))?,
            _ => return Err(Error::file(&stored.path, name, format!("type {dtype}"), "type F32, F16, BF16 or F64")),
        }
        if let Some(place) = values.iter().position(|value| !value.is_finite()) {
            let found = format!("{} at element {place}", values[place]);
            return Err(Error::file(&stored.path, name, found, "finite numbers of the range of f32"));
        }
        Ok(TensorData::new(values, shape.clone()))
    }

    /// A matrix that is stored in blocks of GGUF, as it is; none, if it is stored otherwise.
    ///
    /// # Errors
    /// If a scale is not finite.
    pub fn read_blocks(&self, name: &str) -> Result<Option<Blocks>> {
        let Some(Stored { path, entry: Entry { shape, dtype }, .. }) = self.tensors.get(name) else { return Ok(None) };
        match shape[..] {
            [rows, columns] if blocks::quantized(dtype).is_some() => {
                let blocks = Blocks::new(dtype, [rows, columns], self.bytes(name)?);
                blocks.map(Some).map_err(|error| error.of(name).in_file(path))
            }
            _ => Ok(None),
        }
    }

    /// Reads a tensor of integers (I64 or I32): its shape and its values.
    pub fn read_i64(&self, name: &str) -> Result<(Vec<usize>, Vec<i64>)> {
        let stored = self.get(name, || "a tensor of integers".to_string())?;
        let Entry { shape, dtype } = &stored.entry;
        let decode: fn(&[u8]) -> Vec<i64> = match dtype.as_str() {
            "I64" => |bytes| decode(bytes, i64::from_le_bytes),
            "I32" => |bytes| decode(bytes, |value| i32::from_le_bytes(value).into()),
            _ => return Err(Error::file(&stored.path, name, format!("type {dtype}"), "type I64 or I32")),
        };
        Ok((shape.clone(), decode(&stored.bytes(name)?)))
    }

    /// Reads a tensor of integers (I64 or I32) of the expected shape.
    pub fn read_indices(&self, name: &str, expected_shape: &[usize]) -> Result<TensorData> {
        let (shape, values) = self.read_i64(name)?;
        if shape != expected_shape {
            let expected = format!("shape {expected_shape:?}");
            return Err(Error::file(self.path_of(name), name, format!("shape {shape:?}"), expected));
        }
        Ok(TensorData::new(values, shape))
    }

    /// The bytes of a tensor as its file holds them.
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        self.get(name, || "a tensor".to_string())?.bytes(name)
    }

    fn get(&self, name: &str, expected: impl FnOnce() -> String) -> Result<&Stored> {
        self.tensors.get(name).ok_or_else(|| match self.absent.get(name) {
            None => Error::file(&self.path, name, "no tensor of this name", expected()),
            Some(shard) => {
                let expected = format!("this tensor in the shard {shard}, where the index places it");
                Error::file(&self.path, name, "no such tensor there", expected)
            }
        })
    }
}

impl Stored {
    fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        match &self.source {
            Source::File(file, range) => file.read(range.clone()),
            Source::Interleaved(file, range, heads) => {
                Ok(halves(&file.read(range.clone())?, self.entry.shape[0], *heads))
            }
            Source::Memory(bytes) => Ok(bytes.clone()),
            Source::Torch(tensor) => guard(&self.path, name, torch::EXPECTED, || tensor.read())?
                .map_err(|error| Error::file(&self.path, name, error, torch::EXPECTED)),
        }
    }
}

fn decode<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks().0.iter().map(|value| read(*value)).collect()
}
