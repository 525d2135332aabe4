//! Beam search as in transformers: of each text, so many continuations run, and the best finished ones are kept.

use super::decoder::Decoder;
use super::rules::Rules;
use super::{EarlyStopping, GenerateConfig};
use crate::loss::log_sum_exp;
use crate::{Result, Tuner};

/// A score below every other.
const NONE: f64 = -1e9;

/// A text and the sum of its log-probabilities, for a finished one over its length to the power of the penalty.
#[derive(Clone, Debug)]
struct Scored {
    text: Vec<u32>,
    score: f64,
}

/// The beams of one prompt.
struct Beam {
    prompt: usize,
    /// The most tokens of its texts.
    room: usize,
    running: Vec<Scored>,
    finished: Vec<Scored>,
}

/// The beams of all prompts.
pub(super) struct Beams<'a> {
    rules: &'a Rules<'a>,
    beams: Vec<Beam>,
    done: Vec<Vec<u32>>,
}

/// One continuation: the place of its beam, its token, its sum.
struct Step {
    beam: usize,
    token: u32,
    score: f64,
}

impl<'a> Beams<'a> {
    /// For prompts of which each has room for so many tokens.
    pub fn new(rooms: &[usize], rules: &'a Rules<'a>) -> Self {
        let start = || vec![Scored { text: vec![], score: 0.0 }];
        let beam = |(prompt, room): (usize, &usize)| Beam { prompt, room: *room, running: start(), finished: vec![] };
        Beams { rules, beams: rooms.iter().enumerate().map(beam).collect(), done: vec![vec![]; rooms.len()] }
    }

    /// The best text of each prompt.
    pub fn search<T: Tuner>(mut self, decoder: &mut Decoder<'_, T>) -> Result<Vec<Vec<u32>>> {
        while !self.beams.is_empty() {
            let mut logits = decoder.logits()?;
            for (row, logits) in logits.iter_mut().enumerate() {
                let log = log_sum_exp(logits);
                logits.iter_mut().for_each(|x| *x = (f64::from(*x) - log) as f32);
                self.rules.apply(logits, &decoder.context(row));
            }
            let (mut rows, mut tokens, mut first) = (vec![], vec![], 0);
            for mut beam in std::mem::take(&mut self.beams) {
                let count = beam.running.len();
                let chosen = self.advance(&mut beam, &logits[first..first + count]);
                match chosen {
                    Some(steps) => {
                        rows.extend(steps.iter().map(|step| first + step.beam));
                        tokens.extend(steps.iter().map(|step| step.token));
                        self.beams.push(beam);
                    }
                    None => {
                        let prompt = beam.prompt;
                        self.done[prompt] = best(beam);
                    }
                }
                first += count;
            }
            decoder.select(&rows);
            decoder.push(&tokens);
        }
        Ok(self.done)
    }

    /// One token more; gives the continuations that run on, or nothing if the prompt is done.
    fn advance(&self, beam: &mut Beam, scores: &[Vec<f32>]) -> Option<Vec<Step>> {
        let Rules { config, stop } = self.rules;
        let GenerateConfig { num_beams, length_penalty, early_stopping, .. } = **config;
        let length = beam.running[0].text.len() + 1;
        let penalty = |length: usize| (length as f64).powf(length_penalty);
        let candidates = beam.candidates(scores, num_beams * 2.max(1 + stop.len()));
        let ends = |step: &Step| stop.contains(&step.token) || length == beam.room;
        let text = |step: &Step| {
            let mut text = beam.running[step.beam].text.clone();
            text.push(step.token);
            text
        };
        // Only the best continuations may end; the others are there to run on in their place.
        let ended: Vec<Scored> = candidates[..num_beams]
            .iter()
            .filter(|step| ends(step))
            .map(|step| Scored { text: text(step), score: step.score / penalty(length) })
            .collect();
        let on: Vec<Step> = candidates.into_iter().filter(|step| !ends(step)).take(num_beams).collect();
        let running: Vec<Scored> = on.iter().map(|step| Scored { text: text(step), score: step.score }).collect();
        beam.finished.extend(ended);
        beam.finished.sort_by(|a, b| b.score.total_cmp(&a.score));
        beam.finished.truncate(num_beams);
        beam.running = running;

        let full = beam.finished.len() == num_beams;
        let longest = match early_stopping {
            EarlyStopping::Never if length_penalty > 0.0 => beam.room,
            _ => length,
        };
        let worst = if full { beam.finished[num_beams - 1].score } else { NONE };
        let hope = beam.running.first().is_some_and(|best| best.score / penalty(longest) > worst);
        let stopped = full && early_stopping == EarlyStopping::Yes;
        (hope && !stopped && !on.is_empty()).then_some(on)
    }
}

impl Beam {
    /// The best continuations of all running texts, best first.
    fn candidates(&self, scores: &[Vec<f32>], count: usize) -> Vec<Step> {
        let mut all: Vec<Step> = vec![];
        for (beam, (running, scores)) in self.running.iter().zip(scores).enumerate() {
            let step =
                |(token, x): (usize, &f32)| Step { beam, token: token as u32, score: running.score + f64::from(*x) };
            all.extend(scores.iter().enumerate().map(step));
        }
        let better = |a: &Step, b: &Step| b.score.total_cmp(&a.score);
        let count = count.min(all.len());
        all.select_nth_unstable_by(count - 1, better);
        all.truncate(count);
        all.sort_by(better);
        all
    }
}

fn best(beam: Beam) -> Vec<u32> {
    let all = if beam.finished.is_empty() { beam.running } else { beam.finished };
    all.into_iter().next().map(|best| best.text).unwrap_or_default()
}
