//! What the tests of adapters do with their bottlenecks.

use burn::tensor::{Tensor, TensorData};
use peft_additive::Activation;
use peft_core::view::Rewrite;

use super::pick;

/// Another order of the bottleneck's units.
pub struct Permute<'a>(pub &'a [usize]);

impl Rewrite for Permute<'_> {
    fn tensor<const D: usize>(&mut self, name: &str, t: Tensor<D>) -> Tensor<D> {
        match name.rsplit_once('.').unwrap() {
            (path, "weight") if path.ends_with("down") => pick(t, 1, self.0),
            (path, "weight") if path.ends_with("up") => pick(t, 0, self.0),
            (path, "bias") if path.ends_with("down") => pick(t, 0, self.0),
            _ => t,
        }
    }
}

/// Zeros in the second map; its bias too, or not.
pub struct ZeroUp {
    pub bias: bool,
}

impl Rewrite for ZeroUp {
    fn tensor<const D: usize>(&mut self, name: &str, t: Tensor<D>) -> Tensor<D> {
        let zero = name.ends_with("up.weight") || self.bias && name.ends_with("up.bias");
        if zero { t.zeros_like() } else { t }
    }
}

/// A non-linearity by its definition.
pub fn activate(x: Tensor<3>, activation: Activation) -> Tensor<3> {
    match activation {
        Activation::Gelu => x.clone() * ((x / 2f64.sqrt()).erf() + 1.0) / 2.0,
        Activation::GeluNew => {
            let inner = (x.clone() + x.clone().powi_scalar(3) * 0.044715) * (2.0 / std::f64::consts::PI).sqrt();
            x * (inner.tanh() + 1.0) / 2.0
        }
        Activation::Relu => x.clamp_min(0.0),
        Activation::Swish => x.clone() / (x.neg().exp() + 1.0),
        Activation::Identity => x,
    }
}

/// A layer normalization by its definition.
pub fn normalize(x: Tensor<3>, gain: Tensor<3>, bias: Tensor<3>, eps: f64) -> Tensor<3> {
    let centered = x.clone() - x.mean_dim(2);
    let deviation = (centered.clone().powi_scalar(2).mean_dim(2) + eps).sqrt();
    centered / deviation * gain + bias
}

/// The numbers of a tensor in f64.
pub fn values(data: &TensorData) -> Vec<f64> {
    data.iter::<f32>().map(f64::from).collect()
}
