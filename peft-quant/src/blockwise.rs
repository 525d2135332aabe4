//! Eight bits a number, in blocks: codes of a map, and each block's largest magnitude in f32.

use std::sync::Arc;

use peft_core::Result;
use rayon::prelude::*;

use crate::Element;
use crate::blocks::{self, LARGEST, PIECE, SMALLEST, UNIT};
use crate::map8::{Map8, Search};
use crate::wide::Width;

/// Numbers of eight bits.
#[derive(Clone, Debug, PartialEq)]
pub struct Blockwise {
    map: Arc<Map8>,
    block: usize,
    codes: Vec<u8>,
    absmax: Vec<f32>,
}

impl Blockwise {
    /// The least block.
    const LEAST: usize = 32;

    /// Encodes numbers.
    ///
    /// # Errors
    /// If there are none, the block is not a power of two from 32 to 4096, or a number is not finite.
    pub fn encode<E: Element>(values: &[E], map: Arc<Map8>, block: usize, search: Search) -> Result<Self> {
        blocks::expect_block("blocksize", block, Self::LEAST)?;
        let count = blocks::elements(&[values.len()])?;
        let (mut codes, mut absmax) = (vec![0; count], vec![0.; count.div_ceil(block)]);
        let units = values.par_chunks(UNIT).zip(codes.par_chunks_mut(UNIT)).zip(absmax.par_chunks_mut(UNIT / block));
        let bad = units.enumerate().filter_map(|(unit, ((values, codes), absmax))| {
            let mut buffer = [0.; LARGEST];
            for (i, (values, codes)) in values.chunks(block).zip(codes.chunks_mut(block)).enumerate() {
                let x = &mut buffer[..values.len()];
                E::widen(values, x);
                match encode_block(x, &map, block, search, codes) {
                    Some(largest) => absmax[i] = largest,
                    None => {
                        let index = x.iter().position(|x| !x.is_finite())?;
                        E::widen(values, x);
                        return Some((unit * UNIT + i * block + index, x[index]));
                    }
                }
            }
            None
        });
        match bad.min_by_key(|(index, _)| *index) {
            Some((index, value)) => Err(blocks::not_finite("values", index, value)),
            None => Ok(Blockwise { map, block, codes, absmax }),
        }
    }

    /// From its parts, as a file has them. `keys` are what the file calls the codes, the largest magnitudes and the block.
    ///
    /// # Errors
    /// If there is not one magnitude a block, one is not finite, or the block is not a power of two from 32 to 4096.
    pub fn from_parts(map: Arc<Map8>, block: usize, codes: Vec<u8>, absmax: Vec<f32>, keys: [&str; 3]) -> Result<Self> {
        let [codes_key, absmax_key, block_key] = keys;
        blocks::expect_block(block_key, block, Self::LEAST)?;
        blocks::expect_len(codes_key, codes.len(), codes.len().max(1), "at least one")?;
        let why = format!("one for each {block} of {} codes", codes.len());
        blocks::expect_len(absmax_key, absmax.len(), codes.len().div_ceil(block), &why)?;
        blocks::expect_finite(absmax_key, &absmax)?;
        Ok(Blockwise { map, block, codes, absmax })
    }

    /// The value of each code.
    pub fn map(&self) -> &Arc<Map8> {
        &self.map
    }

    /// Numbers for each magnitude.
    pub fn block(&self) -> usize {
        self.block
    }

    /// One for each number.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// The largest magnitude of each block.
    pub fn absmax(&self) -> &[f32] {
        &self.absmax
    }

    /// The map, and the codes and magnitudes to be changed.
    pub(crate) fn parts_mut(&mut self) -> (&Map8, &mut [u8], &mut [f32]) {
        (&self.map, &mut self.codes, &mut self.absmax)
    }

    /// The number of numbers.
    pub fn len(&self) -> usize {
        self.codes.len()
    }

    /// Never: there is at least one number.
    pub fn is_empty(&self) -> bool {
        self.codes.is_empty()
    }

    /// The bytes that codes and magnitudes take; the map is shared.
    pub fn size(&self) -> usize {
        self.codes.len() + 4 * self.absmax.len()
    }

    /// One number.
    ///
    /// # Panics
    /// If there is no such number.
    pub fn get(&self, index: usize) -> f32 {
        self.map.values()[self.codes[index] as usize] * self.absmax[index / self.block]
    }

    /// All numbers.
    pub fn decode<E: Element>(&self) -> Vec<E> {
        let mut out = E::zeros(self.len());
        self.decode_all(&mut out);
        out
    }

    /// All numbers, into a slice of that length.
    ///
    /// # Errors
    /// If it has another.
    pub fn decode_into<E: Element>(&self, out: &mut [E]) -> Result<()> {
        blocks::expect_len("the slice to decode into", out.len(), self.len(), "the number of codes")?;
        self.decode_all(out);
        Ok(())
    }

    fn decode_all<E: Element>(&self, out: &mut [E]) {
        let units = out.par_chunks_mut(UNIT).zip(self.codes.par_chunks(UNIT));
        units.zip(self.absmax.par_chunks(UNIT / self.block)).for_each(|((out, codes), absmax)| {
            for ((out, codes), absmax) in out.chunks_mut(self.block).zip(codes.chunks(self.block)).zip(absmax) {
                for (out, codes) in out.chunks_mut(PIECE).zip(codes.chunks(PIECE)) {
                    for (out, codes) in out.chunks_mut(PIECE).zip(codes.chunks(PIECE)) {
                        for (out, codes) in out.chunks_mut(PIECE).zip(codes.chunks(PIECE)) {
                            E::fill(out, |out| decode_block(codes, &self.map, *absmax, out));
                        }
                    }
                }
            }
        });
    }
}

/// Encodes a block, the last of which may be short, scales its values, and gives their largest magnitude; nothing if one is not finite.
pub(crate) fn encode_block(x: &mut [f32], map: &Map8, block: usize, search: Search, codes: &mut [u8]) -> Option<f32> {
    let largest = blocks::absmax(Width::best(), x)?;
    match search {
        Search::Bins => {
            let by = 1. / largest;
            x.iter_mut().for_each(|x| *x *= by);
            map.binned(x, codes);
            Some(largest)
        }
        Search::Nearest if x.len() == block => {
            let by = 1. / largest.max(SMALLEST);
            x.iter_mut().for_each(|x| *x *= by);
            map.nearest(x, codes);
            Some(largest)
        }
        Search::Nearest => {
            let largest = largest.max(SMALLEST);
            x.iter_mut().for_each(|x| *x /= largest);
            map.nearest(x, codes);
            Some(largest)
        }
    }
}

pub(crate) fn decode_block(codes: &[u8], map: &Map8, absmax: f32, out: &mut [f32]) {
    for (code, out) in codes.iter().zip(out) {
        *out = map.values()[*code as usize] * absmax;
    }
}
