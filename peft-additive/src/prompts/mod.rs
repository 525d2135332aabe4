//! Soft prompt-based fine-tuning.

pub mod prefix_tuning;
pub mod prompt_tuning;

use peft_core::{Error, Result, Shape};
use serde_json::{Map, Value};

/// What PEFT writes of the model beside the settings of a prompt.
fn derived(shape: &Shape) -> Map<String, Value> {
    let fields = [
        ("token_dim", shape.hidden),
        ("num_layers", shape.layers),
        ("num_attention_heads", shape.heads),
        ("num_transformer_submodules", 1),
    ];
    fields.into_iter().map(|(key, value)| (key.to_string(), value.into())).collect()
}

/// Virtual tokens take up positions of the model; tells how many are left, at least one.
fn room(num_virtual_tokens: usize, shape: &Shape) -> Result<usize> {
    let most = shape.max_length() - 1;
    if (1..=most).contains(&num_virtual_tokens) {
        Ok(shape.max_length() - num_virtual_tokens)
    } else {
        let expected = format!("1 to {most}: the model has {} positions, virtual tokens included", most + 1);
        Err(Error::config("num_virtual_tokens", num_virtual_tokens, expected))
    }
}
