//! The loss of words whose logits are products of states with a table that is not trained, by some rows at a time: neither the logits of
//! all rows nor their gradients are ever there.

use burn::tensor::{Int, Tensor, TensorData};

use crate::Weight;
use crate::transfer::send;

/// About so many logits are there at a time: 8 MB.
const LOGITS: usize = 1 << 21;

/// -log softmax of each row's word, for states `[rows, hidden]` and a table `[words, hidden]`.
pub(crate) fn word_losses(states: Tensor<2>, table: Tensor<2>, words: &[i32]) -> Tensor<1> {
    let rows = (LOGITS / table.dims()[0]).max(1);
    by_rows(states, table, words, rows)
}

/// The gradient of a row's loss is known as soon as the loss is, (softmax - word) W, so that forward computes it too and keeps nothing
/// else: `s - s'` is 0, where s is the product of the states with it and s' the same number without a graph.
fn by_rows(states: Tensor<2>, table: Tensor<2>, words: &[i32], rows: usize) -> Tensor<1> {
    let tracked = states.is_autodiff();
    let plain = if tracked { states.clone().inner() } else { states.clone() };
    let logits = Weight::Dense(table.clone().transpose());
    let (mut losses, mut gradients) = (vec![], vec![]);
    for (i, of) in words.chunks(rows).enumerate() {
        let x = plain.clone().narrow(0, i * rows, of.len());
        let logits = logits.linear(x.unsqueeze(), None).squeeze_dim::<2>(0);
        let of = send::<2, Int>(TensorData::new(of.to_vec(), [of.len(), 1]), &plain.device());
        let largest = logits.clone().max_dim(1);
        let word = logits.clone().gather(1, of.clone()) - largest.clone();
        let powers = (logits - largest).exp();
        let sum = powers.clone().sum_dim(1);
        losses.push((sum.clone().log() - word).squeeze_dim::<1>(1));
        if tracked {
            let one = sum.ones_like();
            let off = (powers / sum).scatter(1, of, one.neg(), burn::tensor::IndexingUpdateOp::Add);
            gradients.push(Weight::Dense(table.clone()).linear(off.unsqueeze(), None).squeeze_dim::<2>(0));
        }
    }
    let losses = Tensor::cat(losses, 0);
    if !tracked {
        return losses;
    }
    let product = (states * Tensor::from_inner(Tensor::cat(gradients, 0))).sum_dim(1).squeeze_dim::<1>(1);
    Tensor::from_inner(losses) + (product.clone() - product.detach())
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
            let found = run(&|x| by_rows(x, table.clone(), &words, rows));
            assert_close(found.0, whole.0.clone(), SAME_FUNCTION, &format!("losses, {rows} rows"));
            let [found, expected] = [found.1, whole.1.clone()].map(|gradient| gradient / largest);
            assert_close(found, expected, SAME_GRADIENT, &format!("gradients, {rows} rows"));
        }
        assert_close(by_rows(states.clone(), table, &words, 4), whole.0, SAME_FUNCTION, "without gradients");
    }
}
