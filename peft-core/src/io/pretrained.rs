//! A model directory in the layout of Hugging Face transformers.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use burn::module::Param;
use burn::tensor::{Device, TensorData};
use serde_json::{Value, json};

use super::classes;
use super::companions;
use super::names::{self, Found};
use super::packing::{Dense, Packing};
use super::tensors::{Contents, Taker};
use crate::files::{read_json, write_file, write_sealed};
use crate::load::{Checkpoint, Gguf, write_safetensors};
use crate::models::{self, fields::Fields};
use crate::random::fingerprint;
use crate::view::tensors;
use crate::warning::{listed, warn};
use crate::{Base, Error, Head, Key, LanguageModel, MaskedLm, Part, Place, Purpose, Result, Shape, Stored};

/// The sizes in a `config.json` in which a base may differ from its model's.
const SIZES: [&str; 5] = ["num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size", "d_ff"];

/// A backbone with what else its directory holds.
#[derive(Debug)]
pub struct Pretrained {
    /// What it was opened by; empty, if it was not.
    pub name: String,
    /// The backbone.
    pub base: Base,
    /// The head in the checkpoint that its class says, if there is one.
    pub head: Option<Head>,
    /// Heads for other purposes that the checkpoint holds beside it.
    pub others: Vec<Head>,
    /// `config.json`, or what it would be for a shape's random weights.
    pub config: Value,
    /// The directory; none for a shape's random weights.
    pub dir: Option<PathBuf>,
}

impl Pretrained {
    /// Opens a model: a directory, a GGUF file or a directory with one, `shape:NAME` for a published shape with random weights, or (with the feature `hub`) the
    /// id of a model on a hub.
    pub fn open(name: &str, device: &Device) -> Result<Self> {
        Self::open_packed(name, device, &mut Dense)
    }

    /// The same, with linear maps whose matrices come and are held in another way.
    pub fn open_packed(name: &str, device: &Device, packing: &mut dyn Packing) -> Result<Self> {
        let model = match name.strip_prefix("shape:") {
            Some(shape) => Self::random_packed(Shape::named(shape)?, device, packing)?,
            None => Self::open_dir(directory(name)?, device, packing)?,
        };
        Ok(Pretrained { name: name.into(), ..model })
    }

    /// A model of this shape with random weights.
    pub fn random(shape: Shape, seed: u64, device: &Device) -> Self {
        Self::of(Base::random(shape, seed, device))
    }

    /// The same, whose matrices are held in another way, one dense matrix at a time, as if read from numbers of the published models' type.
    pub fn random_packed(shape: Shape, device: &Device, packing: &dyn Packing) -> Result<Self> {
        let (dtype, held) = (shape.architecture.family().published, shape.clone());
        let random = |place: &Place| packing.hold(&held, place, dtype, models::random(place, 0), device);
        Ok(Self::of(Base::new(shape, device, random)?))
    }

    /// A base alone. If it predicts words, its head for that belongs to it.
    pub fn of(base: Base) -> Self {
        let config = base.shape().to_config();
        let head = base.shape().pre_norm().then_some(Head::LanguageModel(LanguageModel {}));
        Pretrained { name: String::new(), base, head, others: vec![], config, dir: None }
    }

    /// The shape of a model, without its weights; of these, if they are there, only what config.json does not tell for sure.
    pub fn shape(name: &str) -> Result<Shape> {
        if let Some(shape) = name.strip_prefix("shape:") {
            return Shape::named(shape);
        }
        let dir = directory(name)?;
        let (config, path, gguf) = config(&dir)?;
        let shape = Shape::from_config(&config, &path)?;
        match gguf {
            Some(gguf) => Ok(names::settle(&mut Checkpoint::from_gguf(&gguf)?, shape, &config)?.shape),
            None if Checkpoint::is_in(&dir) => {
                Ok(names::settle(&mut Checkpoint::open_model(&dir)?, shape, &config)?.shape)
            }
            None => Ok(shape),
        }
    }

