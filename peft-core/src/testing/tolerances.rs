//! The error budgets of the tests of f32 tensors, in one place, operation by operation.

/// The largest absolute difference allowed between numbers of order 1.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance(pub f32);

/// The same function by two routes of f32 operations on one device, through a few layers (some 200 roundings of numbers up to 3).
pub const SAME_FUNCTION: Tolerance = Tolerance(3e-5);
/// A sum of products of order 1 whose factors are rounded to bf16, which has 8 bits: each is off by 2^-9 at most.
pub const BF16_PRODUCT: Tolerance = Tolerance(2e-2);
/// A weight-space form against an activation-space form.
pub const MERGED: Tolerance = Tolerance(5e-5);
/// The same gradient by two routes, relative to its largest number.
pub const SAME_GRADIENT: Tolerance = Tolerance(1e-4);
/// Against logits, losses and gradients of a reference implementation.
pub const REFERENCE: Tolerance = Tolerance(1e-4);
/// Against tensors of a reference after ten AdamW steps with rate 1e-2: a gradient near 0 moves a full step either way.
pub const REFERENCE_TRAJECTORY: Tolerance = Tolerance(2e-4);
/// Against losses, logits and importances, relative to the largest, over 200 AdamW steps of a reference, whose f32 is off by 2e-4.
pub const REFERENCE_RUN: Tolerance = Tolerance(2e-3);
/// The same function on two backends.
pub const TWO_BACKENDS: Tolerance = Tolerance(1e-4);
/// Gradients by automatic differentiation against central differences in f32, relative to the largest.
pub const FINITE_DIFFERENCE: Tolerance = Tolerance(2e-2);
/// The mean of random draws against its expectation, in standard errors of the mean.
pub const STANDARD_ERRORS: Tolerance = Tolerance(4.5);
