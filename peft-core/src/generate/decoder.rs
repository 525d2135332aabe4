//! The model at work on a batch of texts, one token at a time.

use super::Prompt;
use super::rules::Context;
use crate::transfer::read;
use crate::{Base, Batch, Cache, Error, Example, Result, Trained, Tuner};

/// Texts in progress.
pub(super) struct Decoder<'a, T: Tuner> {
    base: &'a Base,
    trained: &'a Trained<T>,
    cache: Option<Cache>,
    /// What an encoder reads, a list for each text; empty without one.
    sources: Vec<Example>,
    /// What the decoder sees, prompts included.
    texts: Vec<Vec<u32>>,
    /// How much of each text is its prompt, or what a decoder behind an encoder starts with.
    starts: Vec<usize>,
    /// What of it is not in the cache yet.
    fresh: Vec<Vec<u32>>,
    /// The task of each text.
    tasks: Vec<usize>,
}

impl<'a, T: Tuner> Decoder<'a, T> {
    /// `start` is the token that a decoder behind an encoder begins with, if it is not the model's.
    pub fn new(
        base: &'a Base,
        trained: &'a Trained<T>,
        prompts: &[Prompt],
        use_cache: bool,
        start: Option<u32>,
    ) -> Result<Self> {
        let shape = base.shape();
        if let Some(empty) = prompts.iter().position(|prompt| prompt.ids.is_empty()) {
            return Err(Error::config(format!("prompt {empty}"), "no token", "at least one"));
        }
        prompts.iter().try_for_each(|prompt| shape.check_ids(&prompt.ids))?;
        let source = |prompt: &Prompt| Example { ids: prompt.ids.clone(), ..Default::default() };
        let (sources, texts) = match shape.architecture.start() {
            Some(own) => {
                let start = start.unwrap_or(own as u32);
                (prompts.iter().map(source).collect(), vec![vec![start]; prompts.len()])
            }
            None => (vec![], prompts.iter().map(|prompt| prompt.ids.clone()).collect()),
        };
        let (fresh, tasks) = (texts.clone(), prompts.iter().map(|prompt| prompt.task).collect());
        let starts = texts.iter().map(Vec::len).collect();
        // Where positions are scaled as a text grows, keys that were turned before are of another scale.
        let use_cache = use_cache && shape.dynamic().is_none();
        Ok(Decoder { base, trained, cache: use_cache.then(Cache::default), sources, texts, starts, fresh, tasks })
    }

    /// Computes the first tokens of a decoder's only text, for others to go on from.
    pub fn keep(&mut self, tokens: usize) -> Result<()> {
        if tokens > 0 && self.sources.is_empty() {
            let rest = self.fresh[0].split_off(tokens);
            self.run(&self.fresh)?;
            self.fresh[0] = rest;
        }
        Ok(())
    }

    /// The same with another text, which begins with what was kept.
    pub fn fork(&self, Prompt { ids: text, task }: Prompt) -> Self {
        let (cache, tasks) = (self.cache.as_ref().map(Cache::fork), vec![task]);
        if !self.sources.is_empty() {
            let sources = vec![Example { ids: text, ..Default::default() }];
            let (texts, starts, fresh) = (self.texts.clone(), self.starts.clone(), self.fresh.clone());
            return Decoder { cache, sources, texts, starts, fresh, tasks, ..*self };
        }
        let kept = self.texts[0].len() - self.fresh[0].len();
        let fresh = vec![text[kept..].to_vec()];
        Decoder { cache, sources: vec![], starts: vec![text.len()], texts: vec![text], fresh, tasks, ..*self }
    }

    /// What rules for the next token of a text look at.
    pub fn context(&self, row: usize) -> Context<'_> {
        let (seen, start) = (&self.texts[row], self.starts[row]);
        let given = self.sources.get(row).map_or(&seen[..start], |source| &source.ids);
        Context { seen, start, given }
    }

    /// Logits of the next token of each text.
    pub fn logits(&self) -> Result<Vec<Vec<f32>>> {
        self.run(if self.cache.is_some() { &self.fresh } else { &self.texts })
    }

    /// Runs what is new of each text; gives the logits behind its end.
    fn run(&self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>> {
        let (shape, device) = (self.base.shape(), self.base.device());
        let mut batch = match self.sources.is_empty() {
            true => Batch::padded_in_front(texts, shape.pad, device)?,
            false => Batch::new(&self.sources, shape.pad, device)?.with_decoder(texts, device)?,
        };
        (batch.cache, batch.tasks) = (self.cache.clone(), self.tasks.clone());
        let hidden = self.trained.run(self.base, &batch)?;
        let [size, rows, _] = hidden.states.dims();
        let last = hidden.states.narrow(1, rows - 1, 1);
        let logits = read(self.trained.head.words(last, hidden.words, shape));
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
        self.fresh = tokens.iter().map(|token| vec![*token]).collect();
    }

    /// Goes on with these of the texts, in this order; one may stand several times.
    pub fn select(&mut self, rows: &[usize]) {
        self.texts = rows.iter().map(|row| self.texts[*row].clone()).collect();
        self.starts = rows.iter().map(|row| self.starts[*row]).collect();
        self.fresh = rows.iter().map(|row| self.fresh[*row].clone()).collect();
        self.tasks = rows.iter().map(|row| self.tasks[*row]).collect();
        if !self.sources.is_empty() {
            self.sources = rows.iter().map(|row| self.sources[*row].clone()).collect();
        }
        if let Some(cache) = self.cache.as_ref().filter(|_| !rows.is_empty()) {
            cache.select(rows, self.base.device());
        }
    }
}
