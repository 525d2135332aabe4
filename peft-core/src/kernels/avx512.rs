//! Registers of sixteen numbers: 24 of sums, four of the panel's numbers, one of `x`. With `avx512bf16` a lane takes two products of
//! bf16 at a time, twice the rate on Zen 4; it sums in f32 and takes denormal numbers for zeros.

use std::arch::x86_64::*;

use super::codes::Group;
use super::{Panel, ROWS, WIDTH, portable};
use crate::codes::{Codes, Form, Rounding};

/// Numbers of a register.
const LANES: usize = 16;

/// Defines the loop over rows of `x`, some at a time.
macro_rules! multiply {
    ($name:ident, $tile:ident, $feature:literal) => {
        #[target_feature(enable = $feature)]
        pub(super) fn $name(x: &[u32], stride: usize, panel: &Panel, y: &mut [&mut [f32]], at: usize) {
            for (x, y) in x.chunks(ROWS * stride).zip(y.chunks_mut(ROWS)) {
                match y.len() {
                    1 => $tile::<1>(x, stride, panel, y, at),
                    2 => $tile::<2>(x, stride, panel, y, at),
                    3 => $tile::<3>(x, stride, panel, y, at),
                    4 => $tile::<4>(x, stride, panel, y, at),
                    5 => $tile::<5>(x, stride, panel, y, at),
                    _ => $tile::<ROWS>(x, stride, panel, y, at),
                }
            }
        }
    };
}

/// Defines what these rows have of a panel.
macro_rules! tile {
    ($name:ident, $feature:literal, |$x:ident, $w:ident, $sum:ident| $step:expr) => {
        #[inline]
        #[target_feature(enable = $feature)]
        fn $name<const R: usize>(x: &[u32], stride: usize, panel: &Panel, y: &mut [&mut [f32]], at: usize) {
            assert!(x.len() >= (R - 1) * stride + panel.len());
            y.iter().for_each(|y| fetch(y, at));
            let mut sums = [[_mm512_setzero_ps(); WIDTH / LANES]; R];
            for (k, row) in panel.iter().enumerate() {
                // SAFETY: a row has four times sixteen words to read.
                let row = [0, 1, 2, 3].map(|i| unsafe { _mm512_loadu_si512(row.as_ptr().add(LANES * i).cast()) });
                for (r, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: k is below the panel's length, and all R rows have that many words, as was asserted.
                    let $x = _mm512_set1_epi32(unsafe { *x.get_unchecked(r * stride + k) }.cast_signed());
                    for (sum, $w) in sums.iter_mut().zip(row) {
                        let $sum = *sum;
                        *sum = $step;
                    }
                }
            }
            sums.into_iter().zip(y).for_each(|(sums, y)| add_to(sums, y, at));
        }
    };
}

multiply!(multiply, tile, "avx512f");
tile!(tile, "avx512f", |x, w, sum| _mm512_fmadd_ps(_mm512_castsi512_ps(x), _mm512_castsi512_ps(w), sum));

multiply!(multiply_pairs, tile_of_pairs, "avx512f,avx512bf16");
tile!(tile_of_pairs, "avx512f,avx512bf16", |x, w, sum| {
    // SAFETY: both are 512 bits of anything.
    let [x, w] = [x, w].map(|words| unsafe { std::mem::transmute::<__m512i, __m512bh>(words) });
    _mm512_dpbf16_ps(sum, x, w)
});

/// Has the cache bring the outputs that the sums will be added to.
#[inline]
#[target_feature(enable = "avx512f")]
fn fetch(y: &[f32], at: usize) {
    for line in y[at..].chunks(LANES).take(WIDTH / LANES) {
        _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast());
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn add_to(sums: [__m512; WIDTH / LANES], y: &mut [f32], at: usize) {
    for (y, sum) in y[at..].chunks_mut(LANES).zip(sums) {
        let mask = mask(y.len());
        // SAFETY: the mask has the numbers that there are.
        unsafe {
            _mm512_mask_storeu_ps(y.as_mut_ptr(), mask, _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, y.as_ptr())))
        };
    }
}

/// The first lanes.
#[inline]
fn mask(lanes: usize) -> u16 {
    if lanes < LANES { (1 << lanes) - 1 } else { u16::MAX }
}

