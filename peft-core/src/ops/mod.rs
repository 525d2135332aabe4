//! The operations of models and methods, each written once: whatever computes one calls it here.

mod activations;
pub mod attention;
pub(crate) mod dropout;
mod linear;
pub mod loss;
mod norms;
mod rotary;
pub(crate) mod word_loss;

pub use activations::{gated, gelu};
pub use dropout::Drops;
pub use linear::linear;
pub use norms::{layer_norm, rms_norm};
pub use rotary::turned;
