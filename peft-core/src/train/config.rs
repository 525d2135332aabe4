//! The settings of a run, in the names of transformers' `TrainingArguments`.

use serde::{Deserialize, Serialize};

use super::{Optim, Pages, Paging};
use crate::{Error, Result};

/// The most sequences of a step that may be drawn more than once.
const MAX_DRAWN: usize = 1 << 20;

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
#[serde(into = "&'static str", try_from = "String")]
pub enum Rule {
    /// AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101).
    #[default]
    AdamW,
    /// The same, whose states are in a file as far as memory is to hold no more of them, see [`TrainConfig::paging`].
    PagedAdamW,
    /// Adafactor (Shazeer and Stern, 2018, arXiv:1804.04235) with the learning rate as given: neither relative steps nor
    /// scaling by the parameter, as transformers' `Trainer` uses it.
    Adafactor,
    /// One of another crate.
    Other(OtherRule),
}

/// A rule of another crate.
#[derive(Clone, Copy, Debug)]
pub struct OtherRule {
    /// Its name.
    pub name: &'static str,
    /// Builds it, by the settings of a run, this weight decay, and pages for states that may lie in a file.
    pub build: fn(&TrainConfig, f64, &Pages) -> Optim,
}

impl PartialEq for OtherRule {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for OtherRule {}

impl Rule {
    const OWN: [Rule; 3] = [Rule::AdamW, Rule::PagedAdamW, Rule::Adafactor];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Rule::AdamW => "adamw_torch",
            Rule::PagedAdamW => "paged_adamw_32bit",
            Rule::Adafactor => "adafactor",
            Rule::Other(other) => other.name,
        }
    }
}

impl From<Rule> for &'static str {
    fn from(rule: Rule) -> Self {
        rule.name()
    }
}

impl TryFrom<String> for Rule {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        let known = || Rule::OWN.map(Rule::name).join(", ");
        Rule::OWN.into_iter().find(|rule| rule.name() == name).ok_or_else(|| Error::config("optim", &name, known()))
    }
}

/// How long a run is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Length {
    /// This many optimizer steps.
    Steps(usize),
    /// This many times through the data, or a fraction of one; a part of a step counts as one, as in transformers.
    Epochs(f64),
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
    /// Where states of a paged rule lie for which memory has no room. No bit of the result depends on it.
    #[serde(skip)]
    pub paging: Paging,
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
    /// Draw each batch from one task, task i of n_i examples with a probability proportional to `n_i^(1 / task_temperature)`, its
    /// examples at random with replacement (Karimi Mahabadi et al., 2021, arXiv:2106.04489; 10 in their code). If absent, tasks
    /// mix in a batch as in the data.
    pub task_temperature: Option<f64>,
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
    /// Whether backward computes each layer again instead of keeping all of its forward: more work for less memory. The gradients are
    /// the same up to the order of some sums.
    pub gradient_checkpointing: bool,
    /// Dropout probability of the base and head; the model's own if absent.
    pub dropout: Option<f64>,
    /// Tokens to which texts are cut.
    pub max_length: usize,
}

