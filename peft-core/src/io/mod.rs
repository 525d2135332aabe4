//! Adapter directories and model directories, read and written.

pub mod adapterhub;
mod bits;
mod classes;
mod companions;
mod config;
mod fields;
pub mod gguf;
mod heads;
pub mod hub_setup;
mod labels;
mod leftovers;
mod names;
mod packing;
pub mod peft;
mod pretrained;
pub mod record;
mod sites;
mod tensors;

pub use packing::Packing;
pub use pretrained::{Pretrained, write_model};
#[cfg(feature = "testing")]
pub(crate) use tensors::transpose;
