//! How a report with costs is shown: rows in groups, without figures of the survey beside them.

use super::super::plot::{Dot, scatter};
use super::super::report::{Cell, Cost, Line, Outcome, Report, Row, Stat};
use super::super::text::{escape, grouped};

/// What the runs of a row took together.
struct Costs {
    trained: usize,
    head: usize,
    stored: f64,
    step: Option<f64>,
    seconds: f64,
    peak: Option<u64>,
    /// The largest difference, if all of its runs merge.
    merged: Option<f64>,
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let values: Vec<f64> = values.collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

impl Costs {
    /// None before the first run.
    fn of(row: &Row) -> Option<Self> {
        let runs = || row.cells.iter().flat_map(|cell| &cell.runs);
        let costs: Vec<&Cost> = runs().filter_map(|run| run.cost.as_ref()).collect();
        let [trained, head] = costs.first()?.trained;
        let merged = costs.iter().map(|cost| cost.merged).collect::<Option<Vec<_>>>();
        Some(Costs {
            trained,
            head,
            stored: mean(costs.iter().map(|cost| cost.stored as f64))?,
            step: mean(costs.iter().filter_map(|cost| cost.step_seconds)),
            seconds: mean(runs().map(|run| run.seconds))?,
            peak: costs.iter().filter_map(|cost| cost.peak_bytes).max(),
            merged: merged.map(|all| all.into_iter().fold(0.0, f64::max)),
        })
    }

    fn texts(&self) -> [String; 7] {
        let or_none = |value: Option<f64>, digits: usize| value.map_or("-".into(), |x| format!("{x:.digits$}"));
        [
            grouped(self.trained),
            grouped(self.head),
            grouped(self.stored.round() as usize),
            or_none(self.step.map(|x| 1e3 * x), 1),
            format!("{:.1}", self.seconds),
            or_none(self.peak.map(|bytes| bytes as f64 / 1e6), 0),
            match self.merged {
                None => "no".into(),
                Some(0.0) => "yes, to the bit".into(),
                Some(difference) => format!("yes, {difference:.0e}"),
            },
        ]
    }
}

/// The first metric of the seeds.
fn score(stats: &[Stat]) -> String {
    match stats.first() {
        None => "…".into(),
        Some(Stat { mean, spread: None }) => format!("{mean:.1}"),
        Some(Stat { mean, spread: Some(spread) }) => format!("{mean:.1} ±{spread:.1}"),
    }
}

/// How far the first metric is from that of another row with the same seeds: the mean over these, and its standard error.
fn difference(cell: &Cell, first: &Cell) -> String {
    let own = |run: &Outcome| {
        let other = first.runs.iter().find(|other| other.seed == run.seed)?;
        Some(run.scores.first()? - other.scores.first()?)
    };
    let apart: Vec<f64> = cell.runs.iter().filter_map(own).collect();
    match Stat::of(&apart) {
        _ if apart.is_empty() => "…".into(),
        Stat { mean, spread: None } => format!("{mean:+.1}"),
        Stat { mean, spread: Some(spread) } => format!("{mean:+.1} ±{:.1}", spread / (apart.len() as f64).sqrt()),
    }
}

impl Report {
    pub(in super::super) fn field_header(&self) -> Vec<String> {
        let tasks = self.columns.iter().map(|column| column.name.clone());
        let costs = ["trained", "head", "stored", "ms a step", "s a run", "peak MB", "merges"].map(String::from);
        let average = (self.columns.len() != 1).then(|| "Avg".to_string());
        ["#", "method"].map(String::from).into_iter().chain(tasks).chain(average).chain(costs).collect()
    }

