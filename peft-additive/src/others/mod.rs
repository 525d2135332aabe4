//! Neither adapters nor soft prompts.

pub mod ia3;
