//! Scores of numbers, and which are left by them.

use std::collections::BTreeMap;

use peft_core::train::largest;
use peft_core::{Error, Result};

/// By how much of its length GraSP moves the weights to tell how the gradient changes.
const GRASP_STEP: f64 = 1e-3;

/// Numbers by the name of their matrix.
pub(crate) type Numbers = BTreeMap<String, Vec<f32>>;

/// Which numbers are left, by the name of their matrix.
pub(crate) type Kept = BTreeMap<String, Vec<bool>>;

/// A score of each number, by its matrix and place and itself.
pub(crate) fn per_number(weights: &Numbers, of: impl Fn((&str, usize), f32) -> f32) -> Numbers {
    let scores = |(name, weights): (&String, &Vec<f32>)| {
        (name.clone(), weights.iter().enumerate().map(|(i, weight)| of((name, i), *weight)).collect())
    };
    weights.iter().map(scores).collect()
}

/// All but the share of the numbers with the lowest scores.
pub(crate) fn best(scores: &Numbers, sparsity: f64) -> Result<Kept> {
    if let Some((name, _)) = scores.iter().find(|(_, scores)| scores.iter().all(|score| *score == 0.0)) {
        let expected = "random or erdos_renyi, or an adapter no matrix of which starts at 0 (init near_identity)";
        return Err(Error::config("scorer", format!("scores of 0 for all of {name}"), expected));
    }
    some_of_each(largest(scores, left(scores.values().map(Vec::len).sum(), sparsity)), sparsity)
}

/// Refuses to leave nothing of a matrix: what is before or behind it in the adapter would not be trained either.
fn some_of_each(kept: Kept, sparsity: f64) -> Result<Kept> {
    match kept.iter().find(|(_, kept)| !kept.contains(&true)) {
        Some((name, _)) => Err(Error::config("sparsity", sparsity, format!("less: nothing is left of {name}"))),
        None => Ok(kept),
    }
}

/// How many of n numbers are left.
pub(crate) fn left(n: usize, sparsity: f64) -> usize {
    n - (sparsity * n as f64).ceil() as usize
}

/// Of each matrix a share of its own, by random scores.
pub(crate) fn erdos_renyi(shapes: &[(String, Vec<usize>)], scores: &Numbers, sparsity: f64) -> Result<Kept> {
    let dims: Vec<[usize; 2]> = shapes.iter().map(|(_, dims)| [dims[0], dims[1]]).collect();
    let kept = |((name, _), k): (&(String, Vec<usize>), usize)| {
        let own = BTreeMap::from([(name.clone(), scores[name].clone())]);
        (name.clone(), largest(&own, k).remove(name).unwrap_or_default())
    };
    some_of_each(shapes.iter().zip(shares(&dims, sparsity)).map(kept).collect(), sparsity)
}

/// How many numbers are left of each matrix `[a, b]`: in proportion to a + b, none more than it has, the whole to the unit.
fn shares(dims: &[[usize; 2]], sparsity: f64) -> Vec<usize> {
    let sizes: Vec<usize> = dims.iter().map(|[a, b]| a * b).collect();
    let whole = left(sizes.iter().sum(), sparsity);
    let mut full = vec![false; dims.len()];
    // Which matrices stay whole follows from the factor, and the factor from these.
    let exact: Vec<f64> = loop {
        let fixed: usize = (0..dims.len()).filter(|i| full[*i]).map(|i| sizes[i]).sum();
        let free: usize = (0..dims.len()).filter(|i| !full[*i]).map(|i| dims[i][0] + dims[i][1]).sum();
        let factor = whole.saturating_sub(fixed) as f64 / free.max(1) as f64;
        let share = |i: usize| if full[i] { sizes[i] as f64 } else { factor * (dims[i][0] + dims[i][1]) as f64 };
        let exact: Vec<f64> = (0..dims.len()).map(share).collect();
        let over: Vec<usize> = (0..dims.len()).filter(|i| !full[*i] && exact[*i] > sizes[*i] as f64).collect();
        if over.is_empty() {
            break exact;
        }
        over.into_iter().for_each(|i| full[i] = true);
    };
    // Rounded so that the whole is right: what is cut off goes to the first.
    let mut shares: Vec<usize> = exact.iter().map(|share| *share as usize).collect();
    let mut missing = whole - shares.iter().sum::<usize>();
    for (share, size) in shares.iter_mut().zip(&sizes) {
        let more = usize::from(missing > 0 && *share < *size);
        *share += more;
        missing -= more;
    }
    shares
}

