//! NF4 and FP4, four bits a weight, as bitsandbytes stores them.
//!
//! A tensor is one run of numbers, its last axis fastest, cut into blocks of 32 to 4096. Each has its largest magnitude, its scale, in
//! f32; a weight is the nearest of 16 fixed values times that. The first of two weights is in the upper half of a byte.
//!
//! Ties and zeros are those of bitsandbytes on a CPU (0.50): a value halfway between two goes to the lower one. In FP4 that gives a
//! tiny positive number the code of -0, which decodes to 0; CUDA's ties go to the smaller magnitude. A last block that is not
//! full is divided by its scale, the others are multiplied by its reciprocal, and its scale is at least 1e-38.

use std::ops::Range;

use peft_core::Result;
use peft_core::codes::{Codes, Form, Order, Rounding};
use rayon::prelude::*;

use crate::Element;
use crate::blocks::{self, LARGEST, PIECE, SMALLEST, UNIT};
use crate::codebook::{Codebook, Tables};
use crate::nibbles;
use crate::scales::Scales;
use crate::wide::Width;

/// The least block.
const LEAST: usize = 32;

/// A tensor of four bits a weight.
#[derive(Clone, Debug, PartialEq)]
pub struct FourBit {
    codebook: Codebook,
    block: usize,
    dims: Vec<usize>,
    bytes: Vec<u8>,
    scales: Scales,
}

impl FourBit {
    /// Encodes a tensor, its last axis fastest.
    ///
    /// # Errors
    /// If the extents do not give the number of values, the block is not a power of two from 32 to 4096, or a value is not finite.
    pub fn encode<E: Element>(values: &[E], dims: &[usize], codebook: Codebook, block: usize) -> Result<Self> {
        blocks::expect_block("blocksize", block, LEAST)?;
        let count = blocks::elements(dims)?;
        blocks::expect_len("weights", values.len(), count, &format!("of the shape {dims:?}"))?;
        let (mut bytes, mut scales) = (vec![0; count.div_ceil(2)], vec![0.; count.div_ceil(block)]);
        let width = Width::best();
        let units =
            values.par_chunks(UNIT).zip(bytes.par_chunks_mut(UNIT / 2)).zip(scales.par_chunks_mut(UNIT / block));
        let bad = units.enumerate().filter_map(|(unit, ((values, bytes), scales))| {
            let bad = encode_unit(width, values, codebook.tables(), block, bytes, scales)?;
            Some((unit * UNIT + bad.0, bad.1))
        });
        match bad.min_by_key(|(index, _)| *index) {
            Some((index, value)) => Err(blocks::not_finite("weights", index, value)),
            None => Ok(FourBit { codebook, block, dims: dims.to_vec(), bytes, scales: Scales::Plain(scales) }),
        }
    }

    /// From its parts, as a file has them.
    ///
    /// # Errors
    /// If the number of bytes or scales is not that of the extents, the block is not a power of two from 32 to 4096, or a scale is not
    /// finite.
    pub fn from_parts(
        codebook: Codebook,
        block: usize,
        dims: Vec<usize>,
        bytes: Vec<u8>,
        scales: Scales,
    ) -> Result<Self> {
        blocks::expect_block("blocksize", block, LEAST)?;
        let count = blocks::elements(&dims)?;
        blocks::expect_len("weight", bytes.len(), count.div_ceil(2), &format!("two weights a byte of {dims:?}"))?;
        let why = format!("one for each {block} of {count} weights");
        blocks::expect_len("absmax", scales.len(), count.div_ceil(block), &why)?;
        scales.expect_finite()?;
        Ok(FourBit { codebook, block, dims, bytes, scales })
    }

    /// The same with scales of eight bits ([`Scales::nested`]).
    ///
    /// # Errors
    /// If they are so already.
    pub fn with_nested_scales(self) -> Result<Self> {
        Ok(FourBit { scales: self.scales.nested()?, ..self })
    }

    /// The 16 values.
    pub fn codebook(&self) -> Codebook {
        self.codebook
    }

    /// Weights for each scale.
    pub fn block(&self) -> usize {
        self.block
    }

    /// The extents, the fastest last: `[out, in]` of a linear map.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// Two codes a byte. With an odd number of weights the last byte's lower half is the code of 0.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// One for each block.
    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// The number of weights.
    pub fn count(&self) -> usize {
        self.dims.iter().product()
    }

    /// The bytes that codes and scales take.
    pub fn size(&self) -> usize {
        self.bytes.len() + self.scales.size()
    }

    /// All weights.
    pub fn decode<E: Element>(&self) -> Vec<E> {
        let mut out = E::zeros(self.count());
        self.decode_run(0, &mut out);
        out
    }

    /// All weights, into a slice of that length.
    ///
    /// # Errors
    /// If it has another.
    pub fn decode_into<E: Element>(&self, out: &mut [E]) -> Result<()> {
        blocks::expect_len("the slice to decode into", out.len(), self.count(), "the number of weights")?;
        self.decode_run(0, out);
        Ok(())
    }

    /// Some rows (all axes but the first are a row), into a slice of that length.
    ///
    /// # Errors
    /// If there are no such rows, or the slice has another length.
    pub fn decode_rows<E: Element>(&self, rows: Range<usize>, out: &mut [E]) -> Result<()> {
        let start = blocks::expect_rows(&self.dims, &rows, out.len())?;
        self.decode_run(start, out);
        Ok(())
    }

