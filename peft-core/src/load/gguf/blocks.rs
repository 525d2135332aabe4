//! The element types of GGUF. Quantized ones come in blocks of 32 or 256 elements that lie along a row.
//!
//! The order of the operations is that of the reference (the Python package `gguf`), so that every bit is its.

use std::ops::Range;

use half::f16;

use crate::codes::{Codes, Form, INTEGERS, Order, Rounding};
use crate::{Error, Result};

/// An element type.
#[derive(Debug)]
pub(in crate::load) struct Kind {
    /// Its number in files.
    pub(super) id: u32,
    /// Its name.
    pub(super) name: &'static str,
    /// Elements of a block.
    pub(super) elements: usize,
    /// Bytes of a block.
    pub(super) bytes: usize,
    /// Of a quantized type the decoder of whole blocks, and where a block has its numbers of f16.
    quantized: Option<(Decode, &'static [usize])>,
}

type Decode = fn(&[u8], &mut [f32]);

const fn plain(id: u32, name: &'static str, bytes: usize) -> Kind {
    Kind { id, name, elements: 1, bytes, quantized: None }
}

const fn blocks(
    id: u32,
    name: &'static str,
    [elements, bytes]: [usize; 2],
    decode: Decode,
    halves: &'static [usize],
) -> Kind {
    Kind { id, name, elements, bytes, quantized: Some((decode, halves)) }
}

/// The most elements of a block.
const LARGEST: usize = 256;

/// The types that are read.
pub(super) const KINDS: [Kind; 14] = [
    plain(0, "F32", 4),
    plain(1, "F16", 2),
    blocks(2, "Q4_0", [32, 18], |bytes, out| decode(bytes, out, q4_0), &[0]),
    blocks(3, "Q4_1", [32, 20], |bytes, out| decode(bytes, out, q4_1), &[0, 2]),
    blocks(6, "Q5_0", [32, 22], |bytes, out| decode(bytes, out, q5_0), &[0]),
    blocks(7, "Q5_1", [32, 24], |bytes, out| decode(bytes, out, q5_1), &[0, 2]),
    blocks(8, "Q8_0", [32, 34], |bytes, out| decode(bytes, out, q8_0), &[0]),
    blocks(12, "Q4_K", [256, 144], |bytes, out| decode(bytes, out, q4_k), &[0, 2]),
    blocks(13, "Q5_K", [256, 176], |bytes, out| decode(bytes, out, q5_k), &[0, 2]),
    blocks(14, "Q6_K", [256, 210], |bytes, out| decode(bytes, out, q6_k), &[208]),
    plain(26, "I32", 4),
    plain(27, "I64", 8),
    plain(28, "F64", 8),
    plain(30, "BF16", 2),
];

/// A quantized type by its name.
pub(in crate::load) fn quantized(dtype: &str) -> Option<&'static Kind> {
    static ALL: [Kind; 14] = KINDS;
    ALL.iter().find(|kind| kind.name == dtype && kind.quantized.is_some())
}

impl Kind {
    /// The bytes of a block.
    pub(in crate::load) fn unit(&self) -> usize {
        self.bytes
    }

    /// The values of whole blocks of a quantized type.
    pub(in crate::load) fn decoded(&self, bytes: &[u8]) -> Vec<f32> {
        let mut values = vec![0.; bytes.len() / self.bytes * self.elements];
        if let Some((decode, _)) = self.quantized {
            decode(bytes, &mut values);
        }
        values
    }
}

/// A matrix in blocks of GGUF, as its file has it.
#[derive(Clone, Debug)]
pub struct Blocks {
    kind: &'static Kind,
    dims: [usize; 2],
    bytes: Vec<u8>,
}

