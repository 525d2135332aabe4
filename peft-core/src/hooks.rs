//! The seams of a frozen backbone: every place where a method may act, the identity unless overridden.

use burn::tensor::{Int, Tensor, module};

pub use crate::ops::attention::{Attention, Mask};
use crate::recompute::untracked;
use crate::{Frame, Site, Slot, Stack, Weight};

/// The frozen computation inside a hook. It may be called never, once or twice.
pub type Next<'a, T, U = T> = &'a dyn Fn(T) -> U;

/// What flows from layer to layer.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// Hidden states, `[batch, tokens, hidden]`.
    pub hidden: Tensor<3>,
    /// Who sees whom.
    pub mask: Mask,
    /// How many rows at the front are virtual tokens (a prompt).
    pub prompt: usize,
    /// How many positions come before the first row (a prefix).
    pub offset: usize,
    /// How many rows of earlier steps are in the cache: while it is not 0, a text is going on and prompts are in it.
    pub past: usize,
}

impl Sequence {
    /// The same numbers, not tracked.
    pub(crate) fn without_gradients(self) -> Self {
        let bias = self.mask.bias.map(untracked);
        Sequence { hidden: untracked(self.hidden), mask: Mask { bias, ..self.mask }, ..self }
    }
}

/// A lookup in a table.
#[derive(Clone, Debug)]
pub struct Lookup<'a> {
    /// The table as the run uses it, `[rows, width]`.
    pub table: &'a Weight,
    /// Which rows, `[batch, tokens]`.
    pub ids: Tensor<2, Int>,
    /// The row that takes no part in gradients, as in PyTorch: that of the padding token.
    pub padding: Option<usize>,
}

impl Lookup<'_> {
    /// The rows.
    pub(crate) fn rows(&self) -> Tensor<3> {
        match self.table {
            Weight::Dense(table) => self.of(table.clone()),
            packed => packed.rows(self.ids.clone()),
        }
    }

    /// The same rows of a table with as many, `[batch, tokens, width]`.
    pub fn of(&self, table: Tensor<2>) -> Tensor<3> {
        let rows = module::embedding(table, self.ids.clone());
        let Some(padding) = self.padding.filter(|_| rows.is_autodiff()) else { return rows };
        let held = self.ids.clone().equal_elem(padding as i64).unsqueeze_dim::<3>(2).expand(rows.dims());
        rows.clone().mask_where(held, rows.detach())
    }
}

/// What a method does at each place of the forward, in which no tensor goes from one layer to another but by the states: a training step
/// may compute a layer alone. Nine seams: five are called *around* the frozen computation, which
/// they get as `next`; four *rewrite* a value before it is used. Around a layer and a sub-layer there is more of the base to be
/// read: the frame gives it as the hooks of the run rewrite it.
pub trait Hooks {
    /// Around a whole layer.
    fn layer(&self, _frame: &Frame<'_>, _site: Site, x: Sequence, next: Next<'_, Sequence>) -> Sequence {
        next(x)
    }
    /// Around a sub-layer, from its input (before its normalization, where that comes first) to just before the residual addition.
    fn sublayer(&self, _frame: &Frame<'_>, _site: Site, x: Sequence, next: Next<'_, Sequence, Tensor<3>>) -> Tensor<3> {
        next(x)
    }
    /// Around the normalization behind a sub-layer, on the sum of its output and its input; models that normalize in front have none.
    fn norm(&self, _site: Site, x: Tensor<3>, next: Next<'_, Tensor<3>>) -> Tensor<3> {
        next(x)
    }
    /// Around scores, softmax and the weighted sum of the values; gives `[batch, heads, tokens, head width]`.
    fn attend(&self, _site: Site, a: Attention, next: Next<'_, Attention, Tensor<4>>) -> Tensor<4> {
        next(a)
    }
    /// Around a linear map with its bias.
    fn linear(&self, _site: Site, x: Tensor<3>, next: Next<'_, Tensor<3>>) -> Tensor<3> {
        next(x)
    }
    /// Rows of a table, as soon as they are looked up.
    fn rows(&self, _site: Site, _lookup: &Lookup<'_>, rows: Tensor<3>) -> Tensor<3> {
        rows
    }
    /// After the word table, before positions and normalization.
    fn embed(&self, _stack: Stack, x: Sequence) -> Sequence {
        x
    }
    /// A matrix or a table before its use.
    fn weight(&self, _site: Site, w: Weight) -> Weight {
        w
    }
    /// A bias or a gain before its use.
    fn vector(&self, _site: Site, _slot: Slot, v: Tensor<1>) -> Tensor<1> {
        v
    }
}

