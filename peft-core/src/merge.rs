//! The weight-space form of a method: the same function as its hooks, folded into the frozen tensors.

use burn::tensor::Tensor;

use crate::{Base, Site, Slot, Weight};

/// A method that can be folded into the weights. Must agree with its hooks.
pub trait Merge {
    /// The matrix or table that replaces `w`; `None` where the method leaves it alone.
    fn weight(&self, _site: Site, _w: &Weight) -> Option<Tensor<2>> {
        None
    }

    /// The bias or gain that replaces `v`; `None` where the method leaves it alone.
    fn vector(&self, _site: Site, _slot: Slot, _v: &Tensor<1>) -> Option<Tensor<1>> {
        None
    }
}

/// Two methods at once: the first is the outer one.
impl<A: Merge, B: Merge> Merge for (A, B) {
    fn weight(&self, site: Site, w: &Weight) -> Option<Tensor<2>> {
        let inner = self.1.weight(site, w);
        let outer = self.0.weight(site, &inner.clone().map_or(w.clone(), Weight::Dense));
        outer.or(inner)
    }

    fn vector(&self, site: Site, slot: Slot, v: &Tensor<1>) -> Option<Tensor<1>> {
        let inner = self.1.vector(site, slot, v);
        let outer = self.0.vector(site, slot, inner.as_ref().unwrap_or(v));
        outer.or(inner)
    }
}

impl Base {
    /// A base with the method folded in. This one is left as it is, so that unmerging, which is using it again, restores
    /// every bit.
    pub fn merged(&self, method: &dyn Merge) -> Base {
        let mut merged = self.clone();
        for place in self.shape().places() {
            match place.slot {
                Slot::Weight => {
                    if let Some(w) = method.weight(place.site, self.weight(place.site)) {
                        merged = merged.with_weight(place.site, Weight::Dense(untracked(w)));
                    }
                }
                slot => {
                    if let Some(v) = method.vector(place.site, slot, &self.vector(place.site, slot)) {
                        merged = merged.with_vector(place.site, slot, untracked(v));
                    }
                }
            }
        }
        merged
    }
}

fn untracked<const D: usize>(t: Tensor<D>) -> Tensor<D> {
    if t.is_autodiff() { t.inner() } else { t }
}
