//! Texts whose tokens are to be told apart by their words.

use std::ops::Range;

use tokenizers::{
    InputSequence, PostProcessor, PreTokenizerWrapper, TruncationParams, TruncationStrategy, truncate_encodings,
};

use super::{Encoded, MAX_TEXT, Tokenizer, guard};
use crate::{Error, Result};

impl Tokenizer {
    /// Encodes a text whose words are given, as transformers does with `is_split_into_words`; gives also the word that each token is of,
    /// none of a special token. Words of RoBERTa, which knows a space as part of a word, get one in front.
    pub fn encode_words(&self, words: &[String], max_length: usize) -> Result<(Encoded, Vec<Option<usize>>)> {
        match self.inner.get_pre_tokenizer() {
            Some(PreTokenizerWrapper::ByteLevel(level)) if !level.add_prefix_space => {
                let spaced: Vec<String> = words.iter().map(|word| format!(" {word}")).collect();
                self.told_apart(spaced.as_slice().into(), &words.join(" "), max_length)
            }
            _ => self.told_apart(words.into(), &words.join(" "), max_length),
        }
    }

    /// The same of a text in whose words the tokenizer may cut it itself.
    pub fn encode_text(&self, text: &str, max_length: usize) -> Result<(Encoded, Vec<Option<usize>>)> {
        self.told_apart(text.into(), text, max_length)
    }

    /// Encodes a question and a text whose end is cut off where both are too long; gives also the bytes of the text that each token is
    /// of, none of the question's and of special tokens.
    pub fn encode_question(
        &self,
        question: &str,
        text: &str,
        max_length: usize,
    ) -> Result<(Encoded, Vec<Option<Range<usize>>>)> {
        let room = self.room(max_length, true)?;
        let Some(finish) = &self.finish else {
            let expected = "one that sets a question and a text apart";
            return Err(Error::file(&self.path, "post_processor", "none", expected));
        };
        for text in [question, text] {
            self.check_size(text)?;
        }
        let asked = self.tokens(question, usize::MAX, false)?;
        if asked.len() >= room {
            let found = format!("a question of {} tokens", asked.len());
            return Err(Error::config("max_length", found, format!("room for it and for a text in {room} tokens")));
        }
        let strategy = TruncationStrategy::OnlySecond;
        let limit = TruncationParams { max_length: room, strategy, ..Default::default() };
        let run = || {
            let text = self.inner.encode(text, false)?;
            let (asked, text) = truncate_encodings(asked, Some(text), &limit)?;
            finish.process(asked, text, true)
        };
        let expected = "a tokenizer that can encode every text";
        let encoded = guard(&self.path, "tokenizer", expected, run)?
            .map_err(|error| Error::file(&self.path, "tokenizer", error, expected))?;
        let of_text = encoded.get_sequence_ids().into_iter().map(|sequence| sequence == Some(1));
        let places = encoded.get_offsets().iter().zip(of_text);
        let places = places.map(|((start, end), of_text)| of_text.then_some(*start..*end)).collect();
        let types = self.types(encoded.get_type_ids().to_vec());
        Ok((self.checked(Encoded { ids: encoded.get_ids().to_vec(), types }, max_length)?, places))
    }

    /// Refuses a text that is too long to be cut into tokens at a time.
    fn check_size(&self, text: &str) -> Result<()> {
        if text.len() > MAX_TEXT {
            return Err(Error::config("text", format!("{} bytes", text.len()), format!("at most {MAX_TEXT}")));
        }
        self.growth.check_text(&self.path, text)
    }

    /// A token as the vocabulary writes it.
    pub fn token(&self, id: u32) -> String {
        self.inner.id_to_token(id).unwrap_or_default()
    }

    fn told_apart(
        &self,
        input: InputSequence<'_>,
        text: &str,
        max_length: usize,
    ) -> Result<(Encoded, Vec<Option<usize>>)> {
        let room = self.room(max_length, false)?;
        self.check_size(text)?;
        let run = || {
            let encoded = self.inner.encode(input, false)?;
            let (encoded, _) = truncate_encodings(encoded, None, &self.limit(room))?;
            match &self.finish {
                Some(finish) => finish.process(encoded, None, true),
                None => Ok(encoded),
            }
        };
        let expected = "a tokenizer that can encode every text";
        let encoded = guard(&self.path, "tokenizer", expected, run)?
            .map_err(|error| Error::file(&self.path, "tokenizer", error, expected))?;
        let words = encoded.get_word_ids().iter().map(|word| word.map(|word| word as usize)).collect();
        let types = self.types(encoded.get_type_ids().to_vec());
        Ok((self.checked(Encoded { ids: encoded.get_ids().to_vec(), types }, max_length)?, words))
    }
}
