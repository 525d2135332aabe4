//! A LoRA in GGUF, as llama.cpp converts it: its settings and tensors in the words of Hugging Face PEFT, and back.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::TensorData;
use serde_json::{Map, Value, json};

use super::Gguf;
use super::llama::{original, rotary_heads, translate};
use crate::files::write_file;
use crate::load::checkpoint::Checkpoint;
use crate::{Error, Result, Shape};

/// What PEFT puts in front of a module's path.
const PREFIX: &str = "base_model.model.";
/// What stands behind a module's path there and here, of a linear map and of the word table.
const FACTORS: [[(&str, &str); 2]; 2] = [
    [("lora_A.weight", "lora_a"), ("lora_B.weight", "lora_b")],
    [("lora_embedding_A", "lora_a"), ("lora_embedding_B", "lora_b")],
];
/// The path of the word table.
const WORDS_PATH: &str = "model.embed_tokens";
/// What the metadata say of a LoRA for a LLaMA.
const WORDS: [(&str, &str); 3] =
    [("general.architecture", "llama"), ("general.type", "adapter"), ("adapter.type", "lora")];
/// Where the data of tensors begin in a file: at multiples of this.
const ALIGNMENT: usize = 32;
/// The number of an element type.
const F32: u32 = 0;
/// The number of a type of metadata.
const FLOAT: u32 = 6;
/// The same, of a text.
const TEXT: u32 = 8;

impl Gguf {
    /// Whether it holds an adapter and no model.
    pub fn is_adapter(&self) -> bool {
        self.has("general.type") && self.text("general.type").is_ok_and(|kind| kind == "adapter")
    }

    /// LoRA's settings in the fields of PEFT's `adapter_config.json`, and the tensors under the names and with the rows that its files
    /// have, of an adapter for a LLaMA of this shape. The first factor of the word table is turned, `[vocab, rank]`.
    pub fn lora(&self, shape: &Shape) -> Result<(Map<String, Value>, Checkpoint)> {
        for (key, expected) in WORDS {
            let found = self.text(key)?;
            if found != expected {
                return Err(self.refuse(key, format!("{found:?}"), format!("{expected:?}")));
            }
        }
        if self.has("adapter.alora.invocation_tokens") {
            return Err(self.refuse("adapter.alora.invocation_tokens", "tokens", "none: an adapter that always acts"));
        }
        let mut ranks: BTreeMap<String, usize> = BTreeMap::new();
        let mut stored = Vec::new();
        for (name, (entry, range)) in &self.tensors {
            let (module, factor, part) = self.factor(name, shape.layers)?;
            let rank = match (entry.shape.as_slice(), factor) {
                ([rank, _], "lora_A.weight")
                | ([_, rank], "lora_B.weight" | "lora_embedding_A" | "lora_embedding_B") => *rank,
                _ => return Err(self.refuse(name, format!("shape {:?}", entry.shape), "a matrix")),
            };
            let first = *ranks.entry(module.clone()).or_insert(rank);
            if first != rank {
                return Err(self.refuse(name, format!("rank {rank}"), format!("{first}, as the other factor has")));
            }
            // Rows of the model's rotary heads are those of the second factor.
            let heads = rotary_heads(part, shape.heads, shape.kv_heads()).filter(|_| factor == "lora_B.weight");
            stored.push((format!("{PREFIX}{module}.{factor}"), self.stored(name, entry, range, heads)?));
        }
        let tensors = Checkpoint::gather(self.path.to_path_buf(), stored)?;
        for module in ranks.keys() {
            for (factor, _) in factors(module) {
                let name = format!("{PREFIX}{module}.{factor}");
                if tensors.shape(&name).is_none() {
                    return Err(self.refuse(module, format!("no {factor}"), "both factors"));
                }
            }
        }
        Ok((self.settings(&ranks)?, tensors))
    }

