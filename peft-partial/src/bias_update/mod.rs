//! Bias update: only bias vectors are trained.

pub mod bitfit;
pub mod pruned_bitfit;
