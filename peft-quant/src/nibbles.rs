//! The loops of four-bit codecs: values to ranks to nibbles, and nibbles to values.

use crate::codebook::Tables;
#[cfg(target_arch = "x86_64")]
use crate::wide::Registers;
use crate::wide::{Width, wide};

wide! {
    pub(crate) fn multiply(x: &mut [f32], by: f32) {
        for x in x {
            *x *= by;
        }
    }
}

wide! {
    /// How many bounds are below each value.
    pub(crate) fn rank(x: &[f32], bounds: &[f32; 15], ranks: &mut [u8]) {
        for (x, rank) in x.iter().zip(ranks) {
            let mut below = 0;
            for bound in bounds {
                below += (*x > *bound) as i32;
            }
            *rank = below as u8;
        }
    }
}

wide! {
    pub(crate) fn pack(ranks: &[u8], codes: &[u8; 256], bytes: &mut [u8]) {
        for (ranks, byte) in ranks.chunks_exact(2).zip(bytes) {
            *byte = codes[(ranks[0] << 4 | ranks[1]) as usize];
        }
    }
}

/// Fills `out` with the values of the codes in `bytes`, each block's times its scale.
pub(crate) fn decode(width: Width, tables: &Tables, bytes: &[u8], block: usize, scales: &[f32], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    match width.registers() {
        Registers::Portable => {}
        // SAFETY: a `Width` is only made where the machine has these registers.
        Registers::Avx2 => return unsafe { avx2(tables, bytes, block, scales, out) },
        // SAFETY: as above.
        Registers::Avx512 => return unsafe { avx512(tables, bytes, block, scales, out) },
    }
    let _ = width;
    blocks(bytes, block, scales, out).for_each(|((out, bytes), scale)| portable(tables, bytes, *scale, out));
}

/// Numbers, codes and scale of each block.
fn blocks<'a>(
    bytes: &'a [u8],
    block: usize,
    scales: &'a [f32],
    out: &'a mut [f32],
) -> impl Iterator<Item = ((&'a mut [f32], &'a [u8]), &'a f32)> {
    out.chunks_mut(block).zip(bytes.chunks(block / 2)).zip(scales)
}

/// A last single value has a byte of its own.
fn portable(tables: &Tables, bytes: &[u8], scale: f32, out: &mut [f32]) {
    for (byte, out) in bytes.iter().zip(out.chunks_mut(2)) {
        out.iter_mut().zip(&tables.values[*byte as usize]).for_each(|(out, value)| *out = value * scale);
    }
}

/// Eight values at a time, from the halves of the table, times the block's scale, by a code's lower three bits and of the two by the fourth.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2(tables: &Tables, bytes: &[u8], block: usize, scales: &[f32], out: &mut [f32]) {
    use std::arch::x86_64::*;
    let halves = [0, 8].map(|half| {
        let half: &[f32; 8] = tables.of[half..half + 8].as_array().expect("eight");
        // SAFETY: there are eight numbers to read.
        unsafe { _mm256_loadu_ps(half.as_ptr()) }
    });
    for ((out, bytes), scale) in blocks(bytes, block, scales, out) {
        let halves = halves.map(|half| _mm256_mul_ps(half, _mm256_set1_ps(*scale)));
        let (whole, rest) = out.as_chunks_mut::<8>();
        let (whole_bytes, rest_bytes) = bytes.split_at(whole.len() * 4);
        for (out, bytes) in whole.iter_mut().zip(whole_bytes.as_chunks().0) {
            let bytes = _mm_cvtsi32_si128(i32::from_le_bytes(*bytes));
            let codes = _mm256_cvtepu8_epi32(_mm_unpacklo_epi8(_mm_srli_epi16::<4>(bytes), bytes));
            let upper = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes));
            let [low, high] = halves.map(|half| _mm256_permutevar8x32_ps(half, codes));
            // SAFETY: there is room for eight numbers.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), _mm256_blendv_ps(low, high, upper)) };
        }
        portable(tables, rest_bytes, *scale, rest);
    }
}

/// Sixteen values at a time, from the table, times the block's scale, by a code's four bits; what stands above them does not count.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn avx512(tables: &Tables, bytes: &[u8], block: usize, scales: &[f32], out: &mut [f32]) {
    use std::arch::x86_64::*;
    // SAFETY: there are sixteen numbers to read.
    let table = unsafe { _mm512_loadu_ps(tables.of.as_ptr()) };
    for ((out, bytes), scale) in blocks(bytes, block, scales, out) {
        let table = _mm512_mul_ps(table, _mm512_set1_ps(*scale));
        let (whole, rest) = out.as_chunks_mut::<16>();
        let (whole_bytes, rest_bytes) = bytes.split_at(whole.len() * 8);
        for (out, bytes) in whole.iter_mut().zip(whole_bytes.as_chunks().0) {
            let bytes = _mm_cvtsi64_si128(i64::from_le_bytes(*bytes));
            let codes = _mm512_cvtepu8_epi32(_mm_unpacklo_epi8(_mm_srli_epi16::<4>(bytes), bytes));
            // SAFETY: there is room for sixteen numbers.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), _mm512_permutexvar_ps(codes, table)) };
        }
        portable(tables, rest_bytes, *scale, rest);
    }
}
