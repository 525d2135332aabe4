//! Which unit of one layer goes to which of another, by optimal transport between two sets of as many units of equal weight.

use pathfinding::matrix::Matrix;
use pathfinding::prelude::kuhn_munkres_min;
use peft_core::{Error, Result, loss::log_sum_exp};
use serde::{Deserialize, Serialize};

/// How a transport is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// A permutation of least cost.
    #[default]
    Exact,
    /// With an entropy that blurs it, by Sinkhorn's iterations.
    Sinkhorn,
}

/// Costs are counted in parts of the largest, of which there are so many: sums of a row for each unit stay far from the largest integer.
const PARTS: f64 = (1u64 << 40) as f64;
/// The most iterations of Sinkhorn's, which end earlier once the sums of rows are so close to 1.
const ITERATIONS: usize = 10_000;
const CLOSE: f64 = 1e-9;

/// The transport of least cost, doubly stochastic: entry (i, j) is the share of unit i that goes to unit j, whose cost is that of
/// the same place in `cost`, `[units, units]`. The entropy has the weight `regularization`, in mean costs.
pub(super) fn transport(kind: Transport, cost: &[Vec<f64>], regularization: f64) -> Result<Vec<Vec<f64>>> {
    let wrong = || Error::config("sources", "a distance that is not finite", "adapters of finite numbers");
    let entries = || cost.iter().flatten().copied();
    if entries().any(|cost| !cost.is_finite()) {
        return Err(wrong());
    }
    match kind {
        Transport::Exact => {
            let largest = entries().fold(f64::MIN_POSITIVE, f64::max);
            let parts = entries().map(|cost| (cost / largest * PARTS) as i64).collect();
            let parts = Matrix::from_vec(cost.len(), cost.len(), parts).map_err(|_| wrong())?;
            let (_, to) = kuhn_munkres_min(&parts);
            Ok(to.iter().map(|to| (0..cost.len()).map(|j| f64::from(u8::from(j == *to))).collect()).collect())
        }
        Transport::Sinkhorn => {
            let mean = entries().sum::<f64>() / (cost.len() * cost.len()) as f64;
            Ok(sinkhorn(cost, (regularization * mean).max(f64::MIN_POSITIVE)))
        }
    }
}

/// exp((f_i + g_j - C_ij) / epsilon) with f and g such that columns sum to 1, and rows but for what is left after so many iterations.
fn sinkhorn(cost: &[Vec<f64>], epsilon: f64) -> Vec<Vec<f64>> {
    let n = cost.len();
    let (zeros, mut f, mut g) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
    let share = |f: &[f64], g: &[f64], i: usize, j: usize| (f[i] + g[j] - cost[i][j]) / epsilon;
    let log_sum = |term: &dyn Fn(usize) -> f64| log_sum_exp(&(0..n).map(term).collect::<Vec<_>>());
    for _ in 0..ITERATIONS {
        f = (0..n).map(|i| -epsilon * log_sum(&|j| share(&zeros, &g, i, j))).collect();
        g = (0..n).map(|j| -epsilon * log_sum(&|i| share(&f, &zeros, i, j))).collect();
        let rows = (0..n).map(|i| (0..n).map(|j| share(&f, &g, i, j).exp()).sum::<f64>());
        if rows.map(|sum| (sum - 1.0).abs()).fold(0.0, f64::max) <= CLOSE {
            break;
        }
    }
    (0..n).map(|i| (0..n).map(|j| share(&f, &g, i, j).exp()).collect()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn costs() -> impl Strategy<Value = Vec<Vec<f64>>> {
        prop::collection::vec(prop::collection::vec(0.1..3.0, 5), 5)
    }

    fn all_orders(n: usize) -> Vec<Vec<usize>> {
        if n == 0 {
            return vec![vec![]];
        }
        let with = |order: Vec<usize>| (0..n).map(move |at| [&order[..at], &[n - 1], &order[at..]].concat());
        all_orders(n - 1).into_iter().flat_map(with).collect()
    }

    fn total(cost: &[Vec<f64>], found: &[Vec<f64>]) -> f64 {
        cost.iter().flatten().zip(found.iter().flatten()).map(|(cost, share)| cost * share).sum()
    }

    proptest! {
        #[test]
        fn transports_are_doubly_stochastic(cost in costs()) {
            for kind in [Transport::Exact, Transport::Sinkhorn] {
                let found = transport(kind, &cost, 0.3).unwrap();
                for i in 0..5 {
                    let (row, column): (f64, f64) = (found[i].iter().sum(), found.iter().map(|row| row[i]).sum());
                    prop_assert!((row - 1.0).abs() < 1e-6 && (column - 1.0).abs() < 1e-6, "{:?}", kind);
                }
                prop_assert!(found.iter().flatten().all(|share| *share >= 0.0));
            }
        }

        #[test]
        fn the_exact_transport_costs_least(cost in costs()) {
            let found = total(&cost, &transport(Transport::Exact, &cost, 0.0).unwrap());
            let orders = all_orders(5);
            prop_assert_eq!(orders.len(), 120);
            let of = |order: &Vec<usize>| order.iter().enumerate().map(|(i, j)| cost[i][*j]).sum::<f64>();
            let least = orders.iter().map(of).fold(f64::INFINITY, f64::min);
            prop_assert!((found - least).abs() < 1e-9, "{} {}", found, least);
            // With little entropy the other is near it, with much every unit goes everywhere.
            let blurred = |weight| transport(Transport::Sinkhorn, &cost, weight).unwrap();
            let near = total(&cost, &blurred(0.05));
            prop_assert!((near - least).abs() <= 0.5, "{} {}", near, least);
            prop_assert!(blurred(1e3).iter().flatten().all(|share| (share - 0.2).abs() < 1e-2));
        }
    }

    #[test]
    fn what_is_not_finite_is_refused() {
        let message = transport(Transport::Exact, &[vec![f64::NAN]], 0.0).unwrap_err().to_string();
        assert!(message.contains("not finite"), "{message}");
        // Units that are all alike.
        assert_eq!(transport(Transport::Exact, &[vec![0.0]], 0.0).unwrap(), [[1.0]]);
        assert_eq!(transport(Transport::Sinkhorn, &[vec![0.0]], 0.05).unwrap(), [[1.0]]);
    }
}
