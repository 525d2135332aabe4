//! Task losses, summed over samples: the trainer divides by the size of the whole batch.

use burn::tensor::{Int, Tensor, TensorData, activation};

use crate::{Error, Label, Result};

/// The summed loss of logits `[batch, 1, outputs]`: cross-entropy for classes, squared error for values (one output).
pub fn task_loss(logits: Tensor<3>, labels: &[Label]) -> Result<Tensor<1>> {
    let [batch, _, outputs] = logits.dims();
    let logits = logits.reshape([batch, outputs]);
    let device = logits.device().inner();
    let class = |label: &Label| match label {
        Label::Class(class) if *class < outputs => Ok(*class as i32),
        other => Err(Error::config("label", format!("{other:?}"), format!("a class from 0 to {}", outputs - 1))),
    };
    let value = |label: &Label| match label {
        Label::Value(value) => Ok(*value),
        other => Err(Error::config("label", format!("{other:?}"), "a number, as the first label of the batch")),
    };
    match labels.first() {
        Some(Label::Class(_)) => {
            let classes = labels.iter().map(class).collect::<Result<Vec<_>>>()?;
            let classes = Tensor::<2, Int>::from_data(TensorData::new(classes, [batch, 1]), &device);
            Ok(activation::log_softmax(logits, 1).gather(1, classes).sum().neg())
        }
        Some(Label::Value(_)) if outputs == 1 => {
            let values = labels.iter().map(value).collect::<Result<Vec<_>>>()?;
            let values = Tensor::<2>::from_data(TensorData::new(values, [batch, 1]), &device);
            Ok((logits - values).powi_scalar(2).sum())
        }
        Some(Label::Value(_)) => Err(Error::config("outputs", outputs, "1 for labels that are numbers")),
        None => Err(Error::config("labels", "none", "a label for each sequence")),
    }
}
