//! Adapter directories in the layout of AdapterHub (the package `adapters`, whose version 1.3.0 is the reference) for BERT and
//! RoBERTa: `adapter_config.json` and `adapter.safetensors` or `pytorch_adapter.bin`; of the head `head_config.json` and
//! `model_head.safetensors` or `pytorch_model_head.bin`. What is written are safetensors, which the package reads with
//! `load_adapter(.., use_safetensors=True)`, and a head of transformers' own classes, which its flexible models take over.

use std::path::{Path, PathBuf};

use burn::module::Module;
use serde_json::{Value, json};

use super::Pretrained;
use super::peft::{Labels, head_key, write_json};
use super::tensors::{Taker, check_finite, to_files, write_and_verify};
use crate::adapterhub::{AdapterHub, Fields, HubKey, Kind, field, wrong};
use crate::files::{read_json, write_directory};
use crate::load::{Checkpoint, write_safetensors};
use crate::{Architecture, Base, Error, Head, Method, Result, Shape, Trained};

const CONFIG: &str = "adapter_config.json";
const HEAD_CONFIG: &str = "head_config.json";
const WEIGHTS: [&str; 2] = ["adapter.safetensors", "pytorch_adapter.bin"];
const HEAD_WEIGHTS: [&str; 2] = ["model_head.safetensors", "pytorch_model_head.bin"];
/// The version that is written and compared with.
const VERSION: &str = "adapters.1.3.0";
/// What adapters that are written are called.
const NAME: &str = "adapter";

/// Which of AdapterHub's methods a directory holds.
pub fn kind(dir: &Path) -> Result<Kind> {
    let path = dir.join(CONFIG);
    let whole = object(&path)?;
    Kind::of(&config_of(&whole).map_err(|error| error.in_file(&path))?).map_err(|error| error.in_file(&path))
}

/// Reads an adapter directory. Where it holds no head, it is the model's own, as in the package.
pub fn load<M: Method>(dir: &Path, model: &Pretrained) -> Result<(M, Trained<M::Tuner>, Labels)> {
    let (path, base) = (dir.join(CONFIG), &model.base);
    let shape = base.shape();
    let hub = form::<M>(shape)?;
    let whole = object(&path)?;
    let name = check_whole(&whole, shape).map_err(|error| error.in_file(&path))?;
    let fields = config_of(&whole).map_err(|error| error.in_file(&path))?;
    let config = read(&hub, &fields, shape).map_err(|error| error.in_file(&path))?;
    let mut taker = Taker::new(Checkpoint::open_file(&one_of(dir, WEIGHTS)?)?);
    let tuner = config.init(base, 0).map_err(|error| error.in_file(&path))?;
    let tuner = taker.fill(tuner, |tensor| (hub.key)(&config, tensor, &name, shape))?;
    check_copies(&taker)?;
    let (head, classes) = if dir.join(HEAD_CONFIG).exists() {
        read_head(dir, base)?
    } else {
        let none = || Error::file(dir, HEAD_CONFIG, "no such file", "the head, or a model whose checkpoint has one");
        (model.head.clone().ok_or_else(none)?, model.classes())
    };
    let told = whole.get("model_name").and_then(Value::as_str).unwrap_or_default().to_string();
    Ok((config, Trained::new(tuner, head)?, Labels { base: told, classes }))
}

/// Writes an adapter directory all or nothing, reads it back, and compares every bit before it takes its name. What AdapterHub
/// cannot express is an error that names the setting.
pub fn save<M: Method>(
    dir: &Path,
    config: &M,
    trained: &Trained<M::Tuner>,
    shape: &Shape,
    labels: &Labels,
) -> Result<()> {
    let hub = form::<M>(shape)?;
    let fields = (hub.fields)(&config.learned(&trained.tuner, shape), shape)?;
    // What a reader gets, which may have another form: of a prefix the files hold what its projection gives.
    let config = read(&hub, &fields, shape)?;
    let tuner = M::to_saved(trained.tuner.clone().valid());
    let Head::Classifier(classifier) = &trained.head else {
        return Err(Error::config("task head", "one for words", "a head for classes or values, for AdapterHub"));
    };
    let outputs = classifier.out.bias.lazy_shape().num_elements();
    let class = |i: usize| labels.classes.get(i).cloned().unwrap_or_else(|| format!("LABEL_{i}"));
    let ids: Fields = (0..outputs).map(|i| (class(i), json!(i))).collect();
    let (family, model_type) = family(shape);
    let common = |name: Value, config: Value| {
        json!({"name": name, "config": config, "model_type": model_type, "hidden_size": shape.hidden, "version": VERSION,
            "model_name": labels.base, "model_class": format!("{family}ForSequenceClassification")})
    };
    let mut head = common(Value::Null, Value::Null);
    head["label2id"] = json!(ids);
    head["num_labels"] = json!(outputs);
    let mut adapter = common(json!(NAME), Value::Object(fields));
    [&mut head, &mut adapter].into_iter().for_each(Value::sort_all_objects);
    let tensors = to_files(&tuner, |tensor| (hub.key)(&config, tensor, NAME, shape));
    let head_tensors = to_files(&trained.head, |tensor| head_key("", tensor, shape));
    check_finite(&tensors)?;
    check_finite(&head_tensors)?;
    write_directory(dir, |dir| {
        write_json(&dir.join(CONFIG), &adapter)?;
        write_json(&dir.join(HEAD_CONFIG), &head)?;
        for (name, files) in [(WEIGHTS[0], &tensors), (HEAD_WEIGHTS[0], &head_tensors)] {
            write_and_verify(&dir.join(name), files, |path| write_safetensors(path, files))?;
        }
        Ok(())
    })
}

