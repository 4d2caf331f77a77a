//! The demo of pods as a user runs it. Needs root; says so and passes without.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

mod common;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    process::{Command, Stdio},
};

use crate::common::{demo, nothing_is_left, without_root};

#[test]
fn all_that_the_demo_of_pods_claims_is_observed_and_nothing_is_left() {
    if without_root() {
        return;
    }
    let prefix = "xlbpodsdemo";
    let output = demo("pods", prefix).output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}\n{stderr}");
    let last = stdout.lines().last().unwrap();
    assert!(last.starts_with("demo: all ") && last.contains(" checks passed in "), "{stdout}");
    assert!(stderr.is_empty(), "{stderr}");
    assert_eq!(stdout.lines().find(|line| line.chars().count() > 80), None);
    for part in ["mode geneve", "mode local", "mode snat", "mode hybrid", "Geneve for"] {
        assert!(stdout.contains(part), "{part}: {stdout}");
    }
    nothing_is_left(prefix);
}

#[test]
fn a_demo_in_which_something_is_broken_says_so_and_fails() {
    if without_root() {
        return;
    }
    let prefix = "xlbpodsbroken";
    let mut child = demo("pods", prefix).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("── What runs") {
        line.clear();
        assert_ne!(output.read_line(&mut line).unwrap(), 0, "the demo has ended early");
    }
    // Answers of pods on worker leave with the pods' own addresses from now on.
    let pins = format!("/sys/fs/bpf/{prefix}-worker");
    let found = Command::new("find").args([&pins, "-path", "*egress*", "-type", "f"]).output();
    let found = String::from_utf8(found.unwrap().stdout).unwrap();
    assert_eq!(found.lines().count(), 1, "{found:?}");
    fs::remove_file(found.trim_end()).unwrap();
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{rest}");
    assert!(rest.contains("checks failed in "), "{rest}");
    assert!(rest.contains("The rest is left out"), "{rest}");
    nothing_is_left(prefix);
}
