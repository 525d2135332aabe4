//! Adapter directories in burn's own form: `adapter_config.json` and `labels.json` as in [`peft`](super::peft), and the record
//! of the module [`Trained`] in `trained.bpk`, with the names that its tensors have there.

use std::io::Error as IoError;
use std::path::Path;

use burn::module::Module;

use super::peft::{Labels, load_from, write_settings};
use super::tensors::{check_finite, write_and_verify};
use crate::files::write_directory;
use crate::view::tensors;
use crate::{Base, Error, Key, Method, Result, Shape, Trained};

/// The file with the record.
pub const FILE: &str = "trained.bpk";

/// Writes an adapter directory all or nothing, reads it back, and compares every bit before it takes its name.
pub fn save<M: Method>(
    dir: &Path,
    config: &M,
    trained: &Trained<M::Tuner>,
    shape: &Shape,
    labels: &Labels,
) -> Result<()> {
    let config = &config.learned(&trained.tuner, shape);
    let Trained { tuner, head, copies } = trained.valid();
    let saved = Trained { tuner: M::to_saved(tuner), head, copies };
    let files = tensors(&saved);
    check_finite(&files)?;
    write_directory(dir, |dir| {
        write_settings(dir, config, &saved, shape, labels)?;
        write_and_verify(&dir.join(FILE), &files, |path| {
            let refused = |error: burn::store::RecordError| Error::io("write", path)(IoError::other(error.to_string()));
            saved.clone().save_file(path).map_err(refused)
        })
    })
}

/// Reads an adapter directory that [`save`] wrote.
pub fn load<M: Method>(dir: &Path, base: &Base) -> Result<(M, Trained<M::Tuner>)> {
    let key = |part: &str, name: &str| Key::plain(format!("{part}.{name}"));
    load_from(
        dir,
        &dir.join(FILE),
        base,
        |_: &M, name| key("tuner", name).into(),
        |name| key("head", name),
        |name| key("copies", name),
    )
}
