//! Quantized forms of frozen weights.
//!
//! The seam is in the core: a linear map asks [`peft_core::Weight`] for its product and never for its storage, and
//! [`peft_core::Packed`] is what a codec implements. This crate is where the codecs (NF4 and its relatives) and their kernels
//! belong. It holds none yet.