impl Hooks for () {}

impl<H: Hooks + ?Sized> Hooks for &H {
    fn layer(&self, frame: &Frame<'_>, site: Site, x: Sequence, next: Next<'_, Sequence>) -> Sequence {
        (**self).layer(frame, site, x, next)
    }
    fn sublayer(&self, frame: &Frame<'_>, site: Site, x: Sequence, next: Next<'_, Sequence, Tensor<3>>) -> Tensor<3> {
        (**self).sublayer(frame, site, x, next)
    }
    fn norm(&self, site: Site, x: Tensor<3>, next: Next<'_, Tensor<3>>) -> Tensor<3> {
        (**self).norm(site, x, next)
    }
    fn attend(&self, site: Site, a: Attention, next: Next<'_, Attention, Tensor<4>>) -> Tensor<4> {
        (**self).attend(site, a, next)
    }
    fn linear(&self, site: Site, x: Tensor<3>, next: Next<'_, Tensor<3>>) -> Tensor<3> {
        (**self).linear(site, x, next)
    }
    fn rows(&self, site: Site, lookup: &Lookup<'_>, rows: Tensor<3>) -> Tensor<3> {
        (**self).rows(site, lookup, rows)
    }
    fn embed(&self, stack: Stack, x: Sequence) -> Sequence {
        (**self).embed(stack, x)
    }
    fn weight(&self, site: Site, w: Weight) -> Weight {
        (**self).weight(site, w)
    }
    fn vector(&self, site: Site, slot: Slot, v: Tensor<1>) -> Tensor<1> {
        (**self).vector(site, slot, v)
    }
}

/// Two methods at once: the first is the outer one.
impl<A: Hooks, B: Hooks> Hooks for (A, B) {
    fn layer(&self, frame: &Frame<'_>, site: Site, x: Sequence, next: Next<'_, Sequence>) -> Sequence {
        self.0.layer(frame, site, x, &|x| self.1.layer(frame, site, x, next))
    }
    fn sublayer(&self, frame: &Frame<'_>, site: Site, x: Sequence, next: Next<'_, Sequence, Tensor<3>>) -> Tensor<3> {
        self.0.sublayer(frame, site, x, &|x| self.1.sublayer(frame, site, x, next))
    }
    fn norm(&self, site: Site, x: Tensor<3>, next: Next<'_, Tensor<3>>) -> Tensor<3> {
        self.0.norm(site, x, &|x| self.1.norm(site, x, next))
    }
    fn attend(&self, site: Site, a: Attention, next: Next<'_, Attention, Tensor<4>>) -> Tensor<4> {
        self.0.attend(site, a, &|a| self.1.attend(site, a, next))
    }
    fn linear(&self, site: Site, x: Tensor<3>, next: Next<'_, Tensor<3>>) -> Tensor<3> {
        self.0.linear(site, x, &|x| self.1.linear(site, x, next))
    }
    fn rows(&self, site: Site, lookup: &Lookup<'_>, rows: Tensor<3>) -> Tensor<3> {
        self.0.rows(site, lookup, self.1.rows(site, lookup, rows))
    }
    fn embed(&self, stack: Stack, x: Sequence) -> Sequence {
        self.0.embed(stack, self.1.embed(stack, x))
    }
    fn weight(&self, site: Site, w: Weight) -> Weight {
        self.0.weight(site, self.1.weight(site, w))
    }
    fn vector(&self, site: Site, slot: Slot, v: Tensor<1>) -> Tensor<1> {
        self.0.vector(site, slot, self.1.vector(site, slot, v))
    }
}
