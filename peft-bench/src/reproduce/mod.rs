//! Table III of the survey: every row that is written on every task, on a model and tasks that are made here or on real ones.

mod html;
pub mod instruction;
mod outcome;
mod plot;
mod pretrain;
pub mod report;
pub mod rows;
pub mod sequences;
pub mod survey;
pub mod translation;

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Instant;

use burn::tensor::Device;
use peft_core::data::{Dataset, Labelled};
use peft_core::files::write_file;
use peft_core::io::{Pretrained, peft};
use peft_core::train::TrainConfig;
use peft_core::{Error, Example, Head, Method, Result, Shape};
use serde_json::json;

use crate::registry::{WithMethod, by_name};
use crate::tasks::Task;
use outcome::Runs;
use pretrain::Recipe;
use report::{Cell, Column, Outcome, Report};
use rows::Row;

/// What is run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// A model directory or id, and the directory of GLUE; both are made if absent.
    pub real: Option<(String, PathBuf)>,
    /// The rows.
    pub rows: Vec<Row>,
    /// The tasks.
    pub tasks: Vec<Task>,
    /// The seeds.
    pub seeds: Vec<u64>,
    /// Times through the data of a task.
    pub epochs: usize,
    /// Stop each run after so many steps, if that is sooner.
    pub max_steps: Option<usize>,
    /// Learning rates in place of those of the rows.
    pub learning_rates: Vec<(String, f64)>,
    /// Whether the model that is made is to be made quickly.
    pub quick: bool,
    /// Threads.
    pub threads: usize,
    /// Where everything is written.
    pub output: PathBuf,
    /// Where it is computed.
    pub device: Device,
}

impl Plan {
    fn learning_rate(&self, row: &Row) -> f64 {
        let usual = if self.real.is_some() { row.learning_rate } else { row.small_learning_rate };
        self.learning_rates.iter().find(|(name, _)| name == row.name).map_or(usual, |(_, rate)| *rate)
    }

    fn batch_size(&self, row: &Row) -> usize {
        if self.real.is_some() { row.batch_size } else { 32 }
    }
}

/// One run: a row on a task with a seed.
struct Job<'a> {
    plan: &'a Plan,
    model: &'a Pretrained,
    /// The fingerprint of the model's base.
    weights: u64,
    row: Row,
    task: Task,
    seed: u64,
    data: &'a Data,
    threads: usize,
}

/// The texts of a task, and their tokens by the length to which they are cut: made once for all runs.
struct Data {
    train: Labelled,
    dev: Labelled,
    tokens: Mutex<BTreeMap<usize, Arc<Tokens>>>,
}

struct Tokens {
    train: Dataset,
    dev: Dataset,
    /// The fingerprints of both.
    hashes: [u64; 2],
}

impl Data {
    fn tokens(&self, model: &Pretrained, length: usize) -> Result<Arc<Tokens>> {
        let mut known = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tokens) = known.get(&length) {
            return Ok(tokens.clone());
        }
        let (train, dev) = (self.train.prepare(model, length)?, self.dev.prepare(model, length)?);
        let hashes = [&train, &dev].map(|data| Example::fingerprint(&data.examples));
        let tokens = Arc::new(Tokens { train, dev, hashes });
        known.insert(length, tokens.clone());
        Ok(tokens)
    }
}

/// Runs what the plan says, goes on where it was interrupted, and writes REPORT.md and report.html.
pub fn run(plan: &Plan) -> Result<Report> {
    let started = Instant::now();
    std::fs::create_dir_all(&plan.output).map_err(Error::io("create", &plan.output))?;
    let (name, glue) = match &plan.real {
        Some((model, glue)) => (model.clone(), glue.clone()),
        None => {
            let recipe = Recipe::new(plan.quick);
            let made = plan.output.join(if plan.quick { "quick" } else { "made" });
            let (model, glue) = pretrain::prepare(&made, &recipe, plan.threads, &plan.device)?;
            (model.to_string_lossy().into_owned(), glue)
        }
    };
    let model = Pretrained::open(&name, &plan.device)?;
    let weights = model.base.fingerprint();
    let mut report = blank(plan, &name, &model)?;
    for (column, task) in plan.tasks.iter().enumerate() {
        let (train, dev) = task.read(&glue)?;
        let data = Data { train, dev, tokens: Default::default() };
        let jobs: VecDeque<(usize, u64)> =
            (0..plan.rows.len()).flat_map(|row| plan.seeds.iter().map(move |seed| (row, *seed))).collect();
        // Small models leave threads idle within a run, so several runs go side by side; a large one needs the memory.
        let side_by_side = if plan.real.is_none() { plan.threads.min(jobs.len()) } else { 1 };
        let threads = plan.threads.div_ceil(side_by_side);
        let (queue, (results, outcomes)) = (Mutex::new(jobs), mpsc::channel());
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        std::thread::scope(|scope| {
            for _ in 0..side_by_side {
                let results = results.clone();
                let (model, data, next) = (&model, &data, &next);
                scope.spawn(move || {
                    while let Some((row, seed)) = next() {
                        let job = Job { plan, model, weights, row: plan.rows[row], task: *task, seed, data, threads };
                        let outcome = by_name(job.row.method, job);
                        let stop = outcome.is_err();
                        if results.send((row, outcome)).is_err() || stop {
                            break;
                        }
                    }
                });
            }
            drop(results);
            for (row, outcome) in outcomes {
                let outcome = outcome?;
                println!("{}", report.progress(row, column, &outcome));
                report.rows[row].cells[column].runs.push(outcome);
                report.rows[row].cells[column].runs.sort_by_key(|run| run.seed);
                write(&plan.output, &report)?;
            }
            Ok(())
        })?;
    }
    let minutes = started.elapsed().as_secs_f64() / 60.0;
    report.setting.push(("Time of this call".into(), format!("{minutes:.1} minutes on {} threads", plan.threads)));
    write(&plan.output, &report)?;
    show(&plan.output, &report);
    Ok(report)
}

