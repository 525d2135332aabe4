//! A model directory in the layout of Hugging Face transformers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn::tensor::{Device, TensorData};
use serde_json::{Value, json};

use super::peft::read_head;
use crate::files::{read_json, write_directory, write_file};
use crate::load::{Checkpoint, Gguf, write_safetensors};
use crate::models::fields::Fields;
use crate::random::fingerprint;
use crate::view::tensors;
use crate::{Architecture, Base, Error, Head, Key, LanguageModel, Part, Place, Result, Shape};

/// What a model's directory holds beside settings and weights.
const OTHER_FILES: [&str; 6] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "generation_config.json",
    "chat_template.jinja",
];

/// A backbone with what else its directory holds.
#[derive(Debug)]
pub struct Pretrained {
    /// What it was opened by; empty, if it was not.
    pub name: String,
    /// The backbone.
    pub base: Base,
    /// The head in the checkpoint, if there is one.
    pub head: Option<Head>,
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
        let config = shape.to_config();
        let head = shape.pre_norm().then_some(Head::LanguageModel(LanguageModel {}));
        Pretrained { name: String::new(), base: Base::random(shape, seed, device), head, config, dir: None }
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
            Some(gguf) => Ok(found_in(&Checkpoint::from_gguf(&gguf)?, shape)?.0),
            None if Checkpoint::is_in(&dir) => Ok(found_in(&Checkpoint::open_model(&dir)?, shape)?.0),
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
        let (shape, prefix) = found_in(&file, shape)?;
        let name = |shape: &Shape, place: &Place| match place.site.part {
            Part::Vocabulary => shape.file_name(place),
            _ => format!("{prefix}{}", place.name),
        };
        let mut taken = BTreeSet::new();
        let base = Base::new(shape.clone(), device, |place| {
            let name = name(&shape, place);
            let old = old_name(&name);
            let name = if file.shape(&name).is_none() && file.shape(&old).is_some() { old } else { name };
            let data = file.read_f32(&name, &place.file_dims());
            taken.insert(name);
            data
        })?;
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
        let head = read_head(file, &base)?;
        let tied = config.get("tie_word_embeddings").and_then(Value::as_bool) != Some(false);
        if let (Some(Head::MaskedLm(_)), false) = (&head, tied) {
            let expected = "true: a head for words that uses the word table";
            return Err(Error::file(&path, "tie_word_embeddings", "false", expected));
        }
        if let Some(outputs) = head.as_ref().and_then(Head::outputs) {
            check_class_names(&path, config.get("id2label"), outputs)?;
        }
        Ok(Pretrained { name: String::new(), base, head, config, dir: Some(dir) })
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

    /// The names of the head's classes, in order, as in `config.json` or, as in transformers, `LABEL_0`, `LABEL_1` and so on;
    /// empty without a head for classes.
    pub fn classes(&self) -> Vec<String> {
        let count = self.head.as_ref().and_then(Head::outputs).filter(|outputs| *outputs > 1).unwrap_or(0);
        let name = |i: usize| self.config.get("id2label")?.get(i.to_string())?.as_str().map(str::to_string);
        (0..count).map(|i| name(i).unwrap_or_else(|| format!("LABEL_{i}"))).collect()
    }

