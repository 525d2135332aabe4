//! What a model keeps of the rows so far while a text is generated, so that each step computes its new rows only.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::module::ParamId;
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};

use crate::transfer::send;
use crate::{Sequence, Site};

/// Rows for which room is made at a time, so that a new row is written in place and not with a copy of all before it.
const ROOM: usize = 32;

/// Keys and values of all rows so far. A clone is the same cache.
#[derive(Clone, Debug, Default)]
pub struct Cache(Arc<Mutex<State>>);

#[derive(Clone, Debug, Default)]
struct State {
    kept: BTreeMap<Owner, Entry>,
    rows: usize,
    padding: Option<Tensor<2, Bool>>,
    encoded: Option<Sequence>,
    beside: Option<Cache>,
}

/// Whose keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Owner {
    /// An attention of the model.
    Model(Site),
    /// A method, by one of its tensors.
    Method(ParamId),
}

/// Keys and values, `[batch, key heads, rows, head width]`.
type Pair = (Tensor<4>, Tensor<4>);

/// What is kept of an owner.
#[derive(Clone, Debug)]
struct Entry {
    /// With room for more rows.
    pair: Pair,
    /// Rows of steps that are done.
    done: usize,
    /// Rows of the step at work. A layer that a hook runs twice writes its own twice.
    new: usize,
}

impl Cache {
    /// Number of rows, virtual tokens among them.
    pub fn rows(&self) -> usize {
        self.state().rows
    }

    /// Another cache with what is in this one.
    pub fn fork(&self) -> Self {
        let mut state = self.state().clone();
        state.beside = state.beside.as_ref().map(Cache::fork);
        Cache(Arc::new(Mutex::new(state)))
    }

    /// The cache of a network that runs beside the model; it is forked and selected from with this one.
    pub fn beside(&self) -> Self {
        self.state().beside.get_or_insert_default().clone()
    }

    /// True where a row is padding, `[batch, rows]`; absent if none is.
    pub(super) fn padding(&self) -> Option<Tensor<2, Bool>> {
        self.state().padding.clone()
    }

    /// Keys and values of this step behind those before.
    pub(super) fn extend(&self, owner: Owner, key: Tensor<4>, value: Tensor<4>) -> Pair {
        let (mut state, new) = (self.state(), key.dims()[2]);
        // Taken out: only a tensor that nothing else holds is written in place.
        let (pair, done) = match state.kept.remove(&owner).filter(|entry| entry.done > 0) {
            Some(Entry { pair: (keys, values), done, .. }) => {
                ((written(keys, done, key), written(values, done, value)), done)
            }
            None => ((key, value), 0),
        };
        let filled = |x: &Tensor<4>| x.clone().narrow(2, 0, done + new);
        let found = (filled(&pair.0), filled(&pair.1));
        state.kept.insert(owner, Entry { pair, done, new });
        found
    }

    /// Keys and values that stay as they are: computed at the first step.
    pub(super) fn once(&self, owner: Owner, compute: impl FnOnce() -> Pair) -> Pair {
        if let Some(entry) = self.state().kept.get(&owner).filter(|entry| entry.done > 0) {
            return entry.pair.clone();
        }
        let pair = compute();
        let entry = Entry { pair: pair.clone(), done: 0, new: pair.0.dims()[2] };
        self.state().kept.insert(owner, entry);
        pair
    }

    /// The output of the encoder, once it has run.
    pub(super) fn encoded(&self) -> Option<Sequence> {
        self.state().encoded.clone()
    }

    pub(super) fn set_encoded(&self, encoded: Sequence) {
        self.state().encoded = Some(encoded);
    }

    /// Ends a step of so many rows; `padding` is that of all rows so far.
    pub(super) fn advance(&self, rows: usize, padding: Option<Tensor<2, Bool>>) {
        let mut state = self.state();
        for entry in state.kept.values_mut() {
            entry.done += std::mem::take(&mut entry.new);
        }
        state.rows += rows;
        state.padding = padding;
    }

    /// The sequences at these places of the batch, in this order: those that beams go on with.
    pub fn select(&self, sequences: &[usize], device: &Device) {
        let index = sequences.iter().map(|i| *i as i32).collect();
        let index = send::<1, Int>(TensorData::new(index, [sequences.len()]), device);
        let mut state = self.state();
        let state = &mut *state;
        for Entry { pair: (keys, values), .. } in state.kept.values_mut() {
            (*keys, *values) = (keys.clone().select(0, index.clone()), values.clone().select(0, index.clone()));
        }
        let rows = |x: Tensor<2, Bool>| x.int().select(0, index.clone()).equal_elem(1);
        state.padding = state.padding.take().map(rows);
        state.encoded = state.encoded.take().map(|mut x| {
            x.hidden = x.hidden.select(0, index.clone());
            x.mask.padding = x.mask.padding.map(rows);
            x
        });
        if let Some(beside) = &state.beside {
            beside.select(sequences, device);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Rows behind those that are done; in a larger tensor, if they do not fit.
fn written(kept: Tensor<4>, done: usize, rows: Tensor<4>) -> Tensor<4> {
    let [batch, heads, room, width] = kept.dims();
    let end = done + rows.dims()[2];
    if end <= room {
        return kept.slice_assign([0..batch, 0..heads, done..end, 0..width], rows);
    }
    let more = Tensor::zeros([batch, heads, ROOM, width], &rows.device());
    Tensor::cat(vec![kept.narrow(2, 0, done), rows, more], 2)
}
