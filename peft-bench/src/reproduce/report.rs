//! The results of a reproduction, beside the survey's: as a table for a terminal, as Markdown, and as an HTML page
//! (`html.rs`). It is plain data and may be partial: what has no result yet is shown as such.

use serde::{Deserialize, Deserializer, Serialize};

use super::text::{aligned, grouped, markdown, millions};

/// A line of a table with costs.
pub(super) enum Line<'a> {
    /// The heading of the rows that follow.
    Group(&'a str),
    Row(Vec<String>),
}

/// All results.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// The heading.
    pub title: String,
    /// What was run: names and values, in the order in which they are shown.
    pub setting: Vec<(String, String)>,
    /// The tasks.
    pub columns: Vec<Column>,
    /// The methods.
    pub rows: Vec<Row>,
    /// What a reader should know beside [`Report::reading`].
    pub notes: Vec<String>,
    /// Whether it shows what runs took in place of the survey's figures.
    #[serde(default)]
    pub costs: bool,
    /// Whether each row is set against the first of its group.
    #[serde(default)]
    pub differences: bool,
}

/// A task.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// The names of its metrics, one or two.
    pub metrics: Vec<String>,
}

/// A method.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// Its place in the survey's tree, where rows are sorted by that.
    #[serde(default)]
    pub group: String,
    /// The survey's number of trainable parameters, as printed.
    pub survey_params: Option<String>,
    /// What that number counts, derived for the model of the survey (most rows with the head).
    pub counted: Option<usize>,
    /// What this program trains for the model of the survey, with the head.
    pub real_params: Option<usize>,
    /// Trained here, without the head.
    pub params: usize,
    /// The head trained beside them.
    pub head: usize,
    /// One for each column; an empty one for what was not run.
    pub cells: Vec<Cell>,
}

/// A method on a task.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Cell {
    /// The survey's scores, one a metric; empty if it gives none.
    pub survey: Vec<f64>,
    /// Ours, one a seed; empty if there is none yet.
    pub runs: Vec<Outcome>,
}

/// One run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// Its seed.
    pub seed: u64,
    /// One a metric, times 100.
    #[serde(deserialize_with = "numbers")]
    pub scores: Vec<f64>,
    /// Their standard errors, for that what is scored is a sample; empty where they are not known.
    #[serde(default)]
    pub errors: Vec<f64>,
    /// The loss of the training at some steps.
    #[serde(deserialize_with = "steps")]
    pub losses: Vec<(usize, f64)>,
    /// How long it took.
    pub seconds: f64,
    /// What it took, where that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
    /// Whether an earlier call had it.
    #[serde(skip)]
    pub earlier: bool,
}

/// What a run took, in a process of its own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Numbers that the method trained, and the head.
    pub trained: [usize; 2],
    /// What its file holds beside the head, in numbers of four bytes.
    pub stored: usize,
    /// The mean of its steps; none, if the run was taken up after the last one.
    pub step_seconds: Option<f64>,
    /// The most memory that the process held from the start of the method to the last step, where the system tells.
    pub peak_bytes: Option<u64>,
    /// The largest difference of a logit once it is folded into the model; none, if it does not merge.
    pub merged: Option<f64>,
}

/// JSON has no NaN: what a diverged run leaves is written as null, and must not keep the others from being read.
fn numbers<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<f64>, D::Error> {
    let numbers = Vec::<Option<f64>>::deserialize(from)?;
    Ok(numbers.into_iter().map(|n| n.unwrap_or(f64::NAN)).collect())
}

fn steps<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<(usize, f64)>, D::Error> {
    let steps = Vec::<(usize, Option<f64>)>::deserialize(from)?;
    Ok(steps.into_iter().map(|(step, n)| (step, n.unwrap_or(f64::NAN))).collect())
}

/// A metric over seeds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Stat {
    pub mean: f64,
    /// The sample standard deviation; none of a single run.
    pub spread: Option<f64>,
}

impl Stat {
    pub(super) fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
        Stat { mean, spread: (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt()) }
    }
}

