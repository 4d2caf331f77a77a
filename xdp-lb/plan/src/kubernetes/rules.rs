//! What this balancer is told besides the cluster's objects.

use std::{collections::BTreeSet, fmt, ops::RangeInclusive, str::FromStr};

use crate::model::Mode;

/// What this balancer is told besides the cluster's objects.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Rules {
    /// Name of the Node that this host is; none for a balancer that is no node of the cluster
    pub node: Option<Box<str>>,
    /// Which Services' LoadBalancer addresses are served
    pub classes: Classes,
    /// How packets get to pods where a Service does not say
    pub mode: PodMode,
    /// Which frontends are served
    pub serves: Serves,
    /// Ports that mode `snat` sends from: a node port among them would take the answers
    pub snat_ports: Option<RangeInclusive<u16>>,
}

/// Which kinds of frontends are served; the others are left to kube-proxy.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Serves {
    /// What sockets of this host ask for is led to a backend: ClusterIPs, and short cuts for all others
    pub sockets: bool,
    /// Node ports
    pub node_ports: bool,
    /// External IPs
    pub external_ips: bool,
    /// LoadBalancer addresses, of [`Classes`]
    pub load_balancers: bool,
}

impl Serves {
    /// Nothing.
    pub const NOTHING: Self =
        Self { sockets: false, node_ports: false, external_ips: false, load_balancers: false };
}

impl Default for Serves {
    /// What comes in by the network card.
    fn default() -> Self {
        Self { sockets: false, node_ports: true, external_ips: true, load_balancers: true }
    }
}

/// Which Services' LoadBalancer addresses are served, by `spec.loadBalancerClass`.
///
/// Node ports and external IPs are served whatever the class.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Classes {
    /// Those of all Services, as kube-proxy does.
    #[default]
    All,
    /// Those of Services with one of these classes; `None` stands for a Service without a class.
    Only(BTreeSet<Option<Box<str>>>),
}

impl Classes {
    /// Whether the LoadBalancer addresses of a Service of this class are served.
    pub(super) fn have(&self, class: Option<&str>) -> bool {
        match self {
            Self::All => true,
            Self::Only(classes) => classes.iter().any(|one| one.as_deref() == class),
        }
    }
}

/// The modes in which pods can be served: they have no frontend's address, so it must be rewritten.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum PodMode {
    /// [`Mode::Geneve`]
    #[default]
    Geneve,
    /// [`Mode::Snat`]
    Snat,
    /// [`Mode::Hybrid`]
    Hybrid,
}

/// A text that names no mode for pods.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the mode for pods is geneve, snat or hybrid")]
pub struct UnknownPodMode;

impl FromStr for PodMode {
    type Err = UnknownPodMode;

    fn from_str(text: &str) -> Result<Self, UnknownPodMode> {
        match text {
            "geneve" => Ok(Self::Geneve),
            "snat" => Ok(Self::Snat),
            "hybrid" => Ok(Self::Hybrid),
            _ => Err(UnknownPodMode),
        }
    }
}

impl From<PodMode> for Mode {
    fn from(mode: PodMode) -> Self {
        match mode {
            PodMode::Geneve => Self::Geneve,
            PodMode::Snat => Self::Snat,
            PodMode::Hybrid => Self::Hybrid,
        }
    }
}

impl fmt::Display for PodMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Mode::from(*self).as_str())
    }
}
