//! Registers of eight numbers, with fused products and sums. A panel's outputs are computed sixteen columns at a time: 12 registers of
//! sums, two of the panel's numbers, one of `x`.

use std::arch::x86_64::*;

use super::{Panel, ROWS, WIDTH, portable};

/// Columns at a time.
const COLUMNS: usize = 16;

#[target_feature(enable = "avx2,fma")]
pub(super) fn multiply(x: &[u32], stride: usize, panel: &Panel, y: &mut [&mut [f32]], at: usize) {
    for (x, y) in x.chunks(ROWS * stride).zip(y.chunks_mut(ROWS)) {
        for first in (0..WIDTH).step_by(COLUMNS) {
            match y.len() {
                1 => tile::<1>(x, stride, panel, first, y, at),
                2 => tile::<2>(x, stride, panel, first, y, at),
                3 => tile::<3>(x, stride, panel, first, y, at),
                4 => tile::<4>(x, stride, panel, first, y, at),
                5 => tile::<5>(x, stride, panel, first, y, at),
                _ => tile::<ROWS>(x, stride, panel, first, y, at),
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn tile<const R: usize>(x: &[u32], stride: usize, panel: &Panel, first: usize, y: &mut [&mut [f32]], at: usize) {
    assert!(x.len() >= (R - 1) * stride + panel.len());
    let mut sums = [[_mm256_setzero_ps(); 2]; R];
    for (k, row) in panel.iter().enumerate() {
        let row: &[u32; COLUMNS] = row[first..].first_chunk().expect("WIDTH is a multiple");
        // SAFETY: there are sixteen numbers to read.
        let w = [0, 8].map(|i| unsafe { _mm256_loadu_ps(row.as_ptr().add(i).cast()) });
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: k is below the panel's length, and all R rows have that many words, as was asserted.
            let x = _mm256_set1_ps(f32::from_bits(unsafe { *x.get_unchecked(r * stride + k) }));
            for (sum, w) in sums.iter_mut().zip(w) {
                *sum = _mm256_fmadd_ps(x, w, *sum);
            }
        }
    }
    for (sums, y) in sums.iter().zip(y) {
        let mut numbers = [0f32; COLUMNS];
        for (i, sum) in sums.iter().enumerate() {
            // SAFETY: there is room for two times eight numbers.
            unsafe { _mm256_storeu_ps(numbers.as_mut_ptr().add(8 * i), *sum) };
        }
        y.iter_mut().skip(at + first).zip(numbers).for_each(|(y, sum)| *y += sum);
    }
}

#[target_feature(enable = "avx2,fma")]
pub(super) fn dot(x: &[f32], w: &[f32]) -> f32 {
    portable::dot(x, w, f32::mul_add)
}

#[target_feature(enable = "avx2,fma")]
pub(super) fn add(x: &[f32], rows: &[f32], y: &mut [f32]) {
    portable::add(x, rows, y, f32::mul_add);
}
