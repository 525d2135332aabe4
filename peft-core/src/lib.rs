//! Hooks, sites, frozen backbones, training and adapter files for parameter-efficient fine-tuning on burn.

mod adapter;
mod batch;
#[cfg(feature = "train")]
pub mod data;
mod error;
pub mod files;
mod hooks;
#[cfg(any(feature = "load", feature = "tokenize"))]
pub mod load;
pub mod models;
pub mod random;
mod shape;
mod site;
mod weight;
mod within;

pub use adapter::{Adapter, Bare, Tuner};
pub use batch::{Batch, Example, Label};
pub use error::{Error, Result};
pub use hooks::{Attention, Hooks, Mask, Next, Sequence};
pub use models::{Base, Hidden};
pub use shape::{Architecture, Place, Shape, Slot};
pub use site::{Part, Site, SiteMap, Sites, Stack};
pub use weight::{Packed, Weight};
pub use within::Within;
