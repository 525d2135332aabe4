//! Adapter directories in the layout of Hugging Face PEFT: `adapter_config.json`, `adapter_model.safetensors`, the head
//! among the saved modules; beside them `labels.json`, which PEFT ignores.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::module::Module;
use burn::tensor::TensorData;
use serde::{Deserialize, Serialize};

pub use super::config::{from_settings, peft_type};
use super::{bits, config};
use crate::files::{read_json, write_directory, write_file};
use crate::load::{Checkpoint, write_safetensors};
use crate::view::{tensors, with_values};
use crate::{Architecture, Base, Error, Head, Key, LanguageModel, Method, Result, Shape, Text, Trained, Verbalizer};

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
    let config = &config.learned(&trained.tuner, shape);
    let files = to_files::<M>(config, trained, shape);
    if let Some((name, _)) = files.iter().find(|(_, data)| data.iter::<f32>().any(|x| !x.is_finite())) {
        return Err(Error::Check {
            what: "saving the adapter",
            detail: format!("{name} holds a number that is not finite"),
        });
    }
    let head: &[&str] = match trained.head {
        Head::Classifier(_) | Head::Score(_) => &["classifier", "score"],
        Head::MaskedLm(_) => &["lm_head", "cls"],
        Head::LanguageModel(_) | Head::Verbalizer(_) => &[],
    };
    let mut told = serde_json::json!(labels);
    if let Head::Verbalizer(head) = &trained.head {
        told["texts"] = serde_json::json!(head.texts());
    }
    let json = |value: &serde_json::Value| format!("{value:#}\n").into_bytes();
    let settings = config::write(config, shape, &labels.base, head)?;
    write_directory(dir, |dir| {
        write_file(&dir.join("adapter_config.json"), &json(&settings))?;
        write_and_verify(dir, &files, write_safetensors)?;
        write_file(&dir.join("labels.json"), &json(&told))?;
        others.iter().try_for_each(|(name, text)| write_file(&dir.join(name), text.as_bytes()))
    })
}

/// Writes the tensors and compares what was written with what was to be.
fn write_and_verify(
    dir: &Path,
    files: &BTreeMap<String, TensorData>,
    write: impl FnOnce(&Path, &BTreeMap<String, TensorData>) -> Result<()>,
) -> Result<()> {
    let path = dir.join("adapter_model.safetensors");
    write(&path, files)?;
    let read = Checkpoint::open_file(&path)?;
    let names: BTreeSet<&str> = read.names().collect();
    for (name, data) in files {
        let same = read.shape(name) == Some(&data.shape()[..]) && read.bytes(name)? == data.as_bytes();
        if !same {
            return Err(Error::Check { what: "reading the saved adapter back", detail: format!("{name} differs") });
        }
    }
    if names.len() == files.len() {
        Ok(())
    } else {
        Err(Error::Check { what: "reading the saved adapter back", detail: format!("{} tensors", names.len()) })
    }
}

pub(crate) fn transpose(data: TensorData) -> TensorData {
    let (rows, columns) = (data.shape()[0], data.shape()[1]);
    let old: Vec<f32> = data.iter::<f32>().collect();
    let new = (0..rows * columns).map(|i| old[(i % rows) * columns + i / rows]).collect();
    TensorData::new(new, [columns, rows])
}

/// The tensors as the file holds them.
fn to_files<M: Method>(config: &M, trained: &Trained<M::Tuner>, shape: &Shape) -> BTreeMap<String, TensorData> {
    let mut files = BTreeMap::new();
    let mut put = |key: Key, data| files.insert(key.name, if key.transposed { transpose(data) } else { data });
    for (name, data) in tensors(&M::to_saved(trained.tuner.clone().valid())) {
        put(config.key(&name, shape), if config.is_mask(&name) { bits::pack(&data) } else { data });
    }
    for (name, data) in tensors(&trained.head) {
        put(head_key(M::HEAD_PREFIX, &name, shape), data);
    }
    files
}

/// What an adapter file calls a head's tensor.
pub(crate) fn head_key(prefix: &str, name: &str, shape: &Shape) -> Key {
    let Key { name, transposed } = Head::key(name, shape.architecture);
    Key { name: format!("{prefix}{name}"), transposed }
}

/// Tensors of a file that are taken one by one; what is left over is an error.
struct Taker {
    file: Checkpoint,
    taken: BTreeSet<String>,
}

impl Taker {
    fn take(&mut self, Key { name, transposed }: Key, dims: &[usize]) -> Result<TensorData> {
        let mut stored = dims.to_vec();
        if transposed {
            stored.reverse();
        }
        let data = self.file.read_f32(&name, &stored)?;
        self.taken.insert(name);
        Ok(if transposed { transpose(data) } else { data })
    }

