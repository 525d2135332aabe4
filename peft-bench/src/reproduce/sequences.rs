//! What Tables IV to VI share: their plan, a small sequence model made from nothing, and the runs of their one column.

use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::tensor::{Device, TensorData};
use peft_core::data::Dataset;
use peft_core::files::read_json;
use peft_core::io::{Pretrained, peft};
use peft_core::load::Tokenizer;
use peft_core::random::Random;
use peft_core::train::{Checkpoints, TrainConfig, Trainer};
use peft_core::{
    Architecture, Bare, Base, Error, Example, Head, LanguageModel, Method, Part, Place, Result, Shape, Slot, Trained,
    Tuner,
};
use peft_partial::FullConfig;
use serde_json::{Value, json};

use super::outcome::Runs;
use super::pretrain::Bar;
use super::report::{self, Cell, Column, Outcome, Report};
use super::rows::Row;
use super::survey::Printed;
use super::{show, write};
use crate::registry::{WithMethod, by_name};

/// What is run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// A model and the directory of the data; both are made if absent.
    pub real: Option<(String, PathBuf)>,
    /// The rows.
    pub rows: Vec<Row>,
    /// The seeds.
    pub seeds: Vec<u64>,
    /// Times through the training data.
    pub epochs: usize,
    /// Stop each run after so many steps, if that is sooner.
    pub max_steps: Option<usize>,
    /// Learning rates in place of those of the rows.
    pub learning_rates: Vec<(String, f64)>,
    /// Sequences in a step.
    pub batch_size: usize,
    /// Tokens to which a text that is trained on is cut.
    pub max_length: usize,
    /// The most that is scored: sentences, or questions of each subject.
    pub limit: usize,
    /// Whether the model that is made is to be made quickly.
    pub quick: bool,
    /// Threads.
    pub threads: usize,
    /// Where everything is written.
    pub output: PathBuf,
    /// Where it is computed.
    pub device: Device,
}

/// How a small model is pretrained.
pub(super) struct Recipe {
    pub steps: usize,
    pub batch_size: usize,
    pub learning_rate: f64,
}

/// The number of words of the tokenizer in a directory, and the tokenizer.
pub(super) fn tokenizer(directory: &Path) -> Result<(usize, Tokenizer)> {
    let file = read_json(&directory.join("tokenizer.json"))?;
    let words = file["model"]["vocab"].as_object().map_or(0, |words| words.len());
    let added = file["added_tokens"].as_array().map_or(0, |tokens| tokens.len());
    let vocab = words.max(added);
    Ok((vocab, Tokenizer::from_dir(directory, vocab)?))
}

/// Pretrains a model of this shape on examples of words, in their order, and writes it into `output` with the tokenizer of `data`.
pub(super) fn pretrain(
    (shape, recipe): (Shape, &Recipe),
    examples: &[Example],
    (data, output): (&Path, &Path),
    (threads, device): (usize, &Device),
) -> Result<()> {
    let base = start(shape, device)?;
    let config = TrainConfig {
        adam_beta2: 0.98,
        weight_decay: 0.01,
        warmup_steps: recipe.steps / 20,
        // In the order in which they are given, which may have a meaning.
        shuffle: false,
        threads,
        ..TrainConfig::new(recipe.learning_rate).with_steps(recipe.steps).with_batch_size(recipe.batch_size)
    };
    let trained = Trained::new(FullConfig::default().init(&base, 0)?, Head::LanguageModel(LanguageModel {}))?;
    let mut bar = Bar::new(recipe.steps);
    let checkpoints = Checkpoints { dir: output.with_extension("checkpoints"), every: None, resume: true };
    let trainer = Trainer::new(config).with_checkpoints(checkpoints.clone());
    let (trained, base) = trainer.run(&base, trained, examples, None, &mut bar)?;
    let merged = FullConfig::merge(&trained.tuner).map_or(base.clone(), |merge| base.merged(merge));
    let model = Pretrained { config: base.shape().to_config(), base, head: None, dir: Some(data.to_path_buf()) };
    model.save(output, &merged, &trained.head, &[])?;
    checkpoints.remove()
}

