//! An adapter restricted to some layers.

use std::ops::Range;

use burn::module::Module;
use burn::tensor::Tensor;

use crate::{Adapter, Attention, Batch, Frame, Hooks, Next, Sequence, Site, Slot, Stack, Weight};

/// An adapter that acts in some layers only. Below the lowest of them nothing is differentiated. What it holds for other layers
/// gets no gradient, which the trainer would refuse: start it with sites of these layers only.
#[derive(Module, Debug)]
pub struct Within<A: Module> {
    inner: A,
    #[module(skip)]
    layers: Range<usize>,
}

impl<A: Module> Within<A> {
    /// `inner` in these layers.
    pub fn new(inner: A, layers: Range<usize>) -> Self {
        Within { inner, layers }
    }

    /// The same adapter in other layers.
    pub fn with_layers(mut self, layers: Range<usize>) -> Self {
        self.layers = layers;
        self
    }
}

impl<A: Adapter> Adapter for Within<A> {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        self.inner.open(batch, |hooks| f(&Inside { hooks, layers: &self.layers }))
    }

    fn only_rewrites(&self) -> bool {
        self.inner.only_rewrites()
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
