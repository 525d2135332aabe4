//! # Prefix tuning                          family: additive / soft prompt-based
//! head = softmax(q [Pk; K]^T / sqrt(d_h)) [Pv; V]     one row of M: key and value of layer 0, of layer 1, ..
//! M = P, or M = tanh(P W1 + b1) W2 + b2               P: [l, 2 L d], or P: [l, d], W1: [d, h], W2: [h, 2 L d]
//! Paper: Li and Liang, 2021, arXiv:2101.00190, sections 4.2 and 4.3.   Reference: huggingface/peft tuners/prefix_tuning
//! Oracle: package peft 0.21.2: `equals_the_reference`, `equals_the_reference_with_a_projection`
//! Trains: 2 L l d, or l d + (d + 1) h + (h + 1) 2 L d.      Merges: no, the rows are in the softmax.
//! Identities:
//! - head = (1 - g) head(K, V) + g head(Pk, Pv), g the share of the prefix in the softmax: `a_prefix_is_a_gate`
//! - the order of the rows does not matter: `rows_can_be_permuted`
//! - a row r times is that row with its score + ln r: `a_repeated_row_has_a_higher_score`
//! - projected == flat with M: `a_projection_folds_into_the_flat_form`
//! - no layers == the frozen model on positions shifted by l: `positions_begin_after_the_prefix`
//! - no layers without `shift_positions` == the frozen model: `positions_stay_in_place`
//!
//! Differs from the paper: without projection by default, and h = d, as in PEFT (the paper projects, h = 512); files hold M only, as PEFT's do, so that a loaded prefix has no projection. With `shift_positions` off, positions do not move, as in AdapterHub (which has LLaMA's prefix only with transformers' `eager` attention, and masks it with others); on T5 nothing is then added to the prefix's scores, as in the code of MAM adapters for BART. On T5, as in PEFT, only the self-attention of the decoder has a prefix, and its layer l of L takes the entries 4 l and 4 l + 1 modulo 2 L, so that of an even L half are never used. On LLaMA M is as wide as the key heads, and rows of the prefix are not turned by position. AdapterHub's prefixes of T5, in all three attentions and at other distances, are not offered, nor is dropout on M.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, activation};
use peft_core::adapterhub::{AdapterHub, Fields, HubKey, Kind, Layout, field, wrong};
use peft_core::{
    Adapter, Affine, AnyTuner, Attention, Base, Batch, Error, Hooks, Key, Method, Next, Part, Procedure, Result,
    Sequence, Shape, Site, Stack,
    random::{Noise, Random},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::adapters::hub::LAYERS;

use super::{check_length, derived, torch_linear};

/// The configuration of prefix tuning, in the names of PEFT's `PrefixTuningConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrefixTuningConfig {
    /// Number of virtual tokens.
    pub num_virtual_tokens: usize,
    /// Whether keys and values are computed from fewer numbers by two linear maps.
    pub prefix_projection: bool,
    /// Width between the two linear maps; the model's, if absent.
    pub encoder_hidden_size: Option<usize>,
    /// For how many layers there are keys and values; those of the model that have a prefix, if absent. PEFT counts the layers of a
    /// T5's encoder, where the decoder has the prefix: of more than it has, all are saved and the first ones used.
    pub num_layers: Option<usize>,
    /// Whether positions of tokens begin after the prefix, as in PEFT; otherwise they are those of the bare model, as in AdapterHub, and
    /// the prefix has none (on T5 no distance). PEFT does not have this setting, and refuses files in which it is off: their tensor has
    /// another name.
    pub shift_positions: bool,
    /// Layers without a prefix, by their numbers; a T5's decoder's come after its encoder's, which have none. PEFT does not have this
    /// setting either.
    pub leave_out: Vec<usize>,
}

impl Default for PrefixTuningConfig {
    /// 20 virtual tokens without projection.
    fn default() -> Self {
        PrefixTuningConfig {
            num_virtual_tokens: 20,
            prefix_projection: false,
            encoder_hidden_size: None,
            num_layers: None,
            shift_positions: true,
            leave_out: vec![],
        }
    }
}

/// The widest projection.
const MAX_WIDTH: usize = 65_536;

/// The most layers of a T5's encoder.
const MAX_LAYERS: usize = 1_000;

