//! The tensors of a module as files hold them: taken out one by one until none is left, written and compared.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::Module;
use burn::tensor::{DType, TensorData};

use super::bits;
use crate::adapterhub::{HubKey, Layout};
use crate::load::Checkpoint;
use crate::view::{tensors, with_values};
use crate::{Architecture, Base, Error, Head, Key, LanguageModel, Result};

impl From<Key> for HubKey {
    fn from(Key { name, transposed }: Key) -> Self {
        HubKey { name, layout: if transposed { Layout::Transposed } else { Layout::Same } }
    }
}

pub(crate) fn transpose(data: TensorData) -> TensorData {
    let (rows, columns) = (data.shape()[0], data.shape()[1]);
    let old: Vec<f32> = data.iter::<f32>().collect();
    let new = (0..rows * columns).map(|i| old[(i % rows) * columns + i / rows]).collect();
    TensorData::new(new, [columns, rows])
}

/// What a file is to hold: tensors by their keys there.
#[derive(Default)]
pub(super) struct Contents {
    pub(super) tensors: BTreeMap<String, TensorData>,
    /// What each is called in the module that it is of.
    names: BTreeMap<String, String>,
}

impl Contents {
    /// Adds a module's tensors as the file holds them; `part` is what the module is called in errors.
    pub(super) fn with<M: Module, K: Into<HubKey>>(
        mut self,
        part: &str,
        module: &M,
        key: impl Fn(&str) -> K,
    ) -> Result<Self> {
        for (name, data) in tensors(module) {
            let HubKey { name: key, layout } = key(&name).into();
            let data = match layout {
                Layout::Same => data,
                Layout::Transposed => transpose(data),
                Layout::Bits => bits::pack(&data),
                Layout::Flat => {
                    let values: Vec<f32> = data.iter::<f32>().collect();
                    let length = values.len();
                    TensorData::new(values, [length])
                }
            };
            self.add(format!("{part}.{name}"), key, data)?;
        }
        Ok(self)
    }

    /// Adds one tensor, of this name elsewhere. A second one of a key is an error, since a file holds one; so is what no file may hold.
    pub(super) fn add(&mut self, name: String, key: String, data: TensorData) -> Result<()> {
        let wrong = |detail: String| Err(Error::Check { what: "saving", detail });
        if let Some(first) = self.names.get(&key) {
            return wrong(format!("{first} and {name} have one key, {key}, of which a file holds one"));
        }
        if data.dtype() == DType::F32 && data.iter::<f32>().any(|x| !x.is_finite()) {
            return wrong(format!("{key} holds a number that is not finite"));
        }
        self.names.insert(key.clone(), name);
        self.tensors.insert(key, data);
        Ok(())
    }
}

/// Tensors of a file that are taken one by one; what is left over is an error.
pub(super) struct Taker {
    pub(super) file: Checkpoint,
    taken: BTreeSet<String>,
}

impl Taker {
    pub(super) fn new(file: Checkpoint) -> Self {
        Taker { file, taken: BTreeSet::new() }
    }

    fn take(&mut self, HubKey { name, layout }: HubKey, dims: &[usize]) -> Result<TensorData> {
        let read = |dims: &[usize]| self.file.read_f32(&name, dims);
        let data = match layout {
            Layout::Same => read(dims)?,
            Layout::Transposed => transpose(read(&dims.iter().rev().copied().collect::<Vec<_>>())?),
            Layout::Flat => TensorData::new(read(&[dims.iter().product()])?.iter::<f32>().collect(), dims),
            Layout::Bits => bits::read(&self.file, &name, dims)?,
        };
        self.taken.insert(name);
        Ok(data)
    }

    /// Compares the module that was written with what the file gives back, bit for bit.
    pub(super) fn compare<M: Module, K: Into<HubKey>>(&mut self, module: &M, key: impl Fn(&str) -> K) -> Result<()> {
        for (name, data) in tensors(module) {
            let key = key(&name).into();
            let place = key.name.clone();
            if self.take(key, data.shape())?.as_bytes() != data.as_bytes() {
                return Err(Error::Check { what: "reading back what was saved", detail: format!("{place} differs") });
            }
        }
        Ok(())
    }

