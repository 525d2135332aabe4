//! The settings of a run, in the names of transformers' `TrainingArguments`.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How the learning rate changes over a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Stays after the warm-up.
    Constant,
    /// Falls to 0 after the warm-up.
    #[default]
    Linear,
}

impl Schedule {
    /// The factor on the learning rate at `step` (from 0) of `total`: rises from 0 over `warmup` steps first.
    pub fn factor(self, step: usize, warmup: usize, total: usize) -> f64 {
        if step < warmup {
            return step as f64 / warmup as f64;
        }
        match self {
            Schedule::Constant => 1.0,
            Schedule::Linear => total.saturating_sub(step) as f64 / total.saturating_sub(warmup).max(1) as f64,
        }
    }
}

/// How long a run is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Length {
    /// This many optimizer steps.
    Steps(usize),
    /// This many times through the data.
    Epochs(usize),
}

/// The settings of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// The peak of the learning rate.
    pub learning_rate: f64,
    /// How long.
    pub length: Length,
    /// Sequences in a step.
    pub batch_size: usize,
    /// Decoupled weight decay, on every trainable tensor (transformers' `Trainer` leaves out biases and normalizations).
    pub weight_decay: f64,
    /// AdamW's decay of the first moment.
    pub adam_beta1: f64,
    /// AdamW's decay of the second moment.
    pub adam_beta2: f64,
    /// AdamW's epsilon.
    pub adam_epsilon: f64,
    /// The learning rate over time.
    pub lr_scheduler_type: Schedule,
    /// Steps over which the learning rate rises from 0.
    pub warmup_steps: usize,
    /// Gradients are scaled down to this norm over all tensors; 0 for no clipping.
    pub max_grad_norm: f64,
    /// Decides every random number of the run.
    pub seed: u64,
    /// Whether the order of the samples is drawn anew for each epoch; otherwise batches go round the data in order.
    pub shuffle: bool,
    /// Threads, each with a micro-batch of its own. Changes no bit of the result.
    pub threads: usize,
    /// Rows (tokens and padding) of a micro-batch.
    pub micro_rows: usize,
    /// Dropout probability of the base and head; the model's own if absent.
    pub dropout: Option<f64>,
    /// Tokens to which texts are cut.
    pub max_length: usize,
}

impl Default for TrainConfig {
    fn default() -> Self {
        TrainConfig {
            learning_rate: 1e-3,
            length: Length::Epochs(3),
            batch_size: 32,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            lr_scheduler_type: Schedule::Linear,
            warmup_steps: 0,
            max_grad_norm: 1.0,
            seed: 0,
            shuffle: true,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            micro_rows: 256,
            dropout: None,
            max_length: 128,
        }
    }
}

impl TrainConfig {
    /// Three epochs of AdamW with this learning rate, batches of 32.
    pub fn new(learning_rate: f64) -> Self {
        TrainConfig { learning_rate, ..Default::default() }
    }

    /// This many epochs.
    pub fn with_epochs(self, epochs: usize) -> Self {
        TrainConfig { length: Length::Epochs(epochs), ..self }
    }

    /// This many steps.
    pub fn with_steps(self, steps: usize) -> Self {
        TrainConfig { length: Length::Steps(steps), ..self }
    }

    /// This many sequences in a step.
    pub fn with_batch_size(self, batch_size: usize) -> Self {
        TrainConfig { batch_size, ..self }
    }

    /// With this seed.
    pub fn with_seed(self, seed: u64) -> Self {
        TrainConfig { seed, ..self }
    }

