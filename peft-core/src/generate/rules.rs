//! What changes the logits of a next token before it is chosen, in transformers' order.

use super::GenerateConfig;
use crate::loss::log_sum_exp;

/// The rules of a configuration, for all texts.
pub(super) struct Rules<'a> {
    pub config: &'a GenerateConfig,
    /// Tokens that end a text.
    pub stop: &'a [u32],
}

/// A text whose next token is to be chosen.
pub(super) struct Context<'a> {
    /// What the decoder has seen, its prompt or start included.
    pub seen: &'a [u32],
    /// How much of it is the prompt or the start.
    pub start: usize,
    /// What was given: to the encoder, or as the prompt.
    pub given: &'a [u32],
}

impl Rules<'_> {
    /// Applies them to the logits (with beams, the log-probabilities) of the token behind `text`.
    pub fn apply(&self, scores: &mut [f32], text: &Context<'_>) {
        let GenerateConfig { encoder_repetition_penalty, repetition_penalty, .. } = *self.config;
        let (config, length, new) = (self.config, text.seen.len(), text.seen.len() - text.start);
        for (ids, bias) in &config.sequence_bias {
            add(scores, text.seen, ids, *bias);
        }
        penalize(scores, text.given, 1.0 / encoder_repetition_penalty);
        penalize(scores, text.seen, repetition_penalty);
        ban_repeats(scores, text.seen, text.seen, config.no_repeat_ngram_size);
        ban_repeats(scores, text.given, text.seen, config.encoder_no_repeat_ngram_size);
        let ends = |ids: &[u32]| ids.len() == 1 && self.stop.contains(&ids[0]);
        for ids in config.bad_words_ids.iter().filter(|ids| !ends(ids)) {
            add(scores, text.seen, ids, f32::NEG_INFINITY);
        }
        if length < config.min_length || new < config.min_new_tokens {
            ban(scores, self.stop);
        }
        if let Some(id) = config.forced_bos_token_id.filter(|_| length == 1) {
            force(scores, &[id]);
        }
        if !config.forced_eos_token_id.is_empty() && new + 1 == config.room(text.start) {
            force(scores, &config.forced_eos_token_id);
        }
        if let Some((from, factor)) = config.exponential_decay_length_penalty.filter(|(from, _)| new > *from) {
            let growth = factor.powi((new - from) as i32) - 1.0;
            for id in self.stop {
                let score = &mut scores[*id as usize];
                if score.is_finite() {
                    *score += score.abs() * growth as f32;
                }
            }
        }
        ban(scores, &config.suppress_tokens);
        // Behind a start of one token that a forced token follows, the text begins with the next.
        let begin = usize::from(text.start == 1 && config.forced_bos_token_id.is_some());
        if new == begin {
            ban(scores, &config.begin_suppress_tokens);
        }
        if config.renormalize_logits {
            let log = log_sum_exp(scores) as f32;
            scores.iter_mut().for_each(|score| *score -= log);
        }
    }
}

fn ban(scores: &mut [f32], ids: &[u32]) {
    for id in ids {
        scores[*id as usize] = f32::NEG_INFINITY;
    }
}

fn force(scores: &mut [f32], ids: &[u32]) {
    scores.fill(f32::NEG_INFINITY);
    for id in ids {
        scores[*id as usize] = 0.0;
    }
}

/// Adds to the last token of `ids` where the others stand at the end of `seen`.
fn add(scores: &mut [f32], seen: &[u32], ids: &[u32], bias: f32) {
    let (last, before) = ids.split_last().expect("sequences of at least one token");
    if seen.ends_with(before) {
        scores[*last as usize] += bias;
    }
}

/// Divides what is positive and multiplies what is negative, each token once.
fn penalize(scores: &mut [f32], ids: &[u32], penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    let mut ids: Vec<u32> = ids.to_vec();
    ids.sort_unstable();
    ids.dedup();
    for id in ids {
        let score = &mut scores[id as usize];
        *score = if *score < 0.0 { *score * penalty } else { *score / penalty };
    }
}

/// Bans what followed in `among` on the tokens that `seen` ends with.
fn ban_repeats(scores: &mut [f32], among: &[u32], seen: &[u32], size: usize) {
    if size == 0 || seen.len() + 1 < size {
        return;
    }
    let end = &seen[seen.len() + 1 - size..];
    for gram in among.windows(size) {
        let (last, before) = gram.split_last().expect("windows of at least one token");
        if before == end {
            scores[*last as usize] = f32::NEG_INFINITY;
        }
    }
}
