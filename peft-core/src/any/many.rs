//! Adapters of any types at once.

use std::sync::Arc;

use burn::module::Module;

use super::AnyTuner;
use crate::random::Noise;
use crate::{Adapter, AnyAdapter, Base, Batch, Error, Example, Hooks, Procedure, Result, Tuner};

/// Adapters of any types at once, as a tuple is of known ones: the first is the outermost.
#[derive(Module, Debug)]
pub struct Many {
    parts: Vec<AnyTuner>,
}

impl Many {
    /// These. One that is no adapter composes with nothing, which is an error.
    pub fn new(parts: Vec<AnyTuner>) -> Result<Self> {
        match parts.iter().find(|part| part.as_adapter().is_none()) {
            None => Ok(Many { parts }),
            Some(part) => Err(Error::config("method", format!("{part:?}"), "adapters, which compose")),
        }
    }

    pub(super) fn tuners(&self) -> impl DoubleEndedIterator<Item = &AnyTuner> {
        self.parts.iter()
    }

    fn adapters(&self) -> impl Iterator<Item = &dyn AnyAdapter> {
        self.parts.iter().map(|part| part.as_adapter().unwrap_or_else(|| unreachable!("`new` has looked")))
    }
}

fn open(adapters: &[&dyn AnyAdapter], batch: &Batch, outer: &dyn Hooks, f: &mut dyn FnMut(&dyn Hooks)) {
    match adapters {
        [] => f(outer),
        [first, rest @ ..] => first.open_any(batch, &mut |inner| open(rest, batch, &(outer, inner), f)),
    }
}

impl Adapter for Many {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        let (mut f, mut result) = (Some(f), None);
        open(&self.adapters().collect::<Vec<_>>(), batch, &(), &mut |hooks| result = f.take().map(|f| f(hooks)));
        result.unwrap_or_else(|| unreachable!("every adapter opens once"))
    }

    fn view(&self, base: &Base, noise: Option<&Noise>) -> Result<Option<AnyTuner>> {
        // Of any batch: the tokens make no difference to how tensors are rewritten.
        let batch = base.batch(&[&Example { ids: vec![base.shape().pad as u32], ..Default::default() }])?;
        let noise_of_it = noise.map(|noise| Arc::new(Noise { samples: [0].into_iter().collect(), ..noise.clone() }));
        let batch = Batch { noise: noise_of_it, ..batch };
        let (mut base, mut parts, mut computes) = (base.clone(), vec![], false);
        for part in self.parts.iter().rev() {
            // An outer part finds the tensors as the inner ones leave them.
            let view = part.viewed(&base, noise)?;
            computes |= view.is_some();
            let part = view.unwrap_or_else(|| part.clone());
            if let Some(adapter) = part.as_adapter() {
                adapter.open_any(&batch, &mut |hooks| base = base.rewritten(hooks));
            }
            parts.insert(0, part);
        }
        if !computes {
            return Ok(None);
        }
        Many::new(parts).map(|many| Some(AnyTuner::new(many)))
    }

    fn tasks(&self) -> Option<usize> {
        self.adapters().filter_map(AnyAdapter::tasks).min()
    }
}

/// Each with its own steps, the first before the others. The phases of several, and their own losses, would not go together: the run
/// has one phase then, and the head's loss.
impl Procedure for Many {
    fn parts(&self) -> Vec<(String, &AnyTuner)> {
        self.parts.iter().enumerate().map(|(i, part)| (format!("parts.{i}."), part)).collect()
    }

    fn parts_mut(&mut self) -> Vec<&mut AnyTuner> {
        self.parts.iter_mut().collect()
    }
}
