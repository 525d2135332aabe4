//! The way of tensors between a program and a device. What training steps and predictions send and read goes through here and is counted,
//! since an accelerator waits for each of it.

use std::cell::Cell;
use std::ops::{Add, AddAssign, Sub};

use burn::tensor::kind::Basic;
use burn::tensor::{Device, Tensor, TensorData};

/// How many tensors went one way and the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transfers {
    /// To a device.
    pub sent: usize,
    /// From a device.
    pub read: usize,
}

thread_local! {
    static SO_FAR: Cell<Transfers> = const { Cell::new(Transfers { sent: 0, read: 0 }) };
}

/// What `work` gives, and what it transferred on this thread and on those of its `train::Workers`.
pub fn counted<T>(work: impl FnOnce() -> T) -> (T, Transfers) {
    let before = SO_FAR.get();
    let result = work();
    (result, SO_FAR.get() - before)
}

/// Adds what other threads transferred for this one.
pub(crate) fn add(transfers: Transfers) {
    SO_FAR.set(SO_FAR.get() + transfers);
}

/// A tensor on a device, which carries no gradient.
pub fn send<const D: usize, K: Basic>(data: impl Into<TensorData>, device: &Device) -> Tensor<D, K> {
    add(Transfers { sent: 1, read: 0 });
    Tensor::from_data(data, &device.clone().inner())
}

/// The numbers of a tensor.
pub fn read<const D: usize, K: Basic>(tensor: Tensor<D, K>) -> TensorData {
    add(Transfers { sent: 0, read: 1 });
    tensor.into_data()
}

/// Numbers `[1]` each, read at once.
pub fn read_all(numbers: Vec<Tensor<1>>) -> Vec<f32> {
    match numbers.is_empty() {
        true => vec![],
        false => read(Tensor::cat(numbers, 0)).iter().collect(),
    }
}

impl Add for Transfers {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Transfers { sent: self.sent + other.sent, read: self.read + other.read }
    }
}

impl AddAssign for Transfers {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Transfers {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Transfers { sent: self.sent - other.sent, read: self.read - other.read }
    }
}
