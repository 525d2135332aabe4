//! The parts among which a search over a structure chooses.

use std::fmt;

use peft_core::Site;

/// What a part does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// LoRA of rank 1 beside a linear map.
    Lora,
    /// A bias behind a linear map or a normalization.
    Bias,
    /// LNFit: a gain beside that of a normalization.
    Gain,
    /// A low-rank adapter behind a sub-layer.
    Adapter,
}

/// A part that may be there, and how many numbers it has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) site: Site,
    pub(super) kind: Kind,
    pub(super) count: usize,
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Lora => "lora",
            Kind::Bias => "bias",
            Kind::Gain => "gain",
            Kind::Adapter => "adapter",
        };
        write!(f, "{}.{kind}", self.site)
    }
}

impl Candidate {
    /// What the names of its tensors begin with.
    pub(super) fn prefix(&self) -> String {
        let field = match self.kind {
            Kind::Lora => "lora.factors",
            Kind::Bias => "biases",
            Kind::Gain => "gains",
            Kind::Adapter => "adapters",
        };
        format!("{field}.{}", self.site)
    }
}
