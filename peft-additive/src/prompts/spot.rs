//! # SPoT                                   family: additive / soft prompt-based
//! P_t(0) = sum_r w_r P_r                   P_r: [l, d] source prompts, w_r: weights, sum_r w_r = 1
//! Paper: Vu et al., 2022, arXiv:2110.07904, sections 2 and 3.   Reference: google-research/prompt-tuning, folder spot
//! Oracle: paper: `a_weighted_average_of_the_nearest`
//! Trains: l d, on T5 2 l d, as prompt tuning.      Merges: no, P lengthens the sequence.
//! Identities:
//! - from one source it starts as that prompt, and trains on as prompt tuning does from there: `one_source_is_that_prompt`
//! - weights sum to 1, and k copies of a prompt are that prompt: `a_weighted_average_of_the_nearest`
//! - similarities are symmetric, at most 1, and do not depend on the order of the rows: `similarities_are_the_papers`
//!
//! Differs from the paper: the sources are finished adapters, each from a run of its own; a mixture of tasks is one run on their data
//! together. Of the paper's strategies these are "generic" (one source), "best of top-1" and "top-k weighted average"; trying each of
//! the k nearest is k runs. Similarities below 0, which would make weights negative, are an error.

use burn::module::Param;
use burn::tensor::Tensor;
use peft_core::{Base, Error, Key, Method, Result, Shape, Source};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::prompt_tuning::{PromptInit, PromptTuning, PromptTuningConfig};
use super::source_rows;

/// How alike two prompts are, section 3.2 of the paper.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Similarity {
    /// The cosine of the rows' means.
    AverageTokens,
    /// The mean of the cosines of each row with each.
    #[default]
    PerToken,
}

/// The configuration of SPoT.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SpotConfig {
    /// Number of virtual tokens, of each source too.
    pub num_virtual_tokens: usize,
    /// The name of the source that stands for the target task: a prompt that was trained on it briefly. Without one, the start is the
    /// mean of all sources.
    pub target: Option<String>,
    /// How many of the sources nearest to the target make the start.
    pub top_k: usize,
    /// By which similarity.
    pub similarity: Similarity,
}

impl Default for SpotConfig {
    /// 20 virtual tokens, as prompt tuning has here; the nearest source.
    fn default() -> Self {
        SpotConfig { num_virtual_tokens: 20, target: None, top_k: 1, similarity: Similarity::PerToken }
    }
}

impl SpotConfig {
    /// This many virtual tokens, from the mean of the sources.
    pub fn new(num_virtual_tokens: usize) -> Self {
        SpotConfig { num_virtual_tokens, ..Default::default() }
    }

    /// From the weighted average of the `top_k` sources nearest to that of this name.
    pub fn nearest(mut self, target: &str, top_k: usize, similarity: Similarity) -> Self {
        (self.target, self.top_k, self.similarity) = (Some(target.into()), top_k, similarity);
        self
    }

    fn prompt(&self) -> PromptTuningConfig {
        PromptTuningConfig::new(self.num_virtual_tokens).with_init(PromptInit::Random)
    }

    /// The weights of the sources that make the start.
    fn weights(&self, prompts: &[(&str, Tensor<2>)]) -> Result<Vec<f64>> {
        let Some(target) = &self.target else {
            return match self.top_k {
                1 => Ok(vec![1.0 / prompts.len() as f64; prompts.len()]),
                most => {
                    Err(Error::config("top_k", most, "1 without a target: the start is then the mean of all sources"))
                }
            };
        };
        let names = || prompts.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        let at = prompts.iter().position(|(name, _)| name == target);
        let at = at.ok_or_else(|| Error::config("target", target, format!("one of the sources: {}", names())))?;
        if !(1..prompts.len()).contains(&self.top_k) {
            let expected = format!("from 1 to {}, the sources beside the target", prompts.len() - 1);
            return Err(Error::config("top_k", self.top_k, expected));
        }
        let alike = |(_, prompt): &(&str, Tensor<2>)| similarity(self.similarity, prompt, &prompts[at].1);
        let mut order: Vec<(usize, f64)> = prompts.iter().map(alike).enumerate().filter(|(i, _)| *i != at).collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1));
        order.truncate(self.top_k);
        if let Some((i, alike)) = order.iter().find(|(_, alike)| *alike <= 0.0) {
            let found = format!("{}, whose similarity to {target} is {alike:.3}", prompts[*i].0);
            return Err(Error::config("sources", found, "similarities above 0: a smaller top_k"));
        }
        let sum: f64 = order.iter().map(|(_, alike)| alike).sum();
        let mut weights = vec![0.0; prompts.len()];
        order.into_iter().for_each(|(i, alike)| weights[i] = alike / sum);
        Ok(weights)
    }
}