/// The change of a loss's gradient along itself, H g, by the gradients at two places beside `weights`.
pub(crate) fn along_gradient(
    weights: &Numbers,
    mut gradient: impl FnMut(&Numbers) -> Result<Numbers>,
) -> Result<Numbers> {
    let norm = |numbers: &Numbers| numbers.values().flatten().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let g = gradient(weights)?;
    if norm(&g) == 0.0 {
        return Ok(per_number(weights, |_, _| 0.0));
    }
    let step = GRASP_STEP * norm(weights) / norm(&g);
    let mut at = |step: f64| {
        gradient(&per_number(weights, |(name, i), weight| (f64::from(weight) + step * f64::from(g[name][i])) as f32))
    };
    let (after, before) = (at(step)?, at(-step)?);
    Ok(per_number(&after, |(name, i), after| ((f64::from(after) - f64::from(before[name][i])) / (2.0 * step)) as f32))
}

#[cfg(test)]
mod tests {
    use peft_core::testing::tolerances::FINITE_DIFFERENCE;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn shares_of_erdos_renyi_are_those_of_the_shapes(
            dims in prop::collection::vec((1..40usize, 1..40usize).prop_map(|(a, b)| [a, b]), 1..9),
            sparsity in 0.0..0.99,
        ) {
            let shares = shares(&dims, sparsity);
            let sizes: Vec<usize> = dims.iter().map(|[a, b]| a * b).collect();
            prop_assert_eq!(shares.iter().sum::<usize>(), left(sizes.iter().sum(), sparsity));
            for (i, share) in shares.iter().enumerate() {
                prop_assert!(*share <= sizes[i]);
                for (j, other) in shares.iter().enumerate() {
                    let [own, its] = [i, j].map(|k| (dims[k][0] + dims[k][1]) as f64);
                    // Where neither is whole, they are in proportion, up to rounding.
                    if *share < sizes[i] && *other < sizes[j] {
                        prop_assert!((*share as f64 * its - *other as f64 * own).abs() <= own + its, "{:?} {:?}", dims, shares);
                    }
                }
            }
        }

        /// Of the loss 1/2 w H w the gradient is H w, and its change along itself H (H w).
        #[test]
        fn grasp_of_a_quadratic_is_exact(w in prop::collection::vec(0.1f32..2.0, 3), h in prop::collection::vec(-1f32..1.0, 6)) {
            let at = |i: usize, j: usize| f64::from(h[[0, 1, 3][i.max(j)] + i.min(j)]) + if i == j { 2.0 } else { 0.0 };
            let times = |x: &[f64]| -> Vec<f64> { (0..3).map(|i| (0..3).map(|j| at(i, j) * x[j]).sum()).collect() };
            let numbers = |x: &[f64]| BTreeMap::from([("w".to_string(), x.iter().map(|x| *x as f32).collect::<Vec<_>>())]);
            let double = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
            let start = double(&w);
            let found = along_gradient(&numbers(&start), |x| Ok(numbers(&times(&double(&x["w"]))))).unwrap();
            let expected = times(&times(&start));
            let largest = expected.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
            for (found, expected) in found["w"].iter().zip(&expected) {
                prop_assert!((f64::from(*found) - expected).abs() <= f64::from(FINITE_DIFFERENCE.0) * largest, "{} {}", found, expected);
            }
        }
    }
}
