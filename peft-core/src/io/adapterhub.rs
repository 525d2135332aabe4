//! Adapter directories in the layout of AdapterHub (the package `adapters`, whose version 1.3.0 is the reference):
//! `adapter_config.json` and `adapter.safetensors` or `pytorch_adapter.bin`; of the head `head_config.json` and
//! `model_head.safetensors` or `pytorch_model_head.bin`. What is written are safetensors, which the package reads with
//! `load_adapter(.., use_safetensors=True)`, and a head of transformers' own classes, which its flexible models take over, or (two
//! layers on a BERT) a flexible head. A head for words is the model's own and is not written.

use std::path::{Path, PathBuf};

use burn::module::Module;
use serde_json::{Value, json};

use super::Pretrained;
use super::peft::{Labels, head_key, write_json};
use super::tensors::{Contents, Taker};
use crate::adapterhub::{Fields, HubKey, Kind, field, wrong};
use crate::files::{read_json, write_sealed};
use crate::load::{Checkpoint, write_safetensors};
use crate::warning::warn;
use crate::{
    AnyMethod, AnyTuner, Base, ClassUse, Error, ForTexts, Head, HubForm, LanguageModel, Method, Part, Procedure,
    Purpose, Result, Shape, Trained,
};

const CONFIG: &str = "adapter_config.json";
const HEAD_CONFIG: &str = "head_config.json";
const WEIGHTS: [&str; 2] = ["adapter.safetensors", "pytorch_adapter.bin"];
const HEAD_WEIGHTS: [&str; 2] = ["model_head.safetensors", "pytorch_model_head.bin"];
/// The version that is written and compared with.
const VERSION: &str = "adapters.1.3.0";
/// What adapters and flexible heads that are written are called.
const NAME: &str = "adapter";
/// What the names of T5's tensors begin with in the package's flexible model.
const T5_MODEL: &str = "transformer.";
/// The table of a head for words.
const WORDS: &str = "lm_head.weight";

/// Which of AdapterHub's methods a directory holds.
pub fn kind(dir: &Path) -> Result<Kind> {
    let path = dir.join(CONFIG);
    let whole = object(&path)?;
    Kind::of(&config_of(&whole).map_err(|error| error.in_file(&path))?).map_err(|error| error.in_file(&path))
}

/// Reads an adapter directory. Where it holds no head, it is the model's own, as in the package.
pub fn load<M: Method>(dir: &Path, model: &Pretrained) -> Result<(M, Trained<M::Tuner>, Labels)> {
    let (config, trained, labels) = load_as(&AnyMethod::of::<M>(), dir, model)?;
    let (config, trained) = config.typed(trained);
    Ok((config, trained, labels))
}

/// [`load`] of a method that is known only when the program runs, whatever the settings of the one given.
pub fn load_as(method: &AnyMethod, dir: &Path, model: &Pretrained) -> Result<(AnyMethod, Trained<AnyTuner>, Labels)> {
    let (path, base) = (dir.join(CONFIG), &model.base);
    let shape = base.shape();
    let hub = form(method)?;
    let whole = object(&path)?;
    let name = check_whole(&whole, shape).map_err(|error| error.in_file(&path))?;
    let fields = config_of(&whole).map_err(|error| error.in_file(&path))?;
    let config = read(&hub, &fields, shape, &path).map_err(|error| error.in_file(&path))?;
    config.checked_count(shape).map_err(|error| error.in_file(&path))?;
    let mut taker = Taker::new(Checkpoint::open_file(&one_of(dir, WEIGHTS)?)?);
    let tuner = config.init(base, 0).map_err(|error| error.in_file(&path))?;
    let t5 = shape.architecture.is_encoder_decoder();
    let front = if t5 && taker.file.names().any(|name| name.starts_with(T5_MODEL)) { T5_MODEL } else { "" };
    let hub = form(&config)?;
    let tuner = taker.fill(tuner, |tensor| {
        let HubKey { name, layout } = hub.key(tensor, &name, shape);
        HubKey { name: format!("{front}{name}"), layout }
    })?;
    check_copies(&taker)?;
    let (head, classes) = if dir.join(HEAD_CONFIG).exists() {
        read_head(dir, base)?
    } else {
        let none = || Error::file(dir, HEAD_CONFIG, "no such file", "the head, or a model whose checkpoint has one");
        (model.head.clone().ok_or_else(none)?, model.classes())
    };
    let told = whole.get("model_name").and_then(Value::as_str).unwrap_or_default().to_string();
    Ok((config, Trained::new(tuner, head)?, Labels { base: told, classes, ..Labels::default() }))
}

