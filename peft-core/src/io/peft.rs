//! Adapter directories in the layout of Hugging Face PEFT: `adapter_config.json`, `adapter_model.safetensors`, the head
//! among the saved modules; beside them `labels.json`, which PEFT ignores.

use std::path::Path;

use burn::module::Module;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::config;
pub use super::config::{from_settings, peft_type, split_modules};
use super::tensors::{Taker, check_finite, to_files, write_and_verify};
use crate::adapterhub::{HubKey, Layout};
use crate::files::{read_json, write_directory, write_file};
use crate::load::{Checkpoint, write_safetensors};
use crate::view::{shapes, tensors};
use crate::warning::warn;
use crate::{Architecture, Base, Copies, Error, Head, Key, Method, Result, Shape, Text, Trained, Verbalizer};

/// What a saved adapter tells beside its tensors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Labels {
    /// The name or path of the model it was trained on.
    pub base: String,
    /// The classes, in the order of the logits; empty for regression.
    pub classes: Vec<String>,
}

/// Writes an adapter directory (with other files, names and texts, in it) all or nothing, reads it back, and compares every bit before it takes its name.
pub fn save<M: Method>(
    dir: &Path,
    config: &M,
    trained: &Trained<M::Tuner>,
    shape: &Shape,
    labels: &Labels,
    others: &[(&str, String)],
) -> Result<()> {
    check_copies(config, trained, shape)?;
    let config = &config.learned(&trained.tuner, shape);
    let mut files = to_files(&M::to_saved(trained.tuner.clone().valid()), |name| file_key(config, name, shape));
    files.extend(to_files(&trained.head, |name| head_key(M::HEAD_PREFIX, name, shape)));
    files.extend(to_files(&trained.copies, |name| copy_key(M::HEAD_PREFIX, name, shape)));
    check_finite(&files)?;
    write_directory(dir, |dir| {
        write_settings(dir, config, trained, shape, labels)?;
        let path = dir.join("adapter_model.safetensors");
        write_and_verify(&path, &files, |path| write_safetensors(path, &files))?;
        others.iter().try_for_each(|(name, text)| write_file(&dir.join(name), text.as_bytes()))
    })
}

/// Writes what is told beside the tensors.
pub(super) fn write_settings<M: Method>(
    dir: &Path,
    config: &M,
    trained: &Trained<M::Tuner>,
    shape: &Shape,
    labels: &Labels,
) -> Result<()> {
    let Trained { head, copies, .. } = trained;
    let modules: &[&str] = match head {
        Head::Classifier(_) | Head::TwoLayers(_) | Head::Score(_) => &["classifier", "score"],
        Head::MaskedLm(_) => &["lm_head", "cls"],
        Head::LanguageModel(_) | Head::Verbalizer(_) => &[],
    };
    let mut told = serde_json::json!(labels);
    if let Head::Verbalizer(head) = head {
        told["texts"] = serde_json::json!(head.texts());
    }
    write_json(
        &dir.join("adapter_config.json"),
        &config::write(config, shape, &labels.base, modules, copies.modules())?,
    )?;
    write_json(&dir.join("labels.json"), &told)
}

pub(super) fn write_json(path: &Path, value: &Value) -> Result<()> {
    write_file(path, format!("{value:#}\n").as_bytes())
}

/// What an adapter file calls the tensor that records call `name`, and how it holds it.
pub(super) fn file_key<M: Method>(config: &M, name: &str, shape: &Shape) -> HubKey {
    let key = config.key(name, shape);
    if config.is_mask(name) { HubKey::new(key.name, Layout::Bits) } else { key.into() }
}

/// What an adapter file calls a head's tensor.
pub(crate) fn head_key(prefix: &str, name: &str, shape: &Shape) -> Key {
    let Key { name, transposed } = Head::key(name, shape.architecture);
    Key { name: format!("{prefix}{name}"), transposed }
}

/// Refuses copies of tensors of modules in which the method has tensors too: PEFT has one or the other.
pub(crate) fn check_copies<M: Method>(config: &M, trained: &Trained<M::Tuner>, shape: &Shape) -> Result<()> {
    let own: Vec<String> = shapes(&trained.tuner).iter().map(|(name, _)| config.key(name, shape).name).collect();
    for (name, _) in shapes(&trained.copies) {
        let key = copy_key(M::HEAD_PREFIX, &name, shape).name;
        let module = key.rsplit_once('.').map_or(key.as_str(), |(module, _)| module);
        if own.iter().any(|own| own.strip_prefix(module).is_some_and(|rest| rest.starts_with('.'))) {
            let expected = format!("modules in which {} has no tensors", M::NAME);
            return Err(Error::config("modules_to_save", module.trim_start_matches(M::HEAD_PREFIX), expected));
        }
    }
    Ok(())
}

/// What an adapter file calls a copy of a tensor of the base.
pub(crate) fn copy_key(prefix: &str, name: &str, shape: &Shape) -> Key {
    let Key { name, transposed } = Copies::key(name, shape);
    Key { name: format!("{prefix}{name}"), transposed }
}