impl PrefixTuningConfig {
    /// This many virtual tokens, without projection.
    pub fn new(num_virtual_tokens: usize) -> Self {
        PrefixTuningConfig { num_virtual_tokens, ..Default::default() }
    }

    /// With a projection through this width.
    pub fn with_projection(mut self, width: usize) -> Self {
        (self.prefix_projection, self.encoder_hidden_size) = (true, Some(width));
        self
    }

    /// With positions that begin after the prefix, or those of the bare model.
    pub fn with_shift_positions(mut self, shift: bool) -> Self {
        self.shift_positions = shift;
        self
    }

    /// Without a prefix in these layers.
    pub fn with_leave_out(mut self, layers: impl IntoIterator<Item = usize>) -> Self {
        self.leave_out = layers.into_iter().collect();
        self
    }

    /// Checks the settings; gives the shape of the embedding and, for a projection, the width between its maps.
    fn plan(&self, shape: &Shape) -> Result<([usize; 2], Option<usize>)> {
        check_length(self.num_virtual_tokens, shape)?;
        let least = self.sites(shape)?.len();
        let most = if shape.stacks().len() == 2 { MAX_LAYERS } else { least };
        let count = self.layers(shape)?;
        if !(least..=most).contains(&count) {
            let expected = if least == most {
                format!("{least}, as in the model")
            } else {
                format!("{least} or more: the decoder has as many")
            };
            return Err(Error::config("num_layers", count, expected));
        }
        let width = self.encoder_hidden_size.unwrap_or(key_width(shape));
        if !(1..=MAX_WIDTH).contains(&width) {
            let expected = format!("1 to {MAX_WIDTH}, or null for the model's width");
            return Err(Error::config("encoder_hidden_size", width, expected));
        }
        Ok(match self.prefix_projection {
            true => ([self.num_virtual_tokens, key_width(shape)], Some(width)),
            false => ([self.num_virtual_tokens, self.flat_width(shape)?], None),
        })
    }

    /// The attentions with a prefix.
    fn sites(&self, shape: &Shape) -> Result<Vec<Site>> {
        let last = shape.stacks().last().map(|(stack, _)| *stack);
        let sites = shape.sites(Part::SelfAttention).into_iter().filter(|site| Some(site.stack) == last);
        shape.leaving_out(sites.collect(), &self.leave_out)
    }

    /// The number of layers for which there are keys and values.
    fn layers(&self, shape: &Shape) -> Result<usize> {
        self.num_layers.map_or_else(|| Ok(self.sites(shape)?.len()), Ok)
    }

    /// A key and a value for each layer.
    fn flat_width(&self, shape: &Shape) -> Result<usize> {
        Ok(2 * self.layers(shape)? * key_width(shape))
    }
}

/// AdapterHub's `PrefixTuningConfig`.
impl PrefixTuningConfig {
    /// The flat form's, which is what files hold.
    fn hub_fields(&self, shape: &Shape) -> Result<Fields> {
        if shape.architecture.is_encoder_decoder() {
            let expected = "bert, roberta or llama: on T5 AdapterHub has prefixes in all three attentions, at distances of its own";
            return Err(Error::config("model", "t5", expected));
        }
        if self.shift_positions {
            let expected = "false: in AdapterHub the positions of tokens are those of the bare model";
            return Err(Error::config("shift_positions", true, expected));
        }
        let fields = json!({
            "architecture": "prefix_tuning", "encoder_prefix": true, "cross_prefix": true, "leave_out": self.leave_out, "flat": true,
            "prefix_length": self.num_virtual_tokens, "bottleneck_size": 512, "non_linearity": "tanh", "dropout": 0.0,
            "use_gating": false, "shared_gating": true, "init_weights_seed": null,
        });
        Ok(fields.as_object().cloned().unwrap_or_default())
    }

    fn of_hub(fields: &Fields, shape: &Shape) -> Result<Self> {
        let leave_out: Vec<usize> = field(fields, "leave_out", LAYERS)?;
        let config = Self::new(field(fields, "prefix_length", "a number from 1")?).with_leave_out(leave_out);
        let config = config.with_shift_positions(false);
        if field(fields, "flat", "true or false")? {
            return Ok(config);
        }
        if key_width(shape) != shape.hidden {
            return Err(wrong(fields, "flat", "true on a model whose keys are narrower than its states"));
        }
        let expected = "tanh";
        if field::<String>(fields, "non_linearity", expected)? != expected {
            return Err(wrong(fields, "non_linearity", expected));
        }
        Ok(config.with_projection(field(fields, "bottleneck_size", "a number from 1")?))
    }

