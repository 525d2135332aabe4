//! Unified fine-tuning: one procedure over any adapter.
//!
//! ```
//! use peft_core::{Method, Shape};
//! use peft_reparam::LoraConfig;
//! use peft_unified::ProPetlConfig;
//!
//! let shape = Shape::named("roberta-base")?;
//! assert_eq!(ProPetlConfig::new(LoraConfig::new(32)).count(&shape)?, 98_304 + 1_179_648);
//! # Ok::<(), peft_core::Error>(())
//! ```
//!
//! [`peft_core::Within`] restricts any adapter to some layers.

pub mod adamix;
mod constant;
mod masks;
pub mod propetl;
mod scores;
mod settings;
pub mod sparse;

pub use adamix::{AdaMix, AdaMixConfig, Mixed};
pub use propetl::{ProPetl, ProPetlConfig, Shared};
pub use sparse::{Pruned, Scorer, Sparse, SparseConfig};
