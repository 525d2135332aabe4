//! LoRA in AdapterHub's files: its `LoRAConfig`.

use peft_core::adapterhub::{AdapterHub, Fields, HubKey, Kind, Layout, field, lora_fields, lora_sites};
use peft_core::{Error, Result, Shape, split_name};

use super::lora::config::{BiasMode, LoraConfig};

/// The form that AdapterHub's files have.
pub(super) fn form() -> AdapterHub<LoraConfig> {
    let free = &["init_weights", "init_weights_seed", "attn_matrices"];
    AdapterHub { kind: Kind::Lora, fields, config, free, key }
}

fn key(_: &LoraConfig, name: &str, adapter: &str, shape: &Shape) -> HubKey {
    let (_, site, leaf) = split_name(name);
    let path = shape.module_path(site).unwrap_or_default();
    HubKey::new(format!("{path}.loras.{adapter}.lora_{}", leaf.to_uppercase()), Layout::Transposed)
}

fn fields(lora: &LoraConfig, shape: &Shape) -> Result<Fields> {
    let none = |key: &str, found: Option<String>| match found {
        Some(found) => Err(Error::config(key, found, "none: AdapterHub has one rank and one alpha")),
        None => Ok(()),
    };
    none("rank_pattern", lora.rank_pattern.keys().next().cloned())?;
    none("alpha_pattern", lora.alpha_pattern.keys().next().cloned())?;
    if lora.use_rslora {
        return Err(Error::config("use_rslora", true, "false: AdapterHub scales by alpha / r"));
    }
    if lora.use_dora {
        return Err(Error::config("use_dora", true, "false: AdapterHub's LoRA has no magnitudes"));
    }
    if lora.trainable_token_indices.is_some() {
        let expected = "none: AdapterHub's files hold no rows of word tables";
        return Err(Error::config("trainable_token_indices", "some", expected));
    }
    if lora.bias != BiasMode::None {
        let found = format!("{:?}", lora.bias);
        return Err(Error::config("bias", found, "none: AdapterHub's files hold no bias of the model"));
    }
    let sites = lora.adapted(shape)?;
    lora_fields("add", [lora.r as f64, lora.lora_alpha], lora.lora_dropout, &sites, shape)
}

fn config(fields: &Fields, shape: &Shape) -> Result<LoraConfig> {
    let config = LoraConfig::new(field(fields, "r", "a rank, from 1")?).with_alpha(field(fields, "alpha", "a number")?);
    let dropout = field(fields, "dropout", "a number from 0 to below 1")?;
    Ok(config.with_dropout(dropout).with_sites(lora_sites(fields, shape)?))
}
