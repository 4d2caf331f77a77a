//! The demo as a user runs it. Needs root; says so and passes without.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

mod common;

use std::{
    io::{BufRead as _, BufReader},
    os::unix::process::ExitStatusExt as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::common::{demo, left, nothing_is_left, processes, text, without_root};

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn all_that_the_demo_claims_is_observed_and_nothing_is_left() {
    if without_root() {
        return;
    }
    let prefix = "xlbdemotest";
    let output = demo("", prefix).output().unwrap();
    let report = text(&output);
    assert!(output.status.success(), "{report}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    let last = stdout.lines().last().unwrap();
    assert!(last.starts_with("demo: all ") && last.contains(" checks passed in "), "{report}");
    assert!(!stdout.contains('\x1b'), "colours in a pipe");
    assert!(output.stderr.is_empty(), "{report}");
    // Commands and tables alike fit in a narrow terminal.
    let wide = stdout.lines().find(|line| line.chars().count() > 80);
    assert_eq!(wide, None);
    for part in ["IPv4 in IPv4", "IPv6 in IPv4", "IPv4 in IPv6", "IPv6 in IPv6", "MAC address"] {
        assert!(stdout.contains(part), "{part}: {report}");
    }
    nothing_is_left(prefix);
}

#[test]
fn a_demo_that_is_kept_goes_on_until_it_is_cleaned() {
    if without_root() {
        return;
    }
    let prefix = "xlbdemokept";
    let output = demo("", prefix).arg("--keep").output().unwrap();
    let report = text(&output);
    assert!(output.status.success(), "{report}");
    assert_eq!(processes(prefix).len(), 4, "daemons");
    // Another demo does not take it away.
    let second = demo("", prefix).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second).contains("is still up"), "{}", text(&second));
    assert_eq!(processes(prefix).len(), 4, "daemons");
    // The commands that it prints work as they are.
    let curl = Command::new("curl").arg("--version").stdout(Stdio::null()).status();
    let commands: Vec<&str> = report
        .lines()
        .map(str::trim)
        .filter(|line| line.contains(" stats ") || (line.contains(" curl ") && curl.is_ok()))
        .collect();
    assert_eq!(commands.len(), if curl.is_ok() { 4 } else { 1 }, "{report}");
    for command in commands {
        let output = Command::new("sh").args(["-c", command]).output().unwrap();
        assert!(output.status.success(), "{command}: {}", text(&output));
        let answers = text(&output).matches("\"backend\"").count();
        assert_eq!(answers, if command.contains(" curl ") { 2 } else { 0 }, "{command}");
    }
    let line = report.lines().map(str::trim).find(|line| line.contains(" demo --clean")).unwrap();
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    nothing_is_left(prefix);
    let output = demo("", prefix).arg("--clean").output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "nothing to remove\n");
}

#[test]
fn a_signal_ends_it_without_a_trace_and_a_killed_one_is_cleaned() {
    if without_root() {
        return;
    }
    let prefix = "xlbdemosignal";
    // At each of these lines something else is under way.
    for (signal, at) in [
        (Signal::SIGINT, "── Network"),
        (Signal::SIGTERM, "── Service web"),
        (Signal::SIGINT, "── A backend is taken out"),
        (Signal::SIGKILL, "── Service web"),
    ] {
        let mut child =
            demo("", prefix).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().starts_with(at)), "{at}");
        if signal == Signal::SIGINT && at == "── Network" {
            // While one runs, no other may; and it is left alone.
            for arguments in [&[][..], &["--clean"]] {
                let second = demo("", prefix).args(arguments).output().unwrap();
                assert_eq!(second.status.code(), Some(1));
                assert!(text(&second).contains("another demo is running"), "{}", text(&second));
            }
        }
        let id = Pid::from_raw(child.id().try_into().unwrap());
        kill(id, signal).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(signal as i32));
        if signal == Signal::SIGKILL {
            assert_ne!(left(prefix), Vec::<String>::new());
            let output = demo("", prefix).arg("--clean").output().unwrap();
            assert!(output.status.success(), "{}", text(&output));
        }
        // Daemons have been waited for by the demo, if not by their own parent.
        let end = Instant::now() + PATIENCE;
        while !left(prefix).is_empty() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
        nothing_is_left(prefix);
    }
}

#[test]
fn what_it_cannot_do_without_is_said_in_a_sentence() {
    let output = demo("", "xlbdemonone").args(["no-such-scenario"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output).contains("[possible values: dsr, pods, kubernetes, handover]"),
        "{}",
        text(&output)
    );
    if without_root() {
        let output = demo("", "xlbdemonone").output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output).contains("run it as root"), "{}", text(&output));
        return;
    }
    let output = demo("", "xlbdemonone").env("PATH", "/nonexistent").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("install the package iproute2"), "{}", text(&output));
    nothing_is_left("xlbdemonone");
}
