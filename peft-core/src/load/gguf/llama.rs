//! The architecture "llama" in GGUF, in the words of Hugging Face transformers: its configuration, and its tensors'
//! names and rows.

use std::f64::consts::TAU;
use std::ops::Range;

use serde_json::{Map, Value, json};

use super::{Gguf, blocks};
use crate::Result;
use crate::load::checkpoint::Checkpoint;
use crate::load::entry::{Entry, Stored};
use crate::load::source::Source;

/// Divisors of the rotary frequencies, which LLaMA 3.1 and later have.
const FREQUENCIES: &str = "rope_freqs.weight";
/// What some files have as the id of a token that the model lacks: -1.
const NO_TOKEN: usize = u32::MAX as usize;
/// How far a divisor, which a file has as f32, may be from the formula, relatively.
const NEAR: f64 = 1e-4;

/// Names outside the layers, in GGUF and in transformers.
const NAMES: [(&str, &str); 3] =
    [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];
/// Names inside a layer, the same way.
const LAYER_NAMES: [(&str, &str); 9] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

impl Gguf {
    /// What `config.json` of the model would be: a `LlamaForCausalLM`. Of the ways to stretch rotary positions, the
    /// linear one and that of LLaMA 3 are understood.
    pub fn config(&self) -> Result<Value> {
        self.check_architecture()?;
        let hidden = self.count("llama.embedding_length")?;
        let heads = self.heads()?;
        let head = match self.optional("llama.attention.key_length", Self::count)? {
            Some(length) => length,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                let expected = format!("a divisor of the embedding length {hidden}, or llama.attention.key_length");
                return Err(self.refuse("llama.attention.head_count", heads, expected));
            }
        };
        for key in ["llama.attention.value_length", "llama.rope.dimension_count"] {
            if let Some(length) = self.optional(key, Self::count)?
                && length != head
            {
                return Err(self.refuse(key, length, format!("{head}, the width of a head")));
            }
        }
        let vocab = self.vocab()?;
        let mut config = Map::new();
        let mut set = |key: &str, value: Value| config.insert(key.to_string(), value);
        set("architectures", json!(["LlamaForCausalLM"]));
        set("model_type", json!("llama"));
        set("vocab_size", json!(vocab));
        set("hidden_size", json!(hidden));
        set("intermediate_size", json!(self.count("llama.feed_forward_length")?));
        set("num_hidden_layers", json!(self.count("llama.block_count")?));
        set("num_attention_heads", json!(heads));
        set("num_key_value_heads", json!(self.key_heads()?));
        set("head_dim", json!(head));
        set("hidden_act", json!("silu"));
        set("rms_norm_eps", json!(self.float("llama.attention.layer_norm_rms_epsilon")?));
        set("max_position_embeddings", json!(self.count("llama.context_length")?));
        let theta = self.optional("llama.rope.freq_base", Self::float)?.unwrap_or(10_000.);
        set("rope_theta", json!(theta));
        set("rope_scaling", self.rope_scaling(theta, head)?);
        set("attention_bias", json!(self.tensors.contains_key("blk.0.attn_q.bias")));
        set("mlp_bias", json!(self.tensors.contains_key("blk.0.ffn_up.bias")));
        set("tie_word_embeddings", json!(!self.tensors.contains_key("output.weight")));
        for (key, name) in [("bos", "bos"), ("eos", "eos"), ("pad", "padding")] {
            let place = format!("tokenizer.ggml.{name}_token_id");
            let id = self.optional(&place, Self::count)?.filter(|id| *id != NO_TOKEN);
            if let Some(id) = id.filter(|id| *id >= vocab) {
                let expected = format!("ids below {vocab}, the rows of token_embd.weight, or {NO_TOKEN} for none");
                return Err(self.refuse(&place, id, expected));
            }
            set(&format!("{key}_token_id"), json!(id));
        }
        Ok(Value::Object(config))
    }

    fn check_architecture(&self) -> Result<()> {
        if self.is_adapter() {
            return Err(self.refuse("general.type", "\"adapter\": this GGUF file holds an adapter", "a model"));
        }
        let architecture = self.text("general.architecture")?;
        if architecture != "llama" {
            return Err(self.refuse("general.architecture", format!("{architecture:?}"), "\"llama\""));
        }
        for (key, allowed, expected) in [
            ("llama.expert_count", 0, "0: a model without experts"),
            ("split.count", 1, "1: a model in one file; llama-gguf-split --merge joins the parts"),
        ] {
            if let Some(count) = self.optional(key, Self::count)?
                && count > allowed
            {
                return Err(self.refuse(key, count, expected));
            }
        }
        Ok(())
    }

    fn heads(&self) -> Result<usize> {
        match self.count("llama.attention.head_count")? {
            0 => Err(self.refuse("llama.attention.head_count", 0, "at least 1")),
            heads => Ok(heads),
        }
    }

    fn key_heads(&self) -> Result<usize> {
        match self.optional("llama.attention.head_count_kv", Self::count)? {
            Some(0) => Err(self.refuse("llama.attention.head_count_kv", 0, "at least 1")),
            Some(heads) => Ok(heads),
            None => self.heads(),
        }
    }

    /// The rows of the word table, with which the metadata must agree.
    fn vocab(&self) -> Result<usize> {
        let Some((Entry { shape, .. }, _)) = self.tensors.get("token_embd.weight") else {
            return Err(self.refuse("token_embd.weight", "no tensor of this name", "the word table"));
        };
        let rows = shape[0];
        match self.optional("llama.vocab_size", Self::count)? {
            Some(count) if count != rows => {
                Err(self.refuse("llama.vocab_size", count, format!("{rows}, the rows of token_embd.weight")))
            }
            _ => Ok(rows),
        }
    }

    fn rope_scaling(&self, theta: f64, head: usize) -> Result<Value> {
        let key = "llama.rope.scaling.factor";
        let factor = match self.optional(key, Self::float)? {
            Some(factor) if factor <= 0. => return Err(self.refuse(key, factor, "a number above 0")),
            Some(factor) => Some(factor),
            None => self.optional("llama.rope.scale_linear", Self::float)?,
        };
        let kind = self.optional("llama.rope.scaling.type", Self::text)?;
        if self.tensors.contains_key(FREQUENCIES) {
            if kind.is_some_and(|kind| kind != "none") || factor.is_some_and(|factor| factor != 1.) {
                let expected = format!("none, since the tensor {FREQUENCIES} scales too");
                return Err(self.refuse("llama.rope.scaling.type", format!("{kind:?}, factor {factor:?}"), expected));
            }
            return self.frequencies(theta, head);
        }
        match (kind, factor) {
            (Some("none"), _) | (None | Some("linear"), None) => Ok(Value::Null),
            (None | Some("linear"), Some(factor)) => Ok(json!({"rope_type": "linear", "factor": factor})),
            (Some(kind), _) => {
                Err(self.refuse("llama.rope.scaling.type", format!("{kind:?}"), "\"none\" or \"linear\""))
            }
        }
    }

    /// LLaMA 3's scaling out of its divisors. The file has them and not the settings they were made with; these have
    /// been the same but for the factor in every model so far, and are checked against each divisor.
    fn frequencies(&self, theta: f64, head: usize) -> Result<Value> {
        let data = Checkpoint::gather(self.path.to_path_buf(), self.tensors())?.read_f32(FREQUENCIES, &[head / 2])?;
        let divisors: Vec<f64> = data.iter::<f64>().collect();
        let factor = divisors.iter().copied().fold(1., f64::max);
        if divisors.iter().all(|divisor| *divisor == 1.) {
            return Ok(Value::Null);
        }
        let (low, high, original) = (1., 4., 8192.);
        for (i, found) in divisors.into_iter().enumerate() {
            let wavelength = TAU * theta.powf(2. * i as f64 / head as f64);
            let smooth = ((original / wavelength - low) / (high - low)).clamp(0., 1.);
            let expected = 1. / ((1. - smooth) / factor + smooth);
            if (found / expected - 1.).abs() > NEAR {
                let expected = format!("{expected}, as in LLaMA 3 with the factor {factor}");
                return Err(self.refuse(FREQUENCIES, format!("{found} as element {i}"), expected));
            }
        }
        Ok(json!({"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
            "original_max_position_embeddings": original as usize}))
    }

    /// All tensors, with names and rows as in transformers. One that the architecture does not have is an error.
    pub(in crate::load) fn model_tensors(&self) -> Result<Vec<(String, Stored)>> {
        self.check_architecture()?;
        let (layers, heads, key_heads) = (self.count("llama.block_count")?, self.heads()?, self.key_heads()?);
        let rename = |(name, (entry, range)): (&String, &(Entry, Range<usize>))| {
            let Some((new, part)) = translate(name, layers) else {
                let expected = format!("a tensor of a LLaMA of {layers} layers");
                return Err(self.refuse(name, "a tensor that nothing uses", expected));
            };
            Ok((new, self.stored(name, entry, range, rotary_heads(part, heads, key_heads))?))
        };
        self.tensors.iter().filter(|(name, _)| *name != FREQUENCIES).map(rename).collect()
    }

    /// A tensor whose rows are, if they are, those of so many rotary heads.
    pub(super) fn stored(
        &self,
        name: &str,
        entry: &Entry,
        range: &Range<usize>,
        heads: Option<usize>,
    ) -> Result<Stored> {
        let source = match heads {
            Some(heads) => {
                self.check_rows(name, entry, heads)?;
                Source::Interleaved(self.file.clone(), range.clone(), heads)
            }
            None => Source::File(self.file.clone(), range.clone()),
        };
        Ok(Stored { path: self.path.clone(), entry: entry.clone(), source })
    }

    /// Whether the rows divide into heads of two halves, and blocks end where rows do.
    fn check_rows(&self, name: &str, entry: &Entry, heads: usize) -> Result<()> {
        let rows = entry.shape[0];
        if heads.checked_mul(2).is_none_or(|halves| !rows.is_multiple_of(halves)) {
            return Err(self.refuse(
                name,
                format!("{rows} rows"),
                format!("a multiple of 2 x {heads}, two halves for each head"),
            ));
        }
        if entry.shape.len() == 1 && blocks::quantized(&entry.dtype).is_some() {
            return Err(self.refuse(
                name,
                format!("type {}", entry.dtype),
                "a type without blocks, for one number in a row",
            ));
        }
        Ok(())
    }
}

