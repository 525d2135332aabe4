//! The tensors of a module as files hold them: taken out one by one until none is left, written and compared.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor, TensorData};

use super::bits;
use crate::adapterhub::{HubKey, Layout};
use crate::load::Checkpoint;
use crate::view::{tensors, with_values};
use crate::{Architecture, Base, Copies, Error, ForTexts, Head, Key, LanguageModel, Purpose, Result, States};

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
                Layout::Same if data.dtype() == DType::I64 => data.convert::<i32>(),
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

/// A kind of head with tensors.
struct Form {
    /// The names of its tensors in records, first that of the last layer: a bias `[outputs]`, or a matrix `[.., outputs]`.
    names: &'static [&'static str],
    fresh: fn(&Base, usize, u64) -> Head,
}

/// The kinds of heads for a purpose that have tensors.
fn forms(purpose: Purpose, architecture: Architecture) -> Vec<Form> {
    let form = |names: &'static [&'static str], fresh: fn(&Base, usize, u64) -> Head| Form { names, fresh };
    let at_mask = || {
        let names = &[
            "AtMask.out.bias",
            "AtMask.out.weight",
            "AtMask.norm.bias",
            "AtMask.norm.gain",
            "AtMask.dense.bias",
            "AtMask.dense.weight",
        ];
        form(names, Head::at_mask)
    };
    let one = |names: &'static [&'static str], fresh: fn(&Base, usize, u64) -> Head| vec![form(names, fresh)];
    match (purpose, architecture.family().for_texts) {
        (Purpose::Texts, ForTexts::Pooled) => vec![
            form(&["Classifier.out.bias", "Classifier.out.weight"], Head::classifier),
            form(
                &["TwoLayers.out.bias", "TwoLayers.out.weight", "TwoLayers.dense.bias", "TwoLayers.dense.weight"],
                Head::two_layers,
            ),
            at_mask(),
        ],
        (Purpose::Texts, ForTexts::TwoLayers) => vec![
            form(
                &["Classifier.out.bias", "Classifier.out.weight", "Classifier.dense.bias", "Classifier.dense.weight"],
                Head::classifier,
            ),
            at_mask(),
        ],
        (Purpose::Texts, ForTexts::Score) => one(&["Score.weight"], Head::classifier),
        (Purpose::Tokens, ForTexts::Pooled | ForTexts::TwoLayers | ForTexts::Score) => {
            one(&["Tokens.out.bias", "Tokens.out.weight"], Head::tokens)
        }
        (Purpose::Answers, _) if architecture.is_encoder() => {
            one(&["Answers.out.bias", "Answers.out.weight"], |base, _, seed| Head::answers(base, seed))
        }
        (Purpose::Words, _) if architecture.is_encoder() => one(
            &[
                "MaskedLm.bias",
                "MaskedLm.norm.bias",
                "MaskedLm.norm.gain",
                "MaskedLm.dense.bias",
                "MaskedLm.dense.weight",
            ],
            |base, _, seed| Head::masked_lm(base, seed),
        ),
        (Purpose::Texts | Purpose::Tokens, ForTexts::Written)
        | (Purpose::Answers | Purpose::Words | Purpose::States, _) => vec![],
    }
}

/// Tensors of a file that are taken one by one; what is left over is an error.
pub(super) struct Taker {
    pub(super) file: Checkpoint,
    taken: BTreeSet<String>,
    /// Whether a head for masked words is that of a model which ties it to the word table.
    pub(super) tied: bool,
}

impl Taker {
    pub(super) fn new(file: Checkpoint) -> Self {
        Taker { file, taken: BTreeSet::new(), tied: false }
    }

    /// The tensor of this name, of the shape and the kind of another.
    fn take(&mut self, HubKey { name, layout }: HubKey, like: &TensorData) -> Result<TensorData> {
        let dims = like.shape().as_slice();
        let read = |dims: &[usize]| self.file.read_f32(&name, dims);
        let data = match layout {
            Layout::Same if like.dtype() == DType::I64 => self.file.read_indices(&name, dims)?,
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
            if self.take(key, &data)?.as_bytes() != data.as_bytes() {
                return Err(Error::Check { what: "reading back what was saved", detail: format!("{place} differs") });
            }
        }
        Ok(())
    }

    pub(super) fn fill<M: Module, K: Into<HubKey>>(&mut self, module: M, key: impl Fn(&str) -> K) -> Result<M> {
        let mut values = BTreeMap::new();
        for (name, fresh) in tensors(&module) {
            let data = self.take(key(&name).into(), &fresh)?;
            values.insert(name, data);
        }
        with_values(module, &values)
    }

