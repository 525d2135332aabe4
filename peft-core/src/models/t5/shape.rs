//! The tensors and the settings of T5.

use serde_json::{Value, json};

use crate::models::family::{Family, ForTexts, Hub};
use crate::models::fields::Fields;
use crate::models::places::{linear, norm, table};
use crate::{Architecture, Part, Place, Result, Shape, Site, Stack};

/// The settings that only T5 has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct T5 {
    /// Layers of the decoder.
    pub decoder_layers: usize,
    /// Whether the feed-forward network is a gated GELU, as from version 1.1 on, not a ReLU.
    pub gated: bool,
    /// Buckets of relative positions.
    pub buckets: usize,
    /// From this distance on, all relative positions are in one bucket.
    pub max_distance: usize,
    /// Whether states are multiplied by hidden^(-1/2) before logits, as where the word table makes them.
    pub scaled: bool,
    /// The token that the decoder starts with.
    pub start: usize,
}

/// The family.
pub(crate) const FAMILY: Family = Family {
    name: "T5",
    prefix: "",
    stacks: &[Stack::Encoder, Stack::Decoder],
    pre_norm: true,
    scales_scores: false,
    rotary: false,
    heads_make_hidden: false,
    for_texts: ForTexts::Written,
    heads: &[],
    aliases: &["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"],
    // transformers says so of all, whatever the configuration says.
    may_be_tied: |_, _| true,
    kept_in_f32: &[Part::Down],
    published: "F32",
    gguf: false,
    special_tokens: (&[1], 1),
    mask_word: None,
    key_value_last: ["k", "v", "wo"],
    hub: Hub {
        feed_forward: [Part::Up, Part::Down],
        linears: "q, k, v (where there are two attentions, of both), wo and wi or wi_1",
        classes: [None, Some("ConditionalGeneration")],
        // The module of the whole sub-layer.
        adapter: |_, path| path.rsplitn(3, '.').last().unwrap_or_default().to_string(),
    },
};

/// A sequence is as long as memory allows; this only bounds what a row may ask for.
const POSITIONS: usize = 65_536;

/// Every tensor: its site, its name in a checkpoint, its shape.
pub(crate) fn places(shape: &Shape, t5: &T5) -> Vec<Place> {
    let Shape { hidden, intermediate, heads, .. } = *shape;
    let inner = shape.heads * shape.head_width;
    let words = Site::encoder(0, Part::Words);
    let mut places = table(words, shape.vocab, hidden, "shared.weight");
    for (stack, layers) in shape.stacks() {
        let stack_name = if stack == Stack::Encoder { "encoder" } else { "decoder" };
        for layer in 0..layers {
            let at = |part| Site { stack, layer, part };
            let name = |sublayer: usize, module: &str| format!("{stack_name}.block.{layer}.layer.{sublayer}.{module}");
            let attention = |sublayer: usize, module: &str, [query, key, value, output]: [Part; 4]| {
                let name = |map: &str| name(sublayer, &format!("{module}.{map}"));
                [
                    linear(at(query), [hidden, inner], name("q"), false),
                    linear(at(key), [hidden, inner], name("k"), false),
                    linear(at(value), [hidden, inner], name("v"), false),
                    linear(at(output), [inner, hidden], name("o"), false),
                ]
                .concat()
            };
            places.extend(attention(0, "SelfAttention", [Part::Query, Part::Key, Part::Value, Part::Output]));
            if layer == 0 {
                let name = name(0, "SelfAttention.relative_attention_bias.weight");
                places.extend(table(at(Part::RelativePositions), t5.buckets, heads, name));
            }
            places.extend(norm(at(Part::NormAttention), hidden, name(0, "layer_norm"), false));
            if stack == Stack::Decoder {
                let parts = [Part::CrossQuery, Part::CrossKey, Part::CrossValue, Part::CrossOutput];
                places.extend(attention(1, "EncDecAttention", parts));
                places.extend(norm(at(Part::NormCrossAttention), hidden, name(1, "layer_norm"), false));
            }
            let last = if stack == Stack::Decoder { 2 } else { 1 };
            let feed = |map: &str| name(last, &format!("DenseReluDense.{map}"));
            if t5.gated {
                places.extend(linear(at(Part::Gate), [hidden, intermediate], feed("wi_0"), false));
                places.extend(linear(at(Part::Up), [hidden, intermediate], feed("wi_1"), false));
            } else {
                places.extend(linear(at(Part::Up), [hidden, intermediate], feed("wi"), false));
            }
            places.extend(linear(at(Part::Down), [intermediate, hidden], feed("wo"), false));
            places.extend(norm(at(Part::NormFeedForward), hidden, name(last, "layer_norm"), false));
        }
        let last = Site { stack, layer: 0, part: Part::NormFinal };
        places.extend(norm(last, hidden, format!("{stack_name}.final_layer_norm"), false));
    }
    if !shape.tied {
        places.extend(table(Site::decoder(0, Part::Vocabulary), shape.vocab, hidden, "lm_head.weight"));
    }
    places
}

