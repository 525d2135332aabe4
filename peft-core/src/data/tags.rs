//! Classes of tokens: a row of words with a tag for each.

use std::path::Path;

use super::classes::{Kind, Written, class_place};
use crate::loss::IGNORED;
use crate::{Error, Label, Result};

/// The tags of a row as the file writes them; none where nothing is to be predicted.
pub(super) struct Tagged {
    pub(super) line: usize,
    pub(super) tags: Vec<Option<String>>,
}

impl Tagged {
    /// The label: the class of each word.
    pub(super) fn label(&self, path: &Path, column: &str, names: &[String]) -> Result<Label> {
        let class = |tag: &Option<String>| match tag {
            None => Ok(IGNORED),
            Some(tag) => class_place(names, tag).map(|class| class as i32).ok_or_else(|| {
                let place = format!("line {}, {column}", self.line);
                Error::file(path, place, format!("{tag:?}"), format!("one of the classes {names:?}"))
            }),
        };
        Ok(Label::Tags(self.tags.iter().map(class).collect::<Result<_>>()?))
    }
}

/// The classes that the tags of a file name, as those of other labels: see [`Kind::of`].
pub(super) fn classes(path: &Path, column: &str, rows: &[Tagged]) -> Result<Vec<String>> {
    let written = |row: &Tagged| {
        let line = row.line;
        row.tags.iter().flatten().map(move |tag| Written { line, text: tag.clone() }).collect::<Vec<_>>()
    };
    let all: Vec<Written> = rows.iter().flat_map(written).collect();
    match Kind::of(path, column, &all)? {
        Kind::Classes(names) if !names.is_empty() => Ok(names),
        Kind::Classes(_) => Err(Error::file(path, format!("column {column}"), "no tag", "a tag for some token")),
        _ => Err(Error::file(path, format!("column {column}"), "values", "names of classes, or whole numbers")),
    }
}

/// The class of each token: that of its word for the first token of a word, none for its others and for special tokens.
#[cfg(feature = "tokenize")]
pub(super) fn spread(words: &[Option<usize>], classes: &[i32]) -> Label {
    let class = |i: usize| match words[i] {
        Some(word) if i == 0 || words[i - 1] != Some(word) => classes.get(word).copied().unwrap_or(IGNORED),
        _ => IGNORED,
    };
    Label::Tags((0..words.len()).map(class).collect())
}
