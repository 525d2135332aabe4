//! Settings of a run as YAML, in the names of transformers' `TrainingArguments` and of the method's own settings.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use peft_core::files::read_text;
use peft_core::train::{Length, Schedule, TrainConfig};
use peft_core::{Error, Method, Result};
use serde_json::{Map, Value, json};

use super::methods::settings;
use super::options::tell;
use super::train::Train;
use crate::registry::METHODS;

/// The names in files and the options that they stand for.
const KEYS: [(&str, &str); 43] = [
    ("model_name_or_path", "--model"),
    ("device", "--device"),
    ("adapter_name_or_path", "--adapter"),
    ("method", "--method"),
    ("task_name", "--task"),
    ("data", "--data"),
    ("train_file", "--data"),
    ("validation_file", "--eval"),
    ("text_column", "--text-column"),
    ("pair_column", "--pair-column"),
    ("label_column", "--label-column"),
    ("target_column", "--target-column"),
    ("columns", "--columns"),
    ("output_dir", "--output"),
    ("overwrite_output_dir", "--overwrite"),
    ("max_steps", "--steps"),
    ("num_train_epochs", "--epochs"),
    ("per_device_train_batch_size", "--batch-size"),
    ("gradient_accumulation_steps", "--accumulate"),
    ("learning_rate", "--lr"),
    ("optim", "--optimizer"),
    ("weight_decay", "--weight-decay"),
    ("adam_beta1", "--adam-beta1"),
    ("adam_beta2", "--adam-beta2"),
    ("adam_epsilon", "--adam-epsilon"),
    ("lr_scheduler_type", "--schedule"),
    ("warmup_steps", "--warmup"),
    ("warmup_ratio", "--warmup"),
    ("max_grad_norm", "--max-grad-norm"),
    ("dropout", "--dropout"),
    ("seed", "--seed"),
    ("no_shuffle", "--no-shuffle"),
    ("group_by_length", "--group-by-length"),
    ("task_temperature", "--task-temperature"),
    ("eval_steps", "--eval-every"),
    ("load_best_model_at_end", "--keep-best"),
    ("metric_for_best_model", "--metric"),
    ("early_stopping_patience", "--early-stop"),
    ("save_steps", "--save-every"),
    ("max_seq_length", "--max-length"),
    ("threads", "--threads"),
    ("micro_rows", "--micro-rows"),
    ("logging_file", "--log"),
];

/// Options without a value.
const SWITCHES: [&str; 4] = ["--no-shuffle", "--group-by-length", "--keep-best", "--overwrite"];

/// What is not done here, and hence may be off.
const OFF: [&str; 6] = ["fp16", "bf16", "fp16_full_eval", "bf16_full_eval", "gradient_checkpointing", "torch_compile"];

/// What transformers and PEFT set for their own files, logs and devices, and what follows from other settings here.
const IDLE: [&str; 19] = [
    "task_type",
    "inference_mode",
    "base_model_name_or_path",
    "logging_steps",
    "logging_strategy",
    "logging_dir",
    "eval_strategy",
    "evaluation_strategy",
    "save_strategy",
    "save_total_limit",
    "report_to",
    "do_train",
    "do_eval",
    "per_device_eval_batch_size",
    "greater_is_better",
    "disable_tqdm",
    "run_name",
    "dataloader_num_workers",
    "remove_unused_columns",
];

/// Keys of which a file has one.
const TWICE: [[&str; 2]; 2] = [["data", "train_file"], ["method", "peft_type"]];

/// Options of which only one may be given.
const EXCLUSIVE: [[&str; 2]; 3] = [["--steps", "--epochs"], ["--adapter", "--method"], ["--task", "--eval"]];

/// A file of settings, and the options that stand for its keys.
pub struct Config {
    path: PathBuf,
    /// An option and the key that it is from.
    from: Vec<(String, String)>,
}

impl Config {
    /// An error of the command line in the words of the file, if it is about a value that stands there; else the program ends with
    /// it.
    pub fn explain(&self, error: clap::Error) -> Error {
        let text = |kind| match error.get(kind) {
            Some(ContextValue::String(text)) => text.clone(),
            Some(ContextValue::Strings(texts)) => texts.join(", "),
            _ => String::new(),
        };
        let argument = text(ContextKind::InvalidArg);
        let option = argument.split(' ').next().unwrap_or_default();
        let Some((_, key)) = self.from.iter().find(|(known, _)| known == option) else { error.exit() };
        let why = std::error::Error::source(&error).map_or_else(|| text(ContextKind::ValidValue), ToString::to_string);
        let (found, beside) = (text(ContextKind::InvalidValue), text(ContextKind::PriorArg));
        match error.kind() {
            ErrorKind::ArgumentConflict => Error::file(&self.path, key, format!("beside {beside}"), "one of the two"),
            _ if why.is_empty() => {
                // Its first line says it, without the program's help.
                let message = error.to_string();
                let message = message.lines().next().unwrap_or_default().trim_start_matches("error: ");
                Error::file(&self.path, key, message, format!("what {option} takes"))
            }
            _ => Error::file(&self.path, key, found, format!("what {option} takes ({why})")),
        }
    }
}