    fn open_dir(dir: PathBuf, device: &Device, packing: &mut dyn Packing) -> Result<Self> {
        let (config, path, gguf) = config(&dir)?;
        packing.configure(&config, &path)?;
        let mut shape = Shape::from_config(&config, &path)?;
        shape.stop = stops(&dir, &shape)?;
        let mut file = match gguf {
            Some(gguf) => Checkpoint::from_gguf(&gguf)?,
            None => Checkpoint::open_model(&dir)?,
        };
        let said = classes::said(&config, &path, shape.architecture);
        let Found { shape, prefix, words, pooler, tied } = names::settle(&mut file, shape, &config)?;
        let mut taken = BTreeSet::new();
        // RoBERTa's pooler is read for those who ask for its states.
        let base = Base::new(Shape { pooler, ..shape.clone() }, device, |place| {
            let name = match place.site.part {
                Part::Vocabulary => shape.file_name(place),
                _ => format!("{prefix}{}", place.name),
            };
            let tensor = matrix(&mut file, &name, &shape, place, device, packing);
            taken.insert(name);
            tensor
        });
        let base = match (base, said.is_err()) {
            (Ok(base), _) => base.with_shape(shape),
            // A class that is refused is the reason why a tensor is not there.
            (Err(error), refused) => return if refused { said.and(Err(error)) } else { Err(error) },
        };
        let absent: Vec<&str> = file.absent().filter(|name| !taken.contains(*name)).collect();
        if !absent.is_empty() {
            warn(&dir, "weight_map", format!("no shard holds {}, and nothing here needs it", listed(&absent)));
        }
        for module in packing.modules(&file) {
            if let Some(w) = packing.take(&mut file, &module, device)? {
                let [inputs, outputs] = w.dims();
                file.put(format!("{module}.weight"), TensorData::new(w.outputs(0..outputs), [outputs, inputs]));
            }
        }
        let mut taker = Taker::new(file);
        taker.tied = tied;
        let (head, others) = Pretrained::heads(&mut taker, &base, said, words)?;
        let unused: Vec<&str> =
            taker.left().filter(|name| !taken.contains(*name) && !names::needs_no_word(name)).collect();
        // A layer that the forward would leave out may not be there.
        let backbone = |name: &&&str| {
            let inner = name.strip_prefix(&prefix).unwrap_or_default();
            ["encoder.", "embeddings.", "decoder.", "layers."].iter().any(|part| inner.starts_with(part))
        };
        // GPTQ's first programs wrote a bias of zeros beside each matrix, whether the model has one or not.
        let adds_nothing = |name: &str| {
            name.ends_with(".bias") && taker.file.bytes(name).is_ok_and(|bytes| bytes.iter().all(|byte| *byte == 0))
        };
        if let Some(name) = unused.iter().filter(backbone).find(|name| !adds_nothing(name)) {
            let expected = format!("no such tensor in a model of {} layers, as config.json says", base.shape().layers);
            return Err(Error::file(taker.file.path_of(name), *name, "a tensor that nothing uses", expected));
        }
        if !unused.is_empty() {
            warn(taker.file.path(), "tensors", format!("nothing here uses {}", listed(&unused)));
        }
        if let (Some(Head::MaskedLm(MaskedLm { decoder: None, .. })), false) = (&head, tied) {
            let expected = "true, or a word table of its own in the checkpoint";
            return Err(Error::file(&path, "tie_word_embeddings", "false", expected));
        }
        if let Some(outputs) = head.as_ref().and_then(Head::outputs) {
            check_class_names(&path, config.get("id2label"), outputs)?;
        }
        Ok(Pretrained { name: String::new(), base, head, others, config, dir: Some(dir) })
    }

    /// A hash of all that it computes by: the base and the head in the checkpoint.
    pub fn fingerprint(&self) -> u64 {
        let head = self.head.as_ref().map(tensors).unwrap_or_default();
        head.iter().fold(self.base.known_fingerprint(), |all, (name, data)| all ^ fingerprint(name, data.as_bytes()))
    }

    /// The tokenizer in its directory.
    #[cfg(feature = "tokenize")]
    pub fn tokenizer(&self) -> Result<crate::load::Tokenizer> {
        let expected = "a directory with a tokenizer: a shape with random weights has none";
        let dir = self.dir.as_deref().ok_or_else(|| Error::config("model", "a shape", expected))?;
        crate::load::Tokenizer::from_dir(dir, self.base.shape().vocab)
    }

    /// The names of the head's classes, in order, see [`class_names`](Self::class_names); empty without a head for classes.
    pub fn classes(&self) -> Vec<String> {
        self.class_names(self.head.as_ref().and_then(Head::outputs).unwrap_or(0))
    }

