//! # BitFit                                 family: partial / bias update
//! h = W x + b'                             b' = the base's b, trained
//! Paper: Ben Zaken et al., 2021, arXiv:2106.10199.   Reference: benzakenelad/BitFit
//! Oracle: package transformers 5.23.0: `bitfit_equals_the_reference`
//! Trains: every bias (linear maps, normalizations, pooler), or those of some parts.      Merges: yes, by overwriting.
//! Identities:
//! - the base at init, bit for bit: `C1`
//! - merged == unmerged, bit for bit: `C3`, `merging_writes_the_biases_and_nothing_else`
//! - its gradients are those of full fine-tuning: `gradients_are_those_of_full_fine_tuning`
//! - a key's bias adds the same number to all scores of a query, so that its gradient is 0: `the_bias_of_a_key_has_no_gradient`
//!
//! Differs from the paper: nothing. The survey's list of biases leaves out that of the embeddings' normalization; it is trained.

use std::collections::BTreeSet;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::{
    Base, Error, Hooks, Key, Merge, Method, Part, Place, Procedure, Result, Shape, Site, SiteMap, Slot, adapter,
    file_path, split_name,
};
use serde::{Deserialize, Serialize};

/// The configuration of BitFit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BitFitConfig {
    /// The parts whose biases are trained; every part that has one, if it is not set.
    pub parts: Option<Vec<Part>>,
}

impl BitFitConfig {
    /// Every bias.
    pub fn new() -> Self {
        Self::default()
    }

    /// The biases of these parts only.
    pub fn with_parts(mut self, parts: impl IntoIterator<Item = Part>) -> Self {
        self.parts = Some(parts.into_iter().collect());
        self
    }

    /// The places of the trained biases.
    pub(crate) fn plan(&self, shape: &Shape) -> Result<Vec<Place>> {
        let biases: Vec<Place> = shape.places().into_iter().filter(|p| p.slot == Slot::Bias).collect();
        if biases.is_empty() {
            return Err(Error::config(
                "model",
                "no bias in it",
                "a model with biases: BERT, RoBERTa, some LLaMAs, not T5",
            ));
        }
        let Some(parts) = &self.parts else { return Ok(biases) };
        let allowed: BTreeSet<Part> = biases.iter().map(|bias| bias.site.part).collect();
        let wrong = match parts.iter().find(|part| !allowed.contains(part)) {
            Some(part) => part.name(),
            None if parts.is_empty() => "an empty list",
            None => return Ok(biases.into_iter().filter(|bias| parts.contains(&bias.site.part)).collect()),
        };
        let names: Vec<&str> = allowed.into_iter().map(Part::name).collect();
        Err(Error::config("parts", wrong, format!("parts with a bias in this model: {}", names.join(", "))))
    }
}

/// A trainable copy of biases of a base.
#[derive(Module, Debug)]
pub struct BitFit {
    /// `[out]` each.
    biases: SiteMap<Param<Tensor<1>>>,
}

impl Method for BitFitConfig {
    const NAME: &'static str = "bitfit";
    const PEFT_TYPE: &'static str = "BITFIT";
    const ADDS: bool = false;
    type Tuner = BitFit;

    /// The base's values, not differences from 0: weight decay pulls the biases themselves, as in the reference.
    fn init(&self, base: &Base, _seed: u64) -> Result<BitFit> {
        let bias =
            |place: Place| (place.site, Param::from_tensor(Tensor::from_inner(base.vector(place.site, Slot::Bias))));
        Ok(BitFit { biases: self.plan(base.shape())?.into_iter().map(bias).collect() })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        Ok(self.plan(shape)?.iter().map(Place::count).sum())
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        let (_, site, _) = split_name(name);
        Key::plain(format!("{}.bias", file_path(shape, site)))
    }

    fn merge(tuner: &BitFit) -> Option<&dyn Merge> {
        Some(tuner)
    }
}

impl Hooks for BitFit {
    fn vector(&self, site: Site, slot: Slot, v: Tensor<1>) -> Tensor<1> {
        Merge::vector(self, site, slot, &v).unwrap_or(v)
    }
}

adapter!(BitFit);

impl Merge for BitFit {
    fn vector(&self, site: Site, slot: Slot, _v: &Tensor<1>) -> Option<Tensor<1>> {
        self.biases.get(site).filter(|_| slot == Slot::Bias).map(Param::val)
    }
}

