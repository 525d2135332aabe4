//! SentencePiece's model files (`tokenizer.model`, `spiece.model`): a protocol buffer, of which the fields that count are read.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::files::read_file;
use crate::{Error, Result};

/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 64 << 20;
/// The longest piece, in bytes.
const MAX_PIECE: usize = 1024;

/// How a file cuts texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Unigram,
    Bpe,
}

/// A piece of text.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Piece {
    pub text: String,
    pub score: f32,
    /// SentencePiece's number: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    pub kind: u64,
}

/// What a file holds.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SentencePiece {
    pub path: PathBuf,
    /// In the order of their ids.
    pub pieces: Vec<Piece>,
    pub kind: Kind,
    pub byte_fallback: bool,
    /// Ids of the unknown piece, of the first and of the last; negative where there is none.
    pub unknown: i64,
    pub first: i64,
    pub last: i64,
    /// Their texts.
    pub texts: [String; 3],
    /// The table of a normalization; empty without one.
    pub charsmap: Vec<u8>,
}

/// A value on the wire.
enum Wire<'a> {
    Number(u64),
    Float(f32),
    Bytes(&'a [u8]),
}

/// The fields of a message, one after the other.
struct Message<'a> {
    path: &'a Path,
    bytes: &'a [u8],
}

impl<'a> Message<'a> {
    fn number(&mut self) -> Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.bytes.split_first().ok_or_else(|| self.wrong("its end in a number"))?;
            self.bytes = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.wrong("a number of more than 64 bits"))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(length).ok_or_else(|| self.wrong("its end in a field"))?;
        self.bytes = rest;
        Ok(taken)
    }

    fn next(&mut self) -> Result<Option<(u64, Wire<'a>)>> {
        if self.bytes.is_empty() {
            return Ok(None);
        }
        let tag = self.number()?;
        let value = match tag & 7 {
            0 => Wire::Number(self.number()?),
            1 => Wire::Bytes(self.take(8)?),
            2 => {
                let length = self.number()?;
                Wire::Bytes(self.take(usize::try_from(length).unwrap_or(usize::MAX))?)
            }
            5 => {
                let bytes = self.take(4)?;
                Wire::Float(f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
            }
            _ => return Err(self.wrong("a field of no known kind")),
        };
        Ok(Some((tag >> 3, value)))
    }

    fn inner(&self, bytes: &'a [u8]) -> Self {
        Message { path: self.path, bytes }
    }

    fn text(&self, bytes: &[u8]) -> Result<String> {
        String::from_utf8(bytes.to_vec()).map_err(|_| self.wrong("a text that is no UTF-8"))
    }

    fn wrong(&self, found: &str) -> Error {
        Error::file(self.path, "content", found, "a SentencePiece model")
    }
}

impl SentencePiece {
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = read_file(path, MAX_FILE)?;
        let texts = ["<unk>", "<s>", "</s>"].map(str::to_string);
        let mut file = SentencePiece {
            path: path.to_path_buf(),
            pieces: vec![],
            kind: Kind::Unigram,
            byte_fallback: false,
            unknown: 0,
            first: 1,
            last: 2,
            texts,
            charsmap: vec![],
        };
        let mut message = Message { path, bytes: &bytes };
        while let Some((field, value)) = message.next()? {
            match (field, value) {
                (1, Wire::Bytes(bytes)) => file.piece(message.inner(bytes))?,
                (2, Wire::Bytes(bytes)) => file.trainer(message.inner(bytes))?,
                (3, Wire::Bytes(bytes)) => file.normalizer(message.inner(bytes))?,
                _ => {}
            }
        }
        if file.pieces.is_empty() {
            return Err(message.wrong("no pieces"));
        }
        Ok(file)
    }

    fn piece(&mut self, mut message: Message<'_>) -> Result<()> {
        let mut piece = Piece { text: String::new(), score: 0.0, kind: 1 };
        while let Some((field, value)) = message.next()? {
            match (field, value) {
                (1, Wire::Bytes(bytes)) => piece.text = message.text(bytes)?,
                (2, Wire::Float(score)) => piece.score = score,
                (3, Wire::Number(kind)) => piece.kind = kind,
                _ => {}
            }
        }
        let key = format!("piece {}", self.pieces.len());
        if piece.text.len() > MAX_PIECE {
            return Err(Error::file(
                &self.path,
                key,
                format!("{} bytes", piece.text.len()),
                format!("at most {MAX_PIECE}"),
            ));
        }
        if !piece.score.is_finite() {
            return Err(Error::file(&self.path, key, format!("the score {}", piece.score), "a finite number"));
        }
        self.pieces.push(piece);
        Ok(())
    }

    fn trainer(&mut self, mut message: Message<'_>) -> Result<()> {
        while let Some((field, value)) = message.next()? {
            match (field, value) {
                (3, Wire::Number(1)) => self.kind = Kind::Unigram,
                (3, Wire::Number(2)) => self.kind = Kind::Bpe,
                (3, Wire::Number(kind)) => {
                    let expected = "1, unigram, or 2, byte-pair encoding";
                    return Err(Error::file(&self.path, "model_type", kind, expected));
                }
                (35, Wire::Number(flag)) => self.byte_fallback = flag != 0,
                // A negative number is written as one of 64 bits.
                (40, Wire::Number(id)) => self.unknown = id as i64,
                (41, Wire::Number(id)) => self.first = id as i64,
                (42, Wire::Number(id)) => self.last = id as i64,
                (field @ 45..=47, Wire::Bytes(bytes)) => self.texts[field as usize - 45] = message.text(bytes)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn normalizer(&mut self, mut message: Message<'_>) -> Result<()> {
        while let Some((field, value)) = message.next()? {
            if let (2, Wire::Bytes(bytes @ [_, ..])) = (field, value) {
                super::bounds::check_charsmap(&self.path, "precompiled_charsmap", bytes)?;
                self.charsmap = bytes.to_vec();
            }
        }
        Ok(())
    }

    /// Ids by pieces; of equal ones the last counts.
    pub fn ids(&self) -> HashMap<&str, usize> {
        self.pieces.iter().enumerate().map(|(id, piece)| (piece.text.as_str(), id)).collect()
    }

    /// Pairs of pieces whose joined text is a piece, in transformers' order: by the id of that, then by the lengths of both sides, then
    /// by their ids.
    pub fn merges(&self) -> Vec<(&str, &str)> {
        let ids = self.ids();
        let mut merges = vec![];
        for (text, id) in &ids {
            for (at, _) in text.char_indices().skip(1) {
                let (left, right) = text.split_at(at);
                if let (Some(a), Some(b)) = (ids.get(left), ids.get(right)) {
                    merges.push((*id, left.chars().count(), right.chars().count(), *a, *b, left, right));
                }
            }
        }
        merges.sort_unstable();
        merges.into_iter().map(|(.., left, right)| (left, right)).collect()
    }
}
