//! NF4 and FP4, four bits a weight, as bitsandbytes stores them.
//!
//! A tensor is one run of numbers, its last axis fastest, cut into blocks of 32 to 4096. Each has its largest magnitude, its scale, in
//! f32; a weight is the nearest of 16 fixed values times that. The first of two weights is in the upper half of a byte.
//!
//! Ties and zeros are those of bitsandbytes on a CPU (0.50): a value halfway between two goes to the lower one. In FP4 that gives a
//! tiny positive number the code of -0, which decodes to 0; CUDA's ties go to the smaller magnitude. A last block that is not
//! full is divided by its scale, the others are multiplied by its reciprocal, and its scale is at least 1e-38.

use std::ops::Range;

use peft_core::{Error, Result};
use rayon::prelude::*;

use crate::Element;
use crate::blocks::{self, LARGEST, SMALLEST, UNIT};
use crate::scales::Scales;
use crate::wide::{Width, wide};

/// The 16 values that a weight can be of its block's largest magnitude.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codebook {
    /// NormalFloat: quantiles of a normal distribution, with 0. Dettmers et al., "QLoRA", 2023.
    Nf4,
    /// bitsandbytes' four-bit float: a sign and eight magnitudes. It is not OCP's E2M1, and its codes are not in the order of its values.
    Fp4,
}

const NF4: [f32; 16] = [
    -1.0,
    -0.6961928,
    -0.52507305,
    -0.3949175,
    -0.28444138,
    -0.18477343,
    -0.091050036,
    0.0,
    0.0795803,
    0.1609302,
    0.2461123,
    0.33791524,
    0.44070983,
    0.562617,
    0.72295684,
    1.0,
];

const FP4: [f32; 16] = {
    let twelfths = [0., 0.0625, 8., 12., 4., 6., 2., 3.];
    let mut values = [0.; 16];
    let mut i = 0;
    while i < 8 {
        values[i] = twelfths[i] / 12.;
        values[i + 8] = if i == 0 { 0. } else { -values[i] };
        i += 1;
    }
    values
};

/// FP4's codes in the order of their values; of the two zeros the first is first.
const FP4_ORDER: [u8; 16] = [11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3];

/// What encoding and decoding look up.
struct Tables {
    /// The midpoints between neighbours, rising. As many as are below a value, so many values are.
    bounds: [f32; 15],
    /// Two ranks as a byte to two codes as a byte.
    codes: [u8; 256],
    /// A byte to its two values.
    values: [[f32; 2]; 256],
}

const fn tables(values: [f32; 16], order: [u8; 16]) -> Tables {
    let mut tables = Tables { bounds: [0.; 15], codes: [0; 256], values: [[0.; 2]; 256] };
    let mut i = 0;
    while i < 15 {
        tables.bounds[i] = (values[order[i] as usize] + values[order[i + 1] as usize]) / 2.;
        i += 1;
    }
    let mut byte = 0;
    while byte < 256 {
        tables.codes[byte] = order[byte >> 4] << 4 | order[byte & 15];
        tables.values[byte] = [values[byte >> 4], values[byte & 15]];
        byte += 1;
    }
    tables
}