impl Blocks {
    /// The bytes of a matrix `[out, in]` whose blocks lie along a row, of a type by its name (`Q4_K`).
    ///
    /// # Errors
    /// If there is no such type of blocks, rows are not whole blocks, there is another number of bytes, or a scale is not finite.
    pub fn new(dtype: &str, dims: [usize; 2], bytes: Vec<u8>) -> Result<Self> {
        let Some((kind, (_, halves))) = quantized(dtype).and_then(|kind| Some((kind, kind.quantized?))) else {
            let known: Vec<_> = KINDS.iter().filter(|kind| kind.quantized.is_some()).map(|kind| kind.name).collect();
            return Err(Error::config("type", dtype, format!("one of {}", known.join(", "))));
        };
        let [rows, row] = dims;
        if rows == 0 || row == 0 || !row.is_multiple_of(kind.elements) {
            let expected = format!("rows of whole blocks of {} elements", kind.elements);
            return Err(Error::config("shape", format!("{dims:?}"), expected));
        }
        let expected = (row / kind.elements * kind.bytes).checked_mul(rows);
        if expected != Some(bytes.len()) {
            let expected = expected.map_or("a shape that fits memory".into(), |bytes| format!("{bytes} for {dims:?}"));
            return Err(Error::config("bytes", bytes.len(), expected));
        }
        for (i, block) in bytes.chunks(kind.bytes).enumerate() {
            if let Some(scale) = halves.iter().map(|at| half(block, *at)).find(|scale| !scale.is_finite()) {
                return Err(Error::config(format!("block {i}: scale"), scale, "a finite number"));
            }
        }
        Ok(Blocks { kind, dims, bytes })
    }

    /// The name of the type.
    pub fn kind(&self) -> &'static str {
        self.kind.name
    }

    /// `[out, in]`.
    pub fn dims(&self) -> [usize; 2] {
        self.dims
    }

    /// The bytes that it takes.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The weights of some outputs as codes, with scale and minimum of each block ([`Packed::codes`](crate::Packed::codes)): those of Q4_0,
    /// Q4_1 and Q8_0.
    pub fn codes(&self, rows: Range<usize>, scales: &mut Vec<[f32; 2]>) -> Option<Codes<'_>> {
        let four = |values| Form::Four { values, order: Order::Halves, rounding: Rounding::F32 };
        let (form, has_minimum) = match self.kind.name {
            "Q4_0" => (four(&CENTERED), false),
            "Q4_1" => (four(&INTEGERS), true),
            "Q8_0" => (Form::Eight, false),
            _ => return None,
        };
        let (size, stride) = (self.kind.elements, self.kind.bytes);
        let row = self.dims[1] / size * stride;
        let bytes = &self.bytes[rows.start * row..rows.end * row];
        scales.clear();
        let blocks = bytes.chunks_exact(stride);
        match has_minimum {
            true => scales.extend(blocks.map(|block| [finite_half(block, 0), finite_half(block, 2)])),
            false => scales.extend(blocks.map(|block| [finite_half(block, 0), 0.])),
        }
        Some(Codes { form, bytes, block: size, stride, before: if has_minimum { 4 } else { 2 } })
    }

    /// The weights that some outputs have for some inputs, row by row into a slice of that length.
    ///
    /// # Panics
    /// If there is no such tile, or the slice has another length.
    pub fn decode_tile(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [f32]) {
        assert_eq!(out.len(), rows.len() * columns.len(), "room for the tile");
        let (Some((decode, _)), size) = (self.kind.quantized, self.kind.elements) else { return };
        let row_blocks = self.dims[1] / size;
        let bytes = |row: usize, blocks: Range<usize>| {
            let [start, end] = [blocks.start, blocks.end].map(|block| (row * row_blocks + block) * self.kind.bytes);
            &self.bytes[start..end]
        };
        for (row, mut out) in rows.zip(out.chunks_exact_mut(columns.len().max(1))) {
            let mut column = columns.start;
            while !out.is_empty() {
                let (block, within) = (column / size, column % size);
                let here = if within == 0 && out.len() >= size {
                    let blocks = out.len() / size;
                    decode(bytes(row, block..block + blocks), &mut out[..blocks * size]);
                    blocks * size
                } else {
                    let (mut whole, here) = ([0.; LARGEST], out.len().min(size - within));
                    decode(bytes(row, block..block + 1), &mut whole[..size]);
                    out[..here].copy_from_slice(&whole[within..within + here]);
                    here
                };
                (out, column) = (&mut out[here..], column + here);
            }
        }
    }
}

