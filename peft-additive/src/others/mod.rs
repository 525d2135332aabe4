//! Neither adapters nor soft prompts.

pub mod attention_fusion;
pub mod hadamard;
pub mod ia3;
pub mod lst;
pub mod pasta;
mod pruning;
pub(crate) mod tap;
