//! A tokenizer from the files of a folder.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::{AddedToken, Encoding, PostProcessor, PostProcessorWrapper};

use super::bounds::Growth;
#[cfg(feature = "chat")]
use super::chat;
use super::class::Class;
use super::folder::{Folder, Special};
use super::{MAX_ADDED, Settings, Tokenizer};
use crate::files::read_text;
#[cfg(feature = "load")]
use crate::load::Gguf;
use crate::load::guard;
use crate::random::fingerprint;
use crate::warning::warn;
use crate::{Error, Result};

/// The largest tokenizer file that is read, in bytes.
const MAX_TOKENIZER: u64 = 64 << 20;
/// Lengths from here on stand for none.
const NO_LENGTH: f64 = 1e9;

impl Tokenizer {
    /// Reads the tokenizer of a model directory, or what its GGUF file says; `vocab` is the number of embeddings the model has.
    pub fn from_dir(dir: &Path, vocab: usize) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        if path.exists() {
            let text = read_text(&path, MAX_TOKENIZER)?;
            let file = json(&path, &text)?;
            let mut tokenizer = Self::from_folder(dir, Some((path, file)), vocab)?;
            tokenizer.fingerprint ^= fingerprint("tokenizer", text.as_bytes());
            return Ok(tokenizer);
        }
        #[cfg(feature = "load")]
        if let Some(path) = Gguf::find(dir)? {
            return Self::from_gguf(&Gguf::open(&path)?, vocab);
        }
        Self::from_folder(dir, None, vocab)
    }

    /// The tokenizer of a GGUF file; `vocab` is the number of embeddings the model has.
    #[cfg(feature = "load")]
    pub fn from_gguf(gguf: &Gguf, vocab: usize) -> Result<Self> {
        let file = gguf.tokenizer()?;
        let print = fingerprint("tokenizer", file.to_string().as_bytes());
        #[cfg_attr(not(feature = "chat"), expect(unused_mut))]
        let mut tokenizer = Self::parse(gguf.path().to_path_buf(), file, vocab, print)?;
        #[cfg(feature = "chat")]
        {
            let template = gguf.chat_template()?.map(str::to_string);
            let tokens = gguf.tokenizer_config()?;
            let tokens = tokens.as_object().into_iter().flatten().filter(|(key, _)| key.ends_with("_token"));
            let tokens = tokens.map(|(key, value)| (key.clone(), value.clone())).collect();
            tokenizer.chat = template.map(|source| chat::Template::new(gguf.path().to_path_buf(), source, tokens));
        }
        // Rows without a token are padding; a token without a row is of another model.
        match tokenizer.inner.get_vocab_size(true) {
            size if size <= vocab => Ok(tokenizer),
            size => {
                let expected = format!("at most {vocab}, the rows of the word table");
                Err(Error::file(gguf.path(), "tokenizer.ggml.tokens", format!("{size} tokens"), expected))
            }
        }
    }

    fn from_folder(dir: &Path, file: Option<(PathBuf, Value)>, vocab: usize) -> Result<Self> {
        let mut folder = Folder::read(dir, file.as_ref().map(|(_, file)| file))?;
        let declared = Class::of(&folder, file.as_ref().map(|(_, file)| file))?;
        let (class, path, file) = match file {
            Some((path, file)) => {
                // Checked before its parts are taken.
                Growth::of(&path, &file)?;
                let class = declared.fitting(&path, &file);
                folder.settle(class, vec![])?;
                (class, path.clone(), class.rebuilt(&folder, file, &path)?)
            }
            None => {
                let Some(converted) = declared.converted(&folder)? else { return Err(nothing(dir, declared)) };
                for (role, text) in converted.roles {
                    folder.config.entry(role).or_insert(text.into());
                }
                folder.settle(declared, converted.special)?;
                (declared, dir.to_path_buf(), converted.file)
            }
        };
        let has_finish = !file["post_processor"].is_null();
        let truncation = file["truncation"]["direction"].as_str().map(str::to_lowercase);
        // A file that is taken as it stands is told by its bytes.
        let print = match class {
            Class::Plain if folder.has_file => 0,
            _ => fingerprint("tokenizer", file.to_string().as_bytes()),
        };
        let mut tokenizer = Self::parse(path, file, vocab, print)?;
        tokenizer.add(&folder)?;
        let splits = folder.flag("split_special_tokens", false)?;
        tokenizer.inner.set_encode_special_tokens(splits);
        let explicit =
            !folder.has_file && ["add_bos_token", "add_eos_token"].iter().any(|key| folder.config.contains_key(*key));
        let id = |text: &str| tokenizer.inner.token_to_id(text);
        if let Some(finish) = class.finish(&folder, id, explicit, has_finish)? {
            tokenizer.finish = Some(finish);
        }
        tokenizer.settings = Settings::of(&folder, declared, truncation, tokenizer.is_bpe())?;
        // Whatever else of the folder decides the tokens of a text.
        let Settings { from_left, types, clean, max_length: _ } = tokenizer.settings;
        let settings = serde_json::json!([from_left, types, clean, splits, tokenizer.finish]).to_string();
        tokenizer.fingerprint ^= fingerprint("settings", settings.as_bytes());
        tokenizer.tell_around(&folder)?;
        #[cfg(feature = "chat")]
        {
            tokenizer.chat = chat::Template::of(&folder)?;
        }
        Ok(tokenizer)
    }

    fn parse(path: PathBuf, mut file: Value, vocab: usize, print: u64) -> Result<Self> {
        let expected = "a tokenizer as the tokenizers library saves it";
        let growth = Growth::of(&path, &file)?;
        if let Some(dropout) =
            file["model"].get_mut("dropout").filter(|dropout| dropout.as_f64().is_some_and(|p| p != 0.0))
        {
            warn(&path, "dropout", format!("is {dropout}: off, so that a text always has the same tokens"));
            *dropout = Value::Null;
        }
        let bytes = file.to_string();
        let mut inner = guard(&path, "tokenizer", expected, || tokenizers::Tokenizer::from_bytes(&bytes))?
            .map_err(|error| Error::file(&path, "tokenizer", error, expected))?;
        if inner.get_vocab_size(true) == 0 {
            return Err(Error::file(&path, "vocab", "no tokens", "the vocabulary of the model"));
        }
        inner.with_truncation(None).map_err(|error| Error::file(&path, "truncation", error, "none"))?;
        inner.with_padding(None);
        let finish = inner.get_post_processor().cloned();
        inner.with_post_processor(None::<PostProcessorWrapper>);
        let settings = Settings { from_left: false, types: true, clean: false, max_length: None };
        Ok(Tokenizer {
            path,
            vocab,
            fingerprint: print,
            inner,
            finish,
            growth,
            settings,
            #[cfg(feature = "chat")]
            chat: None,
        })
    }

    /// Adds the folder's tokens in transformers' order: those of its lists by their ids, then the special ones.
    fn add(&mut self, folder: &Folder) -> Result<()> {
        let known: Vec<AddedToken> = self.inner.get_added_tokens_decoder().into_values().collect();
        let mut new: Vec<AddedToken> = folder.added.values().filter(|token| !known.contains(token)).cloned().collect();
        let texts: Vec<String> = known.iter().chain(&new).map(|token| token.content.clone()).collect();
        let named = |text: &str| folder.specials().iter().any(|(_, token)| token.content == text);
        let roles = folder.specials().iter().map(|(_, token)| token.added().special(true));
        for added in roles.chain(folder.extra.iter().map(Special::added)) {
            if !texts.contains(&added.content) && !new.contains(&added) {
                new.push(added);
            }
        }
        for token in &mut new {
            token.special |= named(&token.content);
            if token.content.len() > MAX_ADDED {
                let found = format!("a token of {} bytes", token.content.len());
                return Err(Error::file(folder.config_path(), "added tokens", found, format!("at most {MAX_ADDED}")));
            }
        }
        if !new.is_empty() {
            let expected = "tokens that can be added";
            guard(&self.path, "added tokens", expected, || self.inner.add_tokens(&new))?;
        }
        for (id, token) in &folder.added {
            let own = self.inner.token_to_id(&token.content);
            if own.is_some_and(|own| u64::from(own) != *id) {
                let what = format!(
                    "has the id {id} in the folder's lists: it becomes {}, as in transformers",
                    own.unwrap_or_default()
                );
                warn(&folder.dir, format!("added token {:?}", token.content), what);
            }
        }
        let added: Vec<String> = new.iter().map(|token| format!("{token:?}")).collect();
        if !added.is_empty() {
            self.fingerprint ^= fingerprint("added tokens", added.concat().as_bytes());
        }
        Ok(())
    }

    /// Says where `add_bos_token` and `add_eos_token` are not what `tokenizer.json` does, which decides.
    fn tell_around(&self, folder: &Folder) -> Result<()> {
        if !folder.has_file {
            return Ok(());
        }
        let around = match &self.finish {
            Some(finish) => {
                let expected = "a post-processor that can finish every text";
                guard(&self.path, "post_processor", expected, || finish.process(Encoding::default(), None, true))?
                    .map_err(|error| Error::file(&self.path, "post_processor", error, expected))?
                    .get_ids()
                    .to_vec()
            }
            None => vec![],
        };
        for (key, role, found) in
            [("add_bos_token", "bos_token", around.first()), ("add_eos_token", "eos_token", around.last())]
        {
            let id = folder.special(role).and_then(|token| self.inner.token_to_id(&token.content));
            let (told, does) = (folder.flag_or_none(key)?, id.is_some() && found.copied() == id);
            if let Some(told) = told.filter(|told| *told != does) {
                let what = format!(
                    "is {told}: the post_processor of tokenizer.json decides, which {}",
                    if does { "adds it" } else { "does not add it" }
                );
                warn(folder.config_path(), key, what);
            }
        }
        Ok(())
    }
}

