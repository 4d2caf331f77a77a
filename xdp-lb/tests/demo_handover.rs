//! The demo `handover`, long and hard: no connection to a backend that stays is broken. Needs root;
//! says so and passes without.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

mod common;

use std::process::{Command, Output};

use crate::common::{demo, nothing_is_left, without_root};

#[expect(clippy::print_stdout, reason = "the test's figures, captured with its output")]
fn handover(prefix: &str, arguments: &str) -> Output {
    let output = demo("handover", prefix).args(arguments.split(' ')).output().unwrap();
    // What it saw is the figure of this test: shown with --nocapture, and when it fails.
    println!("{}", String::from_utf8_lossy(&output.stdout));
    nothing_is_left(prefix);
    output
}

/// The numbers of the last line, `broken connections: K of N`.
fn broken(output: &Output) -> (u64, u64) {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let last = text.lines().last().unwrap_or_default();
    let figures =
        last.strip_prefix("broken connections: ").and_then(|rest| rest.split_once(" of "));
    let (broken, all) = figures.unwrap_or_else(|| panic!("the last line is {last:?}"));
    (broken.parse().unwrap(), all.parse().unwrap())
}

#[test]
fn a_hundred_changes_in_a_minute_break_none_of_five_thousand_connections() {
    if without_root() {
        return;
    }
    let output = handover("xlbhandover", "--connections 5000 --changes 100 --seconds 60");
    let (broken_with, all) = broken(&output);
    assert_eq!(broken_with, 0);
    assert!(all > 5000, "{all}");
    assert!(output.status.success(), "{output:?}");

    // The same, shorter, by plain Maglev: so the test above can fail.
    let output =
        handover("xlbhandover", "--connections 500 --changes 10 --seconds 6 --without-handover");
    let (broken_without, all) = broken(&output);
    assert!(broken_without > 50, "{broken_without} of {all}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn figures_out_of_range_are_refused_with_the_range() {
    for (argument, range) in [
        ("--connections=0", "1..=15000"),
        ("--connections=15001", "1..=15000"),
        ("--changes=0", "1..=10000"),
        ("--seconds=3601", "1..=3600"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xdp-lb"));
        let output = command.args(["demo", "handover", argument]).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(range), "{said}");
    }
}
