//! Labelled examples from files: tab-separated, comma-separated or one JSON object a line.

mod classes;
mod labelled;
mod row;
mod table;

pub use labelled::{Builder, Labelled};

/// What an example is to be mapped to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Label {
    /// The number of a class, counted from 0.
    Class(usize),
    /// A number to come close to.
    Value(f32),
}

/// One example, already tokenized.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Which tokens count; without it all do.
    pub mask: Option<Vec<bool>>,
    /// Segment of each token.
    pub types: Vec<u32>,
    /// The label, if the file has labels.
    pub label: Option<Label>,
}