/// How many rotary heads the rows of a part of a layer are, if they are: their halves alternate in GGUF.
pub(super) fn rotary_heads(part: &str, heads: usize, key_heads: usize) -> Option<usize> {
    match part {
        "attn_q" => Some(heads),
        "attn_k" => Some(key_heads),
        _ => None,
    }
}

/// The name of a module in GGUF, and the part of a layer, if it is one.
pub(super) fn original(module: &str) -> Option<(String, &'static str)> {
    if let Some((name, _)) = NAMES.iter().find(|(_, new)| *new == module) {
        return Some((name.to_string(), ""));
    }
    let (layer, path) = module.strip_prefix("model.layers.")?.split_once('.')?;
    let (part, _) = LAYER_NAMES.iter().find(|(_, new)| *new == path)?;
    Some((format!("blk.{layer}.{part}"), part))
}

/// The name in transformers, and the part of a layer, if it is one.
pub(super) fn translate(name: &str, layers: usize) -> Option<(String, &str)> {
    let (module, leaf) = name.rsplit_once('.').filter(|(_, leaf)| ["weight", "bias"].contains(leaf))?;
    let find =
        |names: &[(&str, &'static str)], part: &str| names.iter().find(|(old, _)| *old == part).map(|(_, new)| *new);
    let Some((layer, part)) = module.strip_prefix("blk.").and_then(|inner| inner.split_once('.')) else {
        return find(&NAMES, module).map(|new| (format!("{new}.{leaf}"), ""));
    };
    // "01" and "+1" are no numbers of layers.
    let layer = layer.parse::<usize>().ok().filter(|i| *i < layers && i.to_string() == layer)?;
    find(&LAYER_NAMES, part).map(|new| (format!("model.layers.{layer}.{new}.{leaf}"), part))
}
