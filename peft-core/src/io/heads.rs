//! Which head an adapter or a model has: one rule.
//!
//! **What it is for** ([`Purpose`]), the first that is said of
//! 1. the adapter's `task_type`;
//! 2. the class that PEFT notes in `auto_mapping` where there is no task type;
//! 3. the head that the adapter's file holds whole. BERT's `classifier` may be for texts or for tokens: what the model's class says,
//!    else for texts;
//! 4. the model's class, the first of `architectures` in its `config.json`;
//! 5. the head in the model's checkpoint, in the order of [`Purpose::ALL`];
//! 6. none of them: states.
//!
//! A class or task type that is not computed here for the model's family (multiple choice, T5 with a head for classes, LLaMA and T5 for
//! answers) is refused where it decides, by its name. So a model of such a class can be trained and used with an adapter that says
//! what it is for.
//!
//! **Its tensors**, by the names that transformers' class for that purpose has:
//! 1. those of the adapter's file, if it holds any of them, and then all; where `modules_to_save` names parts of a head, these, in the
//!    model's own;
//! 2. the model's own, whatever its class: tensors of other heads beside them are passed over, as in transformers.
//!
//! Where both lack them, transformers would draw them at random; that is an error, which names task and tensor. So is an empty tensor.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Pretrained;
use super::classes::{first_tensor, of_class, said};
use super::config::Settings;
use super::labels::{Labels, head_key};
use super::sites;
use super::tensors::Taker;
use crate::adapterhub::HubKey;
use crate::view::tensors;
use crate::warning::{listed, warn};
use crate::{Error, Head, LanguageModel, Pattern, Purpose, Result};

/// What an adapter's settings say of its head.
pub(super) struct Told {
    path: PathBuf,
    task: Option<String>,
    class: Option<String>,
    /// The modules of a head among `modules_to_save`.
    modules: Vec<String>,
    /// What is saved whole.
    saved: Vec<Pattern>,
}

impl Told {
    /// What they say.
    pub(super) fn of(settings: &Settings) -> Result<Self> {
        let Settings { path, fields, .. } = settings;
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_string);
        let task = match fields.get("task_type") {
            None | Some(Value::Null) => None,
            Some(Value::String(task)) => Some(task.clone()),
            Some(other) => return Err(Error::file(path, "task_type", other, "a text or null")),
        };
        let class = text(fields.get("auto_mapping").and_then(|told| told.get("base_model_class")));
        let mut modules = settings.modules_to_save()?;
        modules.retain(|name| Head::MODULES.contains(&name.as_str()));
        Ok(Told { path: path.clone(), task, class, modules, saved: sites::saved(fields, path)? })
    }

    /// What the adapter is for, see the rule above.
    fn purpose(&self, file: &Taker, key: &impl Fn(&str) -> HubKey, model: &Pretrained) -> Result<Purpose> {
        let architecture = model.base.shape().architecture;
        if let Some(task) = &self.task {
            return Purpose::of_task(task, architecture).ok_or_else(|| {
                let tasks = Purpose::tasks(architecture);
                let expected = format!("a task that is computed for {}: {tasks}, or null", architecture.family().name);
                Error::file(&self.path, "task_type", task, expected)
            });
        }
        if let Some(class) = &self.class
            && let Some(purpose) = of_class(class, architecture, &self.path, "auto_mapping")?
        {
            return Ok(purpose);
        }
        let own = model.purpose()?;
        let held = |purpose: Purpose| file.holds(purpose, key, &model.base);
        let Some(most) = Purpose::ALL.into_iter().filter_map(held).max() else { return Ok(own) };
        let mut saved = Purpose::ALL.into_iter().filter(|purpose| held(*purpose) == Some(most)).peekable();
        let first = saved.peek().copied();
        Ok(saved.find(|purpose| *purpose == own).or(first).unwrap_or(own))
    }

    /// The model's own head, if a part of it is in the file and no other was to be saved.
    fn parted(&self, file: &Taker, key: &impl Fn(&str) -> HubKey, own: Option<&Head>) -> Result<Option<Head>> {
        let names: Vec<String> = own.iter().flat_map(|own| tensors(*own)).map(|(name, _)| key(&name).name).collect();
        let (held, absent): (Vec<String>, Vec<String>) =
            names.into_iter().partition(|name| file.file.shape(name).is_some());
        for name in &absent {
            let module = name.strip_prefix("base_model.model.").and_then(|name| name.rsplit_once('.'));
            match module {
                Some((module, _)) if !sites::matches(&self.saved, module)? => {}
                // It is missed, or no name of PEFT's.
                _ => return Ok(None),
            }
        }
        Ok(own.filter(|_| !held.is_empty() && !absent.is_empty()).cloned())
    }

    /// The head, see the rule above.
    pub(super) fn head(&self, file: &mut Taker, key: &impl Fn(&str) -> HubKey, model: &Pretrained) -> Result<Head> {
        let purpose = self.purpose(file, key, model)?;
        // A model without a table for words has none for an adapter either.
        let words = purpose == Purpose::Words && model.base.shape().pre_norm();
        let saved = match self.parted(file, key, model.head_for(purpose))? {
            _ if words => None,
            Some(own) => Some(file.partly(own, key)?),
            None => file.head(purpose, key, &model.base)?,
        };
        let is_saved = saved.is_some();
        if let Some(head) = saved.or_else(|| model.head_for(purpose).cloned()) {
            if !is_saved && !words && purpose != Purpose::States && !self.modules.is_empty() {
                let what = format!(
                    "lists {}: the file holds none of it, so the head is the model's own",
                    listed(&self.modules)
                );
                warn(&self.path, "modules_to_save", what);
            }
            return Ok(head);
        }
        // A class that is refused is the reason, if it is one.
        model.purpose().and_then(|_| {
            let architecture = model.base.shape().architecture;
            let what = self.task.as_deref().or(purpose.task(architecture)).unwrap_or_default();
            let place = model.dir.clone().unwrap_or_else(|| self.path.with_file_name(""));
            let expected = format!(
                "the head of {} for {what}, in the adapter's file or in the model: it would be drawn at random",
                purpose.class(architecture).unwrap_or_default()
            );
            Err(Error::file(place, first_tensor(purpose, architecture), "no such tensor", expected))
        })
    }
}

