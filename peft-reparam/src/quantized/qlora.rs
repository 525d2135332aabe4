//! # QLoRA                                  family: reparameterized / low-rank decomposition
//! h = dec(Q) x + s B A x, s = alpha / r    Q: W in four bits, a value of 16 times the largest magnitude of each 64 weights
//! dec(Q)_k = v_(q_k) c_b, c_b = m_(p_b) d + mu     c_b: the magnitude of block b, with double quantization in eight bits p_b over the mean mu of all
//! Paper: Dettmers et al., 2023, arXiv:2305.14314, eq. 5 and 6.   Reference: artidoro/qlora, huggingface/peft tuners/lora/bnb.py
//! Oracle: package peft 0.21.2: `qlora_equals_the_reference`
//! Trains: r (d_in + d_out) per site.      Merges: yes.
//! Identities:
//! - it starts as the packed base, to the bit: `the_start_is_the_packed_base`
//! - it is LoRA on the decoded base, gradients too: `it_is_lora_on_the_decoded_base`
//! - on a base that is packed it is LoRA, to the bit: `on_a_packed_base_it_is_lora`
//! - merged == unmerged, that is dec(Q) + s B A: `C3`
//! - merged and packed again it is what PEFT's merge makes: `qlora_equals_the_reference`
//! - steps leave what is packed as it is: `C5`
//!
//! Differs from the paper: numbers are f32 throughout, where it computes in bf16. Optimizer states are not paged to memory elsewhere. A base that is not packed is packed at the start, and stays in memory beside that: a model that is opened packed (`peft_quant::open`) is never there as a whole. T5's second map of a feed-forward block stays dense, as in transformers.

use burn::module::Module;
use burn::tensor::Tensor;
use peft_core::{
    Adapter, Base, Batch, Error, Hooks, Key, Merge, Method, Procedure, Result, Shape, Site, Sites, Weight,
};
use peft_quant::{Codebook, Scheme, quantized};
use serde::{Deserialize, Serialize};

use super::Instead;
use crate::low_rank::lora::{Lora, LoraConfig};

/// The configuration of QLoRA: LoRA's, and in the names of transformers' `BitsAndBytesConfig` how the base is packed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QLoraConfig {
    /// Rank.
    pub r: usize,
    /// The scale is `lora_alpha / r`.
    pub lora_alpha: f64,
    /// Dropout probability on the input of the low-rank path.
    pub lora_dropout: f64,
    /// Where.
    pub target_modules: Sites,
    /// The 16 values: `nf4` or `fp4`.
    pub bnb_4bit_quant_type: Codebook,
    /// Whether the blocks' magnitudes have eight bits.
    pub bnb_4bit_use_double_quant: bool,
}

impl Default for QLoraConfig {
    /// The authors': rank 64, alpha 16, no dropout, on all linear maps, NF4 with double quantization.
    fn default() -> Self {
        QLoraConfig {
            r: 64,
            lora_alpha: 16.0,
            lora_dropout: 0.0,
            target_modules: Sites::Pattern("all-linear".into()),
            bnb_4bit_quant_type: Codebook::Nf4,
            bnb_4bit_use_double_quant: true,
        }
    }
}

impl QLoraConfig {
    /// Rank `r`, alpha 16, on all linear maps.
    pub fn new(r: usize) -> Self {
        QLoraConfig { r, ..Default::default() }
    }

    /// With this numerator of the scale.
    pub fn with_alpha(mut self, alpha: f64) -> Self {
        self.lora_alpha = alpha;
        self
    }

    /// On these linear maps.
    pub fn with_sites(mut self, sites: impl Into<Sites>) -> Self {
        self.target_modules = sites.into();
        self
    }

    /// On a base that is packed so.
    pub fn with_base(mut self, codebook: Codebook, double: bool) -> Self {
        (self.bnb_4bit_quant_type, self.bnb_4bit_use_double_quant) = (codebook, double);
        self
    }

    /// How the base is packed.
    pub fn scheme(&self) -> Scheme {
        Scheme::FourBit { codebook: self.bnb_4bit_quant_type, double: self.bnb_4bit_use_double_quant }
    }

    /// The adapter alone.
    pub fn lora(&self) -> LoraConfig {
        let QLoraConfig { r, lora_alpha, lora_dropout, ref target_modules, .. } = *self;
        LoraConfig { r, lora_alpha, lora_dropout, target_modules: target_modules.clone(), ..Default::default() }
    }

