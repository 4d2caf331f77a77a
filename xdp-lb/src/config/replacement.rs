//! What of kube-proxy's work is done here: `kubeProxyReplacement`, and a section for each feature, with
//! Cilium's names where it has them.

use std::{ops::RangeInclusive, path::PathBuf};

use xdp_lb_plan::kubernetes::Serves;

use super::{
    api::{path, wanted},
    read::{At, Fields},
};

/// What of kube-proxy's work is done here, and how.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Replacement {
    /// `kubeProxyReplacement`; none where the file does not say it
    pub mode: Option<ReplacementMode>,
    /// What is to be served
    pub serves: Serves,
    /// How sockets are led to backends
    pub sockets: SocketConfig,
    /// Whether binding to a node port is refused
    pub bind_protection: bool,
    /// The API server's range of node ports
    pub node_ports: RangeInclusive<u16>,
}

impl Default for Replacement {
    fn default() -> Self {
        Self {
            mode: None,
            serves: Serves::default(),
            sockets: SocketConfig::default(),
            bind_protection: true,
            node_ports: 30_000..=32_767,
        }
    }
}

/// `kubeProxyReplacement`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ReplacementMode {
    /// All of it, or the daemon does not start.
    Strict,
    /// What this machine can do; the rest is left to kube-proxy.
    Probe,
    /// What the file names.
    Partial,
    /// Nothing: services are shown and not served.
    Disabled,
}

impl ReplacementMode {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Probe => "probe",
            Self::Partial => "partial",
            Self::Disabled => "disabled",
        }
    }
}

/// How sockets of this host are led to backends.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SocketConfig {
    /// Whose sockets: a directory of the cgroup v2 hierarchy; its root where there is none
    pub cgroup: Option<PathBuf>,
    /// Only sockets of the host's own network namespace, not those of pods
    pub host_only: bool,
    /// Whether node ports are served on the host's loopback addresses
    pub loopback: bool,
    /// Whether calls are refused where only the policy leaves no backend; otherwise they time out
    pub refuse_excluded: bool,
    /// Whether connected UDP sockets are ended whose backend is gone
    pub end_orphans: bool,
}

impl Default for SocketConfig {
    fn default() -> Self {
        Self {
            cgroup: None,
            host_only: false,
            loopback: true,
            refuse_excluded: false,
            end_orphans: true,
        }
    }
}

/// A feature's section, with its key.
const FEATURES: [&str; 4] = ["socketLB", "nodePort", "externalIPs", "loadBalancer"];

/// Reads all of it from the document's keys.
pub(super) fn replacement(fields: &Fields<'_>, follows: bool) -> Option<Replacement> {
    let mode = fields.optional("kubeProxyReplacement").map(|at| mode(&at, follows));
    let mut sections = Sections::default();
    let right =
        FEATURES.map(|name| fields.optional(name).is_none_or(|at| sections.read(name, &at)));
    let mode = wanted(mode)?;
    if right.contains(&false) {
        return None;
    }
    let Sections { enabled, rest } = sections;
    for (name, enabled) in FEATURES.into_iter().zip(enabled) {
        let (Some(mode), Some(enabled)) = (mode, enabled) else { continue };
        let contradiction = match (mode, enabled) {
            (ReplacementMode::Strict, false) => {
                "`kubeProxyReplacement: strict` needs all features: remove the section's `enabled`, or \
                 write `partial` and name those that you want"
            }
            (ReplacementMode::Disabled, true) => {
                "`kubeProxyReplacement: disabled` serves nothing: write `partial`, or remove the \
                 section's `enabled`"
            }
            _ => continue,
        };
        if let Some(at) = fields.optional(name) {
            at.mistake(contradiction);
        }
        return None;
    }
    if mode == Some(ReplacementMode::Partial) && !enabled.contains(&Some(true)) {
        if let Some(at) = fields.optional("kubeProxyReplacement") {
            at.mistake(
                "`partial` serves what is named, and nothing is: add some of `socketLB`, `nodePort`, \
                 `externalIPs`, `loadBalancer`, each with `{enabled: true}`",
            );
        }
        return None;
    }
    let usual = Serves::default();
    let usual = [usual.sockets, usual.node_ports, usual.external_ips, usual.load_balancers];
    let default = match mode {
        None => usual,
        Some(ReplacementMode::Strict | ReplacementMode::Probe) => [true; 4],
        Some(ReplacementMode::Partial | ReplacementMode::Disabled) => [false; 4],
    };
    let [sockets, node_ports, external_ips, load_balancers] =
        std::array::from_fn(|index| enabled[index].unwrap_or(default[index]));
    let serves = Serves { sockets, node_ports, external_ips, load_balancers };
    Some(Replacement { mode, serves, ..rest })
}

