//! Two kinds of plots as SVG, which a style sheet colours (`report.css`). What is not a finite number is not drawn.

use std::f64::consts::TAU;

use super::text::{escape, grouped};

/// A method in [`scatter`].
pub(super) struct Dot<'a> {
    /// What stands beside it.
    pub label: &'a str,
    /// What it is called where one points at it.
    pub name: &'a str,
    /// On a logarithmic axis, so above zero.
    pub x: f64,
    pub y: f64,
    pub spread: Option<f64>,
    /// Of what `x` is a number.
    pub unit: &'a str,
}

/// A method in [`curves`].
pub(super) struct Curve<'a> {
    pub label: &'a str,
    /// The number of its colour and dashes.
    pub style: usize,
    /// Steps and losses.
    pub points: Vec<(f64, f64)>,
}

/// Values between two places.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    /// With a margin around the values, some room even if they are all the same.
    fn around(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        let (low, high) = if low <= high { (low, high) } else { (0.0, 0.0) };
        let margin = if high > low { 0.08 * (high - low) } else { 0.5 };
        Axis { low: low - margin, high: high + margin, from, to }
    }

    fn at(&self, value: f64) -> f64 {
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    /// Some three to seven round values.
    fn ticks(&self) -> Vec<f64> {
        let rough = (self.high - self.low) / 4.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = power * [1.0, 2.0, 5.0, 10.0].into_iter().find(|f| f * power >= rough).unwrap_or(10.0);
        let first = (self.low / step).ceil() as i64;
        (first..).map(|i| i as f64 * step).take_while(|tick| *tick <= self.high).collect()
    }

    /// The same for an axis of logarithms: powers of ten, their multiples, or any round values, until there are enough.
    fn powers(&self) -> Vec<f64> {
        let within = |factors: &[f64]| -> Vec<f64> {
            let decades = self.low.floor() as i32..=self.high.ceil() as i32;
            let all = decades.flat_map(|d| factors.iter().map(move |f| f * 10f64.powi(d)));
            all.filter(|tick| (self.low..=self.high).contains(&tick.log10())).collect()
        };
        let sparse = [within(&[1.0]), within(&[1.0, 2.0, 5.0])].into_iter().find(|ticks| ticks.len() > 2);
        sparse.unwrap_or_else(|| Axis { low: 10f64.powf(self.low), high: 10f64.powf(self.high), ..*self }.ticks())
    }
}

/// 1500 as 1.5K.
fn short(n: f64) -> String {
    match n {
        n if n >= 1e6 => format!("{}M", n / 1e6),
        n if n >= 1e3 => format!("{}K", n / 1e3),
        n => format!("{n}"),
    }
}

/// A rectangle by its middle and half of its sides.
#[derive(Clone, Copy)]
struct Rect {
    x: f64,
    y: f64,
    w: f64,
    h: f64,
}

impl Rect {
    fn meets(&self, other: &Rect) -> bool {
        (self.x - other.x).abs() < self.w + other.w && (self.y - other.y).abs() < self.h + other.h
    }

    /// The point of it nearest to another.
    fn nearest(&self, x: f64, y: f64) -> (f64, f64) {
        (x.clamp(self.x - self.w, self.x + self.w), y.clamp(self.y - self.h, self.y + self.h))
    }
}

/// A place for the label of each of the points, near to it and free of all `marks` (one for each point, in their order)
/// and of the other labels; the line that leads there is free of them too, unless that leaves no place.
fn labels(points: &[(f64, f64, &str)], marks: Vec<Rect>, frame: Rect) -> Vec<Rect> {
    let mut taken = marks;
    let mut places = Vec::new();
    for (i, &(x, y, text)) in points.iter().enumerate() {
        let (w, h) = (3.6 * text.chars().count() as f64 + 1.0, 7.0);
        let around = (0..12).flat_map(|ring| (0..16).map(move |turn| (8.0 + 11.0 * ring as f64, turn)));
        let candidates = around.map(|(distance, turn)| {
            let (sin, cos) = (turn as f64 * TAU / 16.0).sin_cos();
            Rect { x: x + cos * (distance + w), y: y + sin * (distance + h), w, h }
        });
        let free = |label: &Rect, line: bool| {
            let inside = (label.x - frame.x).abs() + w <= frame.w && (label.y - frame.y).abs() + h <= frame.h;
            let (ex, ey) = label.nearest(x, y);
            let at = |i: usize| (x + i as f64 / 20.0 * (ex - x), y + i as f64 / 20.0 * (ey - y));
            let crosses = |other: &Rect| (0..=20).map(at).any(|(x, y)| other.meets(&Rect { x, y, w: 1.0, h: 1.0 }));
            let blocks = |(j, other): (usize, &Rect)| other.meets(label) || (line && j != i && crosses(other));
            inside && !taken.iter().enumerate().any(blocks)
        };
        let find = |line| candidates.clone().find(|label| free(label, line));
        let place = find(true).or_else(|| find(false)).unwrap_or(Rect { x: x + 8.0 + w, y, w, h });
        taken.push(place);
        places.push(place);
    }
    places
}

