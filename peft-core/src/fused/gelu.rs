//! GELU, which keeps its slopes alone.

use burn::tensor::Tensor;

use super::{Numbers, Operation, apply, change, like};
use crate::kernels::{Kernel, rows};

/// GELU of each number.
pub(crate) fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    apply(vec![x.into_dispatch()], Gelu)
}

#[derive(Debug)]
struct Gelu;

impl Operation for Gelu {
    fn forward(&self, mut inputs: Vec<Numbers>, kept: Option<&mut Vec<Numbers>>) -> Numbers {
        let (x, kernel) = (inputs.remove(0), Kernel::best());
        let Some(kept) = kept else { return change(x, |x| rows::gelu(kernel, x)) };
        let mut slopes = vec![0.0; x.layout().num_elements()];
        let y = change(x, |x| rows::gelu_and_slope(kernel, x, &mut slopes));
        kept.push(like(&y, slopes));
        y
    }

    fn backward(&self, mut kept: Vec<Numbers>, dy: Numbers, _: &[bool]) -> Vec<Numbers> {
        let dy = dy.to_contiguous();
        vec![change(kept.remove(0), |slopes| rows::times(Kernel::best(), slopes, dy.storage()))]
    }
}
