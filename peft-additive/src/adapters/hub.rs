//! The form of bottleneck adapters in AdapterHub's files.

use peft_core::adapterhub::{Fields, HubKey, Layout, field, whole, wrong};
use peft_core::{Result, Shape, Site};
use serde_json::{Value, json};

use super::bottleneck::{Activation, projection};

/// Fields of AdapterHub's `BnConfig` that say nothing of the computation, given those that the others must have. Of the first three
/// this holds where a width is a setting, which several numbers give, and so is the activation, which several names have.
pub(super) const HUB_FREE: &[&str] = &[
    "reduction_factor",
    "non_linearity",
    "adapter_residual_before_ln",
    "init_weights",
    "init_weights_seed",
    "inv_adapter_reduction_factor",
    "phm_dim",
    "phm_c_init",
    "phm_init_range",
    "phm_rank",
    "phm_bias",
    "learn_phm",
    "shared_phm_rule",
    "factorized_phm_rule",
    "shared_W_phm",
    "factorized_phm_W",
    "hypercomplex_nonlinearity",
];

/// Those of them that say nothing where all others are settings.
pub(super) const HUB_IDLE: &[&str] = HUB_FREE.split_at(3).1;

/// What AdapterHub's `leave_out` is.
pub const LAYERS: &str = "a list of numbers of layers";

/// AdapterHub's names of the activations, those of transformers; the first of each is what is written.
pub(super) const HUB_ACTIVATIONS: [(Activation, &str); 8] = [
    (Activation::Gelu, "gelu"),
    (Activation::Gelu, "gelu_python"),
    (Activation::GeluNew, "gelu_new"),
    (Activation::GeluNew, "gelu_pytorch_tanh"),
    (Activation::Relu, "relu"),
    (Activation::Swish, "swish"),
    (Activation::Swish, "silu"),
    (Activation::Identity, "linear"),
];

/// AdapterHub's `BnConfig` with adapters of this width at the ends of the attention or of the feed-forward network or of both, and
/// with what is its `own`.
pub fn hub_fields(
    shape: &Shape,
    bottleneck: usize,
    activation: Activation,
    [attention, feed_forward]: [bool; 2],
    own: impl IntoIterator<Item = (&'static str, Value)>,
) -> Fields {
    let (d, m) = (shape.hidden as f64, bottleneck as f64);
    // Rounding could lose the last unit of the width.
    let factor = if hub_width(d, d / m) == bottleneck { d / m } else { d / (m + 0.5) };
    let activation = HUB_ACTIVATIONS.iter().find(|(ours, _)| *ours == activation).map(|(_, name)| name);
    let fields = json!({
        "mh_adapter": attention, "output_adapter": feed_forward, "reduction_factor": whole(factor), "non_linearity": activation,
        "original_ln_after": true, "ln_before": false, "ln_after": false, "init_weights_seed": null, "use_gating": false,
        "residual_before_ln": true, "adapter_residual_before_ln": false, "inv_adapter": null, "inv_adapter_reduction_factor": null,
        "cross_adapter": false, "leave_out": [], "dropout": 0.0, "phm_layer": false, "phm_dim": 4, "factorized_phm_W": true,
        "shared_W_phm": false, "shared_phm_rule": true, "factorized_phm_rule": false, "phm_c_init": "normal",
        "phm_init_range": 0.0001, "learn_phm": true, "hypercomplex_nonlinearity": "glorot-uniform", "phm_rank": 1, "phm_bias": true,
        "stochastic_depth": 0.0,
    });
    let own = own.into_iter().map(|(key, value)| (key.to_string(), value));
    fields.as_object().cloned().into_iter().flatten().chain(own).collect()
}

/// The width and the activation of such fields.
pub fn hub_settings(fields: &Fields, shape: &Shape) -> Result<(usize, Activation)> {
    let expected = "a number above 0, the same for every layer";
    let factor: f64 = field(fields, "reduction_factor", expected)?;
    if factor <= 0.0 {
        return Err(wrong(fields, "reduction_factor", expected));
    }
    let name = fields.get("non_linearity").and_then(Value::as_str);
    let activation = HUB_ACTIVATIONS.iter().find(|(_, known)| Some(*known) == name).map(|(activation, _)| *activation);
    let activation = activation.ok_or_else(|| {
        let known = HUB_ACTIVATIONS.map(|(_, name)| name).join(", ");
        wrong(fields, "non_linearity", &format!("one of {known}"))
    })?;
    Ok((hub_width(shape.hidden as f64, factor), activation))
}

/// `hidden // factor` as Python divides numbers, and 1 at least.
pub(super) fn hub_width(hidden: f64, factor: f64) -> usize {
    (((hidden - hidden % factor) / factor).round() as usize).max(1)
}

/// What AdapterHub's files call a tensor of the adapter at a sub-layer.
pub fn hub_key(shape: &Shape, site: Site, leaf: &str, adapter: &str) -> HubKey {
    let path = shape.module_path(projection(site)).unwrap_or_default();
    let module = (shape.architecture.family().hub.adapter)(site.part, &path);
    let (map, leaf) = leaf.split_once('.').unwrap_or((leaf, ""));
    // The first map is followed by its activation.
    let map = if map == "down" { "adapter_down.0" } else { "adapter_up" };
    let layout = if leaf == "weight" { Layout::Transposed } else { Layout::Same };
    HubKey::new(format!("{module}.adapters.{adapter}.{map}.{leaf}"), layout)
}
