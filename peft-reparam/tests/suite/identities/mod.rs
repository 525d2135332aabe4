//! What the methods are equal to, on random states, all architectures and a padded batch.

mod adalora;
mod copies;
mod dora;
mod dylora;
mod increlora;
mod intrinsic_said;
mod kernel_mix;
mod krona;
mod laplace_lora;
mod loftq;
mod lora_fa;
mod lorahub;
mod loraprune;
mod moelora;
mod qa_lora;

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use peft_core::testing::{base, device, fixtures::SHAPES};
use peft_core::{Base, Batch, Tuner, view::with_values};

/// The models that every identity is tested on.
fn bases() -> Vec<Base> {
    SHAPES.iter().map(|shape| base(shape, &device())).collect()
}

/// Final hidden states `[batch, rows, hidden]`, without autodiff.
fn run(tuner: &impl Tuner, base: &Base, batch: &Batch) -> Tensor<3> {
    tuner.valid().run(base, batch).unwrap().states
}

/// The module with other values in some of its tensors.
fn with<M: Module>(module: M, values: impl IntoIterator<Item = (String, TensorData)>) -> M {
    let (names, values) = (peft_core::view::tensors(&module), BTreeMap::from_iter(values));
    let unknown = values.keys().find(|name| !names.contains_key(*name));
    assert!(unknown.is_none(), "no tensor {unknown:?} among {:?}", names.keys());
    with_values(module, &values).unwrap()
}

/// `x` with these entries of a dimension, in this order.
fn pick(x: Tensor<2>, dim: usize, entries: &[usize]) -> Tensor<2> {
    Tensor::cat(entries.iter().map(|i| x.clone().narrow(dim, *i, 1)).collect(), dim)
}