impl Procedure for BitFit {}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use burn::optim::GradientsParams;
    use burn::tensor::TensorData;
    use peft_core::testing::tolerances::SAME_FUNCTION;
    use peft_core::testing::{
        base, batch, conformance::loss, device, difference, fixtures::ENCODERS, golden::named, randomized,
    };
    use peft_core::view::{tensors, with_values};
    use peft_core::{Bare, Head, Tuner, io::peft::from_settings};
    use proptest::prelude::*;

    use super::*;
    use crate::{FullConfig, testing::assert_files_hold};

    peft_core::conformance!(BitFitConfig::new(), only(ENCODERS: "T5 and this LLaMA have no bias"));

    mod some_parts {
        use super::*;
        peft_core::conformance!(
            BitFitConfig::new().with_parts([Part::Query, Part::Up, Part::NormAttention]),
            only(ENCODERS: "T5 and this LLaMA have no bias")
        );
    }

    #[test]
    fn counts_are_the_published_ones() {
        let shape = |name| Shape::named(name).unwrap();
        let count = |config: BitFitConfig, name| config.count(&shape(name)).unwrap();
        let all = BitFitConfig::new;
        assert_eq!(count(all(), "roberta-base"), 102_144);
        assert_eq!(count(all(), "roberta-base") + Head::count(&shape("roberta-base"), 2), 694_274);
        assert_eq!(count(all(), "roberta-large") + Head::count(&shape("roberta-large"), 2), 1_323_010);
        assert_eq!(count(all(), "bert-base"), 102_144 + 768, "the pooler's bias is one of them");
        assert_eq!(count(all().with_parts([Part::Query, Part::Up]), "roberta-base"), 46_080);
    }

    #[test]
    fn what_is_trained_is_what_the_checkpoint_calls_bias() {
        assert_files_hold(&BitFitConfig::new(), &ENCODERS, |place| place.name.ends_with(".bias"));
    }

    #[test]
    fn parts_without_a_bias_are_refused() {
        let base = base("roberta-tiny", &device());
        for (parts, named) in
            [(vec![Part::Query, Part::Pooler], "pooler"), (vec![Part::Words], "words"), (vec![], "empty")]
        {
            let message = BitFitConfig::new().with_parts(parts).init(&base, 0).unwrap_err().to_string();
            let told = message.contains("parts") && message.contains(named) && message.contains("query, key, value");
            assert!(told, "{message}");
        }
        let settings = from_settings::<BitFitConfig>(&["parts=query,up".into()]).unwrap();
        assert_eq!(settings, BitFitConfig::new().with_parts([Part::Query, Part::Up]));
        assert!(from_settings::<BitFitConfig>(&["parts=query,gates".into()]).is_err());
    }

    /// On every architecture, a random state of BitFit.
    fn states(seed: u64) -> impl Iterator<Item = (Base, BitFit)> {
        ENCODERS.into_iter().map(move |name| {
            let base = base(name, &device());
            let bitfit = randomized(&BitFitConfig::new().init(&base, 0).unwrap(), seed);
            (base, bitfit)
        })
    }

    fn gradients(tuner: &impl Tuner, base: &Base) -> BTreeMap<String, TensorData> {
        let loss = loss(tuner.run(base, &batch(base)).unwrap());
        named(tuner, &GradientsParams::from_grads(loss.backward(), tuner))
    }

    fn largest(data: &TensorData) -> f32 {
        data.iter::<f32>().fold(0.0, |m, x| m.max(x.abs()))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]

        #[test]
        fn merging_writes_the_biases_and_nothing_else(seed: u64) {
            for (base, bitfit) in states(seed) {
                let (bitfit, batch) = (bitfit.valid(), batch(&base));
                let merged = base.merged(&bitfit);
                let unmerged = bitfit.run(&base, &batch).unwrap().states.into_data();
                prop_assert_eq!(Bare {}.run(&merged, &batch).unwrap().states.into_data(), unmerged);
                for place in base.shape().places() {
                    let same = base.tensor_data(&place) == merged.tensor_data(&place);
                    prop_assert_eq!(same, place.slot != Slot::Bias, "{}", place.name);
                }
            }
        }

        #[test]
        fn gradients_are_those_of_full_fine_tuning(seed: u64) {
            for (base, bitfit) in states(seed) {
                let full = FullConfig::default().init(&base, 0).unwrap();
                let full = with_values(full, &tensors(&bitfit)).unwrap();
                let (own, all) = (gradients(&bitfit, &base), gradients(&full, &base));
                let largest = own.values().map(largest).fold(0.0, f32::max);
                for (name, gradient) in own {
                    prop_assert!(difference(&gradient, &all[&name]) <= SAME_FUNCTION.0 * largest, "{}", name);
                }
            }
        }

        /// C5 sees a gradient of a key's bias that is not 0, but it is rounding.
        #[test]
        fn the_bias_of_a_key_has_no_gradient(seed: u64) {
            for (base, bitfit) in states(seed) {
                let gradients = gradients(&bitfit, &base);
                let rounding = SAME_FUNCTION.0 * gradients.values().map(largest).fold(0.0, f32::max);
                for layer in 0..base.shape().layers {
                    let size = |part: &str| largest(&gradients[&format!("biases.encoder.{layer}.{part}")]);
                    prop_assert!(size("key") <= rounding && rounding < size("query"), "layer {layer}: {gradients:?}");
                }
            }
        }
    }
}
