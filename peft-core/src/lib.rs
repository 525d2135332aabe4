//! Hooks, sites, frozen backbones, training and adapter files for parameter-efficient fine-tuning on burn.

mod error;

pub use error::{Error, Result};