/// Random weights that keep the size of what they map, as T5 starts (its words are of size 1, its queries undo that its scores
/// are not scaled).
fn start(shape: Shape, device: &Device) -> Result<Base> {
    let (hidden, width, inner) = (shape.hidden as f64, shape.head_width as f64, shape.intermediate as f64);
    let t5 = matches!(shape.architecture, Architecture::T5(_));
    Base::new(shape, device, |place: &Place| {
        let std = match place.site.part {
            Part::Words if t5 => 1.0,
            Part::Query | Part::CrossQuery if t5 => (hidden * width).powf(-0.5),
            Part::Down => inner.powf(-0.5),
            _ => hidden.powf(-0.5),
        };
        let mut random = Random::new(0, &place.name);
        let value = |_| match place.slot {
            Slot::Weight => (random.normal() * std) as f32,
            Slot::Bias => 0.0,
            Slot::Gain => 1.0,
        };
        Ok(TensorData::new((0..place.count()).map(value).collect(), place.file_dims()))
    })
}

/// How what is trained is scored.
pub(super) trait Score {
    /// Its metrics, times 100.
    fn score<T: Tuner>(&self, base: &Base, trained: &Trained<T>) -> Result<Vec<f64>>;
}

/// One table: a model, what it is trained on, how it is scored.
pub(super) struct Experiment<'a, S> {
    pub plan: &'a Plan,
    pub model: &'a Pretrained,
    pub train: &'a Dataset,
    pub score: &'a S,
    /// What decides a score beside the model: fingerprints and settings.
    pub scored: Value,
}

/// The model's own score, before any tuning.
pub(super) const UNTUNED: &str = "no tuning";

