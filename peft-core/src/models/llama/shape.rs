//! The tensors and the settings of LLaMA.

use serde_json::{Value, json};

use crate::models::family::{Family, ForTexts, Hub};
use crate::models::fields::Fields;
use crate::models::places::{linear, norm, table};
use crate::{Architecture, Part, Place, Result, Shape, Site, Stack};

/// The settings that only LLaMA has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Llama {
    /// Heads of keys and values, each shared by as many heads of queries.
    pub kv_heads: usize,
    /// The base of the rotary frequencies.
    pub theta: f64,
    /// How positions beyond those of the pretraining are reached.
    pub scaling: Scaling,
    /// Whether the maps of the attention have biases.
    pub attention_bias: bool,
    /// Whether the maps of the feed-forward network have biases.
    pub mlp_bias: bool,
    /// The row of the word table that gets no gradient as the embedding of a token: that of `pad_token_id`, as in transformers.
    pub padding: Option<usize>,
}

/// A scaling of rotary frequencies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    /// None.
    None,
    /// Positions divided by `factor` (Chen et al., 2023, arXiv:2306.15595).
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// A base that grows with the sequence, beyond the pretraining's length (NTK-aware scaling, "dynamic" in transformers).
    Dynamic {
        /// By how much the length may grow.
        factor: f64,
    },
    /// Low frequencies divided by `factor`, high ones kept, those between interpolated (LLaMA 3.1).
    Llama3 {
        /// The divisor.
        factor: f64,
        /// Wavelengths above `original / low` are divided.
        low: f64,
        /// Wavelengths below `original / high` are kept.
        high: f64,
        /// The pretraining's length.
        original: usize,
    },
}

/// The family.
pub(crate) const FAMILY: Family = Family {
    name: "Llama",
    prefix: "model.",
    stacks: &[Stack::Decoder],
    pre_norm: true,
    scales_scores: true,
    rotary: true,
    heads_make_hidden: false,
    for_texts: ForTexts::Score,
    heads: &[("Tokens.out", "score")],
    aliases: &["lm_head.weight"],
    may_be_tied: |shape, _| shape.tied,
    kept_in_f32: &[],
    published: "BF16",
    gguf: true,
    special_tokens: (&[1], 1),
    mask_word: None,
    key_value_last: ["k_proj", "v_proj", "down_proj"],
    hub: Hub {
        // The package has the two the other way round.
        feed_forward: [Part::Down, Part::Up],
        linears: "q_proj, k_proj, v_proj, up_proj and down_proj",
        classes: [Some("SequenceClassification"), Some("CausalLM")],
        adapter: |part, path| {
            let of = if part == Part::SelfAttention { "attention" } else { "output" };
            format!("{}.{of}_adapters", path.rsplitn(3, '.').last().unwrap_or_default())
        },
    },
};

/// Every tensor: its site, its name in a checkpoint, its shape.
pub(crate) fn places(shape: &Shape, llama: &Llama) -> Vec<Place> {
    let Shape { hidden, intermediate, .. } = *shape;
    let (queries, keys) = (shape.heads * shape.head_width, llama.kv_heads * shape.head_width);
    let mut places = table(Site::decoder(0, Part::Words), shape.vocab, hidden, "embed_tokens.weight");
    for layer in 0..shape.layers {
        let at = |part| Site::decoder(layer, part);
        let attention = |part, dims, map: &str| {
            linear(at(part), dims, format!("layers.{layer}.self_attn.{map}_proj"), llama.attention_bias)
        };
        let feed =
            |part, dims, map: &str| linear(at(part), dims, format!("layers.{layer}.mlp.{map}_proj"), llama.mlp_bias);
        let norm = |part, module: &str| norm(at(part), hidden, format!("layers.{layer}.{module}"), false);
        places.extend(norm(Part::NormAttention, "input_layernorm"));
        places.extend(attention(Part::Query, [hidden, queries], "q"));
        places.extend(attention(Part::Key, [hidden, keys], "k"));
        places.extend(attention(Part::Value, [hidden, keys], "v"));
        places.extend(attention(Part::Output, [queries, hidden], "o"));
        places.extend(norm(Part::NormFeedForward, "post_attention_layernorm"));
        places.extend(feed(Part::Gate, [hidden, intermediate], "gate"));
        places.extend(feed(Part::Up, [hidden, intermediate], "up"));
        places.extend(feed(Part::Down, [intermediate, hidden], "down"));
    }
    places.extend(norm(Site::decoder(0, Part::NormFinal), hidden, "norm", false));
    if !shape.tied {
        places.extend(table(Site::decoder(0, Part::Vocabulary), shape.vocab, hidden, "lm_head.weight"));
    }
    places
}

