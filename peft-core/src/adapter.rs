//! What a method is to the rest: an [`Adapter`] opens, for one batch, into [`Hooks`]; a [`Tuner`] owns how the base is run.

use burn::module::{Module, ModuleDisplay};
use burn::tensor::Tensor;

use crate::random::Noise;
use crate::{AnyTuner, Base, Batch, Error, Hidden, Hooks, Many, Merge, Procedure, Readout, Result};

/// A module of trainable tensors that acts through hooks.
pub trait Adapter: Procedure + 'static {
    /// Computes what this batch needs (nothing, for a method that is its own hooks), then lends the hooks for one run.
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R;

    /// What it computes from its tensors alone, as an adapter that holds the results: it then does so once for all pieces of a step,
    /// all examples of a prediction, all tokens of a text. See [`Tuner::viewed`].
    fn view(&self, _base: &Base, _noise: Option<&Noise>) -> Result<Option<AnyTuner>> {
        Ok(None)
    }

    /// How many tasks it tells apart; if it does, sequences of others are refused before it opens.
    fn tasks(&self) -> Option<usize> {
        None
    }
}

/// Declares types that implement [`Hooks`] themselves as adapters.
#[macro_export]
macro_rules! adapter {
    ($($type:ty),*) => {$(
        impl $crate::Adapter for $type {
            fn open<R>(&self, _batch: &$crate::Batch, f: impl FnOnce(&dyn $crate::Hooks) -> R) -> R {
                f(self)
            }
        }
    )*};
}

/// The bare base: with a head on top, a linear probe.
#[derive(Module, Debug)]
pub struct Bare {}

impl Hooks for Bare {}
adapter!(Bare);
impl Merge for Bare {}
impl Procedure for Bare {}

/// Two adapters at once: the first is the outer one.
impl<A: Adapter, B: Adapter> Adapter for (A, B) {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        self.0.open(batch, |outer| self.1.open(batch, |inner| f(&(outer, inner))))
    }

    fn view(&self, base: &Base, noise: Option<&Noise>) -> Result<Option<AnyTuner>> {
        let parts = Many::new(vec![AnyTuner::new(self.0.clone()), AnyTuner::new(self.1.clone())])?;
        Adapter::view(&parts, base, noise)
    }

    fn tasks(&self) -> Option<usize> {
        self.0.tasks().into_iter().chain(self.1.tasks()).min()
    }
}

/// A way to run the base with something trainable. Every adapter is one; a network beside the base is one without being an
/// adapter:
///
/// ```
/// # use peft_core::{Tuner, Base, Batch, Hidden, Result};
/// #[derive(burn::module::Module, Debug)]
/// struct Side {}
/// impl Tuner for Side {
///     fn run(&self, base: &Base, batch: &Batch) -> Result<Hidden> { base.forward(batch, &()) }
/// }
/// fn tuner(_: impl Tuner) {}
/// tuner(Side {});
/// ```
///
/// and hence cannot be composed:
///
/// ```compile_fail,E0277
/// # use peft_core::{Bare, Tuner, Base, Batch, Hidden, Result};
/// # #[derive(burn::module::Module, Debug)]
/// # struct Side {}
/// # impl Tuner for Side {
/// #     fn run(&self, base: &Base, batch: &Batch) -> Result<Hidden> { base.forward(batch, &()) }
/// # }
/// # fn tuner(_: impl Tuner) {}
/// tuner((Side {}, Bare {}));
/// ```
pub trait Tuner: Module + ModuleDisplay + Sync {
    /// Final hidden states of a batch.
    fn run(&self, base: &Base, batch: &Batch) -> Result<Hidden>;

    /// Logits of a batch: those of one run, unless it predicts otherwise (an ensemble, averaged routes, a posterior).
    fn logits(&self, readout: &Readout<'_>) -> Result<Tensor<3>> {
        readout.logits(readout.run(self)?)
    }

    /// The head's summed loss of a batch with its labels, by which results are judged: of one run, as [`logits`](Self::logits), unless
    /// it predicts otherwise.
    fn head_loss(&self, readout: &Readout<'_>) -> Result<Tensor<1>> {
        readout.loss_of(readout.run(self)?)
    }

    /// What it computes from its tensors under this noise, whatever the batch, as a tuner that holds the results. Gradients flow
    /// through these into its own tensors.
    fn viewed(&self, _base: &Base, _noise: Option<&Noise>) -> Result<Option<AnyTuner>> {
        Ok(None)
    }

    /// Refuses tasks that it does not have.
    fn check_tasks(&self, _tasks: &[usize]) -> Result<()> {
        Ok(())
    }

    /// The tuner as an adapter, if it is one.
    fn as_adapter(&self) -> Option<&dyn AnyAdapter> {
        None
    }
}

/// An [`Adapter`] of any type.
pub trait AnyAdapter {
    /// Computes what this batch needs, then lends the hooks for one run.
    fn open_any(&self, batch: &Batch, f: &mut dyn FnMut(&dyn Hooks));

    /// See [`Adapter::tasks`].
    fn tasks(&self) -> Option<usize>;

    /// Final hidden states of a batch.
    fn states(&self, base: &Base, batch: &Batch) -> Result<Hidden> {
        check_tasks(self.tasks(), &batch.tasks)?;
        let mut states = None;
        self.open_any(batch, &mut |hooks| states = Some(base.forward(batch, hooks)));
        states.unwrap_or_else(|| unreachable!("an adapter opens once"))
    }
}

fn check_tasks(count: Option<usize>, tasks: &[usize]) -> Result<()> {
    let Some(count) = count else { return Ok(()) };
    match tasks.iter().find(|task| **task >= count) {
        None => Ok(()),
        Some(task) => Err(Error::config("task", task, format!("a number below {count}, the method's tasks"))),
    }
}

impl<A: Adapter> AnyAdapter for A {
    fn open_any(&self, batch: &Batch, f: &mut dyn FnMut(&dyn Hooks)) {
        self.open(batch, |hooks| f(hooks));
    }

    fn tasks(&self) -> Option<usize> {
        Adapter::tasks(self)
    }

    fn states(&self, base: &Base, batch: &Batch) -> Result<Hidden> {
        check_tasks(self.tasks(), &batch.tasks)?;
        match &batch.tape {
            None => self.open(batch, |hooks| base.forward(batch, hooks)),
            Some(tape) => tape.run(AnyTuner::new(self.clone()), base, batch),
        }
    }
}

impl<A: Adapter> Tuner for A {
    fn run(&self, base: &Base, batch: &Batch) -> Result<Hidden> {
        self.states(base, batch)
    }

    fn viewed(&self, base: &Base, noise: Option<&Noise>) -> Result<Option<AnyTuner>> {
        Adapter::view(self, base, noise)
    }

    fn check_tasks(&self, tasks: &[usize]) -> Result<()> {
        check_tasks(self.tasks(), tasks)
    }

    fn as_adapter(&self) -> Option<&dyn AnyAdapter> {
        Some(self)
    }
}
