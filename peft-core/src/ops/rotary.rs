//! Rotary positions (Su et al., 2021, arXiv:2104.09864).

use burn::tensor::Tensor;

/// Pairs of channels i and i + width / 2 of x `[batch, heads, rows, width]`, turned by angles with these cosines and sines
/// `[batch or 1, 1, rows, width / 2]`.
pub fn turned(x: Tensor<4>, cosine: Tensor<4>, sine: Tensor<4>) -> Tensor<4> {
    #[cfg(feature = "flex")]
    if crate::fused::is_for(&x) {
        return crate::fused::turned(x, cosine, sine);
    }
    let half = x.dims()[3] / 2;
    let (a, b) = (x.clone().narrow(3, 0, half), x.narrow(3, half, half));
    let first = a.clone() * cosine.clone() - b.clone() * sine.clone();
    Tensor::cat(vec![first, b * cosine + a * sine], 3)
}
