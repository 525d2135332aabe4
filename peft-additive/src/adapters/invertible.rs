//! The invertible block of MAD-X: two additive couplings of the halves of the states (NICE).

use burn::module::Module;
use burn::tensor::Tensor;
use peft_core::{Affine, Error, Result, Shape};

use super::bottleneck::Activation;

/// The width inside F and G, of one half of the states' width each.
pub(super) fn inner_width(shape: &Shape, factor: Option<f64>) -> Result<[usize; 2]> {
    let first = shape.hidden / 2;
    let inner = |width: usize| (width as f64 / factor.unwrap_or_default()) as usize;
    // F reads the second half, G the first.
    let widths = [inner(shape.hidden - first), inner(first)];
    match factor.is_some_and(|factor| factor > 0.0)
        && widths.iter().all(|width| (1..=16 * shape.hidden).contains(width))
    {
        true => Ok(widths),
        false => {
            let expected = format!("a number above 0, at most {first}, half the model's width");
            let found = factor.map_or("none".to_string(), |factor| factor.to_string());
            Err(Error::config("inv_adapter_reduction_factor", found, expected))
        }
    }
}

/// The map, the place of the affine map in it, and the leaf of a tensor of the block.
pub(super) fn block_name(name: &str) -> [&str; 3] {
    let parts: Vec<&str> = name.split('.').collect();
    match parts[..] {
        [map, "down", leaf] => [if map == "first" { "F" } else { "G" }, "0", leaf],
        [map, _, leaf] => [if map == "first" { "F" } else { "G" }, "2", leaf],
        _ => unreachable!("two affine maps with two tensors each: {name}"),
    }
}

/// Two additive couplings of the halves of the states.
#[derive(Module, Debug)]
pub struct Block {
    /// F.
    pub(super) first: Coupling,
    /// G.
    pub(super) second: Coupling,
}

/// Two maps with a non-linearity between.
#[derive(Module, Debug)]
pub struct Coupling {
    /// Weight `[half, inner]`, bias `[inner]`.
    pub(super) down: Affine,
    /// Weight `[inner, other half]`, bias `[other half]`.
    pub(super) up: Affine,
}

impl Coupling {
    fn forward(&self, x: Tensor<3>, act: Activation) -> Tensor<3> {
        self.up.forward(act.apply(self.down.forward(x)))
    }
}

impl Block {
    fn halves(&self, x: Tensor<3>) -> [Tensor<3>; 2] {
        let (d, first) = (x.dims()[2], self.second.down.weight.dims()[0]);
        [x.clone().narrow(2, 0, first), x.narrow(2, first, d - first)]
    }

    /// [y1, y2] of [x1, x2]: y1 = x1 + F(x2), y2 = x2 + G(y1).
    pub fn forward(&self, x: Tensor<3>, act: Activation) -> Tensor<3> {
        let [x1, x2] = self.halves(x);
        let y1 = x1 + self.first.forward(x2.clone(), act);
        let y2 = x2 + self.second.forward(y1.clone(), act);
        Tensor::cat(vec![y1, y2], 2)
    }

    /// The states from which [`forward`](Self::forward) makes these.
    pub fn backward(&self, y: Tensor<3>, act: Activation) -> Tensor<3> {
        let [y1, y2] = self.halves(y);
        let x2 = y2 - self.second.forward(y1.clone(), act);
        let x1 = y1 - self.first.forward(x2.clone(), act);
        Tensor::cat(vec![x1, x2], 2)
    }
}
