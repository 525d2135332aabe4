//! What the other kernels compute, in plain Rust.

use half::bf16;

use super::codes::{Group, table};
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
pub(super) fn dots(codes: &Codes<'_>, scales: &[[f32; 2]], x: &[Group], y: &mut [&mut [f32]], at: usize) {
    let (rows, groups) = (y.len(), codes.block / 32);
    let blocks = x.len() / rows / groups;
    for (output, scales) in scales.chunks(blocks).enumerate() {
        for ((bytes, scale), x) in codes.blocks(output, blocks).zip(scales).zip(x.chunks(groups * rows)) {
            let weights = weights(codes.form, bytes, *scale);
            for (w, x) in weights.as_chunks::<32>().0.iter().zip(x.chunks(rows)) {
                for (x, y) in x.iter().zip(y.iter_mut()) {
                    y[at + output] += w.iter().zip(x).map(|(w, x)| w * x).sum::<f32>();
                }
            }
        }
    }
}

/// The weights of a block in the order of codes.
fn weights(form: Form, bytes: &[u8], [scale, minimum]: [f32; 2]) -> Vec<f32> {
    match form {
        Form::Four { values, rounding, .. } => {
            let table = table(values, [scale, minimum], rounding);
            let half =
                |bytes: &[u8], shift: u32| bytes.iter().map(|byte| table[(byte >> shift & 15) as usize]).collect();
            bytes
                .chunks(16)
                .flat_map(|bytes| [half(bytes, 0), half(bytes, 4)])
                .flat_map(|half: Vec<f32>| half)
                .collect()
        }
        Form::Eight => bytes.iter().map(|byte| f32::from(byte.cast_signed()) * scale + minimum).collect(),
    }
}
