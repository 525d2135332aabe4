//! A Gaussian process: what is known of a function from some of its values.

/// With a Matern kernel of smoothness 5/2, a length for each input and noise on the values, whose variance is about 1.
#[derive(Clone, Debug)]
pub struct Process {
    inputs: Vec<Vec<f64>>,
    lengths: Vec<f64>,
    /// The lower triangle of the kernel's Cholesky factor, row by row.
    factor: Vec<Vec<f64>>,
    /// The kernel's inverse times the values.
    weights: Vec<f64>,
    /// The logarithm of the values' density.
    likelihood: f64,
}

impl Process {
    /// With these lengths and this variance of the noise.
    pub fn new(inputs: &[Vec<f64>], values: &[f64], lengths: Vec<f64>, noise: f64) -> Self {
        let kernel = |i: usize, j: usize| matern(&inputs[i], &inputs[j], &lengths) + if i == j { noise } else { 0.0 };
        let mut factor: Vec<Vec<f64>> = vec![];
        for i in 0..inputs.len() {
            let mut row: Vec<f64> = Vec::with_capacity(i + 1);
            for (j, above) in factor.iter().enumerate() {
                let known: f64 = row.iter().zip(above).map(|(a, b)| a * b).sum();
                row.push((kernel(i, j) - known) / above[j]);
            }
            let known: f64 = row.iter().map(|a| a * a).sum();
            // Of equal inputs without noise rounding could leave nothing.
            row.push((kernel(i, i) - known).max(1e-12).sqrt());
            factor.push(row);
        }
        let whitened = forward(&factor, values);
        let logarithms: f64 = factor.iter().enumerate().map(|(i, row)| row[i].ln()).sum();
        let squares: f64 = whitened.iter().map(|x| x * x).sum();
        let likelihood = -squares / 2.0 - logarithms - values.len() as f64 / 2.0 * std::f64::consts::TAU.ln();
        let weights = backward(&factor, whitened);
        Process { inputs: inputs.to_vec(), lengths, factor, weights, likelihood }
    }

    /// With the lengths and the noise under which the values are likeliest, as far as changing one after the other finds them.
    pub fn fit(inputs: &[Vec<f64>], values: &[f64]) -> Self {
        let width = inputs.first().map_or(0, Vec::len);
        let of = |settings: &[f64]| {
            let (lengths, noise) = settings.split_at(width);
            Process::new(inputs, values, lengths.iter().map(|x| x.exp2()).collect(), noise[0].exp2())
        };
        // Powers of two: lengths from 1/8 to 64 of the range of an input, noise from 2^-16 to 1.
        let bounds = |i: usize| if i < width { -3.0..=6.0 } else { -16.0..=0.0 };
        let mut settings: Vec<f64> = (0..=width).map(|i| if i < width { 0.0 } else { -6.0 }).collect();
        let mut best = of(&settings);
        loop {
            let before = best.likelihood;
            for i in 0..=width {
                for step in [-1.0, 1.0] {
                    loop {
                        let mut moved = settings.clone();
                        moved[i] += step;
                        if !bounds(i).contains(&moved[i]) {
                            break;
                        }
                        let next = of(&moved);
                        if next.likelihood <= best.likelihood {
                            break;
                        }
                        (settings, best) = (moved, next);
                    }
                }
            }
            if best.likelihood - before < 1e-3 {
                return best;
            }
        }
    }

    /// Mean and standard deviation of the function, without noise, at an input.
    pub fn at(&self, input: &[f64]) -> (f64, f64) {
        let kernel: Vec<f64> = self.inputs.iter().map(|known| matern(known, input, &self.lengths)).collect();
        let mean = kernel.iter().zip(&self.weights).map(|(k, w)| k * w).sum();
        let known: f64 = forward(&self.factor, &kernel).iter().map(|x| x * x).sum();
        (mean, (1.0 - known).max(0.0).sqrt())
    }
}

