//! Settings of a run as YAML, in the names of transformers' `TrainingArguments` and of the method's own settings.

mod keys;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use peft_core::files::read_text;
use peft_core::io::peft;
use peft_core::train::{Length, Schedule, TrainConfig};
use peft_core::{AnyMethod, Common, Compute, Error, Result};
use serde_json::{Map, Value, json};

use self::keys::{EXCLUSIVE, IDLE, KEYS, OF_TASKS, OFF, SEVERAL, SWITCHES, TWICE, unknown};
use super::Cli;
use super::methods::settings;
use super::options::tell;
use super::train::Train;
use crate::registry::{METHODS, by_name};

/// An option and the key that it is from.
type Origin = (String, String);

/// A file of settings, and the options that stand for its keys.
pub struct Config {
    path: PathBuf,
    from: Vec<Origin>,
    wrong: Vec<Error>,
}

impl Config {
    /// The command of arguments that [`expand`] has put the file's into, or all that is wrong with the file.
    pub fn parse(&mut self, mut args: Vec<OsString>) -> Result<Cli> {
        let mut wrong = std::mem::take(&mut self.wrong);
        loop {
            let error = match Cli::try_parse_from(&args) {
                Ok(cli) => return Error::all(wrong).map(|()| cli),
                Err(error) => error,
            };
            // What else is wrong shows without the option.
            match self.explain(&error) {
                Some((i, told)) => {
                    wrong.push(told);
                    self.from.remove(i);
                    args.remove(FIRST + i);
                }
                None if wrong.is_empty() => error.exit(),
                // What is missing may be what was wrong.
                None => Error::all(std::mem::take(&mut wrong))?,
            }
        }
    }

    /// An error of the command in the words of the file, if it is about a setting that stands there.
    pub fn place(&self, error: Error) -> Error {
        let Error::Config { key, found, expected } = &error else {
            let names_modules = |(_, key): &Origin| key == "target_modules";
            return match &error {
                Error::NoSite { .. } if self.from.iter().any(names_modules) => error.in_file(&self.path),
                _ => error,
            };
        };
        let name = key.strip_prefix("--set ").unwrap_or(key);
        // A setting may be wrong at a site, which its first word is followed by.
        let word = name.split(' ').next().unwrap_or_default();
        let is_option = |option: &str| option == name || option[2..].replace('-', "_") == name;
        match self.from.iter().find(|(option, key)| is_option(option) || key == word) {
            Some((option, key)) if is_option(option) => Error::file(&self.path, key, found, expected),
            Some(_) => Error::file(&self.path, name, found, expected),
            None => error,
        }
    }

    /// An error of the command line in the words of the file, and of which option, if it is about a value that stands there.
    fn explain(&self, error: &clap::Error) -> Option<(usize, Error)> {
        let text = |kind| match error.get(kind) {
            Some(ContextValue::String(text)) => text.clone(),
            Some(ContextValue::Strings(texts)) => texts.join(", "),
            _ => String::new(),
        };
        let argument = text(ContextKind::InvalidArg);
        let option = argument.split(' ').next().unwrap_or_default();
        let i = self.from.iter().position(|(known, _)| known == option)?;
        let key = &self.from[i].1;
        let why = std::error::Error::source(error).map_or_else(|| text(ContextKind::ValidValue), ToString::to_string);
        let (found, beside) = (text(ContextKind::InvalidValue), text(ContextKind::PriorArg));
        let told = match error.kind() {
            ErrorKind::ArgumentConflict => Error::file(&self.path, key, format!("beside {beside}"), "one of the two"),
            _ if why.is_empty() => {
                // Its first line says it, without the program's help.
                let message = error.to_string();
                let message = message.lines().next().unwrap_or_default().trim_start_matches("error: ");
                Error::file(&self.path, key, message, format!("what {option} takes"))
            }
            _ => Error::file(&self.path, key, found, format!("what {option} takes ({why})")),
        };
        Some((i, told))
    }
}

/// Where the file's options stand among the arguments.
const FIRST: usize = 2;

/// The calls that one with several files after `--config` stands for: each with one of them and all other options.
pub fn apart(args: Vec<OsString>) -> Vec<Vec<OsString>> {
    let text = |i: usize| args.get(i).and_then(|arg| arg.to_str()).unwrap_or_default();
    let (mut files, mut others, mut i) = (vec![], vec![], 0);
    while i < args.len() {
        match text(i) {
            "--config" if i + 1 < args.len() => {
                files.push(args[i..i + 2].to_vec());
                i += 1;
            }
            option if option.starts_with("--config=") => files.push(vec![args[i].clone()]),
            _ => others.push(args[i].clone()),
        }
        i += 1;
    }
    if text(1) != "train" || files.len() < 2 {
        return vec![args];
    }
    let (start, rest) = others.split_at(FIRST);
    files.into_iter().map(|file| [start, &file, rest].concat()).collect()
}

