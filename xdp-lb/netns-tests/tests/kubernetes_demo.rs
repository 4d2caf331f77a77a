//! The demo of Kubernetes as a user runs it.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Output, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use xdp_lb::{
    dataplane::try_hooks,
    lab::{Cgroup, has_cgroups},
};
use xdp_lb_netns_tests::{binary, control_plane, wait_until, without_root};

/// A demo of its own, so that one which the user keeps is left alone.
fn demo(prefix: &str, words: &[&str]) -> Command {
    // A background job of a shell ignores SIGINT, and so would what it starts.
    let mut command = Command::new("/usr/bin/env");
    command.arg("--default-signal=INT").arg(binary());
    command.args(["demo", "--prefix", prefix]).args(words).stdin(Stdio::null());
    command
}

fn text(output: &Output) -> String {
    let parts = [&output.stdout, &output.stderr].map(|part| String::from_utf8_lossy(part));
    parts.join("\n--- stderr\n")
}

/// Namespaces, pins, files and processes of a demo.
fn left(prefix: &str) -> Vec<String> {
    let start = format!("{prefix}-");
    let mut found = Vec::new();
    for directory in ["/run/netns", "/sys/fs/bpf"] {
        let Ok(entries) = fs::read_dir(directory) else { continue };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        found.extend(names.filter(|name| name.starts_with(&start)));
    }
    let directory = format!("/run/{prefix}");
    if Path::new(&directory).exists() {
        found.push(directory);
    }
    if has_cgroups(prefix) {
        found.push(format!("the cgroup {prefix}"));
    }
    found.extend(control(prefix));
    found
}

/// Command lines of the control plane and its stand-ins.
fn control(prefix: &str) -> Vec<String> {
    let files = format!("/run/{prefix}/kubernetes");
    let lines = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let line = fs::read_to_string(entry.unwrap().path().join("cmdline")).ok()?;
        line.contains(&files).then(|| line.replace('\0', " "))
    });
    lines.collect()
}

#[test]
fn all_that_the_demo_claims_is_observed_and_what_is_kept_can_be_used_until_it_is_cleaned() {
    if control_plane().is_none() {
        return;
    }
    let prefix = "xlbnkdemo";
    let output = demo(prefix, &["kubernetes", "--keep"]).output().unwrap();
    let report = text(&output);
    assert!(output.status.success(), "{report}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    let last = stdout.lines().last().unwrap();
    assert!(last.starts_with("demo: all ") && last.contains(" checks passed in "), "{report}");
    assert!(output.stderr.is_empty(), "{report}");
    assert_eq!(control(prefix).len(), 4, "etcd, API server, controllers, stand-ins");
    let own = Cgroup::enter("xlb-demo-");
    let sockets = own.is_ok_and(|own| try_hooks(Some(own.path())).is_ok());
    if sockets {
        for claim in [
            "✓ 3 nodes serve ClusterIPs",
            "✓ 66 of 66 lookups gave the ClusterIPs",
            "✓ 11 of 11 short names were resolved by the C library",
            "✓ 88 calls of ClusterIPs were answered",
            "✓ it lists ClusterIPs, LoadBalancer addresses and node ports",
        ] {
            assert!(report.contains(claim), "{claim}: {report}");
        }
        for frontend in ["10.96.0.10:53/UDP", "10.96.0.10:53/TCP", "[fd00:96::a]:53/UDP"] {
            let row = stdout.lines().find(|line| line.contains(frontend));
            assert!(row.is_some_and(|row| row.contains("ClusterIP")), "{frontend}: {report}");
        }
    } else {
        assert!(report.contains("This machine cannot lead sockets to Services"), "{report}");
    }
    // The commands that it prints work as they are, and the cluster goes on.
    let commands: Vec<&str> = stdout
        .lines()
        .filter(|line| line.starts_with("    "))
        .map(str::trim)
        .filter(|line| {
            [" curl ", "/kubectl ", " stats ", " service "].iter().any(|one| line.contains(one))
        })
        .collect();
    assert_eq!(commands.len(), 6 + usize::from(sockets), "{report}");
    for command in commands {
        let output = Command::new("sh").args(["-c", command]).output().unwrap();
        assert!(output.status.success(), "{command}: {}", text(&output));
        if command.contains(" curl ") {
            let asked = if command.contains("cgroup.procs") { 1 } else { 6 };
            let answers = text(&output).matches("\"backend\": \"frontend-").count();
            assert_eq!(answers, asked, "{command}");
        }
    }
    let line = stdout.lines().map(str::trim).find(|line| line.contains(" demo --clean")).unwrap();
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(left(prefix), Vec::<String>::new());
}

#[test]
fn a_killed_demo_takes_its_control_plane_along_and_a_stopped_one_everything() {
    if control_plane().is_none() {
        return;
    }
    let prefix = "xlbnkkilled";
    for signal in [Signal::SIGKILL, Signal::SIGINT] {
        let mut child = demo(prefix, &["kubernetes"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Pods come up at this line.
        assert!(lines.any(|line| line.unwrap().contains("kubectl apply")));
        kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
        child.wait().unwrap();
        wait_until("the control plane has ended", || control(prefix).is_empty());
        if signal == Signal::SIGKILL {
            assert_ne!(left(prefix), Vec::<String>::new());
            let output = demo(prefix, &["--clean"]).output().unwrap();
            assert!(output.status.success(), "{}", text(&output));
        }
        wait_until("all is removed", || left(prefix).is_empty());
    }
}

#[test]
fn without_a_control_plane_it_says_how_to_get_one() {
    if without_root() {
        return;
    }
    let mut command = demo("xlbnknone", &["kubernetes"]);
    let output = command.env("KUBEBUILDER_ASSETS", "/nonexistent").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let report = text(&output);
    assert!(
        report.contains("kube-apiserver, kube-controller-manager, kubectl not found"),
        "{report}"
    );
    assert!(report.contains("KUBEBUILDER_ASSETS names a directory"), "{report}");
    assert_eq!(left("xlbnknone"), Vec::<String>::new());
}
