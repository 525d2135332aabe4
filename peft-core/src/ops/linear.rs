//! Linear maps.

use burn::tensor::{Tensor, module};

/// `x W + b` with the rows of all samples as one matrix. A product for each sample would copy a `W` that lies transposed, and the
/// graph would keep the copy.
pub fn linear<const D: usize>(x: Tensor<D>, w: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
    let mut dims = x.dims();
    let rows = dims[..D - 1].iter().product();
    let y = module::linear::<2>(x.reshape([rows, dims[D - 1]]), w, bias);
    dims[D - 1] = y.dims()[1];
    y.reshape(dims)
}
