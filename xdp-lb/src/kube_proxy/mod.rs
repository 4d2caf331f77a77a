//! kube-proxy on this node: what it is, what it serves, and how its work goes over to xdp-lb and back.
//!
//! Its rules are read and written by the tools whose formats they are: nft(8), iptables-save(8),
//! iptables-restore(8), ipvsadm(8). Which of them are its own is what its own clean-up says
//! (kube-proxy 1.36: `pkg/proxy/{iptables,nftables,ipvs}/cleanup.go`), less what others refer to.

mod compare;
mod error;
mod found;
mod iptables;
mod ipvs;
mod journal;
mod keeper;
mod manifest;
mod nftables;
mod owner;
mod process;
mod remove;
mod restore;
mod served;
#[cfg(test)]
mod tests;
mod tools;

use serde::{Deserialize, Serialize};

pub use compare::{Comparison, Difference, Told, compare};
pub use error::Error;
pub use found::{Found, RuleSet, RulesState};
pub use journal::{Journal, Stage};
pub use process::{ModeFrom, Process, RunsAs};
pub use remove::{Plan, Removal};
pub use restore::restore;

/// Where kubelet looks for static pods.
pub const MANIFESTS: &str = "/etc/kubernetes/manifests";
/// Where what was removed is kept.
pub const BACKUP: &str = "/var/lib/xdp-lb/kube-proxy";

/// A family of addresses, each of which has rules of its own.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Deserialize, Serialize)]
pub enum Family {
    /// IPv4
    #[serde(rename = "IPv4")]
    V4,
    /// IPv6
    #[serde(rename = "IPv6")]
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// What nft(8) calls it.
    pub(crate) const fn nft(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    /// Begins the names of iptables' programs.
    pub(crate) const fn iptables(self) -> &'static str {
        match self {
            Self::V4 => "iptables",
            Self::V6 => "ip6tables",
        }
    }

    pub(crate) const fn of(address: std::net::IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}