/// Puts the settings of the file after `--config` in front of a command's own options, which then win.
pub fn expand(args: Vec<OsString>) -> Result<(Vec<OsString>, Option<Config>)> {
    let text = |i: usize| args.get(i).and_then(|arg| arg.to_str()).unwrap_or_default();
    if text(1) != "train" {
        return Ok((args, None));
    }
    let mut paths = (2..args.len()).filter_map(|i| match text(i).strip_prefix("--config=") {
        Some(path) => Some(path.into()),
        None => args.get(i + 1).filter(|_| text(i) == "--config").cloned(),
    });
    let Some(path) = paths.next().map(PathBuf::from) else { return Ok((args, None)) };
    if let Some(other) = paths.next() {
        let found = format!("{} and {}", path.display(), other.to_string_lossy());
        return Err(Error::config("--config", found, "one file"));
    }
    let given: Vec<&str> = (2..args.len()).map(text).collect();
    let options = options(&path, &given)?;
    let (start, rest) = args.split_at(2);
    let all = options.iter().map(|(option, _)| OsString::from(option));
    let all = start.iter().cloned().chain(all).chain(rest.iter().cloned()).collect();
    let name = |(option, key): (String, String)| (option.split('=').next().unwrap_or_default().to_string(), key);
    Ok((all, Some(Config { path, from: options.into_iter().map(name).collect() })))
}

