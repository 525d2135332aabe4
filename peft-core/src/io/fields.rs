//! The fields of PEFT 0.21.2's `adapter_config.json` that are no settings of all methods here: by which value each asks for nothing, and
//! what it means for an adapter that is finished.

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

const NAME: Verdict = Verdict::Free;
const STARTED: Verdict = Verdict::Said("it decided how the adapter started");
const OFF: Verdict = Verdict::Refused("null or false: nothing here computes what it asks for");

/// Each field, the value by which it asks for nothing where that is neither null, false nor empty, and what is done with others: names,
/// versions and texts that a prompt started from are free, what decided how an adapter started or was trained is over, and forms of
/// LoRA that are not computed here, with all that changes the model or the places of tensors, are refused.
const FIELDS: [(&str, &str, Verdict); 49] = [
    ("peft_type", "", NAME),
    ("task_type", "", NAME),
    ("base_model_name_or_path", "", NAME),
    ("revision", "", NAME),
    ("inference_mode", "", NAME),
    ("auto_mapping", "", NAME),
    ("peft_version", "", NAME),
    ("modules_to_save", "", NAME),
    ("megatron_core", "\"megatron.core\"", NAME),
    ("init_ia3_weights", "true", NAME),
    ("init_weights", "true", NAME),
    ("prompt_tuning_init", "\"RANDOM\"", NAME),
    ("prompt_tuning_init_text", "", NAME),
    ("prompt_tuning_init_state_dict_path", "", STARTED),
    ("tokenizer_name_or_path", "", NAME),
    ("tokenizer_kwargs", "", NAME),
    ("eva_config", "", STARTED),
    ("corda_config", "", STARTED),
    ("lora_ga_config", "", STARTED),
    ("loftq_config", "", STARTED),
    ("velora_config", "", Verdict::Said("it decides what is kept for gradients, and no result")),
    ("runtime_config", "", Verdict::Said("it holds for one run, and PEFT passes it over too")),
    ("qalora_group_size", "16", Verdict::Said("it counts where use_qalora is true")),
    ("fan_in_fan_out", "", Verdict::Said("these maps lie as PEFT expects without it, and PEFT turns it off too")),
    ("init_lora_weights", "true", NAME),
    ("use_dora", "", OFF),
    ("use_rslora", "", OFF),
    ("alpha_pattern", "", OFF),
    ("rank_pattern", "", OFF),
    ("lora_bias", "", OFF),
    ("alora_invocation_tokens", "", OFF),
    ("use_qalora", "", OFF),
    ("monteclora_config", "", OFF),
    ("use_bdlora", "", OFF),
    ("arrow_config", "", OFF),
    ("kasa_config", "", OFF),
    ("bias", "\"none\"", OFF),
    ("layer_replication", "", OFF),
    ("trainable_token_indices", "", OFF),
    ("ensure_weight_tying", "", OFF),
    ("megatron_config", "", OFF),
    ("target_parameters", "", OFF),
    ("module_dropout", "0.0", OFF),
    ("rank_dropout", "0.0", OFF),
    ("rank_dropout_scale", "", OFF),
    ("use_effective_conv2d", "", OFF),
    ("exclude_modules", "", OFF),
    ("layers_to_transform", "", OFF),
    ("layers_pattern", "", OFF),
];

/// The names of these fields.
pub fn others() -> impl Iterator<Item = &'static str> {
    FIELDS.iter().map(|(name, ..)| *name)
}

/// The value by which a field of PEFT that is no setting here asks for nothing, as JSON, where that is neither null, false nor empty
/// (then it is empty); none, if PEFT has no such field.
pub fn neutral(key: &str) -> Option<&'static str> {
    FIELDS.iter().find(|(name, ..)| *name == key).map(|(_, neutral, _)| *neutral)
}

/// Whether such a field asks for nothing with this value.
pub fn asks_for_nothing(key: &str, value: &Value) -> bool {
    let is = |neutral| serde_json::from_str::<Value>(neutral).is_ok_and(|neutral| neutral == *value);
    neutral(key).is_some_and(|neutral| is_off(value) || is(neutral))
}

/// What is done with a field of this value in a file of this `peft_type`.
pub(super) fn judge(kind: &str, key: &str, value: &Value) -> Verdict {
    match (kind, key) {
        (_, "init_lora_weights") => started(kind, value),
        _ if is_off(value) || asks_for_nothing(key, value) => Verdict::Free,
        ("ADALORA", "r") if value == 8 => Verdict::Free,
        ("ADALORA", "r" | "use_rslora" | "alpha_pattern" | "lora_bias") => Verdict::Said("AdaLoRA has no use of it"),
        ("LOKR", "rank_dropout" | "module_dropout" | "rank_dropout_scale") => {
            Verdict::Said("it acts while PEFT trains, and on no result")
        }
        ("LOKR", "use_effective_conv2d") => Verdict::Said("it counts for convolutions, which these models do not have"),
        _ => FIELDS.iter().find(|(name, ..)| *name == key).map_or(Verdict::Unknown, |(.., verdict)| *verdict),
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
