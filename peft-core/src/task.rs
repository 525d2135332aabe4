//! The names of one of several tasks.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// One of several tasks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskLabels {
    /// Its name.
    pub name: String,
    /// The names of its classes, in order; empty for values.
    pub classes: Vec<String>,
}

impl TaskLabels {
    /// The number of a task by its name, or by this number as a text.
    ///
    /// # Errors
    /// If it is none of them.
    pub fn place(tasks: &[Self], name: &str) -> Result<usize> {
        let named = tasks.iter().position(|task| task.name == name);
        let number = || name.parse().ok().filter(|number| *number < tasks.len());
        named.or_else(number).ok_or_else(|| Error::config("task", name, Self::listed(tasks)))
    }

    /// What may stand for a task.
    pub fn listed(tasks: &[Self]) -> String {
        format!("one of {}", tasks.iter().map(|task| task.name.as_str()).collect::<Vec<_>>().join(", "))
    }
}
