//! Keeps the benchmark alive: every case is measured, and each of its packets becomes what the case
//! says, or the measuring fails. Times are not judged.

use std::io::Write as _;

use xdp_lb::bench::{Change, Error, Options, compare, html, run, text};
use xdp_lb_api::benchmark::{BenchmarkScale, Report};

fn options() -> Options {
    Options { loads: 1, turns: 1, packets: 10, ..Options::new(BenchmarkScale::Quick) }
}

fn may_run() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        let _ = writeln!(std::io::stderr(), "skipped: the kernel loads programs for root only");
    }
    root
}

#[test]
fn every_case_is_measured_and_reported() {
    if !may_run() {
        return;
    }
    let mut seen = 0.0;
    let report = run(&options(), |done| {
        assert!(done > seen && done <= 1.0, "{done} after {seen}");
        seen = done;
    })
    .unwrap();
    assert_eq!(seen, 1.0);
    let (table, page) = (text(&report), html(&report));
    for case in report.floors.iter().chain(&report.cases) {
        assert!(case.min_ns > 0.0 && case.min_ns <= case.median_ns, "{case:?}");
        assert!(case.median_ns <= case.max_ns && case.mpps > 0.0, "{case:?}");
        assert!(table.contains(&case.name) && page.contains(&case.name), "{}", case.name);
    }
    assert!(report.cases.iter().any(|case| case.name == "ipv4-tcp-ipip-rest-1"));
    // What is written can be read again, and is no change.
    let bytes = serde_json::to_vec(&report).unwrap();
    let again: Report = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(again, report);
    let (compared, _) = compare(&report, &again);
    assert_eq!(compared.len(), report.floors.len() + report.cases.len());
    assert!(compared.iter().all(|one| one.change == Change::Noise));
}

#[test]
fn a_filter_leaves_the_floors_and_refuses_what_no_case_has() {
    if !may_run() {
        return;
    }
    let filter = "-pass-".to_owned();
    let report = run(&Options { filter, ..options() }, |_| ()).unwrap();
    assert!(!report.floors.is_empty() && !report.cases.is_empty());
    assert!(report.cases.iter().all(|case| case.name.contains("-pass-")), "{:?}", report.cases);
    let filter = "no such case".to_owned();
    let error = run(&Options { filter, ..options() }, |_| ()).unwrap_err();
    assert!(matches!(error, Error::Filter(_)), "{error}");
}
