//! The figure as a picture: SVG 1.1 that needs nothing else.

use std::fmt::Write as _;

use super::{Curve, Figure};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 470.0;
/// Edges of the plot itself
const LEFT: f64 = 66.0;
const RIGHT: f64 = 740.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 410.0;

/// Colours of Okabe and Ito ("Color Universal Design", 2008), which most colour-blind readers tell
/// apart, and dashes for where there is no colour, or one curve lies on another.
const STYLES: [(&str, &str); 6] = [
    ("#0072b2", "none"),
    ("#56b4e9", "none"),
    ("#009e73", "none"),
    ("#000000", "2 6"),
    ("#d55e00", "8 4"),
    ("#cc79a7", "8 3 2 3"),
];

/// The figure: a line through the means of each curve, in a band from minimum to maximum.
pub fn svg(figure: &Figure) -> String {
    let axes = Axes::of(figure);
    let mut out = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="13" fill="#222">
<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>
<text x="{LEFT}" y="28" font-size="16">What moves although its backend is still there, when some of {} fail</text>
"##,
        figure.scale.backends
    );
    axes.draw(&mut out);
    for (index, curve) in figure.curves.iter().enumerate() {
        axes.draw_curve(&mut out, figure, curve, index);
    }
    for (index, curve) in figure.curves.iter().enumerate() {
        legend(&mut out, &curve.name, index);
    }
    out.push_str("</svg>\n");
    out
}

/// Both axes are in per cent and start at 0.
struct Axes {
    x: Ticks,
    y: Ticks,
}

impl Axes {
    fn of(figure: &Figure) -> Self {
        let most = figure.scale.failures.iter().copied().max().unwrap_or(1);
        let points = figure.curves.iter().flat_map(|curve| &curve.points);
        let highest = points.map(|point| point.percent()[2]).fold(0.0, f64::max);
        Self { x: Ticks::up_to(percent_of(most, figure)), y: Ticks::up_to(highest) }
    }

    fn place(&self, x: f64, y: f64) -> (f64, f64) {
        (LEFT + (RIGHT - LEFT) * x / self.x.end(), BOTTOM - (BOTTOM - TOP) * y / self.y.end())
    }

    // Writing to a String does not fail: the results say nothing.
    fn draw(&self, out: &mut String) {
        for value in self.x.values() {
            let (x, _) = self.place(value, 0.0);
            let label = self.x.label(value);
            let _ = writeln!(
                out,
                r##"<path d="M{x:.1} {TOP}V{BOTTOM}" stroke="#e4e4e4"/><text x="{x:.1}" y="{}" text-anchor="middle">{label}</text>"##,
                BOTTOM + 18.0
            );
        }
        for value in self.y.values() {
            let (_, y) = self.place(0.0, value);
            let label = self.y.label(value);
            let _ = writeln!(
                out,
                r##"<path d="M{LEFT} {y:.1}H{RIGHT}" stroke="#e4e4e4"/><text x="{}" y="{:.1}" text-anchor="end">{label}</text>"##,
                LEFT - 8.0,
                y + 4.0
            );
        }
        let (middle_x, middle_y) = ((LEFT + RIGHT) / 2.0, (TOP + BOTTOM) / 2.0);
        let _ = writeln!(
            out,
            r##"<path d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}" fill="none" stroke="#222"/>
<text x="{middle_x}" y="{}" text-anchor="middle">backends that fail at the same time, %</text>
<text x="20" y="{middle_y}" text-anchor="middle" transform="rotate(-90 20 {middle_y})">moved, %</text>"##,
            BOTTOM + 42.0
        );
    }

    fn draw_curve(&self, out: &mut String, figure: &Figure, curve: &Curve, index: usize) {
        let (colour, dash) = STYLES[index % STYLES.len()];
        let points = || {
            let failed = figure.scale.failures.iter().map(|&failed| percent_of(failed, figure));
            failed.zip(curve.points.iter().map(|point| point.percent()))
        };
        let at = |(x, y): (f64, f64)| {
            let (x, y) = self.place(x, y);
            format!("{x:.1},{y:.1}")
        };
        let mean: Vec<String> = points().map(|(x, [_, mean, _])| at((x, mean))).collect();
        let mut band: Vec<String> = points().map(|(x, [min, ..])| at((x, min))).collect();
        let mut upper: Vec<String> = points().map(|(x, [.., max])| at((x, max))).collect();
        upper.reverse();
        band.append(&mut upper);
        let _ = writeln!(
            out,
            r#"<g stroke="{colour}"><title>{}</title><polygon points="{}" fill="{colour}" fill-opacity="0.2" stroke="none"/><polyline points="{}" fill="none" stroke-width="2" stroke-dasharray="{dash}"/>"#,
            curve.name,
            band.join(" "),
            mean.join(" ")
        );
        for (x, [_, mean, _]) in points() {
            let (x, y) = self.place(x, mean);
            let _ = writeln!(out, r#"<circle cx="{x:.1}" cy="{y:.1}" r="3" fill="{colour}"/>"#);
        }
        out.push_str("</g>\n");
    }
}

fn percent_of(failed: u32, figure: &Figure) -> f64 {
    f64::from(failed) * 100.0 / f64::from(figure.scale.backends)
}

/// A line of the legend, in the upper left corner, where curves that rise from zero are not.
fn legend(out: &mut String, name: &str, index: usize) {
    let (colour, dash) = STYLES[index % STYLES.len()];
    let (x, y) = (LEFT + 14.0, TOP + 18.0 + 20.0 * index as f64);
    let _ = writeln!(
        out,
        r#"<path d="M{x} {y}h34" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/><circle cx="{}" cy="{y}" r="3" fill="{colour}"/><text x="{}" y="{}">{name}</text>"#,
        x + 17.0,
        x + 44.0,
        y + 4.0
    );
}

/// Round numbers along an axis.
struct Ticks {
    count: u32,
    step: f64,
}

impl Ticks {
    /// From 0 to a round number that is not below `highest`.
    fn up_to(highest: f64) -> Self {
        let highest = if highest > 0.0 { highest } else { 1.0 };
        let power = 10_f64.powf((highest / 10.0).log10().floor());
        let fits = |step: &f64| highest / step <= 10.0;
        let step = [1.0, 2.0, 5.0].map(|one| one * power).into_iter().find(fits);
        let step = step.unwrap_or(10.0 * power);
        // What was meant to be whole may be a little more.
        Self { count: (highest / step - 1e-9).ceil() as u32, step }
    }

    fn end(&self) -> f64 {
        f64::from(self.count) * self.step
    }

    fn values(&self) -> impl Iterator<Item = f64> {
        (0..=self.count).map(|number| f64::from(number) * self.step)
    }

    fn label(&self, value: f64) -> String {
        let decimals = (-self.step.log10().floor()).max(0.0) as usize;
        format!("{value:.decimals$}")
    }
}

#[cfg(test)]
mod tests {
    use super::Ticks;

    #[test]
    fn ticks_are_round_numbers() {
        for (highest, labels) in [
            (
                5.0,
                &["0.0", "0.5", "1.0", "1.5", "2.0", "2.5", "3.0", "3.5", "4.0", "4.5", "5.0"][..],
            ),
            (6.1, &["0", "1", "2", "3", "4", "5", "6", "7"]),
            (33.0, &["0", "5", "10", "15", "20", "25", "30", "35"]),
            (0.0, &["0.0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "1.0"]),
        ] {
            let ticks = Ticks::up_to(highest);
            let found: Vec<String> = ticks.values().map(|value| ticks.label(value)).collect();
            assert_eq!(found, labels, "up to {highest}");
        }
    }
}
