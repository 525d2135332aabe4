//! The tensors and the settings of BERT and RoBERTa.

use serde_json::{Value, json};

use crate::models::family::{Family, ForTexts, Hub};
use crate::models::fields::Fields;
use crate::models::places::{linear, norm, table};
use crate::{Architecture, Part, Place, Result, Shape, Site, Stack};

/// BERT.
pub(crate) const BERT: Family = Family {
    name: "Bert",
    prefix: "bert.",
    stacks: &[Stack::Encoder],
    pre_norm: false,
    scales_scores: true,
    rotary: false,
    heads_make_hidden: true,
    for_texts: ForTexts::Pooled,
    heads: &[],
    aliases: &["cls.predictions.decoder.weight"],
    may_be_tied: |_, told| told != Some(false),
    kept_in_f32: &[],
    published: "F32",
    gguf: false,
    special_tokens: (&[101, 102], 3),
    mask_word: Some(103),
    key_value_last: ["key", "value", "output.dense"],
    hub: Hub {
        feed_forward: [Part::Up, Part::Down],
        linears: "query, key, value, intermediate.dense and (not the attention's) output.dense",
        classes: [Some("SequenceClassification"), None],
        adapter: |_, path| path.trim_end_matches(".dense").to_string(),
    },
};

/// RoBERTa.
pub(crate) const ROBERTA: Family = Family {
    name: "Roberta",
    prefix: "roberta.",
    for_texts: ForTexts::TwoLayers,
    heads: &[
        ("Classifier.out", "classifier.out_proj"),
        ("MaskedLm", "lm_head"),
        ("MaskedLm.decoder", "lm_head.decoder"),
        ("MaskedLm.dense", "lm_head.dense"),
        ("MaskedLm.norm", "lm_head.layer_norm"),
    ],
    aliases: &["lm_head.decoder.weight"],
    special_tokens: (&[0, 2], 4),
    mask_word: Some(50264),
    ..BERT
};

/// Every tensor: its site, its name in a checkpoint, its shape.
pub(crate) fn places(shape: &Shape) -> Vec<Place> {
    let Shape { hidden, intermediate, .. } = *shape;
    let embedding = |part, rows, word: &str| {
        table(Site::encoder(0, part), rows, hidden, format!("embeddings.{word}_embeddings.weight"))
    };
    let layer = |layer: usize| {
        let linear = |part, dims, module: &str| {
            linear(Site::encoder(layer, part), dims, format!("encoder.layer.{layer}.{module}"), true)
        };
        let norm = |part, module: &str| {
            norm(Site::encoder(layer, part), hidden, format!("encoder.layer.{layer}.{module}.LayerNorm"), true)
        };
        [
            linear(Part::Query, [hidden, hidden], "attention.self.query"),
            linear(Part::Key, [hidden, hidden], "attention.self.key"),
            linear(Part::Value, [hidden, hidden], "attention.self.value"),
            linear(Part::Output, [hidden, hidden], "attention.output.dense"),
            norm(Part::NormAttention, "attention.output"),
            linear(Part::Up, [hidden, intermediate], "intermediate.dense"),
            linear(Part::Down, [intermediate, hidden], "output.dense"),
            norm(Part::NormFeedForward, "output"),
        ]
        .concat()
    };
    let mut places = [
        embedding(Part::Words, shape.vocab, "word"),
        embedding(Part::Positions, shape.positions, "position"),
        embedding(Part::Types, shape.types, "token_type"),
        norm(Site::encoder(0, Part::NormEmbedding), hidden, "embeddings.LayerNorm", true),
    ]
    .concat();
    places.extend((0..shape.layers).flat_map(layer));
    if shape.pooler {
        places.extend(linear(Site::encoder(0, Part::Pooler), [hidden, hidden], "pooler.dense", true));
    }
    places
}

