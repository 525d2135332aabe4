//! Heads for classes and values: of a text, and of each token.

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, activation, module};

use super::Affine;
use crate::random::Random;
use crate::{Base, Batch, Error, Hidden, Result, Shape};

/// RoBERTa: dense, tanh, out; BERT: out, on the pooler's output.
#[derive(Module, Debug)]
pub struct Classifier {
    /// The first layer, of two.
    pub dense: Option<Affine>,
    /// The last layer, `[hidden, classes]`.
    pub out: Affine,
}

/// A linear map without bias.
#[derive(Module, Debug)]
pub struct Score {
    /// `[hidden, classes]`.
    pub weight: Param<Tensor<2>>,
}

/// A linear map of each token's state.
#[derive(Module, Debug)]
pub struct Tokens {
    /// `[hidden, classes]`.
    pub out: Affine,
}

impl Classifier {
    pub(super) fn init(base: &Base, outputs: usize, seed: u64, two_layers: bool) -> Self {
        let (hidden, device) = (base.shape().hidden, base.device().clone().autodiff());
        let affine = |name: &str, columns| {
            Affine::init([hidden, columns], 0.02, Random::new(seed, &format!("classifier.{name}")), &device)
        };
        Classifier { dense: two_layers.then(|| affine("dense", hidden)), out: affine("out", outputs) }
    }

    /// The first position, a prompt's if there is one: as in transformers and PEFT.
    pub(super) fn logits(&self, hidden: Hidden, shape: &Shape, batch: &Batch) -> Result<Tensor<3>> {
        let drop = |x, place| drop(x, place, shape, batch);
        let no_pooler = || {
            let expected =
                "a model with a pooler (a checkpoint saved for masked words has none), as BERT's classifier needs";
            Error::config("pooler.dense.weight", "no such tensor in the model", expected)
        };
        let x = match &self.dense {
            Some(dense) => {
                let first = drop(hidden.states.narrow(1, 0, 1), "classifier.dense");
                activation::tanh(dense.forward(first))
            }
            None => hidden.pooled.ok_or_else(no_pooler)?.unsqueeze_dim(1),
        };
        Ok(self.out.forward(drop(x, "classifier.out")))
    }
}

impl Score {
    /// The last real token's.
    pub(super) fn logits(&self, hidden: Hidden, batch: &Batch) -> Tensor<3> {
        let states = hidden.tokens();
        let [size, tokens, width] = states.dims();
        let last = match &batch.padding {
            None => states.narrow(1, tokens - 1, 1),
            Some(padding) => {
                let places = Tensor::<1, Int>::arange(0..tokens as i64, &padding.device()).unsqueeze::<2>();
                let places = places.expand([size, tokens]).mask_fill(padding.clone(), -1).max_dim(1);
                states.gather(1, places.unsqueeze_dim::<3>(2).expand([size, 1, width]))
            }
        };
        module::linear(last, self.weight.val(), None)
    }
}

impl Tokens {
    pub(super) fn logits(&self, states: Tensor<3>, shape: &Shape, batch: &Batch) -> Tensor<3> {
        self.out.forward(drop(states, "tokens.out", shape, batch))
    }
}

/// Dropout, while training.
fn drop(x: Tensor<3>, place: &str, shape: &Shape, batch: &Batch) -> Tensor<3> {
    match &batch.noise {
        Some(noise) => noise.dropout(x, shape.classifier_dropout, place),
        None => x,
    }
}
