//! The operations that backbones share, each with its seam.

use std::fmt::Display;

use burn::module::ParamId;
use burn::tensor::{Int, Tensor};

use super::cache::{Cache, Owner};
use super::{Base, Beside, DECODER_WORDS, VOCABULARY};
use crate::ops::{Drops, attention::joined, layer_norm, rms_norm};
use crate::recompute::Recorder;
use crate::{Attention, Batch, Hooks, Lookup, Next, Sequence, Shape, Site, Slot, Weight};

/// A forward in progress: the operations that backbones share, each with its seam. A hook that is called around some of them has
/// the same at hand, for what it computes of its own.
pub struct Frame<'a> {
    pub(crate) base: &'a Base,
    pub(crate) hooks: &'a dyn Hooks,
    pub(crate) batch: &'a Batch,
    pub(crate) recorder: Option<&'a Recorder<'a>>,
}

impl Frame<'_> {
    /// A layer inside its hook.
    pub(crate) fn layer(&self, site: Site, x: Sequence, beside: &Beside) -> Sequence {
        match self.recorder {
            Some(recorder) => recorder.layer(site, x, beside),
            None => self.hooks.layer(self, site, x, &|x| beside.layer(self, site, x)),
        }
    }

    /// Does something by hooks of its own, if layers are computed again in backward.
    pub(crate) fn apart<R>(&self, f: impl FnOnce(&Frame<'_>) -> R) -> R {
        match self.recorder {
            Some(recorder) => recorder.apart(self, f),
            None => f(self),
        }
    }

    /// A tensor that is read in more than one place between and in layers.
    pub(crate) fn held<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        match self.recorder {
            Some(recorder) => recorder.held(x),
            None => x,
        }
    }

    /// The same of a table.
    pub(crate) fn held_table(&self, table: Weight) -> Weight {
        match table {
            Weight::Dense(table) => Weight::Dense(self.held(table)),
            packed => packed,
        }
    }

    /// The shape of the base.
    pub fn shape(&self) -> &Shape {
        &self.base.shape
    }

    /// A matrix or table after the hook `weight`.
    ///
    /// # Panics
    /// If the model has none there.
    pub fn weight(&self, site: Site) -> Weight {
        self.hooks.weight(site, self.base.weight(site).clone())
    }

    /// A bias or gain after the hook `vector`.
    ///
    /// # Panics
    /// If the model has none there.
    pub fn vector(&self, site: Site, slot: Slot) -> Tensor<1> {
        self.hooks.vector(site, slot, self.base.vector(site, slot))
    }

    /// A linear map with its bias, if it has one, inside the hook `linear`.
    pub(crate) fn linear(&self, site: Site, x: Tensor<3>) -> Tensor<3> {
        let bias = || self.base.vectors.get(&(site, Slot::Bias)).cloned();
        let bias = || bias().map(|bias| self.hooks.vector(site, Slot::Bias, bias));
        self.hooks.linear(site, x, &|x| self.weight(site).linear_in(self.base.compute, x, bias()))
    }

    /// A normalization of the model, after the hook `vector`: where it has a bias a layer normalization, else one by the root of the
    /// mean square.
    ///
    /// # Panics
    /// If the model has none there.
    pub fn norm(&self, site: Site, x: Tensor<3>) -> Tensor<3> {
        let (gain, eps) = (self.vector(site, Slot::Gain), self.base.shape.eps);
        if self.base.vectors.contains_key(&(site, Slot::Bias)) {
            return layer_norm(x, gain, self.vector(site, Slot::Bias), eps);
        }
        rms_norm(x, gain, eps)
    }

    /// What makes logits over words: the word table after the hook for that use too, or one of its own.
    pub(crate) fn vocabulary(&self, words: Weight) -> Weight {
        match self.base.shape.tied {
            true => self.hooks.weight(VOCABULARY, words),
            false => self.weight(VOCABULARY),
        }
    }

    /// The word table of the decoder behind an encoder: the encoder's `words`, if it has none of its own.
    pub(crate) fn decoder_words(&self, words: &Weight) -> Weight {
        match self.base.weights.get(&DECODER_WORDS) {
            Some(own) => self.hooks.weight(DECODER_WORDS, own.clone()),
            None => words.clone(),
        }
    }

    /// Rows of a table, inside the hook `rows`.
    pub(crate) fn rows(&self, site: Site, table: &Weight, ids: Tensor<2, Int>, padding: Option<usize>) -> Tensor<3> {
        let lookup = Lookup { table, ids, padding };
        self.hooks.rows(site, &lookup, lookup.rows())
    }

    /// Dropout with probability `p`, while training; `place` tells it from every other.
    pub fn dropout<const D: usize>(&self, x: Tensor<D>, p: f64, place: impl Display) -> Tensor<D> {
        match self.drops(p, place) {
            Some(drops) => drops.of(x),
            None => x,
        }
    }

    /// What [`dropout`](Self::dropout) does there.
    pub fn drops(&self, p: f64, place: impl Display) -> Option<Drops> {
        self.batch.noise.as_ref().and_then(|noise| noise.drops(p, &place.to_string()))
    }

    /// x + f(x), with `f` a sub-layer inside its hook.
    pub(crate) fn residual(&self, site: Site, x: Sequence, f: Next<'_, Sequence, Tensor<3>>) -> Sequence {
        let output = self.hooks.sublayer(self, site, x.clone(), f);
        Sequence { hidden: x.hidden + output, ..x }
    }

    /// Multi-head attention from split queries, keys and values, inside the hook `attend`; heads are joined again. Scores are divided
    /// by the root of the heads' width, if they are to be.
    pub(crate) fn attend(&self, site: Site, attention: Attention, scaled: bool) -> Tensor<3> {
        let p = self.base.shape.attention_dropout;
        let attend = |a: Attention| a.context(scaled, self.drops(p, site));
        joined(self.hooks.attend(site, attention, &attend))
    }

    /// How many rows the cache holds.
    pub(crate) fn past(&self) -> usize {
        self.batch.cache.as_ref().map_or(0, Cache::rows)
    }

    /// A decoder's sequence with what its rows see of those in the cache.
    pub(crate) fn follow(&self, mut x: Sequence) -> Sequence {
        let Some(cache) = self.batch.cache.as_ref().filter(|_| x.past > 0) else { return x };
        let [size, rows, _] = x.hidden.dims();
        let visible = |n| Tensor::full([size, n], false, &self.base.device);
        x.mask.padding = match (cache.padding(), x.mask.padding) {
            (None, None) => None,
            (before, new) => {
                let (before, new) = (before.unwrap_or_else(|| visible(x.past)), new.unwrap_or_else(|| visible(rows)));
                Some(Tensor::cat(vec![before, new], 1))
            }
        };
        x.mask.causal = x.mask.causal.map(|causal| causal + x.past);
        x
    }

    /// Keys and values of a decoder's rows behind those in the cache.
    pub(crate) fn remember(&self, site: Site, key: Tensor<4>, value: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        match &self.batch.cache {
            Some(cache) => cache.extend(Owner::Model(site), key, value),
            None => (key, value),
        }
    }

    /// The same for what a method keeps of a decoder's rows, `[batch, heads, rows, width]`, under the id of a tensor of its own.
    pub fn remember_own(&self, owner: ParamId, key: Tensor<4>, value: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        match &self.batch.cache {
            Some(cache) => cache.extend(Owner::Method(owner), key, value),
            None => (key, value),
        }
    }

    /// Keys and values of the encoder's rows, computed once for a text.
    pub(crate) fn remember_once(
        &self,
        site: Site,
        compute: impl FnOnce() -> (Tensor<4>, Tensor<4>),
    ) -> (Tensor<4>, Tensor<4>) {
        match &self.batch.cache {
            Some(cache) => cache.once(Owner::Model(site), compute),
            None => compute(),
        }
    }

    /// The encoder's output in the cache.
    pub(crate) fn encoded(&self) -> Option<Sequence> {
        self.batch.cache.as_ref().and_then(Cache::encoded)
    }

    /// Puts the encoder's output into the cache.
    pub(crate) fn keep_encoded(&self, x: &Sequence) {
        if let Some(cache) = &self.batch.cache {
            cache.set_encoded(x.clone());
        }
    }

    /// Ends a decoder's step in the cache.
    pub(crate) fn finish(&self, x: &Sequence) {
        if let Some(cache) = &self.batch.cache {
            cache.advance(x.hidden.dims()[1], x.mask.padding.clone());
        }
    }
}
