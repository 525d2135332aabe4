//! Matrices in the order of the codecs, output by output, and their best approximations of low rank.

use burn::tensor::{Device, Tensor, TensorData};
use peft_core::{Packed, Result, Weight};

use crate::low_rank::start::svd;

/// The values of a matrix `[in, out]` in the order of the codecs: output by output.
pub(super) fn by_outputs(w: Tensor<2>) -> Vec<f32> {
    w.transpose().into_data().iter::<f32>().collect()
}

/// The matrix `[in, out]` of such values.
pub(super) fn from_outputs(values: &[f32], [inputs, outputs]: [usize; 2], device: &Device) -> Tensor<2> {
    let turned = (0..inputs).flat_map(|i| values[i..].iter().step_by(inputs).copied()).collect();
    Tensor::from_data(TensorData::new(turned, [inputs, outputs]), device)
}

/// A matrix `[in, out]` as codecs have it, output by output.
pub(super) struct Matrix {
    pub(super) values: Vec<f32>,
    pub(super) dims: [usize; 2],
}

impl Matrix {
    pub(super) fn of(w: &Weight) -> Self {
        match w {
            Weight::Dense(w) => Matrix { dims: w.dims(), values: by_outputs(w.clone()) },
            Weight::Packed(w) | Weight::Table(w) => Self::decoded(&**w),
        }
    }

    pub(super) fn decoded(w: &dyn Packed) -> Self {
        Matrix { dims: w.dims(), values: w.outputs(0..w.dims()[1]) }
    }

    pub(super) fn less(&self, other: &Matrix) -> Matrix {
        let values = self.values.iter().zip(&other.values).map(|(x, y)| x - y).collect();
        Matrix { values, dims: self.dims }
    }

    /// The matrix less s A B. The sums are in one order on every machine, since codes are found again from them.
    pub(super) fn without(&self, Thin { a, b }: &Thin, scale: f64) -> Matrix {
        let [inputs, outputs] = self.dims;
        let row = |(output, row): (usize, &[f32])| {
            let mut left: Vec<f64> = row.iter().copied().map(f64::from).collect();
            for (a, b) in a.chunks(inputs).zip(b.chunks(outputs)) {
                let b = scale * f64::from(b[output]);
                left.iter_mut().zip(a).for_each(|(left, a)| *left -= b * f64::from(*a));
            }
            left.into_iter().map(|x| x as f32)
        };
        Matrix { values: self.values.chunks(inputs).enumerate().flat_map(row).collect(), dims: self.dims }
    }

    pub(super) fn norm(&self) -> f64 {
        self.values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
    }
}

/// Two thin factors, rank by rank: A turned, `[r, in]`, and B, `[r, out]`.
#[derive(Clone)]
pub(super) struct Thin {
    a: Vec<f32>,
    b: Vec<f32>,
}

impl Thin {
    pub(super) fn of(a: Tensor<2>, b: Tensor<2>) -> Self {
        Thin { a: by_outputs(a), b: b.into_data().iter::<f32>().collect() }
    }

    /// The factors with the least |W - s A B|.
    pub(super) fn nearest(w: &Matrix, r: usize, scale: f64) -> Result<Self> {
        let [inputs, outputs] = w.dims;
        let values: Vec<f64> = w.values.iter().copied().map(f64::from).collect();
        let svd = svd(&values, inputs)?;
        let root = |k: usize| (svd.S()[k] / scale.abs()).sqrt();
        let a = (0..r).flat_map(|k| (0..inputs).map(move |i| (k, i)));
        let b = (0..r).flat_map(|k| (0..outputs).map(move |j| (k, j)));
        Ok(Thin {
            a: a.map(|(k, i)| (root(k) * svd.V()[(i, k)]) as f32).collect(),
            b: b.map(|(k, j)| (scale.signum() * root(k) * svd.U()[(j, k)]) as f32).collect(),
        })
    }

    /// A `[in, r]` and B `[r, out]`.
    pub(super) fn tensors(&self, r: usize, device: &Device) -> [Tensor<2>; 2] {
        let b = TensorData::new(self.b.clone(), [r, self.b.len() / r]);
        [from_outputs(&self.a, [self.a.len() / r, r], device), Tensor::from_data(b, device)]
    }
}
