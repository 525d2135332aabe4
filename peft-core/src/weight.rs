//! How a frozen matrix is stored: hooks see the handle, never the storage.

use std::sync::Arc;

use burn::tensor::{Tensor, module};

use crate::Compute;
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

/// `x W + b` with the rows of all samples as one matrix. A product for each sample would copy a `W` that lies transposed, and the
/// graph would keep the copy.
pub(crate) fn linear<const D: usize>(x: Tensor<D>, w: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
    let mut dims = x.dims();
    let rows = dims[..D - 1].iter().product();
    let y = module::linear::<2>(x.reshape([rows, dims[D - 1]]), w, bias);
    dims[D - 1] = y.dims()[1];
    y.reshape(dims)
}
