//! The cluster's services in the daemon: taken in as they change, and shown with what the cluster says
//! of them.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use xdp_lb_abi::Scope;
use xdp_lb_api::view::{
    BackendState, FrontendBackend, FrontendState as Shown, FrontendView, Owner,
};
use xdp_lb_plan::{
    kubernetes::{
        Endpoint, EndpointState, FrontendKind, FrontendState, Key, PortState, Served, ServiceState,
    },
    model::{Backend, Frontend, Service},
};

use super::{Daemon, journal::Journal};
use crate::{kubernetes::Say, net::Follower};

/// Writes down what happens.
pub(super) fn teller(journal: Journal) -> Say {
    Arc::new(move |kind, text| journal.push(kind, text))
}

impl Daemon {
    /// Takes what the cluster says now, and how following it goes.
    pub(super) fn follow_cluster(&mut self, follower: &Follower) {
        let side = self.cluster.side();
        let before = std::mem::replace(&mut self.sources.cluster, side);
        if before.revision != self.sources.cluster.revision {
            self.take_sources(false, follower);
            if self.next.is_none() && !self.planner.held().is_empty() {
                // What was kept is not wanted.
                self.applied = None;
            }
        }
        if self.next.is_none() && self.applied.is_some() {
            // The tables stay as they are, but not all that is told.
            self.stale = true;
        }
    }

    /// Tells that what the cluster says is in the maps.
    pub(super) fn acknowledge(&self) {
        if self.next.is_none() {
            self.cluster.applied(self.sources.cluster.revision);
        }
    }

    /// What the cluster says of one of the data path's services; nothing where it is another's.
    pub(super) fn in_cluster(&self, service: &Service, owner: Owner) -> Option<Declared<'_>> {
        if owner != Owner::Kubernetes {
            return None;
        }
        let state = self.sources.cluster.states.get(&Key::of_service_name(&service.name)?)?;
        let port = state.port_of(&service.name)?;
        let endpoints = port.endpoints.iter();
        let endpoints = endpoints.map(|one| ((one.address, one.port.get()), one.state)).collect();
        Some(Declared { port, endpoints })
    }

    /// Adds what the cluster declares and others serve.
    pub(super) fn show_elsewhere(&self, frontends: &mut BTreeMap<String, FrontendView>) {
        for state in self.sources.cluster.states.values() {
            for port in &state.ports {
                for frontend in &port.frontends {
                    let Some(reason) = elsewhere(&frontend.served) else { continue };
                    let view = view(state, port, frontend, reason);
                    // Where two have a frontend, the one that is served is shown.
                    frontends.entry(view.frontend.clone()).or_insert(view);
                }
            }
        }
    }

    /// Adds what is kept from an earlier run until the cluster has been read.
    pub(super) fn show_held(&self, frontends: &mut BTreeMap<String, FrontendView>) {
        let held = self.planner.held();
        for state in self.planner.frontends().filter(|one| held.contains(&one.key)) {
            let frontend = self.frontend_name(&state.key);
            let backends = state.ids.iter().filter_map(|id| {
                let identity = self.planner.backend(*id)?.identity;
                Some(FrontendBackend {
                    id: Some(*id),
                    backend: SocketAddr::new(identity.address, identity.port).to_string(),
                    state: if state.draining.contains(id) {
                        BackendState::Draining
                    } else {
                        BackendState::Active
                    },
                })
            });
            let view = FrontendView {
                id: Some(state.stats + 1),
                frontend: frontend.clone(),
                kind: "LoadBalancer".to_owned(),
                service: "(not known yet)".to_owned(),
                owner: Owner::Kubernetes,
                mode: "(as before)".to_owned(),
                policy: None,
                state: Shown::Served,
                reason: Some("kept as it was until the cluster has been read".to_owned()),
                phase: Some(super::publish::phase(state.phase)),
                table_size: state.slots.len() as u32,
                backends: backends.collect(),
            };
            frontends.entry(frontend).or_insert(view);
        }
    }
}

