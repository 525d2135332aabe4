#![doc = include_str!("../README.md")]

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
