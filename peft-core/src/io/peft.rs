//! Adapter directories in the layout of Hugging Face PEFT: `adapter_config.json`, `adapter_model.safetensors`, the head
//! among the saved modules; beside them `labels.json`, which PEFT ignores.

use std::path::Path;

use burn::module::Module;
use serde_json::Value;

use super::Pretrained;
use super::config::{self, Settings};
pub use super::config::{from_settings, part_types, peft_type, split_common, with_words};
use super::fields;
pub use super::fields::{asks_for_nothing, neutral, others};
use super::heads::Told;
pub use super::labels::Labels;
pub(crate) use super::labels::head_key;
use super::leftovers;
use super::tensors::{Contents, Taker};
use crate::adapterhub::{HubKey, Layout};
use crate::copies::is_in;
use crate::files::{read_json, tell_changed, write_file, write_sealed};
use crate::load::{Checkpoint, write_safetensors};
use crate::view::{shapes, tensors};
use crate::warning::{listed, warn};
use crate::{
    AnyMethod, AnyTuner, Base, Copies, Error, Head, Key, MaskedLm, Method, Procedure, Result, Shape, Text, Trained,
    Verbalizer,
};

/// Writes an adapter directory (with other files, names and texts, in it) all or nothing, reads it back, and compares every bit before it takes its name.
pub fn save<M: Clone + Into<AnyMethod>, T: Procedure + 'static>(
    dir: &Path,
    config: &M,
    trained: &Trained<T>,
    shape: &Shape,
    labels: &Labels,
    others: &[(&str, String)],
) -> Result<()> {
    save_any(dir, &config.clone().into(), &trained.clone().erased(), shape, labels, others)
}

fn save_any(
    dir: &Path,
    config: &AnyMethod,
    trained: &Trained<AnyTuner>,
    shape: &Shape,
    labels: &Labels,
    others: &[(&str, String)],
) -> Result<()> {
    let shape = &shape.clone().for_purpose(trained.head.purpose());
    check_copies(config, trained, shape)?;
    let config = &config.learned(&trained.tuner, shape);
    let (tuner, head, copies) = (config.to_saved(trained.tuner.clone().valid()), &trained.head, &trained.copies);
    let prefix = config.head_prefix();
    let (key, head_key) = (|name: &str| file_key(config, name, shape), |name: &str| head_key(prefix, name, shape));
    let copy_key = |name: &str| copy_key(prefix, name, shape);
    let contents = Contents::default().with("method", &tuner, key)?.with("head", head, head_key)?;
    let contents = contents.with("copies", copies, copy_key)?;
    write_sealed(dir, |dir| {
        write_settings(dir, config, trained, shape, labels)?;
        let path = dir.join("adapter_model.safetensors");
        write_safetensors(&path, &contents.tensors)?;
        let mut taker = Taker::new(Checkpoint::open_file(&path)?);
        taker.compare(&tuner, key)?;
        taker.compare(head, head_key)?;
        taker.compare(copies, copy_key)?;
        taker.finish(|_| false)?;
        others.iter().try_for_each(|(name, text)| write_file(&dir.join(name), text.as_bytes()))
    })
}

/// Writes what is told beside the tensors.
pub(super) fn write_settings(
    dir: &Path,
    config: &AnyMethod,
    trained: &Trained<AnyTuner>,
    shape: &Shape,
    labels: &Labels,
) -> Result<()> {
    let Trained { head, copies, .. } = trained;
    let modules: &[&str] = match head {
        Head::Classifier(_) | Head::TwoLayers(_) | Head::Score(_) | Head::Tokens(_) => &["classifier", "score"],
        Head::AtMask(_) => &["verbalizer"],
        Head::Answers(_) => &["qa_outputs"],
        Head::MaskedLm(_) => &["lm_head", "cls"],
        Head::LanguageModel(_) | Head::Verbalizer(_) | Head::States(_) => &[],
        // PEFT knows no such module.
        Head::Several(_) => &["tasks"],
    };
    // PEFT has no task type for masked words.
    let task = match head {
        Head::MaskedLm(_) => None,
        head => head.purpose().task(shape.architecture),
    };
    let mut told = serde_json::json!(labels);
    for task in 0..head.tasks().unwrap_or(1) {
        if let Head::Verbalizer(own) = head.of_task(task)? {
            let place = if head.tasks().is_some() { &mut told["tasks"][task] } else { &mut told };
            place["texts"] = serde_json::json!(own.texts());
        }
    }
    let settings = config::write(config, shape, &labels.base, task, modules, copies.modules())?;
    write_json(&dir.join("adapter_config.json"), &settings)?;
    write_json(&dir.join("labels.json"), &told)
}

