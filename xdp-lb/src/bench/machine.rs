//! What the figures depend on.

use std::{fs, thread};

use xdp_lb_api::benchmark::Machine;

/// Files of `/sys/devices/system/cpu/vulnerabilities` that say how indirect calls, which tail calls
/// and helpers may be, are made.
const MITIGATIONS: [&str; 4] =
    ["spectre_v2", "retbleed", "spec_rstack_overflow", "indirect_target_selection"];

/// This machine. What cannot be read is left empty.
pub fn machine() -> Machine {
    let cpuinfo = read("/proc/cpuinfo");
    let field = |name: &str| {
        cpuinfo.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == name).then(|| value.trim().to_owned())
        })
    };
    let flags = field("flags").unwrap_or_default();
    Machine {
        kernel: read("/proc/sys/kernel/osrelease"),
        cpu: field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        cpus: thread::available_parallelism().map_or(0, |count| count.get() as u32),
        virtual_machine: flags.split_whitespace().any(|flag| flag == "hypervisor"),
        // Root alone may read it; a kernel that is built without an interpreter has no other way.
        jit: read("/proc/sys/net/core/bpf_jit_enable") != "0",
        mitigations: MITIGATIONS
            .iter()
            .map(|name| (name, read(&format!("/sys/devices/system/cpu/vulnerabilities/{name}"))))
            .filter(|(_, text)| !text.is_empty())
            .map(|(name, text)| format!("{name}: {text}"))
            .collect(),
        xdp_mode: "BPF_PROG_TEST_RUN, no device".to_owned(),
        load: read("/proc/loadavg")
            .split(' ')
            .next()
            .and_then(|one| one.parse().ok())
            .unwrap_or(0.0),
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}
