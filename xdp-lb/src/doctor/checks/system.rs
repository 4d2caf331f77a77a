//! The kernel, its BPF, memory and the configuration.

use super::{Facts, Finding, State, error, ok, unknown, warning};
use crate::{dataplane::footprint, topology};

/// The oldest kernel that the programs load on.
const OLDEST: (u32, u32) = (5, 18);
/// From here on the program on the way out is attached by TCX.
const TCX: (u32, u32) = (6, 6);
/// Older kernels charge tables to the limit of locked memory.
const MEMCG: (u32, u32) = (5, 11);

/// Clock sources that are read by an instruction.
const FAST_CLOCKS: [&str; 6] =
    ["tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page", "xen", "timebase"];

const CONFIG_MEND: &str = "boot a kernel that is built with it";

pub(super) fn privileges(facts: &Facts) -> Finding {
    let check = "privileges";
    if facts.privileged {
        return ok(check, "programs may be loaded and attached");
    }
    let detail = "not root, and without CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON: the daemon cannot start \
                  like this, and some checks cannot be made";
    warning(check, detail, "sudo xdp-lb doctor")
}

pub(super) fn kernel(facts: &Facts) -> Finding {
    let (check, release) = ("kernel", &facts.release);
    let Some(version) = facts.version() else {
        return unknown(check, format!("\"{release}\" is no version"));
    };
    if version < OLDEST {
        let detail = format!("{release} is older than {}.{}", OLDEST.0, OLDEST.1);
        return error(check, detail, "boot a newer kernel");
    }
    if version < TCX {
        let detail =
            format!("{release}: answers of pods leave by a clsact filter, since TCX is new in 6.6");
        return ok(check, detail);
    }
    ok(check, release)
}

/// Whether the kernel is built with what is needed.
pub(super) fn options(facts: &Facts) -> Finding {
    let check = "kernel options";
    let Some(options) = &facts.options else {
        let detail = "the kernel's configuration is neither in /proc/config.gz nor in /boot";
        return unknown(check, detail);
    };
    let has = |name: &str| options.get(name).is_some_and(|value| value == "y" || value == "m");
    let mut needed = vec!["CONFIG_BPF_SYSCALL", "CONFIG_BPF_JIT", "CONFIG_NET"];
    let egress = facts.config().is_none_or(topology::needs_egress);
    if egress && facts.version().is_some_and(|version| version < TCX) {
        needed.extend(["CONFIG_NET_CLS_BPF", "CONFIG_NET_SCH_INGRESS"]);
    }
    if egress {
        needed.push("CONFIG_NET_CLS_ACT");
    }
    let missing: Vec<&str> = needed.iter().copied().filter(|name| !has(name)).collect();
    if missing.is_empty() {
        return ok(check, "all that is needed is built in");
    }
    error(check, format!("without {}", missing.join(", ")), CONFIG_MEND)
}

/// Whether calls of sockets can be served, where that is wanted.
pub(super) fn sockets(facts: &Facts) -> Option<Finding> {
    let check = "socket LB";
    facts.config().filter(|config| config.replacement.serves.sockets)?;
    let has = |name: &str| {
        let options = facts.options.as_ref();
        options.is_none_or(|all| all.get(name).is_some_and(|value| value == "y" || value == "m"))
    };
    if !has("CONFIG_CGROUP_BPF") {
        let detail = "the kernel has no hooks for calls of sockets: it is built without \
                      CONFIG_CGROUP_BPF";
        return Some(error(check, detail, CONFIG_MEND));
    }
    let root = match &facts.cgroup {
        Some(Ok(root)) => root,
        Some(Err(why)) => {
            let mend = "mount -t cgroup2 none /sys/fs/cgroup";
            return Some(error(check, why.clone(), mend));
        }
        None => return Some(unknown(check, "/proc/self/mountinfo cannot be read")),
    };
    if !has("CONFIG_INET_DIAG_DESTROY") {
        let detail = format!(
            "cgroup v2 is at {root}; UDP sockets whose backend goes are not ended, since the kernel is \
             built without CONFIG_INET_DIAG_DESTROY"
        );
        return Some(warning(check, detail, CONFIG_MEND));
    }
    Some(ok(check, format!("cgroup v2 is at {root}")))
}

pub(super) fn btf(facts: &Facts) -> Finding {
    let check = "BTF";
    if facts.btf {
        return ok(check, "the kernel describes its types");
    }
    let detail = "no /sys/kernel/btf/vmlinux: the data path does without, other tools may not";
    warning(check, detail, "boot a kernel with CONFIG_DEBUG_INFO_BTF=y")
}