/// Puts the settings of the file after `--config` in front of a command's own options, which then win.
pub fn expand(args: Vec<OsString>) -> Result<(Vec<OsString>, Option<Config>)> {
    let text = |i: usize| args.get(i).and_then(|arg| arg.to_str()).unwrap_or_default();
    if text(1) != "train" {
        return Ok((args, None));
    }
    let path = (2..args.len()).find_map(|i| match text(i).strip_prefix("--config=") {
        Some(path) => Some(PathBuf::from(path)),
        None => args.get(i + 1).filter(|_| text(i) == "--config").map(PathBuf::from),
    });
    let Some(path) = path else { return Ok((args, None)) };
    let file = read(&path)?;
    expand_with(args, path, &file).map(|(args, config)| (args, Some(config)))
}

/// The settings of a file.
fn read(path: &Path) -> Result<Map<String, Value>> {
    serde_saphyr::from_str(&read_text(path, 1 << 20)?).map_err(|error| {
        // Behind it stand a picture of the place and what a program could configure.
        let text = error.to_string();
        let line = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        let found = line.split(", set ").next().unwrap_or_default().trim_end_matches(" by the configured policy");
        Error::file(path, "content", found, "a YAML mapping of settings")
    })
}

/// The same with settings that are read already, from a file at this path.
pub fn expand_with(args: Vec<OsString>, path: PathBuf, file: &Map<String, Value>) -> Result<(Vec<OsString>, Config)> {
    let given: Vec<&str> = args[FIRST..].iter().map(|arg| arg.to_str().unwrap_or_default()).collect();
    let (options, wrong) = options(&path, file, &given)?;
    let (start, rest) = args.split_at(FIRST);
    let all = options.iter().map(|(option, _)| OsString::from(option));
    let all = start.iter().cloned().chain(all).chain(rest.iter().cloned()).collect();
    let name = |(option, key): Origin| (option.split('=').next().unwrap_or_default().to_string(), key);
    Ok((all, Config { path, from: options.into_iter().map(name).collect(), wrong }))
}

