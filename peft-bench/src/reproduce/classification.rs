//! Table III: RoBERTa on the eight tasks of GLUE, or on such that are made here.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Instant;

use peft_core::data::{Dataset, Labelled};
use peft_core::io::{Pretrained, peft};
use peft_core::train::TrainConfig;
use peft_core::{Example, Head, Result, Shape};
use serde_json::json;

use super::outcome::Runs;
use super::report::{self, Cell, Column, Outcome, Report};
use super::rows::Row;
use super::{Failures, Plan, masked, say, survey};
use crate::registry::by_name;
use crate::tasks::Task;

/// One run: a row on a task with a seed.
struct Job<'a> {
    plan: &'a Plan,
    model: &'a Pretrained,
    /// The model's fingerprint.
    weights: u64,
    row: Row,
    task: Task,
    seed: u64,
    data: &'a Data,
    threads: usize,
}

/// The texts of a task, and their tokens by the length to which they are cut: made once for all runs.
pub(super) struct Data {
    train: Labelled,
    dev: Labelled,
    tokens: Mutex<BTreeMap<usize, Arc<Tokens>>>,
}

pub(super) struct Tokens {
    pub train: Dataset,
    pub dev: Dataset,
    /// The fingerprints of both.
    hashes: [u64; 2],
}

impl Data {
    pub fn new((train, dev): (Labelled, Labelled)) -> Self {
        Data { train, dev, tokens: Mutex::default() }
    }

    pub fn tokens(&self, model: &Pretrained, length: usize) -> Result<Arc<Tokens>> {
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
pub fn run(plan: &Plan, tasks: &[Task]) -> Result<Report> {
    let started = Instant::now();
    let source = plan.source(|made| masked::prepare(made, plan))?;
    let (name, model, glue) = (&source.name, &source.model, &source.data);
    let weights = model.fingerprint();
    let mut report = blank(plan, tasks, name, model)?;
    // All of them before the first run, which may take hours.
    let read = tasks.iter().map(|task| task.read(glue)).collect::<Result<Vec<_>>>()?;
    let broken = read.iter().flat_map(|(train, dev)| [train, dev]).flat_map(Labelled::broken_rows);
    report.notes.extend(broken.map(|row| format!("Left out: {row}.")));
    let mut failures = Failures::default();
    for ((column, task), read) in tasks.iter().enumerate().zip(read) {
        let data = Data::new(read);
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
                let (model, data, next) = (model, &data, &next);
                scope.spawn(move || {
                    while let Some((row, seed)) = next() {
                        let job = Job { plan, model, weights, row: plan.rows[row], task: *task, seed, data, threads };
                        let outcome = job.run();
                        let stop = outcome.as_ref().is_err_and(|error| !Failures::of_one(error));
                        if results.send((row, seed, outcome)).is_err() || stop {
                            break;
                        }
                    }
                });
            }
            drop(results);
            for (row, seed, outcome) in outcomes {
                let run = format!("{} on {}, seed {seed}", plan.rows[row].name, task.directory);
                let Some(outcome) = failures.sort(&run, outcome)? else { continue };
                say(report.progress(row, column, &outcome));
                report.rows[row].cells[column].runs.push(outcome);
                report.rows[row].cells[column].runs.sort_by_key(|run| run.seed);
                plan.write(&report)?;
            }
            Ok(())
        })?;
    }
    plan.finish(started, report, failures)
}

/// The report before the first run.
fn blank(plan: &Plan, tasks: &[Task], name: &str, model: &Pretrained) -> Result<Report> {
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
            counted: table.is_some().then(|| row.survey_count(&real)).transpose()?,
            real_params: Some(row.count(&real, false)? + Head::count(&real, 2)),
            params: row.count(shape, plan.real.is_none())?,
            head: Head::count(shape, 2),
            cells: tasks.iter().map(cell).collect(),
            ..report::Row::default()
        })
    };
    let made = plan.real.is_none();
    let own = [
        ("Model", if made { "a small RoBERTa, pretrained here with masked words".into() } else { name.to_string() }),
        ("Its shape", format!("{} layers of {}, {} parameters", shape.layers, shape.hidden, shape.count())),
        ("Tasks", if made { "generated by a seeded grammar, of GLUE's kinds".into() } else { "GLUE's files".into() }),
    ];
    let mut notes: Vec<String> = plan
        .rows
        .iter()
        .map(|row| {
            let settings = row.settings_text(shape, made);
            let (rate, decay, batch) = (plan.learning_rate(row), row.weight_decay, plan.batch_size(row, shape));
            let differs = row.differs_text();
            format!(
                "{}: {settings}; learning rate {rate}, weight decay {decay}, batches of {batch}.{differs}",
                row.name
            )
        })
        .collect();
    if made {
        notes.push(
            "Pretraining has seen answers: 19 of 20 lines of the corpus are texts of the tasks' kinds that end in the word that is asked \
             for (yes, enjoy, avoid ..). None has the text or, in either order, the pair of an example, but single sentences of pairs are \
             among them. A real model has seen far more texts, but few such words."
                .to_string(),
        );
        notes.push(
            "The tasks are of the kinds of GLUE's, not GLUE's: scores beside the survey's show which methods learn \
             what, not how near they come to it."
                .to_string(),
        );
    }
    Ok(Report {
        title: "Table III: parameter-efficient fine-tuning of RoBERTa".into(),
        setting: plan.setting(&own, survey),
        columns: tasks.iter().map(column).collect(),
        rows: plan.rows.iter().map(row).collect::<Result<_>>()?,
        notes,
        costs: false,
        differences: false,
    })
}

impl Job<'_> {
    /// Reads the outcome if it is there, else trains.
    fn run(self) -> Result<Outcome> {
        let Job { plan, model, weights, row, task, seed, data, threads } = self;
        let settings = row.settings(model.base.shape(), plan.real.is_none());
        let method = peft::with_words(&by_name(row.method)?, &settings)?;
        let tokens = data.tokens(model, method.room(model.base.shape()).min(128))?;
        let Tokens { train, dev, hashes } = &*tokens;
        let config = plan.config((&row, seed), model.base.shape(), train.examples.len());
        let config = TrainConfig { threads, ..config };
        let name = format!("{}-{}-{seed}", row.method, task.name);
        let runs = Runs { model, weights, output: &plan.output, device: &plan.device };
        runs.outcome(&name, (method, config), train, &hashes.map(|hash| json!(hash)), |tuned| {
            let metrics = tuned.evaluate(dev)?;
            let score = |metric: &&str| metrics.get(metric).map_or(f64::NAN, |x| 100.0 * x);
            Ok((task.metrics.iter().map(score).collect(), vec![]))
        })
    }
}