/// The method's form, on a model for which it is known.
fn form<M: Method>(shape: &Shape) -> Result<AdapterHub<M>> {
    if shape.pre_norm() {
        return Err(Error::config("model", family(shape).1, "bert or roberta, for AdapterHub's files"));
    }
    M::adapterhub().ok_or_else(|| {
        Error::config("method", M::NAME, "adapter, parallel, lora, ia3 or prefix: AdapterHub's files have no other")
    })
}

/// A configuration whose fields are these again, but for what says nothing.
fn read<M: Method>(hub: &AdapterHub<M>, fields: &Fields, shape: &Shape) -> Result<M> {
    let config = (hub.config)(fields, shape)?;
    check_same(fields, &(hub.fields)(&config, shape)?, hub.free)?;
    Ok(config)
}

/// Every field that is not free has the value that is expected of it, or is unknown and off.
fn check_same(fields: &Fields, expected: &Fields, free: &[&str]) -> Result<()> {
    let off = |value: &Value| matches!(value, Value::Null | Value::Bool(false)) || *value == json!([]);
    for (key, value) in fields.iter().filter(|(key, _)| !free.contains(&key.as_str())) {
        match expected.get(key) {
            Some(expected) if same(value, expected) => {}
            Some(expected) => return Err(wrong(fields, key, &expected.to_string())),
            None if off(value) => {}
            None => return Err(wrong(fields, key, "null or false: nothing is known of this field")),
        }
    }
    Ok(())
}

/// Numbers by value, lists in any order.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().all(|item| b.contains(item)),
        _ => a == b,
    }
}

/// The class name that transformers' models begin with, and their type.
fn family(shape: &Shape) -> (&'static str, &'static str) {
    match shape.architecture {
        Architecture::Bert => ("Bert", "bert"),
        Architecture::Roberta => ("Roberta", "roberta"),
        Architecture::T5(_) => ("T5", "t5"),
        Architecture::Llama(_) => ("Llama", "llama"),
    }
}

fn object(path: &Path) -> Result<Fields> {
    match read_json(path)? {
        Value::Object(fields) => Ok(fields),
        _ => Err(Error::file(path, "content", "no object", "a JSON object")),
    }
}

fn config_of(whole: &Fields) -> Result<Fields> {
    field(whole, "config", "the adapter's settings, an object")
}

/// Checks what is said of the model; gives the adapter's name.
fn check_whole(whole: &Fields, shape: &Shape) -> Result<String> {
    let model_type: String = field(whole, "model_type", family(shape).1)?;
    if model_type != family(shape).1 {
        return Err(wrong(whole, "model_type", &format!("{}, as in the model", family(shape).1)));
    }
    if whole.get("hidden_size") != Some(&json!(shape.hidden)) {
        return Err(wrong(whole, "hidden_size", &format!("{}, as in the model", shape.hidden)));
    }
    // Without one, activations had other names; before 1.1 of `adapters`, LoRA was trained without its scale.
    let expected = "adapters.1.1.0 or later";
    let version: String = field(whole, "version", expected)?;
    let numbers: Option<Vec<u32>> =
        version.strip_prefix("adapters.").and_then(|text| text.split('.').take(2).map(|n| n.parse().ok()).collect());
    if numbers.is_none_or(|numbers| numbers < vec![1, 1]) {
        return Err(wrong(whole, "version", expected));
    }
    field(whole, "name", "the adapter's name")
}

/// The first of these files that is there.
fn one_of(dir: &Path, names: [&str; 2]) -> Result<PathBuf> {
    let path = names.iter().map(|name| dir.join(name)).find(|path| path.exists());
    path.ok_or_else(|| Error::file(dir, "weights", "none", names.join(" or ")))
}

