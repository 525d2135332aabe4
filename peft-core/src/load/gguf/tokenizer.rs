//! The tokenizer of a GGUF file as the `tokenizer.json` that Hugging Face's tokenizers library reads.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::Gguf;
use crate::load::entry::check_name;
use crate::{Error, Result};

/// How LLaMA 3 cuts a text before its merges.
const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

// Kinds of tokens, by their numbers in files.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER: i64 = 4;
const BYTE: i64 = 6;

/// Tokens in the order of their ids.
struct Tokens<'a> {
    gguf: &'a Gguf,
    texts: Vec<String>,
    kinds: Vec<i64>,
}

impl Gguf {
    /// What `tokenizer.json` would be: of `tokenizer.ggml.model`, "gpt2" (bytes) and "llama" (SentencePiece's
    /// characters with bytes for the rest) are understood.
    ///
    /// As transformers does, "llama" puts a space before a text that does not begin with one, and nowhere else.
    pub fn tokenizer(&self) -> Result<Value> {
        let tokens = Tokens::read(self)?;
        let kind = self.text("tokenizer.ggml.model")?;
        let (pre_tokenizer, decoder, model) = match kind {
            "gpt2" => tokens.bytes()?,
            "llama" => tokens.pieces()?,
            _ => {
                return Err(self.refuse("tokenizer.ggml.model", format!("{kind:?}"), "\"gpt2\" or \"llama\""));
            }
        };
        Ok(json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": tokens.added(),
            "normalizer": null,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": tokens.post_processor(kind == "llama")?,
            "decoder": decoder,
            "model": model,
        }))
    }

    /// `tokenizer_config.json` beside that file: the tokens by their roles, so that a program that loads both knows where texts end.
    pub fn tokenizer_config(&self) -> Result<Value> {
        let tokens = Tokens::read(self)?;
        let mut config = json!({"tokenizer_class": "PreTrainedTokenizerFast"});
        for (role, key) in
            [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")]
        {
            if let Some(text) = tokens.named(&format!("tokenizer.ggml.{key}_token_id"))? {
                config[role] = json!(text);
            }
        }
        if let Some(template) = self.chat_template()? {
            config["chat_template"] = json!(template);
        }
        Ok(config)
    }

    /// How the model writes conversations, in Jinja.
    pub fn chat_template(&self) -> Result<Option<&str>> {
        self.optional("tokenizer.chat_template", Gguf::text)
    }

    fn refuse_token(&self, id: usize, found: impl ToString, expected: impl Into<String>) -> Error {
        self.refuse(&format!("tokenizer.ggml.tokens: token {id}"), found, expected)
    }
}

impl<'a> Tokens<'a> {
    fn read(gguf: &'a Gguf) -> Result<Self> {
        let texts = gguf.texts("tokenizer.ggml.tokens")?;
        for text in &texts {
            check_name(gguf.path(), text)?;
        }
        let key = "tokenizer.ggml.token_type";
        let kinds = gguf.optional(key, Gguf::integers)?.unwrap_or_else(|| vec![NORMAL; texts.len()]);
        let tokens = Tokens { gguf, texts, kinds };
        tokens.check_length(key, tokens.kinds.len())?;
        Ok(tokens)
    }

    fn check_length(&self, key: &str, length: usize) -> Result<()> {
        if length != self.texts.len() {
            let expected = format!("{}, one for each token", self.texts.len());
            return Err(self.gguf.refuse(key, format!("{length} elements"), expected));
        }
        Ok(())
    }

    fn vocab(&self) -> Result<Map<String, Value>> {
        let mut vocab = Map::new();
        for (id, text) in self.texts.iter().enumerate() {
            if let Some(first) = vocab.insert(text.clone(), json!(id)) {
                let expected = format!("a text of its own; {first} has this one");
                return Err(self.gguf.refuse_token(id, format!("{text:?}"), expected));
            }
        }
        Ok(vocab)
    }

    /// The token that a key names, if there is such a key.
    fn named(&self, key: &str) -> Result<Option<&str>> {
        let Some(id) = self.gguf.optional(key, Gguf::count)? else {
            return Ok(None);
        };
        match self.texts.get(id) {
            Some(text) => Ok(Some(text)),
            None => Err(self.gguf.refuse(key, id, format!("an id below {}, the number of tokens", self.texts.len()))),
        }
    }

    /// Tokens that are found in a text before all else.
    fn added(&self) -> Vec<Value> {
        let added = self.texts.iter().zip(&self.kinds).enumerate();
        let added = added.filter(|(_, (text, kind))| [UNKNOWN, CONTROL, USER].contains(kind) && !text.is_empty());
        added
            .map(|(id, (text, kind))| {
                json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": *kind != USER})
            })
            .collect()
    }

