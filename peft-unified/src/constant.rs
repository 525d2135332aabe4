//! What a generic module knows beside its tensors: burn's `#[module(skip)]` does not take fields whose type is generic.

use std::fmt::Debug;

use burn::module::{Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor};
use burn::tensor::Device;

/// A value without tensors that are trained or saved.
#[derive(Clone, Debug)]
pub struct Constant<T>(pub(crate) T);

impl<T: Clone + Debug + Send> Module for Constant<T> {
    fn collect_devices(&self, devices: Devices) -> Devices {
        devices
    }

    fn fork(self, _: &Device) -> Self {
        self
    }

    fn to_device(self, _: &Device) -> Self {
        self
    }

    fn train(self) -> Self {
        self
    }

    fn valid(&self) -> Self {
        self.clone()
    }

    fn materialize(self) -> Self {
        self
    }

    fn visit<V: ModuleVisitor>(&self, _: &mut V) {}

    fn map<M: ModuleMapper>(self, _: &mut M) -> Self {
        self
    }
}

impl<T: Clone + Debug + Send> ModuleDisplayDefault for Constant<T> {
    fn content(&self, content: Content) -> Option<Content> {
        content.optional()
    }
}

impl<T: Clone + Debug + Send> ModuleDisplay for Constant<T> {}
