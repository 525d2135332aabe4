//! report.html: one file, with no script and nothing from elsewhere.

use std::collections::BTreeMap;

use super::plot::{Curve, Dot, curves, scatter};
use super::report::{Cell, Report, Row, Stat, pair, spreads};
use super::text::escape;

impl Report {
    /// report.html
    pub fn html(&self) -> String {
        let (title, style) = (escape(&self.title), include_str!("report.css"));
        let pair = |(name, value): &(String, String)| format!("<dt>{}</dt><dd>{}</dd>", escape(name), escape(value));
        let setting: String = self.setting.iter().map(pair).collect();
        let list = |heading: &str, items: &[String]| {
            let items: String = items.iter().map(|item| format!("<li>{}</li>\n", escape(item))).collect();
            if items.is_empty() { items } else { format!("<h2>{heading}</h2>\n<ul>{items}</ul>\n") }
        };
        // Pointing at a name fades the other lines.
        let fade = |i| format!(".losses:has(.keys .s{i}:hover) .many .line:not(.s{i}) {{ opacity: .1; }}\n");
        let style = (0..STYLES).map(fade).fold(style.to_string(), |style, rule| style + &rule);
        let body = [
            format!("<h1>{title}</h1>\n<dl>{setting}</dl>\n"),
            if self.costs { self.field_scores() } else { self.scores() },
            list("How to read it", &self.reading()),
            list("Notes", &self.notes),
            if self.costs { self.field_plots() } else { self.parameters() + &self.losses() },
        ];
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
             content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n<style>\n{style}</style>\n\
             </head>\n<body>\n{}</body>\n</html>\n",
            body.concat()
        )
    }

    fn scores(&self) -> String {
        let cells = |tag: &str, texts: &[String]| -> String {
            texts.iter().map(|text| format!("<{tag}>{text}</{tag}>")).collect()
        };
        let header: Vec<String> = self.header().iter().map(|name| escape(name)).collect();
        let mut rows = String::new();
        for row in &self.rows {
            let [survey_counts, our_counts] = row.counts();
            let all: Vec<Cell> = row.with_average();
            let survey: Vec<String> = all.iter().map(Cell::survey_text).collect();
            let ours: Vec<String> = all.iter().map(|cell| score(&cell.ours())).collect();
            rows += &format!(
                "<tbody><tr class=\"theirs\"><th rowspan=\"2\">{}</th><td>survey</td>{}{}</tr>\n\
                 <tr><td>ours</td>{}{}</tr></tbody>\n",
                escape(&row.name),
                cells("td", &survey_counts.map(|count| escape(&count))),
                cells("td", &survey),
                cells("td", &our_counts),
                cells("td", &ours)
            );
        }
        let header = cells("th", &header);
        format!("<div class=\"wide\"><table>\n<thead><tr>{header}</tr></thead>\n{rows}</table></div>\n")
    }

    /// Scores against parameters: ours, and the survey's in a plot of its own, since they are of different models.
    fn parameters(&self) -> String {
        let averages: Vec<Cell> = self.rows.iter().map(|row| row.average()).collect();
        let (mut ours, mut survey) = (Vec::new(), Vec::new());
        fn dot(row: &Row, x: f64, y: f64, spread: Option<f64>) -> Dot<'_> {
            Dot { label: &row.name, name: &row.name, x, y, spread, unit: "parameters" }
        }
        for (row, average) in self.rows.iter().zip(&averages) {
            let x = (row.params + row.head) as f64;
            ours.extend(average.ours().first().map(|s| dot(row, x, s.mean, s.spread)));
            let printed = row.survey_params.as_deref().and_then(|text| text.trim_end_matches('M').parse::<f64>().ok());
            survey.extend(printed.zip(average.survey.first()).map(|(x, y)| dot(row, x * 1e6, *y, None)));
        }
        let figure = |name: &str, class: &str, dots: &[Dot]| {
            let [x, y] = ["trainable parameters, with the head (log)", "average score"];
            let plot = match dots {
                [] => "<p>No method has a score on every task yet.</p>".to_string(),
                _ => scatter(&format!("{name}: {y} against {x}"), class, x, y, dots),
            };
            format!("<figure><figcaption>{name}</figcaption>\n{plot}</figure>\n")
        };
        let plots = [
            figure("Ours, trained here", "ours", &ours),
            if survey.is_empty() { String::new() } else { figure("The survey's", "survey", &survey) },
        ];
        format!(
            "<h2>Score against trainable parameters</h2>\n<p>The average of the first metrics over all tasks shown; \
             bars are the spread over seeds. The axes of the two plots differ. The survey counts the head in \
             most of its #TPs; a method for which it prints none is left out of its plot.</p>\n\
             <div class=\"two\">{}</div>\n",
            plots.concat()
        )
    }

    /// Loss curves, a plot a task, a line a method.
    fn losses(&self) -> String {
        let key = |(i, row): (usize, &Row)| {
            let line = format!("<svg viewBox=\"0 0 34 10\"><path class=\"line s{}\" d=\"M1 5H33\"/></svg>", i % STYLES);
            format!("<li class=\"s{}\">{line}{}</li>", i % STYLES, escape(&row.name))
        };
        let keys: String = self.rows.iter().enumerate().map(key).collect();
        let mut plots = String::new();
        for (c, column) in self.columns.iter().enumerate() {
            let losses = |row: &Row| row.cells[c].runs.iter().flat_map(|run| run.losses.clone()).collect::<Vec<_>>();
            let last = self.rows.iter().flat_map(losses).map(|(step, _)| step).max().unwrap_or(0);
            let mut lines = Vec::new();
            for (i, row) in self.rows.iter().enumerate() {
                lines.push(Curve { label: &row.name, style: i % STYLES, points: smooth(&losses(row), last) });
            }
            let name = escape(&column.name);
            let plot = curves(&format!("Loss on {}", column.name), &lines);
            plots += &format!("<figure><figcaption>{name}</figcaption>\n{plot}</figure>\n");
        }
        format!(
            "<section class=\"losses\"><h2>Training loss</h2>\n<p>Against steps; each point is the mean over seeds and \
             a stretch of steps. Point at a name to see its lines alone.</p>\n<ul class=\"keys\">{keys}</ul>\n\
             <div class=\"many\">{plots}</div></section>\n"
        )
    }
}

