//! Which endpoints new flows go to.
//!
//! kube-proxy's `CategorizeEndpoints` (`pkg/proxy/topology.go`): the endpoints that are ready; where
//! there is none, those that still serve while they terminate. Each policy falls back by itself.

use std::sync::Arc;

use crate::kubernetes::{EndpointState, slice::SliceEndpoint};

/// Where this balancer is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Here<'a> {
    /// Its Node's name; none where it is no node of the cluster
    pub(super) node: Option<&'a str>,
    /// Its Node's zone
    pub(super) zone: Option<&'a str>,
}

impl Here<'_> {
    /// Whether an endpoint is on this node.
    pub(super) fn has(&self, endpoint: &SliceEndpoint) -> bool {
        self.node.is_some() && self.node == endpoint.node.as_deref()
    }
}

/// Whether any endpoint can be reached from anywhere: packets to a frontend are refused where this
/// is not so, and dropped where only the policy leaves none.
pub(super) fn any(endpoints: &[&SliceEndpoint]) -> bool {
    endpoints.iter().any(|endpoint| endpoint.state() != EndpointState::NotReady)
}

/// Those that may be chosen with policy Cluster, in the order of the endpoints.
pub(super) fn cluster(endpoints: &[&SliceEndpoint], here: &Here<'_>) -> Vec<bool> {
    let hint = Hint::of(endpoints, here);
    with_fallback(endpoints, |endpoint| endpoint.ready && hint.allows(endpoint, here), |_| true)
}

/// Those that may be chosen with policy Local, in the order of the endpoints. For a balancer that is
/// no node, every endpoint is as near as any other.
pub(super) fn local(endpoints: &[&SliceEndpoint], here: &Here<'_>) -> Vec<bool> {
    if here.node.is_none() {
        return cluster(endpoints, here);
    }
    let is_here = |endpoint: &SliceEndpoint| here.has(endpoint);
    with_fallback(endpoints, |endpoint| endpoint.ready && is_here(endpoint), is_here)
}

fn with_fallback(
    endpoints: &[&SliceEndpoint],
    ready: impl Fn(&SliceEndpoint) -> bool,
    may: impl Fn(&SliceEndpoint) -> bool,
) -> Vec<bool> {
    let chosen: Vec<bool> = endpoints.iter().map(|endpoint| ready(endpoint)).collect();
    if chosen.contains(&true) {
        return chosen;
    }
    let serves = |endpoint: &SliceEndpoint| endpoint.serving && endpoint.terminating;
    endpoints.iter().map(|endpoint| serves(endpoint) && may(endpoint)).collect()
}

/// What the endpoints' hints limit the choice to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Hint {
    None,
    Node,
    Zone,
}

impl Hint {
    /// A hint counts where every ready endpoint has one of its kind, and at least one is meant for
    /// here; the node's before the zone's.
    fn of(endpoints: &[&SliceEndpoint], here: &Here<'_>) -> Self {
        let ready = || endpoints.iter().filter(|endpoint| endpoint.ready);
        let counts = |hints: fn(&SliceEndpoint) -> &[Arc<str>], name: Option<&str>| {
            ready().all(|endpoint| !hints(endpoint).is_empty())
                && ready().any(|endpoint| names(hints(endpoint), name))
        };
        if counts(|endpoint| &endpoint.for_nodes, here.node) {
            Self::Node
        } else if counts(|endpoint| &endpoint.for_zones, here.zone) {
            Self::Zone
        } else {
            Self::None
        }
    }

    fn allows(self, endpoint: &SliceEndpoint, here: &Here<'_>) -> bool {
        match self {
            Self::None => true,
            Self::Node => names(&endpoint.for_nodes, here.node),
            Self::Zone => names(&endpoint.for_zones, here.zone),
        }
    }
}

fn names(hints: &[Arc<str>], name: Option<&str>) -> bool {
    name.is_some_and(|name| hints.iter().any(|hint| &**hint == name))
}
