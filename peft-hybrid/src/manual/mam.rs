//! # MAM adapter                            family: hybrid / manual combination
//! head = softmax(q [Pk; K]^T / sqrt(d_h)) [Pv; V], P = tanh(E W1 + b1) W2 + b2     E: [l, d], W1: [d, h], W2: [h, 2 L d]
//! u' = FFN(x) + s (D(ReLU(x Wd + bd)) Wu + bu)                                    Wd: [d, m], Wu: [m, d] = 0, D dropout in training
//! Paper: He et al., 2021, arXiv:2110.04366, section 4.6.   Reference: jxhe/unify-parameter-efficient-tuning; adapter-hub `MAMConfig`
//! Oracle: code jxhe/unify-parameter-efficient-tuning petl/petl_factory.py: `equals_the_reference`
//! Trains: l d + (d + 1) h + (h + 1) 2 L d for the prefix, L (2 d m + m + d) for the adapters.      Merges: no, neither part does.
//! Identities:
//! - either part around the other is the same function: `both_orders_are_the_same_function`
//! - Wu = 0, bu = 0 is the prefix alone: `silent_adapters_leave_the_prefix`
//! - at init it is its prefix: `it_starts_as_its_prefix`
//! - projected == what its file holds, with P: `a_file_holds_the_prefix_without_its_projection`
//! - positions are those of the bare model: `its_prefix_is_in_the_attention_alone`
//! - D has the model's probability, or that of `dropout`: `the_adapters_have_the_dropout_of_the_model`
//! - a file without `shift_positions` is refused: `files_say_whether_positions_shift`
//! - three prefixes and two adapters a layer are the survey's number of parameters: `the_survey_counts_what_the_official_code_builds`
//!
//! Differs from the paper: of an encoder-decoder, the paper's case, only the decoder's self-attention has a prefix, where PEFT has it on T5; in the authors' code both self-attentions and the cross-attention have one, each with a projection of its own. Files hold P without its projection; trained on, a loaded prefix has none. The adapter reads the residual stream, which a pre-norm model has not normalized yet, as in both references. The authors' code trains no head that is not among the model's own tensors (that of RoBERTa stays random); here heads are trained. Of the three prefixes and the two adapters a layer that it builds an encoder uses one each, which are those here; the survey counts all. AdapterHub's `MAMConfig` has no dropout, and widths of its own.

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
    /// Dropout probability D of the adapters; the model's, if absent.
    pub dropout: Option<f64>,
    /// Whether positions of tokens begin after the prefix; otherwise they are those of the bare model, as in both references.
    pub shift_positions: bool,
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
        MamConfig {
            num_virtual_tokens,
            prefix_projection,
            encoder_hidden_size,
            bottleneck,
            scaling: 4.0,
            dropout: None,
            shift_positions: false,
        }
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

    /// With dropout of this probability in the adapters.
    pub fn with_dropout(mut self, p: f64) -> Self {
        self.dropout = Some(p);
        self
    }

    /// With positions that begin after the prefix, or those of the bare model.
    pub fn with_shift_positions(mut self, shift: bool) -> Self {
        self.shift_positions = shift;
        self
    }

    /// The part in the attention.
    pub fn prefix(&self) -> PrefixTuningConfig {
        let MamConfig { num_virtual_tokens, prefix_projection, encoder_hidden_size, shift_positions, .. } = *self;
        PrefixTuningConfig {
            num_virtual_tokens,
            prefix_projection,
            encoder_hidden_size,
            shift_positions,
            ..Default::default()
        }
    }

    /// The part beside the feed-forward networks.
    pub fn parallel(&self) -> ParallelConfig {
        ParallelConfig { dropout: self.dropout, ..ParallelConfig::new(self.bottleneck).with_scaling(self.scaling) }
    }
}

impl Method for MamConfig {
    const NAME: &'static str = "mam";
    const PEFT_TYPE: &'static str = "MAM_ADAPTER";
    const STATED: &'static [(&'static str, &'static str)] = &[("shift_positions", "true")];
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
    use std::path::Path;

    use burn::module::Module;
    use burn::tensor::Tensor;
    use peft_core::io::peft;
    use peft_core::random::Noise;
    use peft_core::testing::tolerances::SAME_FUNCTION;
    use peft_core::testing::{assert_close, base, batch, device, fixtures::SHAPES, golden::Case, randomized, states};
    use peft_core::view::{Rewrite, tensors, view};
    use peft_core::{Bare, Head, Part, Trained, Tuner, Within};
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
            MamConfig { prefix_projection: false, ..MamConfig::new(5, 7).with_scaling(2.0).with_shift_positions(true) },
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

