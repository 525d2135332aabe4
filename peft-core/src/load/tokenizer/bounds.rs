//! What a tokenizer's file may ask for, before a parser or a text allocates by it: an allocation that fails cannot be caught.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::{Error, Result};

/// How much longer the steps before the model, or those behind it, may make a text.
const MAX_GROWTH: f64 = 65_536.0;
/// The most bytes that a text may grow to.
const MAX_GROWN: f64 = (64 << 20) as f64;
/// The longest token that is found in texts as it is, or stands for what is unknown, in bytes.
const MAX_TOKEN: usize = 1024;
/// The most bytes of all tokens that are found in texts as they are.
const MAX_ADDED: usize = 4 << 20;
/// The most special tokens around a text, and how often it may be repeated.
const MAX_AROUND: usize = 1000;

/// By how much texts may grow on their way to tokens, and tokens on their way to a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Growth {
    encode: f64,
    decode: f64,
}

impl Growth {
    /// Refuses a file that asks for too much.
    pub fn of(path: &Path, file: &Value) -> Result<Self> {
        let encode = chain(path, "normalizer", file)? * chain(path, "pre_tokenizer", file)?;
        let decode = chain(path, "decoder", file)?;
        for (key, growth) in [("normalizer", encode), ("decoder", decode)] {
            if growth > MAX_GROWTH {
                let found = format!("steps that make a text {growth:.0} times as long");
                return Err(Error::file(path, key, found, format!("at most {MAX_GROWTH} times")));
            }
        }
        tokens(path, file)?;
        let around = around(path, &file["post_processor"])?;
        if around.special > MAX_AROUND || around.texts > 64 {
            let found = format!("{} special tokens around a text that stands {} times", around.special, around.texts);
            return Err(Error::file(path, "post_processor", found, format!("at most {MAX_AROUND} and 64")));
        }
        Ok(Growth { encode, decode })
    }

    /// Refuses a text that could grow too long.
    pub fn check_text(&self, path: &Path, text: &str) -> Result<()> {
        let growth = self.encode;
        grown(path, "normalizer", text.len(), growth, "text")
    }

    /// Refuses tokens of so many bytes that could grow too long.
    pub fn check_tokens(&self, path: &Path, bytes: usize) -> Result<()> {
        grown(path, "decoder", bytes, self.decode, "tokens")
    }
}

fn grown(path: &Path, key: &str, bytes: usize, growth: f64, what: &str) -> Result<()> {
    if bytes as f64 * growth <= MAX_GROWN {
        return Ok(());
    }
    let found = format!("{what} of {bytes} bytes, which the file's steps may make {growth:.0} times as long");
    Err(Error::file(path, key, found, format!("at most {MAX_GROWN} bytes in the end")))
}

/// The product of what each step of a sequence, in turn, may do.
fn chain(path: &Path, key: &str, file: &Value) -> Result<f64> {
    let step = &file[key];
    let steps = ["normalizers", "pretokenizers", "decoders"].into_iter().find_map(|list| step.get(list)?.as_array());
    match steps {
        Some(steps) => steps.iter().try_fold(1.0, |product, step| {
            // A sequence may hold sequences.
            let wrapped = serde_json::json!({ key: step });
            Ok(product * chain(path, key, &wrapped)?)
        }),
        None => single(path, key, step),
    }
}

fn single(path: &Path, key: &str, step: &Value) -> Result<f64> {
    let length = |value: &Value| value.as_str().map_or(0, str::len) as f64;
    if let Some(map) = step.get("precompiled_charsmap").and_then(Value::as_str) {
        return precompiled(path, key, map);
    }
    if let Some(pattern) = step.get("pattern").filter(|_| step.get("content").is_some()) {
        let content = length(&step["content"]);
        // A regular expression may match between any two characters.
        return Ok(match pattern.get("String").map(length).filter(|length| *length > 0.0) {
            Some(pattern) => (content / pattern).max(1.0),
            None => 1.0 + content,
        });
    }
    if let Some(prepend) = step.get("prepend") {
        return Ok(1.0 + length(prepend));
    }
    // The longest that Unicode has: U+FDFA, of 3 bytes, becomes 33.
    Ok(match step.get("type").and_then(Value::as_str).unwrap_or_default() {
        "NFKC" | "NFKD" => 12.0,
        "BertNormalizer" => 8.0,
        "NFC" | "NFD" | "Metaspace" => 4.0,
        "Lowercase" | "ByteLevel" => 2.0,
        "BPEDecoder" if step.get("suffix").is_some_and(|suffix| length(suffix) == 0.0) => 2.0,
        _ => 1.0,
    })
}

