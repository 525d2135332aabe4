//! The names under which a model's tensors lie in a checkpoint: with a prefix or without, tied tables under any of their names.

use std::path::Path;

use serde_json::Value;

use super::classes;
use crate::load::Checkpoint;
use crate::{Error, Purpose, Result, Shape};

/// Other names of the bias of a head for masked words. Where both are there, this is the one that transformers adds.
const BIASES: [[&str; 2]; 2] =
    [["cls.predictions.decoder.bias", "cls.predictions.bias"], ["lm_head.decoder.bias", "lm_head.bias"]];

/// A model as its checkpoint has it.
pub(super) struct Found {
    pub(super) shape: Shape,
    /// What the names in there start with.
    pub(super) prefix: String,
    /// Whether it makes logits over words, which a model with another head may not.
    pub(super) words: bool,
    /// Whether there is a pooler.
    pub(super) pooler: bool,
    /// Whether a head for masked words uses the word table.
    pub(super) tied: bool,
}

/// Gives the tensors of a model the names that they have here. Of a table that lies there under several names one stays; where the
/// others hold other values it is not tied, whatever the configuration says, as in transformers.
pub(super) fn settle(file: &mut Checkpoint, mut shape: Shape, config: &Value) -> Result<Found> {
    let prefix = find_prefix(file, &shape)?;
    old_names(file);
    let told = config.get("tie_word_embeddings").and_then(Value::as_bool);
    let family = shape.architecture.family();
    let may_be_tied = (family.may_be_tied)(&shape, told);
    let words = format!("{prefix}{}", shape.places()[0].name);
    let mut other_head = false;
    for alias in family.aliases {
        if may_be_tied {
            file.rename(alias, &words);
        }
        let Some(dims) = file.shape(alias).map(<[usize]>::to_vec) else { continue };
        match file.shape(&words) == Some(&*dims) && same(file, alias, &words, &dims)? {
            true if may_be_tied => file.remove(alias),
            true => {}
            false if alias.contains("embed_tokens") => {
                let expected = format!("the values of {words}: encoder and decoder share one table here");
                return Err(Error::file(file.path_of(alias), *alias, "another table", expected));
            }
            false => other_head = true,
        }
    }
    for [alias, name] in BIASES {
        if file.shape(alias).is_some() {
            file.remove(name);
            file.rename(alias, name);
        }
    }
    // A BERT for masked words is saved without the pooler; RoBERTa's is only of use to those who ask for states.
    let said = classes::said(config, Path::new(""), shape.architecture);
    let pooler = !shape.pre_norm() && file.shape(&format!("{prefix}pooler.dense.weight")).is_some();
    shape.pooler = pooler && (shape.pooler || matches!(said, Ok(Some(Purpose::States))));
    let mut words = true;
    // A LLaMA for something else has no table for words.
    if shape.pre_norm() {
        let elsewhere = file.shape("score.weight").is_some() || !matches!(said, Ok(None | Some(Purpose::Words)));
        words = other_head || may_be_tied || !elsewhere;
        shape.tied = !other_head && (may_be_tied || elsewhere);
    }
    Ok(Found { shape, prefix, words, pooler, tied: may_be_tied && !other_head })
}

/// Whether two tensors of these extents hold the same numbers.
fn same(file: &Checkpoint, a: &str, b: &str, dims: &[usize]) -> Result<bool> {
    let (entries, bytes) = ([file.entry(a), file.entry(b)], [file.bytes(a)?, file.bytes(b)?]);
    Ok(entries[0] == entries[1] && bytes[0] == bytes[1] || file.read_f32(a, dims)? == file.read_f32(b, dims)?)
}

/// Names start with the model's prefix, with another's (a task of its own may have wrapped it), or with none.
fn find_prefix(file: &Checkpoint, shape: &Shape) -> Result<String> {
    let places = shape.places();
    // The word table may lie there under another name.
    let firsts = &places[..2];
    let has = |prefix: &String| firsts.iter().any(|place| file.shape(&format!("{prefix}{}", place.name)).is_some());
    // The last is that of a LLaMA for question answering.
    let prefixes = [shape.prefix, "", "transformer."].map(String::from);
    prefixes.into_iter().find(has).ok_or_else(|| {
        let name = format!("{}{}", shape.prefix, firsts[0].name);
        let held = file.names().take(3).collect::<Vec<_>>().join(", ");
        Error::file(file.path_of(&name), name, format!("no such tensor, but {held}, .."), "the model's word embeddings")
    })
}

/// Checkpoints of 2018 and 2019 called gains gamma and biases of normalizations beta.
fn old_names(file: &mut Checkpoint) {
    let old: Vec<String> = file.names().map(str::to_string).collect();
    for name in old {
        for (end, new) in [("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")] {
            if let Some(module) = name.strip_suffix(end) {
                file.rename(&name, format!("{module}{new}"));
            }
        }
    }
}

/// Tensors of a model that nothing uses and whose names need no word: what follows from the configuration, a bias that old T5s hold
/// and never read, and heads of other tasks.
pub(super) fn needs_no_word(name: &str) -> bool {
    let buffers = ["embeddings.position_ids", "embeddings.token_type_ids", "rotary_emb.inv_freq"];
    let old = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight";
    let heads = ["cls.", "lm_head.", "classifier.", "score.", "qa_outputs.", "roberta.pooler.", "pooler."];
    buffers.iter().any(|end| name.ends_with(end))
        || name.ends_with(old)
        || heads.iter().any(|head| name.starts_with(head))
}