    fn hub_key(&self, name: &str, adapter: &str, shape: &Shape) -> HubKey {
        let (leaf, layout) = match (name, self.prefix_projection) {
            ("embedding", false) => ("control_trans", Layout::Flat),
            ("embedding", true) => ("wte.weight", Layout::Same),
            ("projection.inner.weight", _) => ("control_trans.0.weight", Layout::Transposed),
            ("projection.inner.bias", _) => ("control_trans.0.bias", Layout::Same),
            ("projection.outer.weight", _) => ("control_trans.2.weight", Layout::Transposed),
            _ => ("control_trans.2.bias", Layout::Same),
        };
        HubKey::new(format!("{}prefix_tuning.prefix_tunings.{adapter}.self_prefix.{leaf}", shape.prefix), layout)
    }
}

/// Keys or values of a row, of all heads.
fn key_width(shape: &Shape) -> usize {
    shape.kv_heads() * shape.head_width
}

/// Keys and values in front of those of every self-attention.
#[derive(Module, Debug)]
pub struct PrefixTuning {
    /// `[virtual tokens, 2 layers hidden]`, or `[virtual tokens, hidden]` in front of a projection.
    embedding: Param<Tensor<2>>,
    projection: Option<Projection>,
    #[module(skip)]
    heads: usize,
    #[module(skip)]
    layers: usize,
    /// The attentions with a prefix.
    #[module(skip)]
    sites: Vec<Site>,
    /// Whether the model is T5, of which PEFT gives a prefix to the decoder only.
    #[module(skip)]
    t5: bool,
    #[module(skip)]
    shift_positions: bool,
}

/// What keys and values are computed by.
#[derive(Module, Debug)]
pub struct Projection {
    /// `[hidden, width]`.
    pub inner: Affine,
    /// `[width, 2 layers hidden]`.
    pub outer: Affine,
}

impl PrefixTuning {
    /// All keys and values, `[virtual tokens, 2 layers hidden]`.
    fn flat(&self) -> Tensor<2> {
        match &self.projection {
            None => self.embedding.val(),
            Some(p) => p.outer.forward(activation::tanh(p.inner.forward(self.embedding.val()))),
        }
    }
}

impl Method for PrefixTuningConfig {
    const NAME: &'static str = "prefix";
    const PEFT_TYPE: &'static str = "PREFIX_TUNING";
    const OWN_SETTINGS: &'static [&'static str] = &["shift_positions", "leave_out"];
    const HEAD_PREFIX: &'static str = "base_model.";
    type Tuner = PrefixTuning;

    fn init(&self, base: &Base, seed: u64) -> Result<PrefixTuning> {
        let (shape, device) = (base.shape(), base.device().clone().autodiff());
        let ((dims, width), flat_width) = (self.plan(shape)?, self.flat_width(shape)?);
        let embedding = Random::new(seed, "prefix_tuning.embedding").normal_tensor(dims, 1.0, &device);
        let linear =
            |dims: [usize; 2], name| torch_linear(dims, dims[0], seed, &format!("prefix_tuning.{name}"), &device);
        let projection = width.map(|width| Projection {
            inner: linear([key_width(shape), width], "inner"),
            outer: linear([width, flat_width], "outer"),
        });
        Ok(PrefixTuning {
            embedding: Param::from_tensor(embedding),
            projection,
            heads: shape.kv_heads(),
            layers: self.layers(shape)?,
            sites: self.sites(shape)?,
            t5: shape.architecture.is_encoder_decoder(),
            shift_positions: self.shift_positions,
        })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        let ([rows, columns], width) = self.plan(shape)?;
        let flat_width = self.flat_width(shape)?;
        let projection = width.map_or(0, |h| (columns + 1) * h + (h + 1) * flat_width);
        Ok(rows * columns + projection)
    }

    /// Files hold the flat form only, which has one tensor.
    fn key(&self, _name: &str, _shape: &Shape) -> Key {
        // Files that PEFT would compute something else with must not load there.
        let of_peft = self.shift_positions && self.leave_out.is_empty();
        Key::plain(if of_peft { "prompt_embeddings" } else { "prompt_embeddings_in_place" })
    }

    fn virtual_tokens(&self) -> usize {
        if self.shift_positions { self.num_virtual_tokens } else { 0 }
    }

    fn adapterhub() -> Option<AdapterHub<Self>> {
        let free = &[
            "flat",
            "bottleneck_size",
            "non_linearity",
            "encoder_prefix",
            "cross_prefix",
            "shared_gating",
            "init_weights_seed",
        ];
        Some(AdapterHub {
            kind: Kind::Prefix,
            fields: Self::hub_fields,
            config: Self::of_hub,
            free,
            key: Self::hub_key,
        })
    }

    fn derived(&self, shape: &Shape) -> Map<String, Value> {
        // What is wrong with the settings was said when it started.
        derived(shape, self.layers(shape).unwrap_or_default(), shape.kv_heads(), key_width(shape))
    }

    fn to_saved(tuner: PrefixTuning) -> PrefixTuning {
        let flat = Param::initialized(tuner.embedding.id, tuner.flat());
        PrefixTuning { embedding: flat, projection: None, ..tuner }
    }

    fn for_loading(&self, base: &Base) -> Result<PrefixTuning> {
        PrefixTuningConfig { prefix_projection: false, ..self.clone() }.init(base, 0)
    }
}