    /// What stands in the place of a base's dense linear maps. They may be packed already, but only so.
    fn packed(&self, base: &Base) -> Result<Instead> {
        let scheme = self.scheme();
        for (site, path) in base.shape().linears() {
            if let Weight::Packed(w) = base.weight(site)
                && w.kind() != scheme.to_string()
            {
                let expected = match w.kind().parse::<Scheme>() {
                    Ok(Scheme::FourBit { .. }) => format!("{}, as {path} is in the model", w.kind()),
                    _ => format!("a model that is not packed: {path} is {}, on which lora trains as it is", w.kind()),
                };
                return Err(Error::config("bnb_4bit_quant_type, bnb_4bit_use_double_quant", scheme, expected));
            }
        }
        if base.is_hollow() {
            return Ok(Instead::default());
        }
        let packed = quantized(base, scheme)?;
        let replaced = |site: Site| match (base.weight(site), packed.weight(site)) {
            (Weight::Dense(_), w @ Weight::Packed(_)) => Some((site, w.clone())),
            _ => None,
        };
        Ok(base.shape().linears().into_iter().filter_map(|(site, _)| replaced(site)).collect())
    }
}

/// LoRA, and the packed matrices below it. In a tuple with what rewrites matrices it belongs to the inside.
#[derive(Module, Debug)]
pub struct QLora {
    lora: Lora,
    #[module(skip)]
    below: Instead,
}

impl Method for QLoraConfig {
    const NAME: &'static str = "qlora";
    const PEFT_TYPE: &'static str = "QLORA";
    type Tuner = QLora;

    fn init(&self, base: &Base, seed: u64) -> Result<QLora> {
        self.target_modules.resolve(base.shape())?;
        Ok(QLora { lora: self.lora().init(base, seed)?, below: self.packed(base)? })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        self.target_modules.resolve(shape)?;
        self.lora().count(shape)
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        self.lora().key(name.strip_prefix("lora.").unwrap_or(name), shape)
    }

    fn for_files(&self, shape: &Shape) -> Result<Self> {
        Ok(QLoraConfig { target_modules: self.target_modules.by_name(shape)?, ..self.clone() })
    }

    fn merge(tuner: &QLora) -> Option<&dyn Merge> {
        Some(tuner)
    }
}

impl Adapter for QLora {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        self.lora.open(batch, |lora| f(&(lora, &self.below)))
    }
}

impl Merge for QLora {
    fn weight(&self, site: Site, w: &Weight) -> Option<Tensor<2>> {
        let below = self.below.weight(site, w.clone());
        Merge::weight(&self.lora, site, &below).or_else(|| self.below.get(site).map(Weight::dense))
    }
}