impl Default for TrainConfig {
    fn default() -> Self {
        TrainConfig {
            learning_rate: 1e-3,
            length: Length::Epochs(3.0),
            batch_size: 32,
            gradient_accumulation_steps: 1,
            optim: Rule::AdamW,
            paging: Paging::default(),
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
            task_temperature: None,
            eval_steps: None,
            load_best_model_at_end: false,
            metric_for_best_model: "loss".into(),
            early_stopping_patience: None,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            micro_rows: 256,
            gradient_checkpointing: false,
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
        TrainConfig { length: Length::Epochs(epochs as f64), ..self }
    }

    /// This many steps.
    pub fn with_steps(self, steps: usize) -> Self {
        TrainConfig { length: Length::Steps(steps), ..self }
    }

    /// This many sequences in a step.
    pub fn with_batch_size(self, batch_size: usize) -> Self {
        TrainConfig { batch_size, ..self }
    }

    /// With batches of one task each, drawn with this temperature.
    pub fn with_task_temperature(self, temperature: f64) -> Self {
        TrainConfig { task_temperature: Some(temperature), ..self }
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
            Length::Epochs(n) if n > 0.0 && n <= 1e9 => {}
            Length::Epochs(n) => return Err(Error::config("epochs", n, "a number above 0, at most 1000000000")),
        }
        count("batch_size", self.batch_size)?;
        count("gradient_accumulation_steps", self.gradient_accumulation_steps)?;
        count("eval_steps", self.eval_steps.unwrap_or(1))?;
        count("early_stopping_patience", self.early_stopping_patience.unwrap_or(1))?;
        check_threads("threads", self.threads)?;
        count("micro_rows", self.micro_rows)?;
        count("max_length", self.max_length)?;
        between("learning_rate", self.learning_rate, 0.0, 1e6)?;
        between("weight_decay", self.weight_decay, 0.0, 1e6)?;
        between("adam_beta1", self.adam_beta1, 0.0, 1.0)?;
        between("adam_beta2", self.adam_beta2, 0.0, 1.0)?;
        between("adam_epsilon", self.adam_epsilon, 0.0, 1.0)?;
        between("max_grad_norm", self.max_grad_norm, 0.0, 1e12)?;
        between("dropout", self.dropout.unwrap_or(0.0), 0.0, 1.0)?;
        // Otherwise a step takes at most what there is.
        if (!self.shuffle || self.task_temperature.is_some()) && self.sequences() > MAX_DRAWN {
            let found = format!("{} x {}", self.batch_size, self.gradient_accumulation_steps);
            let expected = format!("at most {MAX_DRAWN} sequences in a step");
            return Err(Error::config("batch_size, gradient_accumulation_steps", found, expected));
        }
        let Some(temperature) = self.task_temperature else { return Ok(()) };
        if !(temperature.is_finite() && temperature > 0.0) {
            return Err(Error::config("task_temperature", temperature, "a finite number above 0"));
        }
        match (self.shuffle, self.group_by_length) {
            (false, _) => Err(Error::config("shuffle", false, "true with task_temperature, which draws the examples")),
            (_, true) => Err(Error::config("group_by_length", true, "false with task_temperature")),
            (true, false) => Ok(()),
        }
    }

    /// The number of optimizer steps over this many samples.
    pub fn steps(&self, samples: usize) -> usize {
        match self.length {
            Length::Steps(steps) => steps,
            Length::Epochs(epochs) => (self.epoch(samples) as f64 * epochs).ceil() as usize,
        }
    }

    /// The number of optimizer steps of one epoch.
    pub fn epoch(&self, samples: usize) -> usize {
        samples.div_ceil(self.sequences())
    }

    /// Sequences in a step.
    pub(super) fn sequences(&self) -> usize {
        self.batch_size.saturating_mul(self.gradient_accumulation_steps)
    }

    /// The learning rate of a step (from 0) of `total`.
    pub(super) fn rate(&self, step: usize, total: usize) -> f64 {
        self.learning_rate * self.lr_scheduler_type.factor(step, self.warmup_steps, total)
    }

    /// The factor that scales a gradient of this norm down to the largest allowed, as `clip_grad_norm_` of torch; 1 for a shorter one.
    pub fn clip(&self, norm: f64) -> f64 {
        if self.max_grad_norm == 0.0 { 1.0 } else { (self.max_grad_norm / (norm + 1e-6)).min(1.0) }
    }
}

/// Refuses more threads than any machine has, each of which takes memory.
pub fn check_threads(key: &str, threads: usize) -> Result<()> {
    match threads {
        1..=1024 => Ok(()),
        _ => Err(Error::config(key, threads, "1 to 1024")),
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
    fn impossible_settings_are_named() {
        let good = TrainConfig::default();
        for (bad, key) in [
            (good.clone().with_batch_size(0), "batch_size"),
            (good.clone().with_steps(0), "steps"),
            (TrainConfig::new(f64::NAN), "learning_rate"),
            (TrainConfig::new(-1.0), "learning_rate"),
            (TrainConfig { dropout: Some(1.0), ..good.clone() }, "dropout"),
            (TrainConfig { adam_beta2: 1.0, ..good.clone() }, "adam_beta2"),
            (TrainConfig { max_grad_norm: -1.0, ..good.clone() }, "max_grad_norm"),
            (good.clone().with_task_temperature(0.0), "task_temperature"),
            (good.clone().with_task_temperature(-1.0), "task_temperature"),
            (good.clone().with_task_temperature(f64::NAN), "task_temperature"),
            (good.clone().with_task_temperature(f64::INFINITY), "task_temperature"),
            (TrainConfig { shuffle: false, ..good.clone().with_task_temperature(1.0) }, "shuffle"),
            (TrainConfig { group_by_length: true, ..good.with_task_temperature(1.0) }, "group_by_length"),
        ] {
            assert!(bad.check().unwrap_err().to_string().contains(key), "{key}");
        }
    }
}