impl Cell {
    /// Ours, one a metric; empty before the first run.
    pub(super) fn ours(&self) -> Vec<Stat> {
        let metrics = self.runs.iter().map(|run| run.scores.len()).min().unwrap_or(0);
        (0..metrics).map(|m| Stat::of(&self.runs.iter().map(|run| run.scores[m]).collect::<Vec<_>>())).collect()
    }

    /// The survey's scores as it prints them.
    pub(super) fn survey_text(&self) -> String {
        // A hair more than an average ending in 5, which the survey rounds up.
        pair(&self.survey, "-", |score| format!("{:.2}", score + 1e-9))
    }
}

/// The mean of the first metrics and that of the last ones; a single number where every task has one metric. Empty
/// unless every task has a score: averages of different tasks cannot be compared.
fn average(scores: &[&[f64]]) -> Vec<f64> {
    if scores.is_empty() || scores.iter().any(|s| s.is_empty()) {
        return Vec::new();
    }
    let mean = |pick: fn(&[f64]) -> f64| scores.iter().map(|s| pick(s)).sum::<f64>() / scores.len() as f64;
    let first = mean(|s| s[0]);
    if scores.iter().all(|s| s.len() == 1) { vec![first] } else { vec![first, mean(|s| s[s.len() - 1])] }
}

impl Row {
    /// The average column, over the seeds that every task has.
    pub(super) fn average(&self) -> Cell {
        let survey = average(&self.cells.iter().map(|cell| &*cell.survey).collect::<Vec<_>>());
        let run = |seed: u64| {
            let runs = self.cells.iter().map(|cell| cell.runs.iter().find(|run| run.seed == seed));
            let runs = runs.collect::<Option<Vec<_>>>()?;
            let scores = average(&runs.iter().map(|run| &*run.scores).collect::<Vec<_>>());
            let seconds = runs.iter().map(|run| run.seconds).sum();
            Some(Outcome { seed, scores, seconds, ..Outcome::default() })
        };
        let seeds = self.cells.first().into_iter().flat_map(|cell| cell.runs.iter().map(|run| run.seed));
        Cell { survey, runs: seeds.filter_map(run).collect() }
    }

    /// All cells and, of several, the average.
    pub(super) fn with_average(&self) -> Vec<Cell> {
        let average = (self.cells.len() != 1).then(|| self.average());
        self.cells.iter().cloned().chain(average).collect()
    }

    /// What stands before the scores: the survey's side and ours of #TPs, the same exactly, trained here, head.
    pub(super) fn counts(&self) -> [[String; 4]; 2] {
        let or_none = |count: Option<usize>, text: fn(usize) -> String| count.map_or_else(|| "-".into(), text);
        let survey = self.survey_params.clone().unwrap_or_else(|| "-".into());
        let counted = or_none(self.counted, grouped);
        let real = [or_none(self.real_params, millions), or_none(self.real_params, grouped)];
        let [ours, exactly] = real;
        [[survey, counted, String::new(), String::new()], [ours, exactly, grouped(self.params), grouped(self.head)]]
    }
}

impl Report {
    /// The table for a terminal: for each method a line of the survey's, one of ours, and one of the spread over seeds.
    /// All lines have the same width.
    pub fn table(&self) -> String {
        let mut lines = vec![self.header()];
        if self.costs {
            let empty = vec![String::new(); lines[0].len()];
            lines.extend(self.field_lines().into_iter().map(|line| match line {
                Line::Group(group) => [vec![String::new(), group.to_string()], empty[2..].to_vec()].concat(),
                Line::Row(texts) => texts,
            }));
            return aligned(&lines);
        }
        for row in &self.rows {
            let cells = row.with_average();
            let ours: Vec<Vec<Stat>> = cells.iter().map(Cell::ours).collect();
            let [survey_counts, our_counts] = row.counts();
            let mut line = |name: &str, kind: &str, counts: [String; 4], scores: Vec<String>| {
                lines.push([name.to_string(), kind.to_string()].into_iter().chain(counts).chain(scores).collect());
            };
            line(&row.name, "survey", survey_counts, cells.iter().map(Cell::survey_text).collect());
            let means = ours.iter().map(|stats| pair(stats, "…", |stat| format!("{:.2}", stat.mean)));
            line("", "ours", our_counts, means.collect());
            let spreads: Vec<String> = ours.iter().map(|stats| spreads(stats)).collect();
            if spreads.iter().any(|text| !text.is_empty()) {
                line("", "", Default::default(), spreads);
            }
        }
        aligned(&lines)
    }

