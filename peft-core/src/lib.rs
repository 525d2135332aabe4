#![doc = include_str!("../README.md")]

mod adapter;
pub mod adapterhub;
pub mod answer;
mod any;
mod applied;
mod batch;
pub mod codes;
pub mod combine;
pub mod composition;
mod compute;
mod copies;
#[cfg(feature = "train")]
pub mod data;
mod delta;
mod device;
mod error;
pub mod files;
#[cfg(feature = "flex")]
mod frozen;
#[cfg(feature = "flex")]
mod fused;
#[cfg(feature = "train")]
pub mod generate;
mod head;
mod hooks;
#[cfg(feature = "load")]
pub mod io;
#[cfg(feature = "flex")]
mod kernels;
mod key;
#[cfg(any(feature = "load", feature = "tokenize"))]
pub mod load;
mod merge;
mod method;
mod models;
pub mod ops;
mod packed;
mod pattern;
mod purpose;
pub mod random;
mod readout;
// What only the trainer asks of a tape is dead without it.
#[cfg_attr(not(feature = "train"), allow(dead_code))]
mod recompute;
mod replaced;
#[cfg(feature = "train")]
pub mod search;
mod shape;
mod site;
mod targets;
mod task;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(any(feature = "flex", feature = "train"))]
mod threads;
pub mod train;
mod trained;
pub mod transfer;
mod verbalizer;
pub mod view;
pub mod warning;
mod weight;
mod within;

pub use adapter::{Adapter, AnyAdapter, Bare, Tuner};
pub use any::{AnyMethod, AnyTuner, HubForm, Many, Over};
pub use applied::{Applied, On};
pub use batch::{Batch, Example, Label};
pub use compute::Compute;
pub use copies::Copies;
pub use delta::{Added, Delta};
pub use device::{available, device};
pub use error::{Error, Result, shown, shown_lines};
pub use head::{Affine, AtMask, Classifier, Head, LanguageModel, MaskedLm, Norm, Score, States, Tokens};
pub use hooks::{Attention, Hooks, Lookup, Mask, Next, Sequence};
pub use key::{Key, file_path, place_key, slot_name, split_name};
pub use merge::Merge;
pub use method::{Method, Source, Start, Wanted};
pub use models::family::{Architecture, Family, ForTexts, Hub};
pub use models::llama::{Llama, Scaling};
pub use models::t5::T5;
pub use models::{Base, Cache, Frame, Hidden, Stored};
pub use ops::loss;
pub use packed::Packed;
pub use pattern::Pattern;
pub use purpose::{ClassUse, Purpose};
pub use readout::{Around, Readout};
pub use recompute::Tape;
pub use replaced::Replaced;
pub use shape::{Place, Shape, Slot};
pub use site::{ModuleMap, Part, Site, SiteMap, Sites, Stack};
pub use targets::{Common, Few};
pub use task::TaskLabels;
pub use train::Procedure;
pub use trained::Trained;
pub use verbalizer::{Text, Verbalizer};
pub use weight::Weight;
pub use within::Within;
