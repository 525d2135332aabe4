//! The names of a file of settings: ours, those of PEFT and transformers that may stand there, and what others call ours.

use std::path::Path;

use peft_core::Error;
use peft_core::io::peft::neutral;
use serde_json::{Map, Value};

/// The names in files and the options that they stand for.
pub(super) const KEYS: [(&str, &str); 50] = [
    ("model_name_or_path", "--model"),
    ("device", "--device"),
    ("base", "--base"),
    ("compute", "--compute"),
    ("adapter_name_or_path", "--adapter"),
    ("method", "--method"),
    ("sources", "--source"),
    ("task_name", "--task"),
    ("data", "--data"),
    ("train_file", "--data"),
    ("validation_file", "--eval"),
    ("task_data", "--task-data"),
    ("task_eval", "--task-eval"),
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
    ("page_above", "--page-above"),
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
    ("gradient_checkpointing", "--gradient-checkpointing"),
    ("logging_file", "--log"),
];

/// Options that may be given several times, for which a file may have a list.
pub(super) const SEVERAL: [&str; 4] = ["--adapter", "--method", "--task-data", "--task-eval"];

/// Keys under which a file has a mapping from the names of tasks to files.
pub(super) const OF_TASKS: [&str; 2] = ["task_data", "task_eval"];

/// Options without a value.
pub(super) const SWITCHES: [&str; 5] =
    ["--no-shuffle", "--group-by-length", "--keep-best", "--gradient-checkpointing", "--overwrite"];

/// What is not done here, and hence may be off.
pub(super) const OFF: [&str; 5] = ["fp16", "bf16", "fp16_full_eval", "bf16_full_eval", "torch_compile"];

/// What transformers and PEFT set for their own files, logs and devices, and what follows from other settings here.
pub(super) const IDLE: [&str; 20] = [
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
    "peft_version",
    "per_device_eval_batch_size",
    "greater_is_better",
    "disable_tqdm",
    "run_name",
    "dataloader_num_workers",
    "remove_unused_columns",
];

/// Names of LLaMA-Factory, Axolotl and others, and ours.
pub(super) const OTHERS: [(&str, &str); 30] = [
    ("adapter", "method"),
    ("additional_target", "modules_to_save"),
    ("base_model", "model_name_or_path"),
    ("cutoff_len", "max_seq_length"),
    ("dataset", "data"),
    ("datasets", "data"),
    ("eval_dataset", "validation_file"),
    ("evals_per_epoch", "eval_steps"),
    ("finetuning_type", "method"),
    ("gradient_clipping", "max_grad_norm"),
    ("lora_dim", "r"),
    ("lora_model_dir", "adapter_name_or_path"),
    ("lora_modules_to_save", "modules_to_save"),
    ("lora_r", "r"),
    ("lora_rank", "r"),
    ("lora_target", "target_modules"),
    ("lora_target_linear", "target_modules"),
    ("lora_target_modules", "target_modules"),
    ("lr_scheduler", "lr_scheduler_type"),
    ("max_length", "max_seq_length"),
    ("micro_batch_size", "per_device_train_batch_size"),
    ("model_max_length", "max_seq_length"),
    ("model_name", "model_name_or_path"),
    ("num_epochs", "num_train_epochs"),
    ("optimizer", "optim"),
    ("peft_use_dora", "use_dora"),
    ("peft_use_rslora", "use_rslora"),
    ("saves_per_epoch", "save_steps"),
    ("sequence_len", "max_seq_length"),
    ("val_set_size", "validation_file"),
];

/// Keys of which a file has one.
pub(super) const TWICE: [[&str; 2]; 2] = [["data", "train_file"], ["method", "peft_type"]];

/// Options of which only one may be given.
pub(super) const EXCLUSIVE: [[&str; 2]; 6] = [
    ["--steps", "--epochs"],
    ["--adapter", "--method"],
    ["--task", "--eval"],
    ["--task-data", "--data"],
    ["--task-data", "--task"],
    ["--task-data", "--eval"],
];

/// The error of a key that is not known, with a hint.
pub(super) fn unknown(path: &Path, key: &str, value: &Value, own: &Map<String, Value>) -> Error {
    if let Some(default) = neutral(key) {
        let default = if default.is_empty() { String::new() } else { format!(", or PEFT's default {default}") };
        return Error::file(path, key, value, format!("false or null{default}: it is not done here"));
    }
    if let Some((_, ours)) = OTHERS.iter().find(|(name, _)| *name == key) {
        return Error::file(path, key, value, format!("a setting that is known; the name here is `{ours}`"));
    }
    // The options of the command line are near to what they stand for.
    let names = KEYS
        .iter()
        .flat_map(|(name, option)| [(name.replace('-', "_"), *name), (option[2..].replace('-', "_"), *name)]);
    let distance = |known: &str| strsim::damerau_levenshtein(key, known);
    // Of those that are as near one of the method.
    let own = own.keys().map(|name| (distance(name), 0, name.as_str()));
    let nearest = names.map(|(known, name)| (distance(&known), 1, name)).chain(own).min();
    // What shares less than half of its letters is no help.
    let nearest = nearest.filter(|(distance, ..)| 2 * distance <= key.len());
    let nearest = nearest.map_or_else(String::new, |(.., name)| format!("; the nearest is `{name}`"));
    Error::file(path, key, value, format!("a setting that is known{nearest}"))
}
