//! Which Service has a frontend that several claim.

use std::collections::HashMap;

use xdp_lb_abi::Family;

use crate::{
    kubernetes::{Key, Rules, service::Service},
    model::{Frontend, NodePort},
};

/// What only one Service can have.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
pub(super) enum Claim {
    At(Frontend),
    NodePort(NodePort, Family),
}

/// Who chose what is claimed, in the order of whom it belongs to.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Hash)]
pub(super) enum Rank {
    /// The API server: a ClusterIP. No user can ask for another Service's.
    Assigned,
    /// Users and controllers
    Chosen,
}

/// All that a Service claims; a claim may come twice.
pub(super) fn claims<'a>(
    service: &'a Service,
    rules: &'a Rules,
) -> impl Iterator<Item = (Claim, Rank)> + 'a {
    let with_load_balancer = rules.classes.have(service.class.as_deref());
    service.ports.iter().flat_map(move |port| {
        service.families().flat_map(move |(family, addresses)| {
            let load_balancer = addresses.load_balancer.iter().filter(move |_| with_load_balancer);
            let assigned = addresses.cluster_ip.iter().map(|address| (address, Rank::Assigned));
            let chosen = addresses.external_ips.iter().chain(load_balancer);
            let chosen = chosen.map(|address| (address, Rank::Chosen));
            let at = assigned.chain(chosen).map(move |(address, rank)| {
                let (port, protocol) = (port.port, port.protocol);
                (Claim::At(Frontend { address: *address, port, protocol }), rank)
            });
            let node_port = port.node_port.map(|node_port| {
                let node_port = NodePort { port: node_port, protocol: port.protocol };
                (Claim::NodePort(node_port, family), Rank::Chosen)
            });
            at.chain(node_port)
        })
    })
}

/// Who claims what, in order. A ClusterIP is its Service's. Otherwise the oldest Service has it; of several
/// that are equally old, the first by namespace and name.
#[derive(Debug, Default)]
pub(super) struct Claims(HashMap<Claim, Vec<(Rank, i64, Key)>>);

impl Claims {
    /// A Service claims something. Calls `tell` with all that do where it gets it.
    pub(super) fn add(
        &mut self,
        (claim, rank): (Claim, Rank),
        created: i64,
        key: &Key,
        tell: impl FnMut(&Key),
    ) {
        let claimants = self.0.entry(claim).or_insert_with(|| Vec::with_capacity(1));
        let new = (rank, created, key.clone());
        let Err(place) = claimants.binary_search(&new) else { return };
        claimants.insert(place, new);
        if place == 0 {
            claimants.iter().map(|(_, _, key)| key).for_each(tell);
        }
    }

    /// A Service does so no more. Calls `tell` with all others where it had it.
    pub(super) fn remove(
        &mut self,
        (claim, rank): (Claim, Rank),
        created: i64,
        key: &Key,
        tell: impl FnMut(&Key),
    ) {
        let Some(claimants) = self.0.get_mut(&claim) else { return };
        let Ok(place) = claimants.binary_search(&(rank, created, key.clone())) else { return };
        claimants.remove(place);
        if claimants.is_empty() {
            self.0.remove(&claim);
        } else if place == 0 {
            claimants.iter().map(|(_, _, key)| key).for_each(tell);
        }
    }

    /// The Service that has it.
    pub(super) fn owner(&self, claim: &Claim) -> Option<&Key> {
        self.0.get(claim)?.first().map(|(_, _, key)| key)
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}
