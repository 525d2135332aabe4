//! Combinations that a search has found, or finds.

pub mod autopeft;
mod bilevel;
mod candidate;
pub mod s3_delta;
pub mod s4;
pub mod structure;
mod thin;

use peft_core::{AnyMethod, Base, Key, Many, Result, Shape};

/// Methods side by side in the layers of a model, as [`AnyMethod::composed`] has them.
fn side_by_side(parts: Vec<AnyMethod>, base: &Base, seed: u64) -> Result<Many> {
    let whole = AnyMethod::composed(parts).init(base, seed)?;
    Ok(whole.downcast().unwrap_or_else(|| unreachable!("several methods at once are `Many`")))
}

/// What files call a tensor of such methods.
fn key_among(parts: Result<Vec<AnyMethod>>, name: &str, shape: &Shape) -> Key {
    let parts = parts.unwrap_or_else(|_| unreachable!("the settings were good when it started"));
    AnyMethod::composed(parts).key(name, shape)
}
