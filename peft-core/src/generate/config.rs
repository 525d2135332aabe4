use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The most tokens of a text that may be asked for.
const MAX_NEW_TOKENS: usize = 1 << 20;

/// How to generate, in the names of transformers' `GenerationConfig`.
///
/// What changes the logits of a next token does so in transformers' order: `sequence_bias`, `encoder_repetition_penalty`,
/// `repetition_penalty`, `no_repeat_ngram_size`, `encoder_no_repeat_ngram_size`, `bad_words_ids`, `min_length`, `min_new_tokens`,
/// `forced_bos_token_id`, `forced_eos_token_id`, `exponential_decay_length_penalty`, `suppress_tokens`, `begin_suppress_tokens`; when
/// drawing then `temperature`, `top_k`, `top_p`, `min_p`, `typical_p`, `epsilon_cutoff`, `eta_cutoff`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GenerateConfig {
    /// The most tokens of a text.
    pub max_new_tokens: usize,
    /// The most tokens of prompt and text together, on T5 of the start and the text; the first of both limits counts.
    pub max_length: Option<usize>,
    /// Tokens that end a text are not taken before prompt and text together have so many tokens.
    pub min_length: usize,
    /// Tokens that end a text are not taken before it has so many tokens.
    pub min_new_tokens: usize,
    /// Tokens that end a text, and are its last; the model's, if not set.
    pub eos_token_id: Option<Vec<u32>>,
    /// What the decoder behind an encoder starts with; the model's, if not set.
    pub decoder_start_token_id: Option<u32>,
    /// Texts that are followed at a time; 1 is greedy.
    pub num_beams: usize,
    /// A beam's score is the sum of its log-probabilities over its length to this power.
    pub length_penalty: f64,
    /// When to stop with beams.
    pub early_stopping: EarlyStopping,
    /// What is added to the logit of a sequence's last token where the others stand before it.
    pub sequence_bias: Vec<(Vec<u32>, f32)>,
    /// Logits of the prompt's tokens are multiplied by this, negative ones divided.
    pub encoder_repetition_penalty: f32,
    /// Logits of tokens that stand in prompt or text are divided by this, negative ones multiplied.
    pub repetition_penalty: f32,
    /// No so many tokens in a row occur twice in prompt and text; 0 for no such rule.
    pub no_repeat_ngram_size: usize,
    /// No so many tokens in a row of the prompt occur in the text; 0 for no such rule.
    pub encoder_no_repeat_ngram_size: usize,
    /// Sequences that never occur.
    pub bad_words_ids: Vec<Vec<u32>>,
    /// The token that comes second, behind a prompt (or a decoder's start) of one token.
    pub forced_bos_token_id: Option<u32>,
    /// One of these is the last token of a text that reaches its limit.
    pub forced_eos_token_id: Vec<u32>,
    /// From so many new tokens on, the logit of an end grows by its size times this factor to the number of tokens since, minus one.
    pub exponential_decay_length_penalty: Option<(usize, f64)>,
    /// Tokens that never occur.
    pub suppress_tokens: Vec<u32>,
    /// Tokens with which no text begins.
    pub begin_suppress_tokens: Vec<u32>,
    /// Whether log-probabilities are normalized again after all that, which matters to the scores of beams.
    pub renormalize_logits: bool,
    /// Whether tokens are drawn.
    pub do_sample: bool,
    /// Logits are divided by this before drawing.
    pub temperature: f64,
    /// Only so many of the most probable tokens are drawn from; 0 for all.
    pub top_k: usize,
    /// Only the most probable tokens that together have this probability are drawn from.
    pub top_p: f64,
    /// Only tokens of at least this part of the largest probability are drawn from.
    pub min_p: f64,
    /// Only the tokens whose information is nearest to the entropy, that together have this probability, are drawn from.
    pub typical_p: f64,
    /// Only tokens of at least this probability are drawn from.
    pub epsilon_cutoff: f64,
    /// The same, with a bound that falls as the entropy grows.
    pub eta_cutoff: f64,
    /// Decides what is drawn, for each text by its number.
    pub seed: u64,
    /// The number of the first text: texts that are generated batch by batch draw what they would in one.
    pub first: usize,
    /// Whether keys and values of earlier tokens are kept instead of computed again.
    pub use_cache: bool,
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
            max_length: None,
            min_length: 0,
            min_new_tokens: 0,
            eos_token_id: None,
            decoder_start_token_id: None,
            num_beams: 1,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::No,
            sequence_bias: vec![],
            encoder_repetition_penalty: 1.0,
            repetition_penalty: 1.0,
            no_repeat_ngram_size: 0,
            encoder_no_repeat_ngram_size: 0,
            bad_words_ids: vec![],
            forced_bos_token_id: None,
            forced_eos_token_id: vec![],
            exponential_decay_length_penalty: None,
            suppress_tokens: vec![],
            begin_suppress_tokens: vec![],
            renormalize_logits: false,
            do_sample: false,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            epsilon_cutoff: 0.0,
            eta_cutoff: 0.0,
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

    /// The most tokens that may follow on a prompt (or a decoder's start) of so many.
    pub(super) fn room(&self, prompt: usize) -> usize {
        self.max_length.map_or(self.max_new_tokens, |length| length.saturating_sub(prompt).min(self.max_new_tokens))
    }

    pub(super) fn check(&self, vocab: usize) -> Result<()> {
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
            return wrong("do_sample", format!("true with num_beams {}", self.num_beams), "one or the other");
        }
        let positive = [
            ("temperature", self.temperature),
            ("repetition_penalty", self.repetition_penalty.into()),
            ("encoder_repetition_penalty", self.encoder_repetition_penalty.into()),
        ];
        if let Some((key, found)) = positive.into_iter().find(|(_, x)| !(*x > 0.0 && x.is_finite())) {
            return wrong(key, found.to_string(), "a finite number above 0");
        }
        let shares = [("top_p", self.top_p), ("typical_p", self.typical_p)];
        if let Some((key, found)) = shares.into_iter().find(|(_, x)| !(*x > 0.0 && *x <= 1.0)) {
            return wrong(key, found.to_string(), "a number above 0, at most 1");
        }
        let bounds = [("min_p", self.min_p), ("epsilon_cutoff", self.epsilon_cutoff), ("eta_cutoff", self.eta_cutoff)];
        if let Some((key, found)) = bounds.into_iter().find(|(_, x)| !(0.0..1.0).contains(x)) {
            return wrong(key, found.to_string(), "a number from 0 to below 1");
        }
        if !self.length_penalty.is_finite() {
            return wrong("length_penalty", self.length_penalty.to_string(), "a finite number");
        }
        if let Some((_, factor)) = self.exponential_decay_length_penalty.filter(|(_, factor)| !factor.is_finite()) {
            return wrong("exponential_decay_length_penalty", factor.to_string(), "a finite factor");
        }
        let sequences = [
            ("bad_words_ids", self.bad_words_ids.iter().collect::<Vec<_>>()),
            ("sequence_bias", self.sequence_bias.iter().map(|(ids, _)| ids).collect()),
        ];
        for (key, sequences) in &sequences {
            if sequences.iter().any(|ids| ids.is_empty()) {
                return wrong(key, "no token".into(), "sequences of at least one token");
            }
        }
        if self.sequence_bias.iter().any(|(_, bias)| bias.is_nan()) {
            return wrong("sequence_bias", "NaN".into(), "a number");
        }
        let beyond = |ids: &[u32]| ids.iter().copied().find(|id| *id as usize >= vocab);
        let lists = [
            ("eos_token_id", self.eos_token_id.clone().unwrap_or_default()),
            ("decoder_start_token_id", self.decoder_start_token_id.into_iter().collect()),
            ("forced_bos_token_id", self.forced_bos_token_id.into_iter().collect()),
            ("forced_eos_token_id", self.forced_eos_token_id.clone()),
            ("suppress_tokens", self.suppress_tokens.clone()),
            ("begin_suppress_tokens", self.begin_suppress_tokens.clone()),
        ];
        let lists = lists.iter().map(|(key, ids)| (*key, beyond(ids)));
        let sequences = sequences.iter().flat_map(|(key, all)| all.iter().map(|ids| (*key, beyond(ids))));
        if let Some((key, id)) = lists.chain(sequences).find_map(|(key, id)| Some((key, id?))) {
            return wrong(key, id.to_string(), &format!("ids below the vocabulary {vocab}"));
        }
        Ok(())
    }
}
