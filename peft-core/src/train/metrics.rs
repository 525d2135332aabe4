//! The metrics of GLUE, in exact definitions; each from 0 (or -1) to 1.

/// The share of equal ones.
pub fn accuracy(found: &[usize], gold: &[usize]) -> f64 {
    found.iter().zip(gold).filter(|(a, b)| a == b).count() as f64 / gold.len() as f64
}

/// True positives, false positives, false negatives and true negatives of class 1.
fn confusion(found: &[usize], gold: &[usize]) -> [f64; 4] {
    let count =
        |f: bool, g: bool| found.iter().zip(gold).filter(|(a, b)| (**a == 1, **b == 1) == (f, g)).count() as f64;
    [count(true, true), count(true, false), count(false, true), count(false, false)]
}

/// F1 of class 1: 2 TP / (2 TP + FP + FN); 0 if there is no positive at all, as in scikit-learn.
pub fn f1(found: &[usize], gold: &[usize]) -> f64 {
    let [tp, fp, false_negatives, _] = confusion(found, gold);
    ratio(2.0 * tp, 2.0 * tp + fp + false_negatives)
}

/// Matthews' correlation; 0 if a row or a column of the confusion matrix is empty, as in scikit-learn.
pub fn matthews(found: &[usize], gold: &[usize]) -> f64 {
    let [tp, fp, false_negatives, tn] = confusion(found, gold);
    let product = (tp + fp) * (tp + false_negatives) * (tn + fp) * (tn + false_negatives);
    ratio(tp * tn - fp * false_negatives, product.sqrt())
}

/// Pearson's correlation; 0 if one side is constant, where it is not defined and scipy says NaN.
pub fn pearson(x: &[f64], y: &[f64]) -> f64 {
    // Asked of the numbers themselves: the mean of equal ones may differ from them by rounding.
    let constant = |v: &[f64]| v.iter().all(|a| *a == v[0]);
    if constant(x) || constant(y) {
        return 0.0;
    }
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
    let (mx, my) = (mean(x), mean(y));
    let sum = |f: &dyn Fn(f64, f64) -> f64| x.iter().zip(y).map(|(a, b)| f(a - mx, b - my)).sum::<f64>();
    let norms = sum(&|a, _| a * a).sqrt() * sum(&|_, b| b * b).sqrt();
    (sum(&|a, b| a * b) / norms).clamp(-1.0, 1.0)
}

/// Spearman's correlation: Pearson's of the ranks, equal numbers sharing the mean of their ranks.
pub fn spearman(x: &[f64], y: &[f64]) -> f64 {
    pearson(&ranks(x), &ranks(y))
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut first = 0;
    for group in order.chunk_by(|a, b| values[*a] == values[*b]) {
        let rank = first as f64 + (group.len() - 1) as f64 / 2.0;
        group.iter().for_each(|i| ranks[*i] = rank);
        first += group.len();
    }
    ranks
}

/// The expected calibration error: how far confidences are from the share of what is right, the mean over as many equal parts of the range
/// of confidences as there are `bins`, by how many are in each (Guo et al., 2017, arXiv:1706.04599, eq. 3).
pub fn calibration_error(confidences: &[f64], right: &[bool], bins: usize) -> f64 {
    let mut sums = vec![0.0; bins];
    for (confidence, right) in confidences.iter().zip(right) {
        // A part has its upper end, as there.
        let bin = ((confidence * bins as f64).ceil() as usize).clamp(1, bins) - 1;
        sums[bin] += confidence - f64::from(u8::from(*right));
    }
    sums.into_iter().map(f64::abs).sum::<f64>() / confidences.len() as f64
}

fn ratio(numerator: f64, denominator: f64) -> f64 {
    if denominator == 0.0 { 0.0 } else { numerator / denominator }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// Values worked out by hand from the definitions.
    #[test]
    fn small_cases() {
        let (found, gold) = ([1, 0, 1, 1, 0, 1, 0], [1, 0, 0, 1, 1, 1, 0]);
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        near(accuracy(&found, &gold), 5.0 / 7.0);
        near(f1(&found, &gold), 0.75);
        near(matthews(&found, &gold), 5.0 / 12.0);
        assert_eq!(matthews(&[1, 1], &[1, 0]), 0.0);
        assert_eq!(f1(&[0, 0], &[0, 0]), 0.0);
        // In (0.5, 0.75] one of 0.6 and 0.75 is right, in (0.75, 1] both of 0.8 and 1, and one of 0.5 is wrong.
        let (confidences, right) = ([0.6, 0.8, 1.0, 0.75, 0.5], [true, true, true, false, false]);
        near(calibration_error(&confidences, &right, 4), (0.35 + 0.2 + 0.5) / 5.0);
        near(calibration_error(&[1.0, 1.0], &[true, false], 15), 0.5);
        let (x, y) = ([1.0, 2.0, 2.0, 4.0], [2.0, 1.0, 3.0, 5.0]);
        near(pearson(&x, &y), 0.8143450710459553);
        near(spearman(&x, &y), 0.632455532033676);
        assert_eq!(pearson(&[1.0, 1.0], &[1.0, 2.0]), 0.0);
    }

    /// Random cases with ties, constant sides and degenerate confusion matrices, see scripts/golden/metrics.py.
    #[test]
    fn equal_scikit_learn_and_scipy() {
        let golden: Value = serde_json::from_str(include_str!("../../tests/golden/metrics.json")).unwrap();
        let cases = |kind: &str| golden[kind].as_array().unwrap().clone();
        let classes = |case: &Value, side: &str| serde_json::from_value::<Vec<usize>>(case[side].clone()).unwrap();
        let values = |case: &Value, side: &str| serde_json::from_value::<Vec<f64>>(case[side].clone()).unwrap();
        // Null is the NaN of what is not defined; it is 0 here.
        let near = |case: &Value, name: &str, found: f64| {
            let expected = if case[name].is_null() { 0.0 } else { case[name].as_f64().unwrap() };
            assert!((found - expected).abs() < 1e-12, "{name} of {case}: {found}");
        };
        for case in cases("classes") {
            let (found, gold) = (classes(&case, "found"), classes(&case, "gold"));
            near(&case, "accuracy", accuracy(&found, &gold));
            near(&case, "f1", f1(&found, &gold));
            near(&case, "matthews", matthews(&found, &gold));
        }
        for case in cases("values") {
            let (found, gold) = (values(&case, "found"), values(&case, "gold"));
            near(&case, "pearson", pearson(&found, &gold));
            near(&case, "spearman", spearman(&found, &gold));
        }
        assert!(cases("classes").len() >= 20 && cases("values").len() >= 20);
    }
}
