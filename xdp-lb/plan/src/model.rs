//! What users declare, checked: every value here is one that the data path can serve.

use std::{collections::BTreeSet, fmt, net::IpAddr, num::NonZeroU16, str::FromStr, time::Duration};

use ipnet::IpNet;
use xdp_lb_abi::{Family, FrontendKey, Scope};

use crate::health::HealthCheck;

/// Transport protocol of a frontend.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub enum Protocol {
    /// IP protocol 6
    Tcp,
    /// IP protocol 17
    Udp,
    /// IP protocol 132
    Sctp,
}

impl Protocol {
    /// IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The protocol with this IP protocol number.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// A text that names no protocol.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the protocol is TCP, UDP or SCTP")]
pub struct UnknownProtocol;

impl FromStr for Protocol {
    type Err = UnknownProtocol;

    fn from_str(text: &str) -> Result<Self, UnknownProtocol> {
        match text {
            "TCP" | "tcp" => Ok(Self::Tcp),
            "UDP" | "udp" => Ok(Self::Udp),
            "SCTP" | "sctp" => Ok(Self::Sctp),
            _ => Err(UnknownProtocol),
        }
    }
}

/// Address, port and protocol that clients use.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct Frontend {
    /// Address that clients use
    pub address: IpAddr,
    /// Port that clients use
    pub port: NonZeroU16,
    /// Transport protocol
    pub protocol: Protocol,
}

impl Frontend {
    /// The key of the frontend table, of [`Scope::All`].
    pub fn key(&self) -> FrontendKey {
        FrontendKey::new(self.address.into(), self.port.get(), self.protocol.number())
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            IpAddr::V4(v4) => write!(f, "{v4}:{}/{}", self.port, self.protocol),
            IpAddr::V6(v6) => write!(f, "[{v6}]:{}/{}", self.port, self.protocol),
        }
    }
}

/// How a service's packets get to its backends.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub enum Mode {
    /// The destination's MAC address is replaced.
    #[default]
    L2,
    /// In an IPv4 or IPv6 header.
    Ipip,
    /// In a Geneve tunnel, already addressed to the pod; pods on this host as in `Local`.
    Geneve,
    /// To this host's own stack, addressed to the pod.
    Local,
    /// With both addresses rewritten; answers come back through this host.
    Snat,
    /// TCP as in `Geneve`, UDP and SCTP as in `Snat`.
    Hybrid,
}

impl Mode {
    /// All modes, with the names that the configuration has for them.
    pub const NAMES: [(&str, Self); 6] = [
        ("l2", Self::L2),
        ("ipip", Self::Ipip),
        ("geneve", Self::Geneve),
        ("local", Self::Local),
        ("snat", Self::Snat),
        ("hybrid", Self::Hybrid),
    ];

    /// The name that the configuration has for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::L2 => "l2",
            Self::Ipip => "ipip",
            Self::Geneve => "geneve",
            Self::Local => "local",
            Self::Snat => "snat",
            Self::Hybrid => "hybrid",
        }
    }

    /// Whether packets reach backends with the frontend's address and port.
    pub const fn keeps_destination(self) -> bool {
        matches!(self, Self::L2 | Self::Ipip)
    }

    /// How the packet path forwards to one backend; `here` where the backend is a pod of this host.
    pub const fn forwarding(self, protocol: Protocol, here: bool) -> xdp_lb_abi::Mode {
        use xdp_lb_abi::Mode as Forwarding;
        match (self, protocol) {
            (Self::L2, _) => Forwarding::L2,
            (Self::Ipip, _) => Forwarding::Ipip,
            (Self::Local, _) => Forwarding::Local,
            _ if here => Forwarding::Local,
            (Self::Geneve, _) | (Self::Hybrid, Protocol::Tcp) => Forwarding::Geneve,
            (Self::Snat | Self::Hybrid, _) => Forwarding::Snat,
        }
    }
}

/// A port on the node's own addresses.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct NodePort {
    /// Port that clients use
    pub port: NonZeroU16,
    /// Transport protocol
    pub protocol: Protocol,
}

impl fmt::Display for NodePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nodePort {}/{}", self.port, self.protocol)
    }
}

/// What the node contributes to its services.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Node {
    /// Addresses that have the [`NodePort`]s
    pub node_port_addresses: BTreeSet<IpAddr>,
    /// Networks of pods on this host
    pub pods: Vec<IpNet>,
    /// The host's own addresses
    pub addresses: BTreeSet<IpAddr>,
    /// Whether sockets of this host are led to backends: its node ports are then on its loopback
    /// addresses too, as frontends on the unspecified address of each family.
    pub sockets: bool,
}

