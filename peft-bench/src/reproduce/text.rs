//! Texts and numbers as reports show them.

/// Columns two spaces apart, the first two to the left, numbers to the right, a rule under the first line.
pub(super) fn aligned(lines: &[Vec<String>]) -> String {
    let width = |i: usize| lines.iter().filter_map(|line| line.get(i)).map(|text| text.chars().count()).max();
    let widths: Vec<usize> = (0..lines[0].len()).map(|i| width(i).unwrap_or(0)).collect();
    let text = |line: &Vec<String>| {
        let pad = |(i, (text, width)): (usize, (&String, &usize))| match i {
            0 | 1 => format!("{text:<width$}"),
            _ => format!("{text:>width$}"),
        };
        line.iter().zip(&widths).enumerate().map(pad).collect::<Vec<_>>().join("  ")
    };
    let rule = widths.iter().map(|width| "─".repeat(*width)).collect::<Vec<_>>().join("──");
    let mut texts: Vec<String> = lines.iter().map(text).collect();
    texts.insert(1, rule);
    texts.join("\n") + "\n"
}

/// As the survey prints numbers of parameters, with at least two digits of those below 0.1M.
pub(super) fn millions(n: usize) -> String {
    let n = n as f64 / 1e6;
    if n < 0.1 { format!("{n:.4}M") } else { format!("{n:.2}M") }
}

/// 1234567 as 1,234,567.
pub(crate) fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let groups = digits.as_bytes().rchunks(3).rev().map(|group| String::from_utf8_lossy(group));
    groups.collect::<Vec<_>>().join(",")
}

/// Text that Markdown shows as it is, on one line.
pub(super) fn markdown(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '\n' | '\r' => out.push(' '),
            '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '|' | '&' | '~' | '$' | '#' => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out
}

/// Text as it may stand in an element or an attribute.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            c => out.push(c),
        }
    }
    out
}
