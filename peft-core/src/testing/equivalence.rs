//! Comparing tensors and functions.

use burn::tensor::{Tensor, TensorData};

use super::tolerances::Tolerance;

/// The largest absolute difference; infinite if a number is not finite or the shapes differ.
pub fn difference(a: &TensorData, b: &TensorData) -> f32 {
    if a.shape() != b.shape() {
        return f32::INFINITY;
    }
    let differ = |(x, y): (f32, f32)| if x.is_finite() && y.is_finite() { (x - y).abs() } else { f32::INFINITY };
    a.iter::<f32>().zip(b.iter::<f32>()).map(differ).fold(0.0, f32::max)
}

/// Asserts that two tensors differ by no more than the tolerance.
///
/// # Panics
/// If they do.
#[track_caller]
pub fn assert_close<const D: usize>(a: Tensor<D>, b: Tensor<D>, tolerance: Tolerance, what: &str) {
    let found = difference(&a.into_data(), &b.into_data());
    assert!(found <= tolerance.0, "{what}: the largest difference is {found}, allowed {tolerance:?}");
}