/// A published shape.
pub(crate) fn named(name: &str) -> Option<Shape> {
    let (layers, decoder_layers, hidden, heads, head_width, intermediate, vocab, gated) = match name {
        "t5-base" => (12, 12, 768, 12, 64, 3072, 32_128, false),
        "t5-large" => (24, 24, 1024, 16, 64, 4096, 32_128, false),
        "t5-v1_1-base" => (12, 12, 768, 12, 64, 2048, 32_128, true),
        "t5-tiny" => (2, 3, 24, 3, 10, 40, 97, false),
        _ => return None,
    };
    Some(Shape {
        architecture: Architecture::T5(T5 {
            decoder_layers,
            gated,
            buckets: if vocab < 100 { 8 } else { 32 },
            max_distance: if vocab < 100 { 20 } else { 128 },
            scaled: !gated,
            start: 0,
        }),
        layers,
        hidden,
        heads,
        head_width,
        intermediate,
        vocab,
        positions: POSITIONS,
        types: 0,
        eps: 1e-6,
        pad: 0,
        first_position: 0,
        stop: vec![1],
        dropout: 0.1,
        attention_dropout: 0.1,
        classifier_dropout: 0.0,
        pooler: false,
        tied: !gated,
        prefix: "",
    })
}

/// Reads the fields, refusing what is not computed here.
pub(crate) fn from_fields(fields: &Fields<'_>) -> Result<Shape> {
    let vocab = fields.number("vocab_size", None, 1..=4_000_000)?;
    let gated = fields.choice("feed_forward_proj", &[("relu", false), ("gated-gelu", true)])?;
    let layers = fields.number("num_layers", None, 1..=1_000)?;
    let pad = fields.pad(vocab, 0)?.unwrap_or(0);
    let dropout = fields.real("dropout_rate", 0.1, 0.0..1.0)?;
    let tied = fields.flag("tie_word_embeddings", true)?;
    let buckets = fields.number("relative_attention_num_buckets", Some(32), 4..=65_536)?;
    Ok(Shape {
        architecture: Architecture::T5(T5 {
            decoder_layers: fields.number("num_decoder_layers", Some(layers), 1..=1_000)?,
            gated,
            buckets,
            // Below, the logarithm that spreads the upper buckets would be of 1 or less.
            max_distance: fields.number("relative_attention_max_distance", Some(128), buckets / 2 + 1..=1_000_000)?,
            scaled: fields.flag("scale_decoder_outputs", tied)?,
            start: fields.number("decoder_start_token_id", Some(pad), 0..=vocab - 1)?,
        }),
        layers,
        hidden: fields.number("d_model", None, 1..=65_536)?,
        heads: fields.number("num_heads", None, 1..=1_024)?,
        head_width: fields.number("d_kv", None, 1..=65_536)?,
        intermediate: fields.number("d_ff", None, 1..=262_144)?,
        vocab,
        positions: POSITIONS,
        types: 0,
        eps: fields.real("layer_norm_epsilon", 1e-6, 0.0..1.0)?,
        pad,
        first_position: 0,
        stop: fields.ids("eos_token_id", vocab)?.unwrap_or(vec![1]),
        dropout,
        attention_dropout: dropout,
        classifier_dropout: fields.real("classifier_dropout", 0.0, 0.0..1.0)?,
        pooler: false,
        tied,
        prefix: "",
    })
}

/// A `config.json` of this shape.
pub(crate) fn to_config(shape: &Shape, t5: &T5) -> Value {
    json!({
        "model_type": "t5",
        "is_encoder_decoder": true,
        "num_layers": shape.layers,
        "num_decoder_layers": t5.decoder_layers,
        "d_model": shape.hidden,
        "num_heads": shape.heads,
        "d_kv": shape.head_width,
        "d_ff": shape.intermediate,
        "feed_forward_proj": if t5.gated { "gated-gelu" } else { "relu" },
        "vocab_size": shape.vocab,
        "relative_attention_num_buckets": t5.buckets,
        "relative_attention_max_distance": t5.max_distance,
        "layer_norm_epsilon": shape.eps,
        "pad_token_id": shape.pad,
        "eos_token_id": shape.stop,
        "decoder_start_token_id": t5.start,
        "dropout_rate": shape.dropout,
        "classifier_dropout": shape.classifier_dropout,
        "tie_word_embeddings": shape.tied,
        "scale_decoder_outputs": t5.scaled,
    })
}
