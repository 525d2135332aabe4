//! Pretrained weight masking: the base's own numbers decide which of them are trained, or which are there at all.

pub mod fish_mask;
pub mod threshold_mask;
