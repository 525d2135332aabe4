//! Low-rank decomposition.

pub mod adalora;
pub mod intrinsic_said;
pub mod lora;