    /// The module's path, the factor's name and the part of the layer that a tensor is of.
    fn factor<'a>(&self, name: &'a str, layers: usize) -> Result<(String, &'static str, &'a str)> {
        let found = || {
            let (weight, suffix) = name.rsplit_once('.')?;
            let (weight, part) = translate(weight, layers)?;
            // A bias has no factors.
            let module = weight.strip_suffix(".weight")?;
            let (factor, _) = factors(module).into_iter().find(|(_, there)| *there == suffix)?;
            Some((module.to_string(), factor, part))
        };
        found().ok_or_else(|| {
            let expected = format!("lora_a or lora_b of a linear map or the word table in a LLaMA of {layers} layers");
            self.refuse(name, "a tensor that nothing uses", expected)
        })
    }

    /// As llama.cpp computes: the scale is alpha over a factor's own rank, or 1 where alpha is 0.
    fn settings(&self, ranks: &BTreeMap<String, usize>) -> Result<Map<String, Value>> {
        let alpha = self.float("adapter.lora.alpha")?;
        let Some(r) = ranks.values().max().copied() else {
            return Err(self.refuse("tensors", "none", "the factors of a LoRA"));
        };
        let others: BTreeMap<&str, usize> =
            ranks.iter().filter(|(_, rank)| **rank != r).map(|(module, rank)| (module.as_str(), *rank)).collect();
        let mut fields = Map::new();
        let mut set = |key: &str, value: Value| fields.insert(key.to_string(), value);
        set("r", json!(r));
        set("lora_alpha", if alpha == 0.0 { json!(r) } else { json!(alpha) });
        set("target_modules", json!(ranks.keys().collect::<Vec<_>>()));
        set("rank_pattern", json!(others));
        set("alpha_pattern", if alpha == 0.0 { json!(others) } else { json!({}) });
        Ok(fields)
    }
}

/// The names of a module's factors there and here.
fn factors(module: &str) -> [(&'static str, &'static str); 2] {
    FACTORS[usize::from(module == WORDS_PATH)]
}

/// Writes the factors of a LoRA for a LLaMA, under the names and with the rows that PEFT's files have (but the first factor of the word
/// table turned, `[vocab, rank]`), as llama.cpp converts them.
pub fn write_lora(path: &Path, alpha: f64, tensors: &BTreeMap<String, TensorData>, shape: &Shape) -> Result<()> {
    let mut renamed = BTreeMap::new();
    for (name, data) in tensors {
        let found = FACTORS.iter().flatten().find_map(|(factor, suffix)| {
            let module = name.strip_prefix(PREFIX)?.strip_suffix(factor)?.strip_suffix('.')?;
            let (new, part) = original(module)?;
            Some((format!("{new}.weight.{suffix}"), part, *suffix))
        });
        let (new, part, suffix) = found.ok_or_else(|| {
            Error::file(
                path,
                name,
                "a tensor that a LoRA in GGUF cannot hold",
                "factors of linear maps and the word table in a LLaMA",
            )
        })?;
        let heads = rotary_heads(part, shape.heads, shape.kv_heads()).filter(|_| suffix == "lora_b");
        let rows = data.shape()[0];
        let values: Vec<f32> = data.iter::<f32>().collect();
        let values = match heads {
            Some(heads) => interleaved(&values, rows, heads),
            None => values,
        };
        renamed.insert(new, (data.shape().to_vec(), values));
    }
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    let text = |bytes: &mut Vec<u8>, text: &str| {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    };
    bytes.extend((renamed.len() as u64).to_le_bytes());
    bytes.extend((WORDS.len() as u64 + 1).to_le_bytes());
    for (key, word) in WORDS {
        text(&mut bytes, key);
        bytes.extend(TEXT.to_le_bytes());
        text(&mut bytes, word);
    }
    text(&mut bytes, "adapter.lora.alpha");
    bytes.extend(FLOAT.to_le_bytes());
    bytes.extend((alpha as f32).to_le_bytes());
    let mut offset = 0;
    for (name, (dims, values)) in &renamed {
        text(&mut bytes, name);
        bytes.extend((dims.len() as u32).to_le_bytes());
        // The fastest dimension comes first.
        dims.iter().rev().for_each(|dim| bytes.extend((*dim as u64).to_le_bytes()));
        bytes.extend(F32.to_le_bytes());
        bytes.extend((offset as u64).to_le_bytes());
        offset += (size_of::<f32>() * values.len()).next_multiple_of(ALIGNMENT);
    }
    for (_, values) in renamed.values() {
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
    }
    write_file(path, &bytes)
}

/// Rows of heads from (first half, second half) to (first of the first half, first of the second half, second of the first half ..).
fn interleaved(values: &[f32], rows: usize, heads: usize) -> Vec<f32> {
    let (row, head) = (values.len() / rows, rows / heads);
    let from = |to: usize| {
        let (start, place) = (to - to % head, to % head);
        start + place % 2 * (head / 2) + place / 2
    };
    (0..rows).flat_map(|to| &values[from(to) * row..][..row]).copied().collect()
}
