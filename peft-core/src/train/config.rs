//! The settings of a run, in the names of transformers' `TrainingArguments`.

use serde::{Deserialize, Serialize};

use crate::random::Random;
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
    /// Falls to 0 as half a cosine wave after the warm-up.
    Cosine,
}

impl Schedule {
    /// The factor on the learning rate at `step` (from 0) of `total`: rises from 0 over `warmup` steps first.
    pub fn factor(self, step: usize, warmup: usize, total: usize) -> f64 {
        if step < warmup {
            return step as f64 / warmup as f64;
        }
        let left = total.saturating_sub(step) as f64 / total.saturating_sub(warmup).max(1) as f64;
        match self {
            Schedule::Constant => 1.0,
            Schedule::Linear => left,
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * (1.0 - left)).cos()),
        }
    }
}

/// The update rule, by the names of transformers' `optim`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rule {
    /// AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101).
    #[default]
    #[serde(rename = "adamw_torch")]
    AdamW,
    /// Adafactor (Shazeer and Stern, 2018, arXiv:1804.04235) with the learning rate as given: neither relative steps nor
    /// scaling by the parameter, as transformers' `Trainer` uses it.
    #[serde(rename = "adafactor")]
    Adafactor,
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
    /// Sequences in a batch.
    pub batch_size: usize,
    /// Batches whose gradients make one step.
    pub gradient_accumulation_steps: usize,
    /// The update rule.
    pub optim: Rule,
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
    /// Whether sequences of like length come into one batch (with `shuffle`).
    pub group_by_length: bool,
    /// Evaluate every so many steps; after each epoch, if absent.
    pub eval_steps: Option<usize>,
    /// Whether the result is the state of the best evaluation instead of the last.
    pub load_best_model_at_end: bool,
    /// What the best is judged by: `loss` (lower is better) or another metric (higher is better).
    pub metric_for_best_model: String,
    /// Stop after so many evaluations without a better one.
    pub early_stopping_patience: Option<usize>,
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
            gradient_accumulation_steps: 1,
            optim: Rule::AdamW,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            lr_scheduler_type: Schedule::Linear,
            warmup_steps: 0,
            max_grad_norm: 1.0,
            seed: 0,
            shuffle: true,
            group_by_length: false,
            eval_steps: None,
            load_best_model_at_end: false,
            metric_for_best_model: "loss".into(),
            early_stopping_patience: None,
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
        count("gradient_accumulation_steps", self.gradient_accumulation_steps)?;
        count("eval_steps", self.eval_steps.unwrap_or(1))?;
        count("early_stopping_patience", self.early_stopping_patience.unwrap_or(1))?;
        if !(1..=1024).contains(&self.threads) {
            return Err(Error::config("threads", self.threads, "1 to 1024"));
        }
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
            Length::Epochs(epochs) => self.epoch(samples) * epochs,
        }
    }

    /// The number of optimizer steps of one epoch.
    pub fn epoch(&self, samples: usize) -> usize {
        samples.div_ceil(self.sequences())
    }

    /// Sequences in a step.
    fn sequences(&self) -> usize {
        self.batch_size.saturating_mul(self.gradient_accumulation_steps)
    }

    /// The learning rate of a step (from 0) of `total`.
    pub(super) fn rate(&self, step: usize, total: usize) -> f64 {
        self.learning_rate * self.lr_scheduler_type.factor(step, self.warmup_steps, total)
    }

    /// How many of the first `done` of `total` steps have a learning rate above 0.
    pub(super) fn moving_steps(&self, done: usize, total: usize) -> usize {
        (0..done).filter(|step| self.rate(*step, total) > 0.0).count()
    }
}

/// Which samples a step takes: a function of the settings, the lengths of the samples and the step alone.
pub(super) struct Order {
    config: TrainConfig,
    lengths: Vec<usize>,
    /// The last epoch that was asked for, and its order.
    epoch: Option<(usize, Vec<usize>)>,
}

