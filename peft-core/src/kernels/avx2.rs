//! Registers of eight numbers, with fused products and sums. A panel's outputs are computed sixteen columns at a time: 12 registers of
//! sums, two of the panel's numbers, one of `x`.

use std::arch::x86_64::*;

use super::codes::table;
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
pub(super) fn dots(codes: &Codes<'_>, scales: &[[f32; 2]], x: &[f32], y: &mut [&mut [f32]], at: usize) {
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
fn dots_of<const R: usize>(codes: &Codes<'_>, scales: &[[f32; 2]], x: &[f32], y: &mut [&mut [f32]], at: usize) {
    let depth = x.len() / R;
    let blocks = depth / codes.block;
    for (output, scales) in scales.chunks(blocks).enumerate() {
        let sums = match codes.form {
            Form::Four { values, rounding, .. } => {
                four::<R>(codes, values, rounding, output * blocks, scales, x, depth)
            }
            Form::Eight => integers::<R>(codes, output * blocks, scales, x, depth),
        };
        for ([a, b], y) in sums.into_iter().zip(y.iter_mut()) {
            let mut numbers = [0f32; LANES];
            // SAFETY: there is room for eight numbers.
            unsafe { _mm256_storeu_ps(numbers.as_mut_ptr(), _mm256_add_ps(a, b)) };
            y[at + output] += numbers.iter().sum::<f32>();
        }
    }
}

/// The sums of the products of R rows and an output in four bits.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn four<const R: usize>(
    codes: &Codes<'_>,
    values: &[f32; 2 * LANES],
    rounding: Rounding,
    first: usize,
    scales: &[[f32; 2]],
    x: &[f32],
    depth: usize,
) -> [[__m256; 2]; R] {
    let mut sums = [[_mm256_setzero_ps(); 2]; R];
    for (block, [scale, minimum]) in scales.iter().enumerate() {
        let (low, high) = match rounding {
            Rounding::F32 => {
                let (scale, minimum) = (_mm256_set1_ps(*scale), _mm256_set1_ps(*minimum));
                let (low, high) = halves(values);
                (_mm256_add_ps(_mm256_mul_ps(low, scale), minimum), _mm256_add_ps(_mm256_mul_ps(high, scale), minimum))
            }
            _ => halves(&table(values, [*scale, *minimum], rounding)),
        };
        let x = &x[block * codes.block..];
        for (i, bytes) in codes.block(first + block).as_chunks::<LANES>().0.iter().enumerate() {
            let lower = _mm256_cvtepu8_epi32(eight(bytes));
            let upper = _mm256_srli_epi32::<4>(lower);
            let w = [looked_up(lower, low, high), looked_up(upper, low, high)];
            // Two times eight bytes are 32 weights, of which sixteen are in lower halves.
            add_products(w, &x[i / 2 * 4 * LANES + i % 2 * LANES..], [depth, 2 * LANES], &mut sums);
        }
    }
    sums
}

#[inline]
#[target_feature(enable = "avx2")]
fn halves(table: &[f32; 2 * LANES]) -> (__m256, __m256) {
    // SAFETY: there are two times eight numbers to read.
    unsafe { (_mm256_loadu_ps(table.as_ptr()), _mm256_loadu_ps(table.as_ptr().add(LANES))) }
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
fn integers<const R: usize>(
    codes: &Codes<'_>,
    first: usize,
    scales: &[[f32; 2]],
    x: &[f32],
    depth: usize,
) -> [[__m256; 2]; R] {
    let mut sums = [[_mm256_setzero_ps(); 2]; R];
    for (block, [scale, minimum]) in scales.iter().enumerate() {
        let (scale, minimum) = (_mm256_set1_ps(*scale), _mm256_set1_ps(*minimum));
        let x = &x[block * codes.block..];
        for (i, [a, b]) in codes.block(first + block).as_chunks::<LANES>().0.as_chunks::<2>().0.iter().enumerate() {
            let a = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight(a)));
            let b = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight(b)));
            let w = [_mm256_fmadd_ps(a, scale, minimum), _mm256_fmadd_ps(b, scale, minimum)];
            add_products(w, &x[i * 2 * LANES..], [depth, LANES], &mut sums);
        }
    }
    sums
}

#[inline]
#[target_feature(enable = "avx2")]
fn eight(bytes: &[u8; LANES]) -> __m128i {
    _mm_cvtsi64_si128(i64::from_le_bytes(*bytes))
}

/// Adds the products of two times eight weights and those of each of R rows; rows and halves are so far apart.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_products<const R: usize>(w: [__m256; 2], x: &[f32], [depth, apart]: [usize; 2], sums: &mut [[__m256; 2]; R]) {
    assert!(x.len() >= (R - 1) * depth + apart + LANES);
    for (r, sums) in sums.iter_mut().enumerate() {
        for (half, sum) in sums.iter_mut().enumerate() {
            // SAFETY: all R rows have both halves, as was asserted.
            let x = unsafe { _mm256_loadu_ps(x.as_ptr().add(r * depth + half * apart)) };
            *sum = _mm256_fmadd_ps(w[half], x, *sum);
        }
    }
}
