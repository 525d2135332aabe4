//! Rotary positions, whose backward turns the other way.

use burn::backend::{Flex, TensorMetadata, ops::FloatTensorOps};
use burn::tensor::Tensor;

use super::{Numbers, Operation, apply, change};
use crate::kernels::{Kernel, rows};

/// See [`turned`](crate::ops::turned).
pub(crate) fn turned(x: Tensor<4>, cosine: Tensor<4>, sine: Tensor<4>) -> Tensor<4> {
    apply(vec![x.into_dispatch(), cosine.into_dispatch(), sine.into_dispatch()], Turn)
}

#[derive(Debug)]
struct Turn;

impl Operation for Turn {
    fn forward(&self, inputs: Vec<Numbers>, kept: Option<&mut Vec<Numbers>>) -> Numbers {
        let [x, cosine, sine]: [Numbers; 3] = inputs.try_into().expect("numbers and their angles");
        let (cosine, sine) = (cosine.to_contiguous(), sine.to_contiguous());
        if let Some(kept) = kept {
            kept.extend([cosine.clone(), sine.clone()]);
        }
        turn(x, &cosine, &sine, false)
    }

    fn backward(&self, kept: Vec<Numbers>, dy: Numbers, _: &[bool]) -> Vec<Numbers> {
        vec![turn(dy, &kept[0], &kept[1], true)]
    }
}

/// In memory heads are beside one another, as the products around make and read them.
fn turn(x: Numbers, cosine: &Numbers, sine: &Numbers, back: bool) -> Numbers {
    let x = Flex::float_swap_dims(x, 1, 2);
    let [_, _, heads, width] = x.shape().dims();
    let x = change(x, |x| {
        // Those of one sequence count for all of a batch.
        let angles = cosine.storage().chunks(width / 2).zip(sine.storage().chunks(width / 2)).cycle();
        for (row, (cosine, sine)) in x.chunks_mut(heads * width).zip(angles) {
            rows::turn_pairs(Kernel::best(), row, cosine, sine, back);
        }
    });
    Flex::float_swap_dims(x, 1, 2)
}
