//! The little of a Node that the rules use.

use std::net::IpAddr;

use k8s_openapi::api::core::v1;
use xdp_lb_abi::Family;

use crate::kubernetes::{
    Problem,
    address::{family, host},
    finding::Flaw,
};

const ZONE: &str = "topology.kubernetes.io/zone";
const SCALING_DOWN: &str = "ToBeDeletedByClusterAutoscaler";

/// The little of a Node that the rules use.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Node {
    pub(super) uid: Box<str>,
    ipv4: Option<IpAddr>,
    ipv6: Option<IpAddr>,
    pub(super) zone: Option<Box<str>>,
    pub(super) deleting: bool,
    pub(super) scaling_down: bool,
    pub(super) flaws: Vec<Flaw>,
}

impl Node {
    pub(super) fn read(node: &v1::Node) -> Self {
        let mut flaws = Vec::new();
        let mut internal = Vec::new();
        let mut external = Vec::new();
        let status = node.status.as_ref();
        let addresses = status.and_then(|status| status.addresses.as_deref()).unwrap_or_default();
        for (index, address) in addresses.iter().enumerate() {
            let list = match address.type_.as_str() {
                "InternalIP" => &mut internal,
                "ExternalIP" => &mut external,
                _ => continue,
            };
            match host(&address.address) {
                Some(address) => list.push(address),
                None => flaws.push(Flaw::new(
                    format!("status.addresses[{index}].address"),
                    Problem::Address(address.address.clone()),
                )),
            }
        }
        let addresses = if internal.is_empty() { external } else { internal };
        if addresses.is_empty() {
            flaws.push(Flaw::new("status.addresses".into(), Problem::NoNodeAddress));
        }
        let first = |wanted| addresses.iter().copied().find(|one| family(*one) == wanted);
        let spec = node.spec.as_ref();
        let taints = spec.and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
        let labels = node.metadata.labels.as_ref();
        Self {
            uid: node.metadata.uid.as_deref().unwrap_or_default().into(),
            ipv4: first(Family::V4),
            ipv6: first(Family::V6),
            zone: labels.and_then(|labels| labels.get(ZONE)).map(|zone| zone.as_str().into()),
            deleting: node.metadata.deletion_timestamp.is_some(),
            scaling_down: taints.iter().any(|taint| taint.key == SCALING_DOWN),
            flaws,
        }
    }

    /// All that endpoints on it depend on.
    pub(super) const fn of_endpoints(&self) -> (Option<IpAddr>, Option<IpAddr>) {
        (self.ipv4, self.ipv6)
    }

    /// Where a tunnel to its endpoints ends: an address of their family, if it has one.
    pub(super) fn address(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.ipv4.or(self.ipv6),
            Family::V6 => self.ipv6.or(self.ipv4),
        }
    }
}
