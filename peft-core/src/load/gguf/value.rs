/// A value of the metadata.
pub(super) enum Value {
    Integer(i128),
    Float(f64),
    Bool(bool),
    Text(String),
    Array(Array),
}

/// Where an array lies, its elements not yet read: the type of the elements, how many there are, the place of the
/// first.
pub(super) struct Array {
    pub(super) kind: u32,
    pub(super) length: usize,
    pub(super) start: usize,
}

impl Value {
    /// What it is, for errors.
    pub(super) fn describe(&self) -> String {
        match self {
            Value::Integer(value) => format!("the integer {value}"),
            Value::Float(value) => format!("the number {value:?}"),
            Value::Bool(value) => format!("{value}"),
            Value::Text(text) => format!("the text {:?}", text.chars().take(60).collect::<String>()),
            Value::Array(array) => format!("an array of {} elements of type {}", array.length, array.kind),
        }
    }
}
