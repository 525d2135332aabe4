//! `peft methods`

use clap::Args;
use peft_core::io::peft;
use peft_core::{AnyMethod, Error, Result, Shape};
use serde_json::{Map, Value, json};

use super::options::print;
use crate::registry::{METHODS, by_name};

/// List the methods and their settings
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  peft methods\n  peft methods --json")]
pub struct Methods {
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

/// The settings of the method of this name, with their defaults.
pub fn settings(method: &str) -> Result<Map<String, Value>> {
    Ok(by_name(method)?.settings())
}

/// The method of this name with the settings of the command line, on a model of this shape.
pub fn configured(method: &str, set: &[String], shape: &Shape) -> Result<AnyMethod> {
    let of_set = |error: Error| error.of_option("--set");
    let (common, settings) = peft::split_common(set).map_err(of_set)?;
    if let Some(module) = common.saved().first() {
        return Err(Error::config("--set modules_to_save", module, "none: this is of the method's own tensors"));
    }
    peft::with_words(&by_name(method)?, &settings).map_err(of_set)?.narrowed(&common, shape)
}

impl Methods {
    pub(super) fn run(self) -> Result<()> {
        for entry in METHODS {
            let settings = settings(entry.name)?;
            if self.json {
                let line = json!({"name": entry.name, "peft_type": entry.peft_type, "family": entry.family,
                    "settings": settings});
                print(line)?;
                continue;
            }
            print(format_args!("{:14} {:20} {}", entry.name, entry.peft_type, entry.family))?;
            for (key, value) in &settings {
                print(format_args!("    --set {key}={value}"))?;
            }
        }
        Ok(())
    }
}
