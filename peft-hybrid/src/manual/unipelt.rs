//! # UniPELT                                family: hybrid / manual combination
//! q, v: W x + g B A x;   head = softmax(q [g Pk; K]^T / sqrt(d_h)) [g Pv; V];   u' = u + g (act(z Wd + bd) Wu + bu), z = LN(u + x)
//! g = mean over a text of sigmoid(h w + b), each g its own     w: [d, 1], h what the map, the attention's projections or the adapter read
//! Paper: Mao et al., 2022, arXiv:2110.07577, section 3.   Reference: morningmoni/UniPELT; adapter-hub `UniPELTConfig`
//! Oracle: package adapters 1.3.0: `equals_the_package`
//! Trains: LoRA's r (d_in + d_out) per map, the prefix, 2 d m + m + d per layer, and d + 1 for each of 4 gates a layer.      Merges: no, a gate depends on the text.
//! Identities:
//! - g = 1 is LoRA with s = 1, prefix tuning and sequential adapters at once: `open_gates_leave_the_three`
//! - g = 0 is a prefix of zeros, which takes its share of the softmax: `closed_gates_leave_a_prefix_of_zeros`
//! - g is one number for a text: `a_gate_is_one_number_for_a_text`
//! - padding is no part of a text: `C7`
//! - with `pool_padding` it is, as in both references: `equals_the_package`
//! - B = 0 leaves LoRA's gates without a gradient: `a_gate_on_nothing_has_no_gradient`
//! - what LoRA and adapters add bare is what their hooks add: `what_is_added_bare_is_what_hooks_add`
//!
//! Differs from the paper: both references take the mean over padding too, so that a text's result depends on its batch; here by `pool_padding` only, and then a batch is not cut. A decoder would see words ahead through the mean: encoders only. The gate takes the place of LoRA's alpha / r, as in both references. Files hold the prefix without its projection; trained on, a loaded prefix has none.

use burn::module::Module;
use burn::tensor::{Tensor, activation};
use peft_additive::adapters::bottleneck::projection;
use peft_additive::{PrefixTuning, PrefixTuningConfig, Sequential, SequentialConfig};
use peft_core::{
    Adapter, Added, Affine, AnyTuner, Attention, Base, Batch, Delta, Error, Frame, Hooks, Key, Mask, Method, Next,
    Part, Procedure, Result, Sequence, Shape, Site, SiteMap, Stack, file_path,
    random::{Noise, Random},
    split_name,
};
use peft_reparam::{Lora, LoraConfig};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The configuration of UniPELT.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UniPeltConfig {
    /// Rank of LoRA on queries and values.
    pub r: usize,
    /// Number of virtual tokens of the prefix.
    pub num_virtual_tokens: usize,
    /// Whether the prefix is computed by two linear maps.
    pub prefix_projection: bool,
    /// Width between the two linear maps; the model's, if absent.
    pub encoder_hidden_size: Option<usize>,
    /// Width m of the adapters' bottleneck.
    pub bottleneck: usize,
    /// Whether padding takes part in a gate's mean.
    pub pool_padding: bool,
}

impl Default for UniPeltConfig {
    /// The paper's: rank 8, 10 virtual tokens through width 512, adapters of width 48.
    fn default() -> Self {
        UniPeltConfig::new(8, 10, 48)
    }
}

impl UniPeltConfig {
    /// LoRA of this rank, so many virtual tokens and adapters of this width, otherwise the paper's.
    pub fn new(r: usize, num_virtual_tokens: usize, bottleneck: usize) -> Self {
        let (prefix_projection, encoder_hidden_size, pool_padding) = (true, Some(512), false);
        UniPeltConfig { r, num_virtual_tokens, prefix_projection, encoder_hidden_size, bottleneck, pool_padding }
    }

    /// With a projection of the prefix through this width.
    pub fn with_projection(mut self, width: usize) -> Self {
        (self.prefix_projection, self.encoder_hidden_size) = (true, Some(width));
        self
    }

    /// With padding in the gates' means, or without.
    pub fn with_pool_padding(mut self, pool_padding: bool) -> Self {
        self.pool_padding = pool_padding;
        self
    }

    /// LoRA, with a scale of 1.
    pub fn lora(&self) -> LoraConfig {
        LoraConfig::new(self.r).with_alpha(self.r as f64)
    }

