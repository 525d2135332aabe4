//! # BitFit                                 family: partial / bias update
//! h = W x + b'                             b' = the base's b, trained; with `added` also of maps without one, b' = 0
//! Paper: Ben Zaken et al., 2021, arXiv:2106.10199.   Reference: benzakenelad/BitFit
//! Oracle: package transformers 5.23.0: `bitfit_equals_the_reference`
//! Trains: every bias (linear maps, normalizations, pooler), or those of some parts; with `added` d_out for each map that has none.      Merges: yes, by overwriting, unless biases are added.
//! Identities:
//! - the base at init, bit for bit: `C1`
//! - merged == unmerged, bit for bit: `C3`, `merging_writes_the_biases_and_nothing_else`
//! - its gradients are those of full fine-tuning: `gradients_are_those_of_full_fine_tuning`
//! - an added bias is that of a map which has it: `added_biases_are_those_of_the_maps`
//! - a key's bias adds the same number to all scores of a query, so that its gradient is 0: `the_bias_of_a_key_has_no_gradient`
//!
//! Differs from the paper: nothing. The survey's list of biases leaves out that of the embeddings' normalization; it is trained.

use std::collections::BTreeSet;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::{
    Base, Error, Hooks, Key, Merge, Method, Next, Part, Place, Procedure, Result, Shape, Site, SiteMap, Slot, adapter,
    file_path, split_name,
};
use serde::{Deserialize, Serialize};

/// The configuration of BitFit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BitFitConfig {
    /// The parts whose biases are trained; every part that has one, if it is not set.
    pub parts: Option<Vec<Part>>,
    /// Whether linear maps without a bias get one, which starts at 0.
    pub added: bool,
    /// Layers whose biases stay, by their numbers; a decoder's come after its encoder's.
    pub leave_out: Vec<usize>,
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

    /// With biases for the linear maps that have none too.
    pub fn with_added(mut self) -> Self {
        self.added = true;
        self
    }

    /// Without the biases in these layers.
    pub fn with_leave_out(mut self, layers: impl IntoIterator<Item = usize>) -> Self {
        self.leave_out = layers.into_iter().collect();
        self
    }

    /// The places of the trained biases, those that are added among them.
    pub(crate) fn plan(&self, shape: &Shape) -> Result<Vec<Place>> {
        let places = shape.places();
        let has = |site: Site| places.iter().any(|p| p.site == site && p.slot == Slot::Bias);
        let bias = |place: &Place| match place.slot {
            Slot::Bias => Some(place.clone()),
            Slot::Weight if self.added && place.transposed && !has(place.site) => {
                let (name, dims) = (format!("{}.bias", place.module()), vec![place.dims[1]]);
                Some(Place { site: place.site, slot: Slot::Bias, dims, transposed: false, name })
            }
            _ => None,
        };
        let biases: Vec<Place> = places.iter().filter_map(bias).collect();
        if biases.is_empty() {
            return Err(Error::config(
                "model",
                "no bias in it",
                "a model with biases: BERT, RoBERTa, some LLaMAs, not T5; or added ones",
            ));
        }
        let left: Vec<Site> = shape.leaving_out(biases.iter().map(|bias| bias.site).collect(), &self.leave_out)?;
        let kept = |bias: &Place| left.contains(&bias.site);
        let Some(parts) = &self.parts else { return Ok(biases.into_iter().filter(kept).collect()) };
        let allowed: BTreeSet<Part> = biases.iter().map(|bias| bias.site.part).collect();
        let wrong = match parts.iter().find(|part| !allowed.contains(part)) {
            Some(part) => part.name(),
            None if parts.is_empty() => "an empty list",
            None => {
                let chosen = |bias: &Place| parts.contains(&bias.site.part) && kept(bias);
                return Ok(biases.into_iter().filter(chosen).collect());
            }
        };
        let names: Vec<&str> = allowed.into_iter().map(Part::name).collect();
        Err(Error::config("parts", wrong, format!("parts with a bias in this model: {}", names.join(", "))))
    }
}

