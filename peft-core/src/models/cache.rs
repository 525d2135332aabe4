//! What a model keeps of the rows so far while a text is generated, so that each step computes its new rows only.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};

use crate::{Sequence, Site};

/// Keys and values of all rows so far. A clone is the same cache.
#[derive(Clone, Debug, Default)]
pub struct Cache(Arc<Mutex<State>>);

#[derive(Clone, Debug, Default)]
struct State {
    /// Those of steps that are done.
    done: BTreeMap<Site, Entry>,
    /// Those of the step at work, with all before them. A layer that a hook runs twice writes its own twice.
    new: BTreeMap<Site, Entry>,
    rows: usize,
    padding: Option<Tensor<2, Bool>>,
    encoded: Option<Sequence>,
    beside: Option<Cache>,
}

/// Keys and values, `[batch, key heads, rows, head width]`.
type Entry = (Tensor<4>, Tensor<4>);

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
    pub(super) fn extend(&self, site: Site, key: Tensor<4>, value: Tensor<4>) -> Entry {
        let mut state = self.state();
        let entry = match state.done.get(&site) {
            None => (key, value),
            Some((keys, values)) => {
                (Tensor::cat(vec![keys.clone(), key], 2), Tensor::cat(vec![values.clone(), value], 2))
            }
        };
        state.new.insert(site, entry.clone());
        entry
    }

    /// Keys and values that stay as they are: computed at the first step.
    pub(super) fn once(&self, site: Site, compute: impl FnOnce() -> Entry) -> Entry {
        if let Some(entry) = self.state().done.get(&site) {
            return entry.clone();
        }
        let entry = compute();
        self.state().new.insert(site, entry.clone());
        entry
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
        let new = std::mem::take(&mut state.new);
        state.done.extend(new);
        state.rows += rows;
        state.padding = padding;
    }

    /// The sequences at these places of the batch, in this order: those that beams go on with.
    pub fn select(&self, sequences: &[usize], device: &Device) {
        let index = sequences.iter().map(|i| *i as i32).collect();
        let index = Tensor::<1, Int>::from_data(TensorData::new(index, [sequences.len()]), device);
        let mut state = self.state();
        let state = &mut *state;
        for (keys, values) in state.done.values_mut() {
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
