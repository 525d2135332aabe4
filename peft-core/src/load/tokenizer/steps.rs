//! What each tokenizer class makes of a vocabulary: the steps of a `tokenizer.json`, by its settings.

use std::path::Path;

use serde_json::{Map, Value, json};
use tokenizers::PostProcessorWrapper;

use super::class::{Class, NAMES};
use super::folder::Folder;
use super::sentencepiece::{Kind, SentencePiece};
use super::vocabulary;
use crate::warning::warn;
use crate::{Error, Result};

impl Class {
    /// The class that transformers takes: that of `tokenizer_config.json`, of `config.json`, or of the model's family. A name that is not
    /// known here is told, and the file taken as it stands; without the file it is an error.
    pub(super) fn of(folder: &Folder, file: Option<&Value>) -> Result<Self> {
        let name = |value: &Value| value.get("tokenizer_class").and_then(Value::as_str).map(str::to_string);
        let own = name(&Value::Object(folder.config.clone())).map(|name| (folder.config_path(), name));
        let model = || name(&folder.model).map(|name| (folder.dir.join("config.json"), name));
        let family = folder.model.get("model_type").and_then(Value::as_str);
        let Some((path, name)) = own.or_else(model) else {
            return Ok(match family {
                Some("bert") => Class::Bert,
                Some("roberta") => Class::Roberta,
                Some("t5") => Class::T5,
                _ => Class::Plain,
            });
        };
        let known = NAMES.iter().find(|(known, _)| *known == name.trim_end_matches("Fast")).map(|(_, class)| *class);
        Ok(match known {
            // LLaMA 3 and its like declare LlamaTokenizer.
            Some(Class::Llama) if file.is_some_and(|file| file.to_string().contains("\"ByteLevel\"")) => Class::Plain,
            Some(class) => class,
            None if file.is_none() => {
                let known: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
                let expected = format!(
                    "tokenizer.json beside it, which AutoTokenizer's save_pretrained writes, or a class whose vocabulary is read here: {}",
                    known.join(", ")
                );
                return Err(Error::file(path, "tokenizer_class", name, expected));
            }
            None => {
                warn(
                    path,
                    "tokenizer_class",
                    format!("is {name}: not known here, tokenizer.json is taken as it stands"),
                );
                Class::Plain
            }
        })
    }

    /// The class that a `tokenizer.json` is for: this one, or, with a warning, [`Class::Plain`] where its model is of another kind.
    pub(super) fn fitting(self, path: &Path, file: &Value) -> Self {
        let model = &file["model"];
        let guess = || match model {
            _ if model.get("merges").is_some() => "BPE",
            _ if model.get("max_input_chars_per_word").is_some() => "WordPiece",
            _ if model["vocab"].is_array() => "Unigram",
            _ => "WordLevel",
        };
        let found = model.get("type").and_then(Value::as_str).unwrap_or_else(guess);
        match self.kind() {
            Some(kind) if kind != found => {
                let what = format!(
                    "is {found}: the model's tokenizer class makes {kind} of a vocabulary, so the file is taken as it stands"
                );
                warn(path, "model", what);
                Class::Plain
            }
            _ => self,
        }
    }

    /// `tokenizer.json` with the steps that the class makes by its settings.
    pub(super) fn rebuilt(self, folder: &Folder, file: Value, path: &Path) -> Result<Value> {
        if self == Class::Plain {
            return Ok(file);
        }
        let old = file.as_object().cloned().unwrap_or_default();
        let vocabulary = Vocabulary {
            vocab: old["model"]["vocab"].clone(),
            merges: old["model"].get("merges").cloned(),
            charsmap: charsmap(&file),
        };
        let mut new = self.steps(folder, vocabulary)?;
        if matches!(self, Class::Gpt2 | Class::Llama) {
            new["post_processor"] = file["post_processor"].clone();
        }
        for key in ["truncation", "padding"] {
            new[key] = file[key].clone();
        }
        for key in ["normalizer", "pre_tokenizer"] {
            if old.get(key).is_some_and(|old| !same(old, &new[key])) {
                let what = format!(
                    "is {}: {} makes {} by tokenizer_config.json instead",
                    brief(&old[key]),
                    self.name(),
                    brief(&new[key])
                );
                warn(path, key, what);
            }
        }
        Ok(new)
    }

