//! Low-rank decomposition.

pub mod adalora;
mod dora;
pub mod intrinsic_said;
pub mod lora;
mod start;
mod tables;
pub mod tokens;
