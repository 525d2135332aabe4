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

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::{
    Base, Hooks, Key, Merge, Method, Place, Procedure, Result, Shape, Site, SiteMap, Slot, Weight, adapter, place_key,
    slot_name, split_name,
};
use serde::{Deserialize, Serialize};

/// The configuration of full fine-tuning: there is nothing to configure.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FullConfig {}

/// A trainable copy of every tensor of a base. It takes the place of the base's own, so that in a tuple it belongs to the
/// inside: `(Lora, Full)`.
#[derive(Module, Debug)]
pub struct Full {
    /// Matrices `[in, out]` and tables `[rows, hidden]`.
    weights: SiteMap<Param<Tensor<2>>>,
    /// Of the normalizations, `[hidden]`.
    gains: SiteMap<Param<Tensor<1>>>,
    /// Of the linear maps and the normalizations, `[out]`.
    biases: SiteMap<Param<Tensor<1>>>,
}

impl Method for FullConfig {
    const NAME: &'static str = "full";
    const PEFT_TYPE: &'static str = "FULL";
    const ADDS: bool = false;
    type Tuner = Full;

    fn init(&self, base: &Base, _seed: u64) -> Result<Full> {
        Ok(Full::new(
            base.shape().places(),
            |place| Tensor::from_inner(base.weight(place.site).dense()),
            |place| Tensor::from_inner(base.vector(place.site, place.slot)),
        ))
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        Ok(shape.count())
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        let mut places = shape.places().into_iter();
        let place = places.find(|place| slot_name(place.site, place.slot) == name);
        place_key(shape, &place.expect("every tensor is a copy of the base's at its place"))
    }

    fn merge(tuner: &Full) -> Option<&dyn Merge> {
        Some(tuner)
    }
}

impl Full {
    /// A trainable tensor at each of these places.
    pub(crate) fn new(
        places: Vec<Place>,
        weight: impl Fn(&Place) -> Tensor<2>,
        vector: impl Fn(&Place) -> Tensor<1>,
    ) -> Self {
        let at = |slot| places.iter().filter(move |place| place.slot == slot);
        let vectors = |slot| at(slot).map(|place| (place.site, Param::from_tensor(vector(place)))).collect();
        Full {
            weights: at(Slot::Weight).map(|place| (place.site, Param::from_tensor(weight(place)))).collect(),
            gains: vectors(Slot::Gain),
            biases: vectors(Slot::Bias),
        }
    }

    /// The tensor that records call so, if there is one. `D` is its rank.
    pub(crate) fn get<const D: usize>(&self, name: &str) -> Option<Tensor<D>> {
        let (field, site, _) = split_name(name);
        let tensor = match field {
            "weights" => self.weights.get(site)?.val().into_bridge(),
            "gains" => self.gains.get(site)?.val().into_bridge(),
            _ => self.biases.get(site)?.val().into_bridge(),
        };
        Some(Tensor::from_bridge(tensor))
    }

    fn vectors(&self, slot: Slot) -> &SiteMap<Param<Tensor<1>>> {
        if slot == Slot::Gain { &self.gains } else { &self.biases }
    }
}

impl Hooks for Full {
    fn weight(&self, site: Site, w: Weight) -> Weight {
        Merge::weight(self, site, &w).map_or(w, Weight::Dense)
    }

    fn vector(&self, site: Site, slot: Slot, v: Tensor<1>) -> Tensor<1> {
        Merge::vector(self, site, slot, &v).unwrap_or(v)
    }
}

adapter!(Full);

impl Merge for Full {
    fn weight(&self, site: Site, _w: &Weight) -> Option<Tensor<2>> {
        self.weights.get(site).map(Param::val)
    }

    fn vector(&self, site: Site, slot: Slot, _v: &Tensor<1>) -> Option<Tensor<1>> {
        self.vectors(slot).get(site).map(Param::val)
    }
}

impl Procedure for Full {}

#[cfg(test)]
mod tests {
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