    /// Refuses values that cannot be.
    pub fn check(&self) -> Result<()> {
        // Counts whose products are far from the largest number.
        let count = |key: &str, value: usize| match value {
            1..=1_000_000_000 => Ok(()),
            _ => Err(Error::config(key, value, "1 to 1000000000")),
        };
        let between = |key: &str, value: f64, low: f64, high: f64| {
            if (low..high).contains(&value) {
                Ok(())
            } else {
                Err(Error::config(key, value, format!("a number from {low} to below {high}")))
            }
        };
        match self.length {
            Length::Steps(n) => count("steps", n)?,
            Length::Epochs(n) => count("epochs", n)?,
        }
        count("batch_size", self.batch_size)?;
        count("threads", self.threads)?;
        count("micro_rows", self.micro_rows)?;
        count("max_length", self.max_length)?;
        between("learning_rate", self.learning_rate, 0.0, 1e6)?;
        between("weight_decay", self.weight_decay, 0.0, 1e6)?;
        between("adam_beta1", self.adam_beta1, 0.0, 1.0)?;
        between("adam_beta2", self.adam_beta2, 0.0, 1.0)?;
        between("adam_epsilon", self.adam_epsilon, 0.0, 1.0)?;
        between("max_grad_norm", self.max_grad_norm, 0.0, 1e12)?;
        between("dropout", self.dropout.unwrap_or(0.0), 0.0, 1.0)
    }

    /// The number of optimizer steps over this many samples.
    pub fn steps(&self, samples: usize) -> usize {
        match self.length {
            Length::Steps(steps) => steps,
            Length::Epochs(epochs) => samples.div_ceil(self.batch_size) * epochs,
        }
    }

    /// How many of the first `steps` steps have a learning rate above 0.
    pub(super) fn moving_steps(&self, steps: usize) -> usize {
        let rate = |step| self.learning_rate * self.lr_scheduler_type.factor(step, self.warmup_steps, steps);
        (0..steps).filter(|step| rate(*step) > 0.0).count()
    }

    /// The samples of a step (from 0): a function of the settings and the number of samples alone.
    pub fn samples(&self, step: usize, samples: usize) -> Vec<usize> {
        if !self.shuffle {
            return (0..self.batch_size).map(|i| (step * self.batch_size + i) % samples).collect();
        }
        let per_epoch = samples.div_ceil(self.batch_size);
        let (epoch, first) = (step / per_epoch, step % per_epoch * self.batch_size);
        let order = crate::random::Random::new(self.seed, &format!("order of epoch {epoch}")).permutation(samples);
        order[first..samples.min(first + self.batch_size)].to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_those_of_transformers() {
        // get_linear_schedule_with_warmup(warmup 2, total 6) and get_constant_schedule_with_warmup(2).
        let linear: Vec<f64> = (0..7).map(|step| Schedule::Linear.factor(step, 2, 6)).collect();
        assert_eq!(linear, [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]);
        let constant: Vec<f64> = (0..4).map(|step| Schedule::Constant.factor(step, 2, 6)).collect();
        assert_eq!(constant, [0.0, 0.5, 1.0, 1.0]);
    }

    #[test]
    fn an_epoch_visits_every_sample_once() {
        let config = TrainConfig::new(1e-3).with_batch_size(4);
        let mut seen: Vec<usize> = (0..3).flat_map(|step| config.samples(step, 10)).collect();
        let second: Vec<usize> = (3..6).flat_map(|step| config.samples(step, 10)).collect();
        assert_ne!(seen, second);
        seen.sort();
        assert_eq!(seen, (0..10).collect::<Vec<_>>());
        let in_order = TrainConfig { shuffle: false, ..config };
        assert_eq!(in_order.samples(2, 10), [8, 9, 0, 1]);
    }

    #[test]
    fn impossible_settings_are_named() {
        let good = TrainConfig::default();
        for (bad, key) in [
            (good.clone().with_batch_size(0), "batch_size"),
            (good.clone().with_steps(0), "steps"),
            (TrainConfig::new(f64::NAN), "learning_rate"),
            (TrainConfig::new(-1.0), "learning_rate"),
            (TrainConfig { dropout: Some(1.0), ..good.clone() }, "dropout"),
            (TrainConfig { adam_beta2: 1.0, ..good.clone() }, "adam_beta2"),
            (TrainConfig { max_grad_norm: -1.0, ..good }, "max_grad_norm"),
        ] {
            assert!(bad.check().unwrap_err().to_string().contains(key), "{key}");
        }
    }
}
