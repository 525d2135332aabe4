//! # ATTEMPT                                family: additive / soft prompt-based
//! P(x) = P_t + sum_j a_j P_j, a = softmax_j(p_j . h / T), h = N(silu(m Wd) Wu)     P_1 .. P_N: [l, d], source prompts, frozen; P_t: [l, d], the last of the P_j too
//! m: (d,), the largest number of each channel in E(x); p_j: (d,), the same of P_j; Wd: [d, r], Wu: [r, d]; N: a layer normalization of its own
//! Paper: Asai et al., 2022, arXiv:2205.11961, section 3.   Reference: AkariAsai/ATTEMPT
//! Oracle: code AkariAsai/ATTEMPT attempt/third_party/models/t5/modeling_t5.py: `equals_the_derivation_of_attempt`
//! Trains: l d + 2 d r + 2 d.                Merges: no, P is another one for each x.
//! Identities:
//! - P is what the equation says: `a_mixed_prompt_is_its_equation`
//! - Wu = 0 and N's bias = 0 is P_t and the mean of all: `without_a_query_the_prompts_are_averaged`
//! - all P_j = P is prompt tuning with 2 P: `prompts_alike_are_twice_one`
//! - the order of tokens and of sources does not matter to P: `the_order_of_tokens_and_sources_does_not_matter`
//! - sources do not move: `sources_stay_as_they_are`
//!
//! Differs from the paper: padding is left out of m, into which the reference takes it. N is trained, as the paper's count has it; the reference freezes it. One task: there is one P_t, and its Wd, Wu and N are not shared with others. BERT and RoBERTa are an extension. A decoder alone is refused, since m would look ahead.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, activation};
use peft_core::{
    Base, Error, Hooks, Key, Method, Norm, Procedure, Result, Sequence, Shape, Source, Stack, adapter, random::Random,
};
use serde::{Deserialize, Serialize};

use super::prompt_tuning::PromptTuningConfig;
use super::{check_length, in_front, source_rows};

/// Of the normalization, as torch has it.
const EPS: f64 = 1e-5;
/// More sources than anybody has, so that a file cannot ask for any amount of memory.
const MOST_SOURCES: usize = 1024;

/// The configuration of ATTEMPT.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AttemptConfig {
    /// Number of virtual tokens l, of each source too.
    pub num_virtual_tokens: usize,
    /// The width r between the maps.
    pub attention_width: usize,
    /// The temperature T; e d, if absent.
    pub temperature: Option<f64>,
    /// The number of sources N, which follows from them.
    pub num_sources: usize,
}

impl Default for AttemptConfig {
    /// The paper's attention; 20 virtual tokens, as prompt tuning has here.
    fn default() -> Self {
        AttemptConfig { num_virtual_tokens: 20, attention_width: 100, temperature: None, num_sources: 0 }
    }
}

impl AttemptConfig {
    /// This many virtual tokens.
    pub fn new(num_virtual_tokens: usize) -> Self {
        AttemptConfig { num_virtual_tokens, ..Default::default() }
    }

    /// With this width between the maps.
    pub fn with_attention_width(mut self, width: usize) -> Self {
        self.attention_width = width;
        self
    }

    /// With this temperature.
    pub fn with_temperature(mut self, temperature: f64) -> Self {
        self.temperature = Some(temperature);
        self
    }

    fn check(&self, shape: &Shape) -> Result<()> {
        check_length(self.num_virtual_tokens, shape)?;
        if shape.stacks()[0].0 == Stack::Decoder {
            let expected = "a model with an encoder: in a decoder the mixture of prompts would look ahead";
            return Err(Error::config("model", "a decoder alone", expected));
        }
        let most = 16 * shape.hidden;
        if !(1..=most).contains(&self.attention_width) {
            let expected = format!("1 to {most}, 16 times the model's width");
            return Err(Error::config("attention_width", self.attention_width, expected));
        }
        match self.temperature.filter(|t| !(t.is_finite() && *t > 0.0)) {
            Some(t) => Err(Error::config("temperature", t, "a finite number above 0")),
            None => Ok(()),
        }
    }

