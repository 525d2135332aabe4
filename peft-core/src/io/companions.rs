//! What a model's directory holds beside settings and weights: the files that tools which read it look for.

use std::path::Path;

use crate::{Error, Result};

/// Tokenizers in every form, how to generate, how conversations are written, and how sentences are pooled.
const FILES: [&str; 20] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "tokenizer.model.v3",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "tiktoken.model",
    "tekken.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
];
/// Further chat templates, and the settings of pooling.
const FOLDERS: [&str; 3] = ["additional_chat_templates", "chat_templates", "1_Pooling"];

/// Copies those of `from` that are there.
pub(super) fn copy(from: &Path, to: &Path) -> Result<()> {
    for name in FILES {
        copy_file(&from.join(name), &to.join(name))?;
    }
    for name in FOLDERS {
        let Ok(entries) = from.join(name).read_dir() else { continue };
        std::fs::create_dir(to.join(name)).map_err(Error::io("create", to.join(name)))?;
        for entry in entries {
            let file = entry.map_err(Error::io("read", from.join(name)))?.file_name();
            copy_file(&from.join(name).join(&file), &to.join(name).join(&file))?;
        }
    }
    Ok(())
}

fn copy_file(from: &Path, to: &Path) -> Result<()> {
    match from.is_file() {
        true => std::fs::copy(from, to).map(|_| ()).map_err(Error::io("copy", from)),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_that_tools_look_for_is_copied() {
        let folder = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| folder.path().join(name));
        for dir in [&from, &to, &from.join("chat_templates")] {
            std::fs::create_dir(dir).unwrap();
        }
        let names: Vec<String> =
            FILES.iter().map(|name| name.to_string()).chain(["chat_templates/tool_use.jinja".into()]).collect();
        for name in names.iter().chain(&["model.safetensors".into(), "README.md".into()]) {
            std::fs::write(from.join(name), name).unwrap();
        }
        copy(&from, &to).unwrap();
        for name in &names {
            assert_eq!(&std::fs::read_to_string(to.join(name)).unwrap(), name);
        }
        assert!(!to.join("model.safetensors").exists() && !to.join("additional_chat_templates").exists());
    }
}
