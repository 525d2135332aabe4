//! # AutoPEFT                               family: hybrid / automatic combination
//! u' = u + a(LN(u + x)) + s b(x);   head = softmax(q [Pk; K]^T / sqrt(d_h)) [Pv; V]     in the chosen layers, in the others nothing
//! a(z) = act(z Wd + bd) Wu + bu, Wd: [d, m_a]; b likewise, [d, m_b];  Pk, Pv: [l, d];  m_a, m_b, l: 0 leaves a part out
//! Paper: Zhou et al., 2023, arXiv:2301.12132, sections 3.1 and 3.2.   Reference: cambridgeltl/autopeft
//! Oracle: paper: `autopeft_is_its_equations`
//! Trains: in each chosen layer 2 d m_a + m_a + d, 2 d m_b + m_b + d and 2 l d, of each part that is there.      Merges: no, no part does.
//! Identities:
//! - no layer, or no part, is the base, and trains nothing: `without_layers_or_parts_autopeft_is_the_base`
//! - the parts are the plain methods in the chosen layers: `autopeft_is_its_parts_at_once`
//! - layers that are not chosen are the base's: `a_layer_without_parts_is_the_base`
//! - the other layers have a sequential adapter, a parallel one and a prefix of their own: `autopeft_is_its_equations`
//!
//! Differs from the paper: this is what its search finds; the search itself is `peft_core::search`. Widths and lengths are any numbers, there d / 2^k. Of a T5 the prefix is the decoder's, as everywhere here.

use peft_additive::{ParallelConfig, PrefixTuningConfig, SequentialConfig};
use peft_core::{AnyMethod, Base, Error, Key, Many, Method, Result, Shape};
use serde::{Deserialize, Serialize};

use super::{key_among, side_by_side};

/// A point in the search space of AutoPEFT.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AutoPeftConfig {
    /// The layers that have the parts, by their numbers, a decoder's after its encoder's; all, if absent.
    pub layers: Option<Vec<usize>>,
    /// Width of the sequential adapters' bottleneck; 0 for none.
    pub serial: usize,
    /// Width of the parallel adapters' bottleneck; 0 for none.
    pub parallel: usize,
    /// Number of virtual tokens of the prefix; 0 for none.
    pub prefix: usize,
    /// The factor s of the parallel adapters.
    pub scaling: f64,
}

impl Default for AutoPeftConfig {
    /// All layers with adapters of widths 12 and 96 and one virtual token.
    fn default() -> Self {
        AutoPeftConfig::new(12, 96, 1)
    }
}

impl AutoPeftConfig {
    /// All layers with these widths of serial and parallel adapters and this many virtual tokens.
    pub fn new(serial: usize, parallel: usize, prefix: usize) -> Self {
        AutoPeftConfig { layers: None, serial, parallel, prefix, scaling: 4.0 }
    }

    /// In these layers.
    pub fn with_layers(mut self, layers: impl IntoIterator<Item = usize>) -> Self {
        self.layers = Some(layers.into_iter().collect());
        self
    }

    /// With this factor of the parallel adapters.
    pub fn with_scaling(mut self, scaling: f64) -> Self {
        self.scaling = scaling;
        self
    }

    /// The layers without parts.
    fn left_out(&self, shape: &Shape) -> Result<Vec<usize>> {
        let count: usize = shape.stacks().into_iter().map(|(_, layers)| layers).sum();
        let Some(layers) = &self.layers else { return Ok(vec![]) };
        if let Some(wrong) = layers.iter().find(|layer| **layer >= count) {
            return Err(Error::config("layers", wrong, format!("numbers below {count}, the model's layers")));
        }
        Ok((0..count).filter(|layer| !layers.contains(layer)).collect())
    }

