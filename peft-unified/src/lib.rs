//! Unified fine-tuning: one procedure over any adapter (the survey's AdaMix, SparseAdapter and ProPETL).
//!
//! This crate is where they belong. It holds none yet; [`peft_core::Within`] already restricts any adapter to some layers, see
//! `examples/unified`.
