//! Classes and values as texts, for models that write.

use burn::module::Module;
use serde::{Deserialize, Serialize};

use crate::{Error, Label, Result};

/// Texts that stand for classes, in their order, or for values (Raffel et al., 2020, arXiv:1910.10683, section 2.4). An example's
/// label is the one whose text is the likeliest. Nothing of it is trained.
#[derive(Module, Debug)]
pub struct Verbalizer {
    #[module(skip)]
    texts: Vec<Text>,
}

/// A text, and what it stands for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Text {
    /// Token ids, with the one that ends a text.
    pub ids: Vec<u32>,
    /// The value; for a class none.
    pub value: Option<f32>,
}

impl Verbalizer {
    /// At least two texts, all for classes or all for values.
    pub fn new(texts: Vec<Text>) -> Result<Self> {
        let wrong = |found: String, expected: &str| Err(Error::config("texts of labels", found, expected));
        if texts.len() < 2 || texts.iter().any(|text| text.ids.is_empty()) {
            return wrong(format!("{} of them, or an empty one", texts.len()), "at least two, each with a token");
        }
        if let Some(i) = (1..texts.len()).find(|i| texts[..*i].iter().any(|text| text.ids == texts[*i].ids)) {
            return wrong(format!("{:?} twice", texts[i].ids), "texts that differ in the model's tokens");
        }
        let values = texts.iter().filter_map(|text| text.value).filter(|value| value.is_finite()).count();
        match values == texts.len() || texts.iter().all(|text| text.value.is_none()) {
            true => Ok(Verbalizer { texts }),
            false => wrong(format!("{values} values for {} texts", texts.len()), "a value for each, or for none"),
        }
    }

    /// The texts.
    pub fn texts(&self) -> &[Text] {
        &self.texts
    }

    /// The number of outputs of a head that does the same: the classes, or 1 for values.
    pub fn outputs(&self) -> usize {
        if self.values().is_some() { 1 } else { self.texts.len() }
    }

    /// What the texts stand for, if these are values.
    pub fn values(&self) -> Option<Vec<f32>> {
        self.texts.iter().map(|text| text.value).collect()
    }

    /// The text of a label: that of the class, or of the nearest value.
    pub(crate) fn words(&self, label: &Label) -> Result<Label> {
        let distance = |text: &&Text, value: f32| (text.value.unwrap_or_default() - value).abs();
        let text = match (label, self.values().is_some()) {
            (Label::Class(class), false) => self.texts.get(*class),
            (Label::Value(value), true) => {
                self.texts.iter().min_by(|a, b| distance(a, *value).total_cmp(&distance(b, *value)))
            }
            _ => None,
        };
        let expected = || match self.values() {
            Some(_) => "a value".to_string(),
            None => format!("a class from 0 to {}", self.texts.len() - 1),
        };
        text.map(Text::words).ok_or_else(|| Error::config("label", format!("{label:?}"), expected()))
    }
}

impl Text {
    pub(crate) fn words(&self) -> Label {
        Label::Words(self.ids.iter().map(|id| *id as i32).collect())
    }
}
