//! Gaussian posteriors over matrices whose precision is a Kronecker product, its wide factor of low rank, beside that of the prior.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use faer::Mat;
use peft_core::{Error, Hooks, Next, Procedure, Result, Site, adapter};

use super::pair::{Pair, untrained};

/// What the data say of a matrix `[d, r]`: in the basis u v^T of a column of `wide` and one of `narrow` their precision is `values`, and 0 elsewhere.
#[derive(Module, Debug)]
pub struct Curvature {
    /// U, `[d, k]`, orthonormal.
    pub wide: Param<Tensor<2>>,
    /// V, `[r, r]`, orthonormal.
    pub narrow: Param<Tensor<2>>,
    /// `[k, r]`.
    pub values: Param<Tensor<2>>,
}

impl Curvature {
    /// Of no data.
    pub(super) fn none([d, r]: [usize; 2], k: usize, device: &Device) -> Self {
        let zeros = |dims| untrained(Tensor::zeros(dims, device));
        Curvature { wide: zeros([d, k]), narrow: zeros([r, r]), values: zeros([k, r]) }
    }

    /// U^T G V.
    fn inside(&self, g: &Tensor<2>) -> Tensor<2> {
        self.wide.val().without_autodiff().transpose().matmul(g.clone()).matmul(self.narrow.val().without_autodiff())
    }

    /// U P V^T.
    fn outside(&self, p: Tensor<2>) -> Tensor<2> {
        self.wide.val().without_autodiff().matmul(p).matmul(self.narrow.val().without_autodiff().transpose())
    }

    /// The precisions.
    pub(super) fn values(&self) -> Vec<f64> {
        self.values.val().into_data().iter::<f64>().collect()
    }

    /// What matrices of slopes G make of the posterior with a prior of this variance: the covariances of the sums of G W, row by row.
    pub(super) fn covariance(&self, slopes: &[Tensor<2>], variance: f64) -> Vec<f64> {
        let numbers = |x: Tensor<2>| x.into_data().iter::<f64>().collect::<Vec<_>>();
        let deviations: Vec<f64> =
            self.values().into_iter().map(|v| (variance / (1.0 + variance * v)).sqrt()).collect();
        // Of unit normal numbers: those inside of the basis, and those outside.
        let whitened = slopes.iter().map(|g| {
            let p = self.inside(g);
            let rest = numbers(g.clone() - self.outside(p.clone())).into_iter().map(|x| x * variance.sqrt());
            numbers(p).into_iter().zip(&deviations).map(|(x, deviation)| x * deviation).chain(rest).collect()
        });
        let whitened: Vec<Vec<f64>> = whitened.collect();
        let product = |a: &Vec<f64>, b: &Vec<f64>| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        whitened.iter().flat_map(|a| whitened.iter().map(move |b| product(a, b))).collect()
    }

    /// What unit normal numbers `[d, r]` are of the posterior, less its mean.
    pub(super) fn drawn(&self, normal: Tensor<2>, variance: f64) -> Tensor<2> {
        let p = self.inside(&normal);
        let values = self.values.val().without_autodiff();
        let inside = ((values * variance + 1.0).recip() * variance).sqrt() - variance.sqrt();
        normal * variance.sqrt() + self.outside(p * inside)
    }
}

/// The sums over the data of which a curvature is made.
#[derive(Debug, Default)]
pub(super) struct Sums {
    /// U diag(S) of the wide factor, column by column.
    wide: Vec<Vec<f64>>,
    /// Of the narrow one, row by row.
    narrow: Vec<f64>,
    rows: usize,
}

impl Sums {
    /// With the wide and the narrow sides of more tokens, `[tokens, d]` and `[tokens, r]`; no more than `k` directions of the wide are kept.
    pub(super) fn add(&mut self, wide: Tensor<2>, narrow: Tensor<2>, k: usize) -> Result<()> {
        let [rows, width] = wide.dims();
        let numbers: Vec<f64> = wide.into_data().iter().collect();
        self.wide.extend(numbers.chunks(width).map(<[f64]>::to_vec));
        let (u, s) = singular(width, &self.wide)?;
        self.wide = u.into_iter().zip(s).take(k).map(|(u, s)| u.into_iter().map(|x| x * s).collect()).collect();
        let gram = narrow.clone().transpose().matmul(narrow);
        let gram = gram.into_data().iter::<f64>().collect::<Vec<_>>();
        self.narrow.resize(gram.len(), 0.0);
        self.narrow.iter_mut().zip(gram).for_each(|(sum, x)| *sum += x);
        self.rows += rows;
        Ok(())
    }

