//! Unified fine-tuning: one procedure over any adapter.
//!
//! ```
//! use peft_core::{AnyMethod, Shape};
//! use peft_reparam::LoraConfig;
//! use peft_unified::ProPetlConfig;
//!
//! let (shape, shared) = (Shape::named("roberta-base")?, ProPetlConfig::new(LoraConfig::new(32)));
//! assert_eq!(AnyMethod::from(shared).count(&shape)?, 98_304 + 1_179_648);
//! # Ok::<(), peft_core::Error>(())
//! ```
//!
//! [`peft_core::Within`] restricts any adapter to some layers.

pub mod adamix;
mod maps;
mod masks;
pub mod propetl;
mod scores;
mod shared;
pub mod sparse;

pub use adamix::{AdaMix, AdaMixConfig, Mixing};
pub use propetl::{ProPetl, ProPetlConfig, Sharing};
pub use sparse::{Pruning, Scorer, Sparse, SparseConfig};