    pub(in super::super) fn field_lines(&self) -> Vec<Line<'_>> {
        let (mut lines, mut group) = (vec![], "");
        for (i, row) in self.rows.iter().enumerate() {
            if row.group != group {
                group = &row.group;
                lines.push(Line::Group(group));
            }
            let scores = row.with_average().iter().map(|cell| score(&cell.ours())).collect::<Vec<_>>();
            let costs = Costs::of(row).map_or_else(|| vec!["…".to_string(); 7], |costs| costs.texts().to_vec());
            lines.push(Line::Row([vec![(i + 1).to_string(), row.name.clone()], scores, costs].concat()));
            let first = self.rows.iter().find(|first| first.group == row.group).filter(|_| self.differences);
            if let Some(first) = first.filter(|first| first.name != row.name) {
                let cells = row.with_average().into_iter().zip(first.with_average());
                let apart = cells.map(|(cell, first)| difference(&cell, &first));
                let line = ["", "difference"].map(String::from).into_iter().chain(apart);
                lines.push(Line::Row(line.chain(vec![String::new(); 7]).collect()));
            }
        }
        lines
    }

    pub(in super::super) fn field_reading(&self) -> Vec<String> {
        let metrics =
            self.columns.iter().filter_map(|column| Some(format!("{} {}", column.name, column.metrics.first()?)));
        let differences = "Difference: from the first row of the group, seed by seed; ± is the standard error of its mean over seeds. Above 0 \
            something is transferred, below it tasks interfere; what is within two errors may be noise, and of two seeds the error itself is \
            a rough one. A row that is trained on all tasks together has one run, whose costs stand there once for all.";
        let lines = vec![
            format!(
                "Scores are times 100: {}. They are means over seeds; ± is the sample standard deviation over them, of so few a rough \
                 measure of the noise. Avg is the mean over the tasks shown.",
                metrics.collect::<Vec<_>>().join(", ")
            ),
            "Trained: numbers that the method trains before anything is pruned. Head: those of the task's head beside them, of the first task. \
             Stored: what the method's file holds beside the head, in numbers of four bytes; a mask takes a bit for each of its numbers."
                .into(),
            "ms a step: the mean of a run's steps without what is computed before the first one. s a run: training with that, without \
             what its sources took; of whatever else the machine did beside them. Peak MB: the most that the process of a run held from \
             the start of the method to its last step, the model, the data and the program itself among it: compare it with linear \
             probing."
                .into(),
            "Merges: whether it folds into the model, and by how much that moved a logit of 32 examples at most.".into(),
            "A … is what is not there yet, or failed, which the notes say.".into(),
        ];
        lines.into_iter().chain(self.differences.then(|| differences.to_string())).collect()
    }

