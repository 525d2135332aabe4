//! Which parts of a method a search over its structure keeps: how likely each is under a budget, and which are chosen.

/// By how much logits are shifted so that the expected numbers of all parts, `sum sigmoid(alpha_i - zeta) n_i`, are a budget. The more
/// they are, the lower it is; where all parts are within the budget it is so low that all are there.
pub fn shift(alpha: &[f64], counts: &[usize], budget: usize) -> f64 {
    let bound = |start: f64, f: fn(f64, f64) -> f64| alpha.iter().copied().fold(start, f);
    let (mut low, mut high) = (bound(f64::INFINITY, f64::min) - 40.0, bound(f64::NEG_INFINITY, f64::max) + 40.0);
    let expected = |zeta: f64| alpha.iter().zip(counts).map(|(a, n)| *n as f64 / (1.0 + (zeta - a).exp())).sum::<f64>();
    if expected(low) <= budget as f64 {
        return low;
    }
    // Each halves what is left of the interval, until it has no more numbers.
    for _ in 0..200 {
        let middle = (low + high) / 2.0;
        if expected(middle) > budget as f64 { low = middle } else { high = middle }
    }
    (low + high) / 2.0
}

/// How likely each part is.
pub fn probabilities(alpha: &[f64], counts: &[usize], budget: usize) -> Vec<f64> {
    let zeta = shift(alpha, counts, budget);
    alpha.iter().map(|a| 1.0 / (1.0 + (zeta - a).exp())).collect()
}

/// The likeliest parts that fit, by their places in order: one that does not fit is passed over. Of equally likely ones the first come first.
pub fn chosen(probabilities: &[f64], counts: &[usize], budget: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..counts.len()).collect();
    order.sort_by(|a, b| probabilities[*b].total_cmp(&probabilities[*a]));
    let (mut left, mut chosen) = (budget, vec![]);
    for i in order {
        if counts[i] <= left {
            left -= counts[i];
            chosen.push(i);
        }
    }
    chosen.sort_unstable();
    chosen
}