/// The options that a file stands for, without those that the command line gives or excludes, and all that is wrong with it.
fn options(path: &Path, file: &Map<String, Value>, given: &[&str]) -> Result<(Vec<Origin>, Vec<Error>)> {
    let is_given = |option: &str| given.iter().any(|arg| arg.split('=').next() == Some(option));
    let excluded = |option: &str| {
        EXCLUSIVE
            .iter()
            .any(|pair| pair.contains(&option) && pair.iter().any(|other| *other != option && is_given(other)))
    };
    let on_line: Vec<&str> = given.windows(2).filter(|pair| pair[0] == "--method").map(|pair| pair[1]).collect();
    let in_its_file = match file.get("method") {
        Some(Value::Array(names)) => Some(names.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("+")),
        name => name.and_then(Value::as_str).map(str::to_string),
    };
    // PEFT's own name of a method stands for ours.
    let peft_type = file.get("peft_type").and_then(Value::as_str);
    let typed = METHODS.iter().find(|entry| Some(entry.peft_type) == peft_type).map(|entry| entry.name);
    let method = (!on_line.is_empty()).then(|| on_line.join("+")).or_else(|| in_its_file.clone());
    let method = method.or_else(|| typed.map(str::to_string));
    let from_file = method.is_some() && method == in_its_file;
    let method = method.as_deref();
    let own = method.map_or(Ok(Map::new()), settings);
    let own = own.map_err(|error| if from_file { in_file(path, "method", error) } else { error })?;
    if let Some([one, other]) = TWICE.into_iter().find(|pair| pair.iter().all(|key| file.contains_key(*key))) {
        return Err(Error::file(path, one, format!("{other} beside it"), "one of them"));
    }
    let idle: Vec<&str> = IDLE.into_iter().filter(|key| file.contains_key(*key)).collect();
    if !idle.is_empty() {
        tell(format_args!("{}: of no effect here: {}", path.display(), idle.join(", ")));
    }
    let option = |key: &String, value: &Value| -> Result<Option<String>> {
        if key == "peft_type" {
            let method = typed.ok_or_else(|| {
                let known = METHODS.iter().map(|entry| entry.peft_type).collect::<Vec<_>>().join(", ");
                Error::file(path, key, value, format!("one of {known}"))
            })?;
            return Ok((!is_given("--method") && !excluded("--method")).then(|| format!("--method={method}")));
        }
        let Some((_, option)) = KEYS.iter().find(|(name, _)| name == key) else {
            if OFF.contains(&key.as_str()) {
                match value {
                    Value::Null | Value::Bool(false) => return Ok(None),
                    _ => return Err(Error::file(path, key, value, "false: it is not done here")),
                }
            }
            let head = |name: &Value| ["classifier", "score"].map(Value::from).contains(name);
            let is_head = key == "modules_to_save" && value.as_array().is_some_and(|names| names.iter().all(head));
            match own.contains_key(key) {
                // transformers and PEFT write all that they know, most of it as null. The head is trained and saved anyway.
                false if value.is_null() || is_head || peft::asks_for_nothing(key, value) => return Ok(None),
                false if Common::KEYS.contains(&key.as_str()) => {}
                false => return Err(unknown(path, key, value, &own)),
                true => {}
            }
            let set = given.iter().any(|arg| arg.strip_prefix(key.as_str()).is_some_and(|rest| rest.starts_with('=')));
            let default = own.get(key).filter(|default| value.is_null() && !default.is_null());
            if let Some(default) = default.filter(|_| !set && !is_given("--adapter")) {
                tell(format_args!("{}: {key}: is null, so that the default counts: {default}", path.display()));
            }
            if value.is_null() || set || is_given("--adapter") {
                return Ok(None);
            }
            let setting = format!("{key}={}", value.as_str().map_or_else(|| value.to_string(), str::to_string));
            if let Some(method) = method {
                check_setting(method, &setting).map_err(|error| in_file(path, key, error))?;
            }
            return Ok(Some(format!("--set={setting}")));
        };
        // A file with all of transformers' defaults says -1 steps, and then counts epochs.
        let number = |value: &Value| value.as_f64().or_else(|| value.as_str()?.parse().ok());
        let positive = |value: Option<&Value>| value.and_then(number).is_some_and(|steps| steps > 0.0);
        let off = number(value).is_some_and(|steps| steps <= 0.0);
        // As in transformers: steps of a warm-up count before its share, and a rate that is constant has none.
        let constant = file.get("lr_scheduler_type").and_then(Value::as_str) == Some("constant");
        let unused = match key.as_str() {
            "max_steps" => off,
            "num_train_epochs" => positive(file.get("max_steps")),
            "warmup_steps" => constant || off,
            "warmup_ratio" => constant || positive(file.get("warmup_steps")),
            _ => false,
        };
        if key == "warmup_ratio" && !unused && number(value).is_some_and(|share| share >= 1.0) {
            return Err(Error::file(path, key, value, "a share from 0 to below 1"));
        }
        if unused || is_given(option) || excluded(option) {
            return Ok(None);
        }
        Ok(match value {
            Value::Null | Value::Bool(false) => None,
            Value::Bool(true) if SWITCHES.contains(option) => Some(option.to_string()),
            Value::String(_) if SWITCHES.contains(option) => {
                return Err(Error::file(path, key, value, "true or false"));
            }
            Value::Bool(true) => return Err(Error::file(path, key, value, format!("a value, as {option} takes"))),
            Value::String(text) => Some(format!("{option}={text}")),
            Value::Number(number) => {
                let whole = number.as_f64().filter(|x| x.fract() == 0.0 && x.abs() < 1e15);
                let text = whole.map_or_else(|| number.to_string(), |x| format!("{x:.0}"));
                Some(format!("{option}={text}"))
            }
            _ => return Err(Error::file(path, key, value, "a single value")),
        })
    };
    let (mut options, mut wrong) = (vec![], vec![]);
    let is_several = |key: &str| KEYS.iter().any(|(name, option)| *name == key && SEVERAL.contains(option));
    let of_task = |key: &str| {
        let key = key.to_string();
        move |(name, file): (&String, &Value)| match file {
            Value::String(file) => (key.clone(), json!(format!("{name}={file}"))),
            other => (key.clone(), json!({ name: other })),
        }
    };
    let each = |(key, value): (&'_ String, &'_ Value)| match value {
        Value::Array(values) if is_several(key) => values.iter().map(|value| (key.clone(), value.clone())).collect(),
        Value::Object(files) if OF_TASKS.contains(&key.as_str()) => files.iter().map(of_task(key)).collect(),
        value => vec![(key.clone(), value.clone())],
    };
    for (key, value) in file.iter().filter(|(key, _)| !IDLE.contains(&key.as_str())).flat_map(each) {
        match option(&key, &value) {
            Ok(option) => options.extend(option.map(|option| (option, key.clone()))),
            Err(error) => wrong.push(error),
        }
    }
    Ok((options, wrong))
}

/// Checks that a method takes a setting.
fn check_setting(method: &str, setting: &str) -> Result<()> {
    let (_, settings) = peft::split_common(&[setting.to_string()])?;
    peft::with_words(&by_name(method)?, &settings).map(drop)
}

