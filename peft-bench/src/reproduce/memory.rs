//! Table VII: the most memory that a step of each row takes, on the real shapes with random weights, each in a process of its own.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use peft_core::files::{check_file, lock, remove_scratch, write_file};
use peft_core::{Error, Result, Shape};
use serde_json::{Value, json};

use super::outcome::RUNS;
use super::rows::{ROWS, ROWS_IV, ROWS_VI, Row};
use super::survey::{Memory, TABLE_VII};
use super::text::aligned;
use super::{REPORTS, say};
use crate::child;
use crate::machine::{digest, program};

/// What is run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Rows of the table, by their names on all models or as MODEL/ROW; all, if there are none.
    pub rows: Vec<String>,
    /// Sequences in a step, in place of those of the rows.
    pub batch_size: Option<usize>,
    /// A short sequence on the smallest model alone.
    pub quick: bool,
    /// Threads.
    pub threads: usize,
    /// Where outcomes and the report are written.
    pub output: PathBuf,
    /// Where it is computed.
    pub device: String,
}

const TITLE: &str = "Table VII: the most memory that a step takes";
const COLUMNS: [&str; 8] = ["model", "row", "survey GB", "GB", "ratio", "how", "planned GB", "s a step"];
const READING: &str = "GB are of 10^9 bytes. Ours is the resident peak of a whole process from the first step on, in numbers of f32 but for QLoRA, \
    on random weights of the real shapes: a batch is computed in pieces of 256 rows, so that its size hardly counts. The survey's are those of \
    A800s, without a word on precision, lengths or what of the allocator is counted; its Adapter_S and MAM Adapter ran with 512 tokens by \
    default. Planned is what `peft plan` says from runs of two and six layers. A row is planned only where this machine has not the memory.";

/// What QLoRA's own script adds to its method.
const LEAN: [&str; 7] =
    ["--base", "nf4-double", "--compute", "bf16", "--gradient-checkpointing", "--optimizer", "paged_adamw_32bit"];

/// The most sequences in a step of LLaMA: the survey's 16, computed in pieces, would take hours and no more memory.
const MOST: usize = 2;

/// The names that the survey's models have here.
const SHAPES: [(&str, &str); 6] = [
    ("RoBERTa-base", "roberta-base"),
    ("RoBERTa-large", "roberta-large"),
    ("T5-base", "t5-base"),
    ("T5-large", "t5-large"),
    ("LLaMA-7B", "llama-7b"),
    ("LLaMA-13B", "llama-13b"),
];

/// A row that is run.
struct Wanted {
    survey: &'static Memory,
    /// Options of `peft bench step`.
    options: Vec<String>,
}

impl Wanted {
    fn new(survey: &'static Memory, plan: &Plan) -> Result<Self> {
        let (model, name, _) = *survey;
        let shape = SHAPES.iter().find(|(known, _)| *known == model).map_or(model, |(_, shape)| shape);
        let (rows, tokens, most): (&[Row], usize, usize) = match model.split_once('-') {
            Some(("RoBERTa", _)) => (&ROWS, 128, usize::MAX),
            Some(("T5", _)) => (&ROWS_IV, 128, usize::MAX),
            _ => (&ROWS_VI, 512, MOST),
        };
        let (row, real) = (Row::named(rows, name)?, Shape::named(shape)?);
        let (batch, tokens) = match plan.quick {
            true => (1, 16),
            false => (plan.batch_size.unwrap_or_else(|| row.batch_size(&real).min(most)), tokens),
        };
        let given = [
            ("--model", format!("shape:{shape}")),
            ("--method", row.method.into()),
            ("--batch", batch.to_string()),
            ("--seq", tokens.to_string()),
            ("--threads", plan.threads.to_string()),
            ("--device", plan.device.clone()),
        ];
        let mut options: Vec<String> = given.into_iter().flat_map(|(key, value)| [key.to_string(), value]).collect();
        options.extend(row.settings(&real, false).into_iter().flat_map(|setting| ["--set".to_string(), setting]));
        if row.method == "qlora" {
            options.extend(LEAN.map(str::to_string));
        }
        Ok(Wanted { survey, options })
    }

    fn name(&self) -> String {
        format!("{}/{}", self.survey.0, self.survey.1)
    }

    /// What a process of this program says.
    fn told(&self, command: &[&str], more: &[&str]) -> Result<Value> {
        let args = command.iter().chain(more).map(|arg| arg.to_string()).chain(self.options.iter().cloned());
        let output = child::run(args, Stdio::piped(), Stdio::piped())?;
        serde_json::from_slice(&output.stdout).map_err(|_| {
            let said = String::from_utf8_lossy(&output.stderr);
            let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
            let detail = format!("{}: {} ({})", self.name(), last.trim_start_matches("error: "), output.status);
            Error::Check { what: "a run comes to its end", detail }
        })
    }