/// A published shape.
pub(crate) fn named(name: &str) -> Option<Shape> {
    let (layers, hidden, heads, kv_heads, intermediate, vocab, positions, tied) = match name {
        "llama-7b" => (32, 4096, 32, 32, 11_008, 32_000, 2048, false),
        "llama-13b" => (40, 5120, 40, 40, 13_824, 32_000, 2048, false),
        "tinyllama-1.1b" => (22, 2048, 32, 4, 5632, 32_000, 2048, false),
        "smollm2-135m" => (30, 576, 9, 3, 1536, 49_152, 8192, true),
        "llama-tiny" => (3, 24, 4, 2, 40, 97, 40, false),
        _ => return None,
    };
    Some(Shape {
        architecture: Architecture::Llama(Llama {
            kv_heads,
            theta: if tied { 100_000.0 } else { 10_000.0 },
            scaling: Scaling::None,
            attention_bias: false,
            mlp_bias: false,
            padding: Some(0),
        }),
        layers,
        hidden,
        heads,
        head_width: hidden / heads,
        intermediate,
        vocab,
        positions,
        types: 0,
        eps: if tied || name == "tinyllama-1.1b" { 1e-5 } else { 1e-6 },
        pad: 0,
        first_position: 0,
        stop: vec![2],
        dropout: 0.0,
        attention_dropout: 0.0,
        classifier_dropout: 0.0,
        pooler: false,
        tied,
        prefix: "model.",
    })
}

/// Reads the fields, refusing what is not computed here.
pub(crate) fn from_fields(fields: &Fields<'_>) -> Result<Shape> {
    fields.choice("hidden_act", &[("silu", ())])?;
    let hidden = fields.number("hidden_size", None, 1..=65_536)?;
    let heads = fields.number("num_attention_heads", None, 1..=1_024)?;
    let kv_heads = fields.number("num_key_value_heads", Some(heads), 1..=heads)?;
    if heads % kv_heads != 0 {
        return Err(fields.wrong("num_key_value_heads", format!("a divisor of num_attention_heads {heads}")));
    }
    if fields.get("head_dim").is_none() && hidden % heads != 0 {
        return Err(fields.wrong("num_attention_heads", format!("a divisor of hidden_size {hidden}")));
    }
    let head_width = fields.number("head_dim", Some(hidden / heads), 2..=65_536)?;
    if head_width % 2 != 0 {
        return Err(fields.wrong("head_dim", "an even number: rotary positions turn pairs"));
    }
    let vocab = fields.number("vocab_size", None, 1..=4_000_000)?;
    let stop = fields.ids("eos_token_id", vocab)?.unwrap_or_default();
    let pad = fields.pad(vocab, stop.first().copied().unwrap_or(0))?.unwrap_or(0);
    let padding = match fields.get("pad_token_id").and_then(Value::as_i64) {
        // As torch counts rows.
        Some(id) if id < 0 => usize::try_from(vocab as i64 + id).ok(),
        id => id.map(|id| id as usize),
    };
    let positions = fields.number("max_position_embeddings", Some(2048), 1..=100_000_000)?;
    let (theta, scaling) = rotary(fields, positions)?;
    Ok(Shape {
        architecture: Architecture::Llama(Llama {
            kv_heads,
            theta,
            scaling,
            attention_bias: fields.flag("attention_bias", false)?,
            mlp_bias: fields.flag("mlp_bias", false)?,
            padding,
        }),
        layers: fields.number("num_hidden_layers", None, 1..=1_000)?,
        hidden,
        heads,
        head_width,
        intermediate: fields.number("intermediate_size", None, 1..=262_144)?,
        vocab,
        positions,
        types: 0,
        eps: fields.real("rms_norm_eps", 1e-6, 0.0..1.0)?,
        pad,
        first_position: 0,
        stop,
        dropout: 0.0,
        attention_dropout: fields.real("attention_dropout", 0.0, 0.0..1.0)?,
        // Of a head for tokens; one for texts has none.
        classifier_dropout: fields.real("classifier_dropout", 0.1, 0.0..1.0)?,
        pooler: false,
        tied: fields.flag("tie_word_embeddings", false)?,
        prefix: "model.",
    })
}