    /// The prefix.
    pub fn prefix(&self) -> PrefixTuningConfig {
        let UniPeltConfig { num_virtual_tokens, prefix_projection, encoder_hidden_size, .. } = *self;
        let config = PrefixTuningConfig::new(num_virtual_tokens).with_shift_positions(false);
        PrefixTuningConfig { prefix_projection, encoder_hidden_size, ..config }
    }

    /// The adapters.
    pub fn adapter(&self) -> SequentialConfig {
        SequentialConfig::pfeiffer(self.bottleneck)
    }

    /// Where the gates are: at LoRA's maps, and at the sub-layers with a prefix and an adapter.
    fn gates(&self, shape: &Shape) -> Result<Vec<Site>> {
        if !shape.architecture.is_encoder() {
            let expected =
                "Bert or Roberta: a gate is the mean over a whole text, of which a decoder's tokens see a part";
            return Err(Error::config("model", shape.architecture.family().name, expected));
        }
        let maps = self.lora().target_modules.resolve(shape)?.into_iter();
        Ok(maps.chain(shape.sites(Part::SelfAttention)).chain(shape.sites(Part::FeedForward)).collect())
    }
}

/// LoRA, a prefix and adapters, each behind gates.
#[derive(Module, Debug)]
pub struct UniPelt {
    lora: Lora,
    prefix: PrefixTuning,
    adapter: Sequential,
    /// Weight `[d, 1]` and bias `[1]` each.
    gates: SiteMap<Affine>,
    #[module(skip)]
    pool_padding: bool,
}

impl Method for UniPeltConfig {
    const NAME: &'static str = "unipelt";
    const PEFT_TYPE: &'static str = "UNIPELT";
    type Tuner = UniPelt;

    fn init(&self, base: &Base, seed: u64) -> Result<UniPelt> {
        let (d, device) = (base.shape().hidden, base.device().clone().autodiff());
        let gate = |site| {
            let random = Random::new(seed, &format!("unipelt.{site}.gate"));
            (site, Affine::init([d, 1], 0.02, random, &device))
        };
        Ok(UniPelt {
            gates: self.gates(base.shape())?.into_iter().map(gate).collect(),
            lora: self.lora().init(base, seed)?,
            prefix: self.prefix().init(base, seed)?,
            adapter: self.adapter().init(base, seed)?,
            pool_padding: self.pool_padding,
        })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        let gates = self.gates(shape)?.len() * (shape.hidden + 1);
        Ok(gates + self.lora().count(shape)? + self.prefix().count(shape)? + self.adapter().count(shape)?)
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        match name.split_once('.') {
            Some(("lora", name)) => self.lora().key(name, shape),
            Some(("prefix", name)) => self.prefix().key(name, shape),
            Some(("adapter", name)) => self.adapter().key(name, shape),
            _ => {
                let (_, site, leaf) = split_name(name);
                let (site, of) = match site.part {
                    Part::SelfAttention => (projection(site), "prefix"),
                    Part::FeedForward => (projection(site), "adapter"),
                    _ => (site, "lora"),
                };
                let name = format!("{}.{of}_gate.{leaf}", file_path(shape, site));
                if leaf == "weight" { Key::transposed(name) } else { Key::plain(name) }
            }
        }
    }

    fn derived(&self, shape: &Shape) -> Map<String, Value> {
        self.prefix().derived(shape)
    }

    fn to_saved(tuner: UniPelt) -> UniPelt {
        UniPelt { prefix: PrefixTuningConfig::to_saved(tuner.prefix), ..tuner }
    }

    fn for_loading(&self, base: &Base) -> Result<UniPelt> {
        UniPeltConfig { prefix_projection: false, ..self.clone() }.init(base, 0)
    }
}

/// The three during one run.
struct Opened<'a> {
    own: &'a UniPelt,
    batch: &'a Batch,
    prefix: &'a dyn Hooks,
}