    /// The peak of a step: measured, or planned if the machine has not the memory for it.
    fn outcome(&self) -> Result<Value> {
        let plan = self.told(&["plan"], &[])?;
        let (steps, peak) = match plan["fits"] == json!(false) {
            true => (None, plan["peak_bytes"].clone()),
            false => {
                let step = self.told(&["bench", "step"], &["--steps", "1"])?;
                (Some(step["seconds"]["median"].clone()), step["step_peak_bytes"].clone())
            }
        };
        Ok(json!({"peak_bytes": peak, "planned_bytes": plan["peak_bytes"], "seconds": steps}))
    }

    fn line(&self, outcome: &Value) -> Vec<String> {
        let (model, name, survey) = *self.survey;
        let (peak, seconds) = (&outcome["peak_bytes"], outcome["seconds"].as_f64());
        let ratio = peak.as_f64().map_or("unknown".into(), |peak| format!("{:.2}", peak / 1e9 / survey));
        let how = if seconds.is_some() { "measured" } else { "planned" };
        let seconds = seconds.map_or("-".into(), |seconds| format!("{seconds:.1}"));
        let planned = gigabytes(&outcome["planned_bytes"]);
        vec![model.into(), name.into(), format!("{survey:.2}"), gigabytes(peak), ratio, how.into(), planned, seconds]
    }

    /// The outcome, from its file if this program has written it.
    fn kept(&self, runs: &Path) -> Result<Value> {
        let hash = digest(&[program().as_bytes(), json!(self.options).to_string().as_bytes()]);
        let path = runs.join(format!("{}-{hash}.json", self.name().replace(['/', ' '], "-")));
        if let Some(known) = peft_core::files::read_json(&path).ok().filter(|known| known["peak_bytes"].is_u64()) {
            return Ok(known);
        }
        let outcome = self.outcome()?;
        write_file(&path, outcome.to_string().as_bytes()).map(|()| outcome)
    }
}

/// The rows of a plan, in the survey's order.
fn wanted(plan: &Plan) -> Result<Vec<Wanted>> {
    let is = |(model, name, _): &Memory, asked: &str| {
        asked.eq_ignore_ascii_case(name) || asked.eq_ignore_ascii_case(&format!("{model}/{name}"))
    };
    for asked in &plan.rows {
        if !TABLE_VII.iter().any(|row| is(row, asked)) {
            let names = TABLE_VII.iter().map(|(model, name, _)| format!("{model}/{name}"));
            let known = format!("a row on all models, or one of {}", names.collect::<Vec<_>>().join(", "));
            return Err(Error::config("--rows", asked, known));
        }
    }
    let chosen = |row: &&Memory| match plan.rows.is_empty() {
        true => !plan.quick || row.0 == TABLE_VII[0].0,
        false => plan.rows.iter().any(|asked| is(row, asked)),
    };
    TABLE_VII.iter().filter(chosen).map(|row| Wanted::new(row, plan)).collect()
}

/// Runs what the plan says, goes on where it was interrupted, and writes REPORT.md and report.json.
pub fn run(plan: &Plan) -> Result<()> {
    let wanted = wanted(plan)?;
    let runs = plan.output.join(RUNS);
    std::fs::create_dir_all(&runs).map_err(Error::io("create", &runs))?;
    let _lock = lock(&plan.output)?;
    let [report, _, data] = REPORTS.map(|name| plan.output.join(name));
    for path in [&report, &data, &runs.join("probe")] {
        check_file(path)?;
    }
    remove_scratch(&runs, "");
    let mut lines = vec![COLUMNS.map(String::from).to_vec()];
    let mut told = vec![];
    for (i, row) in wanted.iter().enumerate() {
        let outcome = row.kept(&runs)?;
        let line = row.line(&outcome);
        say(format_args!("{} of {}: {}: {} GB, {}", i + 1, wanted.len(), row.name(), line[3], line[5]));
        lines.push(line);
        told.push(json!({"model": row.survey.0, "row": row.survey.1, "survey_gb": row.survey.2, "options": row.options, "outcome": outcome}));
    }
    let notes =
        wanted.iter().map(|row| format!("- {}: `peft bench step --steps 1 {}`", row.name(), row.options.join(" ")));
    let text = format!(
        "# {TITLE}\n\n```text\n{}```\n\n{READING}\n\n{}\n",
        aligned(&lines),
        notes.collect::<Vec<_>>().join("\n")
    );
    write_file(&report, text.as_bytes())?;
    write_file(&data, json!({"program": program(), "rows": told}).to_string().as_bytes())?;
    say(format_args!("\n{}\n{}", aligned(&lines), report.display()));
    Ok(())
}

/// Bytes as GB of 10^9.
fn gigabytes(bytes: &Value) -> String {
    bytes.as_f64().map_or("unknown".into(), |bytes| format!("{:.2}", bytes / 1e9))
}