/// The kernel, 1 for equal inputs.
fn matern(a: &[f64], b: &[f64], lengths: &[f64]) -> f64 {
    let square: f64 = a.iter().zip(b).zip(lengths).map(|((a, b), length)| ((a - b) / length).powi(2)).sum();
    let distance = (5.0 * square).sqrt();
    (1.0 + distance + 5.0 * square / 3.0) * (-distance).exp()
}

/// L x = b.
fn forward(factor: &[Vec<f64>], values: &[f64]) -> Vec<f64> {
    let mut solved: Vec<f64> = Vec::with_capacity(values.len());
    for (row, value) in factor.iter().zip(values) {
        let known: f64 = row.iter().zip(&solved).map(|(a, b)| a * b).sum();
        solved.push((value - known) / row[solved.len()]);
    }
    solved
}

/// L^T x = b.
fn backward(factor: &[Vec<f64>], mut values: Vec<f64>) -> Vec<f64> {
    for i in (0..values.len()).rev() {
        values[i] /= factor[i][i];
        for j in 0..i {
            values[j] -= factor[i][j] * values[i];
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn inputs(count: usize, seed: u64) -> Vec<Vec<f64>> {
        let mut random = Random::new(seed, "inputs");
        (0..count).map(|_| (0..3).map(|_| random.unit()).collect()).collect()
    }

    fn wave(x: &[f64]) -> f64 {
        (5.0 * x[0]).sin() + x[1]
    }

    #[test]
    fn values_without_noise_are_met() {
        let inputs = inputs(12, 1);
        let values: Vec<f64> = inputs.iter().map(|x| wave(x)).collect();
        let process = Process::new(&inputs, &values, vec![0.7, 0.9, 0.8], 0.0);
        for (input, value) in inputs.iter().zip(&values) {
            let (mean, deviation) = process.at(input);
            assert!((mean - value).abs() < 1e-6 && deviation < 1e-4, "{mean} {value} {deviation}");
        }
        let (mean, deviation) = process.at(&[50.0, 50.0, 50.0]);
        assert!(mean.abs() < 1e-6 && (deviation - 1.0).abs() < 1e-6, "far away nothing is known");
    }

    /// Of two values by hand: the kernel is [[1 + n, k], [k, 1 + n]].
    #[test]
    fn two_values_by_hand() {
        let process = Process::new(&[vec![0.0], vec![1.0]], &[1.0, -0.5], vec![0.5], 0.1);
        let k = |distance: f64| {
            let r = 5f64.sqrt() * distance / 0.5;
            (1.0 + r + r * r / 3.0) * (-r).exp()
        };
        let (own, other, determinant) = (1.1, k(1.0), 1.1 * 1.1 - k(1.0).powi(2));
        let inverse = |a: f64, b: f64| [(own * a - other * b) / determinant, (own * b - other * a) / determinant];
        let near = [k(0.3), k(0.7)];
        let weights = inverse(1.0, -0.5);
        let (mean, deviation) = process.at(&[0.3]);
        assert!((mean - near[0] * weights[0] - near[1] * weights[1]).abs() < 1e-12);
        let known = inverse(near[0], near[1]);
        assert!((deviation.powi(2) - (1.0 - near[0] * known[0] - near[1] * known[1])).abs() < 1e-12);
        let density = -(weights[0] - 0.5 * weights[1]) / 2.0 - determinant.ln() / 2.0 - std::f64::consts::TAU.ln();
        assert!((process.likelihood - density).abs() < 1e-12);
    }

    #[test]
    fn an_input_that_says_nothing_gets_a_long_length() {
        let inputs = inputs(40, 2);
        let values: Vec<f64> = inputs.iter().map(|x| wave(x)).collect();
        let process = Process::fit(&inputs, &values);
        assert!(process.lengths[2] > 4.0 * process.lengths[0], "{:?}", process.lengths);
        let errors = self::inputs(50, 3).into_iter().map(|x| (process.at(&x).0 - wave(&x)).abs());
        assert!(errors.fold(0.0, f64::max) < 0.2);
    }
}
