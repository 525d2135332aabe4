//! # Residual adapter                       family: additive / adapter-based
//! y' = y + relu(N(y) Wd + bd) Wu + bu      y: [n, d], what a layer gives; Wd: [d, m], Wu: [m, d]; N: a layer normalization of the adapter's own
//! x' = x + e                               x: [n, d], the words of a stack; e: (d,), the task embedding
//! Paper: Lin et al., 2020, arXiv:2004.03829, section 3.   Reference: zlinao/VGLM; adapter-hub `BnConfig` with `ln_before`, after the last normalization
//! Oracle: package adapters 1.3.0: `equals_adapterhub_with_a_normalization_inside`
//! Trains: 2 d m + m + 3 d per layer, and d per stack.      Merges: no, the non-linearity is in front of the residual.
//! Identities:
//! - y' and x' are what the equations say: `a_residual_adapter_is_its_equation`
//! - Wu = 0, bu = 0, e = 0 is the base: `a_residual_adapter_without_a_second_map_is_the_base`
//! - y + c for a number c gives y' + c: `a_number_added_to_a_state_passes_through`
//! - the order of the bottleneck's units does not matter: `the_order_of_the_units_does_not_matter_behind_a_layer`
//! - it starts as the reference's: `each_form_starts_as_its_reference`
//!
//! Differs from the paper: an adapter is of one task; the reference holds those of all tasks side by side and picks one by its number. Its task embeddings are rows of new words, of which each segment of a GPT-2's text has one; here an encoder has one and a decoder has one. BERT, RoBERTa and T5 are an extension: y is behind the layer's last normalization, where there is one. The epsilon of N is the model's, as in the reference; AdapterHub's is 1e-5.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::{
    Base, Frame, Hooks, Key, Method, Next, Part, Procedure, Result, Sequence, Shape, Site, SiteMap, Stack, adapter,
    random::Random, split_name,
};
use serde::{Deserialize, Serialize};

use super::bottleneck::{Activation, Bottleneck, check_width, count, key};

/// The standard deviation of what the reference draws, as GPT-2 starts.
const STD: f64 = 0.02;

/// The configuration of residual adapters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResidualConfig {
    /// Width m of the bottleneck.
    pub bottleneck: usize,
    /// Whether a task embedding is added to the words.
    pub task_embedding: bool,
}

impl Default for ResidualConfig {
    /// The paper's for summaries and dialogues: width 100, with a task embedding.
    fn default() -> Self {
        ResidualConfig::new(100)
    }
}

impl ResidualConfig {
    /// With a bottleneck of this width.
    pub fn new(bottleneck: usize) -> Self {
        ResidualConfig { bottleneck, task_embedding: true }
    }

    /// With a task embedding, or without.
    pub fn with_task_embedding(mut self, task_embedding: bool) -> Self {
        self.task_embedding = task_embedding;
        self
    }

    /// The layers with an adapter, and the words with a task embedding.
    fn plan(&self, shape: &Shape) -> Result<(Vec<Site>, Vec<Site>)> {
        check_width(self.bottleneck, shape)?;
        let stacks = shape.stacks().into_iter().filter(|_| self.task_embedding);
        Ok((shape.sites(Part::Layer), stacks.map(|(stack, _)| words(stack)).collect()))
    }
}

/// The words of a stack.
fn words(stack: Stack) -> Site {
    Site { stack, layer: 0, part: Part::Words }
}

/// Adapters behind layers, and task embeddings.
#[derive(Module, Debug)]
pub struct Residual {
    adapters: SiteMap<Bottleneck>,
    /// `[d]` each.
    tasks: SiteMap<Param<Tensor<1>>>,
}

impl Method for ResidualConfig {
    const NAME: &'static str = "residual";
    const PEFT_TYPE: &'static str = "RESIDUAL_ADAPTER";
    type Tuner = Residual;

    fn init(&self, base: &Base, seed: u64) -> Result<Residual> {
        let (shape, device) = (base.shape(), base.device().clone().autodiff());
        let ((layers, words), d, m) = (self.plan(shape)?, shape.hidden, self.bottleneck);
        let random = |site: Site, leaf: &str| Random::new(seed, &format!("residual.{site}.{leaf}"));
        let map = |site, leaf, dims| random(site, leaf).normal_tensor(dims, STD, &device);
        let adapter = |site| Bottleneck::new(map(site, "down", [d, m]), map(site, "up", [m, d])).with_norm();
        let task = |site| Param::from_tensor(random(site, "task").normal_tensor([d], STD, &device));
        Ok(Residual {
            adapters: layers.into_iter().map(|site| (site, adapter(site))).collect(),
            tasks: words.into_iter().map(|site| (site, task(site))).collect(),
        })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        let ((layers, words), d) = (self.plan(shape)?, shape.hidden);
        Ok(layers.len() * (count(d, self.bottleneck) + 2 * d) + words.len() * d)
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        match split_name(name) {
            ("tasks", Site { stack: Stack::Encoder, .. }, _) => Key::plain("base_model.model.encoder.task_embedding"),
            ("tasks", ..) => Key::plain("base_model.model.decoder.task_embedding"),
            (_, site, leaf) => key(shape, site, leaf),
        }
    }
}

impl Hooks for Residual {
    fn layer(&self, frame: &Frame<'_>, site: Site, x: Sequence, next: Next<'_, Sequence>) -> Sequence {
        let y = next(x);
        let Some(adapter) = self.adapters.get(site) else { return y };
        let read = adapter.read(y.hidden.clone(), frame.shape().eps);
        Sequence { hidden: y.hidden.clone() + adapter.forward(read, Activation::Relu), ..y }
    }

    fn embed(&self, stack: Stack, x: Sequence) -> Sequence {
        let Some(task) = self.tasks.get(words(stack)) else { return x };
        Sequence { hidden: x.hidden.clone() + task.val().unsqueeze(), ..x }
    }
}

adapter!(Residual);
impl Procedure for Residual {}

#[cfg(test)]
mod tests {
    use super::*;

    mod with_task_embedding {
        use super::*;
        peft_core::conformance!(
            ResidualConfig::new(9),
            skip(C1: "near identity only", C3: "the non-linearity is in front of the residual")
        );
    }

    mod without {
        use super::*;
        peft_core::conformance!(
            ResidualConfig::new(9).with_task_embedding(false),
            skip(C1: "near identity only", C3: "the non-linearity is in front of the residual")
        );
    }

    #[test]
    fn has_as_many_parameters_as_the_closed_form_says() {
        let [base, t5] = ["roberta-base", "t5-base"].map(|name| Shape::named(name).unwrap());
        let count = |config: ResidualConfig, shape| config.count(shape).unwrap();
        assert_eq!(count(ResidualConfig::default().with_task_embedding(false), &base), 1_872_048);
        assert_eq!(count(ResidualConfig::new(64), &base), 1_208_064 + 768);
        assert_eq!(count(ResidualConfig::new(100), &t5), 2 * (1_872_048 + 768));
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let base = peft_core::testing::base("roberta-tiny", &peft_core::testing::device());
        for message in [0, 385].map(|width| ResidualConfig::new(width).init(&base, 0).unwrap_err().to_string()) {
            assert!(message.contains("bottleneck") && message.contains("1 to 384"), "{message}");
        }
    }
}
