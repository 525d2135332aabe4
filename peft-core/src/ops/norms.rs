//! Normalizations over the last dimension.

use burn::tensor::{Tensor, module};

/// (x - mean) / sqrt(variance + eps) * gain + bias (Ba et al., 2016, arXiv:1607.06450).
pub fn layer_norm<const D: usize>(x: Tensor<D>, gain: Tensor<1>, bias: Tensor<1>, eps: f64) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if crate::fused::is_for(&x) {
        return crate::fused::layer_norm(x, gain, bias, eps);
    }
    module::layer_norm(x, gain, Some(bias), eps)
}

/// x / sqrt(mean of x^2 + eps) * gain (Zhang and Sennrich, 2019, arXiv:1910.07467).
pub fn rms_norm<const D: usize>(x: Tensor<D>, gain: Tensor<1>, eps: f64) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if crate::fused::is_for(&x) {
        return crate::fused::rms_norm(x, gain, eps);
    }
    let scale = (x.clone().powi_scalar(2).mean_dim(D - 1) + eps).sqrt();
    x / scale * gain.unsqueeze()
}