fn mode(at: &At<'_>, follows: bool) -> Option<ReplacementMode> {
    let mode = at.choice(&[
        ("strict", ReplacementMode::Strict),
        ("probe", ReplacementMode::Probe),
        ("partial", ReplacementMode::Partial),
        ("disabled", ReplacementMode::Disabled),
        ("true", ReplacementMode::Strict),
        ("false", ReplacementMode::Disabled),
    ])?;
    if !follows {
        at.mistake("no cluster is followed: add a section `kubernetes`, or remove the key");
        return None;
    }
    Some(mode)
}

/// What the features' sections say, as far as they have been read.
#[derive(Default)]
struct Sections {
    /// In the order of [`FEATURES`]
    enabled: [Option<bool>; 4],
    rest: Replacement,
}

impl Sections {
    /// Whether the section is right.
    fn read(&mut self, name: &'static str, at: &At<'_>) -> bool {
        let read = match name {
            "socketLB" => self.sockets(at),
            "nodePort" => self.node_ports(at),
            _ => at.fields(&["enabled"]).and_then(|fields| enabled(&fields)),
        };
        let Some(enabled) = read else { return false };
        if let Some(index) = FEATURES.iter().position(|one| *one == name) {
            self.enabled[index] = enabled;
        }
        true
    }

    #[expect(clippy::option_option, reason = "as of `enabled`")]
    fn sockets(&mut self, at: &At<'_>) -> Option<Option<bool>> {
        let fields = at.fields(&[
            "enabled",
            "cgroupRoot",
            "hostNamespaceOnly",
            "loopbackNodePorts",
            "noAllowedBackend",
            "terminatePodConnections",
        ])?;
        let default = SocketConfig::default();
        let truth =
            |key, default| fields.optional(key).map_or(Some(default), |at: At<'_>| at.truth());
        let enabled = enabled(&fields);
        let cgroup = wanted(fields.optional("cgroupRoot").map(|at| path(&at)));
        let host_only = truth("hostNamespaceOnly", default.host_only);
        let loopback = truth("loopbackNodePorts", default.loopback);
        let refuse = fields.optional("noAllowedBackend");
        let refuse_excluded = refuse.map_or(Some(default.refuse_excluded), |at| {
            at.choice(&[("timeout", false), ("refuse", true)])
        });
        let end_orphans = truth("terminatePodConnections", default.end_orphans);
        self.rest.sockets = SocketConfig {
            cgroup: cgroup?,
            host_only: host_only?,
            loopback: loopback?,
            refuse_excluded: refuse_excluded?,
            end_orphans: end_orphans?,
        };
        enabled
    }

    #[expect(clippy::option_option, reason = "as of `enabled`")]
    fn node_ports(&mut self, at: &At<'_>) -> Option<Option<bool>> {
        let fields = at.fields(&["enabled", "bindProtection", "range"])?;
        let enabled = enabled(&fields);
        let protection =
            fields.optional("bindProtection").map_or(Some(true), |at: At<'_>| at.truth());
        let range = fields.optional("range");
        let range = range.map_or(Some(self.rest.node_ports.clone()), |at| super::ports(&at));
        (self.rest.bind_protection, self.rest.node_ports) = (protection?, range?);
        enabled
    }
}

/// Whether a feature is wanted, where its section says it.
#[expect(
    clippy::option_option,
    reason = "outside: whether it is right; inside: whether it is there"
)]
fn enabled(fields: &Fields<'_>) -> Option<Option<bool>> {
    wanted(fields.optional("enabled").map(|at| at.truth()))
}