/// How alike two prompts `[l, d]` are.
fn similarity(kind: Similarity, a: &Tensor<2>, b: &Tensor<2>) -> f64 {
    let unit = |x: Tensor<2>| x.clone() / x.powi_scalar(2).sum_dim(1).sqrt();
    let mean = |x: &Tensor<2>| match kind {
        // The mean of all cosines is the product of the means of unit rows.
        Similarity::PerToken => unit(x.clone()).mean_dim(0),
        Similarity::AverageTokens => unit(x.clone().mean_dim(0)),
    };
    f64::from((mean(a) * mean(b)).sum().into_scalar::<f32>())
}

impl Method for SpotConfig {
    const NAME: &'static str = "spot";
    const PEFT_TYPE: &'static str = "SPOT";
    const HEAD_PREFIX: &'static str = PromptTuningConfig::HEAD_PREFIX;
    type Tuner = PromptTuning;

    fn init(&self, base: &Base, seed: u64) -> Result<PromptTuning> {
        self.init_from(base, seed, &[])
    }

    fn init_from(&self, base: &Base, seed: u64, sources: &[Source]) -> Result<PromptTuning> {
        if sources.is_empty() {
            return Err(Error::config("sources", "none", "at least one prompt to start from"));
        }
        let fresh = self.prompt().init(base, seed)?;
        let rows = sources.iter().map(|source| source_rows(source, fresh.rows().dims())).collect::<Result<Vec<_>>>()?;
        let prompts: Vec<_> = sources.iter().map(|source| source.name.as_str()).zip(rows).collect();
        let weighted = self.weights(&prompts)?.into_iter().zip(prompts).filter(|(weight, _)| *weight != 0.0);
        let start = weighted.map(|(weight, (_, rows))| rows * weight).reduce(|a, b| a + b);
        let start = start.unwrap_or_else(|| unreachable!("the weights sum to 1"));
        Ok(fresh.with_rows(Param::from_tensor(Tensor::from_inner(start))))
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        self.prompt().count(shape)
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        self.prompt().key(name, shape)
    }

    fn virtual_tokens(&self) -> usize {
        self.num_virtual_tokens
    }

    fn derived(&self, shape: &Shape) -> Map<String, Value> {
        self.prompt().derived(shape)
    }

    fn for_loading(&self, base: &Base) -> Result<PromptTuning> {
        self.prompt().for_loading(base)
    }
}

#[cfg(test)]
mod tests {
    use peft_core::testing::tolerances::SAME_FUNCTION;
    use peft_core::testing::{assert_close, base, device, examples, fixtures::SHAPES, randomized};
    use peft_core::train::{Length, TrainConfig, Trainer};
    use peft_core::view::tensors;
    use peft_core::{AnyMethod, AnyTuner, Head, Label, LanguageModel, Trained};
    use proptest::prelude::*;

    use super::*;

    /// Prompts that nothing has in common but their form, and the head of the model.
    fn sources(base: &Base) -> Vec<Source> {
        let config = PromptTuningConfig::new(5);
        let one = |(seed, name): (u64, &str)| Source {
            name: name.into(),
            config: config.clone().into(),
            trained: trained(AnyTuner::new(randomized(&config.init(base, seed).unwrap(), seed)), base),
        };
        [(3, "first"), (4, "second"), (5, "third")].into_iter().map(one).collect()
    }

    fn trained(tuner: AnyTuner, base: &Base) -> Trained<AnyTuner> {
        let head = match examples(base)[0].label {
            Some(Label::Words(_)) => Head::LanguageModel(LanguageModel {}),
            _ => Head::classifier(base, 2, 3),
        };
        Trained::new(tuner, head).unwrap()
    }

    peft_core::conformance!(
        SpotConfig::new(5),
        from(sources),
        skip(C1: "the virtual tokens are seen by all others", C3: "the sequence becomes longer")
    );

    #[test]
    fn one_source_is_that_prompt() {
        for shape in SHAPES {
            let (base, settings) =
                (base(shape, &device()), TrainConfig { length: Length::Steps(3), ..Default::default() });
            let source = sources(&base).remove(1);
            let spot = AnyMethod::new(SpotConfig::new(5)).from_sources([source.clone()]).init(&base, 9).unwrap();
            let end = |tuner| {
                let run =
                    Trainer::new(settings.clone()).run(&base, trained(tuner, &base), &examples(&base), None, &mut ());
                tensors(&run.unwrap())
            };
            assert_eq!(tensors(&spot), tensors(&source.trained.tuner), "{shape}");
            assert_eq!(end(spot), end(source.trained.tuner), "{shape}");
        }
    }

