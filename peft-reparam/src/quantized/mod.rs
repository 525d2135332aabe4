//! Methods that quantize what they adapt. The quantized matrices follow from the base and the method's own tensors, to the bit: a tuner
//! holds them, and its files do not.

pub mod loftq;
mod matrix;
pub mod qa_lora;
pub mod qlora;

use std::collections::BTreeMap;
use std::sync::Arc;

use peft_core::{Hooks, Site, Weight};

/// Quantized matrices in the place of a base's own.
#[derive(Clone, Debug, Default)]
pub(crate) struct Instead(Arc<BTreeMap<Site, Weight>>);

impl Instead {
    /// The matrix at a site.
    fn get(&self, site: Site) -> Option<&Weight> {
        self.0.get(&site)
    }
}

impl FromIterator<(Site, Weight)> for Instead {
    fn from_iter<I: IntoIterator<Item = (Site, Weight)>>(weights: I) -> Self {
        Instead(Arc::new(weights.into_iter().collect()))
    }
}

impl Hooks for Instead {
    fn weight(&self, site: Site, w: Weight) -> Weight {
        self.get(site).cloned().unwrap_or(w)
    }
}
