//! An adapter restricted to some layers.

use std::ops::Range;

use burn::module::Module;
use burn::tensor::Tensor;

use crate::random::Noise;
use crate::{
    Adapter, AnyAdapter, AnyTuner, Attention, Base, Batch, Frame, Hooks, Lookup, Next, Procedure, Readout, Result,
    Sequence, Site, Slot, Stack, Tuner, Weight,
};

/// An adapter that acts in some layers only, with the steps that it has anyway. Below the lowest of the layers nothing is
/// differentiated. What it holds for other layers gets no gradient, which the trainer would refuse: start it with sites of these layers
/// only.
#[derive(Module, Debug)]
pub struct Within {
    inner: AnyTuner,
    #[module(skip)]
    layers: Range<usize>,
}

impl Within {
    /// `inner` in these layers.
    pub fn new(inner: impl Adapter, layers: Range<usize>) -> Self {
        Within { inner: AnyTuner::new(inner), layers }
    }

    /// The same adapter in other layers.
    pub fn with_layers(mut self, layers: Range<usize>) -> Self {
        self.layers = layers;
        self
    }
}

impl Adapter for Within {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        self.inner.opened(batch, |hooks| f(&Inside { hooks, layers: &self.layers }))
    }

    fn view(&self, base: &Base, noise: Option<&Noise>) -> Result<Option<AnyTuner>> {
        let view = |inner| AnyTuner::new(Within { inner, layers: self.layers.clone() });
        Ok(self.inner.viewed(base, noise)?.map(view))
    }

    fn tasks(&self) -> Option<usize> {
        self.inner.as_adapter().and_then(AnyAdapter::tasks)
    }
}

impl Procedure for Within {
    fn parts(&self) -> Vec<(String, &AnyTuner)> {
        vec![("inner.".into(), &self.inner)]
    }

    fn parts_mut(&mut self) -> Vec<&mut AnyTuner> {
        vec![&mut self.inner]
    }

    fn loss(&self, readout: &Readout<'_>) -> Result<Option<Tensor<1>>> {
        let inside = |inner: &dyn AnyAdapter, batch: &Batch| {
            readout.run_adapter(&InsideOf { inner, layers: &self.layers }, batch)
        };
        self.inner.loss(&readout.among(&inside))
    }
}

/// An adapter in some layers.
struct InsideOf<'a> {
    inner: &'a dyn AnyAdapter,
    layers: &'a Range<usize>,
}

impl AnyAdapter for InsideOf<'_> {
    fn open_any(&self, batch: &Batch, f: &mut dyn FnMut(&dyn Hooks)) {
        self.inner.open_any(batch, &mut |hooks| f(&Inside { hooks, layers: self.layers }));
    }

    fn tasks(&self) -> Option<usize> {
        self.inner.tasks()
    }
}

struct Inside<'a> {
    hooks: &'a dyn Hooks,
    layers: &'a Range<usize>,
}

impl Inside<'_> {
    fn at(&self, site: Site) -> &dyn Hooks {
        if self.layers.contains(&site.layer) { self.hooks } else { &() }
    }
}

impl Hooks for Inside<'_> {
    fn layer(&self, frame: &Frame<'_>, site: Site, x: Sequence, next: Next<'_, Sequence>) -> Sequence {
        self.at(site).layer(frame, site, x, next)
    }
    fn sublayer(&self, frame: &Frame<'_>, site: Site, x: Sequence, next: Next<'_, Sequence, Tensor<3>>) -> Tensor<3> {
        self.at(site).sublayer(frame, site, x, next)
    }
    fn attend(&self, site: Site, a: Attention, next: Next<'_, Attention, Tensor<4>>) -> Tensor<4> {
        self.at(site).attend(site, a, next)
    }
    fn linear(&self, site: Site, x: Tensor<3>, next: Next<'_, Tensor<3>>) -> Tensor<3> {
        self.at(site).linear(site, x, next)
    }
    fn rows(&self, site: Site, lookup: &Lookup<'_>, rows: Tensor<3>) -> Tensor<3> {
        self.at(site).rows(site, lookup, rows)
    }
    fn embed(&self, stack: Stack, x: Sequence) -> Sequence {
        self.hooks.embed(stack, x)
    }
    fn weight(&self, site: Site, w: Weight) -> Weight {
        self.at(site).weight(site, w)
    }
    fn vector(&self, site: Site, slot: Slot, v: Tensor<1>) -> Tensor<1> {
        self.at(site).vector(site, slot, v)
    }
}
