//! What only one family of models has, asked of the family: its folder answers, and nothing else need know it.

use serde_json::Value;

use super::fields::Fields;
use super::llama::{self, Llama, Scaling};
use super::t5::{self, T5};
use super::{Frame, Hidden, bert, plain};
use crate::{Part, Place, Result, Sequence, Shape, Site, Stack};

/// A family of models that share one forward, with the settings that only it has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Architecture {
    /// Devlin et al., 2019: positions from 0, token types, a pooler.
    Bert,
    /// Liu et al., 2019: positions from `pad + 1`, no pooler.
    Roberta,
    /// Raffel et al., 2020: an encoder and a decoder with relative positions.
    T5(T5),
    /// Touvron et al., 2023: a decoder with rotary positions.
    Llama(Llama),
    /// A burn module that is not of this library, with these tensors: it runs by itself.
    Plain(&'static [Place]),
}

/// What is the same for all models of a family.
#[derive(Debug)]
pub struct Family {
    /// What the names of transformers' classes for it begin with; in lower case its `model_type`.
    pub name: &'static str,
    /// What the names of a model's tensors begin with, once it has a head.
    pub prefix: &'static str,
    /// Its stacks in the order of the forward.
    pub stacks: &'static [Stack],
    /// Whether normalizations stand before their sub-layers, which the residual stream passes by, not after.
    pub pre_norm: bool,
    /// Whether scores of attention are divided by the root of the heads' width.
    pub scales_scores: bool,
    /// Whether positions turn pairs of a head's channels, so that its width is even.
    pub rotary: bool,
    /// Whether the widths of all heads make up the hidden width.
    pub heads_make_hidden: bool,
    /// What transformers puts on it for classes and values of texts.
    pub for_texts: ForTexts,
    /// Paths of its heads' modules where they are not BERT's, by their names in records.
    pub heads: &'static [(&'static str, &'static str)],
    /// Other names of the word table, in the order in which transformers looks for it.
    pub aliases: &'static [&'static str],
    /// Whether a model may be tied: by its shape and the `tie_word_embeddings` that its configuration says.
    pub may_be_tied: fn(&Shape, Option<bool>) -> bool,
    /// Parts whose matrices transformers keeps in f32 where others are packed.
    pub kept_in_f32: &'static [Part],
    /// The type of the numbers of published models, as safetensors spells it.
    pub published: &'static str,
    /// Whether llama.cpp's adapters of it are known here.
    pub gguf: bool,
    /// Ids of the special tokens that stand around its texts, as the published models have them, and how many of them stand around two.
    pub special_tokens: (&'static [u32], usize),
    /// The id of the word for a mask, as the published models have it, if there is one.
    pub mask_word: Option<usize>,
    /// What PEFT calls keys, values and the last map of a feed-forward network.
    pub key_value_last: [&'static str; 3],
    /// The family in AdapterHub.
    pub hub: Hub,
}

/// A head for classes and values of texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForTexts {
    /// A linear map of the pooler's output.
    Pooled,
    /// Two linear maps of the first state.
    TwoLayers,
    /// A linear map without a bias of the last state.
    Score,
    /// None: the model writes classes and values as texts.
    Written,
}

/// What AdapterHub has of its own for a family.
#[derive(Debug)]
pub struct Hub {
    /// The maps that it calls intermediate and output.
    pub feed_forward: [Part; 2],
    /// The linear maps on which it has LoRA, in words.
    pub linears: &'static str,
    /// The ends of transformers' classes whose heads it has: for classes, and for words.
    pub classes: [Option<&'static str>; 2],
    /// The module with the adapter of a sub-layer, from the path of the linear map at its end.
    pub adapter: fn(Part, &str) -> String,
}

impl Family {
    /// The path of a head's module where it is not BERT's.
    pub fn head(&self, module: &str) -> Option<&'static str> {
        self.heads.iter().find(|(name, _)| *name == module).map(|(_, path)| *path)
    }
}

