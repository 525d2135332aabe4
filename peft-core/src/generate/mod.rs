//! Texts from a model that predicts words: greedy, by beams, or by sampling.

mod beam;
mod config;
mod decoder;
mod folder;
mod rules;
mod sample;

use burn::module::Module;

pub use config::{EarlyStopping, GenerateConfig};
pub use folder::{FIELDS, FolderSettings, Use};
pub use sample::candidates;

use crate::random::Random;
use crate::train::argmax;
use crate::{Base, Error, Head, Result, Trained, Tuner};
use beam::Beams;
use decoder::Decoder;
use rules::Rules;

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

/// The logits of the token that comes after each prompt. What all prompts begin with is computed once.
pub fn next_logits<T: Tuner>(
    base: &Base,
    trained: &Trained<T>,
    prompts: &[impl Clone + Into<Prompt>],
) -> Result<Vec<Vec<f32>>> {
    check_head(&trained.head)?;
    let trained = &Module::valid(trained);
    if let Some(view) = trained.view(base, None)? {
        return next_logits(base, &view, prompts);
    }
    let prompts = owned(prompts);
    let same = |i: usize| prompts.iter().all(|p| p.task == prompts[0].task && p.ids[i] == prompts[0].ids[i]);
    // Each prompt has a token of its own left to compute.
    let shortest = prompts.iter().map(|prompt| prompt.ids.len()).min().unwrap_or(0).saturating_sub(1);
    let common = (0..shortest).take_while(|i| same(*i)).count();
    let mut start = Decoder::new(base, trained, prompts.get(..1).unwrap_or_default(), true, None)?;
    start.keep(common)?;
    let one = |prompt: &Prompt| Ok(start.fork(prompt.clone()).logits()?.remove(0));
    prompts.iter().map(one).collect()
}

fn check_head(head: &Head) -> Result<()> {
    match head.of_task(0)? {
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
    if let Some(view) = trained.view(base, None)? {
        return generate(base, &view, prompts, config, follow);
    }
    let prompts = owned(prompts);
    let mut decoder = Decoder::new(base, &trained, &prompts, config.use_cache, config.decoder_start_token_id)?;
    let rooms: Vec<usize> = (0..prompts.len()).map(|row| config.room(decoder.context(row).start)).collect();
    if let (Some(row), Some(length)) = (rooms.iter().position(|room| *room == 0), config.max_length) {
        let found = format!("{length} with a prompt of {} tokens", decoder.context(row).start);
        return Err(Error::config("max_length", found, "more than the prompt, or max_new_tokens instead"));
    }
    let rules = Rules { config, stop: &stop };
    if config.num_beams > 1 {
        let texts = Beams::new(&rooms, &rules).search(&mut decoder)?;
        for (i, text) in texts.iter().enumerate() {
            text.iter().try_for_each(|token| follow(i, *token))?;
        }
        return Ok(texts);
    }
    let mut texts: Vec<Vec<u32>> = vec![vec![]; prompts.len()];
    let mut running: Vec<usize> = (0..prompts.len()).collect();
    while !running.is_empty() {
        let mut logits = decoder.logits()?;
        let mut tokens = vec![];
        for (row, text) in running.iter().enumerate() {
            rules.apply(&mut logits[row], &decoder.context(row));
            if !logits[row].iter().any(|x| x.is_finite()) {
                let detail = "the settings leave no token to choose".to_string();
                return Err(Error::Check { what: "generation", detail });
            }
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
        let ends = |row: &usize| {
            let text = running[*row];
            stop.contains(&tokens[*row]) || texts[text].len() == rooms[text]
        };
        let rows: Vec<usize> = (0..running.len()).filter(|row| !ends(row)).collect();
        if rows.len() < running.len() {
            decoder.select(&rows);
            running = rows.into_iter().map(|row| running[row]).collect();
        }
    }
    Ok(texts)
}