/// Writes an adapter directory all or nothing, reads it back, and compares every bit before it takes its name. What AdapterHub
/// cannot express is an error that names the setting.
pub fn save<M: Clone + Into<AnyMethod>, T: Procedure + 'static>(
    dir: &Path,
    config: &M,
    trained: &Trained<T>,
    shape: &Shape,
    labels: &Labels,
) -> Result<()> {
    let (config, trained) = (config.clone().into(), trained.clone().erased());
    let learned = config.learned(&trained.tuner, shape);
    let hub = form(&learned)?;
    if hub.kind == Kind::Fusion {
        return Err(Error::config("method", learned.name(), "an adapter: AdapterHub has a fusion beside its adapters"));
    }
    if let Some(module) = trained.copies.modules().first() {
        return Err(Error::config("modules_to_save", module, "none: AdapterHub's files hold no tensors of the model"));
    }
    let fields = hub.fields(shape)?;
    // What a reader gets, which may have another form: of a prefix the files hold what its projection gives.
    let config = read(&hub, &fields, shape, dir)?;
    let hub = form(&config)?;
    let tuner = config.to_saved(trained.tuner.clone().valid());
    let [classes, words] = model_classes(shape);
    let (purpose, two_layers) = (trained.head.purpose(), matches!(trained.head, Head::TwoLayers(_)));
    let flexible = two_layers || matches!(trained.head, Head::Tokens(_) | Head::Answers(_));
    let model_class = match &trained.head {
        Head::Classifier(_) | Head::Score(_) => classes,
        _ if flexible => (!shape.pre_norm()).then(|| format!("{}AdapterModel", shape.architecture.family().name)),
        Head::LanguageModel(_) => words,
        _ => None,
    };
    let model_class = model_class.ok_or_else(|| {
        let found = match trained.head {
            Head::Verbalizer(_) => "texts for labels",
            Head::AtMask(_) => "one at a masked word",
            Head::Tokens(_) => "one for tokens",
            Head::Answers(_) => "one for answers",
            Head::States(_) => "none",
            Head::Several(_) => "one for each of several tasks",
            _ => "one for masked words",
        };
        let expected =
            "a head for classes, values or (on BERT and RoBERTa) tokens or answers, or a language model's, for AdapterHub";
        Error::config("task head", found, expected)
    })?;
    let common = |name: Value, config: Value| {
        json!({"name": name, "config": config, "model_type": model_type(shape), "hidden_size": shape.hidden, "version": VERSION,
            "model_name": labels.base, "model_class": model_class})
    };
    let mut adapter = common(json!(NAME), Value::Object(fields));
    adapter.sort_all_objects();
    let key = |tensor: &str| hub.key(tensor, NAME, shape);
    let head_key = |tensor: &str| flexible_key(head_key("", tensor, shape).into(), flexible.then_some(NAME));
    // Before anything is written.
    let tensors = Contents::default().with("method", &tuner, key)?.tensors;
    let head_tensors = Contents::default().with("head", &trained.head, head_key)?.tensors;
    write_sealed(dir, |dir| {
        let write = |name: &str, tensors| {
            let path = dir.join(name);
            write_safetensors(&path, tensors)?;
            Ok::<_, Error>(Taker::new(Checkpoint::open_file(&path)?))
        };
        write_json(&dir.join(CONFIG), &adapter)?;
        write(WEIGHTS[0], &tensors)?.compare(&tuner, key)?;
        // An answer's are its beginning and its end.
        let outputs = if purpose == Purpose::Answers { Some(2) } else { trained.head.outputs() };
        let Some(outputs) = outputs else { return Ok(()) };
        let class = |i: usize| labels.classes.get(i).cloned().unwrap_or_else(|| format!("LABEL_{i}"));
        let ids: Fields = (0..outputs).map(|i| (class(i), json!(i))).collect();
        let told = [("label2id".to_string(), json!(ids)), ("num_labels".to_string(), json!(outputs))];
        let mut head = if flexible {
            common(json!(NAME), flexible_fields(purpose, two_layers).into_iter().chain(told).collect())
        } else {
            let Value::Object(fields) = common(Value::Null, Value::Null) else { unreachable!("an object") };
            fields.into_iter().chain(told).collect()
        };
        head.sort_all_objects();
        write_json(&dir.join(HEAD_CONFIG), &head)?;
        write(HEAD_WEIGHTS[0], &head_tensors)?.compare(&trained.head, head_key)
    })
}

