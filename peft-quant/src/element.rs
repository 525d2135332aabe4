//! The number types that codecs take and give.

use half::slice::HalfFloatSliceExt;
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};

use crate::blocks::PIECE;
use crate::wide::{Width, wide};

/// A number type of dense weights. Arithmetic is in f32 whatever the type.
pub trait Element: Copy + Send + Sync + 'static {
    /// Its name in safetensors' and torch's words: `float32`, `float16`, `bfloat16`.
    const NAME: &'static str;

    /// Zeros, in memory that is not touched until it is written.
    fn zeros(count: usize) -> Vec<Self>;

    /// Has numbers filled in f32 and rounded: where they are to be, if they are f32 there. A few hundred at a time cost least.
    fn fill(to: &mut [Self], fill: impl FnOnce(&mut [f32])) {
        let (mut short, mut long) = ([0.; PIECE], vec![]);
        let buffer = if to.len() <= PIECE {
            &mut short[..to.len()]
        } else {
            long.resize(to.len(), 0.);
            &mut long[..]
        };
        fill(buffer);
        Self::narrow(buffer, to);
    }

    /// As f32, exactly.
    ///
    /// # Panics
    /// If the lengths differ.
    fn widen(from: &[Self], to: &mut [f32]);

    /// From f32, to the nearest, ties to even.
    ///
    /// # Panics
    /// If the lengths differ.
    fn narrow(from: &[f32], to: &mut [Self]);
}

impl Element for f32 {
    const NAME: &'static str = "float32";

    fn zeros(count: usize) -> Vec<Self> {
        vec![0.; count]
    }

    fn fill(to: &mut [Self], fill: impl FnOnce(&mut [f32])) {
        fill(to);
    }

    fn widen(from: &[Self], to: &mut [f32]) {
        to.copy_from_slice(from);
    }

    fn narrow(from: &[f32], to: &mut [Self]) {
        to.copy_from_slice(from);
    }
}

impl Element for f16 {
    const NAME: &'static str = "float16";

    fn zeros(count: usize) -> Vec<Self> {
        vec![0u16; count].reinterpret_into()
    }

    fn widen(from: &[Self], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }

    fn narrow(from: &[f32], to: &mut [Self]) {
        to.convert_from_f32_slice(from);
    }
}

impl Element for bf16 {
    const NAME: &'static str = "bfloat16";

    fn zeros(count: usize) -> Vec<Self> {
        vec![0u16; count].reinterpret_into()
    }

    fn widen(from: &[Self], to: &mut [f32]) {
        assert_eq!(from.len(), to.len());
        widen_brain(Width::best(), from, to);
    }

    fn narrow(from: &[f32], to: &mut [Self]) {
        assert_eq!(from.len(), to.len());
        narrow_brain(Width::best(), from, to);
    }
}

wide! {
    fn widen_brain(from: &[bf16], to: &mut [f32]) {
        for (from, to) in from.iter().zip(to) {
            *to = f32::from_bits(u32::from(from.to_bits()) << 16);
        }
    }
}

wide! {
    /// `bf16::from_f32`, without its branch.
    fn narrow_brain(from: &[f32], to: &mut [bf16]) {
        for (from, to) in from.iter().zip(to) {
            let bits = from.to_bits();
            let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
            let quiet = bits | 0x40_0000;
            *to = bf16::from_bits((if from.is_nan() { quiet } else { rounded } >> 16) as u16);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every exponent and both signs, with fractions that end just below, at and above a tie, and anywhere.
    #[test]
    fn brain_floats_are_rounded_as_by_half_at_every_width() {
        let fractions = [
            0, 1, 0x7fff, 0x8000, 0x8001, 0xffff, 0x1_7fff, 0x1_8000, 0x1_8001, 0x12_3456, 0x7f_7fff, 0x7f_8000,
            0x7f_ffff,
        ];
        let x: Vec<f32> =
            (0..512u32).flat_map(|top| fractions.map(|fraction| f32::from_bits(top << 23 | fraction))).collect();
        for width in Width::all() {
            let mut narrow = vec![bf16::ZERO; x.len()];
            narrow_brain(width, &x, &mut narrow);
            for (x, narrow) in x.iter().zip(&narrow) {
                assert_eq!(bf16::from_f32(*x).to_bits(), narrow.to_bits(), "{width:?} {x:e} {:x}", x.to_bits());
            }
            let mut wide = vec![0.; x.len()];
            widen_brain(width, &narrow, &mut wide);
            for (wide, narrow) in wide.iter().zip(&narrow) {
                assert_eq!(wide.to_bits(), narrow.to_f32().to_bits(), "{width:?}");
            }
        }
    }

    #[test]
    fn any_count_of_numbers_is_filled() {
        for count in [0, 1, PIECE, PIECE + 1, 3 * PIECE] {
            let x: Vec<f32> = (0..count).map(|i| i as f32).collect();
            let mut to = bf16::zeros(count);
            bf16::fill(&mut to, |out| out.copy_from_slice(&x));
            assert_eq!(to, x.iter().map(|x| bf16::from_f32(*x)).collect::<Vec<_>>());
        }
    }
}