impl Opened<'_> {
    /// The gate at a site of what is read there, `[batch, 1, 1]`.
    fn gate(&self, site: Site, read: Tensor<3>) -> Tensor<3> {
        let gate = self.own.gates.get(site).unwrap_or_else(|| unreachable!("whatever adds has a gate"));
        let open = activation::sigmoid(gate.forward(read));
        let Some(padding) = self.batch.padding.clone().filter(|_| !self.own.pool_padding) else {
            return open.mean_dim(1);
        };
        // Rows of a prompt stand in front of the text.
        let prompt = open.dims()[1] - padding.dims()[1];
        let padding = Mask { padding: Some(padding), ..Mask::default() }.prepend(prompt).padding;
        let real = padding.map(|padding| padding.bool_not().float().unsqueeze_dim::<3>(2));
        let real = real.unwrap_or_else(|| unreachable!("a mask keeps its padding"));
        (open * real.clone()).sum_dim(1) / real.sum_dim(1)
    }
}

impl Hooks for Opened<'_> {
    fn sublayer(&self, frame: &Frame<'_>, site: Site, x: Sequence, next: Next<'_, Sequence, Tensor<3>>) -> Tensor<3> {
        let residual = x.hidden.clone();
        let output = next(x);
        match self.own.adapter.to_sublayer(frame, site, &residual, &output) {
            Some(Added { read, delta }) => output + delta * self.gate(site, read),
            None => output,
        }
    }

    fn linear(&self, site: Site, x: Tensor<3>, next: Next<'_, Tensor<3>>) -> Tensor<3> {
        match self.own.lora.to_linear(self.batch, site, &x) {
            Some(delta) => next(x.clone()) + delta * self.gate(site, x),
            None => next(x),
        }
    }

    fn attend(&self, site: Site, a: Attention, next: Next<'_, Attention, Tensor<4>>) -> Tensor<4> {
        let (gate, keys) = (self.gate(site, a.input.clone()).unsqueeze_dim::<4>(1), a.key.dims()[2]);
        let gated = |x: Tensor<4>| {
            let rows = x.dims()[2] - keys;
            Tensor::cat(vec![x.clone().narrow(2, 0, rows) * gate.clone(), x.narrow(2, rows, keys)], 2)
        };
        self.prefix.attend(site, a, &|a| next(Attention { key: gated(a.key), value: gated(a.value), ..a }))
    }

    fn embed(&self, stack: Stack, x: Sequence) -> Sequence {
        self.prefix.embed(stack, x)
    }
}

impl Adapter for UniPelt {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        self.prefix.open(batch, |prefix| f(&Opened { own: self, batch, prefix }))
    }

    fn view(&self, base: &Base, noise: Option<&Noise>) -> Result<Option<AnyTuner>> {
        let prefix = Adapter::view(&self.prefix, base, noise)?.and_then(AnyTuner::downcast);
        Ok(prefix.map(|prefix| AnyTuner::new(UniPelt { prefix, ..self.clone() })))
    }
}

impl Procedure for UniPelt {
    fn couples_samples(&self) -> bool {
        self.pool_padding
    }
}

#[cfg(test)]
mod tests {
    use peft_core::testing::fixtures::ENCODERS;

    use super::*;

    mod projected {
        use super::*;
        peft_core::conformance!(
            UniPeltConfig::new(3, 5, 7).with_projection(11),
            only(ENCODERS: "a decoder would see words ahead through a gate's mean"),
            skip(C1: "the prefix takes its share of every softmax", C3: "a gate depends on the text")
        );
    }

    mod flat_with_padding {
        use super::*;
        peft_core::conformance!(
            UniPeltConfig { prefix_projection: false, ..UniPeltConfig::new(3, 5, 7).with_pool_padding(true) },
            only(ENCODERS: "a decoder would see words ahead through a gate's mean"),
            skip(
                C1: "the prefix takes its share of every softmax",
                C3: "a gate depends on the text",
                C7: "padding takes part in a gate's mean"
            )
        );
    }

    #[test]
    fn has_as_many_parameters_as_the_reference() {
        let (shape, config) = (Shape::named("roberta-base").unwrap(), UniPeltConfig::default());
        assert_eq!(config.count(&shape).unwrap(), 11_083_376);
        assert_eq!(UniPeltConfig { prefix_projection: false, ..config }.count(&shape).unwrap(), 1_410_672);
    }

    #[test]
    fn a_decoder_is_refused_by_name() {
        for shape in ["t5-tiny", "llama-tiny"] {
            let base = peft_core::testing::base(shape, &peft_core::testing::device());
            let message = UniPeltConfig::new(3, 5, 7).init(&base, 0).unwrap_err().to_string();
            assert!(message.contains("model: ") && message.contains("Bert or Roberta"), "{message}");
        }
    }
}
