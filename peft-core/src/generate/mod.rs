//! Texts from a model that predicts words: greedy, by beams, or by sampling.

mod beam;
mod decoder;
mod sample;

use burn::module::Module;
use serde::{Deserialize, Serialize};

pub use sample::candidates;

use crate::random::Random;
use crate::train::argmax;
use crate::{Base, Error, Head, Result, Trained, Tuner};
use beam::Beams;
use decoder::Decoder;

/// The most tokens of a text that may be asked for.
const MAX_NEW_TOKENS: usize = 1 << 20;

/// How to generate, in the names of transformers' `GenerationConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GenerateConfig {
    /// The most tokens of a text.
    pub max_new_tokens: usize,
    /// Tokens that end a text, and are its last; the model's, if not set.
    pub eos_token_id: Option<Vec<u32>>,
    /// Texts that are followed at a time; 1 is greedy.
    pub num_beams: usize,
    /// A beam's score is the sum of its log-probabilities over its length to this power.
    pub length_penalty: f64,
    /// When to stop with beams.
    pub early_stopping: EarlyStopping,
    /// Whether tokens are drawn.
    pub do_sample: bool,
    /// Logits are divided by this before drawing.
    pub temperature: f64,
    /// Only so many of the most probable tokens are drawn from; 0 for all.
    pub top_k: usize,
    /// Only the most probable tokens that together have this probability are drawn from.
    pub top_p: f64,
    /// Decides what is drawn, for each text by its number.
    pub seed: u64,
    /// The number of the first text: texts that are generated batch by batch draw what they would in one.
    pub first: usize,
    /// Whether keys and values of earlier tokens are kept instead of computed again.
    pub use_cache: bool,
}

/// What a text goes on from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Its tokens.
    pub ids: Vec<u32>,
    /// Which of several tasks it is of, for a method that tells them apart.
    pub task: usize,
}

impl From<Vec<u32>> for Prompt {
    /// Of task 0.
    fn from(ids: Vec<u32>) -> Self {
        Prompt { ids, task: 0 }
    }
}

fn owned<P: Clone + Into<Prompt>>(prompts: &[P]) -> Vec<Prompt> {
    prompts.iter().cloned().map(P::into).collect()
}

/// When a search by beams ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EarlyStopping {
    /// When there are as many finished texts as beams.
    Yes,
    /// When the best running text would not be among the finished ones if it ended now.
    #[default]
    No,
    /// When no running text can get among the finished ones, whatever its length.
    Never,
}

impl Default for GenerateConfig {
    /// Greedy, at most 128 tokens.
    fn default() -> Self {
        GenerateConfig {
            max_new_tokens: 128,
            eos_token_id: None,
            num_beams: 1,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::No,
            do_sample: false,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            seed: 0,
            first: 0,
            use_cache: true,
        }
    }
}

impl GenerateConfig {
    /// Greedy, at most this many tokens.
    pub fn new(max_new_tokens: usize) -> Self {
        GenerateConfig { max_new_tokens, ..Default::default() }
    }

    /// By so many beams.
    pub fn with_beams(mut self, num_beams: usize) -> Self {
        self.num_beams = num_beams;
        self
    }

    fn check(&self, vocab: usize) -> Result<()> {
        let wrong = |key: &str, found: String, expected: &str| Err(Error::config(key, found, expected));
        // A beam needs two candidates, one of which may end.
        let most = (vocab / 2).min(1024);
        if !(1..=MAX_NEW_TOKENS).contains(&self.max_new_tokens) {
            let expected = format!("1 to {MAX_NEW_TOKENS}");
            return wrong("max_new_tokens", self.max_new_tokens.to_string(), &expected);
        }
        if !(1..=most).contains(&self.num_beams) {
            return wrong("num_beams", self.num_beams.to_string(), &format!("1 to {most}"));
        }
        if self.do_sample && self.num_beams > 1 {
            return wrong("do_sample", format!("true with {} beams", self.num_beams), "one or the other");
        }
        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            return wrong("temperature", self.temperature.to_string(), "a finite number above 0");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return wrong("top_p", self.top_p.to_string(), "a number above 0, at most 1");
        }
        if !self.length_penalty.is_finite() {
            return wrong("length_penalty", self.length_penalty.to_string(), "a finite number");
        }
        if let Some(id) = self.eos_token_id.iter().flatten().find(|id| **id as usize >= vocab) {
            return wrong("eos_token_id", id.to_string(), &format!("ids below the vocabulary {vocab}"));
        }
        Ok(())
    }
}