#[target_feature(enable = "avx512f")]
pub(super) fn turn(rows: &[u32], depth: usize, panel: &mut Panel) {
    for (block, to) in panel.chunks_mut(LANES).enumerate() {
        for first in (0..WIDTH).step_by(LANES) {
            let mut words = [_mm512_setzero_si512(); LANES];
            for (words, row) in words.iter_mut().zip(rows.chunks(depth).skip(first)) {
                let row = &row[block * LANES..];
                // SAFETY: the mask has the words that there are.
                *words = unsafe { _mm512_maskz_loadu_epi32(mask(row.len()), row.as_ptr().cast()) };
            }
            for (to, words) in to.iter_mut().zip(transposed(words)) {
                let to: &mut [u32; LANES] = to[first..].first_chunk_mut().expect("WIDTH is a multiple");
                // SAFETY: there is room for sixteen words.
                unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), words) };
            }
        }
    }
}

/// The transpose of 16 x 16 words: of pairs of rows, of pairs of those, then of quarters.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(x: [__m512i; LANES]) -> [__m512i; LANES] {
    let mut pairs = x;
    for i in (0..LANES).step_by(2) {
        pairs[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    let mut fours = pairs;
    for i in (0..LANES).step_by(4) {
        for half in 0..2 {
            fours[i + 2 * half] = _mm512_unpacklo_epi64(pairs[i + half], pairs[i + half + 2]);
            fours[i + 2 * half + 1] = _mm512_unpackhi_epi64(pairs[i + half], pairs[i + half + 2]);
        }
    }
    let mut eights = fours;
    for i in 0..4 {
        for half in [0, 8] {
            let [a, b] = [fours[i + half], fours[i + half + 4]];
            eights[i + half] = _mm512_shuffle_i32x4::<0x88>(a, b);
            eights[i + half + 4] = _mm512_shuffle_i32x4::<0xdd>(a, b);
        }
    }
    let mut all = eights;
    for i in 0..8 {
        all[i] = _mm512_shuffle_i32x4::<0x88>(eights[i], eights[i + 8]);
        all[i + 8] = _mm512_shuffle_i32x4::<0xdd>(eights[i], eights[i + 8]);
    }
    all
}

/// Pairs of numbers that follow on one another, rounded. An odd last one is paired with zero.
#[target_feature(enable = "avx512f,avx512bf16,avx512vl")]
pub(super) fn pairs_along(numbers: &[f32], words: &mut [u32]) {
    for (numbers, words) in numbers.chunks(LANES).zip(words.chunks_mut(LANES / 2)) {
        // SAFETY: the masks have the numbers that there are, and the words that they fill.
        unsafe {
            let rounded = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask(numbers.len()), numbers.as_ptr()));
            let room = mask(numbers.len().div_ceil(2).min(words.len())) as u8;
            _mm256_mask_storeu_epi32(
                words.as_mut_ptr().cast(),
                room,
                std::mem::transmute::<__m256bh, __m256i>(rounded),
            );
        }
    }
}

/// Pairs of the numbers of two rows, rounded. An odd last row is paired with zeros.
#[target_feature(enable = "avx512f,avx512bf16,avx512vl")]
pub(super) fn pairs_of_rows(rows: &[[f32; WIDTH]], panel: &mut Panel) {
    for (rows, words) in rows.chunks(2).zip(panel) {
        let rows = [rows[0], rows.get(1).copied().unwrap_or([0.; WIDTH])];
        for i in (0..WIDTH).step_by(LANES) {
            let [low, high] = [&rows[0], &rows[1]].map(|row| {
                let row: &[f32; LANES] = row[i..].first_chunk().expect("WIDTH is a multiple");
                // SAFETY: there are sixteen numbers to read; bits are bits.
                let rounded: __m256i =
                    unsafe { std::mem::transmute(_mm512_cvtneps_pbh(_mm512_loadu_ps(row.as_ptr()))) };
                _mm512_cvtepu16_epi32(rounded)
            });
            let pairs = _mm512_or_si512(low, _mm512_slli_epi32::<16>(high));
            let words: &mut [u32; LANES] = words[i..].first_chunk_mut().expect("WIDTH is a multiple");
            // SAFETY: there is room for sixteen words.
            unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), pairs) };
        }
    }
}

