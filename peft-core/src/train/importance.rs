//! How important numbers are to the loss, and which are the most important.

use std::collections::BTreeMap;

use burn::module::ParamId;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use super::Probe;
use crate::transfer::read;
use crate::view::{Visit, visit};
use crate::{Base, Error, Result, Tuner};

impl Probe<'_> {
    /// The Fisher information of each number of a tuner, up to a factor common to all: the squared gradients of the losses of these
    /// training examples, one by one, summed. By name.
    pub fn fisher<T: Tuner>(&self, tuner: &T, base: &Base, places: &[usize]) -> Result<BTreeMap<String, Vec<f32>>> {
        let each = places.iter().map(std::slice::from_ref);
        self.summed(tuner, base, each, |_, gradient| gradient * gradient)
    }

    /// A function of each number's gradient of the mean loss of some training examples, by their places, summed over such
    /// batches. By name. The function gets the norm of the tensor's gradient too.
    pub fn summed<'p, T: Tuner>(
        &self,
        tuner: &T,
        base: &Base,
        batches: impl IntoIterator<Item = &'p [usize]>,
        of: impl Fn(f64, f32) -> f32,
    ) -> Result<BTreeMap<String, Vec<f32>>> {
        if self.examples().is_empty() {
            return Err(Error::config("data", "no example", "at least one, by whose gradients the method chooses"));
        }
        struct Sum<'a, F>(BTreeMap<String, Vec<f32>>, GradientsParams, &'a F);
        impl<F: Fn(f64, f32) -> f32> Visit for Sum<'_, F> {
            fn tensor<const D: usize>(&mut self, name: &str, id: ParamId, tensor: Tensor<D>) {
                let sum = self.0.entry(name.to_string()).or_insert_with(|| vec![0.0; tensor.shape().num_elements()]);
                if let Some(gradient) = self.1.remove::<D>(id) {
                    let gradient = read(gradient).convert::<f32>();
                    // A slice: `iter` asks at each number of which type it is.
                    let numbers = gradient.as_slice::<f32>().unwrap_or_else(|_| unreachable!("they were converted"));
                    let norm = numbers.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
                    sum.iter_mut().zip(numbers).for_each(|(sum, g)| *sum += (self.2)(norm, *g));
                }
            }
        }
        let mut sum = Sum(BTreeMap::new(), GradientsParams::new(), &of);
        for places in batches {
            sum.1 = self.gradients(tuner, base, places)?;
            visit(tuner, &mut sum);
        }
        Ok(sum.0)
    }
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