/// The logits of the token that comes after each prompt. What all prompts begin with is computed once.
pub fn next_logits<T: Tuner>(
    base: &Base,
    trained: &Trained<T>,
    prompts: &[impl Clone + Into<Prompt>],
) -> Result<Vec<Vec<f32>>> {
    check_head(&trained.head)?;
    let trained = &Module::valid(trained);
    if let Some((base, trained)) = trained.rewritten(base, None)? {
        return next_logits(&base, &trained, prompts);
    }
    let prompts = owned(prompts);
    let same = |i: usize| prompts.iter().all(|p| p.task == prompts[0].task && p.ids[i] == prompts[0].ids[i]);
    // Each prompt has a token of its own left to compute.
    let shortest = prompts.iter().map(|prompt| prompt.ids.len()).min().unwrap_or(0).saturating_sub(1);
    let common = (0..shortest).take_while(|i| same(*i)).count();
    let mut start = Decoder::new(base, trained, prompts.get(..1).unwrap_or_default(), true)?;
    start.keep(common)?;
    let one = |prompt: &Prompt| Ok(start.fork(prompt.clone()).logits()?.remove(0));
    prompts.iter().map(one).collect()
}

fn check_head(head: &Head) -> Result<()> {
    match head {
        Head::LanguageModel(_) | Head::Verbalizer(_) => Ok(()),
        _ => Err(Error::config("head", "one for classes, values or masked words", "a head for words, of T5 or LLaMA")),
    }
}

/// Texts that go on from prompts (on T5: that answer them), each with the token that ended it, if one did. `follow` is told each
/// token of each prompt as it comes; with beams, all at the end.
///
/// A prompt's text does not depend on the others but for the rounding of sums.
pub fn generate<T: Tuner>(
    base: &Base,
    trained: &Trained<T>,
    prompts: &[impl Clone + Into<Prompt>],
    config: &GenerateConfig,
    mut follow: impl FnMut(usize, u32) -> Result<()>,
) -> Result<Vec<Vec<u32>>> {
    let shape = base.shape();
    config.check(shape.vocab)?;
    check_head(&trained.head)?;
    let stop = config.eos_token_id.clone().unwrap_or_else(|| shape.stop.iter().map(|id| *id as u32).collect());
    let trained = Module::valid(trained);
    if let Some((base, trained)) = trained.rewritten(base, None)? {
        return generate(&base, &trained, prompts, config, follow);
    }
    let mut decoder = Decoder::new(base, &trained, &owned(prompts), config.use_cache)?;
    if config.num_beams > 1 {
        let texts = Beams::new(prompts.len(), config, &stop).search(&mut decoder)?;
        for (i, text) in texts.iter().enumerate() {
            text.iter().try_for_each(|token| follow(i, *token))?;
        }
        return Ok(texts);
    }
    let mut texts: Vec<Vec<u32>> = vec![vec![]; prompts.len()];
    let mut running: Vec<usize> = (0..prompts.len()).collect();
    while !running.is_empty() {
        let logits = decoder.logits()?;
        let mut tokens = vec![];
        for (row, text) in running.iter().enumerate() {
            let token = match config.do_sample {
                true => {
                    let mut random = Random::new(
                        config.seed,
                        &format!("token {} of text {}", texts[*text].len(), config.first + text),
                    );
                    sample::draw(&candidates(&logits[row], config), random.unit())
                }
                false => argmax(&logits[row]) as u32,
            };
            texts[*text].push(token);
            follow(*text, token)?;
            tokens.push(token);
        }
        decoder.push(&tokens);
        let ends = |row: &usize| stop.contains(&tokens[*row]) || texts[running[*row]].len() == config.max_new_tokens;
        let rows: Vec<usize> = (0..running.len()).filter(|row| !ends(row)).collect();
        if rows.len() < running.len() {
            decoder.select(&rows);
            running = rows.into_iter().map(|row| running[row]).collect();
        }
    }
    Ok(texts)
}
