//! Reparameterized fine-tuning: the update of a weight is a function of fewer numbers.

pub mod low_rank;

pub use low_rank::lora::{BiasMode, Factors, Lora, LoraConfig};
