#![doc = include_str!("../README.md")]

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
#[cfg(feature = "load")]
mod halves;
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
pub use packing::{Cost, bytes, is_packed, quantized};
pub use requantized::{Requantize, Requantized};
pub use scales::Scales;
pub use scheme::Scheme;
pub use wide::kernel;
pub use words::{Packing, Words};