    /// What a program says when a run ends.
    pub fn progress(&self, row: usize, column: usize, outcome: &Outcome) -> String {
        let (row, cell, column) = (&self.rows[row], &self.rows[row].cells[column], &self.columns[column]);
        let scores = column.metrics.iter().zip(&outcome.scores).map(|(name, score)| format!("{name} {score:.2}"));
        let (scores, survey) = (scores.collect::<Vec<_>>().join(", "), cell.survey_text());
        let (seed, seconds) = (outcome.seed, outcome.seconds);
        let when = if outcome.earlier { "by an earlier call, which took" } else { "in" };
        format!("{} on {}, seed {seed}: {scores} (survey {survey}) {when} {seconds:.1} s", row.name, column.name)
    }

    /// How to read the table, in plain sentences.
    pub fn reading(&self) -> Vec<String> {
        if self.costs {
            return self.field_reading();
        }
        let metrics = self.columns.iter().map(|column| format!("{} {}", column.name, column.metrics.join("/")));
        let runs = self.rows.iter().flat_map(|row| &row.cells).map(|cell| cell.runs.len()).filter(|n| *n > 0);
        let seeds = match (runs.clone().min(), runs.max()) {
            (None, _) | (_, None) => "no run yet".to_string(),
            (Some(low), Some(high)) if low == high => format!("{low} here"),
            (Some(low), Some(high)) => format!("{low} to {high} here"),
        };
        let mut lines = vec![
            "A method has the survey's figures first, then ours.".into(),
            "#TPs: trainable parameters for the model of the survey, as it prints them, then those that this program trains, \
            with the head. Exactly: what the survey's number counts, derived, then ours. They differ where the survey counts \
            something else, which the notes say. Here: those that were trained for this table, without the head. Head: the task \
            head trained beside them."
                .into(),
            format!("Scores are times 100: {}.", metrics.collect::<Vec<_>>().join(", ")),
            format!(
                "Ours are means over seeds ({seeds}). ± is the sample standard deviation over them, and is not given \
                of a single one. Of so few it is a rough measure of the noise, no interval of confidence."
            ),
            "A - is a figure that is not given, a … one that is not there yet.".into(),
        ];
        if self.columns.len() != 1 {
            lines.push(
                "Avg: the mean of the first metrics/the mean of the second ones; a task with one metric counts in both. \
                It is over the tasks shown (the survey's is computed again for them) and the seeds that every task has."
                    .into(),
            );
        }
        let errors = |row: &Row| {
            let known = row.cells.iter().flat_map(|cell| &cell.runs).find(|run| !run.errors.is_empty())?;
            Some(format!("{} {}", row.name, pair(&known.errors, "", |error| format!("{error:.2}"))))
        };
        let errors: Vec<String> = self.rows.iter().filter_map(errors).collect();
        if !errors.is_empty() {
            lines.push(format!(
                "Standard errors, for that these questions are a sample (of the first seed): {}.",
                errors.join(", ")
            ));
        }
        lines
    }

