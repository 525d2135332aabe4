//! Adapter-based fine-tuning.

pub mod sequential;
