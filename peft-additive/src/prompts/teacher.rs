//! Distillation from finished prompts.

use std::borrow::Cow;

use burn::module::Module;
use burn::tensor::{Bool, Tensor, TensorData};
use peft_core::transfer::send;
use peft_core::{Batch, Error, Head, Label, Readout, Result, Tuner, loss, loss::IGNORED};

use super::prompt_tuning::PromptTuning;

/// A finished prompt with its head.
#[derive(Module, Debug)]
pub struct Teacher {
    pub(super) prompt: PromptTuning,
    pub(super) head: Head,
}

impl Teacher {
    /// The summed loss of sequences of one task by the method that learns it, with `weight` times that of what the teacher knows.
    pub(super) fn loss(
        &self,
        task: usize,
        pupil: &impl Tuner,
        weight: f64,
        readout: &Readout<'_>,
    ) -> Result<Tensor<1>> {
        let Teacher { prompt, head } = self;
        let batch = Cow::Owned(Batch { noise: None, ..readout.batch.clone().into_owned() });
        let taught = Readout { batch, head, ..readout.clone() };
        let (known, own) = (prompt.run(taught.base, &taught.batch)?, readout.run(pupil)?);
        let apart = (known.tokens() - own.tokens()).powi_scalar(2).mean_dim(2).squeeze_dim::<2>(2);
        let apart = (apart.clone() * shares(readout, apart.dims())).sum();
        let (known, own) = (taught.logits(known)?, readout.logits(own)?);
        if known.dims() != own.dims() {
            let outputs = |logits: &Tensor<3>| logits.dims()[2];
            let found = format!("a head with {} outputs, of task {task}", outputs(&known));
            return Err(Error::config("sources", found, format!("{}, as the run's own", outputs(&own))));
        }
        let loss = readout.loss(own.clone())?;
        let differ = match (readout.predictions(known)?, readout.predictions(own)?) {
            (Some(known), Some(own)) => loss::kl(known, own),
            _ => Tensor::zeros([1], &apart.device()),
        };
        Ok(loss + (differ + apart) * weight)
    }
}

/// The share of each row of states `[batch, rows]` in the mean over those of its sequence that are no padding.
fn shares(readout: &Readout<'_>, [size, rows]: [usize; 2]) -> Tensor<2> {
    let device = readout.base.device();
    let padding = match &readout.batch.decoder {
        None => readout.batch.padding.clone(),
        // A decoder's rows behind the end of a text are those that have nothing to predict.
        Some(_) => {
            let of = |label: &Label| match label {
                Label::Words(words) => (0..rows).map(|i| words.get(i).is_none_or(|word| *word == IGNORED)).collect(),
                _ => vec![false; rows],
            };
            let padding: Vec<bool> = readout.labels.iter().flat_map(of).collect();
            Some(send::<2, Bool>(TensorData::new(padding, [size, rows]), device))
        }
    };
    let real = Tensor::ones([size, rows], device);
    let real = padding.into_iter().fold(real, |real: Tensor<2>, padding| real.mask_fill(padding, 0.0));
    real.clone() / real.sum_dim(1).clamp_min(1.0)
}
