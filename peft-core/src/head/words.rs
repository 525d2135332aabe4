//! Heads for words.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, module};

use super::{Affine, Norm};
use crate::Shape;
use crate::activation::gelu;
use crate::weight::linear;

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
    pub(super) fn logits(&self, states: Tensor<3>, words: Tensor<2>, shape: &Shape) -> Tensor<3> {
        let x = gelu(self.dense.forward(states));
        let x = module::layer_norm(x, self.norm.gain.val(), Some(self.norm.bias.val()), shape.eps);
        let words = self.decoder.as_ref().map_or(words, Param::val);
        linear(x, words.transpose(), Some(self.bias.val()))
    }
}