    /// The methods that are there.
    pub fn parts(&self, shape: &Shape) -> Result<Vec<AnyMethod>> {
        let out = self.left_out(shape)?;
        let serial = || SequentialConfig::pfeiffer(self.serial).with_leave_out(out.clone());
        let parallel = || ParallelConfig::new(self.parallel).with_scaling(self.scaling).with_leave_out(out.clone());
        let prefix = || PrefixTuningConfig::new(self.prefix).with_shift_positions(false).with_leave_out(out.clone());
        let parts: [Option<AnyMethod>; 3] = [
            (self.serial > 0).then(|| serial().into()),
            (self.parallel > 0).then(|| parallel().into()),
            (self.prefix > 0).then(|| prefix().into()),
        ];
        // Where no layer can have a part there is none.
        let there = |part: AnyMethod| Ok((part.count(shape)? > 0).then_some(part));
        parts.into_iter().flatten().map(there).filter_map(Result::transpose).collect()
    }
}

impl Method for AutoPeftConfig {
    const NAME: &'static str = "autopeft";
    const PEFT_TYPE: &'static str = "AUTOPEFT";
    type Tuner = Many;

    fn init(&self, base: &Base, seed: u64) -> Result<Many> {
        side_by_side(self.parts(base.shape())?, base, seed)
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        AnyMethod::composed(self.parts(shape)?).count(shape)
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        key_among(self.parts(shape), name, shape)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use peft_core::testing::golden::Case;
    use peft_core::testing::{base, device};
    use peft_core::{Head, Trained};

    use super::*;

    mod some_layers {
        use super::*;
        peft_core::conformance!(
            AutoPeftConfig::new(3, 5, 4).with_layers([1, 2]),
            only(MORE_LAYERS: "there are only two layers"),
            skip(C1: "the prefix takes its share of every softmax", C3: "no part is a weight")
        );
    }

    mod all_layers {
        use super::*;
        peft_core::conformance!(
            AutoPeftConfig::new(3, 5, 4),
            skip(C1: "the prefix takes its share of every softmax", C3: "no part is a weight")
        );
    }

    mod one_part {
        use super::*;
        peft_core::conformance!(AutoPeftConfig::new(0, 5, 0).with_layers([0]), skip(C3: "no part is a weight"));
    }

    const MORE_LAYERS: [&str; 3] = ["roberta-tiny", "t5-tiny", "llama-tiny"];

    #[test]
    fn counts_are_those_of_the_paper_with_its_biases() {
        let shape = Shape::named("roberta-base").unwrap();
        let config = AutoPeftConfig::default();
        assert_eq!(config.clone().with_layers(0..6).count(&shape).unwrap(), 1_014_408);
        assert_eq!(config.count(&shape).unwrap(), 2 * 1_014_408);
        assert_eq!(AutoPeftConfig::new(12, 0, 0).with_layers([3]).count(&shape).unwrap(), 18_432 + 780);
    }

    /// With sequential and parallel adapters and a prefix in the first and the last of three layers.
    #[test]
    fn autopeft_is_its_equations() {
        let case = Case::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/autopeft"), "roberta-classify");
        let config = AutoPeftConfig::new(3, 5, 4).with_layers([0, 2]).with_scaling(2.0);
        let start = Trained::new(config.init(&case.base, 0).unwrap(), Head::classifier(&case.base, 3, 0)).unwrap();
        case.check_from_start(start);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let base = base("roberta-tiny", &device());
        for (config, words) in [
            (AutoPeftConfig::default().with_layers([3]), ["layers", "3", "below 3"]),
            (AutoPeftConfig::new(1000, 0, 0), ["bottleneck", "1000", "1 to 384"]),
            (AutoPeftConfig::new(0, 1, 0).with_scaling(0.0), ["scaling", "0", "other than 0"]),
            (AutoPeftConfig::new(0, 0, 38), ["num_virtual_tokens", "38", "1 to 37"]),
        ] {
            for message in [config.init(&base, 0).unwrap_err(), config.count(base.shape()).unwrap_err()] {
                let message = message.to_string();
                assert!(words.iter().all(|word| message.contains(word)), "{message}");
            }
        }
    }
}