/// What the cluster says of one of the data path's services.
pub(super) struct Declared<'a> {
    port: &'a PortState,
    endpoints: HashMap<(IpAddr, u16), EndpointState>,
}

impl Declared<'_> {
    /// What makes a frontend one, and which endpoints it may lead to.
    pub(super) fn describe(&self, view: &mut FrontendView, frontend: &Frontend, scope: Scope) {
        let same = |one: &&FrontendState| {
            one.port == frontend.port && one.address.is_none_or(|ip| ip == frontend.address)
        };
        // An address of its own comes before a node port.
        let mut found: Vec<_> = self.port.frontends.iter().filter(same).collect();
        found.sort_by_key(|one| one.address.is_none());
        if let Some(one) = found.first() {
            view.kind = one.kind.to_string();
            let policy = match scope {
                Scope::All => one.policy,
                Scope::Sockets => one.kind.policy_from_inside(one.policy),
            };
            view.policy = Some(policy.to_string());
        }
    }

    /// Whether a backend's pod is about to end.
    pub(super) fn is_terminating(&self, backend: &Backend) -> bool {
        let port = backend.port.map_or(0, std::num::NonZeroU16::get);
        self.endpoints.get(&(backend.address, port)) == Some(&EndpointState::Terminating)
    }
}

/// The data path's names of a port's services.
fn names_of(port: &PortState) -> impl Iterator<Item = &String> {
    port.frontends.iter().filter_map(|one| match &one.served {
        Served::Here(name) => Some(name),
        Served::LeftToKubeProxy
        | Served::OtherClass
        | Served::Taken(_)
        | Served::SnatPort
        | Served::NoHook => None,
    })
}

/// Who serves it, where that is not this instance.
fn elsewhere(served: &Served) -> Option<String> {
    match served {
        Served::Here(_) => None,
        Served::LeftToKubeProxy => Some("left to kube-proxy".to_owned()),
        Served::OtherClass => Some("left to those who serve its loadBalancerClass".to_owned()),
        Served::Taken(key) => {
            Some(format!("Service {key} has it: as its ClusterIP, or since it is older"))
        }
        Served::SnatPort => Some("mode snat sends from this port".to_owned()),
        Served::NoHook => {
            Some("left to kube-proxy: the kernel has no hook for SCTP sockets".to_owned())
        }
    }
}

fn view(
    state: &ServiceState,
    port: &PortState,
    frontend: &FrontendState,
    reason: String,
) -> FrontendView {
    let protocol = port.protocol;
    let name = match frontend.address {
        Some(address) => format!("{}/{protocol}", SocketAddr::new(address, frontend.port.get())),
        None => format!("nodePort {}/{protocol}", frontend.port),
    };
    let refused = matches!(frontend.served, Served::Taken(_) | Served::SnatPort);
    let shown =
        |one: &&Endpoint| one.serves(frontend.policy) || one.state == EndpointState::Terminating;
    let backend = |one: &Endpoint| FrontendBackend {
        id: None,
        backend: SocketAddr::new(one.address, one.port.get()).to_string(),
        state: match one.state {
            EndpointState::Ready | EndpointState::NotReady => BackendState::Active,
            EndpointState::Terminating => BackendState::Terminating,
        },
    };
    FrontendView {
        id: None,
        frontend: name,
        kind: frontend.kind.to_string(),
        service: names_of(port).next().cloned().unwrap_or_else(|| state.key.to_string()),
        owner: Owner::Kubernetes,
        mode: match frontend.kind {
            FrontendKind::ClusterIp => "-".to_owned(),
            FrontendKind::NodePort | FrontendKind::ExternalIp | FrontendKind::LoadBalancer => {
                state.mode.to_string()
            }
        },
        policy: Some(frontend.policy.to_string()),
        state: if refused { Shown::Refused } else { Shown::Elsewhere },
        reason: Some(reason),
        phase: None,
        table_size: 0,
        backends: port.endpoints.iter().filter(shown).map(backend).collect(),
    }
}
