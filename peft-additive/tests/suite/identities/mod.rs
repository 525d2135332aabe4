//! What the methods are equal to, on random states, both architectures and a padded batch.

mod adapter_drop;
mod adapter_fusion;
mod adapter_soup;
mod attempt;
mod attention_fusion;
mod bottleneck;
mod coda;
mod composition;
mod hadamard;
mod hyperformer;
mod ia3;
mod lst;
mod mera;
mod mpt;
mod parallel;
mod pasta;
mod prefix_tuning;
mod prompt_tuning;
mod residual;
mod sequential;
mod starts;
mod tiny_attn;
mod variants;
mod warp;

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::tensor::Tensor;
use peft_additive::{Sequential, SequentialConfig};
use peft_core::testing::{base, device, fixtures::ENCODERS, golden::Case};
use peft_core::{AnyTuner, Base, Batch, Head, Source, Trained, Tuner, io, view::with_values};

/// The models that every identity is tested on.
fn bases() -> Vec<Base> {
    ENCODERS.iter().map(|shape| base(shape, &device())).collect()
}

/// Final hidden states `[batch, rows, hidden]`, without autodiff.
fn run(tuner: &impl Tuner, base: &Base, batch: &Batch) -> Tensor<3> {
    tuner.valid().run(base, batch).unwrap().states
}

/// States with zeros in the rows of padding.
fn real(states: Tensor<3>, batch: &Batch) -> Tensor<3> {
    let padding = batch.padding.clone().expect("a padded batch");
    states.clone().mask_fill(padding.unsqueeze_dim::<3>(2).expand(states.dims()), 0.0)
}

/// The module with another value in one of its tensors.
fn with<M: Module, const D: usize>(module: M, name: &str, value: Tensor<D>) -> M {
    let names = peft_core::view::tensors(&module);
    assert!(names.contains_key(name), "no tensor {name} among {:?}", names.keys());
    with_values(module, &BTreeMap::from([(name.to_string(), value.into_data())])).unwrap()
}

/// `x` with these entries of a dimension, in this order.
fn pick<const D: usize>(x: Tensor<D>, dim: usize, entries: &[usize]) -> Tensor<D> {
    Tensor::cat(entries.iter().map(|i| x.clone().narrow(dim, *i, 1)).collect(), dim)
}

/// These adapters, as finished ones.
fn sources(config: &SequentialConfig, head: &Head, adapters: &[Sequential]) -> Vec<Source> {
    let source = |adapter: &Sequential| {
        let trained = Trained::new(AnyTuner::new(adapter.clone()), head.clone()).unwrap();
        Source { name: "source".into(), config: config.clone().into(), trained }
    };
    adapters.iter().map(source).collect()
}

/// The three finished adapters that lie beside a golden case.
fn finished(case: &Case, dir: &Path) -> [Source; 3] {
    ["a", "b", "c"].map(|name| {
        let (config, trained) = io::peft::load::<SequentialConfig>(&dir.join(name), &case.base).unwrap();
        Source { name: name.into(), config: config.into(), trained: trained.erased() }
    })
}
