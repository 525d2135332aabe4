//! Fetching a model from the Hugging Face hub into its local cache.

use std::path::PathBuf;

use hf_hub::api::sync::Api;
use hf_hub::{Repo, RepoType};

use super::index;
use crate::{Error, Result};

/// Downloads what a model directory needs, unless the cache has it, and returns the folder of this revision:
/// `config.json`, the weights in safetensors (one file or shards) and, where the model has one, `tokenizer.json`.
pub fn fetch(id: &str) -> Result<PathBuf> {
    let failed = |error: hf_hub::api::sync::ApiError| Error::io("download", id)(std::io::Error::other(error));
    let api = Api::new().map_err(failed)?;
    let info = api.model(id.to_string()).info().map_err(failed)?;
    // One revision for all files, even if the branch moves meanwhile.
    let repo = api.repo(Repo::with_revision(id.to_string(), RepoType::Model, info.sha));
    let has = |name: &str| info.siblings.iter().any(|file| file.rfilename == name);

    let config = repo.get("config.json").map_err(failed)?;
    if has("tokenizer.json") {
        repo.get("tokenizer.json").map_err(failed)?;
    }
    if has("model.safetensors") {
        repo.get("model.safetensors").map_err(failed)?;
    } else {
        let index = repo.get("model.safetensors.index.json").map_err(failed)?;
        for shard in index::read(&index)?.files() {
            repo.get(shard).map_err(failed)?;
        }
    }
    Ok(config.parent().map(PathBuf::from).unwrap_or_default())
}
