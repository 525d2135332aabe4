//! Small models pretrained on what is generated, all of their tensors trained.

use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::tensor::{Device, TensorData};
use indicatif::{ProgressBar, ProgressStyle};
use peft_core::files::read_json;
use peft_core::io::Pretrained;
use peft_core::load::Tokenizer;
use peft_core::random::Random;
use peft_core::train::{Checkpoints, Observer, StepReport, TrainConfig, Trainer};
use peft_core::{Adapter, Base, Example, Head, Method, Place, Result, Shape, Slot, Trained};
use peft_partial::FullConfig;

use super::say;
use crate::machine::{digest, program};
use crate::signals;

/// How long, and how fast.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Steps.
    pub steps: usize,
    /// Sequences in a step.
    pub batch_size: usize,
    /// The peak learning rate.
    pub learning_rate: f64,
}

impl Recipe {
    /// The settings of the training, with as many threads.
    pub fn config(&self, threads: usize) -> TrainConfig {
        TrainConfig {
            adam_beta2: 0.98,
            weight_decay: 0.01,
            warmup_steps: self.steps / 20,
            threads,
            ..TrainConfig::new(self.learning_rate).with_steps(self.steps).with_batch_size(self.batch_size)
        }
    }
}

/// The number of tokens of the tokenizer in a directory, and the tokenizer.
pub(super) fn tokenizer(directory: &Path) -> Result<(usize, Tokenizer)> {
    let file = read_json(&directory.join("tokenizer.json"))?;
    let vocab = file["model"]["vocab"].as_object().map_or(0, |words| words.len());
    Ok((vocab, Tokenizer::from_dir(directory, vocab)?))
}

/// Random weights of these standard deviations; biases 0, gains 1.
pub(super) fn start(shape: Shape, device: &Device, std: impl Fn(&Place) -> f64) -> Result<Base> {
    Base::new(shape, device, |place: &Place| {
        let (mut random, std) = (Random::new(0, &place.name), std(place));
        let value = |_| match place.slot {
            Slot::Weight => (random.normal() * std) as f32,
            Slot::Bias => 0.0,
            Slot::Gain => 1.0,
        };
        Ok(TensorData::new((0..place.count()).map(value).collect(), place.file_dims()))
    })
}

/// Where in `made` is what this program makes by these settings: what another makes has another name.
pub(super) fn place(made: &Path, name: &str, settings: &str) -> PathBuf {
    made.join(format!("{name}-{}", digest(&[program().as_bytes(), settings.as_bytes()])))
}

/// Trains a base and its head, with what `beside` does, and writes the model into `output` with the tokenizer of `data`. Stopped, it
/// goes on where it was.
pub(super) fn pretrain<A: Adapter>(
    (base, head, beside): (Base, Head, A),
    config: TrainConfig,
    examples: &[Example],
    (data, output): (&Path, &Path),
) -> Result<()> {
    let trained = Trained::new((beside, FullConfig::default().init(&base, 0)?), head)?;
    let mut bar = Bar::new(config.steps(examples.len()));
    let checkpoints = Checkpoints { dir: output.with_extension("checkpoints"), every: None, resume: true };
    let trainer = Trainer::new(config).with_checkpoints(checkpoints.clone());
    let trained = signals::by_steps(|| trainer.run(&base, trained, examples, None, &mut bar))?;
    let merged = FullConfig::merge(&trained.tuner.1).map_or(base.clone(), |merge| base.merged(merge));
    let (config, dir) = (base.shape().to_config(), Some(data.to_path_buf()));
    let model = Pretrained { head: None, config, dir, ..Pretrained::of(base) };
    model.save(output, &merged, &trained.head, &[])?;
    checkpoints.remove()
}

/// Progress on a terminal, a line now and then elsewhere.
struct Bar {
    bar: ProgressBar,
    started: Instant,
    /// The running mean.
    loss: Option<f64>,
}

impl Bar {
    fn new(steps: usize) -> Self {
        let bar = ProgressBar::new(steps as u64);
        let style = "pretraining {bar:30} {pos}/{len} {msg} {eta} left";
        bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
        Bar { bar, started: Instant::now(), loss: None }
    }
}

impl Observer for Bar {
    fn stops(&self) -> bool {
        signals::caught()
    }

    fn start(&mut self, done: usize, notes: &[String]) -> Result<()> {
        notes.iter().for_each(|note| say(format_args!("pretraining: {note}")));
        if done > 0 {
            say(format_args!("pretraining: taken up after step {done}"));
        }
        Ok(())
    }

    fn step(&mut self, report: &StepReport) -> Result<()> {
        let loss = self.loss.map_or(report.loss, |mean| 0.98 * mean + 0.02 * report.loss);
        self.loss = Some(loss);
        self.bar.set_position(report.step as u64);
        self.bar.set_message(format!("loss {loss:.3},"));
        if self.bar.is_hidden() && (report.step.is_multiple_of(report.total.div_ceil(8)) || report.step == report.total)
        {
            let seconds = self.started.elapsed().as_secs();
            say(format_args!("pretraining: step {} of {}, loss {loss:.3}, {seconds} s", report.step, report.total));
        }
        Ok(())
    }
}
