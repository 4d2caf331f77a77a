//! What a cluster's objects come to: laws as data, and properties.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod form;
mod properties;
mod scale;
mod sequence;
mod show;
mod sound;

use std::{fs, path::Path};

use serde::Deserialize;
use serde_json::Value;
use xdp_lb_plan::kubernetes::{Index, ServiceState};

use crate::{form::Objects, show::Shown};

/// One law, with objects that show it and what they must come to.
///
/// `serves` and `findings` are always compared (nothing, where they are left out), the others where a
/// case has them.
#[derive(Debug, Deserialize)]
struct Case {
    law: String,
    #[serde(flatten)]
    given: Value,
    #[serde(default)]
    serves: Vec<String>,
    #[serde(default)]
    findings: Vec<String>,
    lists: Option<Vec<String>>,
    endpoints: Option<Vec<String>>,
    health: Option<String>,
}

#[test]
fn cases() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kubernetes/cases");
    let mut files: Vec<_> =
        fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    let mut failures = Vec::new();
    let mut count = 0;
    for file in &files {
        let name = file.file_stem().unwrap().to_string_lossy();
        let cases: Vec<Case> = serde_saphyr::from_str(&fs::read_to_string(file).unwrap())
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        for case in cases {
            count += 1;
            if let Err(failure) = run(&case) {
                failures.push(format!("{name}: {}\n{failure}", case.law));
            }
        }
    }
    assert!(failures.is_empty(), "{} of {count}:\n\n{}", failures.len(), failures.join("\n"));
    assert!(count > 150, "only {count} cases were found");
}

fn run(case: &Case) -> Result<(), String> {
    let objects = Objects::read(&case.given)?;
    let index = objects.index();
    for state in index.states() {
        sound::check(state);
    }
    assert_eq!(states(&index), states(&objects.index_backwards()), "{}", case.law);
    let shown = Shown::of(&index);
    let mut failure = String::new();
    let mut compare = |name: &str, wanted: &[String], got: &[String]| {
        if wanted != got {
            let lines = |lines: &[String]| {
                lines.iter().map(|line| format!("      - {line}\n")).collect::<String>()
            };
            let (wanted, got) = (lines(wanted), lines(got));
            failure.push_str(&format!("  {name}:\n    wanted\n{wanted}    got\n{got}"));
        }
    };
    compare("serves", &case.serves, &shown.serves);
    compare("findings", &case.findings, &shown.findings);
    if let Some(lists) = &case.lists {
        compare("lists", lists, &shown.lists);
    }
    if let Some(endpoints) = &case.endpoints {
        compare("endpoints", endpoints, &shown.endpoints);
    }
    if let Some(health) = &case.health {
        compare("health", std::slice::from_ref(health), &[shown.health]);
    }
    if failure.is_empty() { Ok(()) } else { Err(failure) }
}

fn states(index: &Index) -> Vec<ServiceState> {
    index.states().map(|state| ServiceState::clone(state)).collect()
}
