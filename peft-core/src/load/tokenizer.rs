use std::path::{Path, PathBuf};

use tokenizers::{Encoding, PostProcessor, PostProcessorWrapper, TruncationParams, truncate_encodings};

#[cfg(feature = "load")]
use super::Gguf;
use super::guard;
use crate::files::read_file;
use crate::random::fingerprint;
use crate::{Error, Result};

/// The largest tokenizer file that is read, in bytes.
const MAX_TOKENIZER: u64 = 256 << 20;

/// A tokenizer as `tokenizer.json` or the metadata of a GGUF file describes it.
///
/// Truncation and padding that the file may ask for are ignored: [`encode`](Self::encode) truncates to the length it is
/// given and never pads.
pub struct Tokenizer {
    path: PathBuf,
    /// Rows of the model's word table. A file may list tokens beyond them that no text has.
    vocab: usize,
    fingerprint: u64,
    /// Without its post-processor, so that it gives back the plain tokens of one text.
    inner: tokenizers::Tokenizer,
    /// Adds the special tokens.
    finish: Option<PostProcessorWrapper>,
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
    /// Reads `tokenizer.json` of a model directory, or what its GGUF file says; `vocab` is the number of embeddings the
    /// model has.
    pub fn from_dir(dir: &Path, vocab: usize) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        if path.exists() {
            return Self::parse(path.clone(), &read_file(&path, MAX_TOKENIZER)?, vocab);
        }
        #[cfg(feature = "load")]
        if let Some(path) = Gguf::find(dir)? {
            return Self::from_gguf(&Gguf::open(&path)?, vocab);
        }
        Err(Error::file(dir, "tokenizer", "none", "tokenizer.json, as the tokenizers library saves it"))
    }

    /// The tokenizer of a GGUF file; `vocab` is the number of embeddings the model has.
    #[cfg(feature = "load")]
    pub fn from_gguf(gguf: &Gguf, vocab: usize) -> Result<Self> {
        let tokenizer = Self::parse(gguf.path().to_path_buf(), gguf.tokenizer()?.to_string().as_bytes(), vocab)?;
        // Rows without a token are padding; a token without a row is of another model.
        match tokenizer.inner.get_vocab_size(true) {
            size if size <= vocab => Ok(tokenizer),
            size => {
                let expected = format!("at most {vocab}, the rows of the word table");
                Err(Error::file(gguf.path(), "tokenizer.ggml.tokens", format!("{size} tokens"), expected))
            }
        }
    }

    fn parse(path: PathBuf, bytes: &[u8], vocab: usize) -> Result<Self> {
        let expected = "a tokenizer as the tokenizers library saves it";
        let mut inner = guard(&path, "tokenizer", expected, || tokenizers::Tokenizer::from_bytes(bytes))?
            .map_err(|error| Error::file(&path, "tokenizer", error, expected))?;
        if inner.get_vocab_size(true) == 0 {
            return Err(Error::file(&path, "vocab", "no tokens", "the vocabulary of the model"));
        }
        inner.with_truncation(None).map_err(|error| Error::file(&path, "truncation", error, "none"))?;
        inner.with_padding(None);
        let finish = inner.get_post_processor().cloned();
        inner.with_post_processor(None::<PostProcessorWrapper>);
        Ok(Tokenizer { path, vocab, fingerprint: fingerprint("tokenizer", bytes), inner, finish })
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
    /// Of a pair that is too long, the longer text is cut first. Texts are cut at the end.
    pub fn encode(&self, a: &str, b: Option<&str>, max_length: usize) -> Result<Encoded> {
        let special = self.finish.as_ref().map_or(0, |finish| finish.added_tokens(b.is_some()));
        if special >= max_length {
            let expected = format!("more than the {special} special tokens that the tokenizer adds");
            return Err(Error::config("max_length", max_length, expected));
        }
        let expected = "a tokenizer that can encode every text";
        let encoded = guard(&self.path, "tokenizer", expected, || self.run(a, b, max_length - special))?
            .map_err(|error| Error::file(&self.path, "tokenizer", error, expected))?;
        self.check(&encoded.ids)?;
        if encoded.ids.len() > max_length {
            let found = format!("{} tokens, more than it announces", encoded.ids.len());
            return Err(Error::file(&self.path, "post_processor", found, format!("at most {max_length}")));
        }
        Ok(encoded)
    }

    /// The tokens of a text alone, without special tokens around them.
    pub fn plain(&self, text: &str) -> Result<Vec<u32>> {
        let expected = "a tokenizer that can encode every text";
        let encoded = guard(&self.path, "tokenizer", expected, || self.inner.encode_fast(text, false))?
            .map_err(|error| Error::file(&self.path, "tokenizer", error, expected))?;
        self.check(encoded.get_ids())?;
        Ok(encoded.get_ids().to_vec())
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
        let expected = "a tokenizer that can decode its tokens";
        guard(&self.path, "tokenizer", expected, || self.inner.decode(ids, true))?
            .map_err(|error| Error::file(&self.path, "tokenizer", error, expected))
    }

    fn run(&self, a: &str, b: Option<&str>, max_length: usize) -> tokenizers::Result<Encoded> {
        let a = self.inner.encode_fast(a, false)?;
        let b = b.map(|b| self.inner.encode_fast(b, false)).transpose()?;
        let limit = TruncationParams { max_length, ..Default::default() };
        let (a, b) = truncate_encodings(a, b, &limit)?;
        let Some(finish) = &self.finish else {
            let of_b = b.as_ref().map_or(&[][..], Encoding::get_ids);
            let types = [vec![0; a.len()], vec![1; of_b.len()]].concat();
            return Ok(Encoded { ids: [a.get_ids(), of_b].concat(), types });
        };
        let whole = finish.process(a, b, true)?;
        Ok(Encoded { ids: whole.get_ids().to_vec(), types: whole.get_type_ids().to_vec() })
    }
}
