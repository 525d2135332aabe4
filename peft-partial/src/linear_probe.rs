//! # Linear probing                         family: none; the baseline that trains nothing but the head
//! h = W x + b                              the base as it is
//! Paper: Alain and Bengio, 2016, arXiv:1610.01644.   Reference: none; a frozen model of huggingface/transformers.
//! Oracle: package transformers 5.23.0: `a_linear_probe_equals_the_reference`
//! Trains: nothing of its own; the head.    Merges: yes, there is nothing to fold.
//! Identities:
//! - the base, bit for bit: `C1`
//!
//! Differs from the paper: the head is the task's own (RoBERTa's has a hidden layer) and sees the last layer only.

use peft_core::{Bare, Base, Key, Merge, Method, Result, Shape};
use serde::{Deserialize, Serialize};

/// The configuration of a linear probe: there is nothing to configure.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinearProbeConfig {}

impl Method for LinearProbeConfig {
    const NAME: &'static str = "linear-probe";
    const PEFT_TYPE: &'static str = "LINEAR_PROBE";
    type Tuner = Bare;

    fn init(&self, _base: &Base, _seed: u64) -> Result<Bare> {
        Ok(Bare {})
    }

    fn count(&self, _shape: &Shape) -> Result<usize> {
        Ok(0)
    }

    fn key(&self, name: &str, _shape: &Shape) -> Key {
        unreachable!("a linear probe has no tensor {name}")
    }

    fn merge(tuner: &Bare) -> Option<&dyn Merge> {
        Some(tuner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    peft_core::conformance!(
        LinearProbeConfig::default(),
        skip(
            C3: "there is no random state: merged, unmerged and base are one",
            C5: "it has no tensor",
            C9: "it has no tensor"
        )
    );
}