/// The codes of Q4_0 less 8.
static CENTERED: [f32; 16] = {
    let mut values = INTEGERS;
    let mut i = 0;
    while i < 16 {
        values[i] -= 8.;
        i += 1;
    }
    values
};

fn decode<const B: usize, const N: usize>(bytes: &[u8], out: &mut [f32], block: impl Fn(&[u8; B], &mut [f32; N])) {
    for (bytes, out) in bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        block(bytes, out);
    }
}

fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The same where it is finite, in steps that a compiler puts in line: magnitudes have the bits of f32's, but for their exponents' bias.
#[inline(always)]
fn finite_half(block: &[u8], at: usize) -> f32 {
    let bits = u32::from(u16::from_le_bytes([block[at], block[at + 1]]));
    let by = f32::from_bits((127 + 127 - 15) << 23);
    (f32::from_bits((bits & 0x7fff) << 13) * by).copysign(f32::from_bits(bits << 16))
}

/// The low four bits are elements 0 to 15, the high ones 16 to 31; `high` gives each its fifth bit (as 16).
fn nibbles(bytes: &[u8], out: &mut [f32; 32], high: impl Fn(usize) -> u8, value: impl Fn(u8) -> f32) {
    for (j, byte) in bytes.iter().enumerate() {
        out[j] = value(byte & 15 | high(j));
        out[j + 16] = value(byte >> 4 | high(j + 16));
    }
}

fn fifth_bits(block: &[u8], at: usize) -> impl Fn(usize) -> u8 {
    let bits = u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    move |j| (bits >> j & 1) as u8 * 16
}

fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half(block, 0);
    nibbles(&block[2..], out, |_| 0, |q| d * (f32::from(q) - 8.));
}

fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    nibbles(&block[4..], out, |_| 0, |q| d * f32::from(q) + m);
}

fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half(block, 0);
    nibbles(&block[6..], out, fifth_bits(block, 2), |q| d * (f32::from(q) - 16.));
}

fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    nibbles(&block[8..], out, fifth_bits(block, 4), |q| d * f32::from(q) + m);
}

fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half(block, 0);
    for (value, byte) in out.iter_mut().zip(&block[2..]) {
        *value = d * f32::from(*byte as i8);
    }
}

/// The 6-bit scale and minimum of the sub-block j of 8, out of the 12 bytes that pack them.
fn scale_and_min(packed: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4)
    };
    (scale.into(), min.into())
}

/// Eight sub-blocks of 32, each with a scale and a minimum; two of them share 32 bytes. `high` gives the element l of
/// sub-block j its fifth bit (as 16).
fn sub_blocks(block: &[u8], quants: &[u8], out: &mut [f32; 256], high: impl Fn(usize, usize) -> u8) {
    let (d, d_min) = (half(block, 0), half(block, 2));
    for (j, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_and_min(&block[4..16], j);
        let (scale, min) = (d * scale, d_min * min);
        for (l, value) in out.iter_mut().enumerate() {
            let q = quants[j / 2 * 32 + l] >> (j % 2 * 4) & 15 | high(j, l);
            *value = scale * f32::from(q) - min;
        }
    }
}

fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    sub_blocks(block, &block[16..], out, |_, _| 0);
}

fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    sub_blocks(block, &block[48..], out, |j, l| (block[16 + l] >> j & 1) * 16);
}

/// Two halves of 128, each four quarters of 32: a quarter has its low four bits in one half of the bytes of 64
/// elements, and its high two in a byte that all four share. Every 16 elements have a signed scale.
fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let (low, high, scales, d) = (&block[..128], &block[128..192], &block[192..208], half(block, 208));
    for (i, value) in out.iter_mut().enumerate() {
        let (part, quarter, l) = (i / 128, i % 128 / 32, i % 32);
        let low = low[part * 64 + quarter % 2 * 32 + l] >> (quarter / 2 * 4) & 15;
        let high = high[part * 32 + l] >> (quarter * 2) & 3;
        let scale = d * f32::from(scales[i / 16] as i8);
        *value = scale * (f32::from(low | high << 4) - 32.);
    }
}