    /// Adds the tokens that begin and end a text; unless the file says, `begin` decides on the first.
    fn post_processor(&self, begin: bool) -> Result<Value> {
        let mut special = Map::new();
        let mut token = |add: &str, default: bool, key: &str| -> Result<Option<&str>> {
            if !self.gguf.optional(add, Gguf::flag)?.unwrap_or(default) {
                return Ok(None);
            }
            let Some(text) = self.named(key)? else {
                return Err(self.gguf.refuse(key, "nothing", format!("an id, since {add} is true")));
            };
            special.insert(text.to_string(), json!({"id": text, "ids": [self.gguf.count(key)?], "tokens": [text]}));
            Ok(Some(text))
        };
        let first = token("tokenizer.ggml.add_bos_token", begin, "tokenizer.ggml.bos_token_id")?;
        let last = token("tokenizer.ggml.add_eos_token", false, "tokenizer.ggml.eos_token_id")?;
        if special.is_empty() {
            return Ok(Value::Null);
        }
        let part = |name: &str, segment: usize| {
            let special = |text: &str| json!({"SpecialToken": {"id": text, "type_id": segment}});
            let text = json!({"Sequence": {"id": name, "type_id": segment}});
            first.map(special).into_iter().chain([text]).chain(last.map(special)).collect::<Vec<_>>()
        };
        let pair = [part("A", 0), part("B", 1)].concat();
        Ok(json!({"type": "TemplateProcessing", "single": part("A", 0), "pair": pair,
            "special_tokens": special}))
    }

    /// Pairs in the order in which they merge, as the file lists them.
    fn listed_merges(&self) -> Result<Vec<(String, String)>> {
        let key = "tokenizer.ggml.merges";
        let split = |(i, merge): (usize, String)| match merge.split_once(' ') {
            Some((left, right)) if !right.contains(' ') => Ok((left.to_string(), right.to_string())),
            _ => {
                Err(self.gguf.refuse(key, format!("{merge:?} as element {i}"), "two tokens with a space between them"))
            }
        };
        self.gguf.texts(key)?.into_iter().enumerate().map(split).collect()
    }

    /// Merges of bytes, each written as a letter. The pre-tokenizer, the decoder, the model.
    fn bytes(&self) -> Result<(Value, Value, Value)> {
        let key = "tokenizer.ggml.pre";
        let pre = self.gguf.optional(key, Gguf::text)?.unwrap_or("default");
        let byte_level = |regex: bool| {
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                "use_regex": regex})
        };
        // A word that is a token is that token in LLaMA 3, even if no merges lead there.
        let (pre_tokenizer, whole) = match pre {
            "default" | "gpt-2" => (byte_level(true), false),
            "smollm" => (sequence([json!({"type": "Digits", "individual_digits": true}), byte_level(true)]), false),
            "llama-bpe" | "llama-v3" | "llama3" => {
                let split =
                    json!({"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": false});
                (sequence([split, byte_level(false)]), true)
            }
            _ => {
                let expected = "one of default, gpt-2, smollm, llama-bpe, llama-v3, llama3";
                return Err(self.gguf.refuse(key, format!("{pre:?}"), expected));
            }
        };
        let merges = self.listed_merges()?;
        let model = json!({"type": "BPE", "fuse_unk": false, "byte_fallback": false, "ignore_merges": whole,
            "vocab": self.vocab()?, "merges": merges});
        Ok((pre_tokenizer, byte_level(true), model))
    }

    /// Merges of characters with `▁` for a space. The pre-tokenizer, the decoder, the model.
    fn pieces(&self) -> Result<(Value, Value, Value)> {
        let merges = if self.gguf.has("tokenizer.ggml.merges") { self.listed_merges()? } else { self.scored_merges()? };
        let unknown = match self.named("tokenizer.ggml.unknown_token_id")? {
            Some(text) => Some(text),
            None => self.kinds.iter().position(|kind| *kind == UNKNOWN).map(|id| self.texts[id].as_str()),
        };
        let prefix = self.gguf.optional("tokenizer.ggml.add_space_prefix", Gguf::flag)?.unwrap_or(true);
        let pre_tokenizer = json!({"type": "Metaspace", "replacement": "▁", "split": false,
            "prepend_scheme": if prefix { "first" } else { "never" }});
        let mut steps = vec![
            json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if prefix {
            steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let model = json!({"type": "BPE", "unk_token": unknown, "fuse_unk": true, "byte_fallback": true,
            "ignore_merges": false, "vocab": self.vocab()?, "merges": merges});
        Ok((pre_tokenizer, json!({"type": "Sequence", "decoders": steps}), model))
    }

    /// Pairs in the order in which they merge: SentencePiece joins the two neighbours whose joined token has the
    /// highest score.
    fn scored_merges(&self) -> Result<Vec<(String, String)>> {
        let key = "tokenizer.ggml.scores";
        let scores = self.gguf.floats(key)?;
        self.check_length(key, scores.len())?;
        // The others never come out of a text.
        let is_piece = |id: &usize| ![UNKNOWN, CONTROL, BYTE].contains(&self.kinds[*id]);
        let pieces: HashMap<&str, usize> =
            (0..self.texts.len()).filter(is_piece).map(|id| (self.texts[id].as_str(), id)).collect();
        let mut merges = Vec::new();
        for id in (0..self.texts.len()).filter(is_piece) {
            let text = &self.texts[id];
            for (at, _) in text.char_indices().skip(1) {
                let (left, right) = text.split_at(at);
                if pieces.contains_key(left) && pieces.contains_key(right) {
                    merges.push((scores[id], left.chars().count(), right.chars().count(), left, right));
                }
            }
        }
        // Of equal scores, transformers takes the longer left side, then the longer right side, then the lower id.
        merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)).then(b.2.cmp(&a.2)));
        Ok(merges.into_iter().map(|(.., left, right)| (left.to_string(), right.to_string())).collect())
    }
}

fn sequence(steps: [Value; 2]) -> Value {
    json!({"type": "Sequence", "pretokenizers": steps})
}
