use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use burn::tensor::{DType, TensorData};
use safetensors::tensor::{Dtype, TensorInfo, TensorView};
use serde::Deserialize;
use serde_json::Value;

use super::entry::{Entry, Stored, Unique, check_count, check_name};
use super::source::{Opened, Source};
use crate::files::write_file;
use crate::{Error, Result};

/// Bytes of the header's length, which opens the file.
const LENGTH: usize = 8;
/// The longest header the format allows.
const MAX_HEADER: u64 = 100_000_000;

/// Lists the tensors of a safetensors file.
pub(super) fn open(path: &Path) -> Result<Vec<(String, Stored)>> {
    let file = Opened::open(path, LENGTH, "a safetensors file: 8 bytes of header length, the header, the tensors")?;
    let header = header(&file)?;
    let start = LENGTH + header.len();
    let tensors = tensors(path, &header, file.size() - start)?;
    let file = Arc::new(file);
    let stored = tensors.into_iter().map(|(name, info)| {
        let entry = Entry { shape: info.shape, dtype: info.dtype.to_string() };
        let range = start + info.data_offsets.0..start + info.data_offsets.1;
        (name, Stored { path: file.path().clone(), entry, source: Source::File(file.clone(), range) })
    });
    Ok(stored.collect())
}

fn header(file: &Opened) -> Result<Vec<u8>> {
    let length = file.read(0..LENGTH)?.into_iter().rev().fold(0, |all, byte| all << 8 | u64::from(byte));
    let allowed = MAX_HEADER.min((file.size() - LENGTH) as u64);
    if length > allowed {
        let expected = format!("at most {allowed}, for a file of {} bytes; is it truncated?", file.size());
        return Err(Error::file(file.path(), "header length", length, expected));
    }
    file.read(LENGTH..LENGTH + length as usize)
}

/// What the header says of each tensor: they fill the bytes of data one behind the other.
fn tensors(path: &Path, header: &[u8], data: usize) -> Result<Vec<(String, TensorInfo)>> {
    let entries: Unique<Value> = serde_json::from_slice(header)
        .map_err(|error| Error::file(path, "header", error, "a JSON object with one entry for each tensor"))?;
    check_count(path, entries.0.len())?;
    let mut tensors = Vec::with_capacity(entries.0.len());
    for (name, value) in entries.0.into_iter().filter(|(name, _)| name != "__metadata__") {
        check_name(path, &name)?;
        let info = TensorInfo::deserialize(value)
            .map_err(|error| Error::file(path, &name, error, "a dtype, a shape and data_offsets"))?;
        let (start, end) = info.data_offsets;
        if start > end || end > data {
            let expected = format!("a range within the {data} bytes of data; is the file truncated?");
            return Err(Error::file(path, name, format!("data_offsets [{start}, {end}]"), expected));
        }
        let bits = info.shape.iter().try_fold(info.dtype.bitsize(), |bits, &extent| bits.checked_mul(extent));
        if bits != (end - start).checked_mul(8) {
            let expected = bits.map_or("a shape that fits memory".into(), |bits| format!("{} bytes", bits.div_ceil(8)));
            let found = format!("{} bytes for {} of shape {:?}", end - start, info.dtype, info.shape);
            return Err(Error::file(path, name, found, expected));
        }
        tensors.push((name, info));
    }
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let mut filled = 0;
    for (name, info) in &tensors {
        if info.data_offsets.0 != filled {
            let found = "data_offsets that overlap or leave a hole";
            return Err(Error::file(path, name, found, "the place where the tensor before ends"));
        }
        filled = info.data_offsets.1;
    }
    if filled != data {
        let found = format!("{} bytes", LENGTH + header.len() + data);
        return Err(Error::file(path, "file size", found, "the end of the file where the last tensor ends"));
    }
    Ok(tensors)
}

/// Writes tensors of f32 (or of bytes or indices) with the metadata that the Hugging Face libraries ask for, all or nothing.
///
/// The bytes depend on names, shapes and values only: the tensors lie sorted by name.
pub fn write_safetensors(path: &Path, tensors: &BTreeMap<String, TensorData>) -> Result<()> {
    let views = tensors.iter().map(|(name, data)| {
        let dtype = match data.dtype() {
            DType::F32 => Dtype::F32,
            DType::U8 => Dtype::U8,
            DType::I32 => Dtype::I32,
            DType::I64 => Dtype::I64,
            other => return Err(Error::file(path, name, format!("type {other:?}"), "type F32, U8, I32 or I64")),
        };
        let view = TensorView::new(dtype, data.shape().to_vec(), data.as_bytes());
        Ok((name, view.map_err(|error| Error::file(path, name, error, "as many values as the shape says"))?))
    });
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let bytes = safetensors::serialize(views.collect::<Result<Vec<_>>>()?, Some(metadata))
        .map_err(|error| Error::file(path, "header", error, "a header of at most 100 MB"))?;
    write_file(path, &bytes)
}