/// The package writes a prefix once more for every layer.
fn check_copies(taker: &Taker) -> Result<()> {
    const POOL: &str = ".prefix_tuning.pool.";
    let original = |name: &str| {
        let (module, rest) = name.split_once(POOL)?;
        let (model, _) = module.split_once('.')?;
        Some(format!("{model}.prefix_tuning.{rest}"))
    };
    for name in taker.left() {
        let Some(first) = original(name) else { continue };
        let read = |name: &str| taker.file.read_f32(name, taker.file.shape(name).unwrap_or_default());
        if read(name)?.as_bytes() != read(&first)?.as_bytes() {
            return Err(Error::file(taker.file.path_of(name), name, "other numbers", format!("those of {first}")));
        }
    }
    taker.finish(|name| original(name).is_some())
}

/// The head and the names of its classes.
fn read_head(dir: &Path, base: &Base) -> Result<(Head, Vec<String>)> {
    let (path, shape) = (dir.join(HEAD_CONFIG), base.shape());
    let whole = object(&path)?;
    let static_class = format!("{}ForSequenceClassification", family(shape).0);
    let flexible = whole.get("config").and_then(Value::as_object);
    let (told, prefix) = match flexible {
        Some(fields) => (fields, Some(field::<String>(&whole, "name", "the head's name"))),
        None => (&whole, None),
    };
    let wrong_class = || wrong(&whole, "model_class", &format!("{static_class}, or a flexible head"));
    let head_path = |error: Error| error.in_file(&path);
    let prefix = prefix.transpose().map_err(head_path)?;
    match flexible {
        None if whole.get("model_class") != Some(&json!(static_class)) => return Err(head_path(wrong_class())),
        None => {}
        Some(fields) => check_flexible(fields, shape).map_err(head_path)?,
    }
    let mut taker = Taker::new(Checkpoint::open_file(&one_of(dir, HEAD_WEIGHTS)?)?);
    let key = |name: &str| {
        let HubKey { name, layout } = head_key("", name, shape).into();
        let name = prefix.as_ref().map_or(name.clone(), |prefix| flexible_name(&name, prefix));
        HubKey { name, layout }
    };
    let head = taker.head(key, base)?.filter(|head| matches!(head, Head::Classifier(_)));
    let name = key("Classifier.out.bias").name;
    let none = || Error::file(taker.file.path_of(&name), &name, "no such tensor", "a head for classes or values");
    let head = head.ok_or_else(none)?;
    taker.finish(|_| false)?;
    let classes = classes(told, head.outputs().unwrap_or_default()).map_err(head_path)?;
    Ok((head, classes))
}

/// A flexible head computes what the model's own class for classification does.
fn check_flexible(fields: &Fields, shape: &Shape) -> Result<()> {
    let roberta = shape.architecture == Architecture::Roberta;
    let expected = json!({"head_type": "classification", "layers": 1 + usize::from(roberta), "bias": true,
        "activation_function": roberta.then_some("tanh"), "use_pooler": !roberta, "dropout_prob": null});
    // Without a hidden layer there is nothing to activate.
    let free: &[&str] =
        if roberta { &["num_labels", "label2id"] } else { &["num_labels", "label2id", "activation_function"] };
    for key in ["head_type", "layers", "use_pooler"] {
        field::<Value>(fields, key, &expected[key].to_string())?;
    }
    match expected {
        Value::Object(expected) => check_same(fields, &expected, free),
        _ => unreachable!("an object"),
    }
}

/// The name in a flexible head, whose modules have numbers, dropout and activations counted.
fn flexible_name(name: &str, head: &str) -> String {
    let (module, leaf) = name.rsplit_once('.').unwrap_or(("", name));
    let number = if module == "classifier.out_proj" { 4 } else { 1 };
    format!("heads.{head}.{number}.{leaf}")
}

/// The classes in their order; none for a value.
fn classes(told: &Fields, outputs: usize) -> Result<Vec<String>> {
    let ids = match told.get("label2id") {
        None | Some(Value::Null) => return Ok(vec![]),
        Some(_) if outputs == 1 => return Ok(vec![]),
        Some(ids) => ids.as_object(),
    };
    let name = |i: usize| Some(ids?.iter().find(|(_, id)| **id == json!(i))?.0.clone());
    let names: Option<Vec<String>> = (0..outputs).map(name).collect();
    let expected = format!("{outputs} names with the numbers from 0, as the head has outputs");
    names.filter(|_| ids.is_some_and(|ids| ids.len() == outputs)).ok_or_else(|| wrong(told, "label2id", &expected))
}
