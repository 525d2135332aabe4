//! Labelled examples from files: tab-separated, comma-separated, one JSON object a line, or tagged words (CoNLL).

mod answers;
mod classes;
mod dataset;
mod labelled;
#[cfg(feature = "tokenize")]
mod prompts;
mod row;
mod table;
mod tags;

pub use classes::class_place;

pub use dataset::{Dataset, Names};
pub use labelled::{Builder, Labelled, Question};
#[cfg(feature = "tokenize")]
pub use prompts::{prompted, room};