#[target_feature(enable = "avx512f,fma")]
pub(super) fn dot(x: &[f32], w: &[f32]) -> f32 {
    portable::dot(x, w, f32::mul_add)
}

#[target_feature(enable = "avx512f,fma")]
pub(super) fn add(x: &[f32], rows: &[f32], y: &mut [f32]) {
    portable::add(x, rows, y, f32::mul_add);
}

#[target_feature(enable = "avx512f,fma")]
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
#[target_feature(enable = "avx512f,fma")]
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
            y[at + output] += _mm512_reduce_add_ps(_mm512_add_ps(a, b));
        }
    }
}

/// A block's codes, its scale and minimum, and what they are multiplied with.
type Part<'a> = ((&'a [u8], &'a [f32; 2]), &'a [Group]);

/// The sums of the products of R rows and an output in four bits.
#[inline]
#[target_feature(enable = "avx512f,fma")]
fn four<'a, const R: usize>(
    parts: impl Iterator<Item = Part<'a>>,
    values: &[f32; LANES],
    rounding: Rounding,
) -> [[__m512; 2]; R] {
    // SAFETY: there are sixteen numbers to read.
    let values = unsafe { _mm512_loadu_ps(values.as_ptr()) };
    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    for ((bytes, [scale, minimum]), x) in parts {
        let table = _mm512_add_ps(_mm512_mul_ps(values, _mm512_set1_ps(*scale)), _mm512_set1_ps(*minimum));
        let table = rounded(table, rounding);
        for (bytes, x) in bytes.as_chunks().0.iter().zip(x.as_chunks::<R>().0) {
            let lower = _mm512_cvtepu8_epi32(sixteen(bytes));
            let upper = _mm512_srli_epi32::<4>(lower);
            // What stands above four bits does not count.
            let w = [_mm512_permutexvar_ps(lower, table), _mm512_permutexvar_ps(upper, table)];
            add_products(w, x, &mut sums);
        }
    }
    sums
}

#[inline]
#[target_feature(enable = "avx512f")]
fn rounded(x: __m512, rounding: Rounding) -> __m512 {
    match rounding {
        Rounding::F32 => x,
        Rounding::F16 => _mm512_cvtph_ps(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x)),
        Rounding::Bf16 => {
            let bits = _mm512_castps_si512(x);
            let even = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), even);
            _mm512_castsi512_ps(_mm512_and_si512(up, _mm512_set1_epi32(!0xffff)))
        }
    }
}

/// The sums of the products of R rows and an output in eight bits.
#[inline]
#[target_feature(enable = "avx512f,fma")]
fn integers<'a, const R: usize>(parts: impl Iterator<Item = Part<'a>>) -> [[__m512; 2]; R] {
    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    for ((bytes, [scale, minimum]), x) in parts {
        let (scale, minimum) = (_mm512_set1_ps(*scale), _mm512_set1_ps(*minimum));
        for ([a, b], x) in bytes.as_chunks().0.as_chunks::<2>().0.iter().zip(x.as_chunks::<R>().0) {
            let a = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(sixteen(a)));
            let b = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(sixteen(b)));
            let w = [_mm512_fmadd_ps(a, scale, minimum), _mm512_fmadd_ps(b, scale, minimum)];
            add_products(w, x, &mut sums);
        }
    }
    sums
}

#[inline]
#[target_feature(enable = "avx512f")]
fn sixteen(bytes: &[u8; LANES]) -> __m128i {
    // SAFETY: there are sixteen bytes to read.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// Adds the products of 32 weights and those of each of R rows.
#[inline]
#[target_feature(enable = "avx512f,fma")]
fn add_products<const R: usize>(w: [__m512; 2], x: &[Group; R], sums: &mut [[__m512; 2]; R]) {
    for (x, [a, b]) in x.iter().zip(sums) {
        // SAFETY: there are two times sixteen numbers to read.
        let x = unsafe { [_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().wrapping_add(LANES))] };
        *a = _mm512_fmadd_ps(w[0], x[0], *a);
        *b = _mm512_fmadd_ps(w[1], x[1], *b);
    }
}