/// SentencePiece's table: four bytes that say how many are the trie, the trie, and what its entries become, each ended by a zero.
fn precompiled(path: &Path, key: &str, map: &str) -> Result<f64> {
    let expected = "base64";
    let bytes = STANDARD.decode(map).map_err(|error| Error::file(path, charsmap(key), error, expected))?;
    check_charsmap(path, &charsmap(key), &bytes)
}

fn charsmap(key: &str) -> String {
    format!("{key}: precompiled_charsmap")
}

/// Refuses a table that asks for more than it holds; how long the longest entry is.
pub(super) fn check_charsmap(path: &Path, key: &str, bytes: &[u8]) -> Result<f64> {
    let Some((head, rest)) = bytes.split_first_chunk::<4>() else {
        return Err(Error::file(path, key, format!("{} bytes", bytes.len()), "at least 4"));
    };
    let trie = u32::from_le_bytes(*head) as usize;
    if trie > rest.len() {
        return Err(Error::file(
            path,
            key,
            format!("a trie of {trie} bytes"),
            format!("at most the {} there", rest.len()),
        ));
    }
    let longest = rest[trie / 4 * 4..].split(|byte| *byte == 0).map(<[u8]>::len).max();
    Ok((longest.unwrap_or(0) as f64).max(1.0))
}

fn tokens(path: &Path, file: &Value) -> Result<()> {
    let long = |key: &str, text: &str| {
        let found = format!("a token of {} bytes", text.len());
        Err(Error::file(path, key, found, format!("at most {MAX_TOKEN}")))
    };
    let mut all = 0;
    for token in file["added_tokens"].as_array().into_iter().flatten() {
        let text = token["content"].as_str().unwrap_or_default();
        all += text.len();
        if text.len() > MAX_TOKEN {
            return long("added_tokens", text);
        }
    }
    if all > MAX_ADDED {
        return Err(Error::file(
            path,
            "added_tokens",
            format!("{all} bytes of tokens"),
            format!("at most {MAX_ADDED}"),
        ));
    }
    for key in ["unk_token", "continuing_subword_prefix", "end_of_word_suffix"] {
        let text = file["model"][key].as_str().unwrap_or_default();
        if text.len() > MAX_TOKEN {
            return long(key, text);
        }
    }
    Ok(())
}

/// What stands around a text.
struct Around {
    special: usize,
    texts: usize,
}

fn around(path: &Path, processor: &Value) -> Result<Around> {
    let nothing = Around { special: 0, texts: 1 };
    if let Some(steps) = processor.get("processors").and_then(Value::as_array) {
        return steps.iter().try_fold(nothing, |all, step| {
            let next = around(path, step)?;
            // What stands around already is repeated too.
            let special = all.special.saturating_mul(next.texts).saturating_add(next.special);
            Ok(Around { special, texts: all.texts.saturating_mul(next.texts) })
        });
    }
    let Some(known) = processor.get("special_tokens").and_then(Value::as_object) else {
        return Ok(nothing);
    };
    let tokens: usize = known
        .values()
        .flat_map(|token| token["tokens"].as_array())
        .flatten()
        .map(|token| token.as_str().map_or(0, str::len))
        .sum();
    if tokens > MAX_TOKEN * MAX_AROUND {
        let found = format!("special tokens of {tokens} bytes");
        return Err(Error::file(path, "post_processor", found, format!("at most {}", MAX_TOKEN * MAX_AROUND)));
    }
    let of = |key: &str| {
        let pieces = processor[key].as_array().map(Vec::as_slice).unwrap_or_default();
        let special = pieces.iter().filter_map(|piece| piece.get("SpecialToken")?.get("id")?.as_str());
        let special =
            special.map(|id| known.get(id).and_then(|token| token["ids"].as_array()).map_or(1, Vec::len)).sum();
        Around { special, texts: pieces.iter().filter(|piece| piece.get("Sequence").is_some()).count() }
    };
    let (single, pair) = (of("single"), of("pair"));
    Ok(Around { special: single.special.max(pair.special), texts: single.texts.max(pair.texts).max(1) })
}