    fn rows(values: &[f32]) -> Tensor<2> {
        Tensor::<1>::from_data(values, &device()).reshape([values.len() / 4, 4])
    }

    fn cosine(a: &[f32], b: &[f32]) -> f64 {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    }

    proptest! {
        #[test]
        fn similarities_are_the_papers(
            a in prop::collection::vec(0.5f32..2.0, 12), b in prop::collection::vec(-2f32..-0.5, 12), turn in 1usize..3,
        ) {
            let b: Vec<f32> = b.iter().enumerate().map(|(i, x)| if i % 3 == 0 { -x } else { *x }).collect();
            let mean = |rows: &[f32]| (0..4).map(|i| rows.iter().skip(i).step_by(4).sum::<f32>() / 3.0).collect::<Vec<_>>();
            let pairs = a.chunks(4).flat_map(|a| b.chunks(4).map(move |b| cosine(a, b)));
            let mut turned = a.clone();
            turned.rotate_left(4 * turn);
            for (kind, expected) in [
                (Similarity::AverageTokens, cosine(&mean(&a), &mean(&b))),
                (Similarity::PerToken, pairs.sum::<f64>() / 9.0),
            ] {
                let found = similarity(kind, &rows(&a), &rows(&b));
                let tolerance = f64::from(SAME_FUNCTION.0);
                prop_assert!((found - expected).abs() <= tolerance && found <= 1.0, "{kind:?}: {found}, {expected}");
                for same in [similarity(kind, &rows(&b), &rows(&a)), similarity(kind, &rows(&turned), &rows(&b))] {
                    prop_assert!((same - found).abs() <= tolerance);
                }
            }
        }
    }

    #[test]
    fn a_weighted_average_of_the_nearest() {
        let at = |x: f32, y: f32| rows(&[x, y, 0.0, 0.0, x, y, 0.0, 0.0]);
        // At angles whose cosines to the first are 1, 0.8, 0.6 and 0.
        let all = [("target", at(1.0, 0.0)), ("a", at(4.0, 3.0)), ("b", at(3.0, 4.0)), ("c", at(0.0, 1.0))];
        for similarity in [Similarity::AverageTokens, Similarity::PerToken] {
            for (k, expected) in [(1, [0.0, 1.0, 0.0, 0.0]), (2, [0.0, 0.8 / 1.4, 0.6 / 1.4, 0.0])] {
                let weights = SpotConfig::new(2).nearest("target", k, similarity).weights(&all).unwrap();
                let weights: Vec<f32> = weights.into_iter().map(|weight| weight as f32).collect();
                let tensor = |values: &[f32]| Tensor::<1>::from_data(values, &device());
                assert_close(tensor(&weights), tensor(&expected), SAME_FUNCTION, "weights");
            }
        }
        assert_eq!(SpotConfig::new(2).weights(&all).unwrap(), [0.25; 4]);
        let message = |config: SpotConfig| config.weights(&all).unwrap_err().to_string();
        let nearest = |target, k| SpotConfig::new(2).nearest(target, k, Similarity::PerToken);
        for (config, words) in [
            (nearest("target", 3), ["c, whose similarity", "above 0"]),
            (nearest("target", 4), ["top_k: 4", "from 1 to 3"]),
            (SpotConfig { top_k: 4, ..SpotConfig::new(2) }, ["top_k: 4", "1 without a target"]),
            (nearest("other", 1), ["target: other", "target, a, b, c"]),
        ] {
            let message = message(config);
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
    }

    #[test]
    fn what_is_no_source_is_refused_by_name() {
        let base = base("roberta-tiny", &device());
        let of = |config: SpotConfig, sources: Vec<Source>| {
            AnyMethod::new(config).from_sources(sources).init(&base, 0).unwrap_err().to_string()
        };
        let message = of(SpotConfig::new(5), vec![]);
        assert!(message.contains("sources: none"), "{message}");
        let message = of(SpotConfig::new(4), sources(&base));
        assert!(message.contains("first, of shape [5, 24]") && message.contains("[4, 24]"), "{message}");
        let ia3 = crate::Ia3Config::default();
        let other = Source {
            name: "elsewhere".into(),
            config: ia3.clone().into(),
            trained: trained(AnyTuner::new(ia3.init(&base, 0).unwrap()), &base),
        };
        let message = of(SpotConfig::new(5), vec![other.clone()]);
        assert!(message.contains("elsewhere, of ia3"), "{message}");
        let message = AnyMethod::new(ia3).from_sources([other]).init(&base, 0).unwrap_err().to_string();
        assert!(message.contains("elsewhere") && message.contains("ia3 starts from the base alone"), "{message}");
    }
}
