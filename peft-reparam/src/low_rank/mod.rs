//! Low-rank decomposition.

pub mod lora;
