//! The tensors of a module as files hold them: taken out one by one until none is left, written and compared.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::module::Module;
use burn::tensor::TensorData;

use super::bits;
use crate::adapterhub::{HubKey, Layout};
use crate::load::Checkpoint;
use crate::view::{tensors, with_values};
use crate::{Architecture, Base, Copies, Error, Head, Key, LanguageModel, Result};

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

/// A module's tensors by their names in a file, as the file holds them.
pub(super) fn to_files<M: Module, K: Into<HubKey>>(
    module: &M,
    key: impl Fn(&str) -> K,
) -> BTreeMap<String, TensorData> {
    let stored = |(name, data): (String, TensorData)| {
        let HubKey { name, layout } = key(&name).into();
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
        (name, data)
    };
    tensors(module).into_iter().map(stored).collect()
}

/// Refuses what no file may hold.
pub(super) fn check_finite(files: &BTreeMap<String, TensorData>) -> Result<()> {
    match files.iter().find(|(_, data)| data.iter::<f32>().any(|x| !x.is_finite())) {
        None => Ok(()),
        Some((name, _)) => Err(Error::Check {
            what: "saving the adapter",
            detail: format!("{name} holds a number that is not finite"),
        }),
    }
}

/// Writes the tensors to a file and compares what was written with what was to be.
pub(super) fn write_and_verify(
    path: &Path,
    files: &BTreeMap<String, TensorData>,
    write: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    write(path)?;
    let read = Checkpoint::open_file(path)?;
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

    /// Copies of those of the base's tensors that have not been taken under these names.
    pub(super) fn copies<K: Into<HubKey>>(
        &mut self,
        key: impl Fn(&str) -> K,
        base: &Base,
        modules: &[String],
    ) -> Result<Copies> {
        let held = |name: &str| {
            let HubKey { name, .. } = key(name).into();
            self.file.shape(&name).is_some() && !self.taken.contains(&name)
        };
        self.fill(Copies::held(base, modules, held), key)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::write_safetensors;

    #[test]
    fn a_file_that_holds_something_else_is_caught() {
        let folder = tempfile::tempdir().unwrap();
        let tensor = |values: [f32; 2]| TensorData::new(values.to_vec(), [2]);
        let written = BTreeMap::from([("a".to_string(), tensor([1.0, 2.0])), ("b".to_string(), tensor([3.0, 4.0]))]);
        let check = |files: &BTreeMap<String, TensorData>| {
            let path = folder.path().join("adapter_model.safetensors");
            write_and_verify(&path, files, |path| write_safetensors(path, &written)).map_err(|e| e.to_string())
        };
        assert_eq!(check(&written), Ok(()));
        let mut other = written.clone();
        other.insert("b".into(), tensor([3.0, f32::from_bits(4f32.to_bits() + 1)]));
        assert!(check(&other).unwrap_err().contains("b differs"));
        assert!(check(&BTreeMap::from([("a".to_string(), tensor([1.0, 2.0]))])).unwrap_err().contains("2 tensors"));
    }
}
