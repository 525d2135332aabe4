//! Adapters of two linear maps that are each a column times a row.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use peft_additive::Activation;
use peft_core::random::Random;

/// A linear map whose matrix is the product of a column and a row.
#[derive(Module, Debug)]
pub struct Thin {
    /// `[in, 1]`.
    left: Param<Tensor<2>>,
    /// `[1, out]`.
    right: Param<Tensor<2>>,
    /// `[out]`.
    bias: Param<Tensor<1>>,
}

impl Thin {
    /// Both vectors within sqrt(6 / (n + 1)) (Glorot and Bengio), the bias 0.
    pub(super) fn new([inputs, outputs]: [usize; 2], seed: u64, name: &str, device: &Device) -> Self {
        let draw = |dims: [usize; 2], side| {
            let bound = (6.0 / (dims[0] + dims[1]) as f64).sqrt();
            let random = Random::new(seed, &format!("s3_delta.{name}.{side}"));
            Param::from_tensor(random.uniform_tensor(dims, -bound, bound, device))
        };
        let bias = Param::from_tensor(Tensor::zeros([outputs], device));
        Thin { left: draw([inputs, 1], "left"), right: draw([1, outputs], "right"), bias }
    }

    pub(super) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let along = x.matmul(self.left.val().unsqueeze()).matmul(self.right.val().unsqueeze());
        along + self.bias.val().unsqueeze()
    }
}

/// Two of them with a non-linearity between.
#[derive(Module, Debug)]
pub struct LowRank {
    pub(super) down: Thin,
    pub(super) up: Thin,
}

impl LowRank {
    pub(super) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.up.forward(Activation::GeluNew.apply(self.down.forward(x)))
    }
}