/// The options that a file stands for, each with its key, without those that the command line gives or excludes.
fn options(path: &Path, given: &[&str]) -> Result<Vec<(String, String)>> {
    let file: Map<String, Value> = serde_saphyr::from_str(&read_text(path, 1 << 20)?).map_err(|error| {
        // Behind it stand a picture of the place and what a program could configure.
        let text = error.to_string();
        let line = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        let found = line.split(", set ").next().unwrap_or_default().trim_end_matches(" by the configured policy");
        Error::file(path, "content", found, "a YAML mapping of settings")
    })?;
    let is_given = |option: &str| given.iter().any(|arg| arg.split('=').next() == Some(option));
    let excluded = |option: &str| {
        EXCLUSIVE
            .iter()
            .any(|pair| pair.contains(&option) && pair.iter().any(|other| *other != option && is_given(other)))
    };
    let method = given.iter().position(|arg| *arg == "--method").and_then(|i| given.get(i + 1).copied());
    // PEFT's own name of a method stands for ours.
    let peft_type = file.get("peft_type").and_then(Value::as_str);
    let typed = METHODS.iter().find(|entry| Some(entry.peft_type) == peft_type).map(|entry| entry.name);
    let method = method.or_else(|| file.get("method").and_then(Value::as_str)).or(typed);
    let own = method.map_or(Ok(Map::new()), settings)?;
    let mut options = Vec::new();
    let mut add = |key: &str, option: String| options.push((option, key.to_string()));
    if let Some([one, other]) = TWICE.into_iter().find(|pair| pair.iter().all(|key| file.contains_key(*key))) {
        return Err(Error::file(path, one, format!("{other} beside it"), "one of them"));
    }
    let idle: Vec<&str> = IDLE.into_iter().filter(|key| file.contains_key(*key)).collect();
    if !idle.is_empty() {
        tell(format_args!("{}: of no effect here: {}", path.display(), idle.join(", ")));
    }
    for (key, value) in file.iter().filter(|(key, _)| !IDLE.contains(&key.as_str())) {
        if key == "peft_type" {
            let method = typed.ok_or_else(|| {
                let known = METHODS.iter().map(|entry| entry.peft_type).collect::<Vec<_>>().join(", ");
                Error::file(path, key, value, format!("one of {known}"))
            })?;
            if !is_given("--method") && !excluded("--method") {
                add(key, format!("--method={method}"));
            }
            continue;
        }
        let Some((_, option)) = KEYS.iter().find(|(name, _)| name == key) else {
            if OFF.contains(&key.as_str()) {
                match value {
                    Value::Null | Value::Bool(false) => continue,
                    _ => return Err(Error::file(path, key, value, "false: it is not done here")),
                }
            }
            let head = |name: &Value| ["classifier", "score"].map(Value::from).contains(name);
            let is_head = key == "modules_to_save" && value.as_array().is_some_and(|names| names.iter().all(head));
            match own.contains_key(key) {
                // transformers and PEFT write all that they know, most of it as null. The head is trained and saved anyway.
                false if value.is_null() || is_head => continue,
                false => return Err(unknown(path, key, value, &own)),
                true => {}
            }
            let set = given.iter().any(|arg| arg.strip_prefix(key.as_str()).is_some_and(|rest| rest.starts_with('=')));
            if !value.is_null() && !set && !is_given("--adapter") {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_string);
                add(key, format!("--set={key}={text}"));
            }
            continue;
        };
        // A file with all of transformers' defaults says -1 steps, and then counts epochs.
        let positive = |value: Option<&Value>| value.and_then(Value::as_f64).is_some_and(|steps| steps > 0.0);
        // As in transformers: steps of a warm-up count before its share, and a rate that is constant has none.
        let constant = file.get("lr_scheduler_type").and_then(Value::as_str) == Some("constant");
        let unused = match key.as_str() {
            "max_steps" => !positive(Some(value)),
            "num_train_epochs" => positive(file.get("max_steps")),
            "warmup_steps" => constant || !positive(Some(value)),
            "warmup_ratio" => constant || positive(file.get("warmup_steps")),
            _ => false,
        };
        if key == "warmup_ratio" && !unused && value.as_f64().is_some_and(|share| share >= 1.0) {
            return Err(Error::file(path, key, value, "a share from 0 to below 1"));
        }
        if unused || is_given(option) || excluded(option) {
            continue;
        }
        match value {
            Value::Null | Value::Bool(false) => {}
            Value::Bool(true) if SWITCHES.contains(option) => add(key, option.to_string()),
            Value::String(_) if SWITCHES.contains(option) => {
                return Err(Error::file(path, key, value, "true or false"));
            }
            Value::Bool(true) => return Err(Error::file(path, key, value, format!("a value, as {option} takes"))),
            Value::String(text) => add(key, format!("{option}={text}")),
            Value::Number(number) => {
                let whole = number.as_f64().filter(|x| x.fract() == 0.0 && x.abs() < 1e15);
                let text = whole.map_or_else(|| number.to_string(), |x| format!("{x:.0}"));
                add(key, format!("{option}={text}"));
            }
            _ => return Err(Error::file(path, key, value, "a single value")),
        }
    }
    Ok(options)
}

