//! Names of tensors in records and in files.

use crate::{Place, Shape, Site, Slot};

/// The name and layout of a tensor in a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Its name.
    pub name: String,
    /// Whether the file holds it transposed.
    pub transposed: bool,
}

impl Key {
    /// A tensor that files hold as we do.
    pub fn plain(name: impl Into<String>) -> Self {
        Key { name: name.into(), transposed: false }
    }

    /// A matrix that files hold transposed, as `[out, in]`.
    pub fn transposed(name: impl Into<String>) -> Self {
        Key { name: name.into(), transposed: true }
    }
}

/// The path of a site's module as adapter files write it, `base_model.model.roberta.encoder.layer.0...`.
///
/// # Panics
/// If the model has no such site.
pub fn file_path(shape: &Shape, site: Site) -> String {
    let path = shape.module_path(site).unwrap_or_else(|| panic!("the model has nothing at {site}"));
    format!("base_model.model.{path}")
}

/// Splits the record name of a tensor in a [`SiteMap`](crate::SiteMap), `field.encoder.0.query.leaf`.
///
/// # Panics
/// If it is no such name.
pub fn split_name(name: &str) -> (&str, Site, &str) {
    let parts: Vec<&str> = name.splitn(5, '.').collect();
    let site = parts.get(1..4).map(|s| s.join(".")).and_then(|s| s.parse().ok());
    match (parts.as_slice(), site) {
        ([field, _, _, _, leaf], Some(site)) => (field, site, leaf),
        ([field, _, _, _], Some(site)) => (field, site, ""),
        _ => panic!("{name} is not the name of a tensor at a site"),
    }
}

/// The record name of a tensor in a module that has those of each slot by their sites, as `weights`, `gains` and `biases`.
pub fn slot_name(site: Site, slot: Slot) -> String {
    let field = match slot {
        Slot::Weight => "weights",
        Slot::Gain => "gains",
        Slot::Bias => "biases",
    };
    format!("{field}.{site}")
}

/// What the file calls a place of the backbone itself.
pub fn place_key(shape: &Shape, place: &Place) -> Key {
    Key { name: format!("base_model.model.{}", shape.file_name(place)), transposed: place.transposed }
}
