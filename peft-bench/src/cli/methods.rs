//! `peft methods`

use clap::Args;
use peft_core::{Method, Result};
use serde_json::{Value, json};

use super::options::print;
use crate::registry::{METHODS, WithMethod, by_name};

/// List the methods and their settings
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  peft methods\n  peft methods --json")]
pub struct Methods {
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

struct Defaults;

impl WithMethod for Defaults {
    type Output = Value;
    fn call<M: Method>(self) -> Result<Value> {
        Ok(json!(M::default()))
    }
}

impl Methods {
    pub(super) fn run(self) -> Result<()> {
        for entry in METHODS {
            let settings = by_name(entry.name, Defaults)?;
            if self.json {
                let line = json!({"name": entry.name, "peft_type": entry.peft_type, "family": entry.family,
                    "settings": settings});
                print(line)?;
                continue;
            }
            print(format_args!("{:14} {:20} {}", entry.name, entry.peft_type, entry.family))?;
            for (key, value) in settings.as_object().into_iter().flatten() {
                print(format_args!("    --set {key}={value}"))?;
            }
        }
        Ok(())
    }
}
