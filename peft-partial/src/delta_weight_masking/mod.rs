//! Delta weight masking: some of the base's numbers are trained, or their differences are.

pub mod child_tuning;
pub mod diff_pruning;
pub mod lt_sft;
pub mod sam;
