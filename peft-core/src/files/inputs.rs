//! What a command reads, which nothing that it writes may replace.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::read_json;
use crate::{Error, Result};

/// The files that are looked for in the folder of a model or an adapter, beside those that an index lists.
const READ: [&str; 40] = [
    "adapter.safetensors",
    "adapter_config.json",
    "adapter_fusion_config.json",
    "adapter_model.bin",
    "adapter_model.safetensors",
    "adapter_setup.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "config_sentence_transformers.json",
    "generation_config.json",
    "head_config.json",
    "labels.json",
    "manifest.json",
    "merges.txt",
    "model.safetensors",
    "model.safetensors.index.json",
    "model_adapter_fusion.safetensors",
    "model_head.safetensors",
    "modules.json",
    "pytorch_adapter.bin",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model_adapter_fusion.bin",
    "pytorch_model_head.bin",
    "sentence_bert_config.json",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "spm.model",
    "tekken.json",
    "tiktoken.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer.model.v3",
    "tokenizer_config.json",
    "trained.bpk",
    "vocab.json",
    "vocab.txt",
];

/// How deep folders of data are searched, and how many of their files are looked at.
const DEPTH: usize = 6;
const MOST: usize = 200_000;

/// The files and folders that a command reads.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    paths: Vec<PathBuf>,
    models: Vec<PathBuf>,
}

impl Inputs {
    /// Nothing yet.
    pub fn new() -> Self {
        Inputs::default()
    }

    /// A file, or a folder of data of which any file may be read.
    pub fn with<P: AsRef<Path>>(mut self, paths: impl IntoIterator<Item = P>) -> Self {
        self.paths.extend(paths.into_iter().map(|path| path.as_ref().to_path_buf()));
        self
    }

    /// The folder (or file) of a model or an adapter.
    pub fn with_models<P: AsRef<Path>>(mut self, paths: impl IntoIterator<Item = P>) -> Self {
        self.models.extend(paths.into_iter().map(|path| path.as_ref().to_path_buf()));
        self
    }

    /// Refuses an output file that is one of those that are read, by whatever link, or that would be one as soon as it is there. The
    /// option is what gives the output.
    pub fn spare(&self, option: &str, output: &Path) -> Result<()> {
        let wrong = |expected: String| Err(Error::config(option, output.display(), expected));
        if let Some(written) = identity(output) {
            let same = |path: &PathBuf| identity(path).as_ref() == Some(&written);
            return match self.files().find(same) {
                Some(input) => wrong(format!("another file than the input {}", input.display())),
                None => Ok(()),
            };
        }
        let (Some(name), folder) = (output.file_name(), output.parent().and_then(folder)) else { return Ok(()) };
        let read =
            |dir: &&PathBuf| identity(dir) == folder && names(dir).contains(&name.to_string_lossy().to_lowercase());
        match self
            .models
            .iter()
            .find(|dir| folder.is_some() && (read(dir) || is_gguf(output) && identity(dir) == folder))
        {
            Some(dir) => wrong(format!("a name that is not read in {}", dir.display())),
            None => Ok(()),
        }
    }

    /// Refuses an output directory that is to be replaced, if something is read in it.
    pub fn spare_directory(&self, option: &str, output: &Path) -> Result<()> {
        let Some(written) = identity(output) else { return Ok(()) };
        let within = |path: &&PathBuf| {
            path.canonicalize().is_ok_and(|path| path.ancestors().any(|dir| identity(dir).as_ref() == Some(&written)))
        };
        match self.paths.iter().chain(&self.models).find(within) {
            Some(input) => Err(Error::config(
                option,
                output.display(),
                format!("a directory without the input {}", input.display()),
            )),
            None => Ok(()),
        }
    }

