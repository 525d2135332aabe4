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

    /// Whether it has something else for one use of the word table than for another, so that they become tables of their own.
    fn unties(&self) -> bool {
        false
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

    fn unties(&self) -> bool {
        self.0.unties() || self.1.unties()
    }
}

impl Base {
    /// A base with the method folded in. This one is left as it is, so that unmerging, which is using it again, restores
    /// every bit.
    pub fn merged(&self, method: &dyn Merge) -> Base {
        let base = if method.unties() { self.clone().untied() } else { self.clone() };
        base.tensors().fold(base.clone(), |merged, (site, slot)| match slot {
            Slot::Weight => match method.weight(site, base.weight(site)) {
                Some(w) => merged.with_weight(site, Weight::Dense(untracked(w))),
                None => merged,
            },
            slot => match method.vector(site, slot, &base.vector(site, slot)) {
                Some(v) => merged.with_vector(site, slot, untracked(v)),
                None => merged,
            },
        })
    }
}

fn untracked<const D: usize>(t: Tensor<D>) -> Tensor<D> {
    if t.is_autodiff() { t.inner() } else { t }
}
