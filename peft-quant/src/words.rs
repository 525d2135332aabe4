//! Codes in words of 32 bits, as GPTQ's and AWQ's files have them.

use half::f16;
use peft_core::{Error, Result};

use crate::wide::{Width, wide};

/// The tensors of a linear map in a file, each with its last axis fastest.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Words {
    /// The codes: of GPTQ `[in * bits / 32, out]`, of AWQ `[in, out * bits / 32]`.
    pub qweight: Vec<u32>,
    /// The zero points, `[groups, out * bits / 32]`.
    pub qzeros: Vec<u32>,
    /// `[groups, out]`.
    pub scales: Vec<f16>,
    /// The group of each input, if the file says: GPTQ.
    pub g_idx: Option<Vec<i32>>,
}

/// How codes and zero points lie in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// The lowest bits first, zero points less one: a zero point is at least 1. AutoGPTQ's `checkpoint_format` "gptq".
    Gptq,
    /// The lowest bits first: "gptq_v2".
    GptqV2,
    /// Four bits, packed along outputs, of eight in the order 0, 2, 4, 6, 1, 3, 5, 7: AutoAWQ's "gemm".
    Awq,
}

/// Which of eight outputs the fields of AWQ's words have, the lowest bits first.
pub(crate) const AWQ: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

impl Packing {
    pub(crate) fn check(self, dims: [usize; 2], bits: u32) -> Result<()> {
        if self == Packing::Awq && bits != 4 {
            return Err(Error::config("bits", bits, "4, which is what AWQ packs"));
        }
        expect_whole("outputs", dims[0], bits)
    }

    /// Codes output by output, and zero points `[out, groups]`.
    pub(crate) fn unpack(
        self,
        [rows, columns]: [usize; 2],
        bits: u32,
        groups: usize,
        from: &Words,
    ) -> (Vec<u32>, Vec<f32>) {
        let width = Width::best();
        let unpacked = |words: &[u32], count: usize| {
            let mut codes = vec![0; count];
            unpack(width, bits, words, &mut codes);
            if self == Packing::Awq {
                codes.chunks_exact_mut(8).for_each(|fields| {
                    let found: [u8; 8] = std::array::from_fn(|field| fields[field]);
                    AWQ.iter().zip(found).for_each(|(output, code)| fields[*output] = code);
                });
            }
            codes
        };
        let codes = if self == Packing::Awq {
            let codes = transposed(&unpacked(&from.qweight, rows * columns), rows);
            let mut words = vec![0; count(rows * columns, bits)];
            pack(Width::best(), bits, &codes, &mut words);
            words
        } else {
            transposed(&from.qweight, rows)
        };
        let less = if self == Packing::Gptq { 1. } else { 0. };
        let zeros = transposed(&unpacked(&from.qzeros, rows * groups), rows);
        (codes, zeros.into_iter().map(|zero| f32::from(zero) + less).collect())
    }
}

/// The words of some codes that fill them.
pub(crate) fn count(codes: usize, bits: u32) -> usize {
    codes / 32 * bits as usize + codes % 32 * bits as usize / 32
}

/// Refuses a number of codes that leaves a word, of three bits three words, half empty.
pub(crate) fn expect_whole(what: &str, codes: usize, bits: u32) -> Result<()> {
    let whole = if bits == 3 { 32 } else { 32 / bits as usize };
    if codes.is_multiple_of(whole) {
        return Ok(());
    }
    Err(Error::config(what, codes, format!("a multiple of {whole}, which whole words of {bits} bits hold")))
}

/// The transposed matrix of one whose rows have this length.
pub(crate) fn transposed<T: Copy>(x: &[T], row: usize) -> Vec<T> {
    (0..row).flat_map(|column| x[column..].iter().step_by(row).copied()).collect()
}

/// Packs codes, the lowest bits first.
pub(crate) fn pack(width: Width, bits: u32, codes: &[u8], words: &mut [u32]) {
    match bits {
        2 => pack_2(width, codes, words),
        3 => pack_3(codes, words),
        4 => pack_4(width, codes, words),
        _ => words.iter_mut().zip(codes.as_chunks().0).for_each(|(word, codes)| *word = u32::from_le_bytes(*codes)),
    }
}

wide! {
    fn pack_2(codes: &[u8], words: &mut [u32]) {
        for (codes, word) in codes.as_chunks::<16>().0.iter().zip(words) {
            *word = 0;
            for (i, code) in codes.iter().enumerate() {
                *word |= u32::from(*code) << (2 * i);
            }
        }
    }
}

wide! {
    fn pack_4(codes: &[u8], words: &mut [u32]) {
        for (codes, word) in codes.as_chunks::<8>().0.iter().zip(words) {
            *word = 0;
            for (i, code) in codes.iter().enumerate() {
                *word |= u32::from(*code) << (4 * i);
            }
        }
    }
}

/// Sixteen codes are 48 bits, and 32 are three words.
fn pack_3(codes: &[u8], words: &mut [u32]) {
    for (codes, words) in codes.as_chunks::<32>().0.iter().zip(words.as_chunks_mut::<3>().0) {
        let (mut low, mut high) = (0, 0);
        for i in 0..16 {
            low |= u64::from(codes[i]) << (3 * i);
            high |= u64::from(codes[16 + i]) << (3 * i);
        }
        *words = [low as u32, (low >> 32 | high << 16) as u32, (high >> 16) as u32];
    }
}

/// Unpacks codes, the lowest bits first.
pub(crate) fn unpack(width: Width, bits: u32, words: &[u32], codes: &mut [u8]) {
    match bits {
        2 => unpack_2(width, words, codes),
        3 => unpack_3(words, codes),
        4 => unpack_4(width, words, codes),
        _ => words
            .iter()
            .zip(codes.chunks_exact_mut(4))
            .for_each(|(word, codes)| codes.copy_from_slice(&word.to_le_bytes())),
    }
}

wide! {
    fn unpack_2(words: &[u32], codes: &mut [u8]) {
        for (word, codes) in words.iter().zip(codes.chunks_exact_mut(16)) {
            for (i, code) in codes.iter_mut().enumerate() {
                *code = (*word >> (2 * i)) as u8 & 3;
            }
        }
    }
}

wide! {
    fn unpack_4(words: &[u32], codes: &mut [u8]) {
        for (word, codes) in words.iter().zip(codes.chunks_exact_mut(8)) {
            for (i, code) in codes.iter_mut().enumerate() {
                *code = (*word >> (4 * i)) as u8 & 15;
            }
        }
    }
}

/// The reverse of [`pack_3`].
fn unpack_3(words: &[u32], codes: &mut [u8]) {
    for (words, codes) in words.chunks_exact(3).zip(codes.chunks_exact_mut(32)) {
        let low = u64::from(words[0]) | u64::from(words[1]) << 32;
        let high = u64::from(words[1]) >> 16 | u64::from(words[2]) << 16;
        for i in 0..16 {
            codes[i] = (low >> (3 * i)) as u8 & 7;
            codes[16 + i] = (high >> (3 * i)) as u8 & 7;
        }
    }
}
