//! Hybrid fine-tuning: combinations of methods of several families, each with one configuration.
//!
//! ```
//! use peft_core::{Method, Shape};
//! use peft_hybrid::MamConfig;
//!
//! let shape = Shape::named("roberta-base")?;
//! assert_eq!(MamConfig::glue().count(&shape)?, 15_695_840);
//! # Ok::<(), peft_core::Error>(())
//! ```

pub mod manual;

pub use manual::mam::{Mam, MamConfig};
