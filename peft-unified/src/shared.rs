//! What the layers of a method can share, of which ProPETL makes one adapter.

use peft_additive::{PrefixTuningConfig, SequentialConfig};
use peft_core::{AnyMethod, Error, Result, Shape};
use peft_reparam::{AdaLoraConfig, BiasMode, IncreLoraConfig, LoraConfig};

use crate::masks;

/// What the name of a method begins with that is shared.
pub(crate) const NAME: &str = "propetl";

/// The error of a method that cannot be shared.
pub(crate) fn refused(inner: &AnyMethod, found: impl std::fmt::Display, expected: &str) -> Error {
    masks::refused(NAME, inner, found, expected)
}

/// How many scores there are: as many as all layers' matrices have numbers. Refuses settings by which layers differ.
pub(crate) fn masked(inner: &AnyMethod, shape: &Shape) -> Result<usize> {
    if let Some(config) = inner.downcast_ref::<SequentialConfig>() {
        if config.train_layernorm {
            return Err(Error::config("train_layernorm", true, "false: each layer has normalizations of its own"));
        }
        for_all_layers(&config.leave_out)?;
        // A bottleneck wider by one unit has d + 1 + d more numbers.
        let wider = config.clone().with_bottleneck(config.bottleneck + 1);
        let wider = AnyMethod::new(wider).count(shape)? - inner.count(shape)?;
        return Ok(wider / (2 * shape.hidden + 1) * 2 * shape.hidden * config.bottleneck);
    }
    if let Some(config) = inner.downcast_ref::<PrefixTuningConfig>() {
        for_all_layers(&config.leave_out)?;
        let flat = AnyMethod::new(PrefixTuningConfig { prefix_projection: false, ..config.clone() });
        let layers = flat.count(shape)? / flat.count(&shape.clone().one_layer())?;
        let used = (0..layers).filter(|layer| is_used(inner, shape, *layer)).count();
        return Ok(flat.count(shape)? / layers * used);
    }
    if let Some(config) = inner.downcast_ref::<LoraConfig>() {
        if config.bias != BiasMode::None {
            return Err(Error::config("bias", format!("{:?}", config.bias), "none: each layer has biases of its own"));
        }
        if config.use_dora {
            return Err(Error::config("use_dora", true, "false: each layer's matrices have lengths of their own"));
        }
    }
    if inner.downcast_ref::<AdaLoraConfig>().is_some() || inner.downcast_ref::<IncreLoraConfig>().is_some() {
        return Err(refused(inner, "ranks that are allocated among the layers", "adapters that keep their shapes"));
    }
    // Of others all numbers; whether these are in matrices, the start tells.
    inner.count(shape)
}

/// The layers share what each of them has.
fn for_all_layers(leave_out: &[usize]) -> Result<()> {
    match leave_out.first() {
        None => Ok(()),
        Some(layer) => Err(Error::config("leave_out", layer, "no layer: all share what is trained")),
    }
}

/// What bounds the start of a matrix's scores, at 1 / sqrt(fan): torch's count of inputs in the form that the authors' RoBERTa has them
/// in. Adapters `[d, m]` and `[m, d]` lie there as they do here, LoRA's `[r, d_in]` and `[d_out, r]` transposed, and `[L, l, 2 d]` is one tensor
/// of a prefix for all layers.
pub(crate) fn fan(inner: &AnyMethod, [rows, columns]: [usize; 2]) -> usize {
    match inner {
        lora if lora.downcast_ref::<LoraConfig>().is_some() => rows,
        prefix if prefix.downcast_ref::<PrefixTuningConfig>().is_some() => rows * columns,
        _ => columns,
    }
}

/// Whether a layer uses its part of a tensor that holds all layers: as PEFT cuts the prefix of a T5, its layers take every second part
/// in turn.
pub(crate) fn is_used(inner: &AnyMethod, shape: &Shape, layer: usize) -> bool {
    let halves = shape.stacks().get(1).is_some_and(|(_, layers)| layers.is_multiple_of(2));
    inner.downcast_ref::<PrefixTuningConfig>().is_none() || !halves || layer.is_multiple_of(2)
}
