//! Reads the facts: the one place of the doctor that touches the system, and it changes nothing.

mod devices;
pub(super) mod nftables;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use procfs::Current as _;
use tokio::time::timeout;

use super::facts::Facts;
use crate::{
    config::Config,
    daemon::{has_capabilities, read_config},
    dataplane::cgroup_root,
    net::{Follower, Path as Way, View, Why},
    pins::Pins,
    topology,
};

/// How long to wait for the kernel's routes and for neighbours to answer.
const SETTLE: Duration = Duration::from_secs(3);

/// Everything that sysctl(8) is asked for. `*` stands for each device.
const SYSCTLS: [&str; 13] = [
    "net/core/bpf_jit_enable",
    "net/core/bpf_jit_harden",
    "net/core/bpf_jit_limit",
    "net/ipv4/ip_forward",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/ip_local_reserved_ports",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv4/conf/*/rp_filter",
    "net/ipv4/conf/*/forwarding",
    "net/ipv6/conf/all/forwarding",
    "net/ipv4/neigh/default/gc_thresh3",
    "net/ipv6/neigh/default/gc_thresh3",
    "kernel/bpf_stats_enabled",
];

/// Reads all facts; what cannot be read stays unknown. `config` must be there if it was `named`.
pub(super) async fn gather(pins: &Pins, config: &Path, named: bool) -> Facts {
    let mut facts = Facts {
        privileged: nix::unistd::geteuid().is_root() || has_capabilities(),
        release: read("/proc/sys/kernel/osrelease").unwrap_or_default(),
        options: options(),
        btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        pin_dir: pins.root().display().to_string(),
        bpffs: pins.check_file_system().is_ok(),
        other_versions: pins.other_versions(),
        cgroup: Some(
            cgroup_root().map(|path| path.display().to_string()).map_err(|e| e.to_string()),
        ),
        running: pins.exists().unwrap_or(false),
        locked_memory: locked_memory(),
        memory_available: procfs::Meminfo::current().ok().and_then(|one| one.mem_available),
        clock: read("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        cpus: procfs::CpuInfo::current().map_or(1, |one| one.num_cores()),
        devices: devices::gather(pins).await,
        kube_proxy: processes("kube-proxy"),
        chains: nftables::chains(),
        legacy_tables: legacy_tables(),
        ..Facts::default()
    };
    facts.sysctls = sysctls(facts.devices.keys());
    if named || config.exists() {
        facts.config = Some(read_config(config).map_err(|error| error.to_string()));
    }
    facts.view = view(facts.config()).await;
    facts
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn options() -> Option<BTreeMap<String, String>> {
    let all = procfs::kernel_config().ok()?;
    let value = |one: &procfs::ConfigSetting| match one {
        procfs::ConfigSetting::Yes => "y".to_owned(),
        procfs::ConfigSetting::Module => "m".to_owned(),
        procfs::ConfigSetting::Value(value) => value.clone(),
    };
    Some(all.iter().map(|(name, one)| (name.clone(), value(one))).collect())
}

fn locked_memory() -> Option<u64> {
    use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
    let (soft, _) = getrlimit(Resource::RLIMIT_MEMLOCK).ok()?;
    (soft != RLIM_INFINITY).then_some(soft)
}

/// Processes of this name.
fn processes(name: &str) -> Vec<i32> {
    let Ok(all) = procfs::process::all_processes() else { return Vec::new() };
    let named = all.filter_map(|one| {
        let stat = one.ok()?.stat().ok()?;
        (stat.comm == name).then_some(stat.pid)
    });
    named.collect()
}

fn legacy_tables() -> Vec<String> {
    let files = ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"].map(read);
    let names = files.iter().flatten().flat_map(|text| text.lines());
    names.map(str::to_owned).collect()
}

fn sysctls<'a>(devices: impl Iterator<Item = &'a String> + Clone) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for pattern in SYSCTLS {
        let names: Vec<String> = match pattern.split_once('*') {
            None => vec![pattern.to_owned()],
            // sysctl(8) writes a dot in a device's name as a slash.
            Some((before, after)) => {
                devices.clone().map(|name| format!("{before}{name}{after}")).collect()
            }
        };
        for name in names {
            if let Some(value) = read(PathBuf::from("/proc/sys").join(&name)) {
                let written = name.replace(['.', '/'], ".");
                found.insert(written, value);
            }
        }
    }
    found
}

/// Links and the paths to backends, as the daemon would see them.
async fn view(config: Option<&Config>) -> Option<View> {
    let follower = Follower::start().await.ok()?;
    let mut view = follower.view();
    if let Some(config) = config {
        let destinations = topology::destinations(config);
        follower.set_destinations(destinations.clone());
        let unsettled = |way: &Way| {
            matches!(way, Way::Unresolved { why: Why::Pending | Why::NoNeighbour { .. } })
        };
        let settled = |view: &std::sync::Arc<View>| {
            let mut ways = destinations.iter().map(|to| view.paths.get(to));
            ways.all(|way| way.is_some_and(|way| !unsettled(way)))
        };
        // Neighbours that do not answer are told about.
        let _ = timeout(SETTLE, view.wait_for(settled)).await;
    }
    let view = view.borrow().as_ref().clone();
    Some(view)
}
