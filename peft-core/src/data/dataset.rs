use std::borrow::Cow;

use super::Labelled;
use super::classes::class_place;
#[cfg(feature = "tokenize")]
use crate::Text;
use crate::io::Pretrained;
use crate::loss::IGNORED;
use crate::{Error, Example, Label, Purpose, Result, TaskLabels, Verbalizer};

/// How many fifths apart the values may be that a model writes as texts, each a text of its own.
#[cfg(feature = "tokenize")]
const MAX_FIFTHS: i64 = 500;

/// Labelled examples in the tokens of one model.
#[derive(Clone, Debug, Default)]
pub struct Dataset {
    /// The examples.
    pub examples: Vec<Example>,
    /// The names of the classes, in order; empty for values.
    pub classes: Vec<String>,
    /// The tasks, if each has a head and classes of its own, by their numbers in the examples; `classes` is then empty.
    pub tasks: Vec<TaskLabels>,
}

/// The names of classes, and of tasks if there are several.
#[derive(Clone, Copy, Debug, Default)]
pub struct Names<'a> {
    /// See [`Dataset::classes`].
    pub classes: &'a [String],
    /// See [`Dataset::tasks`].
    pub tasks: &'a [TaskLabels],
}

impl Dataset {
    /// Of several tasks with names, each with a head of its own, in this order.
    ///
    /// # Errors
    /// If there is none, a name is empty, has a dot or occurs twice, or the tasks have labels of different kinds.
    pub fn several(parts: Vec<(String, Dataset)>) -> Result<Self> {
        let mut all = Dataset::default();
        let mut first: Option<(String, Purpose)> = None;
        for (task, (name, part)) in parts.into_iter().enumerate() {
            if name.is_empty() || name.contains('.') || all.tasks.iter().any(|other| other.name == name) {
                return Err(Error::config("task", format!("{name:?}"), "a name of its own, without a dot"));
            }
            let purpose = part.purpose()?;
            let (before, kind) = first.get_or_insert_with(|| (name.clone(), purpose));
            if *kind != purpose {
                let expected = format!("labels of the kind that {before} has: {kind:?}");
                return Err(Error::config(format!("task {name}"), format!("{purpose:?}"), expected));
            }
            all.examples.extend(part.examples.into_iter().map(|example| Example { task, ..example }));
            all.tasks.push(TaskLabels { name, classes: part.classes });
        }
        if all.tasks.is_empty() { Err(Error::config("tasks", "none", "at least one")) } else { Ok(all) }
    }

