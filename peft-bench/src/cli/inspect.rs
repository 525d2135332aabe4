//! `peft inspect`

use std::path::PathBuf;

use clap::Args;
use peft_core::files::{Verified, read_json, verify};
use peft_core::io::Pretrained;
use peft_core::load::{Checkpoint, Gguf};
use peft_core::{Error, Result, shown};
use serde_json::{Value, json};

use super::options::print;

/// Say what a model or adapter directory, or a GGUF file, holds
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  peft inspect out/lora\n  peft inspect --verify out/lora\n  peft inspect smollm2.gguf"
)]
pub struct Inspect {
    /// The directory or file
    path: PathBuf,
    /// One JSON object
    #[arg(long)]
    json: bool,
    /// Compare the files with the hashes that were written with them, before anything else
    #[arg(long)]
    verify: bool,
}

impl Inspect {
    pub(super) fn run(self) -> Result<()> {
        let verified = if self.verify { Some(verify(&self.path)?) } else { None };
        let [adapter, model] = ["adapter_config.json", "config.json"].map(|name| self.path.join(name));
        let (kind, config, file) = if adapter.exists() {
            let safe = self.path.join("adapter_model.safetensors");
            let file = if safe.exists() { safe } else { self.path.join("adapter_model.bin") };
            ("adapter", read_json(&adapter)?, Checkpoint::open_file(&file)?)
        } else if model.exists() {
            Pretrained::shape(&self.path.to_string_lossy())?;
            ("model", read_json(&model)?, Checkpoint::open_model(&self.path)?)
        } else if let Some(file) = Gguf::find(&self.path)? {
            let gguf = Gguf::open(&file)?;
            if gguf.is_adapter() {
                let told = json!({"adapter.type": gguf.text("adapter.type")?, "adapter.lora.alpha": gguf.float("adapter.lora.alpha")?});
                ("adapter", told, Checkpoint::open_file(&file)?)
            } else {
                ("model", gguf.config()?, Checkpoint::from_gguf(&gguf)?)
            }
        } else {
            let expected = "adapter_config.json, config.json, or a GGUF file";
            return Err(Error::file(&self.path, "content", "none of these", expected));
        };
        let entries: Vec<_> = file.names().filter_map(|name| file.entry(name).map(|entry| (name, entry))).collect();
        let count: usize = entries.iter().map(|(_, entry)| entry.shape.iter().product::<usize>()).sum();
        if self.json {
            let tensor =
                |(name, e): &(&str, &peft_core::load::Entry)| json!({"name": name, "shape": e.shape, "dtype": e.dtype});
            let tensors: Vec<Value> = entries.iter().map(tensor).collect();
            let mut told = json!({"kind": kind, "config": config, "parameters": count, "tensors": tensors});
            if let Some(Verified { files, others }) = verified {
                told["verified"] = json!({"files": files, "others": others});
            }
            return print(told);
        }
        if let Some(Verified { files, others }) = verified {
            print(format_args!("as it was written: {}", shown(files.join(", "))))?;
            if !others.is_empty() {
                print(format_args!("without a hash, since added: {}", shown(others.join(", "))))?;
            }
        }
        print(format_args!("{kind} with {count} parameters in {} tensors", entries.len()))?;
        let set = |value: &Value| {
            !matches!(value, Value::Null | Value::Bool(false)) && *value != json!({}) && *value != json!([])
        };
        for (key, value) in config.as_object().into_iter().flatten().filter(|(_, value)| set(value)) {
            print(format_args!("  {}: {}", shown(key), shown(value)))?;
        }
        for (name, entry) in entries {
            print(format_args!("  {} {:?} {}", shown(name), entry.shape, shown(&entry.dtype)))?;
        }
        Ok(())
    }
}
