//! Adapter-based fine-tuning.

pub mod bottleneck;
pub mod parallel;
pub mod sequential;
