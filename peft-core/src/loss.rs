//! Task losses, summed over what is predicted: the trainer divides by the number of it in the whole batch.

use burn::tensor::{Int, Tensor, TensorData, activation};

use crate::{Error, Label, Result};

/// The word of a [`Label::Words`] that is not predicted, as in torch.
pub const IGNORED: i32 = -100;

/// How many predictions some labels ask for: one each, or one for each word that counts.
pub fn targets<'a>(labels: impl IntoIterator<Item = &'a Label>) -> usize {
    let count = |label: &Label| match label {
        Label::Words(words) => words.iter().filter(|word| **word != IGNORED).count(),
        Label::Class(_) | Label::Value(_) => 1,
    };
    labels.into_iter().map(count).sum()
}

/// The summed loss of logits `[batch, rows, outputs]`: cross-entropy for classes (one row) and words (a row for each token),
/// squared error for values (one row, one output).
pub fn task_loss(logits: Tensor<3>, labels: &[&Label]) -> Result<Tensor<1>> {
    let [batch, rows, outputs] = logits.dims();
    let device = logits.device().inner();
    let wrong = |label: &Label, expected: String| Error::config("label", format!("{label:?}"), expected);
    match labels.first() {
        Some(Label::Class(_)) => {
            let class = |label: &&Label| match label {
                Label::Class(class) if *class < outputs => Ok(*class as i32),
                other => Err(wrong(other, format!("a class from 0 to {}", outputs - 1))),
            };
            let classes = labels.iter().map(class).collect::<Result<Vec<_>>>()?;
            Ok(cross_entropy(logits.reshape([batch, outputs]), classes))
        }
        Some(Label::Value(_)) if outputs == 1 => {
            let value = |label: &&Label| match label {
                Label::Value(value) => Ok(*value),
                other => Err(wrong(other, "a number, as the first label of the batch".into())),
            };
            let values = labels.iter().map(value).collect::<Result<Vec<_>>>()?;
            let values = Tensor::<2>::from_data(TensorData::new(values, [batch, 1]), &device);
            Ok((logits.reshape([batch, 1]) - values).powi_scalar(2).sum())
        }
        Some(Label::Value(_)) => Err(Error::config("outputs", outputs, "1 for labels that are numbers")),
        Some(Label::Words(_)) => {
            let (mut places, mut words) = (Vec::new(), Vec::new());
            for (i, label) in labels.iter().enumerate() {
                let Label::Words(list) = label else { return Err(wrong(label, "words, as the first label".into())) };
                for (row, word) in list.iter().enumerate().filter(|(_, word)| **word != IGNORED) {
                    if row >= rows || !(0..outputs as i32).contains(word) {
                        return Err(wrong(label, format!("a word below {outputs} for each token, or {IGNORED}")));
                    }
                    places.push((i * rows + row) as i32);
                    words.push(*word);
                }
            }
            if words.is_empty() {
                return Ok(logits.sum() * 0.0);
            }
            let places = Tensor::<1, Int>::from_data(TensorData::new(places, [words.len()]), &device);
            Ok(cross_entropy(logits.reshape([batch * rows, outputs]).select(0, places), words))
        }
        None => Err(Error::config("labels", "none", "a label for each sequence")),
    }
}

/// -log softmax(logits) of the given class, summed over the rows.
fn cross_entropy(logits: Tensor<2>, classes: Vec<i32>) -> Tensor<1> {
    let rows = classes.len();
    let classes = Tensor::<2, Int>::from_data(TensorData::new(classes, [rows, 1]), &logits.device().inner());
    activation::log_softmax(logits, 1).gather(1, classes).sum().neg()
}
