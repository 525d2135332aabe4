//! What the methods are equal to, on random states, every architecture and a padded batch.

mod autopeft;
mod compacter;
mod pruned_mam;
mod s3_delta;
mod s4;
mod unipelt;

use std::collections::BTreeMap;

use burn::optim::GradientsParams;
use burn::tensor::TensorData;
use peft_core::testing::{base, batch, conformance::loss, device, fixtures::SHAPES, golden::named, states};
use peft_core::{Base, Tuner};

/// The models that every identity is tested on.
fn bases() -> Vec<Base> {
    SHAPES.iter().map(|shape| base(shape, &device())).collect()
}

/// Final states, to the bit.
fn bits(tuner: &impl Tuner, base: &Base) -> TensorData {
    states(tuner, base).into_data()
}

/// The gradients of a tuner's tensors, by name.
fn gradients<T: Tuner>(tuner: &T, base: &Base) -> BTreeMap<String, TensorData> {
    let loss = loss(tuner.run(base, &batch(base)).unwrap());
    named(tuner, &GradientsParams::from_grads(loss.backward(), tuner))
}

fn values(data: &TensorData) -> Vec<f32> {
    data.iter().collect()
}
