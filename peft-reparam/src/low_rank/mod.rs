//! Low-rank decomposition.

pub mod adalora;
pub mod allocation;
pub mod delta_lora;
mod dora;
pub mod dylora;
mod growth;
mod hub;
pub mod increlora;
pub mod intrinsic_said;
pub mod kernel_mix;
pub mod krona;
pub mod krona_b;
pub mod kronecker;
mod l_lora;
pub mod lora;
mod lora_fa;
pub mod lorahub;
pub mod moelora;
mod pair;
mod ranks;
mod start;
mod tables;
pub mod tokens;
