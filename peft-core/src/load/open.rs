//! Opening checkpoints, in whichever format they are.

use std::path::Path;

use super::checkpoint::Checkpoint;
use super::entry::Stored;
use super::gguf::Gguf;
use super::{WEIGHTS, index, pack, safetensors, torch, weights};
use crate::{Error, Result};

impl Checkpoint {
    /// Whether a model directory has weights of any kind.
    pub fn is_in(dir: &Path) -> bool {
        weights(dir).is_some()
    }

    /// Opens the weights of a model directory: `model.safetensors`, else the shards that `model.safetensors.index.json`
    /// lists, else the same for `pytorch_model.bin`, else its one `.gguf`; or a `.gguf` file.
    ///
    /// The tensors of a GGUF file get the names, and rows the order, that they have in Hugging Face transformers.
    pub fn open_model(dir: &Path) -> Result<Self> {
        if let Some(path) = Gguf::find(dir)? {
            return Self::from_gguf(&Gguf::open(&path)?);
        }
        let Some(name) = weights(dir) else {
            return Err(Error::file(dir, "weights", "none", format!("one of {}, or a .gguf file", WEIGHTS.join(", "))));
        };
        let path = dir.join(name);
        if !name.ends_with(".index.json") {
            return Self::open_file(&path);
        }
        let index = index::read(&path)?;
        let shards = index.paths()?.iter().map(|path| open(path)).collect::<Result<Vec<_>>>()?;
        let mut checkpoint = Self::gather(path, shards.into_iter().flatten())?;
        checkpoint.absent = index.absent(&checkpoint);
        Ok(checkpoint)
    }

    /// Opens one file: safetensors, a torch pickle if its name ends in `.bin`, `.pt` or `.pth`, a record of burn
    /// if it ends in `.bpk`, or a GGUF file if it ends in `.gguf`, with names and rows as they stand there.
    pub fn open_file(path: &Path) -> Result<Self> {
        Self::gather(path.to_path_buf(), open(path)?)
    }

    /// The tensors of a model in GGUF, with names and rows as in Hugging Face transformers.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        Self::gather(gguf.path().to_path_buf(), gguf.model_tensors()?)
    }
}

fn open(path: &Path) -> Result<Vec<(String, Stored)>> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("bin" | "pt" | "pth") => torch::open(path),
        Some("bpk") => pack::open(path),
        Some("gguf") => Ok(Gguf::open(path)?.tensors()),
        _ => safetensors::open(path),
    }
}