static NF4_TABLES: Tables = tables(NF4, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
static FP4_TABLES: Tables = tables(FP4, FP4_ORDER);

impl Codebook {
    /// Its name in files: `nf4`, `fp4`.
    pub const fn name(self) -> &'static str {
        match self {
            Codebook::Nf4 => "nf4",
            Codebook::Fp4 => "fp4",
        }
    }

    /// The one of a name.
    ///
    /// # Errors
    /// If there is none.
    pub fn named(name: &str) -> Result<Self> {
        match name {
            "nf4" => Ok(Codebook::Nf4),
            "fp4" => Ok(Codebook::Fp4),
            other => Err(Error::config("quant_type", format!("{other:?}"), "nf4 or fp4")),
        }
    }

    /// The value of each code.
    pub const fn values(self) -> [f32; 16] {
        match self {
            Codebook::Nf4 => NF4,
            Codebook::Fp4 => FP4,
        }
    }

    fn tables(self) -> &'static Tables {
        match self {
            Codebook::Nf4 => &NF4_TABLES,
            Codebook::Fp4 => &FP4_TABLES,
        }
    }
}

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
        blocks::expect_block("blocksize", block, 32)?;
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
        blocks::expect_block("blocksize", block, 32)?;
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
        let mut out = vec![E::default(); self.count()];
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

    /// The weights from `start` on, as many as there is room for.
    fn decode_run<E: Element>(&self, start: usize, out: &mut [E]) {
        let width = Width::best();
        out.par_chunks_mut(UNIT).enumerate().for_each(|(unit, out)| self.decode_unit(width, start + unit * UNIT, out));
    }

    fn decode_unit<E: Element>(&self, width: Width, mut start: usize, mut out: &mut [E]) {
        let values = &self.codebook.tables().values;
        let mut buffer = [0.; LARGEST];
        while !out.is_empty() {
            let count = (self.block - start % self.block).min(out.len());
            let (head, rest) = out.split_at_mut(count);
            let scale = self.scales.get(start / self.block);
            // A run may begin with the lower half of a byte: the upper one is decoded too and left out.
            let skipped = start % 2;
            let bytes = &self.bytes[start / 2..(start + count).div_ceil(2)];
            decode_bytes(width, bytes, values, scale, &mut buffer);
            E::narrow(&buffer[skipped..skipped + count], head);
            (start, out) = (start + count, rest);
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
            multiply(width, x, 1. / largest);
        } else {
            x.iter_mut().for_each(|x| *x /= largest);
        }
        let count = values.len();
        rank(width, x, &tables.bounds, &mut ranks[..count]);
        if count % 2 == 1 {
            rank(width, &[0.], &tables.bounds, &mut ranks[count..=count]);
        }
        let start = i * block / 2;
        pack(width, &ranks[..count.next_multiple_of(2)], &tables.codes, &mut bytes[start..start + count.div_ceil(2)]);
    }
    None
}

wide! {
    fn multiply(x: &mut [f32], by: f32) {
        for x in x {
            *x *= by;
        }
    }
}

wide! {
    /// How many bounds are below each value.
    fn rank(x: &[f32], bounds: &[f32; 15], ranks: &mut [u8]) {
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
    fn pack(ranks: &[u8], codes: &[u8; 256], bytes: &mut [u8]) {
        for (ranks, byte) in ranks.chunks_exact(2).zip(bytes) {
            *byte = codes[(ranks[0] << 4 | ranks[1]) as usize];
        }
    }
}

wide! {
    fn decode_bytes(bytes: &[u8], values: &[[f32; 2]; 256], scale: f32, out: &mut [f32]) {
        for (byte, out) in bytes.iter().zip(out.chunks_exact_mut(2)) {
            let pair = &values[*byte as usize];
            out[0] = pair[0] * scale;
            out[1] = pair[1] * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_values_are_the_same_at_every_width() {
        let x: Vec<f32> = (0..1001).map(|i| ((i * 7919) % 1999) as f32 / 333. - 3.).collect();
        for (tables, block) in [(&NF4_TABLES, 64), (&NF4_TABLES, 512), (&FP4_TABLES, 32), (&FP4_TABLES, 128)] {
            let all = Width::all().into_iter().map(|width| {
                let (mut bytes, mut scales) = (vec![0; 501], vec![0.; 1001usize.div_ceil(block)]);
                assert_eq!(encode_unit(width, &x, tables, block, &mut bytes, &mut scales), None);
                let mut values = vec![0.; 1002];
                decode_bytes(width, &bytes, &tables.values, scales[0], &mut values);
                (bytes, scales, values)
            });
            let all: Vec<_> = all.collect();
            assert!(all.iter().all(|found| *found == all[0]));
        }
    }
}