impl Node {
    /// Whether a backend is a pod of this host.
    pub fn has(&self, backend: &Backend) -> bool {
        self.pods.iter().any(|net| net.contains(&backend.address))
            || backend.node.is_some_and(|node| self.addresses.contains(&node))
            || self.addresses.contains(&backend.address)
    }
}

/// What happens to packets of a service without a backend.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub enum NoBackends {
    /// TCP is reset, others are told that the port is unreachable.
    #[default]
    Reject,
    /// They are dropped.
    Drop,
}

/// Address that serves, and its share.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct Backend {
    /// Address that serves
    pub address: IpAddr,
    /// Port that serves; the frontend's where there is none
    pub port: Option<NonZeroU16>,
    /// Share of new flows in proportion to the other backends' weights; 0 drains
    pub weight: u16,
    /// Address of the node that it runs on: where a Geneve tunnel to it ends
    pub node: Option<IpAddr>,
    /// Whether its health check takes it for dead, so that its `weight` is 0
    pub down: bool,
}

impl Backend {
    /// A backend on the frontend's port, of weight 1.
    pub const fn new(address: IpAddr) -> Self {
        Self { address, port: None, weight: 1, node: None, down: false }
    }
}

/// A service: frontends that share their backends.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Service {
    /// Unique name
    pub name: String,
    /// Whom its frontends are for
    pub scope: Scope,
    /// No frontend is in two services of one scope
    pub frontends: Vec<Frontend>,
    /// Ports on the node's own addresses; not empty where `frontends` is, and in no two services
    pub node_ports: Vec<NodePort>,
    /// Family of the addresses that have `node_ports`; both where there is none. Two services may
    /// have a port in different families.
    pub node_port_family: Option<Family>,
    /// Whether sockets of this host reach its node ports by another service, of [`Scope::Sockets`]
    pub sockets_apart: bool,
    /// How packets get to the backends
    pub mode: Mode,
    /// Maglev table size, one of [`crate::maglev::LADDER`]; the smallest that suits where there is
    /// none
    pub table_size: Option<u32>,
    /// Whether a client's address alone decides, and how long a client keeps its backend through a
    /// change
    pub affinity: Option<Duration>,
    /// Networks whose clients alone may use `frontends`; all of a family may where none is of it
    pub sources: Vec<IpNet>,
    /// What happens to packets without a backend
    pub no_backends: NoBackends,
    /// How the backends are asked whether they are well; they are up where nobody asks
    pub health_check: Option<HealthCheck>,
    /// At most [`xdp_lb_abi::MAX_SERVICE_BACKENDS`], no two with the same address and port
    pub backends: Vec<Backend>,
}

impl Service {
    /// A service with its defaults.
    pub fn new(
        name: impl Into<String>,
        mode: Mode,
        frontends: Vec<Frontend>,
        backends: Vec<Backend>,
    ) -> Self {
        Self { name: name.into(), mode, frontends, backends, ..Self::default() }
    }

    /// How the packet path forwards to one of its backends. No tunnel leads to a backend whose node
    /// is not known: it is served as in [`Mode::Snat`].
    pub fn forwarding(
        &self,
        protocol: Protocol,
        backend: &Backend,
        node: &Node,
    ) -> xdp_lb_abi::Mode {
        let mode = self.mode.forwarding(protocol, node.has(backend));
        if mode == xdp_lb_abi::Mode::Geneve && backend.node.is_none() {
            return xdp_lb_abi::Mode::Snat;
        }
        mode
    }

    /// The key of one of its frontends in the frontend table.
    pub fn key(&self, frontend: &Frontend) -> FrontendKey {
        frontend.key().with_scope(self.scope)
    }

    /// Whether an address of the node's has its node ports.
    pub fn has_node_ports_on(&self, address: IpAddr) -> bool {
        let v4 = self.node_port_family.map(|family| family == Family::V4);
        v4.is_none_or(|v4| v4 == address.is_ipv4())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_of_this_host_is_served_locally_where_the_mode_may() {
        use xdp_lb_abi::Mode as Forwarding;
        for (mode, protocol, here, expected) in [
            (Mode::Geneve, Protocol::Tcp, false, Forwarding::Geneve),
            (Mode::Geneve, Protocol::Udp, true, Forwarding::Local),
            (Mode::Hybrid, Protocol::Tcp, true, Forwarding::Local),
            (Mode::Hybrid, Protocol::Udp, true, Forwarding::Local),
            (Mode::Hybrid, Protocol::Sctp, false, Forwarding::Snat),
            (Mode::Snat, Protocol::Tcp, true, Forwarding::Local),
            (Mode::Snat, Protocol::Tcp, false, Forwarding::Snat),
            (Mode::Ipip, Protocol::Tcp, true, Forwarding::Ipip),
        ] {
            assert_eq!(mode.forwarding(protocol, here), expected, "{mode:?} {protocol} {here}");
        }
    }
}
