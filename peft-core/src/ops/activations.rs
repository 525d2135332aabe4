//! Activations.

use burn::tensor::{Tensor, activation};

/// x Φ(x), Φ the normal distribution function (Hendrycks and Gimpel, 2016, arXiv:1606.08415), within 1e-6.
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    // Burn evaluates the error function number by number there, twice a step: a quarter of a small model's time.
    #[cfg(feature = "flex")]
    if crate::fused::is_for(&x) {
        return crate::fused::gelu(x);
    }
    activation::gelu(x)
}

/// SiLU(gate) * y, SiLU(x) = x / (1 + e^-x) (Shazeer, 2020, arXiv:2002.05202).
pub fn gated<const D: usize>(gate: Tensor<D>, y: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if crate::fused::is_for(&gate) {
        return crate::fused::gated(gate, y);
    }
    activation::silu(gate) * y
}
