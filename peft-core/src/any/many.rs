//! Adapters of any types at once.

use std::sync::Arc;

use burn::module::Module;
use burn::tensor::Tensor;

use super::AnyTuner;
use crate::random::Noise;
use crate::train::{Phase, Probe};
use crate::{Adapter, AnyAdapter, Base, Batch, Error, Example, Hooks, Procedure, Readout, Result, Tuner};

/// Adapters of any types at once, as a tuple is of known ones: the first is the outermost.
#[derive(Module, Debug)]
pub struct Many {
    parts: Vec<AnyTuner>,
}

impl Many {
    /// These. One that is no adapter composes with nothing, and the phases of two would not go together: both are errors.
    pub fn new(parts: Vec<AnyTuner>) -> Result<Self> {
        if let Some(part) = parts.iter().find(|part| part.as_adapter().is_none()) {
            return Err(Error::config("method", format!("{part:?}"), "adapters, which compose"));
        }
        match parts.iter().filter(|part| has_phases(part)).count() {
            0 | 1 => Ok(Many { parts }),
            count => Err(Error::config("method", format!("{count} that train in phases"), "one such at most")),
        }
    }

    pub(super) fn tuners(&self) -> impl DoubleEndedIterator<Item = &AnyTuner> {
        self.parts.iter()
    }

    fn row(&self) -> Row<'_> {
        let adapter = |part| AnyTuner::as_adapter(part).unwrap_or_else(|| unreachable!("`new` has looked"));
        Row(self.parts.iter().map(adapter).collect())
    }
}

/// Adapters at once, borrowed.
struct Row<'a>(Vec<&'a dyn AnyAdapter>);

impl AnyAdapter for Row<'_> {
    fn open_any(&self, batch: &Batch, f: &mut dyn FnMut(&dyn Hooks)) {
        open(&self.0, batch, &(), f);
    }

    fn tasks(&self) -> Option<usize> {
        self.0.iter().filter_map(|adapter| adapter.tasks()).min()
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
        self.row().open_any(batch, &mut |hooks| result = f.take().map(|f| f(hooks)));
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
        self.row().tasks()
    }
}

/// Whether it trains in several phases, however long the run.
fn has_phases(part: &AnyTuner) -> bool {
    part.phases(1000).len() > 1
}

/// Each with its own steps, the first before the others. The phases are those of the part that has several, the loss that of the part that
/// has its own, with all others in place.
impl Procedure for Many {
    fn parts(&self) -> Vec<(String, &AnyTuner)> {
        self.parts.iter().enumerate().map(|(i, part)| (format!("parts.{i}."), part)).collect()
    }

    fn parts_mut(&mut self) -> Vec<&mut AnyTuner> {
        self.parts.iter_mut().collect()
    }

    fn phases(&self, steps: usize) -> Vec<Phase> {
        let phased = self.parts.iter().find(|part| has_phases(part)).or(self.parts.first());
        phased.map_or_else(|| vec![Phase { name: "train", steps, rate: 1.0 }], |part| part.phases(steps))
    }

    fn loss(&self, readout: &Readout<'_>) -> Result<Option<Tensor<1>>> {
        let mut own: Option<(&AnyTuner, Tensor<1>)> = None;
        for (i, part) in self.parts.iter().enumerate() {
            let among = |adapter: &dyn AnyAdapter, batch: &Batch| {
                let mut row: Row<'_> = self.row();
                row.0[i] = adapter;
                readout.run_adapter(&row, batch)
            };
            let Some(loss) = part.loss(&readout.among(&among))? else { continue };
            if let Some((other, _)) = own {
                let found = format!("losses of their own of {} and {}", other.type_name(), part.type_name());
                return Err(Error::config("method", found, "one at most of those that are trained at once"));
            }
            own = Some((part, loss));
        }
        Ok(own.map(|(_, loss)| loss))
    }

    /// A part without phases is prepared once.
    fn prepare(self, base: &Base, data: Probe<'_>) -> Result<Self> {
        let prepared = |part: AnyTuner| match data.phase() == 0 || has_phases(&part) {
            true => part.prepare(base, data),
            false => Ok(part),
        };
        Ok(Many { parts: self.parts.into_iter().map(prepared).collect::<Result<_>>()? })
    }
}
