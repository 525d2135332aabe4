//! Hybrid fine-tuning: combinations of methods of several families (the survey's MAM adapter, UniPELT, Compacter and others).
//!
//! This crate is where they belong. It holds none yet; a tuple of adapters already composes any two, see `examples/hybrid`.