    /// From these prompts `[l, d]`, of which the first is where the target's starts.
    fn start(&self, base: &Base, seed: u64, sources: Vec<Tensor<2>>) -> Attempt {
        let (d, r, device) = (base.shape().hidden, self.attention_width, base.device().clone().autodiff());
        let map = |name: &str, dims: [usize; 2]| {
            let bound = 1.0 / (dims[0] as f64).sqrt();
            Param::from_tensor(
                Random::new(seed, &format!("attempt.{name}")).uniform_tensor(dims, -bound, bound, &device),
            )
        };
        let [gain, bias] = [1.0, 0.0].map(|value| Param::from_tensor(Tensor::full([d], value, &device)));
        Attempt {
            prompt: Param::from_tensor(Tensor::from_inner(sources[0].clone())),
            down: map("down", [d, r]),
            up: map("up", [r, d]),
            norm: Norm { gain, bias },
            sources: Param::from_tensor(Tensor::from_inner(Tensor::stack::<3>(sources, 0))).set_require_grad(false),
            temperature: self.temperature.unwrap_or(std::f64::consts::E * d as f64),
        }
    }
}

/// A prompt for each sequence, mixed from several.
#[derive(Module, Debug)]
pub struct Attempt {
    /// P_t, `[l, d]`.
    prompt: Param<Tensor<2>>,
    /// Wd, `[d, r]`.
    down: Param<Tensor<2>>,
    /// Wu, `[r, d]`.
    up: Param<Tensor<2>>,
    norm: Norm,
    /// P_1 to P_N, `[N, l, d]`, not trained.
    sources: Param<Tensor<3>>,
    #[module(skip)]
    temperature: f64,
}

impl Attempt {
    /// P(x) of embedded sequences, `[batch, l, d]`.
    fn mixed(&self, x: &Sequence) -> Tensor<3> {
        let words = match &x.mask.padding {
            Some(padding) => {
                x.hidden.clone().mask_fill(padding.clone().unsqueeze_dim::<3>(2).expand(x.hidden.dims()), f32::MIN)
            }
            None => x.hidden.clone(),
        };
        let largest = |x: Tensor<3>| x.max_dim(1).squeeze_dim::<2>(1);
        let inner = activation::silu(largest(words).matmul(self.down.val())).matmul(self.up.val());
        let query = self.norm.forward(inner, EPS);
        let prompts = Tensor::cat(vec![self.sources.val(), self.prompt.val().unsqueeze()], 0);
        let [count, rows, width] = prompts.dims();
        let scores = query.matmul(largest(prompts.clone()).transpose()) / self.temperature;
        let [batch, _] = scores.dims();
        let mixed = activation::softmax(scores, 1).matmul(prompts.reshape([count, rows * width]));
        mixed.reshape([batch, rows, width]) + self.prompt.val().unsqueeze()
    }
}

impl Method for AttemptConfig {
    const NAME: &'static str = "attempt";
    const PEFT_TYPE: &'static str = "ATTEMPT";
    const HEAD_PREFIX: &'static str = PromptTuningConfig::HEAD_PREFIX;
    type Tuner = Attempt;

    fn init(&self, base: &Base, seed: u64) -> Result<Attempt> {
        self.init_from(base, seed, &[])
    }

    fn init_from(&self, base: &Base, seed: u64, sources: &[Source]) -> Result<Attempt> {
        self.check(base.shape())?;
        if !(1..=MOST_SOURCES).contains(&sources.len()) {
            return Err(Error::config("sources", sources.len(), format!("1 to {MOST_SOURCES} prompts to mix")));
        }
        let (l, shape) = (self.num_virtual_tokens, base.shape());
        // On T5 there are as many rows again, which nothing uses.
        let dims = [shape.stacks().len() * l, shape.hidden];
        let rows = sources.iter().map(|source| source_rows(source, dims)).collect::<Result<Vec<_>>>()?;
        Ok(self.start(base, seed, rows.into_iter().map(|rows| rows.narrow(0, 0, l)).collect()))
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        self.check(shape)?;
        Ok((self.num_virtual_tokens + 2 * self.attention_width + 2) * shape.hidden)
    }