    /// Every file that is read.
    fn files(&self) -> impl Iterator<Item = PathBuf> {
        let models = self.models.iter().flat_map(|path| {
            let names = names(path);
            let read = move |file: &PathBuf| {
                let name = file.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
                !path.is_dir() || names.contains(&name) || is_gguf(file)
            };
            all(path, 1).filter(read)
        });
        let data = self.paths.iter().flat_map(|path| all(path, DEPTH).take(MOST));
        models.chain(data)
    }
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// The names that are read in the folder of a model or an adapter, in small letters, as some systems take all names.
fn names(dir: &Path) -> BTreeSet<String> {
    let listed = |index: &str| {
        let index = read_json(&dir.join(index)).ok();
        let map = index.as_ref().and_then(|index| index.get("weight_map")?.as_object());
        map.into_iter().flat_map(|map| map.values()).filter_map(|shard| shard.as_str().map(str::to_lowercase)).collect()
    };
    let shards = READ
        .into_iter()
        .filter(|name| name.ends_with(".index.json"))
        .flat_map(|index| -> BTreeSet<String> { listed(index) });
    READ.map(str::to_string).into_iter().chain(shards).collect()
}

/// The file, or all files of the folder so many levels deep.
fn all(path: &Path, depth: usize) -> Box<dyn Iterator<Item = PathBuf>> {
    match path.read_dir() {
        Ok(entries) if depth > 0 => {
            let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
            paths.sort();
            Box::new(paths.into_iter().flat_map(move |path| all(&path, depth - 1)))
        }
        Ok(_) => Box::new(std::iter::empty()),
        Err(_) => Box::new(std::iter::once(path.to_path_buf())),
    }
}

/// What tells files and folders apart, whatever they are called.
#[cfg(unix)]
fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    path.metadata().ok().map(|kind| (kind.dev(), kind.ino()))
}

#[cfg(not(unix))]
fn identity(path: &Path) -> Option<PathBuf> {
    path.canonicalize().ok()
}

/// The identity of a folder, which for a bare name is the current one.
#[cfg(unix)]
fn folder(path: &Path) -> Option<(u64, u64)> {
    identity(if path == Path::new("") { Path::new(".") } else { path })
}

#[cfg(not(unix))]
fn folder(path: &Path) -> Option<PathBuf> {
    identity(if path == Path::new("") { Path::new(".") } else { path })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[cfg(unix)]
    #[test]
    fn what_is_read_is_spared_under_any_name() {
        use std::os::unix::fs::symlink;
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        for folder in ["model", "data/SST-2", "out"] {
            fs::create_dir_all(path(folder)).unwrap();
        }
        let index = r#"{"weight_map": {"w": "shard.bin", "v": "missing.bin"}}"#;
        for (name, content) in [
            ("model/config.json", "{}"),
            ("model/shard.bin", ""),
            ("model/pytorch_model.bin.index.json", index),
            ("model/notes.txt", ""),
            ("model/other.GGUF", ""),
            ("data/SST-2/train.tsv", ""),
            ("run.yaml", ""),
            ("out/log", ""),
        ] {
            fs::write(path(name), content).unwrap();
        }
        fs::hard_link(path("model/shard.bin"), path("out/hard")).unwrap();
        symlink(path("data/SST-2/train.tsv"), path("out/link")).unwrap();
        symlink(path("model"), path("alias")).unwrap();
        let inputs = Inputs::new().with([path("data"), path("run.yaml")]).with_models([path("model")]);
        for name in [
            "model/config.json",
            "model/../model/shard.bin",
            "alias/config.json",
            "out/hard",
            "out/link",
            "run.yaml",
            "data/SST-2/train.tsv",
            "model/other.GGUF",
            // Not there, but read as soon as they are.
            "model/tokenizer.json",
            "alias/Model.safetensors",
            "model/missing.bin",
            "alias/more.gguf",
        ] {
            let error = inputs.spare("--output", &path(name)).unwrap_err().to_string();
            assert!(error.contains("--output") && error.contains(name), "{error}");
        }
        for name in ["model/notes.txt", "model/logits.safetensors", "out/log", "out/config.json", "new", "data/new.tsv"]
        {
            inputs.spare("--output", &path(name)).unwrap();
        }
        for name in ["model", "alias", "data/SST-2", "data", "."] {
            assert!(name == "data/SST-2" || inputs.spare_directory("--output", &path(name)).is_err(), "{name}");
        }
        for name in ["out", "nowhere"] {
            inputs.spare_directory("--output", &path(name)).unwrap();
        }
    }
}
