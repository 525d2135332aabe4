//! `peft inspect`

use std::path::PathBuf;

use clap::Args;
use peft_core::files::read_json;
use peft_core::io::Pretrained;
use peft_core::load::Checkpoint;
use peft_core::{Error, Result};
use serde_json::{Value, json};

use super::options::print;

/// Say what a model or adapter directory holds
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  peft inspect out/lora")]
pub struct Inspect {
    /// The directory
    dir: PathBuf,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

impl Inspect {
    pub(super) fn run(self) -> Result<()> {
        let adapter = self.dir.join("adapter_config.json");
        let (kind, config, file) = if adapter.exists() {
            let safe = self.dir.join("adapter_model.safetensors");
            let file = if safe.exists() { safe } else { self.dir.join("adapter_model.bin") };
            ("adapter", read_json(&adapter)?, Checkpoint::open_file(&file)?)
        } else if self.dir.join("config.json").exists() {
            Pretrained::shape(&self.dir.to_string_lossy())?;
            ("model", read_json(&self.dir.join("config.json"))?, Checkpoint::open_model(&self.dir)?)
        } else {
            return Err(Error::file(&self.dir, "content", "neither", "adapter_config.json or config.json"));
        };
        let entries: Vec<_> = file.names().filter_map(|name| file.entry(name).map(|entry| (name, entry))).collect();
        let count: usize = entries.iter().map(|(_, entry)| entry.shape.iter().product::<usize>()).sum();
        if self.json {
            let tensor =
                |(name, e): &(&str, &peft_core::load::Entry)| json!({"name": name, "shape": e.shape, "dtype": e.dtype});
            let tensors: Vec<Value> = entries.iter().map(tensor).collect();
            print(json!({"kind": kind, "config": config, "parameters": count, "tensors": tensors}))?;
            return Ok(());
        }
        print(format_args!("{kind} with {count} parameters in {} tensors", entries.len()))?;
        let set = |value: &Value| {
            !matches!(value, Value::Null | Value::Bool(false)) && *value != json!({}) && *value != json!([])
        };
        for (key, value) in config.as_object().into_iter().flatten().filter(|(_, value)| set(value)) {
            print(format_args!("  {key}: {value}"))?;
        }
        for (name, entry) in entries {
            print(format_args!("  {name} {:?} {}", entry.shape, entry.dtype))?;
        }
        Ok(())
    }
}
