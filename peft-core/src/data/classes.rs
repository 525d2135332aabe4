use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::Path;

use crate::{Error, Label, Result};

/// The most classes a file may name; integer labels are below it.
const MAX_CLASSES: usize = 1000;

/// So many classes may each have a single row.
const MANY_CLASSES: usize = 20;

/// All finite numbers.
pub(super) const FINITE: RangeInclusive<f32> = f32::MIN..=f32::MAX;

/// The place of a class: of exactly this name, else of the only one that differs in the case of letters alone.
pub fn class_place(names: &[impl AsRef<str>], name: &str) -> Option<usize> {
    let exact = names.iter().position(|other| other.as_ref() == name);
    exact.or_else(|| {
        let mut alike = (0..names.len()).filter(|i| names[*i].as_ref().to_lowercase() == name.to_lowercase());
        alike.next().filter(|_| alike.next().is_none())
    })
}

/// What the labels of a file are.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    /// The file has none.
    Unlabelled,
    /// Names of classes; a label's class is the place of its name.
    Classes(Vec<String>),
    /// Numbers from one to another.
    Values(RangeInclusive<f32>),
    /// A word for each token.
    Words,
    /// Classes of tokens of these names.
    Tags(Vec<String>),
    /// Parts of the text that answer a question.
    Answers,
}

/// A label as it stands in the file.
pub(super) struct Written {
    pub(super) line: usize,
    pub(super) text: String,
}

impl Kind {
    /// All integers: the classes 0 to the largest. All numbers: values. No numbers: the distinct texts in sorted order.
    pub(super) fn of(path: &Path, column: &str, labels: &[Written]) -> Result<Self> {
        if labels.iter().all(|label| label.text.parse::<i64>().is_ok()) {
            let classes = labels.iter().map(|label| class(path, column, label)).collect::<Result<Vec<_>>>()?;
            let count = classes.into_iter().max().map_or(0, |largest| largest + 1);
            return Ok(Kind::Classes((0..count).map(|class| class.to_string()).collect()));
        }
        if labels.iter().all(|label| label.text.parse::<f32>().is_ok()) {
            return Ok(Kind::Values(FINITE));
        }
        // A number is no name of a class: where there are both, the fewer of them are at fault.
        let (numbers, texts): (Vec<&Written>, Vec<&Written>) =
            labels.iter().partition(|label| label.text.parse::<f32>().is_ok_and(f32::is_finite));
        if let (Some(number), Some(text)) = (numbers.first(), texts.first()) {
            let (odd, expected) = match numbers.len() < texts.len() {
                true => (number, format!("the name of a class, as {:?} in line {}", text.text, text.line)),
                false => (text, format!("a number, as {} in line {}", number.text, number.line)),
            };
            return Err(Error::file(path, format!("line {}, {column}", odd.line), format!("{:?}", odd.text), expected));
        }
        let names: BTreeSet<&str> = labels.iter().map(|label| label.text.as_str()).collect();
        // A column of texts, taken for that of the labels.
        let too_many = names.len() > MANY_CLASSES && 2 * names.len() > labels.len();
        if names.len() > MAX_CLASSES || too_many {
            let expected = format!(
                "at most {MAX_CLASSES} classes, of more than {MANY_CLASSES} each twice on average, or only numbers"
            );
            return Err(Error::file(
                path,
                format!("column {column}"),
                format!("{} distinct texts in {} rows", names.len(), labels.len()),
                expected,
            ));
        }
        Ok(Kind::Classes(names.into_iter().map(str::to_string).collect()))
    }

    pub(super) fn label(&self, path: &Path, column: &str, label: &Written) -> Result<Option<Label>> {
        let Written { line, text } = label;
        let fail =
            |expected: String| Err(Error::file(path, format!("line {line}, {column}"), format!("{text:?}"), expected));
        match self {
            Kind::Unlabelled => Ok(None),
            Kind::Words => fail("an array of words".to_string()),
            Kind::Tags(_) => fail("an array of tags".to_string()),
            Kind::Answers => fail("answers, an object".to_string()),
            Kind::Classes(names) => match class_place(names, text) {
                Some(class) => Ok(Some(Label::Class(class))),
                None => fail(format!("one of the classes {names:?}")),
            },
            Kind::Values(range) => match text.parse::<f32>() {
                Ok(value) if range.contains(&value) => Ok(Some(Label::Value(value))),
                _ if *range == FINITE => fail("a finite number".to_string()),
                _ => fail(format!("a number from {} to {}", range.start(), range.end())),
            },
        }
    }
}

fn class(path: &Path, column: &str, label: &Written) -> Result<usize> {
    let class = label.text.parse::<usize>().ok().filter(|class| *class < MAX_CLASSES);
    class.ok_or_else(|| {
        let expected = format!("a class from 0 to {}; write a value with a decimal point", MAX_CLASSES - 1);
        Error::file(path, format!("line {}, {column}", label.line), &label.text, expected)
    })
}
