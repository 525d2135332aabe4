//! Adapter directories and model directories, read and written.

pub mod adapterhub;
mod bits;
mod companions;
mod config;
pub mod gguf;
mod heads;
pub mod peft;
mod pretrained;
pub mod record;
mod tensors;

pub use pretrained::Pretrained;
#[cfg(feature = "testing")]
pub(crate) use tensors::transpose;
