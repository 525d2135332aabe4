//! # Prompt tuning                          family: additive / soft prompt-based
//! x' = [P; E(x)]                           P: [l, d]
//! Paper: Lester et al., 2021, arXiv:2104.08691, section 2.   Reference: huggingface/peft tuners/prompt_tuning
//! Oracle: package peft 0.21.2: `equals_the_reference`
//! Trains: l d, on T5 2 l d.                Merges: no, P lengthens the sequence.
//! Identities:
//! - P = E(t) is the frozen model on the tokens [t; x]: `a_prompt_of_words_is_those_words`
//! - swapping two rows while keeping their sums with the position embeddings swaps their states and changes no other: `rows_with_their_positions_can_be_swapped`
//!
//! Differs from the paper: the head reads the first virtual token and 20 of them are the default, as in PEFT and the survey (the paper has no head, and 100). On T5 only the encoder has virtual tokens, as in the paper; as in PEFT there are as many rows again, for the decoder, which nothing uses. Rows start as words drawn from the whole vocabulary, as PEFT's SAMPLE_VOCAB (the paper: from its 5,000 most frequent words), not as PEFT's default N(0, 1): PEFT's own documentation warns that such rows may lie outside of what the model knows as words, and the paper finds words to be the better start.

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, TensorData};
use peft_core::{Adapter, Base, Batch, Error, Hooks, Key, Method, Procedure, Result, Shape, random::Random};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Prompt, check_length, derived_of_rows};

/// How the virtual tokens start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PromptInit {
    /// Standard normal numbers.
    Random,
    /// Rows of the word table, drawn with replacement.
    #[default]
    SampleVocab,
    /// The words of a text. Only files that PEFT wrote may say so: there the numbers are known already.
    Text,
}

/// The configuration of prompt tuning, in the names of PEFT's `PromptTuningConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PromptTuningConfig {
    /// Number of virtual tokens.
    pub num_virtual_tokens: usize,
    /// How they start.
    pub prompt_tuning_init: PromptInit,
}

impl Default for PromptTuningConfig {
    /// 20 virtual tokens that start as words.
    fn default() -> Self {
        PromptTuningConfig { num_virtual_tokens: 20, prompt_tuning_init: PromptInit::SampleVocab }
    }
}

impl PromptTuningConfig {
    /// This many virtual tokens that start as words.
    pub fn new(num_virtual_tokens: usize) -> Self {
        PromptTuningConfig { num_virtual_tokens, ..Default::default() }
    }

    /// With this start.
    pub fn with_init(mut self, init: PromptInit) -> Self {
        self.prompt_tuning_init = init;
        self
    }
}

/// Virtual tokens in front of every sequence.
#[derive(Module, Debug)]
pub struct PromptTuning {
    /// `[stacks * virtual tokens, hidden]`.
    prompt_embeddings: Param<Tensor<2>>,
    #[module(skip)]
    stacks: usize,
}

impl PromptTuning {
    /// The virtual tokens, `[stacks * virtual tokens, hidden]`.
    pub fn rows(&self) -> Tensor<2> {
        self.prompt_embeddings.val()
    }

    /// With these in their place.
    pub(super) fn with_rows(self, prompt_embeddings: Param<Tensor<2>>) -> Self {
        PromptTuning { prompt_embeddings, ..self }
    }
}

impl Method for PromptTuningConfig {
    const NAME: &'static str = "prompt";
    const PEFT_TYPE: &'static str = "PROMPT_TUNING";
    const HEAD_PREFIX: &'static str = "base_model.";
    type Tuner = PromptTuning;