    fn key(&self, name: &str, _shape: &Shape) -> Key {
        match name {
            "prompt" => Key::plain("prompt_embeddings"),
            "down" => Key::transposed("attn_W_down.weight"),
            "up" => Key::transposed("attn_W_up.weight"),
            "norm.gain" => Key::plain("layer_norm.weight"),
            "norm.bias" => Key::plain("layer_norm.bias"),
            _ => Key::plain("mul_prefix_emb"),
        }
    }

    fn virtual_tokens(&self) -> usize {
        self.num_virtual_tokens
    }

    fn learned(&self, tuner: &Attempt, _shape: &Shape) -> Self {
        AttemptConfig { num_sources: tuner.sources.dims()[0], ..self.clone() }
    }

    fn for_loading(&self, base: &Base) -> Result<Attempt> {
        self.check(base.shape())?;
        if !(1..=MOST_SOURCES).contains(&self.num_sources) {
            return Err(Error::config("num_sources", self.num_sources, format!("1 to {MOST_SOURCES}")));
        }
        let rows = Tensor::zeros([self.num_virtual_tokens, base.shape().hidden], base.device());
        Ok(self.start(base, 0, vec![rows; self.num_sources]))
    }
}

impl Hooks for Attempt {
    fn embed(&self, stack: Stack, x: Sequence) -> Sequence {
        if stack == Stack::Decoder { x } else { in_front(self.mixed(&x), x) }
    }
}

adapter!(Attempt);
impl Procedure for Attempt {}

#[cfg(test)]
mod tests {
    use peft_core::testing::{base, device, randomized};
    use peft_core::{AnyTuner, Head, Trained};

    use super::*;

    /// Those with an encoder.
    const ENCODING: [&str; 3] = ["roberta-tiny", "bert-tiny", "t5-tiny"];

    /// Prompts that have nothing in common but their form.
    fn sources(base: &Base) -> Vec<Source> {
        let config = PromptTuningConfig::new(5);
        let one = |(seed, name): (u64, &str)| {
            let tuner = AnyTuner::new(randomized(&config.init(base, seed).unwrap(), seed));
            let trained = Trained::new(tuner, Head::classifier(base, 2, 3)).unwrap();
            Source { name: name.into(), config: config.clone().into(), trained }
        };
        [(3, "first"), (4, "second"), (5, "third")].into_iter().map(one).collect()
    }

    peft_core::conformance!(
        AttemptConfig::new(5).with_attention_width(7).with_temperature(2.0),
        from(sources),
        only(ENCODING: "in a decoder the mixture would look ahead"),
        skip(C1: "the virtual tokens are seen by all others", C3: "the sequence becomes longer")
    );

    #[test]
    fn has_as_many_parameters_as_the_paper_says() {
        let t5 = Shape::named("t5-base").unwrap();
        assert_eq!(AttemptConfig::new(100).count(&t5).unwrap(), 231_936);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let base = base("bert-tiny", &device());
        let good = AttemptConfig::new(5);
        let of =
            |config: &AttemptConfig, sources: &[Source]| config.init_from(&base, 0, sources).unwrap_err().to_string();
        for (message, words) in [
            (of(&good, &[]), ["sources: 0", "1 to 1024"]),
            (of(&AttemptConfig::new(4), &sources(&base)), ["first, of shape [5, 24]", "[4, 24]"]),
            (of(&good.clone().with_attention_width(385), &sources(&base)), ["attention_width: 385", "1 to 384"]),
            (of(&good.clone().with_temperature(0.0), &sources(&base)), ["temperature: 0", "above 0"]),
            (good.for_loading(&base).unwrap_err().to_string(), ["num_sources: 0", "1 to 1024"]),
        ] {
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
    }
}
