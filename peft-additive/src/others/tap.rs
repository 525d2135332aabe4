//! The states of a frozen backbone, for networks that read them beside it.

use std::cell::RefCell;
use std::collections::BTreeMap;

use burn::tensor::{Tensor, activation};
use peft_core::{Base, Batch, Frame, Hidden, Hooks, Next, Part, Result, Sequence, Site, Slot, Stack};

/// The states in front of the layers of each stack, and behind each layer.
#[derive(Default)]
pub(crate) struct Tap {
    pub(crate) starts: RefCell<BTreeMap<Stack, Tensor<3>>>,
    pub(crate) layers: RefCell<BTreeMap<Site, Tensor<3>>>,
}

impl Hooks for Tap {
    fn layer(&self, _frame: &Frame<'_>, site: Site, x: Sequence, next: Next<'_, Sequence>) -> Sequence {
        if site.layer == 0 {
            self.starts.borrow_mut().insert(site.stack, x.hidden.clone());
        }
        let x = next(x);
        self.layers.borrow_mut().insert(site, x.hidden.clone());
        x
    }
}

/// What the backbone gives by itself, and its states on the way.
pub(crate) fn tapped(base: &Base, batch: &Batch) -> Result<(Hidden, Tap)> {
    let tap = Tap::default();
    Ok((base.forward(batch, &tap)?, tap))
}

/// What the backbone's pooler, if it has one, makes of other final states.
pub(super) fn pooled(base: &Base, states: &Tensor<3>) -> Option<Tensor<2>> {
    base.shape().pooler.then(|| {
        let (site, first) = (Site::encoder(0, Part::Pooler), states.clone().narrow(1, 0, 1));
        let pooled = base.weight(site).linear(first, Some(base.vector(site, Slot::Bias)));
        activation::tanh(pooled).squeeze_dim::<2>(1)
    })
}
