//! The scales of blocks, and double quantization of them.

use std::ops::Range;

use peft_core::{Error, Result};

use crate::blocks;
use crate::blockwise::Blockwise;
use crate::map8::{Map8, Search};
use crate::mean::mean;

/// The scale of each block of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Scales {
    /// As they are.
    Plain(Vec<f32>),
    /// Eight bits each: what a scale has over the offset.
    Nested {
        /// Differences from the offset.
        over: Blockwise,
        /// The mean of all scales.
        offset: f32,
    },
}

impl Scales {
    /// Codes for each nested magnitude.
    pub const NESTED_BLOCK: usize = 256;

    /// In eight bits each, in blocks of 256, to the bit as bitsandbytes does it on a CPU ([`Search::Bins`]). The offset is the mean that
    /// torch computes; from 32,768 scales on, that of one thread.
    ///
    /// # Errors
    /// If they are so already, or one is not finite.
    pub fn nested(&self) -> Result<Self> {
        let Scales::Plain(scales) = self else {
            return Err(Error::config("scales", "eight bits each", "scales in f32, which can be nested once"));
        };
        Self::nested_over(scales, mean(scales), Search::Bins)
    }

    /// In eight bits each over a given offset.
    ///
    /// # Errors
    /// If there are none, or one is not finite.
    pub fn nested_over(scales: &[f32], offset: f32, search: Search) -> Result<Self> {
        let over: Vec<f32> = scales.iter().map(|scale| scale - offset).collect();
        Ok(Scales::Nested { over: Blockwise::encode(&over, Map8::signed(), Self::NESTED_BLOCK, search)?, offset })
    }

    /// The number of blocks.
    pub fn len(&self) -> usize {
        match self {
            Scales::Plain(scales) => scales.len(),
            Scales::Nested { over, .. } => over.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The scale of a block.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn get(&self, block: usize) -> f32 {
        match self {
            Scales::Plain(scales) => scales[block],
            Scales::Nested { over, offset } => over.get(block) + offset,
        }
    }

    /// All of them.
    pub fn decode(&self) -> Vec<f32> {
        let mut out = vec![0.; self.len()];
        self.decode_run(0, &mut out);
        out
    }

    /// Those from a block on, as many as there is room for.
    pub(crate) fn decode_run(&self, block: usize, out: &mut [f32]) {
        match self {
            Scales::Plain(scales) => out.copy_from_slice(&scales[block..block + out.len()]),
            Scales::Nested { over, offset } => {
                out.iter_mut().enumerate().for_each(|(i, out)| *out = over.get(block + i) + offset);
            }
        }
    }

    /// Those of some blocks, each with the minimum 0.
    pub(crate) fn pairs(&self, blocks: Range<usize>, pairs: &mut Vec<[f32; 2]>) {
        pairs.clear();
        match self {
            Scales::Plain(scales) => pairs.extend(scales[blocks].iter().map(|scale| [*scale, 0.])),
            Scales::Nested { over, offset } => pairs.extend(blocks.map(|block| [over.get(block) + offset, 0.])),
        }
    }

    /// The bytes that they take.
    pub fn size(&self) -> usize {
        match self {
            Scales::Plain(scales) => 4 * scales.len(),
            Scales::Nested { over, .. } => over.size() + 4,
        }
    }

    /// Refuses scales that are not finite: an offset that is not, or a magnitude so large that its sum with it is not.
    pub(crate) fn expect_finite(&self) -> Result<()> {
        match self {
            Scales::Plain(scales) => blocks::expect_finite("absmax", scales),
            Scales::Nested { .. } => {
                blocks::expect_finite("absmax over nested_absmax and nested_offset", &self.decode())
            }
        }
    }
}
