//! Comparing tensors and functions.

use burn::tensor::{Tensor, TensorData};

use super::tolerances::Tolerance;
use super::{base, batch, device};
use crate::{Base, Tuner};

/// Declares pairs of functions that are the same under a condition, each with a test: on the given models and random states, both
/// give the same final states if the condition holds, and other ones if it does not. `cargo xtask equivalences` draws the map of them.
///
/// ```ignore
/// equivalences! {
///     lora_starts_as_the_base: "LoRA" = "base" if "B = 0", SAME_FUNCTION on SHAPES, |base, seed, holds| {
///         let start = LoraConfig::new(3).init(base, seed).unwrap();
///         [states(&if holds { start } else { randomized(&start, seed) }, base), states(&Bare {}, base)]
///     };
/// }
/// ```
#[macro_export]
macro_rules! equivalences {
    ($($test:ident: $left:literal = $right:literal if $condition:literal, $tolerance:ident on $shapes:ident, $pair:expr;)*) => {$(
        #[test]
        fn $test() {
            use $crate::testing::{equivalence, fixtures, tolerances};
            equivalence::check(tolerances::$tolerance, &fixtures::$shapes, $pair);
        }
    )*};
}

/// Both of a pair, if the condition holds and if it does not.
///
/// # Panics
/// If they differ although it holds, or do not although it does not.
pub fn check(tolerance: Tolerance, shapes: &[&str], pair: impl Fn(&Base, u64, bool) -> [Tensor<3>; 2]) {
    for shape in shapes {
        let base = base(shape, &device());
        for seed in 1..4 {
            let [left, right] = pair(&base, seed, true);
            assert_close(left, right, tolerance, &format!("{shape}, seed {seed}"));
            let [left, right] = pair(&base, seed, false).map(Tensor::into_data);
            let found = difference(&left, &right);
            assert!(found > 10.0 * tolerance.0, "{shape}, seed {seed}: {found} although the condition does not hold");
        }
    }
}

/// Final states `[batch, rows, hidden]` of the tests' batch, without autodiff.
///
/// # Panics
/// If the tuner does not run.
pub fn states(tuner: &impl Tuner, base: &Base) -> Tensor<3> {
    tuner.valid().run(base, &batch(base)).unwrap_or_else(|e| panic!("{e}")).states
}

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