    /// Some columns of some rows of a matrix, on this thread.
    pub(crate) fn decode_tile(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [f32]) {
        let width = Width::best();
        for (row, out) in rows.zip(out.chunks_exact_mut(columns.len())) {
            self.decode_unit(width, row * self.dims[1] + columns.start, out);
        }
    }

    /// Some rows of a matrix as codes, if a row is whole blocks.
    pub(crate) fn rounded_codes(
        &self,
        rounding: Rounding,
        rows: Range<usize>,
        scales: &mut Vec<[f32; 2]>,
    ) -> Option<Codes<'_>> {
        let (columns, values) = (self.dims[1], &self.codebook.tables().of);
        if !columns.is_multiple_of(self.block) {
            return None;
        }
        let row_blocks = columns / self.block;
        self.scales.pairs(rows.start * row_blocks..rows.end * row_blocks, scales);
        Some(Codes {
            form: Form::Four { values, order: Order::UpperFirst, rounding },
            bytes: &self.bytes[rows.start * columns / 2..rows.end * columns / 2],
            block: self.block,
            stride: self.block / 2,
            before: 0,
        })
    }

    /// The weights from `start` on, as many as there is room for.
    fn decode_run<E: Element>(&self, start: usize, out: &mut [E]) {
        let width = Width::best();
        out.par_chunks_mut(UNIT).enumerate().for_each(|(unit, out)| self.decode_unit(width, start + unit * UNIT, out));
    }

    fn decode_unit<E: Element>(&self, width: Width, start: usize, out: &mut [E]) {
        let before = (start.next_multiple_of(self.block) - start).min(out.len());
        let (before, out) = out.split_at_mut(before);
        for (i, out) in before.chunks_mut(PIECE).enumerate() {
            E::fill(out, |out| self.decode_within(start + i * PIECE, out));
        }
        let mut start = start + before.len();
        let mut scales = [0.; PIECE / LEAST];
        for out in out.chunks_mut(PIECE) {
            let (block, count) = (start / self.block, out.len());
            let scales = &mut scales[..count.div_ceil(self.block)];
            self.scales.decode_run(block, scales);
            let bytes = &self.bytes[start / 2..];
            E::fill(out, |out| nibbles::decode(width, self.codebook.tables(), bytes, self.block, scales, out));
            start += count;
        }
    }

    /// Decodes weights of one block.
    fn decode_within(&self, start: usize, out: &mut [f32]) {
        let (values, scale) = (&self.codebook.tables().values, self.scales.get(start / self.block));
        for (i, out) in (start..).zip(out) {
            *out = values[self.bytes[i / 2] as usize][i % 2] * scale;
        }
    }
}

/// Encodes whole blocks, the last of which may be short. Gives the first value that is not finite.
fn encode_unit<E: Element>(
    width: Width,
    values: &[E],
    tables: &Tables,
    block: usize,
    bytes: &mut [u8],
    scales: &mut [f32],
) -> Option<(usize, f32)> {
    let (mut buffer, mut ranks) = ([0.; LARGEST], [0; LARGEST]);
    for (i, values) in values.chunks(block).enumerate() {
        let x = &mut buffer[..values.len()];
        E::widen(values, x);
        let Some(largest) = blocks::absmax(width, x) else {
            let index = x.iter().position(|x| !x.is_finite())?;
            return Some((i * block + index, x[index]));
        };
        let full = values.len() == block;
        scales[i] = if full { largest } else { largest.max(SMALLEST) };
        let largest = largest.max(SMALLEST);
        if full {
            nibbles::multiply(width, x, 1. / largest);
        } else {
            x.iter_mut().for_each(|x| *x /= largest);
        }
        let count = values.len();
        nibbles::rank(width, x, &tables.bounds, &mut ranks[..count]);
        if count % 2 == 1 {
            nibbles::rank(width, &[0.], &tables.bounds, &mut ranks[count..=count]);
        }
        let start = i * block / 2;
        nibbles::pack(
            width,
            &ranks[..count.next_multiple_of(2)],
            &tables.codes,
            &mut bytes[start..start + count.div_ceil(2)],
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_values_are_the_same_at_every_width() {
        let x: Vec<f32> = (0..1001).map(|i| ((i * 7919) % 1999) as f32 / 333. - 3.).collect();
        for (codebook, block) in [(Codebook::Nf4, 64), (Codebook::Nf4, 512), (Codebook::Fp4, 32), (Codebook::Fp4, 128)]
        {
            let all = Width::all().into_iter().map(|width| {
                let (mut bytes, mut scales) = (vec![0; 501], vec![0.; 1001usize.div_ceil(block)]);
                assert_eq!(encode_unit(width, &x, codebook.tables(), block, &mut bytes, &mut scales), None);
                let mut values = vec![0.; 1001];
                nibbles::decode(width, codebook.tables(), &bytes, block, &scales, &mut values);
                (bytes, scales, values)
            });
            let all: Vec<_> = all.collect();
            assert!(all.iter().all(|found| *found == all[0]));
        }
    }
}
