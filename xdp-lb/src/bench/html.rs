//! A report as one HTML page, which asks for nothing from elsewhere.

use std::fmt::Write as _;

use xdp_lb_api::benchmark::{Case, PathCase, Report};

use super::text::place;

const STYLE: &str = "\
body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:64rem;padding:0 1rem;color:#1b1f24;background:#fff}\
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}\
th,td{padding:.2rem .6rem;text-align:right;border-bottom:1px solid #d0d7de}\
th:first-child,td:first-child{text-align:left;font-family:ui-monospace,monospace;font-size:.85em}\
svg{width:100%;height:auto;font:12px ui-monospace,monospace}\
.bar{fill:#4a7fb5}.range{stroke:#1b1f24;stroke-width:1.5}.name,.value{fill:#1b1f24}\
@media(prefers-color-scheme:dark){body,.name,.value{color:#e6edf3;fill:#e6edf3}body{background:#0d1117}\
.range{stroke:#e6edf3}th,td{border-color:#30363d}}";

/// A figure of a path, where it was measured.
type Figure = fn(&PathCase) -> Option<f64>;

/// The report as one page: tables, and plots as SVG.
pub fn html(report: &Report) -> String {
    let mut page = String::new();
    // Writing into a string cannot fail.
    let _ = write_page(&mut page, report);
    page
}

fn write_page(page: &mut String, report: &Report) -> std::fmt::Result {
    let method = &report.method;
    write!(
        page,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>xdp-lb benchmark</title>\
         <style>{STYLE}</style></head><body>\n<h1>xdp-lb {} benchmark</h1>\n\
         <p>{}</p>\n<p>{}</p>\n<p>{} loads, {} turns of {} packets each; {}.</p>\n",
        escape(&report.xdp_lb),
        escape(&report.created),
        escape(&place(&report.machine)),
        method.loads,
        method.turns,
        method.packets,
        escape(&report.machine.xdp_mode),
    )?;
    let sections = [("What it is compared with", &report.floors), ("Packet path", &report.cases)];
    for (title, cases) in sections {
        writeln!(page, "<h2>{title}</h2>")?;
        let bars: Vec<Bar<'_>> = cases.iter().map(Bar::of_case).collect();
        plot(page, "ns a packet above the floor; the line is the range over the loads", &bars)?;
        table(page, cases)?;
    }
    writeln!(page, "<p>One look-up in a kernel hash map takes {} ns.</p>", report.hash_lookup_ns)?;
    if !report.control_plane.is_empty() {
        writeln!(page, "<h2>Control plane</h2>")?;
        let bars: Vec<Bar<'_>> = report
            .control_plane
            .iter()
            .map(|one| Bar::new(&one.name, one.median_ms, one.min_ms, one.max_ms))
            .collect();
        plot(page, "milliseconds", &bars)?;
    }
    if !report.paths.is_empty() {
        writeln!(page, "<h2>Whole path</h2>")?;
        let bar = |name, value: Option<f64>| value.map(|value| Bar::new(name, value, value, value));
        let figures: [(&str, Figure); 4] = [
            ("packets a second at the sink", |one| one.delivered_pps),
            ("ns of CPU for a delivered packet", |one| one.cpu_ns),
            ("µs until a connection is open, 99th percentile", |one| one.connect_p99_us),
            ("µs from a request to its answer, 99th percentile", |one| one.request_p99_us),
        ];
        for (title, value) in figures {
            let bars: Vec<Bar<'_>> =
                report.paths.iter().filter_map(|one| bar(&one.name, value(one))).collect();
            plot(page, title, &bars)?;
        }
    }
    page.push_str("</body></html>\n");
    Ok(())
}

fn table(page: &mut String, cases: &[Case]) -> std::fmt::Result {
    page.push_str(
        "<table><thead><tr><th>case</th><th>median ns</th><th>min</th><th>max</th>\
         <th>above floor</th><th>look-ups</th><th>Mpps</th></tr></thead><tbody>\n",
    );
    for case in cases {
        writeln!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&case.name),
            case.median_ns,
            case.min_ns,
            case.max_ns,
            case.above_floor_ns,
            case.hash_lookups,
            case.mpps
        )?;
    }
    page.push_str("</tbody></table>\n");
    Ok(())
}

/// A bar of a plot, with the range over the loads.
struct Bar<'a> {
    name: &'a str,
    value: f64,
    least: f64,
    most: f64,
}

impl<'a> Bar<'a> {
    const fn new(name: &'a str, value: f64, least: f64, most: f64) -> Self {
        Self { name, value, least, most }
    }

    fn of_case(case: &'a Case) -> Self {
        let (least, most) = (case.above_floor_min_ns, case.above_floor_max_ns);
        Self::new(&case.name, case.above_floor_ns, least, most)
    }
}

/// A horizontal bar for each; linear, from 0.
fn plot(page: &mut String, title: &str, bars: &[Bar<'_>]) -> std::fmt::Result {
    const ROW: usize = 20;
    const LEFT: f64 = 330.0;
    const WIDTH: f64 = 550.0;
    let most = bars.iter().map(|bar| bar.most.max(bar.value)).fold(0.0, f64::max);
    if bars.is_empty() || most <= 0.0 {
        return Ok(());
    }
    let x = |value: f64| LEFT + value.max(0.0) / most * WIDTH;
    let height = bars.len() * ROW + 24;
    writeln!(
        page,
        "<svg viewBox=\"0 0 960 {height}\" role=\"img\" aria-label=\"{0}\"><text class=\"name\" \
         x=\"{LEFT}\" y=\"14\">{0}</text>",
        escape(title)
    )?;
    for (index, bar) in bars.iter().enumerate() {
        let top = 24 + index * ROW;
        let (text, middle) = (top + 13, top + 8);
        writeln!(
            page,
            "<text class=\"name\" x=\"{:.1}\" y=\"{text}\" text-anchor=\"end\">{}</text>\
             <rect class=\"bar\" x=\"{LEFT}\" y=\"{top}\" width=\"{:.1}\" height=\"16\"/>\
             <line class=\"range\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle}\" y2=\"{middle}\"/>\
             <text class=\"value\" x=\"{:.1}\" y=\"{text}\">{}</text>",
            LEFT - 8.0,
            escape(bar.name),
            x(bar.value) - LEFT,
            x(bar.least),
            x(bar.most),
            x(bar.most.max(bar.value)) + 6.0,
            rounded(bar.value)
        )?;
    }
    page.push_str("</svg>\n");
    Ok(())
}

fn rounded(value: f64) -> String {
    if value >= 1000.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::tests::report;

    #[test]
    fn a_page_has_every_case_and_asks_for_nothing() {
        let page = html(&report(&[("a<b", [1.0, 2.0, 3.0]), ("c", [0.0, 0.0, 0.0])]));
        assert_eq!(page.matches("a&lt;b").count(), 2, "{page}");
        assert_eq!(page.matches("<svg").count(), 1 + page.matches("aria-label").count() - 1);
        for outside in ["http:", "https:", "src=", "href=", "url(", "@import", "<script"] {
            assert!(!page.contains(outside), "{outside}");
        }
    }
}
