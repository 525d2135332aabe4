use std::path::Path;
use std::sync::Arc;

use burn_pack::Reader;

use super::checkpoint::{Entry, Source, Stored};
use super::guard;
use crate::files::open_regular;
use crate::{Error, Result};

pub(super) const EXPECTED: &str = "a record as burn writes it";

/// Lists the tensors of a record of burn.
pub(super) fn open(path: &Path) -> Result<Vec<(String, Stored)>> {
    open_regular(path)?;
    let tensors = guard(path, "record", EXPECTED, || Reader::from_file_exact(path)?.into_tensors())?
        .map_err(|error| Error::file(path, "record", error, EXPECTED))?;
    let path: Arc<Path> = path.into();
    // The reader has compared shapes with sizes, and sizes with the file's.
    let stored = tensors.into_iter().map(|tensor| {
        let entry = Entry { shape: tensor.shape.to_vec(), dtype: format!("{:?}", tensor.dtype) };
        (tensor.name.clone(), Stored { path: path.clone(), entry, source: Source::Pack(tensor) })
    });
    Ok(stored.collect())
}