/// A prefix during one run.
struct Opened<'a> {
    /// Keys and values in turn, `[2 layers, heads, virtual tokens, head width]`.
    entries: Tensor<4>,
    sites: &'a [Site],
    t5: bool,
    shift_positions: bool,
}

impl Opened<'_> {
    /// The entries of a key and its value.
    fn places(&self, site: Site) -> Option<[usize; 2]> {
        let first = 2 * self.sites.iter().position(|own| *own == site)?;
        let entries = self.entries.dims()[0];
        Some([0, 1].map(|i| if self.t5 { (2 * first + i) % entries } else { first + i }))
    }
}

impl Hooks for Opened<'_> {
    /// The tokens' positions come after those of the prefix, which itself has none.
    fn embed(&self, stack: Stack, x: Sequence) -> Sequence {
        match !self.shift_positions || self.t5 && stack == Stack::Encoder {
            true => x,
            false => Sequence { offset: x.offset + self.entries.dims()[2], ..x },
        }
    }

    fn attend(&self, site: Site, a: Attention, next: Next<'_, Attention, Tensor<4>>) -> Tensor<4> {
        let Some([key, value]) = self.places(site) else { return next(a) };
        let ([_, heads, n, width], batch) = (self.entries.dims(), a.key.dims()[0]);
        let prepend = |entry: usize, x: Tensor<4>| {
            let front = self.entries.clone().narrow(0, entry, 1).expand([batch, heads, n, width]);
            Tensor::cat(vec![front, x], 2)
        };
        next(Attention { key: prepend(key, a.key), value: prepend(value, a.value), mask: a.mask.extend(n), ..a })
    }
}

impl Adapter for PrefixTuning {
    fn open<R>(&self, _batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        if self.layers == 0 {
            return f(&());
        }
        let flat = self.flat();
        let ([n, columns], entries) = (flat.dims(), 2 * self.layers);
        let split = flat.reshape([n, entries, self.heads, columns / entries / self.heads]);
        let (entries, PrefixTuning { sites, t5, shift_positions, .. }) = (split.permute([1, 2, 0, 3]), self);
        f(&Opened { entries, sites, t5: *t5, shift_positions: *shift_positions })
    }

    fn view(&self, _base: &Base, _noise: Option<&Noise>) -> Result<Option<AnyTuner>> {
        Ok(self.projection.is_some().then(|| AnyTuner::new(PrefixTuningConfig::to_saved(self.clone()))))
    }
}

