//! A LoRA for a LLaMA in one GGUF file, as llama.cpp's converter makes it from a directory of Hugging Face PEFT, and back.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::TensorData;
use serde_json::Value;

use super::config;
use super::fields::asks_for_nothing;
use super::peft::file_key;
use super::tensors::{Contents, Taker};
use crate::adapterhub::{HubKey, Layout};
use crate::load::{Gguf, write_lora};
use crate::{AnyMethod, AnyTuner, Base, Error, Head, LanguageModel, Method, Procedure, Result, Shape, Trained};

/// Reads a file of llama.cpp's or ours; the method is LoRA.
pub fn load<M: Method>(path: &Path, base: &Base) -> Result<(M, Trained<M::Tuner>)> {
    load_as(&AnyMethod::of::<M>(), path, base).map(|(config, trained)| config.typed(trained))
}

/// [`load`] where the type of LoRA's settings is known only when the program runs.
pub fn load_as(lora: &AnyMethod, path: &Path, base: &Base) -> Result<(AnyMethod, Trained<AnyTuner>)> {
    let shape = base.shape();
    check_model(shape)?;
    let (fields, tensors) = Gguf::open(path)?.lora(shape)?;
    let wrong = |(key, found)| Error::file(path, key, found, format!("a {}", lora.name()));
    let method = config::parse(lora, fields).map_err(wrong)?;
    let mut taker = Taker::new(tensors);
    let tuner = method.for_loading(base).map_err(|error| error.in_file(path))?;
    let tuner = taker.fill(tuner, |name| key(&method, name, shape))?;
    taker.finish(|_| false)?;
    Ok((method, Trained::new(tuner, Head::LanguageModel(LanguageModel {}))?))
}

/// Writes one, and reads it back. What GGUF cannot hold is refused by its name.
pub fn save<M: Clone + Into<AnyMethod>, T: Procedure + 'static>(
    path: &Path,
    config: &M,
    trained: &Trained<T>,
    shape: &Shape,
) -> Result<()> {
    let config = &config.clone().into();
    check_model(shape)?;
    if config.peft_type() != "LORA" {
        return Err(Error::config("method", config.name(), "lora: GGUF holds no other adapter"));
    }
    if !matches!(trained.head, Head::LanguageModel(_)) {
        return Err(Error::config("task head", "a trained one", "none: GGUF holds no head"));
    }
    if let Some(module) = trained.copies.modules().first() {
        return Err(Error::config("modules_to_save", module, "none: GGUF holds no tensors of the model beside a LoRA"));
    }
    let alpha = alpha(config)?;
    let key = |name: &str| key(config, name, shape);
    let tensors = Contents::default().with("method", &trained.tuner.clone().valid(), key)?.tensors;
    let table = |part: &'static str| shape.tied && tensors.keys().any(|name| name.contains(part));
    if let Some(table) = ["embed_tokens", "lm_head"].into_iter().find(|part| table(part)) {
        let expected = "modules in the layers: llama.cpp takes no LoRA on a word table that also makes logits";
        return Err(Error::config("target_modules", table, expected));
    }
    write_lora(path, alpha, &tensors, shape)?;
    verify(path, alpha, &tensors, shape).inspect_err(|_| {
        // The check's error is the one to report.
        let _ = std::fs::remove_file(path);
    })
}

/// What the file calls a tensor, in the words of PEFT, and how it holds it: of the word table the first factor is turned, so that a
/// word's numbers lie in a row.
fn key(config: &AnyMethod, name: &str, shape: &Shape) -> HubKey {
    let key = file_key(config, name, shape);
    if key.name.ends_with("lora_embedding_A") { HubKey::new(key.name, Layout::Same) } else { key }
}

fn check_model(shape: &Shape) -> Result<()> {
    match shape.architecture.family().gguf {
        true => Ok(()),
        false => Err(Error::config("model", "another architecture", "a LLaMA: adapters in GGUF are of no other here")),
    }
}

/// The one alpha of a file, which is over each factor's own rank; a setting that asks for more than GGUF holds is an error.
fn alpha(config: &AnyMethod) -> Result<f64> {
    const OTHERS: [(&str, &str); 4] = [
        ("alpha_pattern", "none: GGUF holds one alpha"),
        ("use_dora", "false: GGUF holds no magnitudes"),
        ("bias", "none: GGUF holds no biases beside a LoRA"),
        ("trainable_token_indices", "none: GGUF holds no rows of tables beside a LoRA"),
    ];
    let fields = config.settings();
    let has = |key: &str| fields.get(key).is_some_and(|value| !asks_for_nothing(key, value));
    if let Some((key, expected)) = OTHERS.into_iter().find(|(key, _)| has(key)) {
        return Err(Error::config(key, &fields[key], expected));
    }
    let number = |key: &str| fields.get(key).and_then(Value::as_f64).unwrap_or_default();
    match fields.get("use_rslora") {
        Some(Value::Bool(true)) if has("rank_pattern") => {
            Err(Error::config("use_rslora", true, "false, or one rank: GGUF divides one alpha by the rank"))
        }
        Some(Value::Bool(true)) => Ok(number("lora_alpha") * number("r").sqrt()),
        _ => Ok(number("lora_alpha")),
    }
}

/// Compares what is read back with what was to be written.
fn verify(path: &Path, alpha: f64, tensors: &BTreeMap<String, TensorData>, shape: &Shape) -> Result<()> {
    let (fields, read) = Gguf::open(path)?.lora(shape)?;
    let differs = |detail: String| Error::Check { what: "reading the saved adapter back", detail };
    if fields["lora_alpha"].as_f64().map(|x| x as f32) != Some(alpha as f32) || read.names().count() != tensors.len() {
        return Err(differs(format!("alpha {}, {} tensors", fields["lora_alpha"], read.names().count())));
    }
    for (name, data) in tensors {
        if read.read_f32(name, data.shape())? != *data {
            return Err(differs(name.clone()));
        }
    }
    Ok(())
}
