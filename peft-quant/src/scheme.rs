//! Which codec a base's linear maps are packed by.

use std::fmt::{self, Display};
use std::str::FromStr;

use peft_core::{Error, Result};

use crate::Codebook;

/// How linear maps are packed. In text it is `nf4`, `fp4`, `nf4-double`, `fp4-double` or `int8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scheme {
    /// Four bits a weight, in blocks of 64.
    FourBit {
        /// The values.
        codebook: Codebook,
        /// Whether the blocks' scales have eight bits: double quantization.
        double: bool,
    },
    /// LLM.int8().
    Int8,
}

impl FromStr for Scheme {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let four_bit = |codebook, double| Ok(Scheme::FourBit { codebook, double });
        match text {
            "nf4" => four_bit(Codebook::Nf4, false),
            "fp4" => four_bit(Codebook::Fp4, false),
            "nf4-double" => four_bit(Codebook::Nf4, true),
            "fp4-double" => four_bit(Codebook::Fp4, true),
            "int8" => Ok(Scheme::Int8),
            other => Err(Error::config("scheme", other, "nf4, fp4, nf4-double, fp4-double or int8")),
        }
    }
}

impl Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scheme::FourBit { codebook, double } => {
                write!(f, "{}{}", codebook.name(), if *double { "-double" } else { "" })
            }
            Scheme::Int8 => write!(f, "int8"),
        }
    }
}

impl Scheme {
    /// Weights for each scale of four bits: bitsandbytes' default.
    pub(crate) const BLOCK: usize = 64;
}
