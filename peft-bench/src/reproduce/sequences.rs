//! What Tables IV to VI share: a small model of sequences made from nothing, and the runs of their one column.

use std::path::Path;
use std::time::Instant;

use peft_core::data::Dataset;
use peft_core::io::{Pretrained, peft};
use peft_core::train::TrainConfig;
use peft_core::{Bare, Base, Error, Example, Head, LanguageModel, Part, Result, Shape, Trained, Tuner};
use serde_json::{Value, json};

use super::outcome::{Runs, Scored};
use super::pretrain::{self, Recipe};
use super::report::{self, Cell, Column, Outcome, Report};
use super::rows::Row;
use super::survey::Printed;
use super::{Failures, Plan, say};
use crate::registry::by_name;

/// How much is trained on and scored.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Tokens to which a text that is trained on is cut.
    pub max_length: usize,
    /// The most that is scored: sentences, or questions of each subject.
    pub limit: usize,
}

/// Pretrains a model of this shape on examples of words, in their order, which may have a meaning. Its random weights keep the size of
/// what they map, as T5's (whose words are of size 1 and whose queries undo that its scores are not scaled).
pub(super) fn pretrain(
    plan: &Plan,
    (shape, recipe): (Shape, &Recipe),
    examples: &[Example],
    places: (&Path, &Path),
) -> Result<()> {
    let (hidden, width, inner) = (shape.hidden as f64, shape.head_width as f64, shape.intermediate as f64);
    let t5 = !shape.architecture.family().scales_scores;
    let base = pretrain::start(shape, &plan.device, |place| match place.site.part {
        Part::Words if t5 => 1.0,
        Part::Query | Part::CrossQuery if t5 => (hidden * width).powf(-0.5),
        Part::Down => inner.powf(-0.5),
        _ => hidden.powf(-0.5),
    })?;
    let config = TrainConfig { shuffle: false, ..recipe.config(plan.threads) };
    let head = Head::LanguageModel(LanguageModel {});
    pretrain::pretrain((base, head, Bare {}), config, examples, places)
}

/// How what is trained is scored.
pub(super) trait Score {
    fn score<T: Tuner>(&self, base: &Base, trained: &Trained<T>) -> Result<Scored>;
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
        let weights = self.model.fingerprint();
        let runs = Runs { model: self.model, weights, output: &plan.output, device: &plan.device };
        let (untuned, mut failures) = (self.untuned(&runs)?, Failures::default());
        say(report.progress(0, 0, &untuned));
        report.rows[0].cells[0].runs.push(untuned);
        plan.write(&report)?;
        for (i, row) in plan.rows.iter().enumerate() {
            for seed in &plan.seeds {
                let outcome = self.one(&runs, row, *seed);
                let run = format!("{}, seed {seed}", row.name);
                let Some(outcome) = failures.sort(&run, outcome)? else { continue };
                say(report.progress(i + 1, 0, &outcome));
                report.rows[i + 1].cells[0].runs.push(outcome);
                plan.write(&report)?;
            }
        }
        plan.finish(started, report, failures)
    }

    /// One run.
    fn one(&self, runs: &Runs<'_>, row: &Row, seed: u64) -> Result<Outcome> {
        let (plan, shape) = (self.plan, self.model.base.shape());
        let settings = row.settings(shape, plan.real.is_none());
        let method = peft::with_words(&by_name(row.method)?, &settings)?;
        let config = plan.config((row, seed), shape, self.train.examples.len());
        let data = [json!(Example::fingerprint(&self.train.examples)), self.scored.clone()];
        let name = format!("{}-{seed}", row.name.replace([' ', ','], ""));
        runs.outcome(&name, (method, config), self.train, &data, |tuned| self.score.score(&tuned.base, &tuned.trained))
    }

    fn untuned(&self, runs: &Runs<'_>) -> Result<Outcome> {
        let trained = Trained::new(Bare {}, Head::LanguageModel(LanguageModel {}))?;
        let started = Instant::now();
        runs.kept("untuned", &json!([runs.weights, self.scored]), |_| {
            let (scores, errors) = self.score.score(&self.model.base, &trained)?;
            Ok(Outcome { scores, errors, seconds: started.elapsed().as_secs_f64(), ..Outcome::default() })
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
                counted: Some(row.survey_count(&real)?),
                real_params: Some(row.count(&real, false)?),
                params: row.count(shape, plan.real.is_none())?,
                head: 0,
                cells: vec![cell],
                ..Default::default()
            })
        };
        let rows = plan.rows.iter().map(row).collect::<Result<Vec<_>>>()?;
        let made = plan.real.is_none();
        let own = [
            (
                "Model",
                plan.real.as_ref().map_or("a small one, pretrained here".to_string(), |(model, _)| model.clone()),
            ),
            ("Its shape", format!("{} layers of {}, {} parameters", shape.layers, shape.hidden, shape.count())),
            ("Data", if made { "generated by a seeded grammar".into() } else { "real files".to_string() }),
            ("Examples", format!("{} to train on", self.train.examples.len())),
        ];
        let mut notes = vec![];
        for row in &plan.rows {
            let settings = row.settings_text(shape, made);
            let (count, all) = (row.count(&real, false)?, real.count());
            // What takes the place of the model's own tensors adds nothing to them.
            let all = if row.method == "full" { all } else { all + count };
            let (millions, percent) = (all as f64 / 1e6, 100.0 * count as f64 / all as f64);
            let (rate, batch) = (plan.learning_rate(row), plan.batch_size(row, shape));
            notes.push(format!(
                "{}: {settings}; learning rate {rate}, batches of {batch}. On {survey}: {count} trainable of {all} parameters ({millions:.1}M), {percent:.3} %.{}",
                row.name,
                row.differs_text()
            ));
        }
        Ok(Report {
            title: title.into(),
            setting: plan.setting(&own, survey),
            columns: vec![column],
            rows: [vec![untuned], rows].concat(),
            notes,
            costs: false,
            differences: false,
        })
    }
}

/// Refuses data of which nothing is left.
pub(super) fn some<T>(found: Vec<T>, what: &str) -> Result<Vec<T>> {
    if found.is_empty() { Err(Error::config(what, "none", "at least one")) } else { Ok(found) }
}
