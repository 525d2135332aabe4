//! Dropout whose mask is made anew in backward.

use burn::backend::TensorMetadata;
use burn::tensor::Tensor;

use super::{Numbers, Operation, apply, change};
use crate::kernels::{Kernel, rows};
use crate::ops::Drops;

/// `x` with numbers dropped.
pub(crate) fn dropout<const D: usize>(drops: &Drops, x: Tensor<D>) -> Tensor<D> {
    apply(vec![x.into_dispatch()], Dropout(drops.clone()))
}

#[derive(Debug)]
struct Dropout(Drops);

impl Operation for Dropout {
    fn forward(&self, mut inputs: Vec<Numbers>, _: Option<&mut Vec<Numbers>>) -> Numbers {
        let x = inputs.remove(0);
        let (kernel, shape) = (Kernel::best(), x.shape());
        let (dims, width) = (shape.as_slice(), shape[shape.num_dims() - 1]);
        change(x, |x| {
            self.0.each_row(dims, |row, key| rows::drop(kernel, &mut x[row * width..][..width], &self.0, key))
        })
    }

    fn backward(&self, _: Vec<Numbers>, dy: Numbers, _: &[bool]) -> Vec<Numbers> {
        vec![self.forward(vec![dy], None)]
    }
}