/// The head of a model's checkpoint, if it holds one.
pub(super) fn read_head(file: Checkpoint, base: &Base) -> Result<Option<Head>> {
    Taker::new(file).head(|name| head_key("", name, base.shape()), base)
}

/// Reads an adapter directory that this library or Hugging Face PEFT wrote.
pub fn load<M: Method>(dir: &Path, base: &Base) -> Result<(M, Trained<M::Tuner>)> {
    let shape = base.shape();
    let [file, pickle] = ["adapter_model.safetensors", "adapter_model.bin"].map(|name| dir.join(name));
    let file = if pickle.exists() && !file.exists() { pickle } else { file };
    if !file.exists() && dir.join(super::record::FILE).exists() {
        return Err(Error::file(dir, "adapter", "a record of burn", config::PEFT_FILES));
    }
    let head = |name: &str| head_key(M::HEAD_PREFIX, name, shape);
    let copy = |name: &str| copy_key(M::HEAD_PREFIX, name, shape);
    load_from(dir, &file, base, |config: &M, name| file_key(config, name, shape), head, copy)
}

/// Reads settings from a directory, and tensors from a file in it that calls them so.
pub(super) fn load_from<M: Method>(
    dir: &Path,
    file: &Path,
    base: &Base,
    key: impl Fn(&M, &str) -> HubKey,
    head_key: impl Fn(&str) -> Key,
    copy_key: impl Fn(&str) -> Key,
) -> Result<(M, Trained<M::Tuner>)> {
    let shape = base.shape();
    let config: M = config(dir, shape)?;
    let mut taker = Taker::new(Checkpoint::open_file(file)?);
    let tuner = config.for_loading(base).map_err(|error| error.in_file(&dir.join("adapter_config.json")))?;
    let tuner = taker.fill(tuner, |name| key(&config, name))?;
    // What is saved of a mask is the mask: were it another then, the settings are not those that it was made by.
    if shapes(&tuner).iter().any(|(name, _)| config.is_mask(name)) {
        let (found, again) = (tensors(&tuner), tensors(&M::to_saved(tuner.clone())));
        if let Some(name) = found.keys().find(|name| config.is_mask(name) && again.get(*name) != found.get(*name)) {
            let expected = "a mask with as many ones as the settings say";
            return Err(Error::file(file, key(&config, name).name, "another mask", expected));
        }
    }
    let head = taker.head(&head_key, base)?.ok_or_else(|| {
        let key = head_key("Classifier.out.bias").name;
        Error::file(file, key, "no head", "the task head among the saved modules")
    })?;
    let copies = taker.copies(&copy_key, base, &config::modules_to_save(dir)?)?;
    // PEFT itself writes copies of the head's biases under these names when all biases are trained.
    let copy = |name: &str| name.contains(".original_module.") || name.contains(".modules_to_save.");
    // What has lost its last rank is a matrix without elements there.
    let empty = |name: &str| taker.file.shape(name).is_some_and(|dims| dims.contains(&0));
    // In a T5 of transformers nothing reads the shared table: encoder, decoder and head have their own references to it.
    let shared =
        |name: &str| matches!(shape.architecture, Architecture::T5(_)) && name.ends_with("model.shared.weight");
    if let Some(name) = taker.left().find(|name| shared(name)) {
        warn(file, name, "has no effect, as in PEFT: encoder, decoder and head keep their tables");
    }
    taker.finish(|name| copy(name) || empty(name) || shared(name))?;
    let head = verbalizer(dir, shape)?.map_or(head, Head::Verbalizer);
    Ok((config, Trained::new(tuner, head)?.with_copies(copies)?))
}

/// The texts that stand for labels, if there are any.
fn verbalizer(dir: &Path, shape: &Shape) -> Result<Option<Verbalizer>> {
    let path = dir.join("labels.json");
    let texts = if path.exists() { read_json(&path)?.get("texts").cloned() } else { None };
    let (Some(texts), Architecture::T5(_)) = (texts, shape.architecture) else { return Ok(None) };
    let expected = format!("a list of {{\"ids\": token ids below {}, \"value\": a number or null}}", shape.vocab);
    let texts: Vec<Text> =
        serde_json::from_value(texts).map_err(|error| Error::file(&path, "texts", error, &expected))?;
    if let Some(id) = texts.iter().flat_map(|text| &text.ids).find(|id| **id as usize >= shape.vocab) {
        return Err(Error::file(&path, "texts", id, expected));
    }
    Verbalizer::new(texts).map(Some).map_err(|error| error.in_file(&path))
}

/// The method's configuration in an adapter directory.
pub fn config<M: Method>(dir: &Path, shape: &Shape) -> Result<M> {
    config::read(dir, shape)
}

/// What the directory says of its base and classes; nothing, if PEFT wrote it.
pub fn labels(dir: &Path) -> Result<Labels> {
    let path = dir.join("labels.json");
    if !path.exists() {
        return Ok(Labels::default());
    }
    serde_json::from_value(read_json(&path)?)
        .map_err(|e| Error::file(&path, "content", e, "an object with `base` and `classes`"))
}