    /// REPORT.md
    pub fn markdown(&self) -> String {
        let mut out = format!("# {}\n\n", markdown(&self.title));
        for (name, value) in &self.setting {
            out += &format!("- {}: {}\n", markdown(name), markdown(value));
        }
        let header: Vec<String> = self.header().iter().map(|name| markdown(name)).collect();
        out += &format!("\n| {} |\n|---|---|{}\n", header.join(" | "), "---:|".repeat(header.len() - 2));
        for line in if self.costs { self.field_lines() } else { vec![] } {
            out += &match line {
                Line::Group(group) => format!("| | **{}** |{}\n", markdown(group), " |".repeat(header.len() - 2)),
                Line::Row(texts) => {
                    format!("| {} |\n", texts.iter().map(|text| markdown(text)).collect::<Vec<_>>().join(" | "))
                }
            };
        }
        for row in self.rows.iter().filter(|_| !self.costs) {
            let cells = row.with_average();
            let [survey_counts, our_counts] = row.counts();
            let mut line = |name: &str, kind: &str, counts: [String; 4], scores: Vec<String>| {
                out += &format!("| {name} | {kind} | {} | {} |\n", counts.join(" | "), scores.join(" | "));
            };
            line(&markdown(&row.name), "survey", survey_counts, cells.iter().map(Cell::survey_text).collect());
            let ours = |stat: &Stat| match stat.spread {
                Some(spread) => format!("{:.2} ±{spread:.2}", stat.mean),
                None => format!("{:.2}", stat.mean),
            };
            let text = |stats: &[Stat]| match stats {
                [first, second] if first.spread.is_some() => format!("{} / {}", ours(first), ours(second)),
                _ => pair(stats, "…", ours),
            };
            line("", "ours", our_counts, cells.iter().map(|cell| text(&cell.ours())).collect());
        }
        let list = |heading: &str, items: &[String]| {
            let items: String = items.iter().map(|item| format!("- {}\n", markdown(item))).collect();
            if items.is_empty() { items } else { format!("\n## {heading}\n\n{items}") }
        };
        out + &list("How to read it", &self.reading()) + &list("Notes", &self.notes)
    }

    /// The names of the columns.
    pub(super) fn header(&self) -> Vec<String> {
        if self.costs {
            return self.field_header();
        }
        let tasks = self.columns.iter().map(|column| &*column.name);
        let average = (self.columns.len() != 1).then_some("Avg");
        ["method", "", "#TPs", "exactly", "here", "head"]
            .into_iter()
            .chain(tasks)
            .chain(average)
            .map(String::from)
            .collect()
    }
}

/// `a/b`, as the survey prints two metrics.
pub(super) fn pair<T>(values: &[T], none: &str, text: impl FnMut(&T) -> String) -> String {
    if values.is_empty() { none.to_string() } else { values.iter().map(text).collect::<Vec<_>>().join("/") }
}

