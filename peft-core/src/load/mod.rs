//! Reading what others wrote: checkpoints, tokenizers and the folders of a model hub. None of it is trusted.

#[cfg(feature = "load")]
mod checkpoint;
#[cfg(feature = "load")]
mod entry;
#[cfg(feature = "load")]
mod gguf;
#[cfg(feature = "hub")]
pub mod hub;
#[cfg(feature = "load")]
mod index;
#[cfg(feature = "load")]
mod open;
#[cfg(feature = "load")]
mod pack;
#[cfg(feature = "load")]
mod safetensors;
#[cfg(feature = "load")]
mod source;
#[cfg(feature = "tokenize")]
mod tokenizer;
#[cfg(feature = "load")]
mod torch;

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::path::Path;
use std::sync::Once;

#[cfg(feature = "load")]
pub use checkpoint::Checkpoint;
#[cfg(feature = "load")]
pub use entry::Entry;
#[cfg(feature = "load")]
pub use gguf::adapter::write_lora;
#[cfg(feature = "load")]
pub use gguf::{Blocks, Gguf};
#[cfg(feature = "load")]
pub use safetensors::write_safetensors;
#[cfg(feature = "chat")]
pub use tokenizer::Conversation;
#[cfg(feature = "tokenize")]
pub use tokenizer::{Class, Encoded, FIELDS, Tokenizer, Use};

pub use crate::files::{read_json, write_file};
use crate::{Error, Result};

/// Runs another crate's parser over a file's bytes; a panic in it becomes an error that names the file, and says nothing itself.
///
/// In a program built with `panic = "abort"` nothing can be caught.
fn guard<T>(path: &Path, key: &str, expected: &str, parse: impl FnOnce() -> T) -> Result<T> {
    thread_local!(static QUIET: Cell<bool> = const { Cell::new(false) });
    static HOOK: Once = Once::new();
    // Of other threads, and of this one elsewhere, panics are told as the program wants it.
    HOOK.call_once(|| {
        let told = take_hook();
        set_hook(Box::new(move |panic| {
            if !QUIET.get() {
                told(panic);
            }
        }));
    });
    let before = QUIET.replace(true);
    let parsed = catch_unwind(AssertUnwindSafe(parse));
    QUIET.set(before);
    parsed.map_err(|panic| {
        let found = format!("content on which its parser panics ({})", panic_message(panic.as_ref()));
        Error::file(path, key, found, expected)
    })
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

/// Where a directory has its weights, in the order of preference.
#[cfg(feature = "load")]
const WEIGHTS: [&str; 4] =
    ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"];

/// The file that holds or lists the weights of a directory. A dangling link counts, so that the error names it.
#[cfg(feature = "load")]
fn weights(dir: &Path) -> Option<&'static str> {
    WEIGHTS.into_iter().find(|name| dir.join(name).symlink_metadata().is_ok())
}
