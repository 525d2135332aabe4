//! Adapter directories and model directories, read and written.

mod bits;
mod config;
pub mod peft;
mod pretrained;

pub use pretrained::Pretrained;
