//! How a frozen matrix is stored: hooks see the handle, never the storage.

use std::sync::Arc;

use burn::tensor::{Int, Tensor, module};

use crate::Compute;
use crate::ops::linear;
use crate::packed::{self, Packed};

/// A matrix `[in, out]` (or a table `[rows, hidden]`) in whatever form it is stored.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "dense is the common case; a box would be one more hop on each product")]
pub enum Weight {
    /// As a tensor.
    Dense(Tensor<2>),
    /// The matrix of a linear map, packed by a codec, for instance to four bits.
    Packed(Arc<dyn Packed>),
    /// A table, packed: its rows are the codec's outputs.
    Table(Arc<dyn Packed>),
}

impl Weight {
    /// The matrix as a tensor. Asking for it may cost an unpacking.
    pub fn dense(&self) -> Tensor<2> {
        match self {
            Weight::Dense(w) => w.clone(),
            Weight::Packed(w) => packed::dense(&**w).transpose(),
            Weight::Table(w) => packed::dense(&**w),
        }
    }

    /// Rows of a table, `[batch, tokens, hidden]`, for ids `[batch, tokens]`.
    pub fn rows(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        match self {
            Weight::Table(w) => packed::rows(&**w, ids),
            _ => module::embedding(self.dense(), ids),
        }
    }

    /// The products of x `[batch, tokens, hidden]` and the rows of a table: logits.
    pub fn by_rows(&self, x: Tensor<3>) -> Tensor<3> {
        match self {
            Weight::Table(w) => packed::product(x, w, Compute::F32),
            _ => linear(x, self.dense().transpose(), None),
        }
    }

    /// `x W + b` for x `[batch, tokens, in]`.
    pub fn linear(&self, x: Tensor<3>, bias: Option<Tensor<1>>) -> Tensor<3> {
        self.linear_in(Compute::F32, x, bias)
    }

    /// The same, computed so.
    pub fn linear_in(&self, compute: Compute, x: Tensor<3>, bias: Option<Tensor<1>>) -> Tensor<3> {
        match self {
            Weight::Dense(w) => match dense_product(compute, &x, w) {
                Some(y) => with_bias(y, bias),
                None => linear(x, w.clone(), bias),
            },
            Weight::Packed(w) => with_bias(packed::product(x, w, compute), bias),
            Weight::Table(_) => linear(x, self.dense(), bias),
        }
    }
}

#[cfg(feature = "flex")]
use crate::frozen::product as dense_product;

#[cfg(not(feature = "flex"))]
fn dense_product(_: Compute, _: &Tensor<3>, _: &Tensor<2>) -> Option<Tensor<3>> {
    None
}

fn with_bias(y: Tensor<3>, bias: Option<Tensor<1>>) -> Tensor<3> {
    match bias {
        Some(bias) => y + bias.unsqueeze(),
        None => y,
    }
}