    fn fill<M: Module>(&mut self, module: M, key: impl Fn(&str) -> Key, is_mask: impl Fn(&str) -> bool) -> Result<M> {
        let mut values = BTreeMap::new();
        for (name, fresh) in tensors(&module) {
            let key = key(&name);
            let data = match is_mask(&name) {
                true => {
                    let data = bits::read(&self.file, &key.name, fresh.shape())?;
                    self.taken.insert(key.name);
                    data
                }
                false => self.take(key, fresh.shape())?,
            };
            values.insert(name, data);
        }
        with_values(module, &values)
    }

    /// The head whose names start with `prefix`; `None` if there is none.
    fn head(&mut self, prefix: &str, base: &Base) -> Result<Option<Head>> {
        let shape = base.shape();
        let key = |name: &str| head_key(prefix, name, shape);
        let dims = |name: &str| self.file.shape(&key(name).name);
        let head = match shape.architecture {
            Architecture::Bert | Architecture::Roberta => match dims("Classifier.out.bias") {
                Some([outputs]) => Head::classifier(base, *outputs, 0),
                _ if dims("MaskedLm.bias").is_some() => Head::masked_lm(base, 0),
                _ => return Ok(None),
            },
            Architecture::Llama(_) => match dims("Score.weight") {
                Some([outputs, _]) => Head::classifier(base, *outputs, 0),
                _ => Head::LanguageModel(LanguageModel {}),
            },
            Architecture::T5(_) => Head::LanguageModel(LanguageModel {}),
        };
        self.fill(head, key, |_| false).map(Some)
    }

    fn finish(self) -> Result<()> {
        // PEFT itself writes copies of the head's biases under these names when all biases are trained.
        let copy = |name: &str| name.contains(".original_module.") || name.contains(".modules_to_save.");
        // What has lost its last rank is a matrix without elements there.
        let empty = |name: &str| self.file.shape(name).is_some_and(|dims| dims.contains(&0));
        match self.file.names().find(|name| !self.taken.contains(*name) && !copy(name) && !empty(name)) {
            None => Ok(()),
            Some(name) => {
                Err(Error::file(self.file.path_of(name), name, "a tensor that nothing uses", "no such tensor"))
            }
        }
    }
}

/// The head of a model's checkpoint, if it holds one.
pub(super) fn read_head(file: Checkpoint, base: &Base) -> Result<Option<Head>> {
    Taker { file, taken: BTreeSet::new() }.head("", base)
}

/// Reads an adapter directory that this library or Hugging Face PEFT wrote.
pub fn load<M: Method>(dir: &Path, base: &Base) -> Result<(M, Trained<M::Tuner>)> {
    let shape = base.shape();
    let config: M = config(dir, shape)?;
    let file = dir.join("adapter_model.safetensors");
    let file = if file.exists() { file } else { dir.join("adapter_model.bin") };
    let mut taker = Taker { file: Checkpoint::open_file(&file)?, taken: BTreeSet::new() };
    let tuner = config.for_loading(base).map_err(|error| error.in_file(&dir.join("adapter_config.json")))?;
    let tuner = taker.fill(tuner, |name| config.key(name, shape), |name| config.is_mask(name))?;
    let head = taker.head(M::HEAD_PREFIX, base)?.ok_or_else(|| {
        let key = head_key(M::HEAD_PREFIX, "Classifier.out.bias", shape).name;
        Error::file(&file, key, "no head", "the task head among the saved modules")
    })?;
    taker.finish()?;
    let head = verbalizer(dir, shape)?.map_or(head, Head::Verbalizer);
    Ok((config, Trained::new(tuner, head)?))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_holds_something_else_is_caught() {
        let folder = tempfile::tempdir().unwrap();
        let tensor = |values: [f32; 2]| TensorData::new(values.to_vec(), [2]);
        let written = BTreeMap::from([("a".to_string(), tensor([1.0, 2.0])), ("b".to_string(), tensor([3.0, 4.0]))]);
        let check = |files: &BTreeMap<String, TensorData>| {
            let faulty = |path: &Path, _: &BTreeMap<_, _>| write_safetensors(path, &written);
            write_and_verify(folder.path(), files, faulty).map_err(|e| e.to_string())
        };
        assert_eq!(check(&written), Ok(()));
        let mut other = written.clone();
        other.insert("b".into(), tensor([3.0, f32::from_bits(4f32.to_bits() + 1)]));
        assert!(check(&other).unwrap_err().contains("b differs"));
        assert!(check(&BTreeMap::from([("a".to_string(), tensor([1.0, 2.0]))])).unwrap_err().contains("2 tensors"));
    }
}
