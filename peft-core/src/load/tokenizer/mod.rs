//! Tokenizers, as transformers makes them of what a model's folder holds.

mod bounds;
#[cfg(feature = "chat")]
mod chat;
mod class;
mod fields;
mod folder;
mod make;
mod sentencepiece;
mod steps;
mod vocabulary;
mod words;

use std::path::PathBuf;

#[cfg(feature = "chat")]
use serde_json::Value;
use tokenizers::{
    Encoding, PostProcessor, PostProcessorWrapper, TruncationDirection, TruncationParams, truncate_encodings,
};

#[cfg(feature = "chat")]
pub use chat::Conversation;
pub use class::Class;
pub use fields::{FIELDS, Use};

use super::guard;
use crate::warning::warn;
use crate::{Error, Result};
use bounds::Growth;

/// The longest text, or part of one, that is cut into tokens at a time, in bytes: some two hundred times as many are needed for it.
const MAX_TEXT: usize = 4 << 20;
/// How many bytes of a text are looked at for each token that is wanted, at first.
const BYTES_A_TOKEN: usize = 64;
/// So many tokens before the end of a part of a text, the rest of the text matters no more.
const MARGIN: usize = 64;
/// The longest token that a folder may add, in bytes.
const MAX_ADDED: usize = 1024;

/// A tokenizer as a model's folder describes it, or the metadata of a GGUF file.
///
/// The class that transformers would take decides how `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and
/// `added_tokens.json` go together ([`Class`]); without `tokenizer.json` it is made from `vocab.txt`, `vocab.json` with `merges.txt`, or
/// SentencePiece's `tokenizer.model` or `spiece.model`. What has no effect is named in a [warning](crate::warning).
///
/// [`encode`](Self::encode) truncates to the length it is given and never pads. Texts are always cut the same way: a dropout of
/// merges that a file asks for is off.
pub struct Tokenizer {
    path: PathBuf,
    /// Rows of the model's word table. A file may list tokens beyond them that no text has.
    vocab: usize,
    fingerprint: u64,
    /// Without its post-processor, so that it gives back the plain tokens of one text.
    inner: tokenizers::Tokenizer,
    /// Adds the special tokens.
    finish: Option<PostProcessorWrapper>,
    growth: Growth,
    settings: Settings,
    #[cfg(feature = "chat")]
    chat: Option<chat::Template>,
}

/// What `tokenizer_config.json` says beside the tokens.
#[derive(Clone, Copy, Debug)]
struct Settings {
    /// Whether a text that is too long loses its beginning.
    from_left: bool,
    /// Whether the model is told which text a token is of.
    types: bool,
    /// Whether decoding removes blanks before punctuation.
    clean: bool,
    /// The longest text of the model.
    max_length: Option<usize>,
}

/// The tokens of a text or of a pair of texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids, all smaller than the vocabulary.
    pub ids: Vec<u32>,
    /// Segment of each token: 0 for the first text, 1 for the second where the model tells them apart.
    pub types: Vec<u32>,
}

impl Tokenizer {
    fn is_bpe(&self) -> bool {
        matches!(self.inner.get_model(), tokenizers::ModelWrapper::BPE(_))
    }

    /// A hash of what describes it.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Whether a token stands for a byte, as `<0x0A>`: several in a row are a text only together.
    pub fn is_byte(&self, id: u32) -> bool {
        let token = self.inner.id_to_token(id).unwrap_or_default();
        token.len() == 6 && token.starts_with("<0x") && token.ends_with('>')
    }

    /// Encodes a text or a pair of texts with the special tokens of the model, in at most `max_length` tokens.
    ///
    /// Of a pair that is too long, the longer text is cut first. Texts are cut at the end, or where the model's files say so at the
    /// beginning. Of a text far longer than its tokens may be only as much is looked at as they need. Without a limit, texts of more than 4 MiB are refused.
    pub fn encode(&self, a: &str, b: Option<&str>, max_length: usize) -> Result<Encoded> {
        let (limit, left) = (self.room(max_length, b.is_some())?, self.settings.from_left);
        let a = self.tokens(a, limit, left)?;
        let b = b.map(|b| self.tokens(b, limit, left)).transpose()?;
        let expected = "a tokenizer that can encode every text";
        let encoded = guard(&self.path, "tokenizer", expected, || self.joined(a, b, limit))?
            .map_err(|error| Error::file(&self.path, "tokenizer", error, expected))?;
        self.checked(encoded, max_length)
    }

