//! The endpoints of one port of a Service, in one family.

use std::{cmp::Reverse, collections::BTreeMap, net::IpAddr, num::NonZeroU16, sync::Arc};

use xdp_lb_abi::{Family, MAX_SERVICE_BACKENDS};

use crate::{
    kubernetes::{
        Endpoint, TrafficPolicy,
        annotations::Annotations,
        choice::{self, Here},
        node::Node,
        service::ServicePort,
        slice::{Slice, SliceEndpoint},
    },
    model::{Backend, Protocol},
};

/// The endpoints of one port of a Service, in one family, by address and port.
pub(super) struct Endpoints<'a> {
    sockets: Vec<(IpAddr, NonZeroU16)>,
    of_slices: Vec<&'a SliceEndpoint>,
}

impl<'a> Endpoints<'a> {
    /// Joins the slices by the port's name and protocol.
    ///
    /// Of an endpoint that is there several times the one counts that does not terminate (its pod may
    /// have got the address of one that does), then the one in the better state, then the one in the
    /// first slice by name.
    pub(super) fn join(
        slices: &'a BTreeMap<Arc<str>, Slice>,
        port: &ServicePort,
        family: Family,
    ) -> Self {
        let mut all: Vec<((IpAddr, NonZeroU16), &SliceEndpoint)> = Vec::new();
        for slice in slices.values().filter(|slice| slice.family == family) {
            let same = slice.ports.iter();
            let same = same.filter(|one| one.name == port.name && one.protocol == port.protocol);
            for one in same {
                let endpoints = slice.endpoints.iter();
                all.extend(endpoints.map(|endpoint| ((endpoint.address, one.port), endpoint)));
            }
        }
        all.sort_by_key(|(socket, one)| {
            (*socket, one.terminating, Reverse((one.ready, one.serving)))
        });
        all.dedup_by_key(|(socket, _)| *socket);
        let (sockets, of_slices) = all.into_iter().unzip();
        Self { sockets, of_slices }
    }

    /// Whether any of them can be reached from anywhere.
    pub(super) fn any(&self) -> bool {
        choice::any(&self.of_slices)
    }

    /// The addresses of those that are ready on this node.
    pub(super) fn ready_here(&self, here: &Here<'_>) -> impl Iterator<Item = IpAddr> {
        let ready = self.of_slices.iter().filter(|one| one.ready && here.has(one));
        ready.map(|one| one.address)
    }

    /// Names of Nodes that have some of them.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &'a Arc<str>> {
        self.of_slices.iter().filter_map(|one| one.node.as_ref())
    }

    /// All that is to be known of them.
    pub(super) fn describe(
        &self,
        here: &Here<'_>,
        nodes: &BTreeMap<Arc<str>, Node>,
        annotations: &Annotations,
        family: Family,
    ) -> Vec<Endpoint> {
        let cluster = choice::cluster(&self.of_slices, here);
        let local = choice::local(&self.of_slices, here);
        let all = self.sockets.iter().zip(&self.of_slices).zip(cluster).zip(local);
        all.map(|(((&(address, port), one), cluster), local)| Endpoint {
            address,
            port,
            name: one.name.clone(),
            node: one.node.clone(),
            node_address: one.node.as_ref().and_then(|node| nodes.get(node)?.address(family)),
            zone: one.zone.clone(),
            state: one.state(),
            weight: annotations.weight(one.node.as_deref(), one.zone.as_deref()),
            cluster,
            local,
        })
        .collect()
    }

    /// The backends of frontends with a policy, and whether there are more than one frontend can
    /// have.
    ///
    /// Who is not chosen keeps the flows that it has, as with kube-proxy, for which neither hints nor
    /// conditions touch a connection: weight 0. Of UDP that is so only while it serves, since nothing
    /// else tells a client to look for another.
    pub(super) fn backends(
        &self,
        described: &[Endpoint],
        policy: TrafficPolicy,
        protocol: Protocol,
        here: &Here<'_>,
    ) -> (Vec<Backend>, bool) {
        let near = |one: &SliceEndpoint| {
            policy == TrafficPolicy::Cluster || here.node.is_none() || here.has(one)
        };
        let keeps = |one: &SliceEndpoint| near(one) && (protocol != Protocol::Udp || one.serving);
        let all = described.iter().zip(&self.of_slices);
        let mut backends: Vec<(bool, Backend)> = all
            .filter(|(endpoint, one)| endpoint.serves(policy) || keeps(one))
            .map(|(endpoint, _)| {
                let serves = endpoint.serves(policy);
                let backend = Backend {
                    port: Some(endpoint.port),
                    weight: if serves { endpoint.weight } else { 0 },
                    node: endpoint.node_address,
                    ..Backend::new(endpoint.address)
                };
                (serves, backend)
            })
            .collect();
        let too_many = backends.len() > MAX_SERVICE_BACKENDS;
        if too_many {
            backends.sort_by_key(|(serves, _)| !serves);
            backends.truncate(MAX_SERVICE_BACKENDS);
            backends.sort_by_key(|(_, backend)| (backend.address, backend.port));
        }
        (backends.into_iter().map(|(_, backend)| backend).collect(), too_many)
    }
}
