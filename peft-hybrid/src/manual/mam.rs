//! # MAM adapter                            family: hybrid / manual combination
//! head = softmax(q [Pk; K]^T / sqrt(d_h)) [Pv; V], P = tanh(E W1 + b1) W2 + b2     E: [l, d], W1: [d, h], W2: [h, 2 L d]
//! u' = FFN(x) + s (ReLU(x Wd + bd) Wu + bu)                                       Wd: [d, m], Wu: [m, d] = 0
//! Paper: He et al., 2021, arXiv:2110.04366, section 4.6.   Reference: jxhe/unify-parameter-efficient-tuning; adapter-hub `MAMConfig`
//! Oracle: paper: `the_survey_counts_what_the_official_code_builds`
//! Trains: l d + (d + 1) h + (h + 1) 2 L d for the prefix, L (2 d m + m + d) for the adapters.      Merges: no, neither part does.
//! Identities:
//! - either part around the other is the same function: `both_orders_are_the_same_function`
//! - Wu = 0, bu = 0 is the prefix alone: `silent_adapters_leave_the_prefix`
//! - at init it is its prefix: `it_starts_as_its_prefix`
//! - projected == what its file holds, with P: `a_file_holds_the_prefix_without_its_projection`
//! - three prefixes and two adapters a layer are the survey's number of parameters: `the_survey_counts_what_the_official_code_builds`
//!
//! Differs from the paper: nothing. The official code builds three prefixes with their maps and two adapters a layer, of which an encoder uses one each; the survey counts them all. AdapterHub's `MAMConfig` has the same parts with widths of its own. On T5 the prefix is where PEFT has it.

use peft_additive::{Parallel, ParallelConfig, PrefixTuning, PrefixTuningConfig};
use peft_core::{Base, Key, Method, Result, Shape};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The configuration of MAM adapters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MamConfig {
    /// Number l of virtual tokens of the prefix.
    pub num_virtual_tokens: usize,
    /// Whether the prefix is computed by two linear maps.
    pub prefix_projection: bool,
    /// Width h between the two linear maps; the model's, if absent.
    pub encoder_hidden_size: Option<usize>,
    /// Width m of the adapters' bottleneck.
    pub bottleneck: usize,
    /// The factor s of the adapters.
    pub scaling: f64,
}

impl Default for MamConfig {
    /// The paper's for translation and summarization: 30 virtual tokens through width 800, adapters of width 512 with scale 4.
    fn default() -> Self {
        MamConfig::new(30, 512)
    }
}

/// A prefix and adapters beside the feed-forward networks.
pub type Mam = (PrefixTuning, Parallel);

impl MamConfig {
    /// This many virtual tokens and adapters of this width, otherwise the paper's.
    pub fn new(num_virtual_tokens: usize, bottleneck: usize) -> Self {
        let (prefix_projection, encoder_hidden_size) = (true, Some(800));
        MamConfig { num_virtual_tokens, prefix_projection, encoder_hidden_size, bottleneck, scaling: 4.0 }
    }

    /// The paper's for GLUE: 16 virtual tokens, adapters of width 16 with scale 2.
    pub fn glue() -> Self {
        MamConfig::new(16, 16).with_scaling(2.0)
    }

    /// With a projection of the prefix through this width.
    pub fn with_projection(mut self, width: usize) -> Self {
        (self.prefix_projection, self.encoder_hidden_size) = (true, Some(width));
        self
    }

    /// With this factor of the adapters.
    pub fn with_scaling(mut self, scaling: f64) -> Self {
        self.scaling = scaling;
        self
    }

    /// The part in the attention.
    pub fn prefix(&self) -> PrefixTuningConfig {
        let MamConfig { num_virtual_tokens, prefix_projection, encoder_hidden_size, .. } = *self;
        PrefixTuningConfig { num_virtual_tokens, prefix_projection, encoder_hidden_size, ..Default::default() }
    }

    /// The part beside the feed-forward networks.
    pub fn parallel(&self) -> ParallelConfig {
        ParallelConfig::new(self.bottleneck).with_scaling(self.scaling)
    }
}

impl Method for MamConfig {
    const NAME: &'static str = "mam";
    const PEFT_TYPE: &'static str = "MAM_ADAPTER";
    type Tuner = Mam;

    fn init(&self, base: &Base, seed: u64) -> Result<Mam> {
        Ok((self.prefix().init(base, seed)?, self.parallel().init(base, seed)?))
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        Ok(self.prefix().count(shape)? + self.parallel().count(shape)?)
    }

    fn virtual_tokens(&self) -> usize {
        self.prefix().virtual_tokens()
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        match name.split_once('.') {
            Some(("0", name)) => self.prefix().key(name, shape),
            Some((_, name)) => self.parallel().key(name, shape),
            None => unreachable!("a tensor of a pair is called by its place in it"),
        }
    }

    fn derived(&self, shape: &Shape) -> Map<String, Value> {
        self.prefix().derived(shape)
    }

    fn to_saved((prefix, parallel): Mam) -> Mam {
        (PrefixTuningConfig::to_saved(prefix), parallel)
    }

    fn for_loading(&self, base: &Base) -> Result<Mam> {
        Ok((self.prefix().for_loading(base)?, self.parallel().for_loading(base)?))
    }
}