        /// Without the layers nothing is left of the prefix, of any model.
        #[test]
        fn its_prefix_is_in_the_attention_alone(seed: u64) {
            for base in bases() {
                let none = |config: MamConfig| {
                    let mam = randomized(&config.init(&base, seed).unwrap(), seed);
                    states(&Within::new(mam, 0..0), &base).into_data()
                };
                let bare = states(&Bare {}, &base).into_data();
                prop_assert_eq!(&none(config()), &bare);
                // T5 and LLaMA know no positions but differences of them.
                if base.shape().places().iter().all(|place| place.site.part != Part::Positions) {
                    continue;
                }
                prop_assert_ne!(&none(config().with_shift_positions(true)), &bare);
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
        assert_eq!(config.prefix(), PrefixTuningConfig::new(16).with_projection(800).with_shift_positions(false));
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
    fn equals_the_reference() {
        let case = Case::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/mam"), "roberta-classify");
        let config = MamConfig::new(4, 5).with_projection(11).with_scaling(2.0);
        let head = Head::classifier(&case.base, 3, 0);
        case.check_from_start(Trained::new(config.init(&case.base, 0).unwrap(), head).unwrap());
    }

    #[test]
    fn the_adapters_have_the_dropout_of_the_model() {
        for base in bases() {
            let step = |dropout: Option<f64>, base: &Base| {
                let mam = randomized(&MamConfig { dropout, ..config() }.init(base, 1).unwrap(), 1);
                let batch = batch(base);
                let noise = Noise { seed: 1, step: 0, samples: (0..batch.dims()[0] as u32).collect() };
                mam.run(base, &batch.with_noise(noise)).unwrap().states.into_data()
            };
            let (none, some) = (base.clone().with_dropout(0.0), base.with_dropout(0.3));
            assert_eq!(step(None, &none), step(Some(0.0), &none));
            assert_ne!(step(None, &none), step(Some(0.3), &none));
            assert_eq!(step(None, &some), step(Some(0.3), &some));
            assert_ne!(step(None, &some), step(Some(0.0), &some));
        }
    }

    /// An older file without the setting would be read with other positions than it was trained with.
    #[test]
    fn files_say_whether_positions_shift() {
        let base = base("roberta-tiny", &device());
        let mam = randomized(&config().init(&base, 1).unwrap(), 1);
        let trained = Trained::new(mam, Head::classifier(&base, 2, 0)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("adapter");
        peft::save(&dir, &config(), &trained, base.shape(), &peft::Labels::default(), &[]).unwrap();
        let (read, loaded) = peft::load::<MamConfig>(&dir, &base).unwrap();
        assert!(!read.shift_positions);
        assert_close(states(&loaded.tuner, &base), states(&trained.tuner, &base), SAME_FUNCTION, "loaded");
        let path = dir.join("adapter_config.json");
        let said = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, said.replace("  \"shift_positions\": false,\n", "")).unwrap();
        let message = peft::load::<MamConfig>(&dir, &base).unwrap_err().to_string();
        for word in ["adapter_config.json", "shift_positions", "nothing", "true"] {
            assert!(message.contains(word), "{message}");
        }
        // Of the other kind are also the names of the tensors.
        std::fs::write(&path, said.replace("\"shift_positions\": false", "\"shift_positions\": true")).unwrap();
        let message = peft::load::<MamConfig>(&dir, &base).unwrap_err().to_string();
        assert!(message.contains("prompt_embeddings"), "{message}");
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let base = base("bert-tiny", &device());
        for (config, words) in [
            (MamConfig::new(40, 7), ["num_virtual_tokens", "40", "1 to 39"]),
            (config().with_projection(0), ["encoder_hidden_size", "0", "1 to 65536"]),
            (MamConfig::new(5, 0), ["bottleneck", "0", "1 to 384"]),
            (config().with_scaling(0.0), ["scaling", "0", "other than 0"]),
            (config().with_dropout(1.0), ["dropout", "1", "below 1"]),
        ] {
            for message in [config.init(&base, 0).unwrap_err(), config.count(base.shape()).unwrap_err()] {
                let message = message.to_string();
                assert!(words.iter().all(|word| message.contains(word)), "{message}");
            }
        }
    }
}
