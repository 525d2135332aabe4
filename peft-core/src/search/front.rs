//! Trade-offs between a score, the more the better, and a size, the less the better.

/// A score and a size.
pub type Pair = (f64, f64);

/// Which of some pairs no other beats: better in one and no worse in the other. By size; of equal ones the first.
pub fn front(pairs: &[Pair]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..pairs.len()).collect();
    order.sort_by(|a, b| pairs[*a].1.total_cmp(&pairs[*b].1).then(pairs[*b].0.total_cmp(&pairs[*a].0)));
    let mut best = f64::NEG_INFINITY;
    order.retain(|i| {
        let better = pairs[*i].0 > best;
        best = best.max(pairs[*i].0);
        better
    });
    order
}

/// The area that some pairs dominate above the score and below the size of a reference.
pub fn hypervolume(pairs: &[Pair], reference: Pair) -> f64 {
    steps(pairs, reference, f64::NEG_INFINITY).into_iter().map(|(width, best)| width * (best - reference.0)).sum()
}

/// The sizes from one on to that of the reference in steps, each with its width and the best score that its sizes have reached.
fn steps(pairs: &[Pair], reference: Pair, from: f64) -> Vec<(f64, f64)> {
    let mut steps = vec![];
    let (mut start, mut best) = (from, reference.0);
    for i in front(pairs) {
        let (score, size) = pairs[i];
        if size >= reference.1 {
            break;
        }
        if size > start {
            // Below the first size nothing is reached, and with no start there is nothing to count.
            if start.is_finite() {
                steps.push((size - start, best));
            }
            start = size;
        }
        best = best.max(score);
    }
    if start.is_finite() && start < reference.1 {
        steps.push((reference.1 - start, best));
    }
    steps
}

/// By how much the hypervolume is expected to grow by a pair whose size is known and whose score is normal: at each size from its own on,
/// the expected improvement on the best score there.
pub fn expected_improvement(pairs: &[Pair], reference: Pair, (mean, deviation): (f64, f64), size: f64) -> f64 {
    let better = |best: f64| {
        let gap = mean - best;
        if deviation <= 0.0 {
            return gap.max(0.0);
        }
        let z = gap / deviation;
        gap * cumulative(z) + deviation * (-z * z / 2.0).exp() / std::f64::consts::TAU.sqrt()
    };
    steps(pairs, reference, size).into_iter().map(|(width, best)| width * better(best)).sum()
}

/// The cumulative distribution of the standard normal distribution.
pub fn cumulative(z: f64) -> f64 {
    libm::erfc(-z / std::f64::consts::SQRT_2) / 2.0
}

/// Numbers by their ranks, as quantiles of the standard normal distribution: what a Gaussian process is to model. Equal ones share theirs.
pub fn normal_scores(numbers: &[f64]) -> Vec<f64> {
    let count = numbers.len() as f64;
    let quantile = |p: f64| {
        let (mut low, mut high) = (-10.0, 10.0);
        for _ in 0..60 {
            let middle = (low + high) / 2.0;
            if cumulative(middle) < p { low = middle } else { high = middle }
        }
        (low + high) / 2.0
    };
    let rank = |number: &f64| {
        let less = numbers.iter().filter(|other| *other < number).count() as f64;
        let equal = numbers.iter().filter(|other| *other == number).count() as f64;
        quantile((less + equal / 2.0) / count)
    };
    numbers.iter().map(rank).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::random::Random;

    /// Few values, so that there are ties.
    fn pairs() -> impl Strategy<Value = Vec<Pair>> {
        let pair = (0..12, 0..12).prop_map(|(score, size)| (f64::from(score) / 10.0, f64::from(size)));
        prop::collection::vec(pair, 0..20)
    }

    fn beats(a: Pair, b: Pair) -> bool {
        a.0 >= b.0 && a.1 <= b.1 && a != b
    }

    const REFERENCE: Pair = (-0.1, 12.0);

    proptest! {
        #[test]
        fn the_front_is_what_nothing_beats(pairs in pairs()) {
            let front = front(&pairs);
            for (i, pair) in pairs.iter().enumerate() {
                let beaten = pairs.iter().any(|other| beats(*other, *pair));
                let first = pairs[..i].iter().all(|other| other != pair);
                prop_assert_eq!(front.contains(&i), !beaten && first);
            }
            prop_assert!(front.is_sorted_by(|a, b| pairs[*a].1 < pairs[*b].1));
        }

        /// Counted on the grid that all pairs lie on.
        #[test]
        fn the_hypervolume_is_the_dominated_area(pairs in pairs()) {
            let cells = (0..12).flat_map(|size| (-1..12).map(move |score| (f64::from(score) / 10.0 + 0.05, f64::from(size) + 0.5)));
            let dominated = cells.filter(|cell| pairs.iter().any(|pair| pair.0 > cell.0 && pair.1 < cell.1)).count();
            prop_assert!((hypervolume(&pairs, REFERENCE) - dominated as f64 / 10.0).abs() < 1e-9);
        }

        #[test]
        fn the_hypervolume_never_falls(pairs in pairs()) {
            let volumes: Vec<f64> = (0..=pairs.len()).map(|n| hypervolume(&pairs[..n], REFERENCE)).collect();
            prop_assert!(volumes.is_sorted_by(|a, b| *b >= *a - 1e-12));
        }

        #[test]
        fn what_is_certain_improves_by_what_it_adds(pairs in pairs(), score in 0.0..1.2f64, size in 0.0..11.9f64) {
            let more = [&pairs[..], &[(score, size)]].concat();
            let added = hypervolume(&more, REFERENCE) - hypervolume(&pairs, REFERENCE);
            let expected = expected_improvement(&pairs, REFERENCE, (score, 0.0), size);
            prop_assert!((added - expected).abs() < 1e-9, "{} {}", added, expected);
            let beaten = pairs.iter().any(|pair| pair.0 >= score && pair.1 <= size);
            prop_assert!(!beaten || expected == 0.0);
        }
    }

    #[test]
    fn the_expected_improvement_is_the_mean_over_draws() {
        let mut random = Random::new(3, "scores");
        for seed in 0..20 {
            let mut of = Random::new(seed, "front");
            let pairs: Vec<Pair> = (0..6).map(|_| (of.unit(), 12.0 * of.unit())).collect();
            let (mean, deviation, size) = (of.unit(), 0.05 + of.unit(), 11.0 * of.unit());
            let added = |score: f64| expected_improvement(&pairs, REFERENCE, (score, 0.0), size);
            let draws: Vec<f64> = (0..20_000).map(|_| added(mean + deviation * random.normal())).collect();
            let sum: f64 = draws.iter().sum();
            let found = sum / draws.len() as f64;
            let spread = draws.iter().map(|x| (x - found).powi(2)).sum::<f64>() / draws.len() as f64;
            let expected = expected_improvement(&pairs, REFERENCE, (mean, deviation), size);
            let errors = f64::from(crate::testing::tolerances::STANDARD_ERRORS.0);
            assert!(
                (found - expected).abs() < errors * (spread / draws.len() as f64).sqrt() + 1e-5,
                "{found} {expected}"
            );
        }
    }

    #[test]
    fn normal_scores_are_quantiles_of_ranks() {
        let scores = normal_scores(&[3.0, 1.0, 2.0, 2.0]);
        assert!(scores[1] < scores[2] && scores[2] == scores[3] && scores[3] < scores[0]);
        assert!((scores[1] + 1.150_349).abs() < 1e-5 && scores[2].abs() < 1e-9, "{scores:?}");
    }
}