pub(super) fn write_json(path: &Path, value: &Value) -> Result<()> {
    write_file(path, format!("{value:#}\n").as_bytes())
}

/// What an adapter file calls the tensor that records call `name`, and how it holds it.
pub(super) fn file_key(config: &AnyMethod, name: &str, shape: &Shape) -> HubKey {
    let key = config.key(name, shape);
    if config.is_mask(name) { HubKey::new(key.name, Layout::Bits) } else { key.into() }
}

/// Refuses copies of tensors of modules in which the method has tensors too: PEFT has one or the other.
pub(crate) fn check_copies(config: &AnyMethod, trained: &Trained<AnyTuner>, shape: &Shape) -> Result<()> {
    if trained.copies.is_empty() {
        return Ok(());
    }
    // What files do not hold has no name in them.
    let saved = shapes(&config.to_saved(trained.tuner.clone()));
    let own: Vec<String> = saved.iter().map(|(name, _)| config.key(name, shape).name).collect();
    for (name, _) in shapes(&trained.copies) {
        let key = copy_key(config.head_prefix(), &name, shape).name;
        let module = key.rsplit_once('.').map_or(key.as_str(), |(module, _)| module);
        if own.iter().any(|own| own.strip_prefix(module).is_some_and(|rest| rest.starts_with('.'))) {
            let expected = format!("modules in which {} has no tensors", config.name());
            return Err(Error::config("modules_to_save", module.trim_start_matches(config.head_prefix()), expected));
        }
    }
    Ok(())
}

/// What an adapter file calls a copy of a tensor of the base.
pub(crate) fn copy_key(prefix: &str, name: &str, shape: &Shape) -> Key {
    let Key { name, transposed } = Copies::key(name, shape);
    Key { name: format!("{prefix}{name}"), transposed }
}

/// What an adapter is read for: a base, or a model with all that its directory says.
#[derive(Clone, Copy)]
pub enum For<'a> {
    /// A base alone, whose adapter brings its head.
    Base(&'a Base),
    /// A model.
    Model(&'a Pretrained),
}

impl<'a> From<&'a Base> for For<'a> {
    fn from(base: &'a Base) -> Self {
        For::Base(base)
    }
}

impl<'a> From<&'a Pretrained> for For<'a> {
    fn from(model: &'a Pretrained) -> Self {
        For::Model(model)
    }
}

/// Reads an adapter directory that this library or Hugging Face PEFT wrote, with its head or the model's: which, says the rule at the
/// head of `io/heads.rs`.
pub fn load<'a, M: Method>(dir: &Path, model: impl Into<For<'a>>) -> Result<(M, Trained<M::Tuner>)> {
    load_as(&AnyMethod::of::<M>(), dir, model).map(|(config, trained)| config.typed(trained))
}

/// [`load`] of a method that is known only when the program runs, whatever the settings of the one given.
pub fn load_as<'a>(
    method: &AnyMethod,
    dir: &Path,
    model: impl Into<For<'a>>,
) -> Result<(AnyMethod, Trained<AnyTuner>)> {
    let [file, pickle] = ["adapter_model.safetensors", "adapter_model.bin"].map(|name| dir.join(name));
    let file = if pickle.exists() && !file.exists() { pickle } else { file };
    if !file.exists() && dir.join(config::RECORD).exists() {
        return Err(Error::file(dir, "adapter", "a record of burn", config::PEFT_FILES));
    }
    let head = |name: &str, shape: &Shape| head_key(method.head_prefix(), name, shape);
    let copy = |name: &str, shape: &Shape| copy_key(method.head_prefix(), name, shape);
    load_from(method, (dir, &file), model.into(), file_key, head, copy)
}

