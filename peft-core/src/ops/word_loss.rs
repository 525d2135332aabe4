//! The loss of words whose logits are products of states with a table that is not trained, by some rows at a time: neither the logits of
//! all rows nor their gradients are ever there.

use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};

use crate::Weight;
use crate::transfer::send;

/// About so many logits are there at a time: 8 MB.
const LOGITS: usize = 1 << 21;

/// -log softmax of each row's word, for states `[rows, hidden]` and a table `[words, hidden]`.
pub(crate) fn word_losses(states: Tensor<2>, table: &Weight, words: &[i32]) -> Tensor<1> {
    let count = match table {
        Weight::Dense(table) => table.dims()[0],
        Weight::Packed(table) | Weight::Table(table) => table.dims()[1],
    };
    by_rows(states, table, words, (LOGITS / count).max(1))
}

/// The gradient of a row's loss is known as soon as the loss is, (softmax - word) W, so that forward computes it too and keeps nothing
/// else: `s - s'` is 0, where s is the product of the states with it and s' the same number without a graph.
fn by_rows(states: Tensor<2>, table: &Weight, words: &[i32], rows: usize) -> Tensor<1> {
    let tracked = states.is_autodiff();
    let (mut losses, mut gradients) = (vec![], vec![]);
    for (i, of) in words.chunks(rows).enumerate() {
        let x = states.clone().narrow(0, i * rows, of.len());
        let x = if tracked { Tensor::from_inner(x.inner()).require_grad() } else { x };
        let product = logits(table, x.clone().unsqueeze()).squeeze_dim::<2>(0);
        let logits = if tracked { product.clone().inner() } else { product.clone() };
        let of = send::<2, Int>(TensorData::new(of.to_vec(), [of.len(), 1]), &logits.device());
        let largest = logits.clone().max_dim(1);
        let word = logits.clone().gather(1, of.clone()) - largest.clone();
        let powers = (logits - largest).exp();
        let sum = powers.clone().sum_dim(1);
        losses.push((sum.clone().log() - word).squeeze_dim::<1>(1));
        if tracked {
            let one = sum.ones_like();
            let off = (powers / sum).scatter(1, of, one.neg(), IndexingUpdateOp::Add);
            gradients.extend(x.grad(&(product * Tensor::from_inner(off)).sum().backward()));
        }
    }
    let losses = Tensor::cat(losses, 0);
    if !tracked {
        return losses;
    }
    let product = (states * Tensor::from_inner(Tensor::cat(gradients, 0))).sum_dim(1).squeeze_dim::<1>(1);
    Tensor::from_inner(losses) + (product.clone() - product.detach())
}

/// With a dense table by the product of linear maps, which all threads compute where some have nothing else to do.
fn logits(table: &Weight, x: Tensor<3>) -> Tensor<3> {
    match table {
        Weight::Dense(table) => Weight::Dense(table.clone().transpose()).linear(x, None),
        packed => packed.by_rows(x),
    }
}

#[cfg(all(test, feature = "train"))]
mod tests {
    use super::*;
    use crate::loss::cross_entropy;
    use crate::random::Random;
    use crate::testing::tolerances::{SAME_FUNCTION, SAME_GRADIENT};
    use crate::testing::{assert_close, device};

    /// Losses and gradients, each row weighed by another number.
    #[test]
    fn losses_by_rows_are_those_of_all_logits() {
        let device = device();
        let [count, width, vocab] = [11, 6, 17];
        let draw = |dims: [usize; 2]| Random::new(3, &format!("{dims:?}")).normal_tensor::<2>(dims, 1.5, &device);
        let (states, table, weights) = (draw([count, width]), draw([vocab, width]), draw([1, count]));
        let words: Vec<i32> = (0..count as i32).map(|i| i * 5 % vocab as i32).collect();
        let run = |losses: &dyn Fn(Tensor<2>) -> Tensor<1>| {
            let leaf = Tensor::from_inner(states.clone()).require_grad();
            let losses = losses(leaf.clone());
            let gradient = leaf.grad(&(losses.clone() * weights.clone().squeeze_dim(0)).sum().backward()).unwrap();
            (losses.inner(), gradient)
        };
        let whole = run(&|x| cross_entropy(x.matmul(table.clone().transpose()), words.clone()));
        let largest = whole.1.clone().abs().max().into_scalar::<f32>();
        for rows in [1, 3, 4, 11, 20] {
            let found = run(&|x| by_rows(x, &Weight::Dense(table.clone()), &words, rows));
            assert_close(found.0, whole.0.clone(), SAME_FUNCTION, &format!("losses, {rows} rows"));
            let [found, expected] = [found.1, whole.1.clone()].map(|gradient| gradient / largest);
            assert_close(found, expected, SAME_GRADIENT, &format!("gradients, {rows} rows"));
        }
        assert_close(
            by_rows(states.clone(), &Weight::Dense(table), &words, 4),
            whole.0,
            SAME_FUNCTION,
            "without gradients",
        );
    }
}
