//! Every method of the registry on the same tasks, or the ways in which tasks work together: what each scores, and what it costs. Each run
//! is a process of its own, so that the most memory that it holds can be told.

mod job;
mod report;
pub mod rows;
pub mod together;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use burn::module::Module;
use peft_core::data::Dataset;
use peft_core::io::{Pretrained, peft};
use peft_core::train::{TrainConfig, Tuned};
use peft_core::{AnyMethod, Error, Example, Result, Source, view};
use serde_json::{Value, json};

use super::classification::Data;
use super::outcome::Runs;
use super::report::{Cell, Column, Cost, Outcome, Report, Row as Shown};
use super::rows::{Row, Sources};
use super::{Failures, Plan, masked, say};
use crate::child;
use crate::machine::{digest, forget_peak, peak_bytes};
use crate::registry::{by_name, by_peft_type};
use crate::tasks::Task;
use job::{Job, On, waves};

/// The tasks on which sources are trained, none of them of the table: one of single texts and two of pairs, with two classes each, so
/// that one head serves all.
pub const SOURCES: [&str; 3] = ["sst2", "mrpc", "rte"];
/// The tasks of the table: a text, a pair, and a pair with a value.
pub const TASKS: [&str; 3] = ["cola", "qnli", "stsb"];
/// The tasks of the table of several tasks.
pub const TOGETHER: [&str; 6] = ["cola", "sst2", "mrpc", "stsb", "qnli", "rte"];
/// On how many examples it is measured how far folding a method into the model moves logits.
const PROBE: usize = 32;
/// How often the report is written on the way: its plots take longer than a short run.
const WRITE: Duration = Duration::from_secs(10);

/// How evenly batches are drawn from tasks that are trained together, as in Hyperformer.
const TEMPERATURE: f64 = 10.0;

/// What is set side by side.
#[derive(Clone)]
pub struct Table {
    /// All rows that it may have.
    pub rows: &'static [Row],
    /// The tasks that rows are scored on.
    pub tasks: Vec<Task>,
    /// Whether sources are on tasks of their own, and otherwise on the other tasks of the table; tasks together then have a head each.
    pub apart: bool,
}

/// All runs of a table, on a model.
struct Field<'a> {
    plan: &'a Plan,
    table: &'a Table,
    model: &'a Pretrained,
    /// The model's fingerprint.
    weights: u64,
    /// The directory of the tasks.
    glue: &'a Path,
    data: Mutex<BTreeMap<&'static str, Arc<Data>>>,
    /// Hashes of the texts of runs, by what they are on, how long and how many they may be.
    hashes: Mutex<BTreeMap<(&'static str, usize, usize), Value>>,
}

/// What a run needs beside its sources, and all that decides it.
struct Setting {
    name: String,
    method: AnyMethod,
    config: TrainConfig,
    train: Dataset,
    /// What it is scored on; source tasks apart are not.
    dev: Option<Dataset>,
    key: Value,
}

/// Runs all rows on all tasks, goes on where it was interrupted, and writes REPORT.md and report.html.
pub fn run(plan: &Plan, table: &Table) -> Result<Report> {
    let started = Instant::now();
    let source = plan.source(|made| masked::prepare(made, plan))?;
    let (field, tasks) = (Field::new(plan, table, &source.model, &source.data), &table.tasks);
    let mut report = field.blank(&source.name);
    let on = |row: &Row| match row.together {
        true => vec![On::Together],
        false => tasks.iter().map(|task| On::Task(*task)).collect(),
    };
    let rows = plan.rows.iter().flat_map(|row| on(row).into_iter().map(move |on| (*row, on)));
    let wanted: Vec<Job> =
        rows.flat_map(|(row, on)| plan.seeds.iter().map(move |seed| Job { row, on, seed: *seed })).collect();
    let (mut failures, mut written) = (Failures::default(), started);
    for jobs in waves(&wanted, table)? {
        field.together(&jobs, |job, outcome| {
            let Some(outcome) = failures.sort(&job.told(), outcome)? else { return Ok(()) };
            say(job.progress(&outcome));
            let row = plan.rows.iter().position(|row| row.name == job.row.name);
            let Some(row) = row else { return Ok(()) };
            // A run of all tasks has the scores of all, one after the other.
            let mut scores = outcome.scores.iter().copied();
            for (column, task) in tasks.iter().enumerate() {
                if job.on == On::Together || job.on == On::Task(*task) {
                    let scores = scores.by_ref().take(task.metrics.len()).collect();
                    let runs = &mut report.rows[row].cells[column].runs;
                    runs.push(Outcome { scores, ..outcome.clone() });
                    runs.sort_by_key(|run| run.seed);
                }
            }
            if written.elapsed() > WRITE {
                plan.write(&report)?;
                written = Instant::now();
            }
            Ok(())
        })?;
    }
    plan.finish(started, report, failures)
}