/// Scores against numbers of parameters, each dot with its spread and its name.
pub(super) fn scatter(title: &str, class: &str, x_label: &str, y_label: &str, dots: &[Dot]) -> String {
    let drawn = |dot: &&Dot| dot.x > 0.0 && dot.x.is_finite() && dot.y.is_finite();
    let mut dots: Vec<&Dot> = dots.iter().filter(drawn).collect();
    dots.sort_by(|a, b| b.y.total_cmp(&a.y));
    let reach = |dot: &Dot| dot.spread.filter(|s| s.is_finite()).unwrap_or(0.0);
    let ends = dots.iter().flat_map(|dot| [dot.y - reach(dot), dot.y + reach(dot)]);
    let xs = Axis::around(dots.iter().map(|dot| dot.x.log10()), 46.0, 610.0);
    let ys = Axis::around(ends, 370.0, 10.0);
    let mut svg = open(title, 620, 420);
    for tick in ys.ticks() {
        svg += &grid_line(ys.at(tick), 46.0, 610.0, &format!("{}", (tick * 100.0).round() / 100.0));
    }
    for tick in xs.powers() {
        let x = xs.at(tick.log10());
        svg += &format!(r#"<path class="grid" d="M{x:.1} 10V370"/>"#);
        svg += &format!(r#"<text class="tick" x="{x:.1}" y="386" text-anchor="middle">{}</text>"#, short(tick));
    }
    svg += &format!(r#"<text class="axis" x="328" y="410" text-anchor="middle">{}</text>"#, escape(x_label));
    let turned = r#"transform="rotate(-90 12 190)" x="12" y="190" text-anchor="middle""#;
    svg += &format!(r#"<text class="axis" {turned}>{}</text>"#, escape(y_label));
    let points: Vec<_> = dots.iter().map(|dot| (xs.at(dot.x.log10()), ys.at(dot.y), dot.label)).collect();
    let bar = |dot: &Dot, y: f64| y - ys.at(dot.y + reach(dot));
    let marks = points.iter().zip(&dots).map(|(&(x, y, _), dot)| Rect { x, y, w: 5.0, h: bar(dot, y).max(5.0) });
    let places = labels(&points, marks.collect(), Rect { x: 328.0, y: 190.0, w: 282.0, h: 180.0 });
    svg += &format!(r#"<g class="{}">"#, escape(class));
    for ((&(x, y, label), place), dot) in points.iter().zip(&places).zip(&dots) {
        let (ex, ey) = place.nearest(x, y);
        if (ex - x).hypot(ey - y) > 12.0 {
            svg += &format!(r#"<path class="leader" d="M{x:.1} {y:.1}L{ex:.1} {ey:.1}"/>"#);
        }
        let half = bar(dot, y);
        if half > 0.0 {
            let (top, bottom) = (y - half, y + half);
            svg += &format!(r#"<path class="bar" d="M{x:.1} {top:.1}V{bottom:.1}M{:.1} {top:.1}h6"#, x - 3.0);
            svg += &format!(r#"M{:.1} {bottom:.1}h6"/>"#, x - 3.0);
        }
        let spread = dot.spread.map_or_else(String::new, |s| format!(" ±{s:.2}"));
        let (label, name, score) = (escape(label), escape(dot.name), dot.y);
        let x_text = if dot.x.fract() == 0.0 { grouped(dot.x as usize) } else { format!("{:.1}", dot.x) };
        svg += &format!(r#"<circle cx="{x:.1}" cy="{y:.1}" r="4.5">"#);
        svg += &format!("<title>{name}: {score:.2}{spread}, {x_text} {}</title></circle>", dot.unit);
        // A text that is longer than was reckoned grows away from its dot.
        let (tx, anchor) = match place.x - x {
            side if side > place.w => (place.x - place.w, "start"),
            side if side < -place.w => (place.x + place.w, "end"),
            _ => (place.x, "middle"),
        };
        svg += &format!(r#"<text x="{tx:.1}" y="{:.1}" text-anchor="{anchor}">{label}</text>"#, place.y + 4.0);
    }
    svg + "</g></svg>\n"
}

/// Losses against steps, a line a method. A few very high values do not flatten the rest: they are cut off.
pub(super) fn curves(title: &str, curves: &[Curve]) -> String {
    let finite = |curve: &Curve| -> Vec<(f64, f64)> {
        curve.points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite()).collect()
    };
    let lines: Vec<_> = curves.iter().map(|curve| (curve, finite(curve))).collect();
    let mut losses: Vec<f64> = lines.iter().flat_map(|(_, points)| points.iter().map(|(_, y)| *y)).collect();
    losses.sort_by(f64::total_cmp);
    let high = losses.get(losses.len() * 9 / 10).map_or(1.0, |ninth| losses[losses.len() - 1].min(2.5 * ninth));
    let last = lines.iter().flat_map(|(_, points)| points.iter().map(|(x, _)| *x)).fold(1.0, f64::max);
    let xs = Axis { low: 0.0, high: last, from: 34.0, to: 312.0 };
    let ys = Axis { low: 0.0, high: high.max(1e-3) * 1.05, from: 178.0, to: 8.0 };
    let mut svg = open(title, 320, 200);
    for tick in ys.ticks() {
        svg += &grid_line(ys.at(tick), 34.0, 312.0, &format!("{}", (tick * 1e4).round() / 1e4));
    }
    for tick in xs.ticks() {
        let x = xs.at(tick);
        svg += &format!(r#"<text class="tick" x="{x:.1}" y="193" text-anchor="middle">{}</text>"#, short(tick));
    }
    for (curve, points) in lines.iter().filter(|(_, points)| !points.is_empty()) {
        let at = |(x, y): &(f64, f64)| format!("{:.1} {:.1}", xs.at(*x), ys.at(y.clamp(0.0, ys.high)));
        let path = points.iter().map(at).collect::<Vec<_>>().join("L");
        svg += &format!(
            r#"<path class="line s{}" d="M{path}"><title>{}</title></path>"#,
            curve.style,
            escape(curve.label)
        );
    }
    svg + "</svg>\n"
}

fn open(title: &str, width: usize, height: usize) -> String {
    let title = escape(title);
    format!(r#"<svg viewBox="0 0 {width} {height}" role="img" aria-label="{title}">"#)
}

fn grid_line(y: f64, from: f64, to: f64, text: &str) -> String {
    let (tx, ty) = (from - 5.0, y + 4.0);
    let line = format!(r#"<path class="grid" d="M{from} {y:.1}H{to}"/>"#);
    line + &format!(r#"<text class="tick" x="{tx}" y="{ty:.1}" text-anchor="end">{text}</text>"#)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round() {
        let axis = |low, high| Axis { low, high, from: 0.0, to: 1.0 };
        assert_eq!(axis(69.0, 87.0).ticks(), [70.0, 75.0, 80.0, 85.0]);
        assert_eq!(axis(3.5, 6.2).powers(), [1e4, 1e5, 1e6]);
        assert_eq!(axis(3.8, 4.4).powers(), [10e3, 15e3, 20e3, 25e3]);
        assert_eq!([short(0.0), short(1500.0), short(2e6)], ["0", "1.5K", "2M"]);
        assert_eq!(Axis::around([3.0, 3.0].into_iter(), 0.0, 10.0).at(3.0), 5.0);
    }

    /// Twelve methods that are all but the same.
    #[test]
    fn labels_do_not_meet() {
        let points: Vec<_> =
            (0..12).map(|i| (300.0 + 3.0 * i as f64, 200.0 + (i * 7 % 12) as f64, "Adapter")).collect();
        let marks: Vec<Rect> = points.iter().map(|&(x, y, _)| Rect { x, y, w: 5.0, h: 5.0 }).collect();
        let places = labels(&points, marks.clone(), Rect { x: 328.0, y: 190.0, w: 282.0, h: 180.0 });
        for (i, place) in places.iter().enumerate() {
            assert!(!places[..i].iter().chain(&marks).any(|other| other.meets(place)), "{i}");
        }
    }
}
