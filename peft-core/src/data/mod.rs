//! Labelled examples from files: tab-separated, comma-separated or one JSON object a line.

mod classes;
mod dataset;
mod labelled;
mod row;
mod table;

pub use dataset::Dataset;
#[cfg(feature = "tokenize")]
pub use dataset::{prompted, room};
pub use labelled::{Builder, Labelled};