    /// The sum over all tokens of the one factor (x) the mean of the other.
    pub(super) fn curvature(self, [d, r]: [usize; 2], k: usize, device: &Device) -> Result<Curvature> {
        if self.rows == 0 {
            return Ok(Curvature::none([d, r], k, device));
        }
        let rows: Vec<Vec<f64>> = self.narrow.chunks(r).map(<[f64]>::to_vec).collect();
        let ((u, s), (v, l)) = (singular(d, &self.wide)?, singular(r, &rows)?);
        let matrix = |columns: &[Vec<f64>], dims: [usize; 2]| {
            let number = |i: usize| columns.get(i % dims[1])?.get(i / dims[1]).copied();
            let value = |i| number(i).unwrap_or_default() as f32;
            let values: Vec<f32> = (0..dims[0] * dims[1]).map(value).collect();
            untrained(Tensor::from_data(TensorData::new(values, dims), device))
        };
        let products: Vec<Vec<f64>> =
            l.iter().map(|l| s.iter().map(|s| s * s * l / self.rows as f64).collect()).collect();
        Ok(Curvature { wide: matrix(&u, [d, k]), narrow: matrix(&v, [r, r]), values: matrix(&products, [k, r]) })
    }
}

/// The left singular vectors of a matrix with these columns of `height` numbers, and its singular values, from the largest.
fn singular(height: usize, columns: &[Vec<f64>]) -> Result<(Vec<Vec<f64>>, Vec<f64>)> {
    let matrix = Mat::from_fn(height, columns.len(), |i, j| columns[j][i]);
    let failed = |error| Error::Check { what: "the directions of a curvature", detail: format!("{error:?}") };
    let svd = matrix.thin_svd().map_err(failed)?;
    let count = height.min(columns.len());
    let vector = |k: usize| (0..height).map(|i| svd.U()[(i, k)]).collect();
    Ok(((0..count).map(vector).collect(), (0..count).map(|k| svd.S().column_vector()[k]).collect()))
}

/// The variance of the prior under which the data are likeliest, of parameters with this sum of squares and these precisions by the data: where
/// the sum over the variance is the number of parameters that the data determine.
pub(super) fn prior_variance(squares: f64, precisions: &[f64]) -> Result<f64> {
    let slope = |variance: f64| {
        squares / variance - precisions.iter().map(|v| variance * v / (1.0 + variance * v)).sum::<f64>()
    };
    // By the logarithm of the variance; the slope falls.
    let (mut low, mut high) = (-60.0f64, 60.0f64);
    if !(slope(low.exp()) > 0.0 && slope(high.exp()) < 0.0) {
        let found = format!("a curvature of {:e}", precisions.iter().sum::<f64>());
        return Err(Error::config(
            "data",
            found,
            "examples on which the loss depends on the adapter, and an adapter that is not 0",
        ));
    }
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if slope(middle.exp()) > 0.0 { low = middle } else { high = middle }
    }
    Ok((0.5 * (low + high)).exp())
}

/// Pairs beside their linear maps that note, in one run, what goes through each of its pairs.
#[derive(Module, Debug)]
pub(super) struct Noting {
    #[module(skip)]
    pairs: BTreeMap<Site, Pair>,
    #[module(skip)]
    pub(super) notes: Arc<Mutex<Vec<Note>>>,
}

/// What went through a pair: x and z = x A, and tensors of zeros that were added to z and to z B s, `[1, tokens, width]`.
#[derive(Clone, Debug)]
pub(super) struct Note {
    pub site: Site,
    pub x: Tensor<3>,
    pub z: Tensor<3>,
    pub to_z: Tensor<3>,
    pub to_y: Tensor<3>,
}

impl Noting {
    pub(super) fn new(pairs: impl Iterator<Item = (Site, Pair)>) -> Self {
        Noting { pairs: pairs.collect(), notes: Arc::default() }
    }
}

impl Hooks for Noting {
    fn linear(&self, site: Site, x: Tensor<3>, next: Next<'_, Tensor<3>>) -> Tensor<3> {
        let Some(pair) = self.pairs.get(&site) else { return next(x) };
        let z = x.clone().matmul(pair.a.clone().unsqueeze());
        let zeros = |dims| Tensor::<3>::zeros(dims, &x.device().without_autodiff().autodiff()).require_grad();
        let to_z = zeros(z.dims());
        let y = pair.behind(z.clone() + to_z.clone());
        let to_y = zeros(y.dims());
        let plain = |x: &Tensor<3>| x.clone().without_autodiff();
        let note = Note { site, x: plain(&x), z: plain(&z), to_z, to_y: to_y.clone() };
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).push(note);
        next(x) + y + to_y
    }
}