/// Reads settings from a directory, and tensors from a file in it that calls them so.
pub(super) fn load_from(
    method: &AnyMethod,
    (dir, file): (&Path, &Path),
    model: For<'_>,
    key: impl Fn(&AnyMethod, &str, &Shape) -> HubKey,
    head_key: impl Fn(&str, &Shape) -> Key,
    copy_key: impl Fn(&str, &Shape) -> Key,
) -> Result<(AnyMethod, Trained<AnyTuner>)> {
    let alone;
    let model = match model {
        For::Model(model) => model,
        For::Base(base) => {
            alone = Pretrained::of(base.clone());
            &alone
        }
    };
    let labels_path = dir.join("labels.json");
    let (told, labels) = told(&labels_path)?;
    let labels_of_tasks = labels.tasks.clone();
    tell_other_base(labels, &labels_path, &model.base);
    let settings = Settings::read(dir)?;
    let mut taker = Taker::new(Checkpoint::open_file(file)?);
    tell_changed(file);
    let head_key = |name: &str| head_key(name, model.base.shape()).into();
    let said = Told::of(&settings)?;
    let head = match labels_of_tasks.len() {
        0 => said.head(&mut taker, &head_key, model)?,
        tasks => {
            let of_task = |task| said.head(&mut taker, &|name| head_key(&format!("Several.{task}.{name}")), model);
            Head::several((0..tasks).map(of_task).collect::<Result<_>>()?)?
        }
    };
    let rows = settings.fields.get("trainable_token_indices").is_some_and(|rows| !fields::is_off(rows));
    if let (true, Head::MaskedLm(MaskedLm { decoder: None, .. })) = (rows, &head) {
        let what =
            "reach the head: PEFT leaves out its bias unless it is merged, and here it is added as in the merged model";
        warn(&settings.path, "trainable_token_indices", what);
    }
    // PEFT writes names of a bare model without a prefix. What does not fit either way is told as of the model that it is for.
    let base = model.base.for_purpose(head.purpose());
    let attempt = |prefix: &'static str| {
        let base = base.clone().with_shape(Shape { prefix, ..base.shape().clone() });
        let read = config::read(method, &settings, base.shape())?;
        let in_file = |error: Error| error.in_file(&settings.path);
        read.config.checked_count(base.shape()).map_err(in_file)?;
        let tuner = read.config.for_loading(&base).map_err(in_file)?;
        let held = |name: &str| taker.file.shape(&key(&read.config, name, base.shape()).name).is_some();
        let fits = shapes(&tuner).iter().all(|(name, _)| held(name));
        Ok::<_, Error>((read, tuner, base, fits))
    };
    let first = attempt(base.shape().prefix);
    let other = match (&first, base.shape().prefix) {
        (Ok((.., true)), _) => None,
        (_, "") => Some(model.base.shape().architecture.family().prefix),
        _ => Some(""),
    };
    let (read, tuner, base, _) = match other.map(attempt) {
        Some(Ok(found @ (.., true))) => found,
        _ => first?,
    };
    let (config, given, shape) = (read.tell(&settings), read.start, base.shape());
    let tuner = taker.fill(tuner, |name| key(&config, name, shape))?;
    // What is saved of a mask is the mask: were it another then, the settings are not those that it was made by.
    if shapes(&tuner).iter().any(|(name, _)| config.is_mask(name)) {
        let (found, again) = (tensors(&tuner), tensors(&config.to_saved(tuner.clone())));
        if let Some(name) = found.keys().find(|name| config.is_mask(name) && again.get(*name) != found.get(*name)) {
            let expected = "a mask with as many ones as the settings say";
            return Err(Error::file(file, key(&config, name, shape).name, "another mask", expected));
        }
    }
    let tuner = config.loaded(tuner, &base).map_err(|error| error.in_file(file))?;
    let modules = settings.modules_to_save()?;
    let copies = taker.copies(|name| copy_key(name, shape), &base, &modules)?;
    leftovers::tell(&taker, &base)?;
    let module = |tensor: &str, name: &str| tensor.rsplit_once('.').is_some_and(|(module, _)| is_in(module, name));
    let held =
        |name: &&str| copies.modules().iter().any(|it| it == name) || taker.file.names().any(|it| module(it, name));
    let absent: Vec<&str> = modules.iter().map(String::as_str).filter(|name| !Head::MODULES.contains(name)).collect();
    let absent: Vec<&str> = absent.into_iter().filter(|name| !held(name)).collect();
    if !absent.is_empty() {
        let what = format!("lists {}: the file holds none of it, so that the model's own stays", listed(&absent));
        warn(&settings.path, "modules_to_save", what);
    }
    let (config, tuner) = match given {
        None => (config, tuner),
        Some(start) => (config.started(start), config.taken_out(tuner, start, &base)?),
    };
    let told = told.unwrap_or_default();
    let head = match labels_of_tasks.len() {
        0 => verbalizer(&labels_path, told.get("texts"), shape)?.map_or(head, Head::Verbalizer),
        tasks => {
            let texts = |task: usize| told["tasks"][task].get("texts");
            let heads = (0..tasks).map(|task| {
                let own = verbalizer(&labels_path, texts(task), shape)?.map(Head::Verbalizer);
                own.map_or_else(|| head.of_task(task).cloned(), Ok)
            });
            Head::several(heads.collect::<Result<_>>()?)?
        }
    };
    Ok((config, Trained::new(tuner, head)?.with_copies(copies)?))
}