    /// How many of so many tokens are left beside the special ones.
    fn room(&self, max_length: usize, pair: bool) -> Result<usize> {
        let special = self.finish.as_ref().map_or(0, |finish| finish.added_tokens(pair));
        if special >= max_length {
            let expected = format!("more than the {special} special tokens that the tokenizer adds");
            return Err(Error::config("max_length", max_length, expected));
        }
        Ok(max_length - special)
    }

    /// Refuses what the model, or the one who asked, cannot take.
    fn checked(&self, encoded: Encoded, max_length: usize) -> Result<Encoded> {
        self.check(&encoded.ids)?;
        if encoded.ids.len() > max_length {
            let found = format!("{} tokens, more than it announces", encoded.ids.len());
            return Err(Error::file(&self.path, "post_processor", found, format!("at most {max_length}")));
        }
        if let Some(longest) = self.settings.max_length.filter(|longest| encoded.ids.len() > *longest) {
            // As transformers does, which cuts to another length if that is asked for.
            warn(
                &self.path,
                "model_max_length",
                format!("is {longest}: there are longer texts, which are not cut to it"),
            );
        }
        Ok(encoded)
    }

    /// The first tokens of a text alone, at most so many, without special tokens around them.
    pub fn plain(&self, text: &str, most: usize) -> Result<Vec<u32>> {
        let encoding = self.tokens(text, most, false)?;
        let ids = &encoding.get_ids()[..encoding.len().min(most)];
        self.check(ids)?;
        Ok(ids.to_vec())
    }

    /// Messages (objects with a role and a content) as the model's chat template writes them, with the beginning of an `answer` behind
    /// them or not.
    #[cfg(feature = "chat")]
    pub fn chat_text(&self, messages: &[Value], answer: bool) -> Result<String> {
        self.template()?.render(messages, answer)
    }

    /// The tokens of that text with the beginning of an answer; the template has put all special ones in it.
    #[cfg(feature = "chat")]
    pub fn chat(&self, messages: &[Value]) -> Result<Vec<u32>> {
        self.plain(&self.chat_text(messages, true)?, usize::MAX)
    }

    /// The text of messages as the model's chat template writes them, and the turns of the assistant in it: what the template marks by
    /// `{% generation %}`, else what it writes of each turn behind the messages before.
    #[cfg(feature = "chat")]
    pub fn conversation(&self, messages: &[Value]) -> Result<Conversation> {
        self.template()?.turns(messages)
    }

    /// The first tokens of that text, at most so many, and which of them are of a turn of the assistant, as transformers' mask has them.
    #[cfg(feature = "chat")]
    pub fn turns(&self, messages: &[Value], most: usize) -> Result<(Vec<u32>, Vec<bool>)> {
        let Conversation { text, turns } = self.conversation(messages)?;
        if text.len() > MAX_TEXT {
            return Err(Error::config("messages", format!("{} bytes", text.len()), format!("at most {MAX_TEXT}")));
        }
        self.growth.check_text(&self.path, &text)?;
        let expected = "a tokenizer that can encode every text";
        let encoding = guard(&self.path, "tokenizer", expected, || self.inner.encode(text.as_str(), false))?
            .map_err(|error| Error::file(&self.path, "tokenizer", error, expected))?;
        let ids = &encoding.get_ids()[..encoding.len().min(most)];
        self.check(ids)?;
        let within = |(start, end): &(usize, usize)| turns.iter().any(|turn| *start < turn.end && turn.start < *end);
        Ok((ids.to_vec(), encoding.get_offsets()[..ids.len()].iter().map(within).collect()))
    }

    #[cfg(feature = "chat")]
    fn template(&self) -> Result<&chat::Template> {
        let expected = "a chat template, as chat_template.jinja or in tokenizer_config.json";
        self.chat.as_ref().ok_or_else(|| Error::file(&self.path, "chat_template", "none", expected))
    }