impl<S: Score + Sync> Experiment<'_, S> {
    /// Runs all rows, goes on where it was interrupted, and writes the report.
    pub fn run(&self, mut report: Report) -> Result<Report> {
        let (plan, started) = (self.plan, Instant::now());
        let runs = Runs { model: self.model, weights: self.model.base.fingerprint(), output: &plan.output };
        let untuned = self.untuned(&runs)?;
        println!("{}", report.progress(0, 0, &untuned));
        report.rows[0].cells[0].runs.push(untuned);
        write(&plan.output, &report)?;
        for (i, row) in plan.rows.iter().enumerate() {
            for seed in &plan.seeds {
                let outcome = by_name(row.method, Job { experiment: self, runs: &runs, row, seed: *seed })?;
                println!("{}", report.progress(i + 1, 0, &outcome));
                report.rows[i + 1].cells[0].runs.push(outcome);
                write(&plan.output, &report)?;
            }
        }
        let minutes = started.elapsed().as_secs_f64() / 60.0;
        report.setting.push(("Time of this call".into(), format!("{minutes:.1} minutes on {} threads", plan.threads)));
        write(&plan.output, &report)?;
        show(&plan.output, &report);
        Ok(report)
    }

    fn untuned(&self, runs: &Runs<'_>) -> Result<Outcome> {
        let trained = Trained::new(Bare {}, Head::LanguageModel(LanguageModel {}))?;
        let started = Instant::now();
        runs.kept("untuned", &json!([runs.weights, self.scored]), |_| {
            let scores = self.score.score(&self.model.base, &trained)?;
            Ok(Outcome { seed: 0, scores, losses: vec![], seconds: started.elapsed().as_secs_f64() })
        })
    }

    /// The report before the first run: of `models`, the survey's that have this family, with their real shapes.
    pub fn blank(&self, title: &str, column: Column, printed: &[Printed], shapes: [(&str, &str); 2]) -> Result<Report> {
        let (plan, shape) = (self.plan, self.model.base.shape());
        let large = Shape::named(shapes[1].1)?;
        let same = (shape.layers, shape.hidden) == (large.layers, large.hidden);
        let (survey, real) = if same { shapes[1] } else { shapes[0] };
        let real = Shape::named(real)?;
        let untuned = report::Row { name: UNTUNED.into(), cells: vec![Cell::default()], ..Default::default() };
        let row = |row: &Row| {
            let known = printed.iter().find(|(model, name, ..)| *model == survey && *name == row.name);
            let cell = Cell { survey: known.map_or(vec![], |(.., score)| vec![*score]), runs: vec![] };
            Ok(report::Row {
                name: row.name.to_string(),
                survey_params: known.map(|(_, _, params, _)| params.to_string()),
                real_params: Some(row.survey_count(&real)?),
                params: row.count(shape, plan.real.is_none())?,
                head: 0,
                cells: vec![cell],
            })
        };
        let rows = plan.rows.iter().map(row).collect::<Result<Vec<_>>>()?;
        let made = plan.real.is_none();
        let setting = [
            (
                "Model",
                plan.real.as_ref().map_or("a small one, pretrained here".to_string(), |(model, _)| model.clone()),
            ),
            ("Its shape", format!("{} layers of {}, {} parameters", shape.layers, shape.hidden, shape.count())),
            ("Data", if made { "generated by a seeded grammar".into() } else { "real files".to_string() }),
            ("Training", format!("{} epochs, AdamW, linear schedule after 6 % warm-up, last state", plan.epochs)),
            ("Steps", plan.max_steps.map_or("as the epochs say".into(), |steps| format!("at most {steps} a run"))),
            ("Examples", format!("{} to train on, in batches of {}", self.train.examples.len(), plan.batch_size)),
            ("Seeds", plan.seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")),
            ("Survey", format!("{survey}, whose settings and number of runs are mostly not stated")),
        ];
        let mut notes = vec![];
        for row in &plan.rows {
            let settings = row.settings(made).join(", ");
            let settings = if settings.is_empty() { "its own settings".to_string() } else { settings };
            let (count, all) = (row.survey_count(&real)?, real.count());
            // What takes the place of the model's own tensors adds nothing to them.
            let all = if row.method == "full" { all } else { all + count };
            let (millions, percent) = (all as f64 / 1e6, 100.0 * count as f64 / all as f64);
            let rate = self.rate(row);
            notes.push(format!(
                "{}: {settings}; learning rate {rate}. On {survey}: {count} trainable of {all} parameters ({millions:.1}M), {percent:.3} %.",
                row.name
            ));
        }
        Ok(Report {
            title: title.into(),
            setting: setting.map(|(key, value)| (key.to_string(), value)).to_vec(),
            columns: vec![column],
            rows: [vec![untuned], rows].concat(),
            notes,
        })
    }

    fn rate(&self, row: &Row) -> f64 {
        let usual = if self.plan.real.is_some() { row.learning_rate } else { row.small_learning_rate };
        self.plan.learning_rates.iter().find(|(name, _)| name == row.name).map_or(usual, |(_, rate)| *rate)
    }
}

/// One run.
struct Job<'a, S> {
    experiment: &'a Experiment<'a, S>,
    runs: &'a Runs<'a>,
    row: &'a Row,
    seed: u64,
}

impl<S: Score + Sync> WithMethod for Job<'_, S> {
    type Output = Outcome;
    fn call<M: Method>(self) -> Result<Outcome> {
        let Job { experiment, runs, row, seed } = self;
        let plan = experiment.plan;
        let method: M = peft::from_settings(&row.settings(plan.real.is_none()))?;
        let config = TrainConfig { threads: plan.threads, ..TrainConfig::new(experiment.rate(row)) }
            .with_batch_size(plan.batch_size)
            .with_seed(seed)
            .with_epochs(plan.epochs);
        let steps = config.steps(experiment.train.examples.len()).min(plan.max_steps.unwrap_or(usize::MAX));
        let config = TrainConfig { warmup_steps: (steps as f64 * 0.06) as usize, ..config.with_steps(steps) };
        let data = [json!(Example::fingerprint(&experiment.train.examples)), experiment.scored.clone()];
        let name = format!("{}-{seed}", row.name.replace([' ', ','], ""));
        runs.outcome(&name, (method, config), experiment.train, &data, |tuned| {
            experiment.score.score(&tuned.base, &tuned.trained)
        })
    }
}

/// Refuses data of which nothing is left.
pub(super) fn some<T>(found: Vec<T>, what: &str) -> Result<Vec<T>> {
    if found.is_empty() { Err(Error::config(what, "none", "at least one")) } else { Ok(found) }
}
