//! Combinations by hand.

pub mod compacter;
pub mod mam;
pub mod pruned_mam;
pub mod unipelt;