/// One run of such a table, by its name; its outcome and its adapter lie in the output when this comes to its end.
pub fn run_one(plan: &Plan, table: &Table, job: &str) -> Result<()> {
    let job = Job::named(job, table)?;
    let (name, glue) = match &plan.real {
        Some((name, glue)) => (name.clone(), glue.clone()),
        None => {
            let (model, glue) = masked::prepare(&plan.made, plan)?;
            (model.to_string_lossy().into_owned(), glue)
        }
    };
    let model = Pretrained::open(&name, &plan.device)?;
    Field::new(plan, table, &model, &glue).run(&job).map(|_| ())
}

/// Where the adapter of an outcome lies, if others start from it.
fn adapter(outcome: &Path) -> PathBuf {
    outcome.with_extension("adapter")
}

impl<'a> Field<'a> {
    fn new(plan: &'a Plan, table: &'a Table, model: &'a Pretrained, glue: &'a Path) -> Self {
        Field {
            plan,
            table,
            model,
            weights: model.fingerprint(),
            glue,
            data: Mutex::default(),
            hashes: Mutex::default(),
        }
    }

    fn runs(&self) -> Runs<'a> {
        Runs { model: self.model, weights: self.weights, output: &self.plan.output, device: &self.plan.device }
    }

    /// The texts of a task, which are read once.
    fn data(&self, task: &Task) -> Result<Arc<Data>> {
        let mut known = self.data.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(data) = known.get(task.name) {
            return Ok(data.clone());
        }
        let data = Arc::new(Data::new(task.read(self.glue)?));
        known.insert(task.name, data.clone());
        Ok(data)
    }

    /// A row's settings for this table.
    fn settings(&self, row: &Row) -> Vec<String> {
        let tasks = self.table.tasks.len().to_string();
        row.settings(self.model.base.shape(), true).iter().map(|setting| setting.replace("{tasks}", &tasks)).collect()
    }

    fn settings_text(&self, row: &Row) -> String {
        let settings = self.settings(row).join(", ");
        if settings.is_empty() { "its own settings".to_string() } else { settings }
    }

    /// How many runs go side by side, and the threads of each: small models leave threads idle, a large one needs the memory.
    fn threads(&self) -> (usize, usize) {
        if self.plan.real.is_none() { (self.plan.threads, 1) } else { (1, self.plan.threads) }
    }

    fn setting(&self, job: &Job) -> Result<Setting> {
        let (plan, table, shape) = (self.plan, self.table, self.model.base.shape());
        let Job { row, on, seed } = *job;
        let method = peft::with_words(&by_name(row.method)?, &self.settings(&row))?;
        // A few steps are on no more texts than they take, so that what goes through all of them beforehand is short too.
        let most = plan.max_steps.map_or(usize::MAX, |steps| steps.saturating_mul(plan.batch_size(&row, shape)));
        let longest = method.room(shape).min(128);
        let tokens = |task: &Task| -> Result<[Dataset; 2]> {
            let tokens = self.data(task)?.tokens(self.model, longest)?;
            let mut train = tokens.train.clone();
            train.examples.truncate(most);
            Ok([train, tokens.dev.clone()])
        };
        let (train, dev) = match on {
            On::Task(task) => {
                let [train, dev] = tokens(&task)?;
                (train, Some(dev))
            }
            On::Together if table.apart => {
                let mut examples = vec![];
                for (i, task) in table.sources(on)?.iter().enumerate() {
                    let [train, _] = tokens(task)?;
                    examples.extend(train.examples.into_iter().map(|example| Example { task: i, ..example }));
                }
                (Dataset { examples, classes: vec!["0".into(), "1".into()], ..Dataset::default() }, None)
            }
            On::Together => {
                let (mut trains, mut devs) = (vec![], vec![]);
                for task in &table.tasks {
                    let [train, dev] = tokens(task)?;
                    trains.push((task.name.to_string(), train));
                    devs.push((task.name.to_string(), dev));
                }
                (Dataset::several(trains)?, Some(Dataset::several(devs)?))
            }
        };
        // As many steps for each task as it has alone.
        let tasks = if train.tasks.is_empty() { 1 } else { train.tasks.len() };
        let plan = Plan { max_steps: plan.max_steps.map(|steps| steps.saturating_mul(tasks)), ..plan.clone() };
        let config = TrainConfig {
            threads: self.threads().1,
            task_temperature: (tasks > 1).then_some(TEMPERATURE),
            ..plan.config((&row, seed), shape, train.examples.len())
        };
        let hash = |data: &Dataset| json!(Example::fingerprint(&data.examples));
        let sources = table.needs(job)?.iter().map(|need| Ok(json!(self.digest(need)?))).collect::<Result<Vec<_>>>()?;
        let mut known = self.hashes.lock().unwrap_or_else(PoisonError::into_inner);
        let texts = known.entry((on.name(), longest, most));
        let texts = texts.or_insert_with(|| json!([hash(&train), dev.as_ref().map(hash)])).clone();
        let decides = [texts, json!(sources)];
        let key = self.runs().key(&method, &config, &decides);
        let name = format!("{}-{}-{seed}", row.method, on.name());
        Ok(Setting { name, method, config, train, dev, key })
    }

    /// A hash of all that decides a run.
    fn digest(&self, job: &Job) -> Result<String> {
        Ok(digest(&[self.setting(job)?.key.to_string().as_bytes()]))
    }

    /// Runs of which none needs another, several side by side, each in a process of its own; `take` is told each as it ends.
    fn together(&self, jobs: &[Job], mut take: impl FnMut(&Job, Result<Outcome>) -> Result<()>) -> Result<()> {
        let (queue, (results, outcomes)) = (Mutex::new(jobs.iter()), mpsc::channel());
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        std::thread::scope(|scope| {
            for _ in 0..self.threads().0.min(jobs.len()) {
                let (results, next) = (results.clone(), &next);
                scope.spawn(move || {
                    while let Some(job) = next() {
                        let outcome = self.kept(job);
                        let stop = outcome.as_ref().is_err_and(|error| !Failures::of_one(error));
                        if results.send((job, outcome)).is_err() || stop {
                            break;
                        }
                    }
                });
            }
            drop(results);
            outcomes.into_iter().try_for_each(|(job, outcome)| take(job, outcome))
        })
    }

    /// The outcome of a run, from its file or from a process that writes it.
    fn kept(&self, job: &Job) -> Result<Outcome> {
        let Setting { name, key, .. } = self.setting(job)?;
        let known = || self.runs().known(&name, &key);
        if let Some(outcome) = known() {
            return Ok(outcome);
        }
        let args = std::env::args_os().skip(1).chain(["--job".into(), job.name().into()]);
        let ended = child::run(args, Stdio::inherit(), Stdio::piped())?;
        let said = String::from_utf8_lossy(&ended.stderr);
        match known().filter(|_| ended.status.success()) {
            Some(outcome) => Ok(Outcome { earlier: false, ..outcome }),
            None => {
                let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
                let detail = format!("{} ({})", last.trim_start_matches("error: "), ended.status);
                Err(Error::Check { what: "a run comes to its end", detail })
            }
        }
    }

    /// Trains and measures, in this process.
    fn run(&self, job: &Job) -> Result<Outcome> {
        let Setting { name, method, config, train, dev, key } = self.setting(job)?;
        let runs = self.runs();
        runs.kept(&name, &key, |path| {
            let sources = self.table.needs(job)?.iter().map(|need| self.source(need)).collect::<Result<Vec<_>>>()?;
            let seed = config.seed;
            // What reading the texts took is no method's.
            forget_peak();
            let (tuned, losses) = runs.trained(&name, path, (method.from_sources(sources), config), &train)?;
            let (seconds, peak_bytes) = (losses.seconds(), peak_bytes());
            let stored = self.stored(&tuned, job, path)?;
            let merged = match tuned.merge(&train.examples[..PROBE.min(train.examples.len())], f32::INFINITY) {
                Ok(merged) => Some(f64::from(merged.difference)),
                // That it has no weight-space form.
                Err(Error::Config { .. }) => None,
                Err(error) => return Err(error),
            };
            let (method, head) = tuned.trainable();
            let step_seconds = losses.step_seconds();
            let cost = Cost { trained: [method, head], stored, step_seconds, peak_bytes, merged };
            let metrics = dev.as_ref().map(|dev| tuned.evaluate(dev)).transpose()?;
            let score =
                |metric: &str| metrics.as_ref().and_then(|known| known.get(metric)).map_or(f64::NAN, |x| 100.0 * x);
            let of_task = |task: &Task| {
                task.metrics.iter().map(|metric| score(&format!("{}.{metric}", task.name))).collect::<Vec<_>>()
            };
            let scores = match &job.on {
                On::Task(task) => task.metrics.iter().map(|metric| score(metric)).collect(),
                On::Together if self.table.apart => vec![],
                On::Together => self.table.tasks.iter().flat_map(of_task).collect(),
            };
            Ok(Outcome { seed, scores, seconds, losses: losses.kept, cost: Some(cost), ..Outcome::default() })
        })
    }

    /// Writes the adapter; how many numbers of four bytes its file has beside the head. It stays if others start from it.
    fn stored(&self, tuned: &Tuned<'_>, job: &Job, outcome: &Path) -> Result<usize> {
        let dir = adapter(outcome);
        let remove = || std::fs::remove_dir_all(&dir).map_err(Error::io("remove", &dir));
        if dir.exists() {
            remove()?;
        }
        tuned.save(&dir)?;
        let file = dir.join("adapter_model.safetensors");
        let mut size = [0; 8];
        let read = File::open(&file).and_then(|mut file| file.read_exact(&mut size).and_then(|()| file.metadata()));
        let bytes = read.map_err(Error::io("read", &file))?.len() as usize;
        // A safetensors file is the size of its header in eight bytes, the header, and the tensors.
        let header = u64::from_le_bytes(size) as usize;
        let head: usize = view::shapes(&tuned.trained.head.clone().valid())
            .iter()
            .map(|(_, dims)| dims.iter().product::<usize>())
            .sum();
        let serves = |row: &Row| match row.sources {
            Sources::Base => false,
            Sources::Own(name) | Sources::Others(name) => name == job.row.name,
            Sources::Together(row) => {
                row.name == job.row.name || matches!(row.sources, Sources::Others(name) if name == job.row.name)
            }
        };
        if !self.table.rows.iter().any(serves) {
            remove()?;
        }
        Ok(bytes.saturating_sub(8 + header).div_ceil(4).saturating_sub(head))
    }

    /// The finished adapter of a run.
    fn source(&self, job: &Job) -> Result<Source> {
        let Setting { name, key, .. } = self.setting(job)?;
        let dir = adapter(&self.runs().place(&name, &key));
        if !dir.is_dir() {
            return Err(Error::config("sources", job.told(), "a run that has come to its end"));
        }
        let (config, trained) = peft::load_as(&by_peft_type(&dir)?, &dir, self.model)?;
        Ok(Source { name: job.on.name().to_string(), config, trained })
    }

    /// The report before the first run.
    fn blank(&self, name: &str) -> Report {
        let (plan, tasks, shape) = (self.plan, &self.table.tasks, self.model.base.shape());
        let made = plan.real.is_none();
        let column = |task: &Task| Column {
            name: task.directory.to_string(),
            metrics: task.metrics.iter().map(|metric| metric.to_string()).collect(),
        };
        let row = |row: &Row| Shown {
            name: row.name.to_string(),
            group: row.group.to_string(),
            cells: vec![Cell::default(); tasks.len()],
            ..Shown::default()
        };
        let own = [
            (
                "Model",
                if made { "a small RoBERTa, pretrained here with masked words".into() } else { name.to_string() },
            ),
            ("Its shape", format!("{} layers of {}, {} parameters", shape.layers, shape.hidden, shape.count())),
            (
                "Tasks",
                if made { "generated by a seeded grammar, of GLUE's kinds".into() } else { "GLUE's files".into() },
            ),
            (
                "Sources",
                match self.table.apart {
                    true => {
                        format!(
                            "adapters of the same seed on {}, for the rows that start from such",
                            SOURCES.join(", ")
                        )
                    }
                    false => "adapters of the same seed on the other tasks, for the rows that start from such".into(),
                },
            ),
            ("Processes", format!("one for each run, {} at a time", self.threads().0)),
        ];
        let note = |row: &Row| {
            let (settings, differs) = (self.settings_text(row), row.differs_text());
            let (rate, decay) = (plan.learning_rate(row), row.weight_decay);
            let decay = if decay > 0.0 { format!(", weight decay {decay}") } else { String::new() };
            let sources = match row.sources {
                Sources::Base => String::new(),
                Sources::Own(name) => format!("; from {name} on the same task"),
                Sources::Others(name) => format!("; from {name} on each of the source tasks"),
                Sources::Together(row) => format!("; from {} ({})", row.name, self.settings_text(row)),
            };
            format!("{}: {}, {settings}; learning rate {rate}{decay}{sources}.{differs}", row.name, row.method)
        };
        Report {
            title: if self.table.apart { "All methods on one small model" } else { "Several tasks" }.into(),
            setting: plan.setting(&own, None),
            columns: tasks.iter().map(column).collect(),
            rows: plan.rows.iter().map(row).collect(),
            notes: plan.rows.iter().map(note).collect(),
            costs: true,
            differences: !self.table.apart,
        }
    }
}