/// The texts that stand for labels, if there are any.
fn verbalizer(path: &Path, texts: Option<&Value>, shape: &Shape) -> Result<Option<Verbalizer>> {
    let Some(texts) = texts.filter(|_| shape.architecture.writes_classes()) else { return Ok(None) };
    let expected = format!("a list of {{\"ids\": token ids below {}, \"value\": a number or null}}", shape.vocab);
    let texts: Vec<Text> =
        serde_json::from_value(texts.clone()).map_err(|error| Error::file(path, "texts", error, &expected))?;
    if let Some(id) = texts.iter().flat_map(|text| &text.ids).find(|id| **id as usize >= shape.vocab) {
        return Err(Error::file(path, "texts", id, expected));
    }
    Verbalizer::new(texts).map(Some).map_err(|error| error.in_file(path))
}

/// Warns if the adapter was trained on another base than this, as far as it tells.
fn tell_other_base(labels: Labels, path: &Path, base: &Base) {
    if let Labels { base: name, fingerprint: Some(then), .. } = labels {
        let now = format!("{:016x}", base.known_weights_fingerprint());
        if now != then {
            let what = format!("is {then}, of the model {name:?}: this model's tensors are others ({now})");
            warn(path, "fingerprint", what);
        }
    }
}

/// The method's configuration in an adapter directory.
pub fn config(method: &AnyMethod, dir: &Path, shape: &Shape) -> Result<AnyMethod> {
    // Its expressions may be for the paths of a bare model.
    let bare = Shape { prefix: "", ..shape.clone() };
    let settings = Settings::read(dir)?;
    let read = config::read(method, &settings, shape);
    let read = read.or_else(|error| config::read(method, &settings, &bare).map_err(|_| error))?;
    let config = read.tell(&settings);
    Ok(read.start.map_or(config.clone(), |start| config.started(start)))
}

/// What the directory says of its base and classes; nothing, if PEFT wrote it.
pub fn labels(dir: &Path) -> Result<Labels> {
    Ok(told(&dir.join("labels.json"))?.1)
}

/// The whole of `labels.json`, if it is there, and what it says of base and classes.
fn told(path: &Path) -> Result<(Option<Value>, Labels)> {
    if !path.exists() {
        return Ok((None, Labels::default()));
    }
    let told = read_json(path)?;
    let labels: Labels = serde_json::from_value(told.clone())
        .map_err(|e| Error::file(path, "content", e, "an object with `base` and `classes`"))?;
    let twice = |i: &usize| labels.tasks[..*i].iter().any(|other| other.name == labels.tasks[*i].name);
    if let Some(i) = (0..labels.tasks.len()).find(twice) {
        return Err(Error::file(path, "tasks", format!("{:?} twice", labels.tasks[i].name), "names of their own"));
    }
    Ok((Some(told), labels))
}
