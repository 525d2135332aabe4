//! Words: made up, cut out of texts, and as a tokenizer's vocabulary.

use std::collections::{BTreeSet, HashSet};

use peft_core::random::Random;
use serde_json::{Map, Value, json};

use super::grammar::pick;

/// A word of consonants and vowels in turn that is not `known` yet; it is then.
pub fn coin(random: &mut Random, letters: [&[char]; 2], length: usize, known: &mut HashSet<String>) -> String {
    loop {
        let word: String = (0..length).map(|place| pick(random, letters[place % 2])).collect();
        if known.insert(word.clone()) {
            return word;
        }
    }
}

/// What stands between blanks, runs of punctuation apart: as a tokenizer [cuts](Tokenizer::cut) that is made here.
pub fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split_whitespace().flat_map(|mut rest| {
        std::iter::from_fn(move || {
            let punctuation = rest.chars().next()?.is_ascii_punctuation();
            let end = rest.find(|c: char| c.is_ascii_punctuation() != punctuation).unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            rest = after;
            Some(word)
        })
    })
}

/// A tokenizer of whole words in the format of the tokenizers library. Decoding puts one blank between them.
pub struct Tokenizer<'a> {
    /// Special tokens with the first ids.
    pub special: &'a [&'a str],
    /// Special tokens with the last ids.
    pub sentinels: &'a [String],
    /// What becomes an unknown word.
    pub unknown: &'a str,
    /// What is done to a text first.
    pub normalizer: Value,
    /// How it is cut into words.
    pub cut: Value,
    /// How special tokens are added.
    pub finish: Value,
}

impl Tokenizer<'_> {
    /// Cuts a text as [`words`] does.
    pub fn cut() -> Value {
        let cuts = json!([{ "type": "WhitespaceSplit" }, { "type": "Punctuation", "behavior": "Contiguous" }]);
        json!({ "type": "Sequence", "pretokenizers": cuts })
    }

    /// Puts one special token before or after a text, and before or after the second of a pair.
    pub fn around(token: &str, id: usize, before: bool) -> Value {
        let text = |name: &str| json!({ "Sequence": { "id": name, "type_id": 0 } });
        let special = json!({ "SpecialToken": { "id": token, "type_id": 0 } });
        let one = |name: &str| if before { [special.clone(), text(name)] } else { [text(name), special.clone()] };
        let pair = [one("A"), one("B")].concat();
        json!({
            "type": "TemplateProcessing",
            "single": one("A"),
            "pair": pair,
            "special_tokens": { token: { "id": token, "ids": [id], "tokens": [token] } },
        })
    }

    /// The file by which transformers takes the tokenizer as it is, whatever the model's family.
    pub fn config(special: &[&str]) -> String {
        let roles = [
            ("bos_token", "<s>"),
            ("cls_token", "<s>"),
            ("eos_token", "</s>"),
            ("sep_token", "</s>"),
            ("pad_token", "<pad>"),
            ("unk_token", "<unk>"),
            ("mask_token", "<mask>"),
        ];
        let roles = roles.into_iter().filter(|(_, token)| special.contains(token));
        let class = [("tokenizer_class", "PreTrainedTokenizerFast")].into_iter();
        let file: Map<_, _> = class.chain(roles).map(|(key, value)| (key.to_string(), json!(value))).collect();
        format!("{:#}\n", Value::Object(file))
    }

    /// The file, for these words.
    pub fn file(&self, words: &BTreeSet<&str>) -> String {
        let sentinels = self.sentinels.iter().map(String::as_str);
        let tokens = self.special.iter().copied().chain(words.iter().copied()).chain(sentinels.clone());
        let vocab: Map<_, _> = tokens.enumerate().map(|(id, token)| (token.to_string(), json!(id))).collect();
        let added = |token: &str| {
            json!({
                "id": vocab[token], "content": token, "single_word": false, "lstrip": token == "<mask>", "rstrip": false,
                "normalized": false, "special": true,
            })
        };
        let file = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": self.special.iter().copied().chain(sentinels).map(added).collect::<Vec<_>>(),
            "normalizer": self.normalizer,
            "pre_tokenizer": self.cut,
            "post_processor": self.finish,
            "decoder": null,
            "model": { "type": "WordLevel", "vocab": vocab, "unk_token": self.unknown },
        });
        format!("{file:#}\n")
    }
}
