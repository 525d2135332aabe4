//! What adapter files say beside their method's tensors: labels, and the names of a head.

use serde::{Deserialize, Serialize};

use crate::{Base, Head, Key, Shape, TaskLabels};

/// What a saved adapter tells beside its tensors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Labels {
    /// The name or path of the model it was trained on.
    pub base: String,
    /// The classes, in the order of the logits; empty for regression.
    pub classes: Vec<String>,
    /// The [fingerprint](Base::weights_fingerprint) of the model's tensors as 16 hexadecimal digits; none, where it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// The tasks, if there are several with heads of their own; `classes` is then empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<TaskLabels>,
}

impl Labels {
    /// Of an adapter of this model, which was opened by a name.
    pub fn of(name: &str, base: &Base, classes: Vec<String>) -> Self {
        let fingerprint = Some(format!("{:016x}", base.known_weights_fingerprint()));
        Labels { base: name.to_string(), classes, fingerprint, tasks: vec![] }
    }

    /// The names of the classes of a task, or of all there are.
    pub fn of_task(&self, task: usize) -> &[String] {
        self.tasks.get(task).map_or(&self.classes, |task| &task.classes)
    }
}

/// What an adapter file calls a head's tensor.
pub(crate) fn head_key(prefix: &str, name: &str, shape: &Shape) -> Key {
    let Key { name, transposed } = Head::key(name, shape.architecture);
    Key { name: format!("{prefix}{name}"), transposed }
}