fn unknown(path: &Path, key: &str, value: &Value, own: &Map<String, Value>) -> Error {
    // The options of the command line are near to what they stand for.
    let names = KEYS
        .iter()
        .flat_map(|(name, option)| [(name.replace('-', "_"), *name), (option[2..].replace('-', "_"), *name)]);
    let own = own.keys().map(|name| (name.clone(), name.as_str()));
    let nearest = names.chain(own).map(|(known, name)| (strsim::damerau_levenshtein(key, &known), name)).min();
    // What shares less than half of its letters is no help.
    let nearest = nearest.filter(|(distance, _)| 2 * distance <= key.len());
    let nearest = nearest.map_or_else(String::new, |(_, name)| format!("; the nearest is `{name}`"));
    Error::file(path, key, value, format!("a setting that is known{nearest}"))
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
pub fn effective<M: Method>(args: &Train, method: &M, config: &TrainConfig) -> Result<String> {
    let mut all = Map::new();
    let mut put = |key: &str, value: Value| {
        debug_assert!(KEYS.iter().any(|(name, _)| *name == key), "{key}");
        if !value.is_null() && value != Value::Bool(false) {
            all.insert(key.to_string(), value);
        }
    };
    put("model_name_or_path", json!(args.model.model));
    put("device", json!(args.model.device));
    match &args.adapter {
        Some(adapter) => put("adapter_name_or_path", shown(adapter)),
        None => put("method", json!(M::NAME)),
    }
    put("task_name", json!(args.task));
    put("data", shown(&args.data));
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
    if args.adapter.is_none() {
        all.extend(json!(method).as_object().cloned().unwrap_or_default());
    }
    // JSON values are YAML values.
    Ok(all.iter().map(|(key, value)| format!("{key}: {value}\n")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(yaml: &str, rest: &[&str]) -> Result<Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.yaml");
        std::fs::write(&path, yaml).unwrap();
        Ok(options(&path, rest)?.into_iter().map(|(option, _)| option).collect())
    }

    #[test]
    fn keys_become_options_and_the_command_line_wins() {
        let yaml = "method: lora\nr: 4\ntarget_modules: [query, key]\nlearning_rate: 1e-3\nmax_steps: -1\n\
            num_train_epochs: 3.0\ngroup_by_length: true\ndropout: null\n";
        let all = expanded(yaml, &[]).unwrap();
        let expected = ["--method=lora", "--set=r=4", "--set=target_modules=[\"query\",\"key\"]", "--lr=0.001"];
        assert_eq!(all, [&expected[..], &["--epochs=3", "--group-by-length"]].concat());
        let some = expanded(yaml, &["--set", "r=2", "--steps", "5", "--lr=1"]).unwrap();
        assert!(
            !some.iter().any(|option| ["--set=r=4", "--epochs=3", "--lr=0.001"].contains(&option.as_str())),
            "{some:?}"
        );
    }

    /// As transformers reads them: steps before a share, none where the rate is constant, and a share is no number of steps.
    #[test]
    fn a_warm_up_is_that_of_transformers() {
        for (yaml, expected) in [
            ("warmup_ratio: 0.5\nwarmup_steps: 0\n", &["--warmup=0.5"][..]),
            ("warmup_steps: 0\nwarmup_ratio: 0.5\n", &["--warmup=0.5"]),
            ("warmup_ratio: 0.5\nwarmup_steps: 7\n", &["--warmup=7"]),
            ("lr_scheduler_type: constant\nwarmup_ratio: 0.5\n", &["--schedule=constant"]),
            ("adam_beta1: 0.8\nfp16: false\n", &["--adam-beta1=0.8"]),
        ] {
            assert_eq!(expanded(yaml, &[]).unwrap(), expected, "{yaml}");
        }
        assert!(expanded("warmup_ratio: 1.0\n", &[]).unwrap_err().to_string().contains("warmup_ratio"));
        assert!(expanded("fp16: true\n", &[]).is_err());
    }

    /// A file as PEFT and transformers have them: the method by its type, and what has no effect here.
    #[test]
    fn names_of_peft_and_transformers_are_read() {
        let yaml =
            "peft_type: LORA\ntask_type: SEQ_CLS\nr: 4\neval_strategy: epoch\nreport_to: none\noptim: adamw_torch\n";
        assert_eq!(expanded(yaml, &[]).unwrap(), ["--method=lora", "--set=r=4", "--optimizer=adamw_torch"]);
        for (yaml, words) in [
            ("peft_type: LOHA\n", ["peft_type", "LORA"]),
            ("data: a\ntrain_file: b\n", ["data", "train_file"]),
            ("method: lora\npeft_type: IA3\n", ["method", "peft_type"]),
        ] {
            let message = expanded(yaml, &[]).unwrap_err().to_string();
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
        // Files with all that a library knows, most of it null.
        assert!(expanded("lr_scheduler_kwargs: null\nauto_mapping: null\n", &[]).unwrap().is_empty());
        assert!(expanded("modules_to_save: [classifier, score]\n", &[]).unwrap().is_empty());
        assert!(expanded("modules_to_save: [classifier, embeddings]\n", &[]).is_err());
        for (yaml, word) in [("seed: true\n", "--seed"), ("group_by_length: \"yes\"\n", "true or false")] {
            let message = expanded(yaml, &[]).unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
        let far = expanded("quantization_config: 1\n", &[]).unwrap_err().to_string();
        assert!(!far.contains("nearest"), "{far}");
    }

    #[test]
    fn an_unknown_key_names_its_nearest() {
        for (yaml, nearest) in [
            ("learning_rat: 1", "learning_rate"),
            ("method: lora\nlora_alfa: 3", "lora_alpha"),
            ("method: lora\nlr: 3", "learning_rate"),
            ("batch_size: 3", "per_device_train_batch_size"),
        ] {
            let message = expanded(yaml, &[]).unwrap_err().to_string();
            assert!(message.contains("run.yaml") && message.contains(&format!("`{nearest}`")), "{message}");
        }
        let twice = expanded("max_steps: 1\nmax_steps: 2\n", &[]).unwrap_err().to_string();
        assert!(twice.contains("line 2 column 1: duplicate mapping key: max_steps, expected a YAML"), "{twice}");
        assert!(expanded("- 1\n", &[]).unwrap_err().to_string().contains("mapping"));
        assert!(expanded("seed: [1, 2]\n", &[]).unwrap_err().to_string().contains("single value"));
    }
}
