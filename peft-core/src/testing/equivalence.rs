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

/// Asserts that two tensors differ by no more than the tolerance, or, where numbers are larger than 1, by no more than that
/// part of the largest.
///
/// # Panics
/// If they do.
#[track_caller]
pub fn assert_close<const D: usize>(a: Tensor<D>, b: Tensor<D>, tolerance: Tolerance, what: &str) {
    let (a, b) = (a.into_data(), b.into_data());
    let largest = b.iter::<f32>().map(f32::abs).fold(1.0, f32::max);
    let found = difference(&a, &b);
    let allowed = tolerance.0 * largest;
    assert!(found <= allowed, "{what}: the largest difference is {found}, allowed {allowed} ({tolerance:?})");
}
