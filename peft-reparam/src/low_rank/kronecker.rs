//! Kronecker products of two factors, each whole or a product of two thinner matrices.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use peft_core::random::Random;
use peft_core::{Error, Result};

/// A factor.
#[derive(Module, Debug)]
pub enum Factor {
    /// `[rows, columns]`.
    Whole(Param<Tensor<2>>),
    /// As a product.
    Split(Split),
}

/// Two matrices whose product is a factor.
#[derive(Module, Debug)]
pub struct Split {
    /// `[rows, r]`.
    pub a: Param<Tensor<2>>,
    /// `[r, columns]`.
    pub b: Param<Tensor<2>>,
}

impl Factor {
    /// How many numbers a factor of these dimensions has.
    pub(super) fn count([rows, columns]: [usize; 2], rank: Option<usize>) -> usize {
        rank.map_or(rows * columns, |r| r * (rows + columns))
    }

    /// Of these dimensions, whole or split by a rank: 0, or each matrix uniform within 1 / sqrt(rows), as PEFT starts them.
    fn init(
        [rows, columns]: [usize; 2],
        rank: Option<usize>,
        zero: bool,
        name: &str,
        seed: u64,
        device: &Device,
    ) -> Self {
        let uniform = |leaf: &str, dims: [usize; 2]| {
            let bound = 1.0 / (dims[0] as f64).sqrt();
            Param::from_tensor(Random::new(seed, &format!("{name}{leaf}")).uniform_tensor(dims, -bound, bound, device))
        };
        let last = |leaf: &str, dims: [usize; 2]| match zero {
            true => Param::from_tensor(Tensor::zeros(dims, device)),
            false => uniform(leaf, dims),
        };
        match rank {
            None => Factor::Whole(last("", [rows, columns])),
            Some(r) => Factor::Split(Split { a: uniform(".a", [rows, r]), b: last(".b", [r, columns]) }),
        }
    }

    /// `x F` for x `[n, rows]`.
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        match self {
            Factor::Whole(w) => x.matmul(w.val()),
            Factor::Split(Split { a, b }) => x.matmul(a.val()).matmul(b.val()),
        }
    }

    fn dense(&self) -> Tensor<2> {
        match self {
            Factor::Whole(w) => w.val(),
            Factor::Split(Split { a, b }) => a.val().matmul(b.val()),
        }
    }
}

/// A (x) B for A `[a1, a2]` and B `[b1, b2]`: a map from a1 b1 to a2 b2 channels.
#[derive(Module, Debug)]
pub struct Kronecker {
    /// A.
    pub a: Factor,
    /// B.
    pub b: Factor,
    #[module(skip)]
    dims: [[usize; 2]; 2],
}

impl Kronecker {
    /// A starts as 0, and B at random. `ranks` are those of factors that are split.
    pub(super) fn init(
        dims: [[usize; 2]; 2],
        ranks: [Option<usize>; 2],
        name: &str,
        seed: u64,
        device: &Device,
    ) -> Self {
        let factor = |i: usize, leaf| Factor::init(dims[i], ranks[i], i == 0, &format!("{name}.{leaf}"), seed, device);
        Kronecker { a: factor(0, "a"), b: factor(1, "b"), dims }
    }

    /// `x (A (x) B)` for x `[batch, tokens, a1 b1]`, without the product: row by row it is A^T X B, where X `[a1, b1]` is a row of x
    /// and the result `[a2, b2]` one of the output.
    pub(super) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let ([batch, tokens, _], [[a1, a2], [b1, b2]]) = (x.dims(), self.dims);
        let rows = batch * tokens;
        let right = self.b.forward(x.reshape([rows * a1, b1])).reshape([rows, a1, b2]);
        let left = self.a.forward(right.swap_dims(1, 2).reshape([rows * b2, a1])).reshape([rows, b2, a2]);
        left.swap_dims(1, 2).reshape([batch, tokens, a2 * b2])
    }

    /// The product itself, `[a1 b1, a2 b2]`.
    pub(super) fn dense(&self) -> Tensor<2> {
        let [[a1, a2], [b1, b2]] = self.dims;
        let (a, b) = (self.a.dense().reshape([a1, 1, a2, 1]), self.b.dense().reshape([1, b1, 1, b2]));
        (a * b).reshape([a1 * b1, a2 * b2])
    }
}

/// Two numbers whose product is `n`, as PEFT's `factorization` finds them: `divisor` and the rest, if it divides `n`; otherwise the pair
/// with the smallest sum whose smaller number is at most `divisor`, that first. Without a divisor the two are nearest to the root.
pub(super) fn factorized(n: usize, divisor: Option<usize>) -> [usize; 2] {
    match divisor {
        Some(divisor) if n.is_multiple_of(divisor) => [divisor, n / divisor],
        _ => {
            let small = (1..=divisor.unwrap_or(n)).take_while(|m| m * m <= n).filter(|m| n.is_multiple_of(*m));
            let m = small.last().unwrap_or(1);
            [m, n / m]
        }
    }
}

/// The sides `[[a1, a2], [b1, b2]]` of factors whose product has the dimensions of `path`: those of A as given, or as PEFT takes them.
pub(super) fn sides(
    dims: [usize; 2],
    factor: Option<[usize; 2]>,
    divisor: Option<usize>,
    path: &str,
) -> Result<[[usize; 2]; 2]> {
    let [[a1, b1], [a2, b2]] = match factor {
        None => dims.map(|n| factorized(n, divisor)),
        Some([a1, a2]) if a1 > 0 && a2 > 0 && dims[0].is_multiple_of(a1) && dims[1].is_multiple_of(a2) => {
            [[a1, dims[0] / a1], [a2, dims[1] / a2]]
        }
        Some(wrong) => {
            let expected = format!("divisors of {} and {}, the sides of {path}", dims[0], dims[1]);
            return Err(Error::config("factor", format!("{wrong:?}"), expected));
        }
    };
    Ok([[a1, a2], [b1, b2]])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `peft.tuners.lokr.layer.factorization` gives.
    #[test]
    fn numbers_are_factorized_as_in_peft() {
        for (n, divisor, expected) in [
            (256, None, [16, 16]),
            (128, None, [8, 16]),
            (127, None, [1, 127]),
            (24, None, [4, 6]),
            (768, None, [24, 32]),
            (11008, None, [86, 128]),
            (128, Some(4), [4, 32]),
            (24, Some(12), [12, 2]),
            (24, Some(5), [4, 6]),
            (40, Some(16), [5, 8]),
            (40, Some(3), [2, 20]),
        ] {
            assert_eq!(factorized(n, divisor), expected, "{n} by {divisor:?}");
        }
    }
}
