//! What a training gives: a method on its model, to be saved, asked and merged.

use std::path::Path;

use burn::module::Module;

use super::TrainConfig;
use super::micro::Workers;
#[cfg(feature = "tokenize")]
use super::predict::argmax;
use super::predict::{Logits, Metrics, farthest, measure, predict};
use crate::data::Dataset;
use crate::io::Pretrained;
use crate::io::peft::{self, Labels};
use crate::view::{copied, trainable};
use crate::{AnyMethod, AnyTuner, Base, Error, Example, Head, Many, Method, Result, TaskLabels, Trained, Tuner};

/// A trained method with its model.
#[derive(Debug)]
pub struct Tuned<'a> {
    pub(super) model: &'a Pretrained,
    /// The model's base, as it is for the head's purpose.
    pub base: Base,
    /// The method's configuration.
    pub config: AnyMethod,
    /// The method and head.
    pub trained: Trained<AnyTuner>,
    /// What is saved beside the tensors.
    pub labels: Labels,
    /// A fault of the method that the checks at the end of the run found: the result is there, but not to be trusted.
    pub fault: Option<Error>,
    /// Trainable elements before the first step: of the method, and of the head.
    pub(super) counts: (usize, usize),
    pub(super) threads: usize,
}

/// Trainable elements of a method with its copies, and of a head.
pub(super) fn counts<T: Tuner>(trained: &Trained<T>) -> (usize, usize) {
    (trainable(&trained.tuner) + trainable(&trained.copies), trainable(&trained.head))
}

impl<'a> Tuned<'a> {
    /// An adapter directory on its model.
    pub fn load<M: Method>(dir: &Path, model: &'a Pretrained) -> Result<Self> {
        Self::load_as(&AnyMethod::of::<M>(), dir, model)
    }

    /// [`load`](Self::load) of a method that is known only when the program runs, whatever the settings of the one given.
    pub fn load_as(method: &AnyMethod, dir: &Path, model: &'a Pretrained) -> Result<Self> {
        let (config, trained) = peft::load_as(method, dir, model)?;
        let (threads, labels) = (TrainConfig::default().threads, model.name_classes(peft::labels(dir)?, &trained.head));
        for task in 0..labels.tasks.len().max(1) {
            let outputs = trained.head.of_task(task)?.outputs().filter(|outputs| *outputs > 1).unwrap_or(0);
            let names = labels.of_task(task).len();
            if names > 0 && names != outputs {
                let key =
                    labels.tasks.get(task).map_or("classes".into(), |task| format!("classes of task {}", task.name));
                let (path, expected) = (dir.join("labels.json"), format!("{outputs}, as the head"));
                return Err(Error::file(path, key, format!("{names} names"), expected));
            }
        }
        let counts = counts(&trained);
        let base = model.base.for_purpose(trained.head.purpose());
        Ok(Tuned { model, base, config, trained, labels, fault: None, counts, threads })
    }

    /// Several finished adapters of one model at once, the first the outermost, with the head and the classes of the first. Each acts
    /// as it does alone on what the others leave; only the first may bring copies of the model's tensors.
    pub fn composed(all: Vec<Self>) -> Result<Self> {
        let none = || Error::config("adapters", "none", "at least one");
        let [first, others @ ..] = &all[..] else { return Err(none()) };
        if others.is_empty() {
            return all.into_iter().next().ok_or_else(none);
        }
        if let Some(other) = others.iter().find(|other| !other.trained.copies.is_empty()) {
            let found = format!("{} with modules_to_save", other.config.name());
            return Err(Error::config("adapters", found, "copies of the model's tensors in the first only"));
        }
        if let Some(alone) = all.iter().find(|one| one.trained.tuner.as_adapter().is_none()) {
            let expected = "adapters, which compose: this is a network beside the model";
            return Err(Error::config("adapters", alone.config.name(), expected));
        }
        let config = AnyMethod::composed(all.iter().map(|one| one.config.clone()).collect());
        // Parts that are several themselves stand beside the others, as in the configuration.
        let parts = all.iter().flat_map(|one| one.trained.tuner.each());
        let tuner = AnyTuner::new(Many::new(parts.map(copied).collect())?);
        let Self { model, base, trained, labels, threads, .. } = first;
        let trained = Trained::new(tuner, trained.head.clone())?.with_copies(trained.copies.clone())?;
        let (base, labels, counts) = (base.clone(), labels.clone(), counts(&trained));
        Ok(Tuned { model, base, config, trained, labels, fault: None, counts, threads: *threads })
    }

    /// The number of a task, by its name or that number as a text.
    pub fn task(&self, name: &str) -> Result<usize> {
        let task = match self.labels.tasks.is_empty() {
            false => TaskLabels::place(&self.labels.tasks, name)?,
            true => {
                name.parse().map_err(|_| Error::config("task", name, "a number: the adapter's tasks have no names"))?
            }
        };
        self.trained.check_tasks(&[task]).map(|()| task)
    }

