//! Two reports: what changed, and what is noise.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::Serialize;
use xdp_lb_api::benchmark::{Case, Report};

/// Single loads differ by so much even where nothing changed: code lies elsewhere, hashes have other
/// seeds. A change is at least this share of a figure.
const NOISE: f64 = 0.05;
/// Nor is a difference of less than a nanosecond a change: the kernel counts whole ones.
const LEAST: f64 = 1.0;

/// What became of a case.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// The ranges over the loads meet, or the difference is too small
    Noise,
    /// All loads of the second report were faster than all of the first
    Faster,
    /// All loads of the second report were slower than all of the first
    Slower,
}

/// A case in two reports.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compared {
    /// The case
    pub name: String,
    /// Nanoseconds above the floor in the first report
    pub before_ns: f64,
    /// Nanoseconds above the floor in the second report
    pub after_ns: f64,
    /// What that means
    pub change: Change,
}

/// Cases that are in both reports, and a table of them for people.
///
/// Nanoseconds above the floor are compared where both are of one machine (CPU and kernel); where they
/// are of two, look-ups, so that a faster machine is no faster packet path.
pub fn compare(before: &Report, after: &Report) -> (Vec<Compared>, String) {
    let same =
        before.machine.cpu == after.machine.cpu && before.machine.kernel == after.machine.kernel;
    let unit = |report: &Report| {
        if same || report.hash_lookup_ns <= 0.0 { 1.0 } else { 1.0 / report.hash_lookup_ns }
    };
    let (unit_before, unit_after) = (unit(before), unit(after));
    let least = if same { LEAST } else { LEAST * unit_before };
    let known: BTreeMap<&str, &Case> = all(before).map(|case| (case.name.as_str(), case)).collect();
    let mut list = Vec::new();
    let mut text = format!(
        "{:<44} {:>8} {:>8} {:>8}\n",
        if same { "case (ns above floor)" } else { "case (look-ups above floor)" },
        "before",
        "after",
        ""
    );
    for case in all(after) {
        let Some(old) = known.get(case.name.as_str()) else { continue };
        let range = |case: &Case, unit: f64| {
            (
                case.above_floor_min_ns * unit,
                case.above_floor_ns * unit,
                case.above_floor_max_ns * unit,
            )
        };
        let (a, b) = (range(old, unit_before), range(case, unit_after));
        let enough = (b.1 - a.1).abs() >= (a.1.abs() * NOISE).max(least);
        let change = match enough {
            true if b.2 < a.0 => Change::Faster,
            true if b.0 > a.2 => Change::Slower,
            _ => Change::Noise,
        };
        let percent = if a.1.abs() > f64::EPSILON { (b.1 / a.1 - 1.0) * 100.0 } else { 0.0 };
        let word = match change {
            Change::Noise => "noise".to_owned(),
            Change::Faster | Change::Slower => format!("{percent:+.0} %"),
        };
        let digits = if same { 1 } else { 2 };
        let _ = writeln!(text, "{:<44} {:>8.digits$} {:>8.digits$} {word:>8}", case.name, a.1, b.1);
        let (before_ns, after_ns) = (old.above_floor_ns, case.above_floor_ns);
        list.push(Compared { name: case.name.clone(), before_ns, after_ns, change });
    }
    let changed = list.iter().filter(|one| one.change != Change::Noise).count();
    let _ = writeln!(text, "{changed} of {} changed", list.len());
    if !same {
        text.push_str("the reports are of two machines or kernels: look-ups are compared\n");
    }
    (list, text)
}

fn all(report: &Report) -> impl Iterator<Item = &Case> {
    report.floors.iter().chain(&report.cases)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::tests::report;

    fn judged(before: [f64; 3], after: [f64; 3]) -> Change {
        let (list, _) = compare(&report(&[("x", before)]), &report(&[("x", after)]));
        list[0].change
    }

    #[test]
    fn ranges_that_meet_are_noise() {
        assert_eq!(judged([30.0, 32.0, 40.0], [20.0, 22.0, 31.0]), Change::Noise);
        assert_eq!(judged([30.0, 32.0, 40.0], [20.0, 22.0, 29.0]), Change::Faster);
        assert_eq!(judged([20.0, 22.0, 29.0], [30.0, 32.0, 40.0]), Change::Slower);
        // All loads apart, and yet within what code placement does.
        assert_eq!(judged([99.0, 100.0, 101.0], [101.5, 102.0, 103.0]), Change::Noise);
        assert_eq!(judged([5.0, 5.1, 5.2], [5.5, 5.6, 5.7]), Change::Noise);
    }

    #[test]
    fn another_machine_is_compared_by_its_look_ups() {
        let before = report(&[("x", [30.0, 33.0, 36.0])]);
        let mut after = report(&[("x", [15.0, 16.5, 18.0])]);
        assert_eq!(compare(&before, &after).0[0].change, Change::Faster);
        after.machine.cpu = "another".to_owned();
        after.hash_lookup_ns /= 2.0;
        assert_eq!(compare(&before, &after).0[0].change, Change::Noise);
    }
}
