//! What a LoRA took out of its base at the start, so that the two together were what the base is: PiSSA (Meng et al., 2024,
//! arXiv:2404.02948) and OLoRA (Büyükakyüz, 2024, arXiv:2406.01775). PEFT's files hold the adapter alone, and PEFT takes it out anew
//! whenever it loads one. Here the adapter takes it out, by as many ranks more: W - s A0 B0 + s A B = W + s [A A0] [B; -B0].

use burn::tensor::{Tensor, TensorData};
use faer::Mat;
use faer::linalg::solvers::Svd;
use peft_core::{Error, Result, Start};

/// A0 `[in, r]` and B0 `[r, out]` of a matrix `[in, out]`.
pub(super) fn taken(start: Start, w: &Tensor<2>, r: usize, scale: f64) -> Result<[Tensor<2>; 2]> {
    let [rows, columns] = w.dims();
    if r > rows.min(columns) {
        let expected = format!("at most {}, as it started from the matrix [{rows}, {columns}]", rows.min(columns));
        return Err(Error::config("r", r, expected));
    }
    let values: Vec<f64> = w.to_data().iter::<f64>().collect();
    let (b, divisor) = match start {
        // The best approximation of that rank.
        Start::Pissa => (right_singular(&values, columns, r)?, scale),
        // That which is in the span of the first rows.
        Start::Olora => {
            let rows: Vec<Vec<f64>> = values.chunks(columns).take(r).map(<[f64]>::to_vec).collect();
            (orthonormal(&rows), 1.0)
        }
    };
    let b = TensorData::new(b.concat().into_iter().map(|x| x as f32).collect(), [r, columns]);
    let b = Tensor::<2>::from_data(b, &w.device());
    Ok([w.clone().matmul(b.clone().transpose()) / divisor, b])
}

/// The right singular vectors of a matrix `[rows, columns]` for its `r` largest singular values.
fn right_singular(values: &[f64], columns: usize, r: usize) -> Result<Vec<Vec<f64>>> {
    let svd = svd(values, columns)?;
    let vector = |k: usize| (0..columns).map(|j| svd.V()[(j, k)]).collect();
    Ok((0..r).map(vector).collect())
}

/// The singular values of a matrix `[rows, columns]`, the largest first, and their vectors.
pub(crate) fn svd(values: &[f64], columns: usize) -> Result<Svd<f64>> {
    let matrix = Mat::from_fn(values.len() / columns, columns, |i, j| values[i * columns + j]);
    matrix
        .thin_svd()
        .map_err(|error| Error::Check { what: "the singular values of a matrix", detail: format!("{error:?}") })
}

/// An orthonormal basis of what these vectors span (Gram and Schmidt's, twice for its roundings).
fn orthonormal(vectors: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let mut basis: Vec<Vec<f64>> = vec![];
    for vector in vectors {
        let mut vector = vector.clone();
        for _ in 0..2 {
            for one in &basis {
                let along = dot(one, &vector);
                vector.iter_mut().zip(one).for_each(|(x, e)| *x -= along * e);
            }
            normalize(&mut vector);
        }
        basis.push(vector);
    }
    basis
}

fn normalize(vector: &mut [f64]) {
    let norm = dot(vector, vector).sqrt();
    if norm > 0.0 {
        vector.iter_mut().for_each(|x| *x /= norm);
    }
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

#[cfg(test)]
mod tests {
    use burn::tensor::Tensor;
    use peft_core::random::Random;
    use peft_core::testing::tolerances::SAME_FUNCTION;
    use peft_core::testing::{assert_close, device};

    use super::*;

    /// Of a matrix made from known singular vectors, the product is what the largest values make, wide or tall, and through zeros.
    #[test]
    fn the_largest_singular_values_are_taken_out() {
        for [rows, columns] in [[5, 7], [7, 5], [6, 6]] {
            let vectors = |count: usize, width: usize, name: &str| {
                let mut random = Random::new(1, name);
                let vectors: Vec<Vec<f64>> =
                    (0..count).map(|_| (0..width).map(|_| random.normal()).collect()).collect();
                orthonormal(&vectors)
            };
            let (left, right) = (vectors(4, rows, "left"), vectors(4, columns, "right"));
            let sum = |ranks: std::ops::Range<usize>| {
                let one = |i: usize, j: usize, k: usize| [2.0, 9.0, 4.0, 7.0][k] * left[k][i] * right[k][j];
                let order = [1, 3, 2, 0];
                let value = |i, j| ranks.clone().map(|rank| one(i, j, order[rank])).sum::<f64>() as f32;
                let values = (0..rows * columns).map(|at| value(at / columns, at % columns)).collect();
                Tensor::<2>::from_data(TensorData::new(values, [rows, columns]), &device())
            };
            for r in 1..=5 {
                let [a, b] = taken(Start::Pissa, &sum(0..4), r, 0.5).unwrap();
                assert_close(a.matmul(b) * 0.5, sum(0..r.min(4)), SAME_FUNCTION, "the product");
            }
        }
    }

    /// The first rows are in their own span, and are taken out whole.
    #[test]
    fn the_span_of_the_first_rows_is_taken_out() {
        let w: Tensor<2> = Random::new(1, "w").normal_tensor([5, 7], 1.0, &device());
        let [a, b] = taken(Start::Olora, &w, 3, 0.5).unwrap();
        let rows = a.matmul(b.clone()).narrow(0, 0, 3);
        assert_close(rows, w.narrow(0, 0, 3), SAME_FUNCTION, "rows");
        let one = b.clone().matmul(b.transpose());
        assert_close(one, Tensor::eye(3, &device()), SAME_FUNCTION, "products of the basis");
    }
}
