use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use burn::tensor::{DType, TensorData};
use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, TensorInfo, TensorView};
use serde::Deserialize;
use serde_json::Value;

use super::checkpoint::{Entry, Source, Stored, check_count, check_name, map};
use super::index::Unique;
use crate::files::write_file;
use crate::{Error, Result};

/// Bytes of the header's length, which opens the file.
const LENGTH: usize = 8;
/// The longest header the format allows.
const MAX_HEADER: u64 = 100_000_000;

/// Maps a safetensors file and lists its tensors.
pub(super) fn open(path: &Path) -> Result<Vec<(String, Stored)>> {
    let map = map(path, LENGTH, "a safetensors file: 8 bytes of header length, the header, the tensors")?;
    let header = header(path, &map)?;
    let start = LENGTH + header.len();
    check_tensors(path, header, map.len() - start)?;

    let (_, metadata) = SafeTensors::read_metadata(&map).map_err(|error| match error {
        SafeTensorError::InvalidOffset(name) => Error::file(
            path,
            name,
            "data_offsets that overlap or leave a hole",
            "the place where the tensor before ends",
        ),
        SafeTensorError::MetadataIncompleteBuffer => Error::file(
            path,
            "file size",
            format!("{} bytes", map.len()),
            "the end of the file where the last tensor ends",
        ),
        error => Error::file(path, "header", error, "a safetensors header"),
    })?;
    let map = Arc::new(map);
    let path: Arc<Path> = path.into();
    let stored = metadata.tensors().into_iter().map(|(name, info)| {
        let entry = Entry { shape: info.shape.clone(), dtype: info.dtype.to_string() };
        let range = start + info.data_offsets.0..start + info.data_offsets.1;
        (name, Stored { path: path.clone(), entry, source: Source::Mapped(map.clone(), range) })
    });
    Ok(stored.collect())
}

fn header<'a>(path: &Path, file: &'a [u8]) -> Result<&'a [u8]> {
    let (length, rest) = file.split_first_chunk::<LENGTH>().unwrap_or((&[0; LENGTH], &[]));
    let length = u64::from_le_bytes(*length);
    let allowed = MAX_HEADER.min(rest.len() as u64);
    if length > allowed {
        let expected = format!("at most {allowed}, for a file of {} bytes; is it truncated?", file.len());
        return Err(Error::file(path, "header length", length, expected));
    }
    Ok(&rest[..length as usize])
}

/// Checks what the crate does not, and what it reports without the tensor's name.
fn check_tensors(path: &Path, header: &[u8], data: usize) -> Result<()> {
    let tensors: Unique<Value> = serde_json::from_slice(header)
        .map_err(|error| Error::file(path, "header", error, "a JSON object with one entry for each tensor"))?;
    check_count(path, tensors.0.len())?;
    for (name, value) in tensors.0.iter().filter(|(name, _)| name != "__metadata__") {
        check_name(path, name)?;
        let info = TensorInfo::deserialize(value)
            .map_err(|error| Error::file(path, name, error, "a dtype, a shape and data_offsets"))?;
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
    }
    Ok(())
}

/// Writes tensors of f32 (or of bytes) with the metadata that the Hugging Face libraries ask for, all or nothing.
///
/// The bytes depend on names, shapes and values only: the tensors lie sorted by name.
pub fn write_safetensors(path: &Path, tensors: &BTreeMap<String, TensorData>) -> Result<()> {
    let views = tensors.iter().map(|(name, data)| {
        let dtype = match data.dtype() {
            DType::F32 => Dtype::F32,
            DType::U8 => Dtype::U8,
            other => return Err(Error::file(path, name, format!("type {other:?}"), "type F32 or U8")),
        };
        let view = TensorView::new(dtype, data.shape().to_vec(), data.as_bytes());
        Ok((name, view.map_err(|error| Error::file(path, name, error, "as many values as the shape says"))?))
    });
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let bytes = safetensors::serialize(views.collect::<Result<Vec<_>>>()?, Some(metadata))
        .map_err(|error| Error::file(path, "header", error, "a header of at most 100 MB"))?;
    write_file(path, &bytes)
}
