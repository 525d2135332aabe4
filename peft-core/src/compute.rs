//! What products with frozen matrices are computed in.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// What a product with a frozen matrix is computed in, forward and backward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compute {
    /// Exact but for the rounding of f32.
    #[default]
    F32,
    /// Both factors are rounded to bf16 (8 bits of a number), sums are in f32: up to twice as fast where the processor multiplies pairs
    /// of bf16. On flex only; elsewhere f32.
    Bf16,
}

impl fmt::Display for Compute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Compute::F32 => "f32",
            Compute::Bf16 => "bf16",
        })
    }
}

impl FromStr for Compute {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "f32" => Ok(Compute::F32),
            "bf16" => Ok(Compute::Bf16),
            other => Err(Error::config("compute", other, "f32 or bf16")),
        }
    }
}
