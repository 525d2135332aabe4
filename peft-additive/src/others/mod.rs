//! Neither adapters nor soft prompts.

pub mod ia3;
pub mod lst;
mod pruning;