    pub(super) fn fill<M: Module, K: Into<HubKey>>(&mut self, module: M, key: impl Fn(&str) -> K) -> Result<M> {
        let mut values = BTreeMap::new();
        for (name, fresh) in tensors(&module) {
            let data = self.take(key(&name).into(), fresh.shape())?;
            values.insert(name, data);
        }
        with_values(module, &values)
    }

    /// The head whose tensors have these names; `None` if there is none.
    pub(super) fn head<K: Into<HubKey>>(&mut self, key: impl Fn(&str) -> K, base: &Base) -> Result<Option<Head>> {
        let shape = base.shape();
        let dims = |name: &str| {
            let HubKey { name, layout } = key(name).into();
            let mut dims = self.file.shape(&name)?.to_vec();
            if layout == Layout::Transposed {
                dims.reverse();
            }
            Some(dims)
        };
        let head = match shape.architecture {
            Architecture::Bert | Architecture::Roberta => match dims("Classifier.out.bias").as_deref() {
                Some([outputs]) => Head::classifier(base, *outputs, 0),
                _ => match dims("TwoLayers.out.bias").as_deref() {
                    Some([outputs]) => Head::two_layers(base, *outputs, 0),
                    _ if dims("MaskedLm.bias").is_some() => Head::masked_lm(base, 0),
                    _ => return Ok(None),
                },
            },
            Architecture::Llama(_) => match dims("Score.weight").as_deref() {
                Some([_, outputs]) => Head::classifier(base, *outputs, 0),
                _ => Head::LanguageModel(LanguageModel {}),
            },
            Architecture::T5(_) => Head::LanguageModel(LanguageModel {}),
        };
        self.fill(head, key).map(Some)
    }

    /// The names that were not taken.
    pub(super) fn left(&self) -> impl Iterator<Item = &str> {
        self.file.names().filter(|name| !self.taken.contains(*name))
    }

    /// Refuses what is left but for what `passed` says is nothing.
    pub(super) fn finish(&self, passed: impl Fn(&str) -> bool) -> Result<()> {
        match self.left().find(|name| !passed(name)) {
            None => Ok(()),
            Some(name) => {
                Err(Error::file(self.file.path_of(name), name, "a tensor that nothing uses", "no such tensor"))
            }
        }
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use super::*;
    use crate::Score;
    use crate::load::write_safetensors;

    fn tensor(values: [f32; 2]) -> TensorData {
        TensorData::new(values.to_vec(), [1, 2])
    }

    fn score(values: [f32; 2]) -> Score {
        let device = crate::testing::device();
        Score { weight: burn::module::Param::from_tensor(burn::tensor::Tensor::from_data(tensor(values), &device)) }
    }

    #[test]
    fn a_file_that_holds_something_else_is_caught() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("adapter_model.safetensors");
        let key = |name: &str| Key::plain(format!("head.{name}"));
        let compared = |written: [f32; 2], module: [f32; 2]| {
            let contents = Contents::default().with("head", &score(written), key).unwrap();
            write_safetensors(&path, &contents.tensors).unwrap();
            let mut taker = Taker::new(Checkpoint::open_file(&path).unwrap());
            taker.compare(&score(module), key).map_err(|error| error.to_string())
        };
        assert_eq!(compared([1.0, 2.0], [1.0, 2.0]), Ok(()));
        let next = f32::from_bits(2f32.to_bits() + 1);
        assert!(compared([1.0, 2.0], [1.0, next]).unwrap_err().contains("head.weight differs"));
    }

    #[test]
    fn two_tensors_of_one_key_are_named() {
        let module = (score([1.0, 2.0]), score([3.0, 4.0]));
        let saved =
            |key: &dyn Fn(&str) -> Key| Contents::default().with("method", &module, key).map(|c| c.tensors.len());
        assert_eq!(saved(&|name| Key::plain(name)).unwrap(), 2);
        let error = saved(&|_| Key::plain("weight")).unwrap_err().to_string();
        assert!(
            ["method.0.weight", "method.1.weight", "one key, weight"].iter().all(|word| error.contains(word)),
            "{error}"
        );
    }
}