    /// `tokenizer.json` as it would be of a folder that has its vocabulary in files of its own; none, if these are not there.
    pub(super) fn converted(self, folder: &Folder) -> Result<Option<Converted>> {
        let file = |name: &str| Some(folder.dir.join(name)).filter(|path| path.exists());
        match self {
            Class::Bert => {
                let Some(path) = file("vocab.txt") else { return Ok(None) };
                let vocab = vocabulary::lines(&path)?;
                let file = self.steps(folder, Vocabulary { vocab, merges: None, charsmap: None })?;
                Ok(Some(Converted { file, special: vec![], roles: vec![] }))
            }
            Class::Roberta | Class::Gpt2 => {
                let (Some(vocab), Some(merges)) = (file("vocab.json"), file("merges.txt")) else { return Ok(None) };
                let (vocab, merges) = (vocabulary::numbered(&vocab)?, vocabulary::merges(&merges)?);
                let vocabulary = Vocabulary { vocab, merges: Some(merges), charsmap: None };
                let file = self.steps(folder, vocabulary)?;
                Ok(Some(Converted { file, special: vec![], roles: vec![] }))
            }
            Class::T5 | Class::Llama | Class::Plain => {
                let own = if self == Class::T5 { file("spiece.model") } else { None };
                let Some(path) = own.or_else(|| file("tokenizer.model")) else { return Ok(None) };
                self.pieces(folder, &SentencePiece::read(&path)?).map(Some)
            }
        }
    }

