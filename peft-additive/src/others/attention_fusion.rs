//! # AttentionFusion                        family: additive / others
//! y_i = sum_j a_ij v_ij, a_ij = softmax_j(q . v_ij)     v_ij: (d,), the state of token i behind layer j; q: (d,), the task's query
//! Paper: Cao et al., 2022, Findings of NAACL, 857-866, ACL anthology 2022.findings-naacl.64.   Reference: none is public
//! Oracle: paper: `equals_the_derivation_of_attention_fusion`
//! Trains: d.                                Merges: no, it reads states of all layers.
//! Identities:
//! - y is what the equation says: `fused_states_are_the_equation`
//! - q = 0 is the mean of the layers' states: `a_query_of_zeros_takes_the_mean`
//! - t q, t -> infinity, is the layer that fits q best: `a_long_query_takes_one_layer`
//! - the last layer alone is the base, bit for bit, hence linear probing: `the_last_layer_alone_is_the_base`
//! - the layers have no order: `the_order_of_the_layers_does_not_matter`
//! - nothing of the backbone is differentiated, and it runs without dropout: `fusion_stands_behind_a_frozen_backbone`
//!
//! Differs from the paper: what y goes into is the model's head, which reads it where it reads a last state: a classifier at the first token, behind BERT's frozen pooler; a head for tokens at each. T5, whose decoder is fused, and LLaMA are an extension: their states go through the model's last normalization first. Where q starts is not published; here at 0.

use std::collections::BTreeSet;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::ops::attention::mixed;
use peft_core::{Base, Batch, Error, Hidden, Key, Method, Part, Procedure, Result, Shape, Site, Tuner};
use serde::{Deserialize, Serialize};

use super::tap::{pooled, tapped};

/// The configuration of AttentionFusion.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AttentionFusionConfig {
    /// The states that are fused: 0 is what goes into the first layer, j what layer j, counted from 1, gives; behind all layers, if
    /// absent.
    pub layers: Option<Vec<usize>>,
}

impl AttentionFusionConfig {
    /// The states behind all layers.
    pub fn new() -> Self {
        Self::default()
    }

    /// These states only.
    pub fn with_layers(mut self, layers: impl IntoIterator<Item = usize>) -> Self {
        self.layers = Some(layers.into_iter().collect());
        self
    }

    /// The states that are fused; refuses those that are not there.
    fn plan(&self, shape: &Shape) -> Result<Vec<usize>> {
        let last = shape.stacks().last().map_or(0, |(_, layers)| *layers);
        let Some(layers) = &self.layers else { return Ok((1..=last).collect()) };
        let distinct: BTreeSet<_> = layers.iter().filter(|layer| **layer <= last).collect();
        if layers.is_empty() || distinct.len() != layers.len() {
            return Err(Error::config("layers", format!("{layers:?}"), format!("different numbers from 0 to {last}")));
        }
        Ok(layers.clone())
    }
}

/// An attention over layers.
#[derive(Module, Debug)]
pub struct AttentionFusion {
    /// q, `[d]`.
    query: Param<Tensor<1>>,
    #[module(skip)]
    layers: Vec<usize>,
}

impl Method for AttentionFusionConfig {
    const NAME: &'static str = "attention-fusion";
    const PEFT_TYPE: &'static str = "ATTENTION_FUSION";
    type Tuner = AttentionFusion;

    fn init(&self, base: &Base, _seed: u64) -> Result<AttentionFusion> {
        let query = Tensor::zeros([base.shape().hidden], &base.device().clone().autodiff());
        Ok(AttentionFusion { query: Param::from_tensor(query), layers: self.plan(base.shape())? })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        self.plan(shape)?;
        Ok(shape.hidden)
    }

    fn key(&self, _name: &str, _shape: &Shape) -> Key {
        Key::plain("base_model.model.attention_fusion.query")
    }
}

impl Tuner for AttentionFusion {
    fn run(&self, base: &Base, batch: &Batch) -> Result<Hidden> {
        let batch = Batch { noise: None, ..batch.clone() };
        let (Hidden { prompt, words, .. }, tap) = tapped(base, &batch)?;
        let (frame, stacks) = (base.frame(&batch, &()), base.shape().stacks());
        let stack = stacks[stacks.len() - 1].0;
        let at = |layer, part| Site { stack, layer, part };
        let state = |layer: &usize| {
            let state = match layer.checked_sub(1) {
                None => tap.starts.borrow()[&stack].clone(),
                Some(layer) => tap.layers.borrow()[&at(layer, Part::Layer)].clone(),
            };
            if base.shape().pre_norm() { frame.norm(at(0, Part::NormFinal), state) } else { state }
        };
        let states = Tensor::stack::<4>(self.layers.iter().map(state).collect(), 2);
        let scores = states.clone().matmul(self.query.val().unsqueeze_dims::<4>(&[0, 1, 3]));
        let states = mixed(states, scores);
        Ok(Hidden { pooled: pooled(base, &states), states, prompt, words })
    }
}

impl Procedure for AttentionFusion {}

#[cfg(test)]
mod tests {
    use peft_core::random::Noise;
    use peft_core::testing::{base, batch, device, fixtures::SHAPES, randomized};

    use super::*;

    mod all_layers {
        use super::*;
        peft_core::conformance!(
            AttentionFusionConfig::new(),
            skip(C1: "it starts as the mean of all layers", C3: "it reads states of all layers", C6: "no adapter, so that it composes with nothing")
        );
    }

    mod embeddings_and_a_layer {
        use super::*;
        peft_core::conformance!(
            AttentionFusionConfig::new().with_layers([2, 0]),
            skip(C1: "it starts as the mean of its states", C3: "it reads states of other layers", C6: "no adapter, so that it composes with nothing")
        );
    }

    #[test]
    fn has_as_many_parameters_as_the_paper_says() {
        for name in ["roberta-base", "bert-base", "t5-base"] {
            assert_eq!(AttentionFusionConfig::new().count(&Shape::named(name).unwrap()).unwrap(), 768);
        }
    }

    #[test]
    fn fusion_stands_behind_a_frozen_backbone() {
        for shape in SHAPES {
            let (base, config) = (base(shape, &device()).with_dropout(0.5), AttentionFusionConfig::new());
            let (batch, fusion) = (batch(&base), randomized(&config.init(&base, 3).unwrap(), 3));
            let run = |batch: &Batch| fusion.run(&base, batch).unwrap().states;
            assert!(run(&batch).is_autodiff());
            let (_, tap) = tapped(&base, &batch).unwrap();
            assert!(tap.layers.borrow().values().all(|states| !states.is_autodiff()));
            let noise = Noise { seed: 1, step: 0, samples: (0..5).collect() };
            assert_eq!(run(&batch.clone().with_noise(noise)).into_data(), run(&batch).into_data());
        }
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let base = base("t5-tiny", &device());
        for layers in [vec![], vec![4], vec![1, 1]] {
            let config = AttentionFusionConfig::new().with_layers(layers.clone());
            for message in [config.init(&base, 0).unwrap_err(), config.count(base.shape()).unwrap_err()] {
                let expected = format!("layers: {layers:?} is not allowed, expected different numbers from 0 to 3");
                assert!(message.to_string().contains(&expected), "{message}");
            }
        }
    }
}
