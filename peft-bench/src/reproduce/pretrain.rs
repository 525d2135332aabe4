//! A small RoBERTa pretrained on the generated corpus with masked words (Liu et al., 2019, section 3.1), once for each content.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use burn::module::Module;
use burn::tensor::{Device, TensorData};
use indicatif::{ProgressBar, ProgressStyle};
use peft_core::files::{read_json, read_text, write_directory};
use peft_core::io::Pretrained;
use peft_core::load::Tokenizer;
use peft_core::loss::IGNORED;
use peft_core::random::{Noise, Random};
use peft_core::train::{Checkpoints, Observer, Schedule, StepReport, TrainConfig, Trainer};
use peft_core::{
    Adapter, Base, Batch, Example, Head, Hooks, Label, Method, Place, Procedure, Result, Sequence, Shape, Slot, Stack,
    Trained,
};
use peft_partial::FullConfig;

use crate::hermetic;

/// How the model is made.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Its layers.
    pub layers: usize,
    /// Its width.
    pub hidden: usize,
    /// Its attention heads.
    pub heads: usize,
    /// The width of its feed-forward networks.
    pub intermediate: usize,
    /// Steps of pretraining.
    pub steps: usize,
    /// Sequences in a step.
    pub batch_size: usize,
    /// The peak learning rate.
    pub learning_rate: f64,
}

impl Recipe {
    /// The usual one, or one that takes a minute.
    pub fn new(quick: bool) -> Self {
        let recipe = Recipe {
            layers: 3,
            hidden: 96,
            heads: 4,
            intermediate: 192,
            steps: 12_000,
            batch_size: 32,
            learning_rate: 1e-3,
        };
        if quick { Recipe { steps: 4000, ..recipe } } else { recipe }
    }
}

/// The longest sequence, in tokens.
const POSITIONS: usize = 96;
/// At how many positions a sequence may begin in pretraining.
const BEGINNINGS: usize = 11;
/// Ids of the special tokens that the generated tokenizer begins with.
const SPECIAL: usize = 5;
const MASK: u32 = 4;

/// Writes corpus, tasks and the pretrained model into `directory`, unless it is there.
pub fn prepare(directory: &Path, recipe: &Recipe, threads: usize, device: &Device) -> Result<(PathBuf, PathBuf)> {
    let (data, model) = (directory.join("data"), directory.join("model"));
    if !data.exists() {
        write_directory(&data, |data| hermetic::write(data, 0))?;
    }
    if !model.exists() {
        pretrain(&data, &model, recipe, threads, device)?;
    }
    Ok((model, data.join("glue")))
}

fn pretrain(data: &Path, output: &Path, recipe: &Recipe, threads: usize, device: &Device) -> Result<()> {
    let path = data.join("tokenizer.json");
    let vocab = read_json(&path)?["model"]["vocab"].as_object().map_or(0, |words| words.len());
    let tokenizer = Tokenizer::from_dir(data, vocab)?;
    let shape = Shape {
        layers: recipe.layers,
        hidden: recipe.hidden,
        heads: recipe.heads,
        intermediate: recipe.intermediate,
        vocab,
        positions: POSITIONS + 2,
        dropout: 0.0,
        attention_dropout: 0.0,
        classifier_dropout: 0.0,
        ..Shape::named("roberta-base")?
    };
    let corpus = read_text(&data.join("corpus.txt"), 1 << 30)?;
    // Every sequence that is trained on has a mask of its own.
    let mut examples = Vec::new();
    for (i, text) in corpus.lines().cycle().take(recipe.steps * recipe.batch_size).enumerate() {
        let (a, b) = text.split_once('\t').map_or((text, None), |(a, b)| (a, Some(b)));
        examples.push(masked(tokenizer.encode(a, b, POSITIONS - BEGINNINGS + 1)?.ids, i, shape.vocab));
    }
    let base = start(shape, device)?;
    let config = TrainConfig {
        adam_beta2: 0.98,
        weight_decay: 0.01,
        warmup_steps: recipe.steps / 20,
        lr_scheduler_type: Schedule::Linear,
        group_by_length: true,
        threads,
        ..TrainConfig::new(recipe.learning_rate).with_steps(recipe.steps).with_batch_size(recipe.batch_size)
    };
    let full = FullConfig::default().init(&base, 0)?;
    let trained = Trained::new((Anywhere {}, full), Head::masked_lm(&base, 0))?;
    let mut bar = Bar::new(recipe.steps);
    let checkpoints = Checkpoints { dir: output.with_extension("checkpoints"), every: None, resume: true };
    let trainer = Trainer::new(config).with_checkpoints(checkpoints.clone());
    let (trained, base) = trainer.run(&base, trained, &examples, None, &mut bar)?;
    let merged = FullConfig::merge(&trained.tuner.1).map_or(base.clone(), |merge| base.merged(merge));
    let model = Pretrained { config: base.shape().to_config(), base, head: None, dir: Some(data.to_path_buf()) };
    model.save(output, &merged, &trained.head, &[])?;
    checkpoints.remove()
}