    /// The tokens of a text, of which so many count, from the end if `left` is to be cut off.
    fn tokens(&self, text: &str, most: usize, left: bool) -> Result<Encoding> {
        let expected = "a tokenizer that can encode every text";
        let mut size = most.saturating_mul(BYTES_A_TOKEN).saturating_add(MAX_ADDED);
        loop {
            let part = part(text, size, left);
            if part.len() > MAX_TEXT {
                let found = format!("{} bytes", text.len());
                return Err(Error::config(
                    "text",
                    found,
                    format!("at most {MAX_TEXT}, or as many tokens as are wanted in them"),
                ));
            }
            self.growth.check_text(&self.path, part)?;
            let encoding = guard(&self.path, "tokenizer", expected, || self.inner.encode_fast(part, false))?
                .map_err(|error| Error::file(&self.path, "tokenizer", error, expected))?;
            if part.len() == text.len() || encoding.len() >= most.saturating_add(MARGIN) {
                return Ok(encoding);
            }
            size = size.saturating_mul(2);
        }
    }

    /// Refuses the ids of a text for which the model has no rows.
    fn check(&self, ids: &[u32]) -> Result<()> {
        let Some(id) = ids.iter().find(|id| **id as usize >= self.vocab) else { return Ok(()) };
        let token = self.inner.id_to_token(*id).map_or("no token".to_string(), |token| format!("the token {token:?}"));
        let (size, vocab) = (self.inner.get_vocab_size(true), self.vocab);
        let expected =
            format!("ids below {vocab}, the rows of the model's word table (the tokenizer has {size} tokens)");
        Err(Error::file(&self.path, "vocab", format!("id {id}, {token}, in a text"), expected))
    }

    /// The text of some tokens, without the special ones among them.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let bytes = ids.iter().filter_map(|id| self.inner.id_to_token(*id)).map(|token| token.len()).sum();
        self.growth.check_tokens(&self.path, bytes)?;
        let expected = "a tokenizer that can decode its tokens";
        let text = guard(&self.path, "tokenizer", expected, || self.inner.decode(ids, true))?
            .map_err(|error| Error::file(&self.path, "tokenizer", error, expected))?;
        Ok(if self.settings.clean { cleaned(text) } else { text })
    }

    fn joined(&self, a: Encoding, b: Option<Encoding>, max_length: usize) -> tokenizers::Result<Encoded> {
        let (a, b) = truncate_encodings(a, b, &self.limit(max_length))?;
        let types = |types| self.types(types);
        let Some(finish) = &self.finish else {
            let of_b = b.as_ref().map_or(&[][..], Encoding::get_ids);
            let segments = [vec![0; a.len()], vec![1; of_b.len()]].concat();
            return Ok(Encoded { ids: [a.get_ids(), of_b].concat(), types: types(segments) });
        };
        let whole = finish.process(a, b, true)?;
        Ok(Encoded { ids: whole.get_ids().to_vec(), types: types(whole.get_type_ids().to_vec()) })
    }

    fn limit(&self, max_length: usize) -> TruncationParams {
        let direction = if self.settings.from_left { TruncationDirection::Left } else { TruncationDirection::Right };
        TruncationParams { max_length, direction, ..Default::default() }
    }

    fn types(&self, types: Vec<u32>) -> Vec<u32> {
        if self.settings.types { types } else { vec![0; types.len()] }
    }
}

/// The beginning of a text, or its end, of about so many bytes: cut at a blank, if there is one near.
fn part(text: &str, size: usize, end: bool) -> &str {
    if text.len() <= size {
        return text;
    }
    let near = |range: std::ops::Range<usize>| text.as_bytes()[range].iter().rposition(u8::is_ascii_whitespace);
    if end {
        let cut = text.ceil_char_boundary(text.len() - size);
        let blank = text.as_bytes()[cut..].iter().take(MAX_ADDED).position(u8::is_ascii_whitespace);
        return &text[cut + blank.unwrap_or(0)..];
    }
    let cut = text.floor_char_boundary(size);
    let from = cut.saturating_sub(MAX_ADDED);
    &text[..near(from..cut).map_or(cut, |blank| from + blank)]
}

/// A decoded text without the blanks that stand before punctuation and contractions, as transformers removes them.
fn cleaned(text: String) -> String {
    let pairs = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    pairs.iter().fold(text, |text, (from, to)| text.replace(from, to))
}