adapter!(Noting);
impl Procedure for Noting {}

#[cfg(test)]
mod tests {
    use faer::linalg::solvers::DenseSolveCore;
    use peft_core::random::Random;
    use peft_core::testing::device;
    use peft_core::testing::tolerances::{SAME_FUNCTION, STANDARD_ERRORS};
    use proptest::prelude::*;

    use super::*;

    const D: usize = 5;
    const R: usize = 2;

    fn normal(seed: u64, name: &str, dims: [usize; 2]) -> Tensor<2> {
        Random::new(seed, name).normal_tensor(dims, 1.0, &device())
    }

    fn numbers(x: Tensor<2>) -> Vec<f64> {
        x.into_data().iter().collect()
    }

    fn matrix([rows, columns]: [usize; 2], x: Tensor<2>) -> Mat<f64> {
        let values = numbers(x);
        Mat::from_fn(rows, columns, |i, j| values[i * columns + j])
    }

    /// Of `tokens` tokens in two parts, and the wide and narrow sides of them.
    fn sums(seed: u64, tokens: usize, k: usize) -> (Curvature, [Mat<f64>; 2]) {
        let (wide, narrow) = (normal(seed, "wide", [tokens, D]), normal(seed, "narrow", [tokens, R]));
        let (mut sums, first) = (Sums::default(), tokens.div_ceil(2));
        for (from, count) in [(0, first), (first, tokens - first)].into_iter().filter(|(_, count)| *count > 0) {
            sums.add(wide.clone().narrow(0, from, count), narrow.clone().narrow(0, from, count), k).unwrap();
        }
        let curvature = sums.curvature([D, R], k, &device().autodiff()).unwrap();
        (curvature, [matrix([tokens, D], wide), matrix([tokens, R], narrow)])
    }

    fn kron(a: &Mat<f64>, b: &Mat<f64>) -> Mat<f64> {
        let (m, n) = (b.nrows(), b.ncols());
        Mat::from_fn(a.nrows() * m, a.ncols() * n, |i, j| a[(i / m, j / n)] * b[(i % m, j % n)])
    }

    /// F `[D, k]` and L `[R, R]` of which the precision is (F F^T) (x) (L L^T), if values are a product.
    fn precision(curvature: &Curvature) -> Mat<f64> {
        let k = curvature.wide.dims()[1];
        let (u, v) = (matrix([D, k], curvature.wide.val().inner()), matrix([R, R], curvature.narrow.val().inner()));
        let values = curvature.values();
        let basis = kron(&u, &v);
        let scaled = Mat::from_fn(D * R, k * R, |i, j| basis[(i, j)] * values[j]);
        &scaled * basis.transpose()
    }

    fn near(found: &[f64], expected: &Mat<f64>) {
        let columns = expected.ncols();
        let largest = (0..found.len()).map(|i| expected[(i / columns, i % columns)].abs()).fold(1.0, f64::max);
        for (i, found) in found.iter().enumerate() {
            let expected = expected[(i / columns, i % columns)];
            assert!((found - expected).abs() <= f64::from(SAME_FUNCTION.0) * largest, "{i}: {found} for {expected}");
        }
    }

    fn slopes(seed: u64) -> (Vec<Tensor<2>>, Mat<f64>) {
        let all: Vec<Tensor<2>> = (0..3).map(|i| normal(seed, &format!("slope {i}"), [D, R])).collect();
        let rows: Vec<Vec<f64>> = all.iter().cloned().map(numbers).collect();
        (all, Mat::from_fn(3, D * R, |i, j| rows[i][j]))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]

        #[test]
        fn covariances_are_those_of_the_whole_inverse(seed: u64, k in 1..=D, variance in 0.05..20.0f64) {
            let (curvature, _) = sums(seed, 7, k);
            let (slopes, rows) = slopes(seed);
            let data = precision(&curvature);
            let unit = |n: usize| Mat::from_fn(n, n, |i, j| f64::from(u8::from(i == j)));
            let whole = &data + &unit(D * R) * faer::Scale(1.0 / variance);
            let expected = &rows * whole.partial_piv_lu().inverse() * rows.transpose();
            near(&curvature.covariance(&slopes, variance), &expected);
            // s2 G G^T - s2^2 (G F) (I + s2 F^T F)^-1 (G F)^T, with a root F of the data's part.
            let svd = data.thin_svd().unwrap();
            let root = Mat::from_fn(D * R, D * R, |i, j| svd.U()[(i, j)] * svd.S().column_vector()[j].sqrt());
            let inner = &unit(D * R) + root.transpose() * &root * faer::Scale(variance);
            let through = &rows * &root;
            let less = &through * inner.partial_piv_lu().inverse() * through.transpose();
            let woodbury = &rows * rows.transpose() * faer::Scale(variance) - less * faer::Scale(variance * variance);
            near(&curvature.covariance(&slopes, variance), &woodbury);
        }

