//! Combinations by hand.

pub mod mam;