/// Base and scaling: `rope_theta` and `rope_scaling`, or `rope_parameters` of transformers 5.
fn rotary(fields: &Fields<'_>, positions: usize) -> Result<(f64, Scaling)> {
    let (parameters, legacy) = (fields.get("rope_parameters"), fields.get("rope_scaling"));
    if parameters.is_some() && legacy.is_some() && parameters != legacy {
        return Err(fields.wrong("rope_scaling", "the same as rope_parameters, or none of the two"));
    }
    let key = if fields.get("rope_parameters").is_some() { "rope_parameters" } else { "rope_scaling" };
    let empty = Value::Object(Default::default());
    let inner = Fields { config: fields.get(key).unwrap_or(&empty), path: fields.path };
    let theta = if inner.get("rope_theta").is_some() { &inner } else { fields }.real("rope_theta", 1e4, 1e-3..1e12)?;
    let kind = if inner.get("rope_type").is_some() { "rope_type" } else { "type" };
    let factor = || {
        inner
            .real("factor", f64::NAN, 1.0..1e6)
            .and_then(|factor| if factor.is_nan() { Err(inner.wrong("factor", "a number from 1")) } else { Ok(factor) })
    };
    let kinds = [("default", 0), ("linear", 1), ("dynamic", 2), ("llama3", 3)];
    let scaling = match inner.choice(kind, &kinds)? {
        1 => Scaling::Linear { factor: factor()? },
        2 => Scaling::Dynamic { factor: factor()? },
        3 => {
            let (low, high) =
                (inner.real("low_freq_factor", 1.0, 1e-6..1e6)?, inner.real("high_freq_factor", 4.0, 1e-6..1e6)?);
            if low >= high {
                return Err(inner.wrong("high_freq_factor", format!("a number above low_freq_factor {low}")));
            }
            let original = inner.number("original_max_position_embeddings", Some(positions), 1..=100_000_000)?;
            Scaling::Llama3 { factor: factor()?, low, high, original }
        }
        _ => Scaling::None,
    };
    Ok((theta, scaling))
}

/// A `config.json` of this shape.
pub(crate) fn to_config(shape: &Shape, llama: &Llama) -> Value {
    let scaling = match llama.scaling {
        Scaling::None => Value::Null,
        Scaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
        Scaling::Dynamic { factor } => json!({"rope_type": "dynamic", "factor": factor}),
        Scaling::Llama3 { factor, low, high, original } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": original,
        }),
    };
    json!({
        "model_type": "llama",
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": llama.kv_heads,
        "head_dim": shape.head_width,
        "intermediate_size": shape.intermediate,
        "hidden_act": "silu",
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.positions,
        "rms_norm_eps": shape.eps,
        "rope_theta": llama.theta,
        "rope_scaling": scaling,
        "attention_bias": llama.attention_bias,
        "mlp_bias": llama.mlp_bias,
        "attention_dropout": shape.attention_dropout,
        "classifier_dropout": shape.classifier_dropout,
        "pad_token_id": llama.padding,
        "eos_token_id": shape.stop,
        "tie_word_embeddings": shape.tied,
    })
}