impl Procedure for PrefixTuning {}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::{Path, PathBuf};

    use peft_core::load::Checkpoint;
    use peft_core::testing::{base, device, golden::Case};
    use peft_core::view::{tensors, with_values};
    use peft_core::{Head, Trained};

    use super::*;

    mod flat {
        use super::*;
        peft_core::conformance!(
            PrefixTuningConfig::new(5),
            skip(C1: "the prefix takes its share of every softmax", C3: "a prefix is no weight")
        );
    }

    mod projected {
        use super::*;
        peft_core::conformance!(
            PrefixTuningConfig::new(5).with_projection(11),
            skip(C1: "the prefix takes its share of every softmax", C3: "a prefix is no weight")
        );
    }

    mod some_layers {
        use super::*;
        peft_core::conformance!(
            PrefixTuningConfig::new(5).with_leave_out([1]),
            skip(C1: "the prefix takes its share of every softmax", C3: "a prefix is no weight")
        );
    }

    mod in_place {
        use super::*;
        peft_core::conformance!(
            PrefixTuningConfig::new(5).with_projection(7).with_shift_positions(false),
            skip(C1: "the prefix takes its share of every softmax", C3: "a prefix is no weight")
        );
    }

    fn golden(case: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case)
    }

    #[test]
    fn equals_the_reference() {
        for (case, base) in [
            ("prefix", "roberta-classify"),
            ("prefix-bert", "bert-classify"),
            ("prefix-t5", "t5"),
            ("prefix-t5-even", "t5-even"),
            ("prefix-llama", "llama"),
        ] {
            Case::open(golden(case), base).check_method::<PrefixTuningConfig>();
        }
    }

    #[test]
    fn equals_the_reference_with_a_projection() {
        let case = Case::open(golden("prefix-projection"), "roberta-classify");
        let (config, loaded) = case.load::<PrefixTuningConfig>();
        let file = Checkpoint::open_file(&golden("prefix-projection").join("projection.safetensors")).unwrap();
        let key = |name: &str| match name {
            "tuner.embedding" => Key::plain("embedding.weight"),
            "tuner.projection.inner.weight" => Key::transposed("transform.0.weight"),
            "tuner.projection.inner.bias" => Key::plain("transform.0.bias"),
            "tuner.projection.outer.weight" => Key::transposed("transform.2.weight"),
            "tuner.projection.outer.bias" => Key::plain("transform.2.bias"),
            head => {
                let Key { name, transposed } = Head::key(&head["head.".len()..], case.base.shape().architecture);
                Key { name: format!("base_model.{name}"), transposed }
            }
        };
        let fresh = Trained::new(config.init(&case.base, 0).unwrap(), loaded.head).unwrap();
        let mut values = BTreeMap::new();
        for name in tensors(&fresh).into_keys().filter(|name| name.starts_with("tuner.")) {
            let Key { name: file_name, transposed } = key(&name);
            let data = file.read_f32(&file_name, file.shape(&file_name).unwrap()).unwrap();
            let stored = |data| Tensor::<2>::from_data(data, case.base.device());
            values.insert(name, if transposed { stored(data).transpose().into_data() } else { data });
        }
        case.check(with_values(fresh, &values).unwrap(), key);
    }

    #[test]
    fn has_as_many_parameters_as_the_survey_says() {
        for (shape, total) in [("roberta-base", 960_770), ("roberta-large", 2_034_690)] {
            let shape = Shape::named(shape).unwrap();
            assert_eq!(PrefixTuningConfig::default().count(&shape).unwrap() + Head::count(&shape, 2), total);
        }
        let shape = Shape::named("roberta-base").unwrap();
        let projected = PrefixTuningConfig { prefix_projection: true, ..Default::default() };
        assert_eq!(projected.count(&shape).unwrap(), 14_780_160);
        assert_eq!(projected.with_projection(512).count(&shape).unwrap(), 9_864_704);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let base = base("bert-tiny", &device());
        for (config, words) in [
            (PrefixTuningConfig::new(0), ["num_virtual_tokens", "0", "1 to 39"]),
            (PrefixTuningConfig::new(40), ["num_virtual_tokens", "40", "1 to 39"]),
            (PrefixTuningConfig::new(3).with_projection(0), ["encoder_hidden_size", "0", "1 to 65536"]),
            (
                PrefixTuningConfig::new(3).with_projection(100_000_000_000),
                ["encoder_hidden_size", "100000000000", "1 to 65536"],
            ),
        ] {
            let message = config.init(&base, 0).unwrap_err().to_string();
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
    }
}