    /// The same with the head and the classes of one task, by its number.
    pub fn of_task(self, task: usize) -> Result<Self> {
        let Tuned { trained: Trained { tuner, head, copies }, labels, .. } = self;
        let trained = Trained { tuner, head: head.of_task(task)?.clone(), copies };
        let classes = labels.of_task(task).to_vec();
        Ok(Tuned { trained, labels: Labels { classes, tasks: vec![], ..labels }, ..self })
    }

    /// The fault as an error, if there is one.
    pub fn checked(self) -> Result<Self> {
        match self.fault {
            Some(fault) => Err(fault),
            None => Ok(self),
        }
    }

    /// Logits of examples.
    pub fn predict(&self, examples: &[Example]) -> Result<Vec<Logits>> {
        predict(&self.base, &self.trained, examples, &Workers::new(self.threads)?)
    }

    /// The class of each text by its name, or as `LABEL_0` where classes have none. A text is cut to the tokens that the model has
    /// positions for.
    ///
    /// # Errors
    /// If the model has no tokenizer, the head is not for classes of texts, or it is for several tasks ([`of_task`](Self::of_task)
    /// takes one), or a text has no tokens.
    #[cfg(feature = "tokenize")]
    pub fn classify(&self, texts: &[impl AsRef<str>]) -> Result<Vec<String>> {
        let head = &self.trained.head;
        if !head.is_of_texts() || head.outputs().is_none_or(|outputs| outputs < 2) {
            return Err(Error::config(
                "head",
                format!("{:?} of {:?} outputs", head.purpose(), head.outputs()),
                "one for classes of texts, of one task",
            ));
        }
        let (tokenizer, room) = (self.model.tokenizer()?, self.config.room(self.base.shape()));
        let example = |(i, text): (usize, &_)| {
            let encoded = tokenizer.encode(AsRef::<str>::as_ref(text), None, room)?;
            if encoded.ids.is_empty() {
                return Err(Error::config("texts", format!("text {i} without tokens"), "at least one token"));
            }
            Ok(Example { ids: encoded.ids, types: Some(encoded.types), ..Default::default() })
        };
        let examples = texts.iter().enumerate().map(example).collect::<Result<Vec<_>>>()?;
        let name = |class: usize| self.labels.classes.get(class).cloned().unwrap_or_else(|| format!("LABEL_{class}"));
        Ok(self.predict(&examples)?.iter().map(|logits| name(argmax(&logits.values))).collect())
    }

    /// Metrics on labelled data.
    pub fn evaluate(&self, data: &Dataset) -> Result<Metrics> {
        measure(&self.base, &self.trained, (&data.examples, data.names()), &Workers::new(self.threads)?)
    }

    /// Trainable elements: of the method, and of the head. They are those before the first step, some of which a method may have
    /// given up on the way.
    pub fn trainable(&self) -> (usize, usize) {
        self.counts
    }

    /// Writes the adapter directory, see [`peft::save`].
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        self.save_with(dir, &[])
    }

    /// Writes the adapter directory with other files, names and texts, in it.
    pub fn save_with(&self, dir: impl AsRef<Path>, others: &[(&str, String)]) -> Result<()> {
        peft::save(dir.as_ref(), &self.config, &self.trained, self.base.shape(), &self.labels, others)
    }

    /// Folds the method into the base, and measures on `probe` how far the logits moved: an error above `max_difference`.
    pub fn merge(&self, probe: &[Example], max_difference: f32) -> Result<Merged<'_>> {
        let tuner = self.trained.tuner.clone().valid();
        let base = self.trained.copies.valid().onto(&self.base);
        let base = self
            .config
            .merged(&tuner, &base)
            .ok_or_else(|| Error::config("merge", self.config.name(), "a method with a weight-space form"))?;
        let head = self.trained.head.clone();
        let workers = Workers::new(self.threads)?;
        let bare = Trained::new(crate::Bare {}, head.clone())?;
        let difference = farthest(&self.predict(probe)?, &predict(&base, &bare, probe, &workers)?);
        if difference.is_nan() || difference > max_difference {
            let detail = format!("the largest logit difference is {difference:e}, allowed {max_difference:e}");
            return Err(Error::Check { what: "merged equals unmerged", detail });
        }
        Ok(Merged { model: self.model, base, head, difference, classes: self.labels.classes.clone() })
    }
}

/// A model with a method folded in.
#[derive(Debug)]
pub struct Merged<'a> {
    model: &'a Pretrained,
    /// The merged base.
    pub base: Base,
    /// The trained head.
    pub head: Head,
    /// The largest difference of a logit on the probe batch.
    pub difference: f32,
    classes: Vec<String>,
}

impl Merged<'_> {
    /// Writes a model directory that transformers loads.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        self.model.save(dir.as_ref(), &self.base, &self.head, &self.classes)
    }
}