/// A published shape.
pub(crate) fn named(name: &str) -> Option<Shape> {
    let (architecture, layers, hidden, heads, intermediate, vocab, positions) = match name {
        "roberta-base" => (Architecture::Roberta, 12, 768, 12, 3072, 50265, 514),
        "roberta-large" => (Architecture::Roberta, 24, 1024, 16, 4096, 50265, 514),
        "bert-base" => (Architecture::Bert, 12, 768, 12, 3072, 30522, 512),
        "bert-large" => (Architecture::Bert, 24, 1024, 16, 4096, 30522, 512),
        "minilm-l6" => (Architecture::Bert, 6, 384, 12, 1536, 30522, 512),
        "roberta-tiny" => (Architecture::Roberta, 3, 24, 3, 40, 97, 40),
        "bert-tiny" => (Architecture::Bert, 2, 24, 3, 40, 97, 40),
        _ => return None,
    };
    let roberta = architecture == Architecture::Roberta;
    Some(Shape {
        architecture,
        layers,
        hidden,
        heads,
        head_width: hidden / heads,
        intermediate,
        vocab,
        positions,
        types: if roberta { 1 } else { 2 },
        eps: if roberta { 1e-5 } else { 1e-12 },
        pad: usize::from(roberta),
        first_position: if roberta { 2 } else { 0 },
        stop: vec![],
        dropout: 0.1,
        attention_dropout: 0.1,
        classifier_dropout: 0.1,
        pooler: !roberta,
        tied: true,
        prefix: architecture.family().prefix,
    })
}

/// Reads the fields, refusing what is not computed here.
pub(crate) fn from_fields(fields: &Fields<'_>, architecture: Architecture) -> Result<Shape> {
    let roberta = architecture == Architecture::Roberta;
    fields.choice("hidden_act", &[("gelu", ())])?;
    fields.choice("position_embedding_type", &[("absolute", ())])?;
    fields.off("is_decoder", "false: an encoder")?;
    fields.off("add_cross_attention", "false: an encoder")?;
    let hidden = fields.number("hidden_size", None, 1..=65_536)?;
    let heads = fields.number("num_attention_heads", None, 1..=1_024)?;
    if hidden % heads != 0 {
        return Err(fields.wrong("num_attention_heads", format!("a divisor of hidden_size {hidden}")));
    }
    let vocab = fields.number("vocab_size", None, 1..=4_000_000)?;
    let pad = fields.pad(vocab, usize::from(roberta))?;
    fields.ids("eos_token_id", vocab)?;
    let first_position = match (roberta, pad) {
        (true, None) if fields.get("pad_token_id").and_then(Value::as_i64) != Some(-1) => {
            return Err(fields.wrong("pad_token_id", format!("-1, or an id below {vocab}: positions begin behind it")));
        }
        (true, pad) => pad.map_or(0, |pad| pad + 1),
        (false, _) => 0,
    };
    let dropout = fields.real("hidden_dropout_prob", 0.1, 0.0..1.0)?;
    Ok(Shape {
        architecture,
        layers: fields.number("num_hidden_layers", None, 1..=1_000)?,
        hidden,
        heads,
        head_width: hidden / heads,
        intermediate: fields.number("intermediate_size", None, 1..=262_144)?,
        vocab,
        positions: fields.number("max_position_embeddings", None, first_position + 1..=1_000_000)?,
        types: fields.number("type_vocab_size", Some(2), 1..=1_000)?,
        eps: fields.real("layer_norm_eps", 1e-12, 0.0..1.0)?,
        pad: pad.unwrap_or(0),
        first_position,
        stop: vec![],
        dropout,
        attention_dropout: fields.real("attention_probs_dropout_prob", 0.1, 0.0..1.0)?,
        classifier_dropout: fields.real("classifier_dropout", dropout, 0.0..1.0)?,
        pooler: !roberta,
        tied: true,
        prefix: architecture.family().prefix,
    })
}

/// A `config.json` of this shape.
pub(crate) fn to_config(shape: &Shape) -> Value {
    json!({
        "model_type": if shape.architecture == Architecture::Roberta { "roberta" } else { "bert" },
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.intermediate,
        "hidden_act": "gelu",
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.positions,
        "type_vocab_size": shape.types,
        "layer_norm_eps": shape.eps,
        "pad_token_id": if shape.architecture == Architecture::Roberta { shape.first_position as i64 - 1 } else { shape.pad as i64 },
        "hidden_dropout_prob": shape.dropout,
        "attention_probs_dropout_prob": shape.attention_dropout,
        "classifier_dropout": shape.classifier_dropout,
    })
}
