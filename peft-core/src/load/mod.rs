//! Reading what others wrote: checkpoints, tokenizers and the folders of a model hub. None of it is trusted.

#[cfg(feature = "load")]
mod checkpoint;
#[cfg(feature = "load")]
mod gguf;
#[cfg(feature = "hub")]
pub mod hub;
#[cfg(feature = "load")]
mod index;
#[cfg(feature = "load")]
mod pack;
#[cfg(feature = "load")]
mod safetensors;
#[cfg(feature = "tokenize")]
mod tokenizer;
#[cfg(feature = "load")]
mod torch;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

#[cfg(feature = "load")]
pub use checkpoint::{Checkpoint, Entry};
#[cfg(feature = "load")]
pub use gguf::{Gguf, write_lora};
#[cfg(feature = "load")]
pub use safetensors::write_safetensors;
#[cfg(feature = "chat")]
pub use tokenizer::Conversation;
#[cfg(feature = "tokenize")]
pub use tokenizer::{Class, Encoded, FIELDS, Tokenizer, Use};

pub use crate::files::{read_json, write_file};
use crate::{Error, Result};

/// Runs another crate's parser over a file's bytes; a panic in it becomes an error that names the file.
///
/// The panic hook is left alone, since it belongs to the program: the panic's message may still appear on the
/// standard error. In a program built with `panic = "abort"` nothing can be caught.
fn guard<T>(path: &Path, key: &str, expected: &str, parse: impl FnOnce() -> T) -> Result<T> {
    catch_unwind(AssertUnwindSafe(parse)).map_err(|panic| {
        let found = format!("content on which its parser panics ({})", panic_message(panic.as_ref()));
        Error::file(path, key, found, expected)
    })
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}
