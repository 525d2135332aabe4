//! What transformers' classes say of a model's head.

use std::path::Path;

use serde_json::Value;

use crate::{Architecture, ClassUse, Error, ForTexts, Head, Purpose, Result};

/// The tensor by whose absence a head is missed.
pub(super) fn first_tensor(purpose: Purpose, architecture: Architecture) -> String {
    let scores = architecture.family().for_texts == ForTexts::Score;
    let name = match purpose {
        Purpose::Texts if scores => "Score.weight",
        Purpose::Texts => "Classifier.out.weight",
        // A matrix alone is a head for texts.
        Purpose::Tokens if scores => "Tokens.out.bias",
        Purpose::Tokens => "Tokens.out.weight",
        Purpose::Answers => "Answers.out.weight",
        Purpose::Words if architecture.is_encoder() => "MaskedLm.bias",
        Purpose::Words | Purpose::States => return "lm_head.weight".to_string(),
    };
    Head::key(name, architecture).name
}

/// What a class is for; `None` if it is none of transformers'.
pub(super) fn of_class(class: &str, architecture: Architecture, path: &Path, key: &str) -> Result<Option<Purpose>> {
    match Purpose::of_class(class, architecture) {
        ClassUse::Known(purpose) => Ok(Some(purpose)),
        ClassUse::Unknown => Ok(None),
        ClassUse::Refused => {
            let expected = format!("a class that is computed: {}", Purpose::classes(architecture));
            Err(Error::file(path, key, class, expected))
        }
    }
}

/// What a `config.json` says that its model is for.
pub(super) fn said(config: &Value, path: &Path, architecture: Architecture) -> Result<Option<Purpose>> {
    match config.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str) {
        Some(class) => of_class(class, architecture, path, "architectures"),
        None => Ok(None),
    }
}