/// An error of a setting as one of the file that it is from.
fn in_file(path: &Path, key: &str, error: Error) -> Error {
    match error {
        Error::Config { found, expected, .. } => Error::file(path, key, found, expected),
        error => error,
    }
}

/// A number, without a point where it is whole.
fn number(x: f64) -> Value {
    if x.fract() == 0.0 { json!(x as i64) } else { json!(x) }
}

/// A path as YAML can have it.
fn shown(path: &Path) -> Value {
    json!(path.display().to_string())
}

/// A file that repeats a run.
pub fn effective(args: &Train, method: &AnyMethod, modules: &[String], config: &TrainConfig) -> Result<String> {
    let mut all = Map::new();
    let mut put = |key: &str, value: Value| {
        debug_assert!(KEYS.iter().any(|(name, _)| *name == key), "{key}");
        if !value.is_null() && value != Value::Bool(false) {
            all.insert(key.to_string(), value);
        }
    };
    put("model_name_or_path", json!(args.model.model));
    put("device", json!(args.model.device));
    put("base", args.model.base.map_or(Value::Null, |scheme| json!(scheme.to_string())));
    put(
        "compute",
        if args.model.compute == Compute::F32 { Value::Null } else { json!(args.model.compute.to_string()) },
    );
    match &args.adapter[..] {
        [] => put("method", json!(method.name())),
        [adapter] => put("adapter_name_or_path", shown(adapter)),
        several => put("adapter_name_or_path", several.iter().map(|adapter| shown(adapter)).collect()),
    }
    let sources: Vec<String> = args.source.iter().map(|source| source.display().to_string()).collect();
    put("sources", if sources.is_empty() { Value::Null } else { json!(sources.join(",")) });
    put("task_name", json!(args.task));
    put("data", args.data.as_deref().map_or(Value::Null, shown));
    for (key, files) in [("task_data", &args.task_data), ("task_eval", &args.task_eval)] {
        let files: Map<_, _> = files.iter().map(|file| (file.name.clone(), shown(&file.path))).collect();
        put(key, if files.is_empty() { Value::Null } else { files.into() });
    }
    put("validation_file", args.eval.as_deref().map_or(Value::Null, shown));
    put("text_column", json!(args.columns.text_column));
    put("pair_column", json!(args.columns.pair_column));
    put("label_column", json!(args.columns.label_column));
    put("target_column", json!(args.columns.target_column));
    let columns = &args.columns.columns;
    put("columns", if columns.is_empty() { Value::Null } else { json!(columns.join(",")) });
    match config.length {
        Length::Steps(steps) => put("max_steps", json!(steps)),
        Length::Epochs(epochs) => put("num_train_epochs", number(epochs)),
    }
    put("per_device_train_batch_size", json!(config.batch_size));
    put("gradient_accumulation_steps", json!(config.gradient_accumulation_steps));
    put("learning_rate", json!(config.learning_rate));
    put("optim", json!(config.optim));
    put("page_above", json!(config.paging.above >> 20));
    put("weight_decay", json!(config.weight_decay));
    put("adam_beta1", json!(config.adam_beta1));
    put("adam_beta2", json!(config.adam_beta2));
    put("adam_epsilon", json!(config.adam_epsilon));
    let warms = config.warmup_steps > 0 && config.lr_scheduler_type == Schedule::Constant;
    put("lr_scheduler_type", if warms { json!("constant_with_warmup") } else { json!(config.lr_scheduler_type) });
    put("warmup_steps", json!(config.warmup_steps));
    put("max_grad_norm", json!(config.max_grad_norm));
    put("dropout", json!(config.dropout));
    put("seed", json!(config.seed));
    put("no_shuffle", json!(!config.shuffle));
    put("group_by_length", json!(config.group_by_length));
    put("task_temperature", json!(config.task_temperature));
    put("eval_steps", json!(config.eval_steps));
    put("load_best_model_at_end", json!(config.load_best_model_at_end));
    put("metric_for_best_model", json!(config.metric_for_best_model));
    put("early_stopping_patience", json!(config.early_stopping_patience));
    put("max_seq_length", json!(config.max_length));
    put("micro_rows", json!(config.micro_rows));
    put("gradient_checkpointing", json!(config.gradient_checkpointing));
    if args.adapter.is_empty() {
        all.extend(method.settings());
        if !modules.is_empty() {
            all.insert("modules_to_save".into(), json!(modules));
        }
    }
    // JSON values are YAML values.
    Ok(all.iter().map(|(key, value)| format!("{key}: {value}\n")).collect())
}

#[cfg(test)]
mod tests;