    /// Writes a model directory that transformers loads: `base` with `head`, the other files copied.
    pub fn save(&self, output: &Path, base: &Base, head: &Head, classes: &[String]) -> Result<()> {
        if let Head::TwoLayers(_) = head {
            let expected = "BERT's own of one layer: transformers' models of BERT have no other";
            return Err(Error::config("task head", "two layers", expected));
        }
        let shape = base.shape();
        let own_tables = |found, expected| Err(Error::config("modules_to_save", found, expected));
        if base.has_two_word_tables() {
            return own_tables("embed_tokens", "one table: the checkpoint of a T5 has no other for its decoder");
        }
        if let (Head::MaskedLm(_), false) = (head, shape.tied) {
            let expected = "no word table beside a head for masked words, which a checkpoint ties to it";
            return own_tables("word_embeddings", expected);
        }
        let mut files: BTreeMap<String, TensorData> = BTreeMap::new();
        for place in shape.places() {
            files.insert(shape.file_name(&place), base.tensor_data(&place));
        }
        for (name, data) in tensors(head) {
            let Key { name, transposed } = Head::key(&name, shape.architecture);
            files.insert(name, if transposed { super::tensors::transpose(data) } else { data });
        }
        let config = self.config_with(shape, head, classes);
        write_directory(output, |dir| {
            for name in OTHER_FILES {
                if let Some(from) = self.dir.as_ref().map(|d| d.join(name)).filter(|f| f.exists()) {
                    std::fs::copy(&from, dir.join(name)).map_err(Error::io("copy", &from))?;
                }
            }
            if let Some(file) = self.dir.as_deref().map(Gguf::find).transpose()?.flatten() {
                let gguf = Gguf::open(&file)?;
                write_file(&dir.join("tokenizer.json"), gguf.tokenizer()?.to_string().as_bytes())?;
                write_file(&dir.join("tokenizer_config.json"), gguf.tokenizer_config()?.to_string().as_bytes())?;
            }
            write_file(&dir.join("config.json"), format!("{config:#}\n").as_bytes())?;
            write_safetensors(&dir.join("model.safetensors"), &files)
        })
    }

    fn config_with(&self, shape: &Shape, head: &Head, classes: &[String]) -> Value {
        let family = match self.base.shape().architecture {
            Architecture::Bert => "Bert",
            Architecture::Roberta => "Roberta",
            Architecture::T5(_) => "T5",
            Architecture::Llama(_) => "Llama",
        };
        let mut config = self.config.clone();
        // Weights are written as f32, whatever they were.
        for key in ["dtype", "torch_dtype"] {
            if config.get(key).is_some() {
                config[key] = json!("float32");
            }
        }
        if self.base.shape().tied && !shape.tied && shape.pre_norm() {
            config["tie_word_embeddings"] = json!(false);
            if let Architecture::T5(t5) = shape.architecture {
                config["scale_decoder_outputs"] = json!(t5.scaled);
            }
        }
        let task = match head {
            Head::Classifier(_) | Head::TwoLayers(_) | Head::Score(_) => "SequenceClassification",
            Head::MaskedLm(_) => "MaskedLM",
            Head::LanguageModel(_) | Head::Verbalizer(_) if family == "T5" => "ConditionalGeneration",
            Head::LanguageModel(_) | Head::Verbalizer(_) => "CausalLM",
        };
        config["architectures"] = json!([format!("{family}For{task}")]);
        if let Some(outputs) = head.outputs().filter(|_| task == "SequenceClassification") {
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

/// The shape as a checkpoint has it, and what the names in there start with.
fn found_in(file: &Checkpoint, mut shape: Shape) -> Result<(Shape, String)> {
    let prefix = find_prefix(file, &shape)?;
    // A BERT for masked words is saved without the pooler.
    shape.pooler &= file.shape(&format!("{prefix}pooler.dense.weight")).is_some();
    // As in transformers: what the configuration says is tied is not where the two tables differ; of T5 it says so of all. A LLaMA for
    // classes has no table for words.
    let may_be_tied = shape.tied || matches!(shape.architecture, Architecture::T5(_));
    if shape.pre_norm() {
        shape.tied = file.shape("score.weight").is_some() || may_be_tied && !has_other_head(file, &shape, &prefix)?;
    }
    Ok((shape, prefix))
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
    let prefixes = [shape.prefix().to_string(), String::new()];
    let found = prefixes.into_iter().find(|prefix| file.shape(&format!("{prefix}{}", first.name)).is_some());
    found.ok_or_else(|| {
        let name = format!("{}{}", shape.prefix(), first.name);
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

/// The ids that end a text: of `generation_config.json`, where transformers looks first, else of the configuration.
fn stops(dir: &Path, shape: &Shape) -> Result<Vec<usize>> {
    let path = dir.join("generation_config.json");
    let told = match path.exists() {
        true => Fields { config: &read_json(&path)?, path: &path }.ids("eos_token_id", shape.vocab)?,
        false => None,
    };
    Ok(told.unwrap_or_else(|| shape.stop.clone()))
}
