//! Registers of eight numbers, with fused products and sums. A panel's outputs are computed sixteen columns at a time: 12 registers of
//! sums, two of the panel's numbers, one of `x`.

use std::arch::x86_64::*;

use super::codes::{Group, table};
use super::{Panel, ROWS, WIDTH, portable};
use crate::codes::{Codes, Form, Rounding};

/// Numbers of a register.
const LANES: usize = 8;

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

#[target_feature(enable = "avx2,fma")]
pub(super) fn dots(codes: &Codes<'_>, scales: &[[f32; 2]], x: &[Group], y: &mut [&mut [f32]], at: usize) {
    match y.len() {
        1 => dots_of::<1>(codes, scales, x, y, at),
        2 => dots_of::<2>(codes, scales, x, y, at),
        3 => dots_of::<3>(codes, scales, x, y, at),
        4 => dots_of::<4>(codes, scales, x, y, at),
        5 => dots_of::<5>(codes, scales, x, y, at),
        _ => portable::dots(codes, scales, x, y, at),
    }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn dots_of<const R: usize>(codes: &Codes<'_>, scales: &[[f32; 2]], x: &[Group], y: &mut [&mut [f32]], at: usize) {
    let groups = codes.block / 32 * R;
    let blocks = x.len() / groups;
    for (output, scales) in scales.chunks(blocks).enumerate() {
        let parts = codes.blocks(output, blocks).zip(scales).zip(x.chunks_exact(groups));
        let sums = match codes.form {
            Form::Four { values, rounding, .. } => four::<R>(parts, values, rounding),
            Form::Eight => integers::<R>(parts),
        };
        for ([a, b], y) in sums.into_iter().zip(y.iter_mut()) {
            let mut numbers = [0f32; LANES];
            // SAFETY: there is room for eight numbers.
            unsafe { _mm256_storeu_ps(numbers.as_mut_ptr(), _mm256_add_ps(a, b)) };
            y[at + output] += numbers.iter().sum::<f32>();
        }
    }
}

/// A block's codes, its scale and minimum, and what they are multiplied with.
type Part<'a> = ((&'a [u8], &'a [f32; 2]), &'a [Group]);

/// The sums of the products of R rows and an output in four bits.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn four<'a, const R: usize>(
    parts: impl Iterator<Item = Part<'a>>,
    values: &[f32; 2 * LANES],
    rounding: Rounding,
) -> [[__m256; 2]; R] {
    let mut sums = [[_mm256_setzero_ps(); 2]; R];
    for ((bytes, [scale, minimum]), x) in parts {
        let (low, high) = match rounding {
            Rounding::F32 => {
                let (scale, minimum) = (_mm256_set1_ps(*scale), _mm256_set1_ps(*minimum));
                let (low, high) = halves(values);
                (_mm256_add_ps(_mm256_mul_ps(low, scale), minimum), _mm256_add_ps(_mm256_mul_ps(high, scale), minimum))
            }
            _ => halves(&table(values, [*scale, *minimum], rounding)),
        };
        for ([first, last], x) in bytes.as_chunks().0.as_chunks::<2>().0.iter().zip(x.as_chunks::<R>().0) {
            let [first, last] = [_mm256_cvtepu8_epi32(eight(first)), _mm256_cvtepu8_epi32(eight(last))];
            let w = [
                looked_up(first, low, high),
                looked_up(last, low, high),
                looked_up(_mm256_srli_epi32::<4>(first), low, high),
                looked_up(_mm256_srli_epi32::<4>(last), low, high),
            ];
            add_products(w, x, &mut sums);
        }
    }
    sums
}

#[inline]
#[target_feature(enable = "avx2")]
fn halves(table: &[f32; 2 * LANES]) -> (__m256, __m256) {
    // SAFETY: there are two times eight numbers to read.
    unsafe { (_mm256_loadu_ps(table.as_ptr()), _mm256_loadu_ps(table.as_ptr().wrapping_add(LANES))) }
}

/// By a code's lower three bits from both halves of a table, and of the two by the fourth.
#[inline]
#[target_feature(enable = "avx2")]
fn looked_up(codes: __m256i, low: __m256, high: __m256) -> __m256 {
    let upper = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes));
    _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, codes), _mm256_permutevar8x32_ps(high, codes), upper)
}

/// The sums of the products of R rows and an output in eight bits.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn integers<'a, const R: usize>(parts: impl Iterator<Item = Part<'a>>) -> [[__m256; 2]; R] {
    let mut sums = [[_mm256_setzero_ps(); 2]; R];
    for ((bytes, [scale, minimum]), x) in parts {
        let (scale, minimum) = (_mm256_set1_ps(*scale), _mm256_set1_ps(*minimum));
        for (bytes, x) in bytes.as_chunks().0.as_chunks::<4>().0.iter().zip(x.as_chunks::<R>().0) {
            let mut w = [_mm256_setzero_ps(); 4];
            for (w, bytes) in w.iter_mut().zip(bytes) {
                *w = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight(bytes))), scale, minimum);
            }
            add_products(w, x, &mut sums);
        }
    }
    sums
}

#[inline]
#[target_feature(enable = "avx2")]
fn eight(bytes: &[u8; LANES]) -> __m128i {
    _mm_cvtsi64_si128(i64::from_le_bytes(*bytes))
}

/// Adds the products of 32 weights and those of each of R rows.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_products<const R: usize>(w: [__m256; 4], x: &[Group; R], sums: &mut [[__m256; 2]; R]) {
    for (x, sums) in x.iter().zip(sums) {
        for (i, (w, x)) in w.iter().zip(x.as_chunks::<LANES>().0).enumerate() {
            // SAFETY: there are eight numbers to read.
            sums[i % 2] = _mm256_fmadd_ps(*w, unsafe { _mm256_loadu_ps(x.as_ptr()) }, sums[i % 2]);
        }
    }
}