impl Procedure for QLora {}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use peft_core::testing::golden::Case;
    use peft_core::testing::tolerances::{REFERENCE, SAME_FUNCTION, SAME_GRADIENT};
    use peft_core::testing::{
        assert_close, base, batch, conformance::loss, device, fixtures::SHAPES, golden::named, randomized, states,
    };
    use peft_core::view::{tensors, with_values};
    use peft_core::{Bare, Part, Trained, Tuner};

    use super::*;

    peft_core::conformance!(QLoraConfig::new(3).with_alpha(5.0), skip(C1: "it starts as the packed base"));

    const BASES: [(Codebook, bool); 4] =
        [(Codebook::Nf4, false), (Codebook::Nf4, true), (Codebook::Fp4, false), (Codebook::Fp4, true)];

    /// A model, the same packed, and QLoRA for it.
    fn all() -> impl Iterator<Item = (Base, Base, QLoraConfig)> {
        SHAPES.into_iter().zip(BASES).map(|(shape, (codebook, double))| {
            let dense = base(shape, &device());
            let config = QLoraConfig::new(3).with_alpha(5.0).with_base(codebook, double);
            let packed = quantized(&dense, config.scheme()).unwrap();
            (dense, packed, config)
        })
    }

    #[test]
    fn the_start_is_the_packed_base() {
        for (dense, packed, config) in all() {
            let start = states(&config.init(&dense, 1).unwrap(), &dense).into_data();
            assert_eq!(start, states(&Bare {}, &packed).into_data());
            assert_ne!(start, states(&Bare {}, &dense).into_data());
        }
    }

    fn gradients<T: Tuner>(tuner: &T, base: &Base) -> BTreeMap<String, Tensor<2>> {
        let loss = loss(tuner.run(base, &batch(base)).unwrap());
        let gradients = burn::optim::GradientsParams::from_grads(loss.backward(), tuner);
        let tensor = |data: burn::tensor::TensorData| Tensor::<2>::from_data(data, &device());
        named(tuner, &gradients).into_iter().map(|(name, data)| (name, tensor(data))).collect()
    }

    #[test]
    fn it_is_lora_on_the_decoded_base() {
        for (dense, packed, config) in all() {
            let decoded = packed.shape().linears().into_iter().fold(packed.clone(), |base, (site, _)| {
                let w = base.weight(site).dense();
                base.with_weight(site, Weight::Dense(w))
            });
            let qlora = randomized(&config.init(&dense, 1).unwrap(), 2);
            assert_close(states(&qlora, &dense), states(&qlora.lora, &decoded), SAME_FUNCTION, "states");
            let (found, expected) = (gradients(&qlora, &dense), gradients(&qlora.lora, &decoded));
            assert_eq!(found.len(), 2 * dense.shape().linears().len());
            for (name, gradient) in found {
                let expected = expected[name.strip_prefix("lora.").unwrap()].clone();
                let largest = expected.clone().abs().max().into_scalar::<f32>();
                assert_close(gradient / largest, expected / largest, SAME_GRADIENT, &name);
            }
        }
    }

    #[test]
    fn on_a_packed_base_it_is_lora() {
        for (dense, packed, config) in all() {
            let qlora = |base| randomized(&config.init(base, 1).unwrap(), 2);
            let bits = |tuner: &QLora, base| states(tuner, base).into_data();
            assert_eq!(bits(&qlora(&packed), &packed), bits(&qlora(&dense), &dense));
            assert_eq!(bits(&qlora(&packed), &packed), states(&qlora(&packed).lora, &packed).into_data());
        }
    }

    #[test]
    fn qlora_equals_the_reference() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/qlora");
        for (name, (codebook, double)) in [("nf4", BASES[0]), ("nf4-double", BASES[1]), ("fp4-double", BASES[3])] {
            let case = Case::open(folder.join(name), folder.join("model").to_str().unwrap());
            let (lora, trained) = case.load::<LoraConfig>();
            let config = QLoraConfig { r: lora.r, lora_alpha: lora.lora_alpha, ..Default::default() }
                .with_base(codebook, double);
            let values = tensors(&trained.tuner).into_iter().map(|(name, data)| (format!("lora.{name}"), data));
            let tuner = with_values(config.init(&case.base, 0).unwrap(), &values.collect()).unwrap();
            let merged = case.base.merged(&tuner.valid());
            let again = quantized(&merged, config.scheme()).unwrap();
            let bare = Trained::new(Bare {}, trained.head.clone()).unwrap();
            let found = bare.logits(&again, &case.batch).unwrap();
            let expected = Tensor::<3>::from_data(case.expected("merged"), &device());
            for (i, length) in [11, 8, 7, 3].into_iter().enumerate() {
                let real = |x: &Tensor<3>| x.clone().slice([i..i + 1, 0..length]);
                assert_close(real(&found), real(&expected), REFERENCE, name);
            }
            case.check_named(&config, Trained::new(tuner, trained.head).unwrap());
        }
    }

    #[test]
    fn a_base_that_is_packed_otherwise_is_refused() {
        let packed = quantized(&base("llama-tiny", &device()), "fp4".parse().unwrap()).unwrap();
        let error = QLoraConfig::new(2).init(&packed, 0).unwrap_err().to_string();
        assert!(error.contains("bnb_4bit_quant_type") && error.contains("nf4-double") && error.contains("fp4, as"));
        let lora = QLoraConfig::new(2).with_base(Codebook::Fp4, false).with_sites(Part::Query);
        lora.init(&packed, 0).unwrap();
    }

    #[test]
    fn it_has_as_many_numbers_as_lora_on_all_linear_maps() {
        let shape = Shape::named("llama-7b").unwrap();
        assert_eq!(QLoraConfig::default().count(&shape).unwrap(), 159_907_840);
    }
}
