use std::path::Path;
use std::sync::Arc;

use pytorch_reader::PytorchReader;

use super::entry::{Entry, Stored};
use super::guard;
use super::source::Source;
use crate::files::open_regular;
use crate::{Error, Result};

pub(super) const EXPECTED: &str = "a state dict as torch.save writes it";

/// Lists the tensors of a torch pickle. The reader interprets the few opcodes and classes that tensors need and refuses
/// the rest: nothing in the file is ever executed.
pub(super) fn open(path: &Path) -> Result<Vec<(String, Stored)>> {
    open_regular(path)?;
    let reader = guard(path, "pickle", EXPECTED, || PytorchReader::new(path))?
        .map_err(|error| Error::file(path, "pickle", error, EXPECTED))?;
    let path: Arc<Path> = path.into();
    let stored = reader.into_tensors().into_iter().map(|(name, tensor)| {
        // Both crates name the types alike.
        let entry = Entry { shape: tensor.shape().to_vec(), dtype: format!("{:?}", tensor.dtype()) };
        (name, Stored { path: path.clone(), entry, source: Source::Torch(tensor) })
    });
    Ok(stored.collect())
}