/// The method's form.
fn form(method: &AnyMethod) -> Result<HubForm<'_>> {
    method.adapterhub().ok_or_else(|| {
        Error::config(
            "method",
            method.name(),
            "adapter, parallel, bottleneck, compacter, lora, ia3 or prefix: AdapterHub's files have no other",
        )
    })
}

/// A configuration whose fields are these again, but for what says nothing.
pub(super) fn read(hub: &HubForm<'_>, fields: &Fields, shape: &Shape, path: &Path) -> Result<AnyMethod> {
    let config = hub.config(fields, shape)?;
    check_same(fields, &form(&config)?.fields(shape)?, hub.free, shape, path)?;
    Ok(config)
}

/// Why a field with a value other than what is expected of it changes no result of a finished adapter or head on this model.
fn no_matter(key: &str, shape: &Shape) -> Option<&'static str> {
    match key {
        "dropout" | "dropout_prob" | "stochastic_depth" => Some("it acts while the package trains, and on no result"),
        "cross_adapter" if shape.stacks().len() < 2 => Some("this model has no attention from a decoder to an encoder"),
        _ => None,
    }
}

/// Every field that is not free has the value that is expected of it, or is unknown and off, or is said to change nothing.
fn check_same(fields: &Fields, expected: &Fields, free: &[&str], shape: &Shape, path: &Path) -> Result<()> {
    let off = |value: &Value| matches!(value, Value::Null | Value::Bool(false)) || *value == json!([]);
    for (key, value) in fields.iter().filter(|(key, _)| !free.contains(&key.as_str())) {
        match (expected.get(key), no_matter(key, shape)) {
            (Some(expected), _) if same(value, expected) => {}
            (Some(_), Some(reason)) => warn(path, key, format!("is {value}: {reason}")),
            (Some(expected), None) => return Err(wrong(fields, key, &expected.to_string())),
            (None, _) if off(value) => {}
            (None, _) => return Err(wrong(fields, key, "null or false: nothing is known of this field")),
        }
    }
    Ok(())
}

/// Numbers by value, lists in any order.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().all(|item| b.contains(item)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, item)| b.get(key).is_some_and(|other| same(item, other)))
        }
        _ => a == b,
    }
}

/// The type of transformers' models.
fn model_type(shape: &Shape) -> String {
    shape.architecture.family().name.to_lowercase()
}

/// transformers' models of the family whose heads are known here: for classes, and for words.
fn model_classes(shape: &Shape) -> [Option<String>; 2] {
    let family = shape.architecture.family();
    let class = |head: &str| format!("{}For{head}", family.name);
    family.hub.classes.map(|head| head.map(class))
}

pub(super) fn object(path: &Path) -> Result<Fields> {
    match read_json(path)? {
        Value::Object(fields) => Ok(fields),
        _ => Err(Error::file(path, "content", "no object", "a JSON object")),
    }
}