impl Settings {
    fn of(folder: &Folder, class: Class, truncation: Option<String>, bpe: bool) -> Result<Self> {
        let wrong = |key: &str, expected: &str| Error::file(folder.config_path(), key, &folder.config[key], expected);
        let told = |key: &str| folder.config.get(key).filter(|value| !value.is_null());
        let side = match told("truncation_side") {
            None => truncation.unwrap_or_default(),
            Some(side) => side.as_str().map(str::to_string).unwrap_or_default(),
        };
        if told("truncation_side").is_some() && !["left", "right"].contains(&&*side) {
            return Err(wrong("truncation_side", "\"left\" or \"right\""));
        }
        let types = match told("model_input_names") {
            // Where nothing is said of the model, its file decides.
            None => class.has_types() || folder.bare,
            Some(names) => {
                let names = names.as_array().ok_or_else(|| wrong("model_input_names", "a list of names"))?;
                names.iter().any(|name| name == "token_type_ids")
            }
        };
        let length = ["model_max_length", "max_len"].into_iter().find(|key| told(key).is_some());
        let max_length = match length {
            None => None,
            Some(key) => {
                let length = folder.config[key].as_f64().filter(|length| *length >= 1.0);
                let length = length.ok_or_else(|| wrong(key, "a number from 1"))?;
                (length < NO_LENGTH).then_some(length as usize)
            }
        };
        // Transformers cleans no text of a BPE unless the long name says so.
        let clean = folder.flag("clean_up_tokenization_spaces", false)?
            && (!bpe
                || folder.flag("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", false)?);
        Ok(Settings { from_left: side == "left", types, clean, max_length })
    }
}