    /// Writes a model directory that transformers loads: `base` with `head`, the other files copied.
    pub fn save(&self, output: &Path, base: &Base, head: &Head, classes: &[String]) -> Result<()> {
        let foreign = match head {
            Head::TwoLayers(_) => {
                Some(("two layers", "BERT's own of one layer: transformers' models of BERT have no other"))
            }
            Head::AtMask(_) => Some(("one at a masked word", "a head that transformers' models have")),
            Head::Several(_) => Some(("one for each of several tasks", "that of one of them: --for-task NAME")),
            _ => None,
        };
        if let Some((found, expected)) = foreign {
            return Err(Error::config("task head", found, expected));
        }
        let base = base.for_purpose(head.purpose());
        let shape = base.shape();
        if base.has_two_word_tables() {
            let expected =
                "none by target_modules or modules_to_save: the checkpoint of a T5 has one for encoder and decoder";
            return Err(Error::config("embed_tokens", "a table of its own in each stack", expected));
        }
        // What makes logits beside a saved word table is the head's own.
        let untied = match head {
            Head::MaskedLm(head @ MaskedLm { decoder: None, .. }) if !shape.tied => {
                let decoder = Param::from_tensor(base.vocabulary().dense());
                Some(Head::MaskedLm(MaskedLm { decoder: Some(decoder), ..head.clone() }))
            }
            _ => None,
        };
        let head = untied.as_ref().unwrap_or(head);
        let mut contents = Contents::default();
        for place in shape.places() {
            contents.add(place.name.clone(), shape.file_name(&place), base.tensor_data(&place))?;
        }
        let mut contents = contents.with("head", head, |name| Head::key(name, shape.architecture))?;
        if let Head::MaskedLm(MaskedLm { decoder: Some(_), bias, .. }) = head {
            // Untied, the copy of the bias beside the table is the one that counts.
            let Key { name, .. } = Head::key("MaskedLm.decoder", shape.architecture);
            contents.add("head.copy".into(), name.replace(".weight", ".bias"), bias.val().into_data())?;
        }
        let config = self.config_with(shape, head, classes);
        write_sealed(output, |dir| {
            if let Some(from) = &self.dir {
                companions::copy(from, dir)?;
            }
            if let Some(file) = self.dir.as_deref().map(Gguf::find).transpose()?.flatten() {
                let gguf = Gguf::open(&file)?;
                write_file(&dir.join("tokenizer.json"), gguf.tokenizer()?.to_string().as_bytes())?;
                write_file(&dir.join("tokenizer_config.json"), gguf.tokenizer_config()?.to_string().as_bytes())?;
            }
            write_file(&dir.join("config.json"), format!("{config:#}\n").as_bytes())?;
            write_safetensors(&dir.join("model.safetensors"), &contents.tensors)
        })
    }

    fn config_with(&self, shape: &Shape, head: &Head, classes: &[String]) -> Value {
        let (architecture, purpose) = (self.base.shape().architecture, head.purpose());
        let mut config = self.config.clone();
        // Weights are written as f32, whatever they were.
        if let Some(config) = config.as_object_mut() {
            config.shift_remove("quantization_config");
        }
        for key in ["dtype", "torch_dtype"] {
            if config.get(key).is_some() {
                config[key] = json!("float32");
            }
        }
        if let Head::MaskedLm(MaskedLm { decoder: Some(_), .. }) = head {
            config["tie_word_embeddings"] = json!(false);
        }
        let (now, own) = (shape.to_config(), self.base.shape().to_config());
        if self.base.shape().tied && !shape.tied && shape.pre_norm() {
            for key in ["tie_word_embeddings", "scale_decoder_outputs"].into_iter().filter(|key| now.get(key).is_some())
            {
                config[key] = now[key].clone();
            }
        }
        // A base that was cut out of the model has other sizes.
        if SIZES.iter().any(|key| now.get(key) != own.get(key)) {
            SIZES.iter().filter(|key| now.get(key).is_some()).for_each(|key| config[key] = now[key].clone());
        }
        // A class for the same purpose stays, unless it has one head more.
        let said = classes::said(&config, Path::new("config.json"), architecture);
        let more =
            config.pointer("/architectures/0").and_then(Value::as_str).is_some_and(|it| it.ends_with("ForPreTraining"));
        if more || !matches!(said, Ok(Some(said)) if said == purpose) {
            config["architectures"] = json!([purpose.class(architecture)]);
        }
        if let Some(outputs) = head.outputs().filter(|_| purpose != Purpose::Words) {
            let names: Vec<String> =
                (0..outputs).map(|i| classes.get(i).cloned().unwrap_or_else(|| format!("LABEL_{i}"))).collect();
            config["id2label"] = names.iter().enumerate().map(|(i, n)| (i.to_string(), json!(n))).collect();
            config["label2id"] = names.iter().enumerate().map(|(i, n)| (n.clone(), json!(i))).collect();
        }
        config
    }
}