/// Begins each piece of a batch at another position. RoBERTa is pretrained on sentences packed to 512 tokens, which hence stand
/// anywhere. Here a sequence is a line, and a model that saw lines at the first position only is lost where a prefix or a prompt
/// moves them, if only by one.
#[derive(Module, Debug)]
struct Anywhere {}

struct Begin(usize);

impl Hooks for Begin {
    fn embed(&self, _stack: Stack, x: Sequence) -> Sequence {
        Sequence { offset: x.offset + self.0, ..x }
    }
}

impl Adapter for Anywhere {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        let begin =
            |noise: &Noise| Random::new(noise.step, &format!("position of {}", noise.samples[0])).below(BEGINNINGS);
        f(&Begin(batch.noise.as_deref().map_or(0, begin)))
    }
}

impl Procedure for Anywhere {}

/// Random weights whose maps keep the size of what they map, for widths far below those that 0.02 is made for.
fn start(shape: Shape, device: &Device) -> Result<Base> {
    let std = (shape.hidden as f64).powf(-0.5);
    Base::new(shape, device, |place: &Place| {
        let mut random = Random::new(0, &place.name);
        let value = |_| match place.slot {
            Slot::Weight => (random.normal() * std) as f32,
            Slot::Bias => 0.0,
            Slot::Gain => 1.0,
        };
        Ok(TensorData::new((0..place.count()).map(value).collect(), place.file_dims()))
    })
}

/// BERT's masking: of the words that are chosen 8 in 10 are masked, one is another word and one stays. Fewer are chosen than
/// BERT's 15 %, since these sentences are short; and always the last, which in a line of two texts says how they are related.
fn masked(ids: Vec<u32>, line: usize, vocab: usize) -> Example {
    let mut random = Random::new(line as u64, "masked words");
    let last = ids.iter().rposition(|id| *id as usize >= SPECIAL);
    let (mut input, mut labels) = (ids.clone(), vec![IGNORED; ids.len()]);
    for place in (0..ids.len()).filter(|i| ids[*i] as usize >= SPECIAL) {
        if Some(place) != last && random.unit() >= 0.06 {
            continue;
        }
        labels[place] = ids[place] as i32;
        match random.below(10) {
            0 => {}
            1 => input[place] = (SPECIAL + random.below(vocab - SPECIAL)) as u32,
            _ => input[place] = MASK,
        }
    }
    Example { ids: input, label: Some(Label::Words(Arc::from(labels))), ..Default::default() }
}

/// Progress on a terminal, a line now and then elsewhere.
pub(super) struct Bar {
    bar: ProgressBar,
    started: Instant,
    loss: f64,
}

impl Bar {
    pub fn new(steps: usize) -> Self {
        let bar = ProgressBar::new(steps as u64);
        let style = "pretraining {bar:30} {pos}/{len} {msg} {eta} left";
        bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
        Bar { bar, started: Instant::now(), loss: 0.0 }
    }
}

impl Observer for Bar {
    fn step(&mut self, report: &StepReport) -> Result<()> {
        self.loss = if report.step == 1 { report.loss } else { 0.98 * self.loss + 0.02 * report.loss };
        self.bar.set_position(report.step as u64);
        self.bar.set_message(format!("loss {:.3},", self.loss));
        if self.bar.is_hidden() && (report.step.is_multiple_of(report.total.div_ceil(8)) || report.step == report.total)
        {
            let seconds = self.started.elapsed().as_secs();
            println!("pretraining: step {} of {}, loss {:.3}, {seconds} s", report.step, report.total, self.loss);
        }
        Ok(())
    }
}
