//! `peft convert`

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use peft_core::files::read_json;
use peft_core::io::{adapterhub, gguf, hub_setup, peft, record};
use peft_core::{Error, Result};

use super::options::{ModelArgs, OutputArgs, print};
use crate::registry::{by_adapterhub, by_name, by_peft_type};

/// Convert an adapter between the formats of Hugging Face PEFT, AdapterHub, llama.cpp and burn
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  peft convert --from hub/sst2 --to hf --model DIR --output out/sst2\n\n\
    hf: adapter_config.json and adapter_model.safetensors. adapterhub: adapter_config.json and adapter.safetensors (or\n\
    pytorch_adapter.bin), the head beside them; for adapter, parallel, bottleneck, lora, ia3 and (not on T5) prefix; the package reads it with\n\
    use_safetensors=True. A head for words is the model's own there. burn: adapter_config.json and trained.bpk, the record of the module.\n\
    gguf: one file, of a LoRA for a LLaMA, as llama.cpp reads it.\n\
    What a format cannot express is refused by the name of the setting.")]
pub struct Convert {
    #[command(flatten)]
    model: ModelArgs,
    /// The adapter directory or GGUF file; which format it has is found out
    #[arg(long, value_name = "PATH")]
    from: PathBuf,
    /// The format to write
    #[arg(long, value_name = "FORMAT")]
    to: Format,
    #[command(flatten)]
    output: OutputArgs,
}

/// The form of an adapter directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Hugging Face PEFT's.
    Hf,
    /// That of the package `adapters`.
    #[value(name = "adapterhub")]
    AdapterHub,
    /// burn's record.
    Burn,
    /// llama.cpp's.
    Gguf,
}

impl Format {
    /// The one that a directory has.
    fn of(dir: &Path) -> Result<Self> {
        if dir.is_file() {
            return Ok(Format::Gguf);
        }
        let path = dir.join("adapter_config.json");
        if let Some(setup) = hub_setup::held(dir).filter(|_| !path.exists()) {
            let expected = "an adapter: those of a composition are converted one by one (--setup of forward, eval and predict runs it)";
            return Err(Error::file(dir, "content", format!("{setup}, of a composition"), expected));
        }
        let config = read_json(&path)?;
        let record = dir.join(record::FILE).exists();
        let hf = ["adapter_model.safetensors", "adapter_model.bin"].into_iter().find(|name| dir.join(name).exists());
        match (config.get("peft_type").is_some(), config.get("config").is_some(), record, hf) {
            (true, _, true, Some(name)) => {
                Err(Error::file(dir, "weights", format!("{name} and {}", record::FILE), "one of them"))
            }
            (true, _, true, None) => Ok(Format::Burn),
            (true, _, false, _) => Ok(Format::Hf),
            (false, true, ..) => Ok(Format::AdapterHub),
            (false, false, ..) => Err(Error::file(
                &path,
                "content",
                "neither",
                "peft_type (of Hugging Face PEFT and burn) or config (of AdapterHub)",
            )),
        }
    }
}

impl Convert {
    pub(super) fn run(self) -> Result<()> {
        let inputs = self.model.inputs(std::slice::from_ref(&self.from));
        match self.to {
            Format::Gguf => self.output.check_file(&inputs)?,
            _ => self.output.check(&inputs)?,
        }
        let format = Format::of(&self.from)?;
        if format == self.to {
            let found = self.to.to_possible_value().map_or(String::new(), |value| value.get_name().to_string());
            return Err(Error::config("--to", found, "another format than that of --from"));
        }
        let model = self.model.open()?;
        let Convert { from, to, output, .. } = &self;
        let shape = model.base.shape();
        let (config, trained, mut labels) = match format {
            Format::AdapterHub => adapterhub::load_as(&by_adapterhub(from)?, from, &model)?,
            Format::Gguf => {
                // It holds no other method.
                let (config, trained) = gguf::load_as(&by_name("lora")?, from, &model.base)?;
                (config, trained, peft::Labels::default())
            }
            format => {
                let method = by_peft_type(from)?;
                let (config, trained) = match format {
                    Format::Burn => record::load_as(&method, from, &model)?,
                    _ => peft::load_as(&method, from, &model)?,
                };
                let labels = model.name_classes(peft::labels(from)?, &trained.head);
                (config, trained, labels)
            }
        };
        if labels.base.is_empty() {
            labels.base = model.name.clone();
        }
        if *to == Format::Gguf {
            gguf::save(&output.output, &config, &trained, shape)?;
        } else {
            output.make(|dir| match to {
                Format::AdapterHub => adapterhub::save(dir, &config, &trained, shape, &labels),
                Format::Burn => record::save(dir, &config, &trained, shape, &labels),
                _ => peft::save(dir, &config, &trained, shape, &labels, &[]),
            })?;
        }
        print(self.output.output.display())
    }
}