    /// The data of each task, or itself if there are not several.
    pub fn parts(&self) -> Vec<Cow<'_, Dataset>> {
        let of_task = |(i, task): (usize, &TaskLabels)| {
            let examples = self.examples.iter().filter(|example| example.task == i).cloned().collect();
            Cow::Owned(Dataset { examples, classes: task.classes.clone(), tasks: vec![] })
        };
        match self.tasks.is_empty() {
            true => vec![Cow::Borrowed(self)],
            false => self.tasks.iter().enumerate().map(of_task).collect(),
        }
    }

    /// The names of its classes and tasks.
    pub fn names(&self) -> Names<'_> {
        Names { classes: &self.classes, tasks: &self.tasks }
    }

    /// What a model for this data is used for.
    pub fn purpose(&self) -> Result<Purpose> {
        match self.examples.first().and_then(|e| e.label.as_ref()) {
            Some(Label::Class(_) | Label::Value(_)) => Ok(Purpose::Texts),
            Some(Label::Tags(_)) => Ok(Purpose::Tokens),
            Some(Label::Answer(_)) => Ok(Purpose::Answers),
            Some(Label::Words(_)) => Ok(Purpose::Words),
            None => Err(Error::config("label", "nothing", "a label for every training example")),
        }
    }

    /// The same data with its classes numbered as in `names`, those of a head. `None` if a class is not among them, in any case of its
    /// letters. Classes that the data itself writes as numbers are taken as they are.
    pub fn with_classes(mut self, names: &[String]) -> Option<Self> {
        if self.classes.is_empty() {
            return Some(self);
        }
        let numbers = self.classes.iter().enumerate().all(|(i, name)| *name == i.to_string());
        let place = |name: &String| class_place(names, name);
        let places: Vec<usize> = match numbers && self.classes.len() <= names.len() {
            true => (0..self.classes.len()).collect(),
            false => self.classes.iter().map(place).collect::<Option<_>>()?,
        };
        for example in &mut self.examples {
            match &mut example.label {
                Some(Label::Class(class)) => *class = places[*class],
                Some(Label::Tags(tags)) => {
                    let place = |tag: &i32| if *tag == IGNORED { IGNORED } else { places[*tag as usize] as i32 };
                    *tags = tags.iter().map(place).collect();
                }
                _ => {}
            }
        }
        self.classes = names.to_vec();
        Some(self)
    }

    /// The number of outputs that a head needs: the classes, or 1 for values; none, if it must be one for words or answers.
    pub fn outputs(&self) -> Result<Option<usize>> {
        match self.examples.first().and_then(|e| e.label.as_ref()) {
            Some(Label::Class(_)) if self.classes.len() == 1 => {
                Err(Error::config("labels", format!("one class, {:?}", self.classes[0]), "two classes or more"))
            }
            Some(Label::Class(_)) => Ok(Some(self.classes.len().max(2))),
            Some(Label::Value(_)) => Ok(Some(1)),
            Some(Label::Tags(_)) => Ok(Some(self.classes.len().max(2))),
            Some(Label::Words(_) | Label::Answer(_)) => Ok(None),
            None => Err(Error::config("label", "nothing", "a label for every training example")),
        }
    }

    /// The texts that a model which writes is to give for the labels: the names of the classes, or numbers to the nearest fifth, as T5
    /// was trained to (Raffel et al., 2020, arXiv:1910.10683, section 2.4).
    #[cfg(feature = "tokenize")]
    pub fn verbalizer(&self, model: &Pretrained) -> Result<Verbalizer> {
        let values: Vec<f32> = self.examples.iter().filter_map(|example| example.label.as_ref()?.value()).collect();
        let names: Vec<(String, Option<f32>)> = match values.is_empty() {
            true => self.classes.iter().map(|name| (name.clone(), None)).collect(),
            false => {
                let fifth = |value: f32| (value * 5.0).round() as i64;
                let low = values.iter().copied().map(fifth).min().unwrap_or_default();
                let high = values.iter().copied().map(fifth).max().unwrap_or_default();
                if high - low > MAX_FIFTHS {
                    let found = format!("{:.1} to {:.1}", low as f64 / 5.0, high as f64 / 5.0);
                    let expected = format!("values at most {} apart, which T5 writes", MAX_FIFTHS / 5);
                    return Err(Error::config("labels", found, expected));
                }
                (low..=high.max(low + 1)).map(|n| (format!("{:.1}", n as f64 / 5.0), Some(n as f32 / 5.0))).collect()
            }
        };
        let tokenizer = model.tokenizer()?;
        let text = |(name, value): (String, Option<f32>)| {
            Ok(Text { ids: tokenizer.encode(&name, None, usize::MAX)?.ids, value })
        };
        Verbalizer::new(names.into_iter().map(text).collect::<Result<_>>()?)
    }

    /// The texts that a model which writes is to give for the labels need a tokenizer.
    #[cfg(not(feature = "tokenize"))]
    pub fn verbalizer(&self, _model: &Pretrained) -> Result<Verbalizer> {
        Err(Error::config("labels", "classes or values", "words, or this program built with the feature `tokenize`"))
    }
}

impl Labelled {
    /// The rows in the tokens of a model, cut to `max_length` (and to the model's positions). Texts need the feature
    /// `tokenize` and the model's `tokenizer.json`.
    pub fn prepare(&self, model: &Pretrained, max_length: usize) -> Result<Dataset> {
        let shape = model.base.shape();
        let examples = match self.has_tokens() {
            true => self.examples(shape, max_length),
            false => self.with_types_of(shape, self.encode(model, max_length.min(shape.max_length()))?),
        };
        Ok(Dataset { examples: examples?, classes: self.classes().to_vec(), tasks: vec![] })
    }

    #[cfg(feature = "tokenize")]
    fn encode(&self, model: &Pretrained, max_length: usize) -> Result<Vec<Example>> {
        if model.dir.is_none() {
            return Err(Error::config("data", "texts", "input_ids: a shape with random weights has no tokenizer"));
        }
        let tokenizer = model.tokenizer()?;
        match (self.has_chats(), self.has_targets()) {
            (true, _) => self.chats(model.base.shape(), &tokenizer, max_length),
            (false, true) => self.targets(model.base.shape(), &tokenizer, max_length),
            (false, false) => self.tokenize(&tokenizer, max_length),
        }
    }

    #[cfg(not(feature = "tokenize"))]
    fn encode(&self, _model: &Pretrained, _max_length: usize) -> Result<Vec<Example>> {
        Err(Error::config("data", "texts", "input_ids, or this program built with the feature `tokenize`"))
    }
}