    fn pieces(self, folder: &Folder, file: &SentencePiece) -> Result<Converted> {
        let special: Vec<Value> = file
            .pieces
            .iter()
            .filter(|piece| [3, 4].contains(&piece.kind))
            .map(|piece| json!({"content": piece.text, "normalized": false, "special": piece.kind == 3}))
            .collect();
        let scores = || -> Vec<Value> { file.pieces.iter().map(|piece| json!([piece.text, piece.score])).collect() };
        let ids = || -> Map<String, Value> {
            file.pieces.iter().enumerate().map(|(id, piece)| (piece.text.clone(), json!(id))).collect()
        };
        let merges = || json!(file.merges());
        let charsmap = (!file.charsmap.is_empty()).then(|| vocabulary::charsmap(&file.charsmap));
        if self != Class::Plain {
            let (vocab, merges) = match self {
                Class::T5 => {
                    let mut vocab = scores();
                    vocab.extend((0..folder.extra_ids()?).rev().map(|i| json!([format!("<extra_id_{i}>"), 0.0])));
                    (Value::Array(vocab), None)
                }
                _ => (Value::Object(ids()), Some(merges())),
            };
            let file = self.steps(folder, Vocabulary { vocab, merges, charsmap })?;
            return Ok(Converted { file, special, roles: vec![] });
        }
        let model = match file.kind {
            Kind::Unigram => json!({"type": "Unigram", "unk_id": file.unknown, "vocab": scores(),
                "byte_fallback": file.byte_fallback}),
            Kind::Bpe => {
                let mut vocab = ids();
                folder.rename_placeholders(&mut vocab);
                json!({"type": "BPE", "unk_token": file.texts[0], "fuse_unk": true, "byte_fallback": file.byte_fallback,
                    "vocab": vocab, "merges": merges()})
            }
        };
        let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let steps: Vec<Value> = charsmap.into_iter().chain([spaces]).collect();
        let mut back = vec![json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "})];
        if file.byte_fallback {
            back.extend([json!({"type": "ByteFallback"}), json!({"type": "Fuse"})]);
        }
        let whole = whole(
            json!({"type": "Sequence", "normalizers": steps}),
            Value::Null,
            json!({"type": "Sequence", "decoders": back}),
            model,
        );
        let ids = [("unk_token", file.unknown), ("bos_token", file.first), ("eos_token", file.last)];
        let roles = ids.into_iter().zip(&file.texts).filter(|((_, id), _)| *id >= 0);
        let roles = roles.map(|((role, _), text)| (role, text.clone())).collect();
        Ok(Converted { file: whole, special, roles })
    }

    /// The steps of a class around a vocabulary.
    fn steps(self, folder: &Folder, Vocabulary { vocab, merges, charsmap }: Vocabulary) -> Result<Value> {
        let bytes = |prefix: bool| json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": true});
        let space = |scheme: &str, split: bool| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split});
        Ok(match self {
            Class::Bert => {
                let normalizer = json!({"type": "BertNormalizer", "clean_text": true,
                    "handle_chinese_chars": folder.flag("tokenize_chinese_chars", true)?,
                    "strip_accents": folder.flag_or_none("strip_accents")?,
                    "lowercase": folder.flag("do_lower_case", true)?});
                let unknown = folder.text("unk_token", self).unwrap_or_default();
                let model = json!({"type": "WordPiece", "unk_token": unknown,
                    "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocab});
                let decoder = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
                whole(normalizer, json!({"type": "BertPreTokenizer"}), decoder, model)
            }
            Class::Roberta | Class::Gpt2 => {
                let model = json!({"type": "BPE", "continuing_subword_prefix": "", "end_of_word_suffix": "",
                    "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": merges});
                whole(Value::Null, bytes(folder.flag("add_prefix_space", false)?), bytes(true), model)
            }
            Class::T5 => {
                let model = json!({"type": "Unigram", "unk_id": 2, "vocab": vocab, "byte_fallback": false});
                let cut = json!({"type": "Sequence",
                    "pretokenizers": [{"type": "WhitespaceSplit"}, space("always", true)]});
                whole(charsmap.unwrap_or(Value::Null), cut, space("always", true), model)
            }
            Class::Llama => {
                let prefix = folder.flag_or_none("add_prefix_space")?.unwrap_or(true);
                let scheme = match (prefix, folder.flag("legacy", false)?) {
                    (false, _) => "never",
                    (true, true) => "always",
                    (true, false) => "first",
                };
                let mut back = vec![
                    json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
                    json!({"type": "ByteFallback"}),
                    json!({"type": "Fuse"}),
                ];
                if prefix {
                    back.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
                }
                let model = json!({"type": "BPE", "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
                    "merges": merges});
                whole(Value::Null, space(scheme, false), json!({"type": "Sequence", "decoders": back}), model)
            }
            Class::Plain => unreachable!("it has no steps of its own"),
        })
    }

    /// What adds the special tokens, if the class has one of its own or the settings say so. `id` tells a token's id.
    pub(super) fn finish(
        self,
        folder: &Folder,
        id: impl Fn(&str) -> Option<u32>,
        explicit: bool,
        found: bool,
    ) -> Result<Option<PostProcessorWrapper>> {
        let text = |key: &str| folder.special(key).map(|token| token.content.clone());
        let needed = |key: &str| text(key).and_then(|text| Some((text.clone(), id(&text)?)));
        let missing = |key: &str| Error::file(folder.config_path(), key, "no token", "a token of the vocabulary");
        let value = match self {
            Class::Bert => {
                let (cls, sep) = (needed("cls_token"), needed("sep_token"));
                let (cls, sep) = (cls.ok_or_else(|| missing("cls_token"))?, sep.ok_or_else(|| missing("sep_token"))?);
                let first = [special(&cls, 0), sequence("A", 0), special(&sep, 0)];
                let pair = [&first[..], &[sequence("B", 1), special(&sep, 1)]].concat();
                template(&first, &pair, &[cls, sep])
            }
            Class::Roberta => {
                let (cls, sep) = (needed("cls_token"), needed("sep_token"));
                let (cls, sep) = (cls.ok_or_else(|| missing("cls_token"))?, sep.ok_or_else(|| missing("sep_token"))?);
                json!({"type": "RobertaProcessing", "sep": sep, "cls": cls,
                    "trim_offsets": folder.flag("trim_offsets", true)?,
                    "add_prefix_space": folder.flag("add_prefix_space", false)?})
            }
            Class::T5 => {
                let (_, end) = needed("eos_token").ok_or_else(|| missing("eos_token"))?;
                let end = ("</s>".to_string(), end);
                let first = [sequence("A", 0), special(&end, 0)];
                template(&first, &[&first[..], &[sequence("B", 0), special(&end, 0)]].concat(), &[end])
            }
            Class::Gpt2 | Class::Llama | Class::Plain => {
                if found && !explicit {
                    return Ok(None);
                }
                let add = |flag: &str, key: &str| -> Result<Option<(String, u32)>> {
                    Ok(needed(key).filter(|_| explicit).filter(|_| folder.flag(flag, false).unwrap_or(false)))
                };
                let (first, last) = (add("add_bos_token", "bos_token")?, add("add_eos_token", "eos_token")?);
                let around = |name: &str, segment: usize| {
                    let special = |token: &(String, u32)| special(token, segment);
                    first
                        .iter()
                        .map(special)
                        .chain([sequence(name, segment)])
                        .chain(last.iter().map(special))
                        .collect::<Vec<_>>()
                };
                let tokens: Vec<(String, u32)> = first.iter().chain(&last).cloned().collect();
                template(&around("A", 0), &[around("A", 0), around("B", 1)].concat(), &tokens)
            }
        };
        serde_json::from_value(value).map(Some).map_err(|error| {
            Error::file(folder.config_path(), "special tokens", error, "tokens to stand around a text")
        })
    }
}

/// What files of a vocabulary say.
pub(super) struct Converted {
    /// `tokenizer.json`.
    pub file: Value,
    /// Tokens that they call special, or to be found in texts as they are.
    pub special: Vec<Value>,
    /// Tokens by their roles.
    pub roles: Vec<(&'static str, String)>,
}

/// What a file says of the pieces of texts, in the forms of `tokenizer.json`.
struct Vocabulary {
    vocab: Value,
    merges: Option<Value>,
    /// A normalizer.
    charsmap: Option<Value>,
}

fn whole(normalizer: Value, pre_tokenizer: Value, decoder: Value, model: Value) -> Value {
    json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": decoder, "model": model})
}

/// The table of a normalization among the normalizers of a file.
fn charsmap(file: &Value) -> Option<Value> {
    let one = &file["normalizer"];
    let steps = one["normalizers"].as_array().map_or(std::slice::from_ref(one), Vec::as_slice);
    steps.iter().find(|step| step["type"] == "Precompiled").cloned()
}

fn special((text, _): &(String, u32), segment: usize) -> Value {
    json!({"SpecialToken": {"id": text, "type_id": segment}})
}

fn sequence(name: &str, segment: usize) -> Value {
    json!({"Sequence": {"id": name, "type_id": segment}})
}

fn template(single: &[Value], pair: &[Value], tokens: &[(String, u32)]) -> Value {
    let tokens: Map<String, Value> =
        tokens.iter().map(|(text, id)| (text.clone(), json!({"id": text, "ids": [id], "tokens": [text]}))).collect();
    json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens})
}

/// Whether two steps are the same but for settings that a file left out.
fn same(old: &Value, new: &Value) -> bool {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            old.iter().all(|(key, old)| new.get(key).is_none_or(|new| same(old, new)))
                && old.get("type") == new.get("type")
        }
        (Value::Array(old), Value::Array(new)) => {
            old.len() == new.len() && old.iter().zip(new).all(|(a, b)| same(a, b))
        }
        _ => old == new,
    }
}

/// A step as a warning shows it.
fn brief(step: &Value) -> String {
    let text = step.to_string();
    match text.char_indices().nth(160) {
        Some((end, _)) => format!("{}..", &text[..end]),
        None => text,
    }
}
