//! The number types that codecs take and give.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// A number type of dense weights. Arithmetic is in f32 whatever the type.
pub trait Element: Copy + Send + Sync + Default + 'static {
    /// Its name in safetensors' and torch's words: `float32`, `float16`, `bfloat16`.
    const NAME: &'static str;

    /// As f32, exactly.
    fn widen(from: &[Self], to: &mut [f32]);

    /// From f32, to the nearest, ties to even.
    fn narrow(from: &[f32], to: &mut [Self]);
}

impl Element for f32 {
    const NAME: &'static str = "float32";

    fn widen(from: &[Self], to: &mut [f32]) {
        to.copy_from_slice(from);
    }

    fn narrow(from: &[f32], to: &mut [Self]) {
        to.copy_from_slice(from);
    }
}

impl Element for f16 {
    const NAME: &'static str = "float16";

    fn widen(from: &[Self], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }

    fn narrow(from: &[f32], to: &mut [Self]) {
        to.convert_from_f32_slice(from);
    }
}

impl Element for bf16 {
    const NAME: &'static str = "bfloat16";

    fn widen(from: &[Self], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }

    fn narrow(from: &[f32], to: &mut [Self]) {
        to.convert_from_f32_slice(from);
    }
}
