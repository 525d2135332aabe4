//! The maps of adapters: which tensors lie together, and which maps are a pair.

use peft_additive::SequentialConfig;
use peft_core::{AnyMethod, Result, Shape};
use peft_reparam::LoraConfig;

/// The map that a tensor is of, by their names, and, if it is one of a pair, whether it is the second.
pub(crate) type MapOf = fn(&str) -> Option<(&str, Option<bool>)>;

fn of_adapters(name: &str) -> Option<(&str, Option<bool>)> {
    let (map, _) = name.rsplit_once('.')?;
    match map.rsplit_once('.')?.1 {
        "down" => Some((map, Some(false))),
        "up" => Some((map, Some(true))),
        _ => None,
    }
}

fn of_lora(name: &str) -> Option<(&str, Option<bool>)> {
    match name.rsplit_once('.')?.1 {
        "a" => Some((name, Some(false))),
        "b" => Some((name, Some(true))),
        _ => None,
    }
}

/// Of a method whose pairs are not known.
fn of_any(name: &str) -> Option<(&str, Option<bool>)> {
    Some((name.strip_suffix(".weight").or(name.strip_suffix(".bias")).unwrap_or(name), None))
}

/// How the tensors of a method lie in maps, and how many numbers the first maps have and how many the second, or all maps.
pub(crate) fn maps(inner: &AnyMethod, shape: &Shape) -> Result<(MapOf, [usize; 2])> {
    if let Some(adapter) = inner.downcast_ref::<SequentialConfig>() {
        return Ok((of_adapters, adapter.sizes(shape)?));
    }
    if let Some(lora) = inner.downcast_ref::<LoraConfig>() {
        let [a, b] = lora.sizes(shape)?;
        return Ok((of_lora, [if lora.freeze_a { 0 } else { a }, b]));
    }
    Ok((of_any, [inner.count(shape)?, 0]))
}

pub(crate) fn has_pairs(inner: &AnyMethod) -> bool {
    inner.downcast_ref::<SequentialConfig>().is_some() || inner.downcast_ref::<LoraConfig>().is_some()
}
