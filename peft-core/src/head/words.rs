//! Heads for words.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use super::{Affine, Norm};
use crate::ops::gelu;
use crate::{Hidden, Shape, Weight};

/// The transposed word table, or what the model has in its place.
#[derive(Module, Debug)]
pub struct LanguageModel {}

/// Dense, GELU, LayerNorm, then the transposed word table (or one of its own, as PEFT saves a copy of the head) and a bias.
#[derive(Module, Debug)]
pub struct MaskedLm {
    /// The transform.
    pub dense: Affine,
    /// Its normalization.
    pub norm: Norm,
    /// One for each word.
    pub bias: Param<Tensor<1>>,
    /// A word table of its own, `[vocab, hidden]`.
    pub decoder: Option<Param<Tensor<2>>>,
}

impl MaskedLm {
    pub(super) fn logits(&self, states: Tensor<3>, words: Weight, shape: &Shape) -> Tensor<3> {
        let x = transformed(&self.dense, &self.norm, states, shape);
        let words = self.decoder.as_ref().map_or(words, |own| Weight::Dense(own.val()));
        words.by_rows(x) + self.bias.val().unsqueeze()
    }
}

/// A masked word's transform, frozen, and what is trained on it.
#[derive(Module, Debug)]
pub struct AtMask {
    /// The transform of the model's head for masked words.
    pub dense: Affine,
    /// Its normalization.
    pub norm: Norm,
    /// The vectors of the classes, `[hidden, classes]`, and a bias for each.
    pub out: Affine,
}

impl AtMask {
    /// Behind the transform of this head.
    pub fn of(words: &MaskedLm, out: Affine) -> Self {
        AtMask { dense: words.dense.clone().no_grad(), norm: words.norm.clone().no_grad(), out }
    }

    /// The first position, which is the masked word.
    pub(super) fn logits(&self, hidden: Hidden, shape: &Shape) -> Tensor<3> {
        self.out.forward(transformed(&self.dense, &self.norm, hidden.states.narrow(1, 0, 1), shape))
    }
}

/// LN(GELU(x W + b)).
fn transformed(dense: &Affine, norm: &Norm, x: Tensor<3>, shape: &Shape) -> Tensor<3> {
    norm.forward(gelu(dense.forward(x)), shape.eps)
}