#[cfg(test)]
mod tests {
    use burn::module::Module;
    use burn::tensor::Tensor;
    use peft_core::Bare;
    use peft_core::testing::tolerances::SAME_FUNCTION;
    use peft_core::testing::{assert_close, base, device, fixtures::SHAPES, randomized, states};
    use peft_core::view::{Rewrite, tensors, view};
    use proptest::prelude::*;

    use super::*;

    mod projected {
        use super::*;
        peft_core::conformance!(
            MamConfig::new(5, 7).with_projection(11),
            skip(C1: "the prefix takes its share of every softmax", C3: "neither a prefix nor a sub-layer is a weight")
        );
    }

    mod flat {
        use super::*;
        peft_core::conformance!(
            MamConfig { prefix_projection: false, ..MamConfig::new(5, 7).with_scaling(2.0) },
            skip(C1: "the prefix takes its share of every softmax", C3: "neither a prefix nor a sub-layer is a weight")
        );
    }

    fn bases() -> Vec<Base> {
        SHAPES.iter().map(|shape| base(shape, &device())).collect()
    }

    fn config() -> MamConfig {
        MamConfig::new(5, 7).with_projection(11)
    }

    /// Zeros in the adapters' second map.
    struct Silent;

    impl Rewrite for Silent {
        fn tensor<const D: usize>(&mut self, name: &str, t: Tensor<D>) -> Tensor<D> {
            if name.contains(".up.") { t.zeros_like() } else { t }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]

        #[test]
        fn both_orders_are_the_same_function(seed: u64) {
            for base in bases() {
                let (prefix, parallel) = randomized(&config().init(&base, seed).unwrap(), seed);
                let bits = |tuner: &dyn Fn() -> Tensor<3>| tuner().into_data();
                let both = bits(&|| states(&(prefix.clone(), parallel.clone()), &base));
                prop_assert_eq!(&both, &bits(&|| states(&(parallel.clone(), prefix.clone()), &base)));
                prop_assert_ne!(&both, &bits(&|| states(&prefix, &base)));
                prop_assert_ne!(&both, &bits(&|| states(&parallel, &base)));
            }
        }

        #[test]
        fn silent_adapters_leave_the_prefix(seed: u64) {
            for base in bases() {
                let mam = randomized(&config().init(&base, seed).unwrap(), seed).valid();
                let silent = view(&mam, &mut Silent);
                prop_assert_ne!(states(&mam, &base).into_data(), states(&mam.0, &base).into_data());
                prop_assert_eq!(states(&silent, &base).into_data(), states(&mam.0, &base).into_data());
            }
        }

        #[test]
        fn it_starts_as_its_prefix(seed: u64) {
            for base in bases() {
                let start = config().init(&base, seed).unwrap();
                let prefix = config().prefix().init(&base, seed).unwrap();
                prop_assert_eq!(states(&start, &base).into_data(), states(&prefix, &base).into_data());
                prop_assert_ne!(states(&start, &base).into_data(), states(&Bare {}, &base).into_data());
            }
        }

        #[test]
        fn a_file_holds_the_prefix_without_its_projection(seed: u64) {
            for base in bases() {
                let mam = randomized(&config().init(&base, seed).unwrap(), seed).valid();
                let saved = MamConfig::to_saved(mam.clone());
                prop_assert!(tensors(&saved).keys().all(|name| !name.contains("projection")));
                assert_close(states(&saved, &base), states(&mam, &base), SAME_FUNCTION, "saved");
            }
        }
    }

    /// Beside the prefix of the self-attention, official code has one for a decoder's and one for a cross-attention; beside the
    /// adapter of a layer, one in its output module.
    #[test]
    fn the_survey_counts_what_the_official_code_builds() {
        let config = MamConfig::glue();
        assert_eq!(config.parallel(), ParallelConfig::new(16).with_scaling(2.0));
        assert_eq!(config.prefix(), PrefixTuningConfig::new(16).with_projection(800));
        for (shape, ours, survey) in
            [("roberta-base", 15_695_840, 46_783_200), ("roberta-large", 41_018_528, 122_244_192)]
        {
            let shape = Shape::named(shape).unwrap();
            assert_eq!(config.count(&shape).unwrap(), ours);
            let parts = [config.prefix().count(&shape).unwrap(), config.parallel().count(&shape).unwrap()];
            assert_eq!(3 * parts[0] + 2 * parts[1], survey);
        }
        let base = Shape::named("roberta-base").unwrap();
        let deployed = |config: MamConfig| MamConfig { prefix_projection: false, ..config }.count(&base).unwrap();
        assert_eq!([MamConfig::default(), MamConfig::glue()].map(deployed), [10_005_504, 599_232]);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let base = base("bert-tiny", &device());
        for (config, words) in [
            (MamConfig::new(40, 7), ["num_virtual_tokens", "40", "1 to 39"]),
            (config().with_projection(0), ["encoder_hidden_size", "0", "1 to 65536"]),
            (MamConfig::new(5, 0), ["bottleneck", "0", "1 to 384"]),
            (config().with_scaling(0.0), ["scaling", "0", "other than 0"]),
        ] {
            for message in [config.init(&base, 0).unwrap_err(), config.count(base.shape()).unwrap_err()] {
                let message = message.to_string();
                assert!(words.iter().all(|word| message.contains(word)), "{message}");
            }
        }
    }
}
