//! What an adapter adds, bare.

use burn::tensor::Tensor;

use crate::{Adapter, Batch, Frame, Site};

/// An adapter that adds to outputs of the frozen computation and says what, without the output that its hooks add it to: gates, and
/// attention over several adapters, stand on it.
pub trait Delta: Adapter {
    /// What it adds to the output of the linear map at a site, which reads `x` `[batch, tokens, d_in]`: `[batch, tokens, d_out]`.
    fn to_linear(&self, _batch: &Batch, _site: Site, _x: &Tensor<3>) -> Option<Tensor<3>> {
        None
    }

    /// What it adds to the output of the sub-layer at a site, before the residual addition; of the sub-layer its residual and its
    /// output are given, `[batch, tokens, hidden]`.
    fn to_sublayer(
        &self,
        _frame: &Frame<'_>,
        _site: Site,
        _residual: &Tensor<3>,
        _output: &Tensor<3>,
    ) -> Option<Added> {
        None
    }
}

/// What an adapter adds to the output of a sub-layer.
#[derive(Clone, Debug)]
pub struct Added {
    /// What it computes that from, `[batch, tokens, hidden]`.
    pub read: Tensor<3>,
    /// What is added, `[batch, tokens, hidden]`.
    pub delta: Tensor<3>,
}
