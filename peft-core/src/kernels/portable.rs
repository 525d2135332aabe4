//! What the other kernels compute, in plain Rust.

use half::bf16;

use super::codes::table;
use super::{Panel, WIDTH};
use crate::codes::{Codes, Form};

/// The nearest number that bf16 has.
pub(super) fn rounded(x: f32) -> f32 {
    bf16::from_f32(x).to_f32()
}

pub(super) fn multiply(x: &[u32], stride: usize, panel: &Panel, y: &mut [&mut [f32]], at: usize) {
    for (x, y) in x.chunks(stride).zip(y) {
        let mut sums = [0.; WIDTH];
        for (x, row) in x.iter().zip(panel) {
            for (sum, w) in sums.iter_mut().zip(row) {
                *sum += f32::from_bits(*x) * f32::from_bits(*w);
            }
        }
        y[at..].iter_mut().zip(sums).for_each(|(y, sum)| *y += sum);
    }
}

pub(super) fn turn(rows: &[u32], depth: usize, panel: &mut Panel) {
    for (k, to) in panel.iter_mut().enumerate() {
        rows.chunks(depth).zip(to).for_each(|(row, to)| *to = row[k]);
    }
}

/// In 64 sums, each of every 64th product, of which halves are then added.
#[inline(always)]
pub(super) fn dot(x: &[f32], w: &[f32], step: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let mut sums = [0.; WIDTH];
    let ((x, x_rest), (w, w_rest)) = (x.as_chunks::<WIDTH>(), w.as_chunks::<WIDTH>());
    for (x, w) in x.iter().zip(w) {
        for i in 0..WIDTH {
            sums[i] = step(x[i], w[i], sums[i]);
        }
    }
    for (sum, (x, w)) in sums.iter_mut().zip(x_rest.iter().zip(w_rest)) {
        *sum = step(*x, *w, *sum);
    }
    for half in [32, 16, 8, 4, 2, 1] {
        let (low, high) = sums.split_at_mut(half);
        low.iter_mut().zip(high).for_each(|(low, high)| *low += *high);
    }
    sums[0]
}

#[inline(always)]
pub(super) fn add(x: &[f32], rows: &[f32], y: &mut [f32], step: impl Fn(f32, f32, f32) -> f32) {
    for (x, row) in x.iter().zip(rows.chunks_exact(y.len())) {
        for (y, w) in y.iter_mut().zip(row) {
            *y = step(*x, *w, *y);
        }
    }
}

/// Adds the products of rows of `x`, arranged as the codes are, and outputs.
pub(super) fn dots(codes: &Codes<'_>, scales: &[[f32; 2]], x: &[f32], y: &mut [&mut [f32]], at: usize) {
    let depth = x.len() / y.len();
    let blocks = depth / codes.block;
    for (output, scales) in scales.chunks(blocks).enumerate() {
        for (x, y) in x.chunks(depth).zip(y.iter_mut()) {
            let products = x.chunks(codes.block).zip(scales).enumerate();
            let sums = products.map(|(i, (x, scale))| dot_of_block(codes, codes.block(output * blocks + i), *scale, x));
            y[at + output] += sums.sum::<f32>();
        }
    }
}

fn dot_of_block(codes: &Codes<'_>, bytes: &[u8], [scale, minimum]: [f32; 2], x: &[f32]) -> f32 {
    match codes.form {
        Form::Four { values, rounding, .. } => {
            let table = table(values, [scale, minimum], rounding);
            let of = |bytes: &[u8], x: &[f32], shift: u32| -> f32 {
                bytes.iter().zip(x).map(|(byte, x)| table[(byte >> shift & 15) as usize] * x).sum()
            };
            bytes.chunks(16).zip(x.chunks(32)).map(|(bytes, x)| of(bytes, x, 0) + of(bytes, &x[16..], 4)).sum()
        }
        Form::Eight => bytes.iter().zip(x).map(|(byte, x)| (f32::from(byte.cast_signed()) * scale + minimum) * x).sum(),
    }
}
