//! What the tests of labs and demos share.
#![allow(dead_code, reason = "each test binary uses its own part of this module")]

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Output, Stdio},
};

/// Says that tests are skipped, where this is not root.
pub(crate) fn without_root() -> bool {
    let missing = !nix::unistd::geteuid().is_root();
    if missing {
        let _ = writeln!(std::io::stderr(), "skipped: network namespaces need root");
    }
    missing
}

/// A demo of its own, so that one which the user keeps is left alone; `scenario` may be empty.
pub(crate) fn demo(scenario: &str, prefix: &str) -> Command {
    // A background job of a shell ignores SIGINT, and so would what it starts.
    let mut command = Command::new("/usr/bin/env");
    command.args(["--default-signal=INT", env!("CARGO_BIN_EXE_xdp-lb"), "demo"]);
    command.args(scenario.split_whitespace()).args(["--prefix", prefix]).stdin(Stdio::null());
    command
}

/// All that a command has printed.
pub(crate) fn text(output: &Output) -> String {
    let parts = [&output.stdout, &output.stderr].map(|part| String::from_utf8_lossy(part));
    parts.join("\n--- stderr\n")
}

/// Namespaces, pins, files and processes of a demo.
pub(crate) fn left(prefix: &str) -> Vec<String> {
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
    found.extend(processes(prefix));
    found
}

/// Command lines of the daemons; the servers are in the same namespaces.
pub(crate) fn processes(prefix: &str) -> Vec<String> {
    let pins = format!("/sys/fs/bpf/{prefix}-");
    let lines = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let line = fs::read_to_string(entry.unwrap().path().join("cmdline")).ok()?;
        line.contains(&pins).then(|| line.replace('\0', " "))
    });
    lines.collect()
}

/// Panics where something of a demo is left.
pub(crate) fn nothing_is_left(prefix: &str) {
    assert_eq!(left(prefix), Vec::<String>::new());
}