pub(super) fn jit(facts: &Facts) -> Finding {
    let check = "JIT";
    match facts.sysctl("net.core.bpf_jit_enable") {
        Some("0") => {
            let detail = "programs are interpreted, several times slower";
            error(check, detail, "sysctl -w net.core.bpf_jit_enable=1")
        }
        Some("2") => {
            let detail = "each program is written to the log when it is loaded: for debugging only";
            warning(check, detail, "sysctl -w net.core.bpf_jit_enable=1")
        }
        Some(_) => ok(check, "programs are compiled"),
        None => unknown(check, "net.core.bpf_jit_enable cannot be read"),
    }
}

pub(super) fn hardening(facts: &Facts) -> Finding {
    let check = "JIT hardening";
    match facts.sysctl("net.core.bpf_jit_harden") {
        Some("2") => {
            let detail = "constants are blinded for privileged programs too, which makes each packet \
                          slower (1 does so for others only)";
            warning(check, detail, "sysctl -w net.core.bpf_jit_harden=1")
        }
        Some(_) => ok(check, "programs of root are not slowed down"),
        None => unknown(check, "net.core.bpf_jit_harden can be read by root only"),
    }
}

pub(super) fn bpffs(facts: &Facts) -> Finding {
    let (check, at) = ("BPF file system", &facts.pin_dir);
    if facts.bpffs {
        return ok(check, format!("{at} is in one"));
    }
    let mend = "mount -t bpf bpf /sys/fs/bpf";
    error(check, format!("{at} is in none: nothing can be pinned there"), mend)
}

pub(super) fn data_path(facts: &Facts) -> Finding {
    let check = "data path";
    if !facts.other_versions.is_empty() {
        let found = facts.other_versions.join(", ");
        let detail = format!("{} holds that of another version of xdp-lb: {found}", facts.pin_dir);
        let mend = format!(
            "take the traffic away, then: xdp-lb clean --all-versions --pin-dir {}",
            facts.pin_dir
        );
        return error(check, detail, mend);
    }
    if facts.running {
        return ok(check, format!("one is pinned in {}", facts.pin_dir));
    }
    ok(check, "none is pinned yet")
}

pub(super) fn locked_memory(facts: &Facts) -> Finding {
    let check = "locked memory";
    match (facts.version(), facts.locked_memory) {
        (Some(version), Some(limit)) if version < MEMCG => {
            let detail = format!("tables are charged to the limit of {limit} bytes");
            error(check, detail, "ulimit -l unlimited (systemd: LimitMEMLOCK=infinity)")
        }
        (None, Some(_)) => unknown(check, "the kernel's version is not known"),
        _ => ok(check, "tables are not limited by it"),
    }
}

/// Whether the tables fit in.
pub(super) fn memory(facts: &Facts) -> Finding {
    let check = "memory";
    let Some(available) = facts.memory_available else {
        return unknown(check, "/proc/meminfo does not say how much is available");
    };
    let limits = facts.config().map(|config| config.limits).unwrap_or_default();
    let needed = footprint(&limits, facts.cpus);
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let detail = format!("the tables take {} MiB; {} are available", mib(needed), mib(available));
    if facts.running {
        return ok(check, format!("{detail}, and they are there already"));
    }
    let mend = "lower `limits` in the configuration";
    if needed > available {
        return error(check, detail, mend);
    }
    if needed > available / 2 {
        return warning(check, detail, mend);
    }
    ok(check, detail)
}

pub(super) fn clock(facts: &Facts) -> Finding {
    let check = "clock";
    let Some(clock) = &facts.clock else { return unknown(check, "no clock source is named") };
    if FAST_CLOCKS.contains(&clock.as_str()) {
        return ok(check, clock);
    }
    let detail = format!("{clock} takes long to read, and new flows and handovers read it");
    let mend = "echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource";
    warning(check, detail, mend)
}

/// Whether there is a sound one; nothing is said where none is expected.
pub(super) fn configuration(facts: &Facts) -> Option<Finding> {
    let check = "configuration";
    Some(match facts.config.as_ref()? {
        Ok(config) => {
            let (services, devices) = (config.services.len(), config.devices.len());
            ok(check, format!("{services} services, {devices} devices"))
        }
        Err(mistakes) => Finding {
            check: check.to_owned(),
            state: State::Error,
            detail: mistakes.clone(),
            mend: Some("mend each of these, then: xdp-lb check --config FILE".to_owned()),
        },
    })
}
