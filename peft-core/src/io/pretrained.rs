//! A model directory in the layout of Hugging Face transformers.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use serde_json::{Value, json};

use super::companions;
use super::heads;
use super::tensors::{Contents, Taker};
use crate::files::{read_json, write_file, write_sealed};
use crate::load::{Checkpoint, Gguf, write_safetensors};
use crate::models::fields::Fields;
use crate::random::fingerprint;
use crate::view::tensors;
use crate::warning::warn;
use crate::{Architecture, Base, Error, Head, Key, LanguageModel, MaskedLm, Part, Place, Purpose, Result, Shape};

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
        if let Some(shape) = name.strip_prefix("shape:") {
            return Ok(Pretrained { name: name.into(), ..Self::random(Shape::named(shape)?, 0, device) });
        }
        Ok(Pretrained { name: name.into(), ..Self::open_dir(directory(name)?, device)? })
    }

    /// A model of this shape with random weights.
    pub fn random(shape: Shape, seed: u64, device: &Device) -> Self {
        Self::of(Base::random(shape, seed, device))
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
            Some(gguf) => Ok(found_in(&Checkpoint::from_gguf(&gguf)?, shape, &config)?.shape),
            None if Checkpoint::is_in(&dir) => Ok(found_in(&Checkpoint::open_model(&dir)?, shape, &config)?.shape),
            None => Ok(shape),
        }
    }

    fn open_dir(dir: PathBuf, device: &Device) -> Result<Self> {
        let (config, path, gguf) = config(&dir)?;
        let mut shape = Shape::from_config(&config, &path)?;
        shape.stop = stops(&dir, &shape)?;
        let file = match gguf {
            Some(gguf) => Checkpoint::from_gguf(&gguf)?,
            None => Checkpoint::open_model(&dir)?,
        };
        let said = heads::said(&config, &path, shape.architecture);
        let Found { shape, prefix, words, pooler } = found_in(&file, shape, &config)?;
        let name = |shape: &Shape, place: &Place| match place.site.part {
            Part::Vocabulary => shape.file_name(place),
            _ => format!("{prefix}{}", place.name),
        };
        let mut taken = BTreeSet::new();
        // RoBERTa's pooler is read for those who ask for its states.
        let base = Base::new(Shape { pooler, ..shape.clone() }, device, |place| {
            let name = name(&shape, place);
            let old = old_name(&name);
            let name = if file.shape(&name).is_none() && file.shape(&old).is_some() { old } else { name };
            let data = file.read_f32(&name, &place.file_dims());
            taken.insert(name);
            data
        })?;
        let base = base.with_shape(shape);
        // Heads of other tasks may be there. A layer that the forward would leave out may not.
        let backbone = |name: &&str| {
            let inner = name.strip_prefix(&prefix).unwrap_or_default();
            let copies = [
                "position_ids",
                "embed_tokens.weight",
                "rotary_emb.inv_freq",
                "EncDecAttention.relative_attention_bias.weight",
            ];
            let parts = ["encoder.", "embeddings.", "decoder.", "layers."];
            parts.iter().any(|part| inner.starts_with(part)) && !copies.iter().any(|copy| inner.ends_with(copy))
        };
        if let Some(name) = file.names().filter(backbone).find(|name| !taken.contains(*name)) {
            let expected = format!("no such tensor in a model of {} layers, as config.json says", base.shape().layers);
            return Err(Error::file(file.path_of(name), name, "a tensor that nothing uses", expected));
        }
        let tied = config.get("tie_word_embeddings").and_then(Value::as_bool) != Some(false);
        let mut taker = Taker::new(file);
        taker.tied = tied;
        let (head, others) = Pretrained::heads(&mut taker, &base, said, words)?;
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
        head.iter().fold(self.base.fingerprint(), |all, (name, data)| all ^ fingerprint(name, data.as_bytes()))
    }

    /// The tokenizer in its directory.
    #[cfg(feature = "tokenize")]
    pub fn tokenizer(&self) -> Result<crate::load::Tokenizer> {
        let expected = "a directory with a tokenizer: a shape with random weights has none";
        let dir = self.dir.as_deref().ok_or_else(|| Error::config("--model", "a shape", expected))?;
        crate::load::Tokenizer::from_dir(dir, self.base.shape().vocab)
    }

    /// The names of the head's classes, in order, see [`class_names`](Self::class_names); empty without a head for classes.
    pub fn classes(&self) -> Vec<String> {
        self.class_names(self.head.as_ref().and_then(Head::outputs).unwrap_or(0))
    }

    /// Writes a model directory that transformers loads: `base` with `head`, the other files copied.
    pub fn save(&self, output: &Path, base: &Base, head: &Head, classes: &[String]) -> Result<()> {
        if let Head::TwoLayers(_) = head {
            let expected = "BERT's own of one layer: transformers' models of BERT have no other";
            return Err(Error::config("task head", "two layers", expected));
        }
        let base = base.for_purpose(head.purpose());
        let shape = base.shape();
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
        let config = self.config_with(head, classes);
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

    fn config_with(&self, head: &Head, classes: &[String]) -> Value {
        let (architecture, purpose) = (self.base.shape().architecture, head.purpose());
        let mut config = self.config.clone();
        // Weights are written as f32, whatever they were.
        for key in ["dtype", "torch_dtype"] {
            if config.get(key).is_some() {
                config[key] = json!("float32");
            }
        }
        if let Head::MaskedLm(MaskedLm { decoder: Some(_), .. }) = head {
            config["tie_word_embeddings"] = json!(false);
        }
        // A class for the same purpose stays, unless it has one head more.
        let said = heads::said(&config, Path::new("config.json"), architecture);
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

impl Base {
    /// The backbone of a model, see [`Pretrained::open`].
    pub fn from_pretrained(name: &str, device: &Device) -> Result<Self> {
        Ok(Pretrained::open(name, device)?.base)
    }
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
        return Err(Error::config("--model", name, expected));
    }
    Ok(dir)
}

/// A model as its checkpoint has it.
struct Found {
    shape: Shape,
    /// What the names in there start with.
    prefix: String,
    /// Whether it makes logits over words, which a model with another head may not.
    words: bool,
    /// Whether there is a pooler.
    pooler: bool,
}

fn found_in(file: &Checkpoint, mut shape: Shape, config: &Value) -> Result<Found> {
    let prefix = find_prefix(file, &shape)?;
    // A BERT for masked words is saved without the pooler; RoBERTa's is only of use to those who ask for states.
    let said = heads::said(config, Path::new(""), shape.architecture);
    let pooler = !shape.pre_norm() && file.shape(&format!("{prefix}pooler.dense.weight")).is_some();
    shape.pooler = pooler && (shape.pooler || matches!(said, Ok(Some(Purpose::States))));
    // As in transformers: what the configuration says is tied is not where the two tables differ; of T5 it says so of all. A LLaMA for
    // something else has no table for words.
    let may_be_tied = shape.tied || matches!(shape.architecture, Architecture::T5(_));
    let mut words = true;
    if shape.pre_norm() {
        let other = has_other_head(file, &shape, &prefix)?;
        let elsewhere = file.shape("score.weight").is_some() || !matches!(said, Ok(None | Some(Purpose::Words)));
        words = other || may_be_tied || !elsewhere;
        shape.tied = !other && (may_be_tied || elsewhere);
    }
    Ok(Found { shape, prefix, words, pooler })
}

/// Whether there is a table for logits that is not that of the words.
fn has_other_head(file: &Checkpoint, shape: &Shape, prefix: &str) -> Result<bool> {
    const HEAD: &str = "lm_head.weight";
    let Some(dims) = file.shape(HEAD).map(<[usize]>::to_vec) else { return Ok(false) };
    let words = format!("{prefix}{}", shape.places()[0].name);
    Ok(file.shape(&words) != Some(&*dims) || file.read_f32(HEAD, &dims)? != file.read_f32(&words, &dims)?)
}

/// Names start with the model's prefix, with another's (a task of its own may have wrapped it), or with none.
fn find_prefix(file: &Checkpoint, shape: &Shape) -> Result<String> {
    let places = shape.places();
    let first = &places[0];
    // The last is that of a LLaMA for question answering.
    let prefixes = [shape.prefix, "", "transformer."].map(String::from);
    let found = prefixes.into_iter().find(|prefix| file.shape(&format!("{prefix}{}", first.name)).is_some());
    found.ok_or_else(|| {
        let name = format!("{}{}", shape.prefix, first.name);
        let held = file.names().take(3).collect::<Vec<_>>().join(", ");
        Error::file(file.path_of(&name), name, format!("no such tensor, but {held}, .."), "the model's word embeddings")
    })
}

/// The name in checkpoints of 2018 and 2019, which called gains gamma and biases of normalizations beta.
fn old_name(name: &str) -> String {
    match name.strip_suffix("LayerNorm.weight") {
        Some(module) => format!("{module}LayerNorm.gamma"),
        None => name.replace("LayerNorm.bias", "LayerNorm.beta"),
    }
}

/// The ids that end a text: of `generation_config.json`, where transformers looks first, else of the configuration. Ids that no token
/// has end nothing.
fn stops(dir: &Path, shape: &Shape) -> Result<Vec<usize>> {
    let path = dir.join("generation_config.json");
    if !path.exists() {
        return Ok(shape.stop.clone());
    }
    let config = read_json(&path)?;
    let fields = Fields { config: &config, path: &path };
    let Some(value) = fields.get("eos_token_id") else { return Ok(shape.stop.clone()) };
    let ids = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    if !ids.iter().all(Value::is_i64) {
        return Err(fields.wrong("eos_token_id", "an id or a list of them"));
    }
    let ids = ids.iter().filter_map(Value::as_u64).map(|id| id as usize).filter(|id| *id < shape.vocab);
    let ids: Vec<usize> = ids.collect();
    if ids.len() < value.as_array().map_or(1, Vec::len) {
        warn(&path, "eos_token_id", format!("is {value}: ids that no token has end nothing"));
    }
    Ok(ids)
}