    /// The head, with those of its tensors that the file holds.
    pub(super) fn partly<K: Into<HubKey>>(&mut self, head: Head, key: impl Fn(&str) -> K) -> Result<Head> {
        let mut values = BTreeMap::new();
        for (name, own) in tensors(&head) {
            let key = key(&name).into();
            if self.file.shape(&key.name).is_some() {
                values.insert(name, self.take(key, &own)?);
            }
        }
        with_values(head, &values)
    }

    /// How many tensors the head for this purpose has, if the file holds them all; `None` of a head without tensors.
    pub(super) fn holds<K: Into<HubKey>>(
        &self,
        purpose: Purpose,
        key: impl Fn(&str) -> K,
        base: &Base,
    ) -> Option<usize> {
        let held = |name: &&str| self.file.shape(&key(name).into().name).is_some();
        let forms = forms(purpose, base.shape().architecture);
        forms.iter().filter(|form| form.names.iter().all(&held)).map(|form| form.names.len()).max()
    }

    /// The head for this purpose whose tensors have these names; `None` if none of them is there. One without tensors is always there.
    pub(super) fn head<K: Into<HubKey>>(
        &mut self,
        purpose: Purpose,
        key: impl Fn(&str) -> K,
        base: &Base,
    ) -> Result<Option<Head>> {
        let shape = base.shape();
        match purpose {
            Purpose::States => return Ok(Some(Head::States(States {}))),
            Purpose::Words if shape.pre_norm() => return Ok(Some(Head::LanguageModel(LanguageModel {}))),
            _ => {}
        }
        let key = |name: &str| key(name).into();
        for Form { names, fresh } in forms(purpose, shape.architecture) {
            let held = || names.iter().map(|name| key(name)).filter_map(|it| Some((self.file.shape(&it.name)?, it)));
            if let Some((_, it)) = held().find(|(dims, _)| dims.contains(&0)) {
                let expected =
                    "the numbers of a head (ZeRO-3 of DeepSpeed saves empty tensors unless they are gathered)";
                return Err(Error::file(self.file.path_of(&it.name), &it.name, "an empty tensor", expected));
            }
            // Without the last layer, or another part, taking it says what is missing.
            let outputs = |(dims, it): (&[usize], HubKey)| match (dims, it.layout) {
                ([_, _], Layout::Transposed) => dims[0],
                _ => dims.last().copied().unwrap_or(1),
            };
            let Some(outputs) = held().next().map(outputs) else { continue };
            let mut head = fresh(base, outputs, 0);
            // A table of its own has a bias beside it, which counts.
            let mut twin = None;
            if let (Head::MaskedLm(masked), false) = (&mut head, self.tied) {
                let decoder = key("MaskedLm.decoder").name;
                if self.file.shape(&decoder).is_some() {
                    let device = base.device().clone().autodiff();
                    masked.decoder = Some(Param::from_tensor(Tensor::zeros([shape.vocab, shape.hidden], &device)));
                    let bias = decoder.strip_suffix(".weight").map(|module| format!("{module}.bias"));
                    twin = bias.filter(|name| self.file.shape(name).is_some());
                }
            }
            let bias = |name: &str| match &twin {
                Some(twin) if name == "MaskedLm.bias" => HubKey { name: twin.clone(), ..key(name) },
                _ => key(name),
            };
            return self.fill(head, bias).map(Some);
        }
        Ok(None)
    }

    /// Whether a tensor is the second copy of a bias that PEFT writes with a saved head for masked words.
    pub(super) fn is_twin(&self, name: &str) -> bool {
        let Some(head) = name.strip_suffix(".bias") else { return false };
        let (bytes, twin) = (|name: &str| self.file.bytes(name).ok(), format!("{head}.decoder.bias"));
        self.taken.contains(&twin) && bytes(name) == bytes(&twin)
    }

    /// Copies of those tensors of modules of the base that the file holds under these names, but for what has been taken already and
    /// what has no elements.
    pub(super) fn copies<K: Into<HubKey>>(
        &mut self,
        key: impl Fn(&str) -> K,
        base: &Base,
        modules: &[String],
    ) -> Result<Copies> {
        let held = |name: &str| {
            let HubKey { name, .. } = key(name).into();
            self.file.shape(&name).is_some_and(|dims| !dims.contains(&0)) && !self.taken.contains(&name)
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