pub(super) fn config_of(whole: &Fields) -> Result<Fields> {
    field(whole, "config", "the adapter's settings, an object")
}

/// Checks what is said of the model; gives the adapter's name.
pub(super) fn check_whole(whole: &Fields, shape: &Shape) -> Result<String> {
    let expected = model_type(shape);
    if field::<String>(whole, "model_type", &expected)? != expected {
        return Err(wrong(whole, "model_type", &format!("{expected}, as in the model")));
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
pub(super) fn one_of(dir: &Path, names: [&str; 2]) -> Result<PathBuf> {
    let path = names.iter().map(|name| dir.join(name)).find(|path| path.exists());
    path.ok_or_else(|| Error::file(dir, "weights", "none", names.join(" or ")))
}

/// The package writes a prefix once more for every layer, and a normalization in front of a bottleneck among what follows it.
fn check_copies(taker: &Taker) -> Result<()> {
    const POOL: &str = ".prefix_tuning.pool.";
    let original = |name: &str| {
        let norm = name.replace(".adapter_down.0.", ".adapter_norm_before.");
        if norm != name && taker.file.shape(&norm).is_some() {
            return Some(norm);
        }
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
    let in_file = |error: Error| error.in_file(&path);
    let flexible = whole.get("config").and_then(Value::as_object).filter(|_| !shape.pre_norm());
    let model_class = whole.get("model_class").and_then(Value::as_str);
    let [_, for_words] = model_classes(shape);
    let static_head = match model_class.map(|class| Purpose::of_class(class, shape.architecture)) {
        Some(ClassUse::Known(purpose @ (Purpose::Texts | Purpose::Tokens | Purpose::Answers))) => Some(purpose),
        _ => None,
    };
    let mut taker = Taker::new(Checkpoint::open_file(&one_of(dir, HEAD_WEIGHTS)?)?);
    let ((purpose, two_layers), name) = match flexible {
        Some(fields) => (
            check_flexible(fields, shape, &path).map_err(in_file)?,
            Some(field::<String>(&whole, "name", "the head's name")),
        ),
        None if model_class.is_some() && model_class == for_words.as_deref() => {
            return own_words(&taker, base).map(|head| (head, vec![]));
        }
        None => match static_head {
            Some(purpose) => ((purpose, false), None),
            None => {
                let flexible = (!shape.pre_norm()).then(|| "a flexible head".to_string());
                let classes = [Purpose::Texts, Purpose::Tokens, Purpose::Answers];
                let classes = classes.into_iter().filter_map(|purpose| purpose.class(shape.architecture));
                let known: Vec<String> = classes.chain(for_words).chain(flexible).collect();
                return Err(in_file(wrong(&whole, "model_class", &known.join(" or "))));
            }
        },
    };
    let name = name.transpose().map_err(in_file)?;
    let key = |tensor: &str| flexible_key(head_key("", tensor, shape).into(), name.as_deref());
    let last = match (purpose, two_layers, shape.architecture.family().for_texts) {
        (Purpose::Tokens, ..) => "Tokens.out.bias",
        (Purpose::Answers, ..) => "Answers.out.bias",
        (_, true, _) => "TwoLayers.out.bias",
        (_, false, ForTexts::Score) => "Score.weight",
        (_, false, _) => "Classifier.out.bias",
    };
    let last = key(last).name;
    let head = match (two_layers, taker.file.shape(&last)) {
        (true, Some([outputs])) => {
            let fresh = Head::two_layers(base, *outputs, 0);
            Some(taker.fill(fresh, key)?)
        }
        (true, _) => None,
        (false, _) => taker.head(purpose, key, base)?.filter(|head| !matches!(head, Head::TwoLayers(_))),
    };
    let none = || Error::file(taker.file.path_of(&last), &last, "no such tensor", "the last layer of a head");
    let head = head.ok_or_else(none)?;
    taker.finish(|_| false)?;
    let Some(outputs) = head.outputs().filter(|_| purpose != Purpose::Answers) else { return Ok((head, vec![])) };
    let classes = classes(flexible.unwrap_or(&whole), outputs).map_err(in_file)?;
    Ok((head, classes))
}

/// The head of a language model. The package writes its table, though nothing trains it.
fn own_words(taker: &Taker, base: &Base) -> Result<Head> {
    let shape = base.shape();
    let part = if shape.tied { Part::Words } else { Part::Vocabulary };
    let place = shape.places().into_iter().find(|place| place.site.part == part);
    let place = place.unwrap_or_else(|| unreachable!("a language model has a table"));
    if taker.file.read_f32(WORDS, &place.file_dims())?.as_bytes() != base.tensor_data(&place).as_bytes() {
        let expected = format!(
            "those of the model: no table for words is trained here (without {HEAD_CONFIG} the model's is used)"
        );
        return Err(Error::file(taker.file.path_of(WORDS), WORDS, "other numbers", expected));
    }
    taker.finish(|name| name == WORDS)?;
    Ok(Head::LanguageModel(LanguageModel {}))
}

/// What a flexible head must be to compute what the model's own class for its purpose does, or two layers on a BERT.
fn flexible_fields(purpose: Purpose, two_layers: bool) -> Fields {
    let fields = match purpose {
        Purpose::Tokens | Purpose::Answers => {
            let kind = if purpose == Purpose::Tokens { "tagging" } else { "question_answering" };
            json!({"head_type": kind, "layers": 1, "activation_function": "tanh", "dropout_prob": null})
        }
        _ => json!({"head_type": "classification", "layers": 1 + usize::from(two_layers), "bias": true,
            "activation_function": two_layers.then_some("tanh"), "use_pooler": !two_layers, "dropout_prob": null}),
    };
    fields.as_object().cloned().unwrap_or_default()
}

/// What a flexible head is for, and whether it has two layers of a kind of its own; refuses one that cannot be.
fn check_flexible(fields: &Fields, shape: &Shape, path: &Path) -> Result<(Purpose, bool)> {
    let known = "classification, tagging or question_answering";
    let kind: String = field(fields, "head_type", known)?;
    let purpose = match kind.as_str() {
        "classification" => Purpose::Texts,
        "tagging" => Purpose::Tokens,
        "question_answering" => Purpose::Answers,
        _ => return Err(wrong(fields, "head_type", known)),
    };
    let layers = fields.get("layers").and_then(Value::as_u64);
    let own = shape.architecture.family().for_texts;
    let known: &[u64] = match (purpose, own) {
        (Purpose::Texts, ForTexts::TwoLayers) => &[2],
        (Purpose::Texts, _) => &[1, 2],
        _ => &[1],
    };
    if !layers.is_some_and(|layers| known.contains(&layers)) {
        let known: Vec<String> = known.iter().map(u64::to_string).collect();
        return Err(wrong(fields, "layers", &known.join(" or ")));
    }
    let two_layers = layers == Some(2);
    let expected = flexible_fields(purpose, two_layers);
    // Without a hidden layer there is nothing to activate.
    let free: &[&str] =
        if two_layers { &["num_labels", "label2id"] } else { &["num_labels", "label2id", "activation_function"] };
    if purpose == Purpose::Texts {
        field::<Value>(fields, "use_pooler", &expected["use_pooler"].to_string())?;
    }
    check_same(fields, &expected, free, shape, path)?;
    Ok((purpose, two_layers && own == ForTexts::Pooled))
}

/// A tensor's name in a flexible head of this name, whose modules have numbers, dropout and activations counted.
fn flexible_key(HubKey { name, layout }: HubKey, head: Option<&str>) -> HubKey {
    let Some(head) = head else { return HubKey { name, layout } };
    let (module, leaf) = name.rsplit_once('.').unwrap_or(("", &name));
    let number = if module == "classifier.out_proj" { 4 } else { 1 };
    HubKey { name: format!("heads.{head}.{number}.{leaf}"), layout }
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
