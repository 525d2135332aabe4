//! Fused operations against composed ones, through every method and model.

use std::collections::BTreeMap;

use burn::module::ParamId;
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData};
use peft_bench::registry::METHODS;
use peft_core::random::Noise;
use peft_core::testing::conformance::loss;
use peft_core::testing::fixtures::SHAPES;
use peft_core::testing::tolerances::{SAME_FUNCTION, SAME_GRADIENT, Tolerance};
use peft_core::testing::{base, batch, composed, device, difference, randomized};
use peft_core::view::{Visit, visit};
use peft_core::{AnyTuner, Base, Batch, Tuner};

/// The states of a forward with dropout, and the gradients of what is trained.
fn found(tuner: &AnyTuner, base: &Base, batch: &Batch) -> (TensorData, BTreeMap<String, TensorData>) {
    struct Collect(GradientsParams, BTreeMap<String, TensorData>);
    impl Visit for Collect {
        fn tensor<const D: usize>(&mut self, name: &str, id: ParamId, _: Tensor<D>) {
            if let Some(gradient) = self.0.get::<D>(id) {
                self.1.insert(name.into(), gradient.into_data());
            }
        }
    }
    let hidden = tuner.run(base, batch).unwrap();
    let (states, loss) = (hidden.states.clone().into_data(), loss(hidden));
    if !loss.is_autodiff() {
        return (states, BTreeMap::new());
    }
    let mut collect = Collect(GradientsParams::from_grads(loss.backward(), tuner), BTreeMap::new());
    visit(tuner, &mut collect);
    (states, collect.1)
}

#[test]
fn every_method_trains_alike_by_fused_operations_and_by_composed_ones() {
    let mut compared = 0;
    for shape in SHAPES {
        let base = base(shape, &device()).with_dropout(0.2);
        let batch = batch(&base);
        let samples = (0..batch.dims()[0] as u32).collect();
        let batch = batch.with_noise(Noise { seed: 5, step: 2, samples });
        for entry in METHODS {
            // Some are not for this model, or start from finished adapters.
            let Ok(tuner) = (entry.method)().init(&base, 3) else { continue };
            let tuner = randomized(&tuner, 5);
            let ours = found(&tuner, &base, &batch);
            let burns = composed(|| found(&tuner, &base, &batch));
            let close = |what: &str, ours: &TensorData, burns: &TensorData, Tolerance(most): Tolerance| {
                let largest = burns.iter::<f32>().map(f32::abs).fold(1.0, f32::max);
                let found = difference(ours, burns);
                assert!(found <= most * largest, "{} on {shape}: {what} is off by {found}", entry.name);
            };
            close("the states", &ours.0, &burns.0, SAME_FUNCTION);
            assert!(ours.1.keys().eq(burns.1.keys()), "{} on {shape}: other gradients", entry.name);
            for (name, gradient) in &ours.1 {
                close(name, gradient, &burns.1[name], SAME_GRADIENT);
            }
            compared += ours.1.len();
        }
    }
    assert!(compared > 1000, "{compared} tensors were compared");
}
