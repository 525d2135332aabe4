//! What a method's configuration offers to programs that train, count, save and merge any of them.

use std::fmt::Debug;
use std::ops::Range;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::adapterhub::AdapterHub;
use crate::{AnyMethod, AnyTuner, Base, Common, Error, Head, Key, Merge, Procedure, Result, Shape, Site, Trained};

/// The configuration of a method: plain data whose fields have the names of Hugging Face PEFT's `adapter_config.json`.
pub trait Method: Clone + Debug + Default + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The name in commands and tables.
    const NAME: &'static str;
    /// The `peft_type` in files.
    const PEFT_TYPE: &'static str;
    /// Whether its tensors come on top of the model's; otherwise each takes the place of one of them.
    const ADDS: bool = true;
    /// Settings that PEFT does not have: its files hold them only where they are not the default.
    const OWN_SETTINGS: &'static [&'static str] = &[];
    /// Settings that a file must say, since files of older versions are silent about them and the default was another, and what such
    /// a file should say.
    const STATED: &'static [(&'static str, &'static str)] = &[];
    /// What stands before a head's name in files.
    const HEAD_PREFIX: &'static str = "base_model.model.";

    /// What is trained.
    type Tuner: Procedure + 'static;

    /// A fresh one for this model, on its device with autodiff. The seed decides every random number.
    fn init(&self, base: &Base, seed: u64) -> Result<Self::Tuner>;

    /// The same from finished adapters, for a method that starts from such.
    fn init_from(&self, base: &Base, seed: u64, sources: &[Source]) -> Result<Self::Tuner> {
        match sources {
            [] => self.init(base, seed),
            [source, ..] => {
                Err(Error::config("sources", &source.name, format!("none: {} starts from the base alone", Self::NAME)))
            }
        }
    }

    /// Its number of trainable elements in closed form.
    fn count(&self, shape: &Shape) -> Result<usize>;

    /// The head with which a run begins, where that is neither the model's own nor a fresh one.
    fn head(&self, _wanted: &Wanted<'_>, _base: &Base, _seed: u64, _sources: &[Source]) -> Result<Option<Head>> {
        Ok(None)
    }

    /// The number of elements of such a head that are trained.
    fn head_count(&self, shape: &Shape, outputs: usize) -> usize {
        Head::count(shape, outputs)
    }

    /// The modules that `target_modules` choose from, by their paths.
    fn modules(shape: &Shape) -> Vec<(Site, String)> {
        shape.linears()
    }

    /// The same, for a model on which it is to start: what no memory would hold is refused before it is asked for.
    fn checked_count(&self, shape: &Shape) -> Result<usize> {
        checked(Self::NAME, self.count(shape)?, shape)
    }

    /// How many positions of a sequence its virtual tokens take.
    fn virtual_tokens(&self) -> usize {
        0
    }

    /// The most tokens of a sequence that it runs with on this model.
    fn room(&self, shape: &Shape) -> usize {
        shape.max_length().saturating_sub(self.virtual_tokens())
    }

    /// What files call the tensor that records call `name`.
    fn key(&self, name: &str, shape: &Shape) -> Key;

    /// Whether the tensor that records call `name` is a mask of zeros and ones, of which files hold the bits.
    fn is_mask(&self, _name: &str) -> bool {
        false
    }

    /// The configuration as files hold it: sites by module names instead of parts.
    fn for_files(&self, _shape: &Shape) -> Result<Self> {
        Ok(self.clone())
    }

    /// Fields of `adapter_config.json` that follow from the model.
    fn derived(&self, _shape: &Shape) -> Map<String, Value> {
        Map::new()
    }

    /// The configuration with what the tuner has found beside its tensors (ranks, a seed).
    fn learned(&self, _tuner: &Self::Tuner, _shape: &Shape) -> Self {
        self.clone()
    }

    /// What files hold of it.
    fn to_saved(tuner: Self::Tuner) -> Self::Tuner {
        tuner
    }

    /// One whose tensors are to be read from files.
    fn for_loading(&self, base: &Base) -> Result<Self::Tuner> {
        self.init(base, 0)
    }

    /// One whose tensors were read from files, on this base. What they cannot be, such as an index past its tensor's end, is an error.
    fn loaded(&self, tuner: Self::Tuner, _base: &Base) -> Result<Self::Tuner> {
        Ok(tuner)
    }

    /// The configuration of a finished adapter that started so, once that is a part of the adapter ([`taken_out`](Self::taken_out)).
    fn started(&self, _start: Start) -> Self {
        self.clone()
    }

    /// An adapter that takes the start out of the base as it is, which the one in the files does not.
    fn taken_out(&self, tuner: Self::Tuner, _start: Start, _base: &Base) -> Result<Self::Tuner> {
        Ok(tuner)
    }

    /// The method in these layers of a model of this shape only, by its settings: `LoraConfig::new(8).within(2..4, &shape)`. Its files are
    /// those of any such choice, `layers_to_transform` in a training YAML. One that has no setting for its modules or layers refuses.
    fn within(self, layers: Range<usize>, shape: &Shape) -> Result<AnyMethod> {
        AnyMethod::new(self).narrowed(&Common::within(layers), shape)
    }

    /// Its form in AdapterHub's files, if it has one.
    fn adapterhub() -> Option<AdapterHub<Self>> {
        None
    }

    /// Its weight-space form, if it has one.
    fn merge(_tuner: &Self::Tuner) -> Option<&dyn Merge> {
        None
    }
}

/// A number of trainable elements, if a machine that holds a model of this shape could hold them.
pub(crate) fn checked(name: &str, count: usize, shape: &Shape) -> Result<usize> {
    let most = shape.count().saturating_mul(8).max(1 << 26);
    if count > most {
        let expected = format!("at most {most} for a model of {}", shape.count());
        return Err(Error::config(name, format!("{count} trainable elements"), expected));
    }
    Ok(count)
}

/// What a run wants of a head.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// How many outputs for classes or values of texts, if it is for such.
    pub outputs: Option<usize>,
    /// The model's head for words, if it has one.
    pub words: Option<&'a Head>,
}

/// A finished adapter from which another method starts.
#[derive(Clone, Debug)]
pub struct Source {
    /// What it is called in settings and errors: its directory, or a name of its task.
    pub name: String,
    /// Its method.
    pub config: AnyMethod,
    /// Its tensors and its head.
    pub trained: Trained<AnyTuner>,
}

impl Source {
    /// The adapter's tuner, if it is of this method; otherwise an error that names the source.
    pub fn tuner<M: Method>(&self) -> Result<&M::Tuner> {
        let wrong = || {
            Error::config(
                "sources",
                format!("{}, of {}", self.name, self.config.name()),
                format!("adapters of {}", M::NAME),
            )
        };
        self.trained.tuner.downcast_ref().ok_or_else(wrong)
    }
}

/// A way in which PEFT's LoRA takes a part out of the base at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// What the largest singular values make: PiSSA.
    Pissa,
    /// What is in the span of the first rows: OLoRA.
    Olora,
}