/// A trainable copy of biases of a base, and biases that it does not have.
#[derive(Module, Debug)]
pub struct BitFit {
    /// `[out]` each.
    biases: SiteMap<Param<Tensor<1>>>,
    /// `[out]` each.
    added: SiteMap<Param<Tensor<1>>>,
}

impl Method for BitFitConfig {
    const NAME: &'static str = "bitfit";
    const PEFT_TYPE: &'static str = "BITFIT";
    const ADDS: bool = false;
    type Tuner = BitFit;

    /// The base's values, not differences from 0: weight decay pulls the biases themselves, as in the reference.
    fn init(&self, base: &Base, _seed: u64) -> Result<BitFit> {
        let (device, places) = (base.device().clone().autodiff(), base.shape().places());
        let own = |place: &Place| places.iter().any(|p| p.site == place.site && p.slot == Slot::Bias);
        let (biases, added): (Vec<Place>, Vec<Place>) = self.plan(base.shape())?.into_iter().partition(own);
        let copy = |p: Place| (p.site, Param::from_tensor(Tensor::from_inner(base.vector(p.site, Slot::Bias))));
        let zeros = |p: Place| (p.site, Param::from_tensor(Tensor::zeros([p.count()], &device)));
        Ok(BitFit { biases: biases.into_iter().map(copy).collect(), added: added.into_iter().map(zeros).collect() })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        Ok(self.plan(shape)?.iter().map(Place::count).sum())
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        let (_, site, _) = split_name(name);
        Key::plain(format!("{}.bias", file_path(shape, site)))
    }

    fn merge(tuner: &BitFit) -> Option<&dyn Merge> {
        if tuner.added.is_empty() { Some(tuner) } else { None }
    }
}

impl Hooks for BitFit {
    fn linear(&self, site: Site, x: Tensor<3>, next: Next<'_, Tensor<3>>) -> Tensor<3> {
        match self.added.get(site) {
            Some(bias) => next(x) + bias.val().unsqueeze(),
            None => next(x),
        }
    }

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
        assert_close, base, batch,
        conformance::loss,
        device, difference,
        fixtures::{DECODERS, ENCODERS},
        golden::named,
        randomized, states as states_of,
    };
    use peft_core::view::{tensors, with_values};
    use peft_core::{Architecture, Bare, Head, Tuner, io::peft::from_settings, random::Random};
    use proptest::prelude::*;

    use super::*;
    use crate::{FullConfig, testing::assert_files_hold};

    peft_core::conformance!(BitFitConfig::new(), only(ENCODERS: "T5 and this LLaMA have no bias"));

    mod added {
        use super::*;
        peft_core::conformance!(
            BitFitConfig::new().with_added().with_leave_out([1]),
            skip(C3 on DECODERS: "T5 and this LLaMA have no place for a bias")
        );
    }

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

        /// Against a model of the same tensors whose maps have these biases.
        #[test]
        fn added_biases_are_those_of_the_maps(seed: u64) {
            let plain = base("llama-tiny", &device());
            let mut shape = plain.shape().clone();
            let Architecture::Llama(llama) = &mut shape.architecture else { unreachable!("a LLaMA is one") };
            (llama.attention_bias, llama.mlp_bias) = (true, true);
            let of = |place: &Place| Random::new(seed, &place.name).normal_tensor([place.count()], 0.3, &device()).into_data();
            let tensor = |place: &Place| Ok(if place.slot == Slot::Bias { of(place) } else { plain.tensor_data(place) });
            let biased = Base::new(shape, &device(), tensor).unwrap();
            let biases = biased.shape().places().into_iter().filter(|place| place.slot == Slot::Bias);
            let values = biases.map(|place| (format!("added.{}", place.site), of(&place))).collect();
            let start = BitFitConfig::new().with_added().init(&plain, 0).unwrap();
            prop_assert_eq!(tensors(&start).into_keys().collect::<Vec<_>>(), BTreeMap::keys(&values).cloned().collect::<Vec<_>>());
            let added = with_values(start, &values).unwrap();
            assert_close(states_of(&added, &plain), states_of(&Bare {}, &biased), SAME_FUNCTION, "added");
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
