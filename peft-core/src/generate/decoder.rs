//! The model at work on a batch of texts, one token at a time.

use crate::{Architecture, Base, Batch, Cache, Error, Example, Result, Trained, Tuner};

/// Texts in progress.
pub(super) struct Decoder<'a, T: Tuner> {
    base: &'a Base,
    trained: &'a Trained<T>,
    cache: Option<Cache>,
    /// What an encoder reads, a list for each text; empty without one.
    sources: Vec<Example>,
    /// What the decoder has seen, prompts included.
    texts: Vec<Vec<u32>>,
}

impl<'a, T: Tuner> Decoder<'a, T> {
    pub fn new(base: &'a Base, trained: &'a Trained<T>, prompts: &[Vec<u32>], use_cache: bool) -> Result<Self> {
        let shape = base.shape();
        if let Some(empty) = prompts.iter().position(Vec::is_empty) {
            return Err(Error::config(format!("prompt {empty}"), "no token", "at least one"));
        }
        if let Some(id) = prompts.iter().flatten().find(|id| **id as usize >= shape.vocab) {
            let expected = format!("ids below {}, the model's vocabulary", shape.vocab);
            return Err(Error::config("input_ids", id, expected));
        }
        let source = |ids: &Vec<u32>| Example { ids: ids.clone(), ..Default::default() };
        let (sources, texts) = match shape.architecture {
            Architecture::T5(t5) => (prompts.iter().map(source).collect(), vec![vec![t5.start as u32]; prompts.len()]),
            _ => (vec![], prompts.to_vec()),
        };
        Ok(Decoder { base, trained, cache: use_cache.then(Cache::default), sources, texts })
    }

    /// Logits of the next token of each text.
    pub fn logits(&self) -> Result<Vec<Vec<f32>>> {
        let (shape, device) = (self.base.shape(), self.base.device());
        // Of what the cache knows only the last token is new.
        let known = self.cache.as_ref().is_some_and(|cache| cache.rows() > 0);
        let new = |text: &Vec<u32>| if known { vec![text[text.len() - 1]] } else { text.clone() };
        let texts: Vec<Vec<u32>> = self.texts.iter().map(new).collect();
        let mut batch = match self.sources.is_empty() {
            true => Batch::padded_in_front(&texts, shape.pad, device)?,
            false => Batch::new(&self.sources, shape.pad, device)?.with_decoder(&texts, device)?,
        };
        batch.cache = self.cache.clone();
        let hidden = self.trained.tuner.run(self.base, &batch)?;
        let [size, rows, _] = hidden.states.dims();
        let last = hidden.states.narrow(1, rows - 1, 1);
        let logits = self.trained.head.words(last, hidden.words, shape).into_data();
        let logits: Vec<f32> = logits.iter::<f32>().collect();
        if let Some(bad) = logits.iter().find(|x| !x.is_finite()) {
            return Err(Error::Check { what: "generation", detail: format!("a logit is {bad}") });
        }
        Ok(logits.chunks(logits.len() / size).map(<[f32]>::to_vec).collect())
    }

    /// Appends a token to each text.
    pub fn push(&mut self, tokens: &[u32]) {
        for (text, token) in self.texts.iter_mut().zip(tokens) {
            text.push(*token);
        }
    }

    /// Goes on with these of the texts, in this order; one may stand several times.
    pub fn select(&mut self, rows: &[usize]) {
        self.texts = rows.iter().map(|row| self.texts[*row].clone()).collect();
        if !self.sources.is_empty() {
            self.sources = rows.iter().map(|row| self.sources[*row].clone()).collect();
        }
        if let Some(cache) = self.cache.as_ref().filter(|_| !rows.is_empty()) {
            cache.select(rows, self.base.device());
        }
    }
}