        #[test]
        fn with_all_directions_nothing_is_left_out(seed: u64, tokens in 1..9usize) {
            let (curvature, [wide, narrow]) = sums(seed, tokens, D);
            let expected = kron(&(wide.transpose() * &wide), &(narrow.transpose() * &narrow)) * faer::Scale(1.0 / tokens as f64);
            let found = precision(&curvature);
            near(&(0..D * R * D * R).map(|i| found[(i / (D * R), i % (D * R))]).collect::<Vec<_>>(), &expected);
        }

        #[test]
        fn of_one_token_the_curvature_is_the_square_of_the_slope(seed: u64) {
            let (curvature, [wide, narrow]) = sums(seed, 1, 3);
            let slope: Vec<f64> = (0..D * R).map(|i| wide[(0, i / R)] * narrow[(0, i % R)]).collect();
            let expected = Mat::from_fn(D * R, D * R, |i, j| slope[i] * slope[j]);
            let found = precision(&curvature);
            near(&(0..D * R * D * R).map(|i| found[(i / (D * R), i % (D * R))]).collect::<Vec<_>>(), &expected);
        }

        #[test]
        fn a_stronger_curvature_makes_it_more_certain(seed: u64, by in 1.1..50.0f64, variance in 0.05..20.0f64) {
            let (curvature, _) = sums(seed, 7, 3);
            let stronger = Curvature { values: untrained(curvature.values.val().inner() * by), ..curvature.clone() };
            let (slopes, _) = slopes(seed);
            let [before, after] = [curvature, stronger].map(|of| of.covariance(&slopes, variance));
            for i in 0..3 {
                prop_assert!(after[4 * i] < before[4 * i] && after[4 * i] > 0.0);
            }
        }

        #[test]
        fn the_prior_maximizes_the_evidence(seed: u64, squares in 0.1..100.0f64) {
            let precisions: Vec<f64> = numbers(normal(seed, "precisions", [1, 20])).into_iter().map(f64::exp).collect();
            let evidence = |variance: f64| {
                -squares / (2.0 * variance) - 0.5 * precisions.iter().map(|v| (variance * v).ln_1p()).sum::<f64>()
            };
            let best = prior_variance(squares, &precisions).unwrap();
            for by in [0.3, 0.9, 0.99, 1.01, 1.1, 3.0] {
                prop_assert!(evidence(best) > evidence(best * by), "{} times {}", by, best);
            }
        }
    }

    #[test]
    fn without_data_the_prior_is_left() {
        let none = Curvature::none([D, R], 3, &device().autodiff());
        let (slopes, rows) = slopes(1);
        near(&none.covariance(&slopes, 0.7), &(&rows * rows.transpose() * faer::Scale(0.7)));
        let message = prior_variance(1.0, &[0.0; 4]).unwrap_err().to_string();
        assert!(message.contains("a curvature of 0e0"), "{message}");
        assert!(prior_variance(0.0, &[1.0; 4]).is_err());
    }

    #[test]
    fn draws_have_the_covariance() {
        let (curvature, _) = sums(3, 7, 3);
        let (slopes, _) = slopes(3);
        let expected = curvature.covariance(&slopes, 2.0);
        let count = 4000;
        let mut sum = vec![[0.0; 2]; 9];
        for i in 0..count {
            let drawn = curvature.drawn(normal(i, "draw", [D, R]), 2.0);
            let along: Vec<f64> = slopes.iter().map(|g| numbers(g.clone() * drawn.clone()).into_iter().sum()).collect();
            for (j, sum) in sum.iter_mut().enumerate() {
                let product = along[j / 3] * along[j % 3];
                *sum = [sum[0] + product, sum[1] + product * product];
            }
        }
        for ([first, second], expected) in sum.into_iter().zip(expected) {
            let mean = first / count as f64;
            let error = ((second / count as f64 - mean * mean) / count as f64).sqrt();
            assert!((mean - expected).abs() <= f64::from(STANDARD_ERRORS.0) * error, "{mean} for {expected}, {error}");
        }
    }
}