/// `±a/±b`; empty for a single run.
pub(super) fn spreads(stats: &[Stat]) -> String {
    let known: Vec<f64> = stats.iter().filter_map(|stat| stat.spread).collect();
    pair(&known, "", |spread| format!("±{spread:.2}"))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Three methods on two tasks; `seeds` runs in each cell.
    pub(in super::super) fn small(seeds: u64) -> Report {
        let column = |name: &str, metrics: &[&str]| Column {
            name: name.into(),
            metrics: metrics.iter().map(|metric| metric.to_string()).collect(),
        };
        let cell = |survey: &[f64], scores: &[f64]| {
            let run = |seed| Outcome {
                seed,
                scores: scores.iter().map(|score| score + seed as f64).collect(),
                errors: if seed == 0 { vec![1.5; scores.len()] } else { vec![] },
                losses: (1..9).map(|step| (step, 1.0 / step as f64)).collect(),
                seconds: 1.5,
                cost: None,
                earlier: false,
            };
            Cell { survey: survey.to_vec(), runs: (0..seeds).map(run).collect() }
        };
        let row = |name: &str, params| Row {
            name: name.into(),
            group: String::new(),
            survey_params: Some("0.89M".into()),
            counted: Some(887_042),
            real_params: Some(294_912),
            params,
            head: 4290,
            cells: vec![cell(&[62.0], &[50.0]), cell(&[87.5, 90.68], &[70.0, 80.0])],
        };
        Report {
            title: "A <b> & \"c\" | d".into(),
            setting: vec![("model".into(), "'x' <script>".into())],
            columns: vec![column("CoLA", &["matthews"]), column("MRPC", &["accuracy", "f1"])],
            rows: vec![row("LoRA", 1_234_567), row("a_b|c<d>", 12), row("probe", 0)],
            notes: vec!["*one*\ntwo".into()],
            costs: false,
            differences: false,
        }
    }

    #[test]
    fn mean_and_spread() {
        assert_eq!(Stat::of(&[1.0, 2.0, 6.0]), Stat { mean: 3.0, spread: Some(7f64.sqrt()) });
        assert_eq!(Stat::of(&[4.0]), Stat { mean: 4.0, spread: None });
        assert_eq!(average(&[&[60.0], &[70.0, 80.0]]), [65.0, 70.0]);
        assert_eq!(average(&[&[60.0], &[70.0]]), [65.0]);
        assert!(average(&[&[60.0], &[]]).is_empty() && average(&[]).is_empty());
    }

    /// A seed that one task lacks is in no average.
    #[test]
    fn averages_compare_equal_seeds() {
        let mut row = small(3).rows.remove(0);
        row.cells[0].runs.remove(1);
        assert_eq!(row.average().runs.iter().map(|run| run.seed).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(row.average().ours()[1], Stat { mean: 66.0, spread: Some(2f64.sqrt()) });
        assert_eq!(row.average().survey_text(), "74.75/76.34");
    }

    #[test]
    fn the_table_is_aligned() {
        for seeds in 0..4 {
            let table = small(seeds).table();
            let widths: Vec<usize> = table.lines().map(|line| line.chars().count()).collect();
            assert!(widths.iter().all(|width| *width == widths[0]), "{table}");
            assert_eq!(widths.len(), 2 + 3 * if seeds > 1 { 3 } else { 2 }, "{table}");
        }
        assert!(small(3).table().contains("1,234,567  4,290  51.00  71.00/81.00  61.00/66.00"));
        assert!(small(3).table().contains("±1.00  ±1.00/±1.00"));
    }

    #[test]
    fn a_partial_report_is_shown() {
        let mut report = small(1);
        report.rows[1].cells[1] = Cell::default();
        report.rows[2].survey_params = None;
        for text in [report.table(), report.markdown(), report.html()] {
            assert!(text.contains('…') && !text.contains("NaN"), "{text}");
        }
        let empty = Report { rows: Vec::new(), ..report };
        for text in [empty.table(), empty.markdown(), empty.html(), Report::default().table(), Report::default().html()]
        {
            assert!(text.contains("Avg") && !text.contains("NaN"), "{text}");
        }
    }

    #[test]
    fn markdown_shows_names_as_they_are() {
        let text = small(2).markdown();
        assert!(text.contains("# A \\<b\\> \\& \"c\" \\| d\n"), "{text}");
        assert!(text.contains("| a\\_b\\|c\\<d\\> | survey | 0.89M | 887,042 |"), "{text}");
        assert!(text.contains("|  | ours | 0.29M | 294,912 | 1,234,567 | 4,290 |"), "{text}");
        assert!(text.contains("| 70.50 ±0.71 / 80.50 ±0.71 |"), "{text}");
        assert!(text.contains("- \\*one\\* two\n"), "{text}");
    }

    #[test]
    fn a_diverged_run_is_read_back() {
        let run = Outcome { scores: vec![f64::NAN, 1.0], losses: vec![(3, f64::INFINITY)], ..Outcome::default() };
        let read: Outcome = serde_json::from_str(&serde_json::to_string(&run).unwrap()).unwrap();
        assert!(read.scores[0].is_nan() && read.scores[1] == 1.0 && read.losses[0].1.is_nan());
    }

    #[test]
    fn standard_errors_are_told() {
        let told = |report: Report| report.reading().into_iter().find(|line| line.starts_with("Standard errors"));
        let mut report = small(1);
        report.rows.truncate(1);
        report.columns.truncate(1);
        report.rows[0].cells.remove(0);
        assert!(told(report).is_some_and(|line| line.ends_with(": LoRA 1.50/1.50.")));
        assert_eq!(told(small(0)), None);
    }

    #[test]
    fn progress_is_a_line() {
        let report = small(1);
        let line = report.progress(0, 1, &report.rows[0].cells[1].runs[0]);
        assert_eq!(line, "LoRA on MRPC, seed 0: accuracy 70.00, f1 80.00 (survey 87.50/90.68) in 1.5 s");
        assert_eq!((millions(294_912), millions(55_296), grouped(0)), ("0.29M".into(), "0.0553M".into(), "0".into()));
    }
}