    /// The table as elements.
    pub(in super::super) fn field_scores(&self) -> String {
        let cells = |tag: &str, texts: &[String]| -> String {
            texts.iter().map(|text| format!("<{tag}>{}</{tag}>", escape(text))).collect()
        };
        let header = self.field_header();
        let line = |line: &Line<'_>| match line {
            Line::Group(group) => {
                format!("</tbody><tbody><tr><th colspan=\"{}\">{}</th></tr>\n", header.len(), escape(group))
            }
            Line::Row(texts) => {
                format!("<tr><td>{}</td><th>{}</th>{}</tr>\n", texts[0], escape(&texts[1]), cells("td", &texts[2..]))
            }
        };
        let rows: String = self.field_lines().iter().map(line).collect();
        let header = cells("th", &header);
        format!(
            "<div class=\"wide\"><table class=\"field\">\n<thead><tr>{header}</tr></thead>\n<tbody>{rows}</tbody></table></div>\n"
        )
    }

    /// Scores against numbers and against time; dots have the rows' numbers.
    pub(in super::super) fn field_plots(&self) -> String {
        let numbers: Vec<String> = (1..=self.rows.len()).map(|i| i.to_string()).collect();
        let figure = |x_label: &str, x: fn(&Costs) -> Option<f64>, unit: &str| {
            let found = self.rows.iter().zip(&numbers).filter_map(|(row, number)| {
                let (x, score) = (x(&Costs::of(row)?)?, *row.average().ours().first()?);
                Some(Dot { label: number, name: &row.name, x, y: score.mean, spread: score.spread, unit })
            });
            let dots: Vec<Dot> = found.collect();
            let plot = match &dots[..] {
                [] => "<p>No method has a score on every task yet.</p>".to_string(),
                dots => scatter(&format!("average score against {x_label}"), "ours", x_label, "average score", dots),
            };
            format!("<figure><figcaption>Against {}</figcaption>\n{plot}</figure>\n", escape(x_label))
        };
        let plots = [
            figure(
                "trained numbers, with the head (log)",
                |costs| Some((costs.trained + costs.head) as f64),
                "numbers",
            ),
            figure("stored numbers (log)", |costs| Some(costs.stored).filter(|n| *n > 0.0), "numbers"),
            figure("milliseconds a step (log)", |costs| costs.step.map(|x| 1e3 * x), "ms"),
            figure("seconds a run, preparations included (log)", |costs| Some(costs.seconds), "s"),
        ];
        format!(
            "<h2>Score against numbers and against time</h2>\n<p>The average of the first metrics over all tasks shown; bars are the \
             spread over seeds. Dots have the numbers of the rows, and names where one points at them.</p>\n<div class=\"two\">{}</div>\n",
            plots.concat()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::report::tests::small;
    use super::*;

    fn with_costs(merged: Option<f64>) -> Report {
        let mut report = Report { costs: true, ..small(2) };
        for (i, row) in report.rows.iter_mut().enumerate() {
            row.group = ["additive / <x>", "additive / <x>", "unified"][i].into();
            for run in row.cells.iter_mut().flat_map(|cell| &mut cell.runs) {
                let (step_seconds, peak_bytes) = (Some(0.0125), Some(98_765_432));
                run.cost = Some(Cost { trained: [1234, 99], stored: 777, step_seconds, peak_bytes, merged });
            }
        }
        report
    }

    #[test]
    fn rows_stand_in_groups_with_their_costs() {
        let report = with_costs(Some(2.4e-6));
        let expected = ["1,234", "99", "777", "12.5", "1.5", "99", "yes, 2e-6"];
        for text in [report.table(), report.markdown(), report.html()] {
            assert!(expected.iter().all(|word| text.contains(word)), "{text}");
            assert!(!text.contains("survey's figures") && !text.contains("NaN"), "{text}");
        }
        let table = report.table();
        assert_eq!((table.matches("additive").count(), table.matches("unified").count()), (1, 1), "{table}");
        let page = report.html();
        assert!(page.contains("additive / &lt;x&gt;") && page.matches("<svg").count() == 4, "{page}");
        assert!(page.contains("a_b|c&lt;d&gt;: "), "a dot tells its row");
        assert!(with_costs(None).table().contains("  no"));
    }

    /// Seeds that one of the two lacks do not count.
    #[test]
    fn a_difference_is_of_the_same_seeds() {
        let cell = |scores: &[(u64, f64)]| Cell {
            runs: scores
                .iter()
                .map(|(seed, score)| Outcome { seed: *seed, scores: vec![*score], ..Outcome::default() })
                .collect(),
            ..Cell::default()
        };
        let first = cell(&[(0, 70.0), (1, 80.0), (2, 10.0)]);
        assert_eq!(difference(&cell(&[(1, 83.0), (0, 72.0)]), &first), "+2.5 ±0.5");
        assert_eq!(difference(&cell(&[(0, 69.0), (7, 99.0)]), &first), "-1.0");
        assert_eq!(difference(&cell(&[]), &first), "…");
        let mut report = Report { differences: true, ..with_costs(None) };
        report.rows[1].cells[0].runs.iter_mut().for_each(|run| run.scores[0] += 4.0);
        let table = report.table();
        assert_eq!(table.matches("difference").count(), 1, "{table}");
    }

    #[test]
    fn what_is_not_there_yet_is_shown_as_such() {
        let report = Report { costs: true, ..small(0) };
        for text in [report.table(), report.markdown(), report.html()] {
            assert!(text.contains('…') && !text.contains("NaN"), "{text}");
        }
    }
}
