//! The tests of the codecs, as one program: each program more is one more to link.

mod adamw;
mod bitsandbytes;
mod common;
mod four_bit;
mod grouped;
mod int8;
#[cfg(feature = "load")]
mod load;
mod matrix;
mod requantized;
