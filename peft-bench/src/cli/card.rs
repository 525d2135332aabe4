//! The model card of a saved adapter, `README.md` in the form that model hubs read.

use peft_core::train::{TrainConfig, Tuned};
use serde_json::{Map, Value, json};

/// The card's text.
pub fn write(tuned: &Tuned<'_>, config: &TrainConfig, metrics: &Map<String, Value>, task: Option<&str>) -> String {
    let (method, head) = tuned.trainable();
    let results: String = metrics.iter().map(|(name, value)| format!("| {name} | {value:.4} |\n")).collect();
    let results = match results.is_empty() {
        true => "It was not evaluated.\n".to_string(),
        false => format!("| metric | value |\n| --- | --- |\n{results}"),
    };
    let data = task.map_or("labelled data of the user's".to_string(), |task| format!("the GLUE task {task}"));
    format!(
        "---\nlibrary_name: peft\nbase_model: {base}\ntags:\n- {name}\n---\n\n# {name} on {data}\n\n\
        {method} trainable parameters of the method, {head} of the task head; seed {seed}.\n\n## Results\n\n\
        On the data that the run evaluated on:\n\n{results}\n## Settings\n\n`train.yaml` beside this file repeats the \
        run: `peft train --config train.yaml --output DIR`.\n",
        base = json!(tuned.labels.base),
        name = tuned.config.name(),
        seed = config.seed,
    )
}
