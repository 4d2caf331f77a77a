//! What the checks know: everything that is read from the system, and nothing else.
//!
//! What is `None` could not be found out.

use std::collections::{BTreeMap, BTreeSet};

use crate::{config::Config, net::View};

/// What is known of this host.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// May load programs and attach them
    pub(super) privileged: bool,
    /// Like `6.1.0-18-amd64`
    pub(super) release: String,
    /// Options of the kernel's configuration: `y`, `m` or a value
    pub(super) options: Option<BTreeMap<String, String>>,
    /// `/sys/kernel/btf/vmlinux` is there
    pub(super) btf: bool,
    /// By name, as sysctl(8) writes it
    pub(super) sysctls: BTreeMap<String, String>,
    /// Where pins go, and whether that is in a BPF file system
    pub(super) pin_dir: String,
    pub(super) bpffs: bool,
    /// Other versions' pins
    pub(super) other_versions: Vec<String>,
    /// Root of the cgroup v2 hierarchy, or why there is none
    pub(super) cgroup: Option<Result<String, String>>,
    /// Whether the tables are there already
    pub(super) running: bool,
    /// In bytes; none without a limit
    pub(super) locked_memory: Option<u64>,
    /// In bytes
    pub(super) memory_available: Option<u64>,
    pub(super) clock: Option<String>,
    pub(super) cpus: usize,
    /// Devices by name
    pub(super) devices: BTreeMap<String, Device>,
    /// Process ids
    pub(super) kube_proxy: Vec<i32>,
    /// Chains of nftables, also those that iptables-nft made: table and name
    pub(super) chains: Option<BTreeSet<(String, String)>>,
    /// The older iptables is in use: its tables
    pub(super) legacy_tables: Vec<String>,
    /// The configuration, or what is wrong with it; none where there is no file
    pub(super) config: Option<Result<Config, String>>,
    /// Links and paths to the configuration's backends
    pub(super) view: Option<View>,
}

/// What is known of a device.
#[derive(Clone, Debug, Default)]
pub(super) struct Device {
    pub(super) index: u32,
    /// The kernel's name of its kind; empty for hardware
    pub(super) kind: String,
    pub(super) driver: Option<String>,
    pub(super) mtu: u32,
    pub(super) up: bool,
    /// Programs at it: in the driver, and in the network stack
    pub(super) xdp: Xdp,
    /// `NETDEV_XDP_ACT_…` of the driver (Linux 6.3)
    pub(super) features: Option<u64>,
    /// Offloads by the kernel's names
    pub(super) offloads: Option<BTreeMap<String, bool>>,
    pub(super) channels: Option<Channels>,
    /// VLAN devices on it
    pub(super) vlans: Vec<String>,
    /// One of ours is attached
    pub(super) ours: bool,
}

/// The ids of XDP programs at a device.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Xdp {
    pub(super) native: Option<u32>,
    pub(super) generic: Option<u32>,
}

/// Queues of a device.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Channels {
    /// That packets come in by, now and at most
    pub(super) rx: (u32, u32),
    /// How ethtool(8) calls them
    pub(super) combined: bool,
}

/// The driver runs XDP programs (uapi/linux/netdev.h).
pub(super) const BASIC: u64 = 1;
/// A program may redirect from it.
pub(super) const REDIRECT: u64 = 2;
/// Others may redirect to it.
pub(super) const XMIT: u64 = 4;
/// It takes packets of several buffers.
pub(super) const SEVERAL_BUFFERS: u64 = 32;

impl Facts {
    /// Major and minor version of the kernel.
    pub(super) fn version(&self) -> Option<(u32, u32)> {
        let mut parts = self.release.split(|c: char| !c.is_ascii_digit());
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    }

    pub(super) fn sysctl(&self, name: &str) -> Option<&str> {
        self.sysctls.get(name).map(String::as_str)
    }

    /// A sound configuration.
    pub(super) fn config(&self) -> Option<&Config> {
        self.config.as_ref()?.as_ref().ok()
    }
}