impl Pretrained {
    /// What the model is for: what its class says, else its head.
    pub fn purpose(&self) -> Result<Purpose> {
        let path = self.dir.as_deref().unwrap_or(Path::new("")).join("config.json");
        let said = said(&self.config, &path, self.base.shape().architecture)?;
        Ok(said.or_else(|| self.head.as_ref().map(Head::purpose)).unwrap_or(Purpose::States))
    }

    /// The head for this purpose in the checkpoint, if there is one.
    pub fn head_for(&self, purpose: Purpose) -> Option<&Head> {
        self.head.iter().chain(&self.others).find(|head| head.purpose() == purpose)
    }

    /// The head in the checkpoint, which a command without an adapter uses.
    pub fn own_head(&self) -> Result<Head> {
        let architecture = self.base.shape().architecture;
        // A class that is refused is the reason, if it is one.
        let purpose = self.purpose()?;
        self.head.clone().ok_or_else(|| {
            let place = match &self.dir {
                Some(dir) => dir.display().to_string(),
                None => "the shape's random weights".to_string(),
            };
            let purpose = if purpose == Purpose::States { Purpose::Texts } else { purpose };
            let name = first_tensor(purpose, architecture);
            Error::file(place, name, "no head", "a head in the checkpoint, or an adapter with one")
        })
    }

    /// The names of so many classes: those in `config.json`, if it names as many, else as in transformers `LABEL_0`, `LABEL_1` and so
    /// on; empty for a value.
    pub fn class_names(&self, outputs: usize) -> Vec<String> {
        let names = self.config.get("id2label").filter(|names| names.as_object().is_some_and(|n| n.len() == outputs));
        let name = |i: usize| names?.get(i.to_string())?.as_str().map(str::to_string);
        let count = if outputs > 1 { outputs } else { 0 };
        (0..count).map(|i| name(i).unwrap_or_else(|| format!("LABEL_{i}"))).collect()
    }

    /// The names that an adapter brings, else the model's: PEFT's files name no classes.
    pub fn name_classes(&self, labels: Labels, head: &Head) -> Labels {
        match head.outputs() {
            Some(outputs) if labels.classes.is_empty() => Labels { classes: self.class_names(outputs), ..labels },
            _ => labels,
        }
    }

    /// The heads in a checkpoint: that which the class says (or, if it says nothing, the first that is there), and the others.
    pub(super) fn heads(
        taker: &mut Taker,
        base: &crate::Base,
        said: Result<Option<Purpose>>,
        words: bool,
    ) -> Result<(Option<Head>, Vec<Head>)> {
        let shape = base.shape().clone();
        let key = |name: &str| head_key("", name, &shape);
        let (mut own, mut others) = (None, vec![]);
        for purpose in Purpose::ALL {
            let wanted = matches!(said, Ok(Some(said)) if said == purpose);
            let head = match (purpose, taker.head(purpose, key, base)) {
                // A head of multiple choice looks like one for values.
                (Purpose::Texts | Purpose::Tokens, _) if said.is_err() => None,
                (Purpose::Words, _) if shape.pre_norm() => words.then_some(Head::LanguageModel(LanguageModel {})),
                (_, Ok(head)) => head,
                (_, Err(error)) if wanted => return Err(error),
                // Left over from another task, and incomplete.
                (_, Err(_)) => None,
            };
            // States are what is left, if a class does not say so.
            let first = matches!(said, Ok(None)) && own.is_none();
            match head {
                Some(head) if wanted || first => own = Some(head),
                Some(head) => others.push(head),
                None => {}
            }
        }
        Ok((own, others))
    }
}
