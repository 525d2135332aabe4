//! What files list: tensors by their names, within bounds.

use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;
use std::path::Path;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

use super::source::Source;
use crate::{Error, Result};

/// The most tensors a checkpoint may hold.
pub(super) const MAX_TENSORS: usize = 1_000_000;
/// The longest name of a tensor, in bytes.
pub(super) const MAX_NAME: usize = 1024;

/// What a checkpoint says of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Extents, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// Element type, in the spelling of safetensors ("F32", "BF16", "I64") or of GGUF ("Q4_K").
    pub dtype: String,
}

/// A tensor as a file lists it.
pub(super) struct Stored {
    pub(super) path: Arc<Path>,
    pub(super) entry: Entry,
    pub(super) source: Source,
}

/// The entries of a JSON object, in order. A name that stands twice is an error; serde's own maps keep the last.
pub(super) struct Unique<V>(pub(super) Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Unique<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Entries<V> {
            type Value = Unique<V>;

            fn expecting(&self, text: &mut fmt::Formatter) -> fmt::Result {
                text.write_str("an object with distinct names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut names = HashSet::new();
                let mut entries = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, V>()? {
                    if !names.insert(name.clone()) {
                        return Err(A::Error::custom(format_args!("the name {name:?} twice")));
                    }
                    entries.push((name, value));
                }
                Ok(Unique(entries))
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

pub(super) fn check_name(path: &Path, name: &str) -> Result<()> {
    if name.len() > MAX_NAME {
        let start: String = name.chars().take(40).collect();
        let found = format!("a name of {} bytes", name.len());
        return Err(Error::file(path, format!("{start}..."), found, format!("at most {MAX_NAME} bytes")));
    }
    Ok(())
}

pub(super) fn check_count(path: &Path, count: usize) -> Result<()> {
    if count > MAX_TENSORS {
        return Err(Error::file(path, "tensors", count, format!("at most {MAX_TENSORS}")));
    }
    Ok(())
}