/// What a folder without `tokenizer.json` lacks.
fn nothing(dir: &Path, class: Class) -> Error {
    let wanted = match class {
        Class::Bert => "vocab.txt",
        Class::Roberta | Class::Gpt2 => "vocab.json with merges.txt",
        Class::T5 => "spiece.model",
        Class::Llama | Class::Plain => "tokenizer.model",
    };
    let other: Vec<&str> = [
        "vocab.txt",
        "vocab.json",
        "merges.txt",
        "spiece.model",
        "sentencepiece.bpe.model",
        "tokenizer.model",
        "tekken.json",
        "tiktoken.model",
    ]
    .into_iter()
    .filter(|name| dir.join(name).exists())
    .collect();
    let found = match other.is_empty() {
        true => "none".to_string(),
        false => format!("{} for the tokenizer class {}", other.join(", "), class.name()),
    };
    let expected = format!(
        "tokenizer.json, as the tokenizers library saves it, {wanted}, or the tokenizer_class of another vocabulary in tokenizer_config.json"
    );
    Error::file(dir, "tokenizer", found, expected)
}

fn json(path: &Path, text: &str) -> Result<Value> {
    let expected = "a tokenizer as the tokenizers library saves it";
    let file: Value = serde_json::from_str(text).map_err(|error| Error::file(path, "tokenizer", error, expected))?;
    match file.is_object() {
        true => Ok(file),
        false => Err(Error::file(path, "tokenizer", "no object", expected)),
    }
}
