//! A base that a method has rewritten, once for all pieces of a step: each piece is differentiated by leaves of its own, and what
//! the pieces sum up to goes back through the rewriting once.

use std::collections::BTreeMap;

use burn::tensor::{Gradients, Tensor};

use crate::{Base, Site, Slot, Weight};

/// Gradients of a base's tensors, each as one row.
#[derive(Default)]
pub(super) struct Rows(BTreeMap<(Site, Slot), Tensor<1>>);

impl Rows {
    /// Takes those of a base's tensors, as far as they are differentiated, out of all gradients.
    pub(super) fn take(base: &Base, gradients: &mut Gradients) -> Self {
        let mut row = |site, slot| match slot {
            Slot::Weight => matrix(base, site)?.grad_remove(gradients).map(|g| g.flatten(0, 1)),
            slot => vector(base, site, slot)?.grad_remove(gradients),
        };
        Rows(places(base).into_iter().filter_map(|(site, slot)| Some(((site, slot), row(site, slot)?))).collect())
    }

    pub(super) fn add(&mut self, more: Rows) {
        for (place, row) in more.0 {
            let sum = match self.0.remove(&place) {
                Some(sum) => sum + row,
                None => row,
            };
            self.0.insert(place, sum);
        }
    }

    /// The gradients of what the base was rewritten with, if these are those of the base.
    pub(super) fn back(self, base: &Base) -> Option<Gradients> {
        let product = |((site, slot), row): ((Site, Slot), Tensor<1>)| {
            let tensor = match slot {
                Slot::Weight => matrix(base, site)?.flatten(0, 1),
                slot => vector(base, site, slot)?,
            };
            Some((tensor * row).sum())
        };
        let sum = self.0.into_iter().filter_map(product).reduce(|a, b| a + b)?;
        Some(sum.backward())
    }
}

/// The base with a leaf in place of each tensor that is differentiated.
pub(super) fn with_leaves(base: &Base) -> Base {
    places(base).into_iter().fold(base.clone(), |leaves, (site, slot)| match slot {
        Slot::Weight => match matrix(base, site) {
            Some(w) => leaves.with_weight(site, Weight::Dense(leaf(w))),
            None => leaves,
        },
        slot => match vector(base, site, slot) {
            Some(v) => leaves.with_vector(site, slot, leaf(v)),
            None => leaves,
        },
    })
}

fn places(base: &Base) -> Vec<(Site, Slot)> {
    base.tensors().collect()
}

fn matrix(base: &Base, site: Site) -> Option<Tensor<2>> {
    match base.weight(site) {
        Weight::Dense(w) if w.is_autodiff() => Some(w.clone()),
        _ => None,
    }
}

fn vector(base: &Base, site: Site, slot: Slot) -> Option<Tensor<1>> {
    Some(base.vector(site, slot)).filter(Tensor::is_autodiff)
}

fn leaf<const D: usize>(t: Tensor<D>) -> Tensor<D> {
    Tensor::from_inner(t.inner()).require_grad()
}