/// Writes a model directory aside, which then takes its name: what `fill` puts there, and the tokenizer and other files of `from` that
/// belong to a model beside settings and weights.
///
/// # Errors
/// If something is in its place, or cannot be written.
pub fn write_model<T>(output: &Path, from: &Path, fill: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    write_sealed(output, |dir| {
        companions::copy(from, dir)?;
        fill(dir)
    })
}

impl Base {
    /// The backbone of a model, see [`Pretrained::open`].
    pub fn from_pretrained(name: &str, device: &Device) -> Result<Self> {
        Ok(Pretrained::open(name, device)?.base)
    }
}

/// The tensor of a place, whose name in the file this is, as the packing holds it.
fn matrix(
    file: &mut Checkpoint,
    name: &str,
    shape: &Shape,
    place: &Place,
    device: &Device,
    packing: &dyn Packing,
) -> Result<Stored> {
    let (module, dims) = (name.strip_suffix(".weight").unwrap_or(name), place.file_dims());
    let Some(w) = packing.take(file, module, device)? else {
        let dtype = file.entry(name).map_or_else(String::new, |entry| entry.dtype.clone());
        let data = file.read_f32(name, &dims)?;
        return packing.hold(shape, place, &dtype, data, device);
    };
    let [inputs, outputs] = w.dims();
    if dims != [outputs, inputs] {
        let found = format!("a packed matrix of shape {:?}", [outputs, inputs]);
        return Err(Error::file(file.path(), name, found, format!("shape {dims:?}")));
    }
    Ok(Stored::Packed(w))
}

/// `id2label` has a name of its own for every output, or is not there.
fn check_class_names(path: &Path, id2label: Option<&Value>, outputs: usize) -> Result<()> {
    let Some(names) = id2label.filter(|names| !names.is_null()) else { return Ok(()) };
    let name = |i: usize| names.get(i.to_string()).and_then(Value::as_str);
    let distinct: BTreeSet<&str> = (0..outputs).filter_map(name).collect();
    if distinct.len() == outputs && names.as_object().is_some_and(|names| names.len() == outputs) {
        return Ok(());
    }
    let expected = format!("{outputs} distinct names, as the head has outputs, under the keys 0 to {}", outputs - 1);
    Err(Error::file(path, "id2label", names, expected))
}

/// The settings of a model, the file that they stand in, and the GGUF file if that is it.
fn config(dir: &Path) -> Result<(Value, PathBuf, Option<Gguf>)> {
    let path = dir.join("config.json");
    match Gguf::find(dir)?.filter(|_| !path.exists()) {
        Some(file) => {
            let gguf = Gguf::open(&file)?;
            Ok((gguf.config()?, file, Some(gguf)))
        }
        None => Ok((read_json(&path)?, path, None)),
    }
}

/// The directory of this name, else (with the feature `hub`) that of the hub's model of this name.
fn directory(name: &str) -> Result<PathBuf> {
    let dir = PathBuf::from(name);
    #[cfg(feature = "hub")]
    let dir = if dir.exists() { dir } else { crate::load::hub::fetch(name)? };
    if !dir.exists() {
        let expected = "a directory or .gguf file, shape:NAME, or, with the feature `hub`, the id of a model";
        return Err(Error::config("model", name, expected));
    }
    Ok(dir)
}

/// The ids that end a text: of `generation_config.json`, where transformers looks first, else of the configuration.
fn stops(dir: &Path, shape: &Shape) -> Result<Vec<usize>> {
    let path = dir.join("generation_config.json");
    let told = match path.exists() {
        true => Fields { config: &read_json(&path)?, path: &path }.ids("eos_token_id", shape.vocab)?,
        false => None,
    };
    Ok(told.unwrap_or_else(|| shape.stop.clone()))
}
