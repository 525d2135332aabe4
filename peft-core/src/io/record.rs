//! Adapter directories in burn's own form: `adapter_config.json` and `labels.json` as in [`peft`](super::peft), and the record
//! of the module [`Trained`] in `trained.bpk`, with the names that its tensors have there.

use std::io::Error as IoError;
use std::path::Path;

use burn::module::Module;

use super::config::RECORD;
use super::labels::Labels;
use super::peft::{For, load_from, write_settings};
use super::tensors::{Contents, Taker};
use crate::files::write_sealed;
use crate::load::Checkpoint;
use crate::{AnyMethod, AnyTuner, Error, Key, Method, Procedure, Result, Shape, Trained};

/// The file with the record.
pub const FILE: &str = RECORD;

/// Writes an adapter directory all or nothing, reads it back, and compares every bit before it takes its name.
pub fn save<M: Clone + Into<AnyMethod>, T: Procedure + 'static>(
    dir: &Path,
    config: &M,
    trained: &Trained<T>,
    shape: &Shape,
    labels: &Labels,
) -> Result<()> {
    let (config, trained) = (config.clone().into(), trained.clone().erased());
    let config = &config.learned(&trained.tuner, shape);
    let Trained { tuner, head, copies } = trained.valid();
    let saved = Trained { tuner: config.to_saved(tuner), head, copies };
    let key = |name: &str| Key::plain(name);
    Contents::default().with("record", &saved, key)?;
    write_sealed(dir, |dir| {
        write_settings(dir, config, &saved, shape, labels)?;
        let path = &dir.join(FILE);
        let refused = |error: burn::store::RecordError| Error::io("write", path)(IoError::other(error.to_string()));
        saved.clone().save_file(path).map_err(refused)?;
        let mut taker = Taker::new(Checkpoint::open_file(path)?);
        taker.compare(&saved, key)?;
        taker.finish(|_| false)
    })
}

/// Reads an adapter directory that [`save`] wrote.
pub fn load<'a, M: Method>(dir: &Path, model: impl Into<For<'a>>) -> Result<(M, Trained<M::Tuner>)> {
    load_as(&AnyMethod::of::<M>(), dir, model).map(|(config, trained)| config.typed(trained))
}

/// [`load`] of a method that is known only when the program runs, whatever the settings of the one given.
pub fn load_as<'a>(
    method: &AnyMethod,
    dir: &Path,
    model: impl Into<For<'a>>,
) -> Result<(AnyMethod, Trained<AnyTuner>)> {
    let key = |part: &str, name: &str| Key::plain(format!("{part}.{name}"));
    let tuner = |_: &AnyMethod, name: &str, _: &Shape| key("tuner", name).into();
    let (head, copy) = (|name: &str, _: &Shape| key("head", name), |name: &str, _: &Shape| key("copies", name));
    load_from(method, (dir, &dir.join(FILE)), model.into(), tuner, head, copy)
}