fn write(output: &Path, report: &Report) -> Result<()> {
    write_file(&output.join("REPORT.md"), report.markdown().as_bytes())?;
    write_file(&output.join("report.html"), report.html().as_bytes())?;
    write_file(&output.join("report.json"), json!(report).to_string().as_bytes())
}

/// Prints the table when all is done.
fn show(output: &Path, report: &Report) {
    println!("\n{}", report.table());
    report.reading().iter().for_each(|line| println!("{line}"));
    println!("\n{}", output.join("REPORT.md").display());
    println!("{}", output.join("report.html").display());
}

/// The report before the first run.
fn blank(plan: &Plan, name: &str, model: &Pretrained) -> Result<Report> {
    let shape = model.base.shape();
    // Everything is set beside the survey's RoBERTa-base, unless this is the large one.
    let large = *shape == Shape { dropout: shape.dropout, ..Shape::named("roberta-large")? };
    let (survey, real) = if large { ("RoBERTa-large", "roberta-large") } else { ("RoBERTa-base", "roberta-base") };
    let real = Shape::named(real)?;
    let column = |task: &Task| Column {
        name: task.directory.to_string(),
        metrics: task.metrics.iter().map(|metric| metric.to_string()).collect(),
    };
    let row = |row: &Row| {
        let table = survey::table_iii(survey, row.name);
        let cell = |task: &Task| Cell {
            survey: table.map_or(Vec::new(), |table| table.task(task.directory).to_vec()),
            runs: Vec::new(),
        };
        Ok(report::Row {
            name: row.name.to_string(),
            survey_params: table.and_then(|table| table.params.clone()),
            real_params: Some(row.survey_count(&real)?),
            params: row.count(shape, plan.real.is_none())?,
            head: Head::count(shape, 2),
            cells: plan.tasks.iter().map(cell).collect(),
        })
    };
    let made = plan.real.is_none();
    let setting = [
        ("Model", if made { "a small RoBERTa, pretrained here with masked words".into() } else { name.to_string() }),
        ("Its shape", format!("{} layers of {}, {} parameters", shape.layers, shape.hidden, shape.count())),
        ("Tasks", if made { "generated by a seeded grammar, of GLUE's kinds".into() } else { "GLUE's files".into() }),
        ("Training", format!("{} epochs, AdamW, linear schedule after 6 % warm-up, last state", plan.epochs)),
        ("Steps", plan.max_steps.map_or("as the epochs say".into(), |steps| format!("at most {steps} a run"))),
        ("Seeds", plan.seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")),
        ("Survey", format!("{survey}, whose settings and number of runs are mostly not stated")),
    ];
    let mut notes: Vec<String> = plan
        .rows
        .iter()
        .map(|row| {
            let settings = row.settings(made).join(", ");
            let settings = if settings.is_empty() { "its own settings".to_string() } else { settings };
            let (rate, decay, batch) = (plan.learning_rate(row), row.weight_decay, plan.batch_size(row));
            format!("{}: {settings}; learning rate {rate}, weight decay {decay}, batches of {batch}.", row.name)
        })
        .collect();
    if made {
        notes.push(
            "The tasks are of the kinds of GLUE's, not GLUE's: scores beside the survey's show which methods learn \
             what, not how near they come to it."
                .to_string(),
        );
    }
    Ok(Report {
        title: "Table III: parameter-efficient fine-tuning of RoBERTa".into(),
        setting: setting.map(|(key, value)| (key.to_string(), value)).to_vec(),
        columns: plan.tasks.iter().map(column).collect(),
        rows: plan.rows.iter().map(row).collect::<Result<_>>()?,
        notes,
    })
}

impl Job<'_> {
    fn config(&self, samples: usize) -> TrainConfig {
        let (plan, row) = (self.plan, &self.row);
        let config = TrainConfig {
            weight_decay: row.weight_decay,
            threads: self.threads,
            ..TrainConfig::new(plan.learning_rate(row))
                .with_batch_size(plan.batch_size(row))
                .with_seed(self.seed)
                .with_epochs(self.plan.epochs)
        };
        let steps = config.steps(samples).min(self.plan.max_steps.unwrap_or(usize::MAX));
        let config = config.with_steps(steps);
        TrainConfig { warmup_steps: (steps as f64 * 0.06) as usize, ..config }
    }
}

impl WithMethod for Job<'_> {
    type Output = Outcome;
    /// Reads the outcome if it is there, else trains.
    fn call<M: Method>(self) -> Result<Outcome> {
        let Job { plan, model, weights, row, task, seed, data, .. } = self;
        let method: M = peft::from_settings(&row.settings(plan.real.is_none()))?;
        let tokens = data.tokens(model, method.room(model.base.shape()).min(128))?;
        let Tokens { train, dev, hashes } = &*tokens;
        let config = self.config(train.examples.len());
        let name = format!("{}-{}-{seed}", row.method, task.name);
        let runs = Runs { model, weights, output: &plan.output };
        runs.outcome(&name, (method, config), train, &hashes.map(|hash| json!(hash)), |tuned| {
            let metrics = tuned.evaluate(dev)?;
            let score = |metric: &&str| metrics.get(metric).map_or(f64::NAN, |x| 100.0 * x);
            Ok(task.metrics.iter().map(score).collect())
        })
    }
}