    fn init(&self, base: &Base, seed: u64) -> Result<PromptTuning> {
        let (n, shape) = (self.num_virtual_tokens, base.shape());
        check_length(n, shape)?;
        let (stacks, n) = (shape.stacks().len(), n * shape.stacks().len());
        let mut random = Random::new(seed, "prompt_tuning.prompt_embeddings");
        let rows = match self.prompt_tuning_init {
            PromptInit::Random => random.normal_tensor([n, shape.hidden], 1.0, base.device()),
            PromptInit::SampleVocab => {
                let ids: Vec<i32> = (0..n).map(|_| random.below(shape.vocab) as i32).collect();
                let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [n]), base.device());
                base.weight(shape.words()).dense().select(0, ids)
            }
            PromptInit::Text => return Err(Error::config("prompt_tuning_init", "TEXT", "RANDOM or SAMPLE_VOCAB")),
        };
        Ok(PromptTuning { prompt_embeddings: Param::from_tensor(Tensor::from_inner(rows)), stacks })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        check_length(self.num_virtual_tokens, shape)?;
        Ok(shape.stacks().len() * self.num_virtual_tokens * shape.hidden)
    }

    fn key(&self, name: &str, _shape: &Shape) -> Key {
        Key::plain(name)
    }

    /// Without a text: PEFT refuses TEXT where the text itself is not given.
    fn for_files(&self, _shape: &Shape) -> Result<Self> {
        Ok(match self.prompt_tuning_init {
            PromptInit::Text => self.clone().with_init(PromptInit::Random),
            _ => self.clone(),
        })
    }

    fn virtual_tokens(&self) -> usize {
        self.num_virtual_tokens
    }

    fn derived(&self, shape: &Shape) -> Map<String, Value> {
        derived_of_rows(shape)
    }

    fn for_loading(&self, base: &Base) -> Result<PromptTuning> {
        self.clone().with_init(PromptInit::Random).init(base, 0)
    }
}

impl Adapter for PromptTuning {
    fn open<R>(&self, _batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        f(&Prompt { rows: self.rows(), stacks: self.stacks })
    }
}

impl Procedure for PromptTuning {}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use peft_core::testing::{base, device, golden::Case};
    use peft_core::{Head, Part, Site, view::tensors};

    use super::*;

    peft_core::conformance!(
        PromptTuningConfig::new(5),
        skip(C1: "the virtual tokens are seen by all others", C3: "the sequence becomes longer")
    );

    #[test]
    fn equals_the_reference() {
        for (case, base) in [
            ("prompt", "roberta-classify"),
            ("prompt-bert", "bert-classify"),
            ("prompt-t5", "t5"),
            ("prompt-llama", "llama"),
            ("prompt-saved", "bert-classify"),
        ] {
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case);
            Case::open(dir, base).check_method::<PromptTuningConfig>();
        }
    }

    #[test]
    fn has_as_many_parameters_as_the_survey_says() {
        for (shape, total) in [("roberta-base", 607_490), ("roberta-large", 1_072_130)] {
            let shape = Shape::named(shape).unwrap();
            assert_eq!(PromptTuningConfig::default().count(&shape).unwrap() + Head::count(&shape, 2), total);
        }
    }

    #[test]
    fn starts_as_words() {
        let base = base("roberta-tiny", &device());
        let hidden = base.shape().hidden;
        let words: Vec<f32> = base.weight(Site::encoder(0, Part::Words)).dense().into_data().iter::<f32>().collect();
        let drawn = |seed| -> Vec<f32> {
            let start = PromptTuningConfig::new(7).init(&base, seed).unwrap();
            tensors(&start)["prompt_embeddings"].iter::<f32>().collect()
        };
        for row in drawn(1).chunks(hidden) {
            assert!(words.chunks(hidden).any(|word| word == row), "{row:?} is no word");
        }
        assert_ne!(drawn(1), drawn(2));
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let base = base("roberta-tiny", &device());
        for (config, words) in [
            (PromptTuningConfig::new(0), ["num_virtual_tokens", "0", "1 to 37"]),
            (PromptTuningConfig::new(38), ["num_virtual_tokens", "38", "1 to 37"]),
            (PromptTuningConfig::new(3).with_init(PromptInit::Text), ["prompt_tuning_init", "TEXT", "SAMPLE_VOCAB"]),
        ] {
            let message = config.init(&base, 0).unwrap_err().to_string();
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
        assert!(PromptTuningConfig::new(0).count(base.shape()).is_err());
    }

    #[test]
    fn a_prompt_that_started_from_a_text_can_be_loaded_and_saved() {
        let base = base("bert-tiny", &device());
        let config: PromptTuningConfig = serde_json::from_str(r#"{"prompt_tuning_init": "TEXT"}"#).unwrap();
        assert_eq!(config.for_loading(&base).unwrap().prompt_embeddings.dims(), [20, base.shape().hidden]);
        assert_eq!(config.for_files(base.shape()).unwrap().prompt_tuning_init, PromptInit::Random);
    }
}