/// Lines that the style sheet tells apart: seven colours, each of them solid and dashed.
const STYLES: usize = 14;

/// The means of losses over fortieths of the steps.
fn smooth(losses: &[(usize, f64)], last: usize) -> Vec<(f64, f64)> {
    let mut bins: BTreeMap<usize, (f64, f64, f64)> = BTreeMap::new();
    for (step, loss) in losses {
        let (steps, sum, n) = bins.entry(step * 40 / (last + 1)).or_default();
        (*steps, *sum, *n) = (*steps + *step as f64, *sum + loss, *n + 1.0);
    }
    bins.into_values().map(|(steps, sum, n)| (steps / n, sum / n)).collect()
}

/// Ours in a cell: means, and their spreads below in small print.
fn score(stats: &[Stat]) -> String {
    let means = pair(stats, "…", |stat| format!("{:.2}", stat.mean));
    match spreads(stats) {
        spreads if spreads.is_empty() => means,
        spreads => format!("{means}<small>{spreads}</small>"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::small;
    use super::*;

    #[test]
    fn everything_is_escaped() {
        assert_eq!(escape("<a href=\"x\">'&'"), "&lt;a href=&quot;x&quot;&gt;&#39;&amp;&#39;");
        let page = small(2).html();
        for wrong in ["<b>", "<script", "c<d>", "http"] {
            assert!(!page.contains(wrong), "{wrong}");
        }
        assert!(page.contains("<th rowspan=\"2\">a_b|c&lt;d&gt;</th>"));
    }

    /// Equal numbers of parameters, a single method, a diverged run, steps that start at 0.
    #[test]
    fn odd_numbers_make_no_odd_plots() {
        let mut report = small(2);
        report.rows.iter_mut().for_each(|row| row.params = 7);
        let mut diverged = report.clone();
        diverged.rows[0].cells[0].runs[0].losses = vec![(0, f64::NAN), (1, f64::INFINITY), (2, 1e30)];
        diverged.rows[0].cells[1].runs[1].scores[0] = f64::NAN;
        let mut single = small(1);
        single.rows.truncate(1);
        single.rows[0].head = 0;
        single.rows[0].params = 0;
        for report in [report, diverged, single] {
            let page = report.html();
            for svg in page.split("<svg").skip(1).map(|rest| rest.split("</svg>").next().unwrap()) {
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            }
        }
    }

    #[test]
    fn losses_are_means_over_seeds_and_steps() {
        let losses = [(1, 4.0), (1, 2.0), (2, 3.0), (100, 1.0)];
        assert_eq!(smooth(&losses, 100), [(4.0 / 3.0, 3.0), (100.0, 1.0)]);
        assert!(smooth(&[], 0).is_empty());
    }
}
