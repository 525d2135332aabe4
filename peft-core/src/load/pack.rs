use std::path::Path;
use std::sync::Arc;

use burn::tensor::DType;
use burn_pack::{
    FORMAT_VERSION, HEADER_SIZE, Header, MAX_CBOR_RECURSION_DEPTH, MAX_METADATA_SIZE, TENSOR_ALIGNMENT,
    aligned_data_section_start,
};
use serde::Deserialize;

use super::entry::{Entry, Stored, Unique, check_count, check_name};
use super::source::{Opened, Source};
use crate::{Error, Result};

const EXPECTED: &str = "a record as burn writes it";

#[derive(Deserialize)]
struct Metadata {
    tensors: Unique<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    dtype: DType,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// Lists the tensors of a record of burn: they fill the file one behind the other, each from the next aligned byte on.
pub(super) fn open(path: &Path) -> Result<Vec<(String, Stored)>> {
    let file = Arc::new(Opened::open(path, HEADER_SIZE, EXPECTED)?);
    let header = Header::from_bytes(&file.read(0..HEADER_SIZE)?)
        .map_err(|error| Error::file(path, "record", error, EXPECTED))?;
    if header.version > FORMAT_VERSION {
        let expected = format!("version {FORMAT_VERSION} of the format or an earlier one");
        return Err(Error::file(path, "record", format!("version {}", header.version), expected));
    }
    let (size, rest) = (header.metadata_size as usize, file.size() - HEADER_SIZE);
    if size > rest.min(MAX_METADATA_SIZE as usize) {
        let expected = format!("at most {}, for a file of {} bytes", rest.min(MAX_METADATA_SIZE as usize), file.size());
        return Err(Error::file(path, "metadata size", size, expected));
    }
    let tensors = tensors(path, &file.read(HEADER_SIZE..HEADER_SIZE + size)?)?;
    let first = aligned_data_section_start(size);
    let mut filled = HEADER_SIZE + size;
    let mut stored = Vec::with_capacity(tensors.len());
    for (name, Descriptor { dtype, shape, data_offsets: (start, end) }) in tensors {
        check_name(path, &name)?;
        let bytes = shape.iter().try_fold(dtype.size(), |bytes, extent| bytes.checked_mul(*extent));
        // The packed values of a quantized tensor have other sizes.
        if end < start || !matches!(dtype, DType::QFloat(_)) && bytes != Some(end - start) {
            let found = format!("data_offsets [{start}, {end}] for {dtype:?} of shape {shape:?}");
            let expected = bytes.map_or("a shape that fits memory".into(), |bytes| format!("{bytes} bytes"));
            return Err(Error::file(path, name, found, expected));
        }
        let place = filled.next_multiple_of(TENSOR_ALIGNMENT as usize).max(first);
        let (Some(start), Some(end)) = (first.checked_add(start), first.checked_add(end)) else {
            return Err(Error::file(path, name, format!("data_offsets [{start}, {end}]"), "a place in the file"));
        };
        if start != place || end > file.size() {
            let found = format!("bytes {start} to {end} of a file of {}", file.size());
            let expected =
                format!("{place}, the next aligned byte, to at most the end of the record; is it truncated?");
            return Err(Error::file(path, name, found, expected));
        }
        if file.read(filled..start)?.iter().any(|byte| *byte != 0) {
            let expected = "zeros: has something been inserted?";
            return Err(Error::file(path, name, format!("other bytes from {filled} to {start} before it"), expected));
        }
        filled = end;
        let entry = Entry { shape, dtype: format!("{dtype:?}") };
        stored
            .push((name, Stored { path: file.path().clone(), entry, source: Source::File(file.clone(), start..end) }));
    }
    if file.size() != filled.max(first) {
        let expected = format!("{}, where the last tensor ends", filled.max(first));
        return Err(Error::file(path, "file size", format!("{} bytes", file.size()), expected));
    }
    Ok(stored)
}

/// What the metadata say of each tensor, in the order of their places.
fn tensors(path: &Path, mut metadata: &[u8]) -> Result<Vec<(String, Descriptor)>> {
    let parsed: Metadata = ciborium::de::from_reader_with_recursion_limit(&mut metadata, MAX_CBOR_RECURSION_DEPTH)
        .map_err(|error| Error::file(path, "metadata", error, EXPECTED))?;
    if !metadata.is_empty() {
        return Err(Error::file(path, "metadata", format!("{} bytes behind its end", metadata.len()), "none"));
    }
    let mut tensors = parsed.tensors.0;
    check_count(path, tensors.len())?;
    tensors.sort_by_key(|(_, tensor)| tensor.data_offsets);
    Ok(tensors)
}
