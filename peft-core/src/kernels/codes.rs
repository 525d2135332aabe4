//! What kernels make of codes.

use crate::codes::{Codes, Form, Order, Rounding};

/// Inputs of a row in the order of codes: those of the lower halves of 16 bytes first.
pub(super) type Group = [f32; 32];

impl<'a> Codes<'a> {
    /// The codes of each block of an output that has so many.
    #[inline(always)]
    pub(super) fn blocks(&self, output: usize, blocks: usize) -> impl Iterator<Item = &'a [u8]> {
        let size = match self.form {
            Form::Four { .. } => self.block / 2,
            Form::Eight => self.block,
        };
        let (row, codes) = (blocks * self.stride, self.before..self.before + size);
        self.bytes[output * row..][..row].chunks_exact(self.stride).map(move |block| &block[codes.clone()])
    }

    /// Rows of inputs, so that what some codes are multiplied with stands together: the first 32 of each row, then the next.
    pub(super) fn arrange(&self, x: &[f32], depth: usize, arranged: &mut Vec<Group>) {
        let first = match self.form {
            Form::Four { order: Order::LowerFirst, .. } => Some(0),
            Form::Four { order: Order::UpperFirst, .. } => Some(1),
            Form::Four { order: Order::Halves, .. } | Form::Eight => None,
        };
        arranged.clear();
        for group in 0..depth / 32 {
            arranged.extend(x.chunks_exact(depth).map(|row| {
                let x = &row.as_chunks().0[group];
                first.map_or(*x, |first| {
                    std::array::from_fn(|i| if i < 16 { x[2 * i + first] } else { x[2 * (i - 16) + 1 - first] })
                })
            }));
        }
    }
}

/// The weights of a block by their codes. In steps that all registers have, so that it is compiled to theirs.
#[inline(always)]
pub(super) fn table(values: &[f32; 16], [scale, minimum]: [f32; 2], rounding: Rounding) -> [f32; 16] {
    let weights = values.map(|value| value * scale + minimum);
    match rounding {
        Rounding::F32 => weights,
        Rounding::F16 => weights.map(rounded_to_f16),
        Rounding::Bf16 => weights.map(|weight| rounded(weight, 16)),
    }
}

/// A number that is not NaN without the last bits, to the nearest, ties to even.
#[inline(always)]
fn rounded(x: f32, bits: u32) -> f32 {
    let half = (1 << (bits - 1)) - 1;
    f32::from_bits((x.to_bits() + half + (x.to_bits() >> bits & 1)) & (u32::MAX << bits))
}

/// The nearest number of f16, whose least ones are multiples of 2^-24, the step of f32 above 0.5.
#[inline(always)]
fn rounded_to_f16(x: f32) -> f32 {
    let magnitude = x.abs();
    let (small, normal) = (magnitude + 0.5 - 0.5, rounded(magnitude, 13));
    let large = if normal > 65504. { f32::INFINITY } else { normal };
    (if magnitude < 6.103_515_6e-5 { small } else { large }).copysign(x)
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    #[test]
    fn weights_are_rounded_as_numbers_of_these_types_are() {
        let fractions =
            [0, 1, 0xfff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x7fff, 0x8000, 0x8001, 0x1_8000, 0x7f_efff, 0x7f_ffff];
        for x in (0..255u32).flat_map(|exponent| fractions.map(|fraction| f32::from_bits(exponent << 23 | fraction))) {
            for x in [x, -x] {
                let all = |rounding| table(&[x; 16], [1., 0.], rounding);
                assert_eq!(all(Rounding::F32), [x; 16]);
                assert_eq!(all(Rounding::F16), [f16::from_f32(x).to_f32(); 16], "{x:e}");
                assert_eq!(all(Rounding::Bf16), [bf16::from_f32(x).to_f32(); 16], "{x:e}");
            }
        }
    }
}
