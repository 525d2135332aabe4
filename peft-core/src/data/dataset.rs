use super::Labelled;
use crate::io::Pretrained;
use crate::{Error, Example, Label, Result};

/// Labelled examples in the tokens of one model.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// The examples.
    pub examples: Vec<Example>,
    /// The names of the classes, in order; empty for values.
    pub classes: Vec<String>,
}

impl Dataset {
    /// The same data with its classes numbered as in `names`, those of a head. `None` if a class is not among them.
    /// Classes that the data itself writes as numbers are taken as they are.
    pub fn with_classes(mut self, names: &[String]) -> Option<Self> {
        if self.classes.is_empty() {
            return Some(self);
        }
        let numbers = self.classes.iter().enumerate().all(|(i, name)| *name == i.to_string());
        let place = |name: &String| names.iter().position(|other| other == name);
        let places: Vec<usize> = match numbers && self.classes.len() <= names.len() {
            true => (0..self.classes.len()).collect(),
            false => self.classes.iter().map(place).collect::<Option<_>>()?,
        };
        for example in &mut self.examples {
            if let Some(Label::Class(class)) = &mut example.label {
                *class = places[*class];
            }
        }
        self.classes = names.to_vec();
        Some(self)
    }

    /// The number of outputs that a head needs: the classes, or 1 for values; none, if it must be one for words.
    pub fn outputs(&self) -> Result<Option<usize>> {
        match self.examples.first().and_then(|e| e.label.as_ref()) {
            Some(Label::Class(_)) => Ok(Some(self.classes.len().max(2))),
            Some(Label::Value(_)) => Ok(Some(1)),
            Some(Label::Words(_)) => Ok(None),
            None => Err(Error::config("label", "nothing", "a label for every training example")),
        }
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
        Ok(Dataset { examples: examples?, classes: self.classes().to_vec() })
    }

    #[cfg(feature = "tokenize")]
    fn encode(&self, model: &Pretrained, max_length: usize) -> Result<Vec<Example>> {
        if model.dir.is_none() {
            return Err(Error::config("data", "texts", "input_ids: a shape with random weights has no tokenizer"));
        }
        self.tokenize(&model.tokenizer()?, max_length)
    }

    #[cfg(not(feature = "tokenize"))]
    fn encode(&self, _model: &Pretrained, _max_length: usize) -> Result<Vec<Example>> {
        Err(Error::config("data", "texts", "input_ids, or this program built with the feature `tokenize`"))
    }
}