impl Architecture {
    /// What is the same for all of the family.
    pub fn family(&self) -> &'static Family {
        match self {
            Architecture::Bert => &bert::BERT,
            Architecture::Roberta => &bert::ROBERTA,
            Architecture::T5(_) => &t5::FAMILY,
            Architecture::Llama(_) => &llama::FAMILY,
            Architecture::Plain(_) => &plain::FAMILY,
        }
    }

    /// Whether it is an encoder alone.
    pub fn is_encoder(&self) -> bool {
        self.family().stacks == [Stack::Encoder]
    }

    /// Whether it is a decoder alone, which writes behind what it reads.
    pub fn is_decoder(&self) -> bool {
        self.family().stacks == [Stack::Decoder]
    }

    /// Whether it is an encoder and a decoder, which reads one text and writes another.
    pub fn is_encoder_decoder(&self) -> bool {
        self.family().stacks.len() == 2
    }

    /// Whether classes and values are texts that it writes.
    pub fn writes_classes(&self) -> bool {
        self.family().for_texts == ForTexts::Written
    }

    /// The token that a decoder behind an encoder starts with.
    pub fn start(&self) -> Option<usize> {
        match self {
            Architecture::T5(t5) => Some(t5.start),
            _ => None,
        }
    }

    /// Whether states are multiplied by hidden^(-1/2) before logits over words.
    pub fn scales_states(&self) -> bool {
        matches!(self, Architecture::T5(t5) if t5.scaled)
    }

    /// The number of layers of its stack that is not the first.
    pub(crate) fn decoder_layers(&self) -> Option<usize> {
        match self {
            Architecture::T5(t5) => Some(t5.decoder_layers),
            _ => None,
        }
    }

    /// With so many layers in the stack that is not the first.
    pub(crate) fn with_layers(self, layers: usize) -> Self {
        match self {
            Architecture::T5(t5) => Architecture::T5(T5 { decoder_layers: layers, ..t5 }),
            other => other,
        }
    }

    /// Heads of keys and values, where they are fewer than those of queries.
    pub(crate) fn kv_heads(&self) -> Option<usize> {
        match self {
            Architecture::Llama(llama) => Some(llama.kv_heads),
            _ => None,
        }
    }

    /// With so many heads of keys and values; `None` where their number follows from the width or from a table.
    pub fn with_kv_heads(self, kv_heads: usize) -> Option<Self> {
        match self {
            Architecture::Llama(llama) => Some(Architecture::Llama(Llama { kv_heads, ..llama })),
            _ => None,
        }
    }

    /// The factor by which rotary positions are scaled as a sequence grows, if they are.
    pub(crate) fn dynamic(&self) -> Option<f64> {
        match self {
            Architecture::Llama(Llama { scaling: Scaling::Dynamic { factor }, .. }) => Some(*factor),
            _ => None,
        }
    }
}

/// A published shape of any family.
pub(crate) fn named(name: &str) -> Option<Shape> {
    bert::named(name).or_else(|| t5::named(name)).or_else(|| llama::named(name))
}

/// The shape that a `config.json` says.
pub(crate) fn from_fields(fields: &Fields<'_>) -> Result<Shape> {
    match fields.get("model_type").and_then(Value::as_str) {
        Some("bert") => bert::from_fields(fields, Architecture::Bert),
        Some("roberta") => bert::from_fields(fields, Architecture::Roberta),
        Some("t5") => t5::from_fields(fields),
        Some("llama") => llama::from_fields(fields),
        _ => Err(fields.wrong("model_type", "bert, roberta, t5 or llama")),
    }
}

/// A `config.json` of a shape.
pub(crate) fn to_config(shape: &Shape) -> Value {
    match &shape.architecture {
        Architecture::Bert | Architecture::Roberta => bert::to_config(shape),
        Architecture::T5(t5) => t5::to_config(shape, t5),
        Architecture::Llama(llama) => llama::to_config(shape, llama),
        Architecture::Plain(_) => Value::Null,
    }
}

/// Every tensor of a backbone.
pub(crate) fn places(shape: &Shape) -> Vec<Place> {
    match &shape.architecture {
        Architecture::Bert | Architecture::Roberta => bert::places(shape),
        Architecture::T5(t5) => t5::places(shape, t5),
        Architecture::Llama(llama) => llama::places(shape, llama),
        Architecture::Plain(places) => places.to_vec(),
    }
}

/// Runs the layers.
pub(crate) fn forward(frame: &Frame<'_>) -> Result<Hidden> {
    match &frame.shape().architecture {
        Architecture::Bert | Architecture::Roberta => bert::forward(frame),
        Architecture::T5(t5) => t5::forward(frame, t5),
        Architecture::Llama(llama) => llama::forward(frame, llama),
        Architecture::Plain(_) => plain::no_forward(),
    }
}

/// What a layer reads beside the sequence.
#[derive(Clone)]
pub(crate) enum Beside {
    Nothing,
    Rotary(Box<llama::Rotary>),
    Encoded(Box<Sequence>),
}

impl Beside {
    /// The frozen computation of a layer.
    pub(crate) fn layer(&self, frame: &Frame<'_>, site: Site, x: Sequence) -> Sequence {
        match (&frame.base.shape.architecture, self) {
            (Architecture::T5(t5), Beside::Encoded(encoded)) => t5::one_layer(frame, t5, site, x, Some(encoded)),
            (Architecture::T5(t5), _) => t5::one_layer(frame, t5, site, x, None),
            (_, Beside::Rotary(rotary)) => llama::decoder_layer(frame, rotary, site.layer, x),
            (_, _) => bert::encoder_layer(frame, site.layer, x),
        }
    }

    pub(crate) fn without_gradients(&self) -> Self {
        match self {
            Beside::Encoded(x) => Beside::Encoded(Box::new(Sequence::clone(x).without_gradients())),
            other => other.clone(),
        }
    }
}
