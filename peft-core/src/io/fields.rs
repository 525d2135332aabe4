//! The fields of PEFT 0.21.2's `adapter_config.json` that are no settings here: what each means for an adapter that is finished.

use serde_json::Value;

use crate::Start;

/// What is done with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It says nothing of the computation.
    Free,
    /// It does not enter the result, for this reason.
    Said(&'static str),
    /// The adapter was given a part of the base.
    Start(Start),
    /// It would change the result to what is not computed here; expected is this.
    Refused(&'static str),
    /// PEFT has no such field.
    Unknown,
}

/// Names, versions, and texts that a prompt started from.
const FREE: [&str; 15] = [
    "peft_type",
    "task_type",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "auto_mapping",
    "peft_version",
    "modules_to_save",
    "megatron_core",
    "init_ia3_weights",
    "init_weights",
    "prompt_tuning_init",
    "prompt_tuning_init_text",
    "tokenizer_name_or_path",
    "tokenizer_kwargs",
];

/// What decided how an adapter started or was trained, and is over.
const PAST: [(&str, &str); 8] = [
    ("eva_config", "it decided how the adapter started"),
    ("corda_config", "it decided how the adapter started"),
    ("lora_ga_config", "it decided how the adapter started"),
    ("loftq_config", "it decided how the adapter started"),
    ("velora_config", "it decides what is kept for gradients, and no result"),
    ("runtime_config", "it holds for one run, and PEFT passes it over too"),
    ("qalora_group_size", "it counts where use_qalora is true"),
    ("fan_in_fan_out", "these maps lie as PEFT expects without it, and PEFT turns it off too"),
];

/// Forms of LoRA that are not computed here, and what would change the model or the places of tensors.
const REFUSED: [&str; 19] = [
    "use_dora",
    "use_rslora",
    "alpha_pattern",
    "rank_pattern",
    "lora_bias",
    "alora_invocation_tokens",
    "use_qalora",
    "monteclora_config",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "bias",
    "layer_replication",
    "trainable_token_indices",
    "ensure_weight_tying",
    "megatron_config",
    "layers_to_transform",
    "layers_pattern",
    "exclude_modules",
];

/// What is done with a field of this value in a file of this `peft_type`.
pub(super) fn judge(kind: &str, key: &str, value: &Value) -> Verdict {
    const OFF: &str = "null or false: nothing here computes what it asks for";
    if key == "init_lora_weights" {
        return started(kind, value);
    }
    if FREE.contains(&key) || is_off(value) {
        return Verdict::Free;
    }
    if let Some((_, why)) = PAST.iter().find(|(name, _)| *name == key) {
        // PEFT's default.
        let default = key == "qalora_group_size" && value == 16;
        return if default { Verdict::Free } else { Verdict::Said(why) };
    }
    match (kind, key) {
        ("ADALORA", "r") if value == 8 => Verdict::Free,
        ("ADALORA", "r" | "use_rslora" | "alpha_pattern" | "lora_bias") => Verdict::Said("AdaLoRA has no use of it"),
        ("LOKR", "rank_dropout" | "module_dropout") if value.as_f64() == Some(0.0) => Verdict::Free,
        ("LOKR", "rank_dropout" | "module_dropout" | "rank_dropout_scale") => {
            Verdict::Said("it acts while PEFT trains, and on no result")
        }
        ("LOKR", "use_effective_conv2d") => Verdict::Said("it counts for convolutions, which these models do not have"),
        (_, "bias") if value == "none" => Verdict::Free,
        (_, key) if REFUSED.contains(&key) => Verdict::Refused(OFF),
        _ => Verdict::Unknown,
    }
}

/// How a LoRA started. Most ways leave the base as it is, so that what is saved is all there is.
fn started(kind: &str, value: &Value) -> Verdict {
    match value {
        Value::Bool(_) | Value::Null => Verdict::Free,
        _ if kind == "ADALORA" => Verdict::Said("AdaLoRA has no use of it"),
        Value::String(way) => match way.to_lowercase().as_str() {
            "gaussian" | "orthogonal" | "eva" | "mica" => Verdict::Free,
            "lora_ga" => Verdict::Said(
                "the adapter was trained on a base that was changed at the start, which its files do not hold; as PEFT does, it is \
                 loaded on the base as it is",
            ),
            "pissa" => Verdict::Start(Start::Pissa),
            "olora" => Verdict::Start(Start::Olora),
            _ => Verdict::Refused(
                "true, false, gaussian, orthogonal, eva, mica, pissa or olora: other starts change the base in a way that the adapter's \
                 files do not tell; PEFT's save_pretrained(.., path_initial_model_for_weight_conversion=..) makes a LoRA that does not",
            ),
        },
        _ => Verdict::Refused("true, false, or the name of a start"),
    }
}

/// Null, false, and what is empty.
pub(super) fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}