impl Order {
    pub(super) fn new(config: &TrainConfig, lengths: Vec<usize>) -> Self {
        Order { config: config.clone(), lengths, epoch: None }
    }

    /// The samples of a step, counted from 0. Without shuffling batches go round the data.
    pub(super) fn samples(&mut self, step: usize) -> Vec<usize> {
        let (count, size) = (self.lengths.len(), self.config.sequences());
        if !self.config.shuffle {
            return (0..size).map(|i| (step * size + i) % count).collect();
        }
        let steps = self.config.epoch(count);
        let (epoch, first) = (step / steps, step % steps * size);
        let order = match self.epoch.take() {
            Some((drawn, order)) if drawn == epoch => order,
            _ => self.draw(epoch),
        };
        let samples = order[first..count.min(first + size)].to_vec();
        self.epoch = Some((epoch, order));
        samples
    }

    /// The order of an epoch. Grouped by length as in transformers: groups of 50 batches (fewer where the data is small),
    /// each sorted from long to short.
    fn draw(&self, epoch: usize) -> Vec<usize> {
        let random = Random::new(self.config.seed, &format!("order of epoch {epoch}"));
        let mut order = random.permutation(self.lengths.len());
        if self.config.group_by_length {
            let batch = self.config.batch_size;
            let batches = (order.len() / batch.saturating_mul(4)).clamp(1, 50);
            for group in order.chunks_mut(batch.saturating_mul(batches)) {
                group.sort_by_key(|sample| std::cmp::Reverse(self.lengths[*sample]));
            }
        }
        order
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
        // get_cosine_schedule_with_warmup(2, 6).
        let cosine: Vec<f64> = (1..7).map(|step| Schedule::Cosine.factor(step, 2, 6)).collect();
        let expected = [0.5, 1.0, 0.8535533905932737, 0.5, 0.14644660940672627, 0.0];
        assert!(cosine.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-15), "{cosine:?}");
    }

    #[test]
    fn an_epoch_visits_every_sample_once() {
        let config = TrainConfig::new(1e-3).with_batch_size(4);
        let mut order = Order::new(&config, vec![1; 10]);
        let mut seen: Vec<usize> = (0..3).flat_map(|step| order.samples(step)).collect();
        let second: Vec<usize> = (3..6).flat_map(|step| order.samples(step)).collect();
        assert_ne!(seen, second);
        // What was drawn before changes nothing.
        assert_eq!(order.samples(1), seen[4..8]);
        seen.sort();
        assert_eq!(seen, (0..10).collect::<Vec<_>>());
        let in_order = TrainConfig { shuffle: false, ..config.clone() };
        assert_eq!(Order::new(&in_order, vec![1; 10]).samples(2), [8, 9, 0, 1]);
        let accumulated = TrainConfig { gradient_accumulation_steps: 2, ..config };
        assert_eq!(Order::new(&accumulated, vec![1; 10]).samples(0), [order.samples(0), order.samples(1)].concat());
        assert_eq!(accumulated.steps(10), 6);
    }

    #[test]
    fn batches_grouped_by_length_are_of_like_length() {
        let config = TrainConfig { group_by_length: true, ..TrainConfig::new(1e-3).with_batch_size(4) };
        let lengths: Vec<usize> = (0..64).map(|i| 1 + i * 7 % 31).collect();
        let spread = |config: &TrainConfig| {
            let mut order = Order::new(config, lengths.clone());
            let batches: Vec<Vec<usize>> = (0..16).map(|step| order.samples(step)).collect();
            let mut all = batches.concat();
            all.sort();
            assert_eq!(all, (0..64).collect::<Vec<_>>());
            let range = |batch: &Vec<usize>| {
                let lengths = batch.iter().map(|i| lengths[*i]);
                lengths.clone().max().unwrap() - lengths.min().unwrap()
            };
            batches.iter().map(range).sum::<usize>()
        };
        let shuffled = TrainConfig { group_by_length: false, ..config.clone() };
        assert!(spread(&config) * 2 < spread(&shuffled));
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
