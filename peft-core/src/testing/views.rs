//! Methods that compute tensors once for a step, against themselves by their hooks.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};

use super::golden::named;
use super::tolerances::SAME_FUNCTION;
use super::{assert_close, base, device, difference, examples, fixtures::SHAPES, randomized, states};
use crate::train::{Run, TrainConfig};
use crate::{Adapter, Base, Batch, Head, Hooks, Label, LanguageModel, Method, Procedure, Trained, Tuner};

/// An adapter without a view.
#[derive(Module, Debug)]
struct ByHooks<A: Module> {
    inner: A,
}

impl<A: Adapter> Adapter for ByHooks<A> {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        self.inner.open(batch, f)
    }
}

impl<A: Adapter + Procedure> Procedure for ByHooks<A> {
    fn penalty(&self) -> Option<Tensor<1>> {
        self.inner.penalty()
    }
}

/// Whether a method's view gives its states, and a step in pieces its gradients, noise included.
///
/// # Panics
/// If they differ, or if the method has no view.
pub fn a_view_is_as_by_hooks<M: Method>(config: &M)
where
    M::Tuner: Adapter,
{
    for shape in SHAPES {
        let base = base(shape, &device());
        let tuner = randomized(&config.init(&base, 3).unwrap_or_else(|e| panic!("{e}")), 5);
        let view = Tuner::viewed(&tuner.valid(), &base, None).unwrap_or_else(|e| panic!("{e}"));
        let view = view.unwrap_or_else(|| panic!("{} has no view", M::NAME));
        assert_close(states(&view, &base), states(&tuner, &base), SAME_FUNCTION, shape);

        let once = gradients(&base, tuner.clone());
        let hooks = gradients(&base, ByHooks { inner: tuner });
        assert_eq!(once.len(), hooks.len(), "{shape}");
        for (name, gradient) in once {
            let by_hooks = &hooks[&name.replacen("tuner.", "tuner.inner.", 1)];
            let largest = by_hooks.iter::<f32>().map(f32::abs).fold(1.0, f32::max);
            let found = difference(&gradient, by_hooks);
            assert!(found <= SAME_FUNCTION.0 * largest, "{shape}: the gradients of {name} differ by {found}");
        }
    }
}

/// Of a step on the tests' examples, cut into pieces, with dropout.
fn gradients<T: Procedure>(base: &Base, tuner: T) -> BTreeMap<String, TensorData> {
    let data = examples(base);
    let head = match data[0].label {
        Some(Label::Words(_)) => Head::LanguageModel(LanguageModel {}),
        _ => Head::classifier(base, 2, 3),
    };
    let settings = TrainConfig { micro_rows: 12, dropout: Some(0.2), threads: 2, ..Default::default() };
    let trained = Trained::new(tuner, head).unwrap_or_else(|e| panic!("{e}"));
    let run = Run::new(&settings, base.clone(), trained.clone()).unwrap_or_else(|e| panic!("{e}"));
    let (_, gradients) = run.gradients(&trained, &data.iter().collect::<Vec<_>>()).unwrap_or_else(|e| panic!("{e}"));
    named(&trained, &gradients)
}
