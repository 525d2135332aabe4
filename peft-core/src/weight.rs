//! How a frozen matrix is stored: hooks see the handle, never the storage.

use std::sync::Arc;

use burn::tensor::Tensor;

use crate::ops::linear;
use crate::packed::{self, Packed};

/// A matrix `[in, out]` (or a table `[rows, hidden]`) in whatever form it is stored.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "dense is the common case; a box would be one more hop on each product")]
pub enum Weight {
    /// As a tensor.
    Dense(Tensor<2>),
    /// Packed by a codec, for instance to four bits.
    Packed(Arc<dyn Packed>),
}

impl Weight {
    /// The matrix as a tensor. Asking for it may cost an unpacking.
    pub fn dense(&self) -> Tensor<2> {
        match self {
            Weight::Dense(w) => w.clone(),
            Weight::Packed(w) => packed::dense(&**w),
        }
    }

    /// `x W + b` for x `[batch, tokens, in]`.
    pub fn linear(&self, x: Tensor<3>, bias: Option<Tensor<1>>) -> Tensor<3> {
        match self {
            Weight::Dense(w) => linear(x, w.clone(), bias),
            Weight::Packed(w) => {
                let y = packed::product(x, w);
                match bias {
                    Some(bias) => y + bias.unsqueeze(),
                    None => y,
                }
            }
        }
    }
}
