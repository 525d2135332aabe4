//! SiLU(gate) * y (Shazeer, 2020, arXiv:2002.05202), which keeps its inputs alone.

use burn::tensor::Tensor;

use super::{Numbers, Operation, among, apply, change, like};
use crate::kernels::{Kernel, rows};

/// SiLU(gate) * y.
pub(crate) fn gated<const D: usize>(gate: Tensor<D>, y: Tensor<D>) -> Tensor<D> {
    apply(vec![gate.into_dispatch(), y.into_dispatch()], Gated)
}

#[derive(Debug)]
struct Gated;

impl Operation for Gated {
    fn forward(&self, inputs: Vec<Numbers>, kept: Option<&mut Vec<Numbers>>) -> Numbers {
        let [gate, y] = both(inputs);
        if let Some(kept) = kept {
            kept.extend([gate.clone(), y.clone()]);
        }
        change(y, |y| rows::gated(Kernel::best(), gate.storage(), y))
    }

    fn backward(&self, kept: Vec<Numbers>, dy: Numbers, wanted: &[bool]) -> Vec<Numbers> {
        let [gate, y] = both(kept);
        let mut d_gate = vec![0.0; y.layout().num_elements()];
        let dy = change(dy, |dy| rows::gated_back(Kernel::best(), gate.storage(), y.storage(), dy, &mut d_gate));
        among([like(&dy, d_gate), dy], wanted)
    }
}

fn both(inputs: Vec<Numbers>) -> [Numbers; 2] {
    let inputs: [Numbers; 2] = inputs.try_into().expect("a gate and what it is for");
    inputs.map(|x| x.to_contiguous())
}
