use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use super::checkpoint::Checkpoint;
use super::entry::Unique;
use crate::files::parse_json;
use crate::warning::{listed, warn};
use crate::{Error, Result};

/// Which shard holds which tensor.
pub(super) struct Index {
    path: PathBuf,
    shards: Vec<(String, String)>,
}

#[derive(serde::Deserialize)]
struct IndexFile {
    weight_map: Unique<String>,
}

/// Reads a shard index, whose shards can only be files of its own folder.
pub(super) fn read(path: &Path) -> Result<Index> {
    let file: IndexFile = parse_json(path, "an object whose weight_map gives each tensor's shard")?;
    let index = Index { path: path.to_path_buf(), shards: file.weight_map.0 };
    match index.shards.iter().find(|(_, shard)| !is_plain(shard)) {
        Some((tensor, shard)) => Err(index.refuse(tensor, shard, "the plain name of a file beside the index")),
        None => Ok(index),
    }
}

impl Index {
    /// The shards, each once, sorted.
    #[cfg(feature = "hub")]
    pub(super) fn files(&self) -> std::collections::BTreeSet<&str> {
        self.shards.iter().map(|(_, shard)| shard.as_str()).collect()
    }

    /// The paths of the shards, each of which is there and inside the folder.
    pub(super) fn paths(&self) -> Result<Vec<PathBuf>> {
        // An index opened by its bare name lies in the current folder.
        let folder = match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let real = |path: &Path| path.canonicalize().map_err(Error::io("read", path));
        let root = real(folder)?;
        let first: BTreeMap<_, _> = self.shards.iter().rev().map(|(tensor, shard)| (shard, tensor)).collect();
        let check = |(shard, tensor): (&String, &String)| {
            let path = folder.join(shard);
            if path.symlink_metadata().is_err() {
                return Err(self.refuse(tensor, shard, "a file beside the index; this shard is missing"));
            }
            let target = real(&path)?;
            if target.starts_with(&root) || hub_blobs(&root).is_some_and(|blobs| target.starts_with(blobs)) {
                return Ok(path);
            }
            Err(self.refuse(tensor, shard, "a file of the folder; this one is a link that leaves it"))
        };
        first.into_iter().map(check).collect()
    }

    /// The tensors that no shard holds, each with the shard that the index names. One that lies in another is said.
    pub(super) fn absent(self, checkpoint: &Checkpoint) -> BTreeMap<String, String> {
        let (held, absent): (Vec<_>, Vec<_>) =
            self.shards.into_iter().partition(|(tensor, _)| checkpoint.entry(tensor).is_some());
        let elsewhere =
            |(tensor, shard): &&(String, String)| checkpoint.path_of(tensor).file_name() != Some(shard.as_ref());
        let elsewhere: Vec<&str> = held.iter().filter(elsewhere).map(|(tensor, _)| tensor.as_str()).collect();
        if !elsewhere.is_empty() {
            warn(&self.path, "weight_map", format!("other shards than it says hold {}", listed(&elsewhere)));
        }
        absent.into_iter().collect()
    }

    fn refuse(&self, tensor: &str, shard: &str, expected: &str) -> Error {
        Error::file(&self.path, format!("weight_map.{tensor}"), format!("{shard:?}"), expected)
    }
}

/// Whether a name can only mean a file of the folder it is looked up in.
fn is_plain(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) && !name.contains(['/', '\\', '\0'])
}

/// The hub's cache keeps files under `blobs` and links to them from `snapshots/<revision>`.
fn hub_blobs(folder: &Path) -> Option<PathBuf> {
    let snapshots = folder.parent().filter(|parent| parent.ends_with("snapshots"))?;
    Some(snapshots.parent()?.join("blobs"))
}
