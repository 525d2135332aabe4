//! What methods share that train a part of the numbers: which of them score highest, and how the others are held.

use std::collections::BTreeMap;

use burn::module::ParamId;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use peft_core::train::Probe;
use peft_core::view::{Rewrite, Visit, view, visit};
use peft_core::{Base, Result};

use crate::Full;

/// The Fisher information of each number of a base, up to a factor common to all: the squared gradients of the losses of these
/// training examples, one by one, summed. By name.
pub fn fisher(full: &Full, base: &Base, data: Probe<'_>, examples: &[usize]) -> Result<BTreeMap<String, Vec<f32>>> {
    struct Squares(BTreeMap<String, Vec<f32>>, GradientsParams);
    impl Visit for Squares {
        fn tensor<const D: usize>(&mut self, name: &str, id: ParamId, tensor: Tensor<D>) {
            let sum = self.0.entry(name.to_string()).or_insert_with(|| vec![0.0; tensor.shape().num_elements()]);
            if let Some(gradient) = self.1.remove::<D>(id) {
                let squares = gradient.into_data().iter::<f32>().map(|g| g * g).collect::<Vec<_>>();
                sum.iter_mut().zip(squares).for_each(|(sum, square)| *sum += square);
            }
        }
    }
    let mut squares = Squares(BTreeMap::new(), GradientsParams::new());
    for example in examples {
        squares.1 = data.gradients(full, base, &[*example])?;
        visit(full, &mut squares);
    }
    Ok(squares.0)
}

/// Which `k` numbers have the largest scores of all; of equal ones those that come first.
pub fn largest(scores: &BTreeMap<String, Vec<f32>>, k: usize) -> BTreeMap<String, Vec<bool>> {
    let mut all: Vec<f32> = scores.values().flatten().copied().collect();
    let least = match k {
        0 => f32::INFINITY,
        _ => *all.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1,
    };
    let mut equal = k.saturating_sub(all.iter().filter(|score| **score > least).count());
    let mut kept = |score: &f32| {
        let first = *score == least && equal > 0;
        equal -= usize::from(first);
        first || *score > least
    };
    scores.iter().map(|(name, scores)| (name.clone(), scores.iter().map(&mut kept).collect())).collect()
}

/// Trains only those tensors whose names `moves` takes.
pub fn train_only(full: &Full, moves: impl Fn(&str) -> bool) -> Full {
    struct Freeze<F>(F);
    impl<F: Fn(&str) -> bool> Rewrite for Freeze<F> {
        fn tensor<const D: usize>(&mut self, name: &str, tensor: Tensor<D>) -> Tensor<D> {
            if (self.0)(name) { tensor } else { tensor.set_require_grad(false) }
        }
    }
    view(full, &mut Freeze(moves))
}

/// The gradients with zeros where a mask has them. What has no mask is trained as a whole.
pub fn mask_gradients(full: &Full, masks: &Full, gradients: GradientsParams) -> GradientsParams {
    struct Mask<'a>(&'a Full, GradientsParams);
    impl Visit for Mask<'_> {
        fn tensor<const D: usize>(&mut self, name: &str, id: ParamId, _: Tensor<D>) {
            let Some(mask) = self.0.get::<D>(name) else { return };
            if let Some(gradient) = self.1.remove::<D>(id) {
                self.1.register(id, gradient.mask_fill(held(mask), 0.0));
            }
        }
    }
    let mut mask = Mask(masks, gradients);
    visit(full, &mut mask);
    mask.1
}

/// What was before where a mask has zeros: weight decay and what an optimizer remembers move numbers without a gradient too.
pub fn hold(now: &Full, before: &Full, masks: &Full) -> Full {
    struct Hold<'a>(&'a Full, &'a Full);
    impl Rewrite for Hold<'_> {
        fn tensor<const D: usize>(&mut self, name: &str, now: Tensor<D>) -> Tensor<D> {
            match (self.0.get::<D>(name), self.1.get::<D>(name)) {
                (Some(before), Some(mask)) if now.is_require_grad() => {
                    let held = now.without_autodiff().mask_where(held(mask), before.without_autodiff());
                    Tensor::from_inner(held).require_grad()
                }
                _ => now,
            }
        }
    }
    view(now, &mut Hold(before, masks))
}

fn held<const D: usize>(mask: Tensor<D>) -> Tensor<D, burn::tensor::Bool> {
    mask.without_autodiff().equal_elem(0.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against sorting all of them, stably. Few values make many ties.
        #[test]
        fn the_largest_are_those_of_a_stable_sort(
            scores in prop::collection::btree_map("[a-d]", prop::collection::vec(0u8..6, 1..9), 1..5),
            share in 0.0..=1.0,
        ) {
            let scores: BTreeMap<String, Vec<f32>> =
                scores.into_iter().map(|(name, values)| (name, values.into_iter().map(f32::from).collect())).collect();
            let all: Vec<f32> = scores.values().flatten().copied().collect();
            let k = (share * all.len() as f64) as usize;
            let mut order: Vec<usize> = (0..all.len()).collect();
            order.sort_by(|a, b| all[*b].total_cmp(&all[*a]));
            let found: Vec<bool> = largest(&scores, k).into_values().flatten().collect();
            let expected: Vec<bool> = (0..all.len()).map(|i| order[..k].contains(&i)).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
