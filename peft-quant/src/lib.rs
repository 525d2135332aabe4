//! Packed forms of frozen weights, on plain slices, as other programs store them.
//!
//! | codec | bits a weight | as stored by |
//! | --- | --- | --- |
//! | [`FourBit`]: NF4, FP4 | 4 + 32 / block; with nested scales 4.127 at block 64 | bitsandbytes |
//! | [`Int8Rows`]: LLM.int8() | 8 + 32 / in | bitsandbytes |
//! | [`Grouped`]: 2, 3, 4, 8 bits with scale and zero point | bits + (16 + bits) / group in files | AutoGPTQ, AutoAWQ |
//! | [`Blockwise`]: the dynamic eight-bit maps | 8 + 32 / block | bitsandbytes: nested scales, states of optimizers |
//!
//! Every codec encodes f32, f16 and bf16 ([`Element`]), decodes the whole or some rows of it, and is made from a file's parts with every
//! length checked. Encoding and decoding run on the threads of the rayon pool that calls them; the bits do not depend on their number nor on
//! the machine ([`kernel`] says which vector registers are used).
//!
//! [`bitsandbytes`] reads and writes the tensors of files that transformers wrote with it; [`Words`] are those of GPTQ's and AWQ's
//! files. [`Requantize`] adds an update to packed weights and tells what that costs. [`AdamW8`] steps with moments of eight bits ([`Moments8`]), 2.03 bytes a parameter.
//!
//! What is equal to what, to the bit: codes, scales and values of `FourBit`, `Int8Rows` and `Blockwise`, and AdamW's moments, to
//! bitsandbytes 0.50.2 on a CPU; words to the published formats.
//!
//! [`Grouped::to_burn`] and [`Grouped::from_burn`] are burn's own quantized tensors, which hold symmetric integers alone.
//!
//! [`quantized`] packs the linear maps of a base, and `open` (feature `load`) reads a model of bitsandbytes, GPTQ, AWQ or GGUF as it is packed, or
//! packs one as it reads it. A [`Matrix`] is what such a base holds: products with it decode a tile at a time, forward and backward.
//!
//! Not here: the codecs of GGUF's blocks, which are peft-core's (`peft_core::load::Blocks`) and held as they are.

mod adamw;
pub mod bitsandbytes;
mod blocks;
mod blockwise;
mod codebook;
#[cfg(feature = "load")]
mod convert;
mod element;
mod four_bit;
#[cfg(feature = "load")]
mod gptq;
mod grouped;
mod int8;
#[cfg(feature = "load")]
mod load;
mod map8;
mod matrix;
mod mean;
mod nibbles;
mod optimizer;
mod packing;
mod qfloat;
mod requantized;
mod scales;
mod scheme;
mod wide;
mod words;

pub use adamw::{AdamW8, Moments8};
pub use blockwise::Blockwise;
pub use codebook::Codebook;
#[cfg(feature = "load")]
pub use convert::Plan;
pub use element::Element;
pub use four_bit::FourBit;
pub use grouped::Grouped;
pub use int8::Int8Rows;
#[cfg(feature = "load")]
pub use load::{open, random};
pub use map8::{Map8, Search};
pub use matrix::{Codec, Matrix};
pub use optimizer::{ADAMW_8BIT, PAGED_ADAMW_8BIT};
pub use packing::{Cost, is_packed, quantized};
pub use requantized::{Requantize, Requantized};
pub use scales::Scales;
pub use scheme::Scheme;
pub use wide::kernel;
pub use words::{Packing, Words};
