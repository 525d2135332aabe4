//! # Full fine-tuning                       family: none; the baseline that all others are measured against
//! h = W' x + b'                            W', b' = the base's W, b, all of them trained
//! Paper: Devlin et al., 2019, arXiv:1810.04805, section 3.2.   Reference: huggingface/transformers, any model.
//! Oracle: package transformers 5.23.0: `full_fine_tuning_equals_the_reference`
//! Trains: every weight, table, bias and gain of the base.      Merges: yes, by overwriting.
//! Identities:
//! - the base at init, bit for bit: `C1`
//! - merged == unmerged, bit for bit: `C3`, `merging_keeps_every_bit`
//! - its gradient of any tensor is the one that every partial method sees of that tensor: `gradients_are_those_of_full_fine_tuning`, `gradients_agree_with_central_differences`
//!
//! Differs from the paper: nothing.

use burn::tensor::Tensor;
use peft_core::{Base, Key, Merge, Method, Place, Replaced, Result, Shape, place_key, slot_name};
use serde::{Deserialize, Serialize};

/// The configuration of full fine-tuning: there is nothing to configure.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FullConfig {}

impl Method for FullConfig {
    const NAME: &'static str = "full";
    const PEFT_TYPE: &'static str = "FULL";
    const ADDS: bool = false;
    type Tuner = Replaced;

    fn init(&self, base: &Base, _seed: u64) -> Result<Replaced> {
        Ok(copies(base, &base.shape().places()))
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        Ok(shape.count())
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        let mut places = shape.places().into_iter();
        let place = places.find(|place| slot_name(place.site, place.slot) == name);
        place_key(shape, &place.expect("every tensor is a copy of the base's at its place"))
    }

    fn merge(tuner: &Replaced) -> Option<&dyn Merge> {
        Some(tuner)
    }
}

/// Trainable copies of a base's tensors at these places.
pub(crate) fn copies(base: &Base, places: &[Place]) -> Replaced {
    Replaced::new(
        places,
        |place| Tensor::from_inner(base.weight(place.site).dense()),
        |place| Tensor::from_inner(base.vector(place.site, place.slot)),
    )
}

#[cfg(test)]
mod tests {
    use burn::module::Module;
    use burn::optim::GradientsParams;
    use burn::tensor::TensorData;
    use peft_core::random::Random;
    use peft_core::testing::tolerances::FINITE_DIFFERENCE;
    use peft_core::testing::{base, batch, conformance::loss, device, fixtures::SHAPES, golden::named, randomized};
    use peft_core::view::{Rewrite, view};
    use peft_core::{Architecture, Bare, Head, Tuner};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::assert_files_hold;

    peft_core::conformance!(FullConfig::default());

    #[test]
    fn counts_are_the_published_ones() {
        for (name, backbone, with_head) in
            [("roberta-base", 124_055_040, 124_647_170), ("roberta-large", 354_310_144, 355_361_794)]
        {
            let shape = Shape::named(name).unwrap();
            assert_eq!(FullConfig::default().count(&shape).unwrap(), backbone);
            assert_eq!(backbone + Head::count(&shape, 2), with_head, "{name}");
        }
    }

    #[test]
    fn files_hold_the_whole_checkpoint() {
        assert_files_hold(&FullConfig::default(), &SHAPES, |_| true);
    }

    /// `t + step * direction` for one tensor, with a random direction.
    struct Along<'a> {
        only: &'a str,
        seed: u64,
        step: f64,
    }

    impl Rewrite for Along<'_> {
        fn tensor<const D: usize>(&mut self, name: &str, t: Tensor<D>) -> Tensor<D> {
            let t = t.inner();
            if name != self.only {
                return t;
            }
            let direction = Random::new(self.seed, name).normal_tensor(t.dims(), 1.0, &t.device());
            t + direction * self.step
        }
    }

    /// The same base, on which a padding token's row has a gradient like any other.
    fn without_padding(base: &Base) -> Base {
        let mut shape = base.shape().clone();
        if let Architecture::Llama(llama) = &mut shape.architecture {
            llama.padding = None;
        }
        Base::new(shape, base.device(), |place| Ok(base.tensor_data(place))).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4))]

        #[test]
        fn merging_keeps_every_bit(seed: u64) {
            for name in SHAPES {
                let base = base(name, &device());
                let full = randomized(&FullConfig::default().init(&base, 0).unwrap(), seed).valid();
                let (merged, batch) = (base.merged(&full), batch(&base));
                let unmerged = full.run(&base, &batch).unwrap().states.into_data();
                prop_assert_eq!(Bare {}.run(&merged, &batch).unwrap().states.into_data(), unmerged);
                prop_assert_ne!(base.fingerprint(), merged.fingerprint());
            }
        }

        /// Tensor by tensor: all of them at once soon cross a corner of some ReLU.
        #[test]
        fn gradients_agree_with_central_differences(seed: u64) {
            for shape in SHAPES {
                let base = without_padding(&base(shape, &device()));
                let full = FullConfig::default().init(&base, 0).unwrap();
                let gradients = loss(full.run(&base, &batch(&base)).unwrap()).backward();
                let gradients = named(&full, &GradientsParams::from_grads(gradients, &full));
                let square = |g: &TensorData| g.iter::<f64>().map(|g| g * g).sum::<f64>();
                let norm = gradients.values().map(square).sum::<f64>().sqrt();
                let (count, mut unsettled) = (gradients.len(), 0);
                for (name, gradient) in gradients {
                    let at = |step| {
                        let moved = view(&full, &mut Along { only: &name, seed, step });
                        f64::from(loss(moved.run(&base, &batch(&base)).unwrap()).into_scalar::<f32>())
                    };
                    let mut direction = Random::new(seed, &name);
                    let slope: f64 = gradient.iter::<f64>().map(|g| g * direction.normal()).sum();
                    // A long step leaves the tangent where a softmax is sharp, a short one drowns in rounding.
                    let found = [3e-4, 1e-4, 3e-5, 1e-5].map(|step| (at(step) - at(-step)) / (2.0 * step));
                    let (tolerance, apart) = (f64::from(FINITE_DIFFERENCE.0), |a: f64, b: f64| (a - b).abs() / norm);
                    // With a corner of a ReLU nearby no two steps agree.
                    if !found.windows(2).any(|pair| apart(pair[0], pair[1]) <= tolerance / 4.0) {
                        unsettled += 1;
                        continue;
                    }
                    let error = found.iter().map(|found| apart(*found, slope)).fold(f64::MAX, f64::min);
                    prop_assert!(error <= tolerance, "{shape}, {name}: {slope}, {found:?}");
                }
                prop_assert!(10 * unsettled <= count, "{shape}: {unsettled} of {count} have no slope");
            }
        }
    }
}
