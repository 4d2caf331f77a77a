//! What the daemon tells the API.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    num::NonZeroU16,
    sync::Arc,
};

use xdp_lb_abi::{FrontendKey, Scope};
use xdp_lb_api::view::{
    BackendState, BackendView, Check, DeviceView, FlowTable, FrontendBackend,
    FrontendState as Served, FrontendView, HealthState, Owner, PeerView, Phase, State,
};
use xdp_lb_plan::{
    FrontendState,
    maglev::Identity,
    model::{Backend, Frontend, NodePort, Protocol, Service},
};

use super::{
    Daemon,
    control::{RawTable, TableRequest},
    keeper::Gone,
    kubernetes::Declared,
    sources::backend_name,
};
use crate::{config::settings_to_json, stats::frontend_name};

impl Daemon {
    /// Tells what the data path does now.
    pub(super) fn publish(&self) {
        let installed: HashMap<FrontendKey, FrontendState<'_>> =
            self.planner.frontends().map(|one| (one.key, one)).collect();
        let refused = self.told.refusals();
        let on_node = on_node(&self.config.services, installed.keys(), refused.keys());
        let declared = self.sources.declared();
        let mut frontends = BTreeMap::new();
        let mut backends = BTreeMap::new();
        let mut gone = Gone::new();
        for service in &self.config.services {
            // Nobody declares it any more: it is about to go.
            let (owner, as_declared) =
                declared.get(service.name.as_str()).copied().unwrap_or((Owner::Api, service));
            let in_cluster = self.in_cluster(service, owner);
            let ports = service.node_ports.iter();
            let ports = ports.flat_map(|port| on_node.get(port).into_iter().flatten());
            let ports = ports.filter(|one| is_of(service, one));
            let named = service.frontends.iter().map(|one| (*one, service.key(one)));
            let named = named.map(|one| (one, "LoadBalancer"));
            let mut served = Vec::new();
            let ports = ports.map(|one| (*one, "NodePort"));
            for ((frontend, key), kind) in named.chain(ports) {
                let state = installed.get(&key);
                let who = (owner, in_cluster.as_ref());
                let mut view = self.frontend(service, who, (&key, &frontend, kind), state);
                if let Some(declared) = &in_cluster {
                    declared.describe(&mut view, &frontend, service.scope);
                }
                frontends.insert(view.frontend.clone(), view);
                served.push((frontend, state));
            }
            let weights: HashMap<_, u16> = as_declared
                .backends
                .iter()
                .map(|one| ((one.address, one.port), one.weight))
                .collect();
            for backend in &service.backends {
                let mut view = self.backend(service, (owner, in_cluster.as_ref()), backend);
                let weight = weights.get(&(backend.address, backend.port));
                view.weight = *weight.unwrap_or(&backend.weight);
                let flows = self.flows_of(backend, &served);
                view.flows = flows.recorded;
                if flows.none_left {
                    gone.insert((service.name.clone(), view.backend.clone()));
                    if view.state == BackendState::Draining {
                        view.state = BackendState::Drained;
                    }
                }
                backends.insert((service.name.clone(), view.backend.clone()), view);
            }
        }
        self.show_elsewhere(&mut frontends);
        self.show_held(&mut frontends);
        self.desk.drained.send_if_modified(|before| {
            let changed = **before != gone;
            *before = Arc::new(gone);
            changed
        });
        let table = self.sweeper.found();
        let flows = FlowTable {
            used: table.counts.records,
            size: self.dataplane.flows.capacity(),
            full: table.full,
            times_full: table.times_full,
        };
        self.desk.state.send_modify(|state| {
            *state = Arc::new(State {
                revision: state.revision + 1,
                checks: self.checks(&frontends, &backends),
                frontends,
                backends,
                devices: self.devices(),
                peers: self.peers(),
                words: self.planner.words(),
                flows,
                config: settings_to_json(&self.config),
                replacement: self.replacement(),
                api_servers: self.cluster.servers(),
                started: self.desk.started.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            });
        });
    }

    fn frontend(
        &self,
        service: &Service,
        (owner, in_cluster): (Owner, Option<&Declared<'_>>),
        (key, frontend, kind): (&FrontendKey, &Frontend, &str),
        state: Option<&FrontendState<'_>>,
    ) -> FrontendView {
        let reason = self.told.refusals().get(key).cloned();
        let ids = state.map_or(&[][..], |state| state.ids);
        let known = ids.iter().filter_map(|id| Some((self.planner.backend(*id)?.identity, *id)));
        let known: HashMap<Identity, u32> = known.collect();
        let backends = service.backends.iter().map(|backend| {
            let port = backend.port.unwrap_or(frontend.port).get();
            let protocol = frontend.protocol;
            let identity = Identity { address: backend.address, port, protocol };
            FrontendBackend {
                id: known.get(&identity).copied(),
                backend: std::net::SocketAddr::new(backend.address, port).to_string(),
                state: self.does(service, in_cluster, backend),
            }
        });
        let served = match (&reason, state) {
            (Some(_), _) => Served::Refused,
            (None, Some(_)) => Served::Served,
            (None, None) => Served::Pending,
        };
        FrontendView {
            // From 1, since 0 looks like none.
            id: state.map(|state| state.stats + 1),
            frontend: self.frontend_name(key),
            kind: kind.to_owned(),
            service: service.name.clone(),
            owner,
            mode: match service.scope {
                Scope::All => service.mode.as_str(),
                Scope::Sockets => "socket",
            }
            .to_owned(),
            policy: None,
            state: served,
            reason,
            phase: state.map(|state| phase(state.phase)),
            table_size: state.map_or(0, |state| state.slots.len() as u32),
            backends: backends.collect(),
        }
    }

    /// What a frontend is called.
    pub(super) fn frontend_name(&self, key: &FrontendKey) -> String {
        frontend_name(&self.planner, key)
    }

    /// What is in the way of a backend, or of the node that its tunnel leads to.
    fn obstacle(&self, backend: &Backend) -> Option<&str> {
        let of_node = || self.told.obstacle(backend.node?);
        self.told.obstacle(backend.address).or_else(of_node)
    }

    fn does(
        &self,
        service: &Service,
        declared: Option<&Declared<'_>>,
        backend: &Backend,
    ) -> BackendState {
        if self.obstacle(backend).is_some() {
            BackendState::Unreachable
        } else if declared.is_some_and(|one| one.is_terminating(backend)) {
            BackendState::Terminating
        } else if self.is_down(service, backend) {
            BackendState::Down
        } else if backend.weight == 0 {
            BackendState::Draining
        } else {
            BackendState::Active
        }
    }

    /// A backend as it is in force; its flows are not counted yet.
    fn backend(
        &self,
        service: &Service,
        (owner, in_cluster): (Owner, Option<&Declared<'_>>),
        backend: &Backend,
    ) -> BackendView {
        let name = backend_name(backend);
        let api = &self.sources.api;
        let among = |sets: &BTreeMap<String, BTreeSet<String>>| {
            sets.get(&service.name).is_some_and(|names| names.contains(&name))
        };
        BackendView {
            service: service.name.clone(),
            owner,
            weight: backend.weight,
            drained: among(&api.drained),
            removing: among(&api.removing),
            flows: 0,
            state: self.does(service, in_cluster, backend),
            reason: self.obstacle(backend).map(str::to_owned),
            health: self.wellness(service, backend),
            backend: name,
        }
    }

    /// What the last look at recorded flows says of a backend of a service with these frontends.
    fn flows_of(
        &self,
        backend: &Backend,
        served: &[(Frontend, Option<&FrontendState<'_>>)],
    ) -> FlowsOf {
        let table = self.sweeper.found();
        let mut flows = FlowsOf { recorded: 0, none_left: backend.weight == 0 };
        for (frontend, state) in served {
            let Some(state) = state else {
                flows.none_left = false;
                continue;
            };
            let address = (backend.address, backend.port.unwrap_or(frontend.port).get());
            let is_it = |id: &u32| {
                let key = self.planner.backend(*id);
                key.is_some_and(|key| (key.identity.address, key.identity.port) == address)
            };
            let counts = table.counts.flows.get(&state.key).into_iter().flatten();
            let recorded: u64 = counts.filter(|(id, _)| is_it(id)).map(|(_, count)| count).sum();
            flows.recorded += recorded;
            if flows.none_left {
                let complete = match state.phase {
                    xdp_lb_abi::Phase::Rest => true,
                    xdp_lb_abi::Phase::Handover => false,
                    xdp_lb_abi::Phase::Exceptions => table.began.is_some_and(|at| at > state.since),
                };
                let drains = state.draining.iter().any(is_it);
                flows.none_left = drains && complete && recorded == 0;
            }
        }
        flows
    }

    fn devices(&self) -> Vec<DeviceView> {
        let view = |device: &crate::config::Device| {
            let link = self.attached.get(&device.name);
            let xdp = link.map(|link| if link.native { "native" } else { "generic" }.to_owned());
            DeviceView {
                name: device.name.clone(),
                wanted: device.xdp.name().to_owned(),
                xdp,
                ifindex: link.map(|link| link.ifindex),
            }
        };
        self.config.devices.iter().map(view).collect()
    }

    fn peers(&self) -> Vec<PeerView> {
        let peers = self.config.terminate.iter().flat_map(|terminate| &terminate.peers);
        peers.map(|peer| PeerView { prefix: peer.to_string() }).collect()
    }

    fn checks(
        &self,
        frontends: &BTreeMap<String, FrontendView>,
        backends: &BTreeMap<(String, String), BackendView>,
    ) -> Vec<Check> {
        let refused = frontends
            .values()
            .filter(|one| one.state == Served::Refused)
            .filter_map(|one| Some(format!("{}: {}", one.frontend, one.reason.as_ref()?)));
        let unreachable = backends.values().filter_map(|one| {
            Some(format!("{} of service {}: {}", one.backend, one.service, one.reason.as_ref()?))
        });
        let attached = |name: &String| self.attached.contains_key(name);
        let names = self.config.devices.iter().map(|device| &device.name);
        let missing =
            names.filter(|name| !attached(name)).map(|name| format!("{name}: not attached"));
        let missing = missing.chain(self.mute.values().cloned());
        let tables = self.failed.iter().cloned();
        vec![
            check("tables", tables),
            check("devices", missing),
            check("frontends", refused),
            check("backends", unreachable),
            check("sockets", self.sockets.wrong.iter().cloned()),
            check("health", self.unwell().into_iter()),
            check("sources", self.sources.conflicts.iter().cloned()),
            check("kubernetes", self.cluster.wrong().into_iter()),
        ]
    }

    /// Answers who wants to see Maglev tables.
    pub(super) fn show_tables(&self, request: TableRequest) {
        let TableRequest { frontend: wanted, answer } = request;
        let tables = self.planner.frontends().filter_map(|state| {
            let frontend = self.frontend_name(&state.key);
            if wanted.as_ref().is_some_and(|wanted| *wanted != frontend) {
                return None;
            }
            let identity = |id: &u32| Some(self.planner.backend(*id)?.identity);
            let backends = state.ids.iter().filter_map(identity).collect();
            Some(RawTable { frontend, backends, slots: state.slots.to_vec() })
        });
        // Who asked may have gone.
        let _ = answer.send(tables.collect());
    }
}

/// The frontends of each node port: those that are served, or refused, and that no service names
/// by its address.
fn on_node<'a>(
    services: &[Service],
    installed: impl Iterator<Item = &'a FrontendKey>,
    refused: impl Iterator<Item = &'a FrontendKey>,
) -> BTreeMap<NodePort, BTreeSet<(Frontend, FrontendKey)>> {
    let named = services.iter().flat_map(|one| one.frontends.iter().map(|at| one.key(at)));
    let named: HashSet<FrontendKey> = named.collect();
    let mut ports: BTreeMap<NodePort, BTreeSet<(Frontend, FrontendKey)>> = BTreeMap::new();
    for key in installed.chain(refused).filter(|key| !named.contains(key)) {
        let Some(port) = NonZeroU16::new(key.port()) else { continue };
        let Some(protocol) = Protocol::from_number(key.protocol()) else { continue };
        let frontend = Frontend { address: key.address().to_ip(), port, protocol };
        ports.entry(NodePort { port, protocol }).or_default().insert((frontend, *key));
    }
    ports
}

/// Whether a frontend of a node port is this service's: two may have the port, one of them for sockets
/// alone, which then has the loopback addresses, too.
fn is_of(service: &Service, (frontend, key): &(Frontend, FrontendKey)) -> bool {
    let loopback = frontend.address.is_unspecified() && !service.sockets_apart;
    service.has_node_ports_on(frontend.address) && (key.scope() == service.scope || loopback)
}

/// What the last look at all recorded flows says of one backend of a service.
struct FlowsOf {
    recorded: u64,
    /// It gets no new flows, and the look began when every flow that it has was recorded.
    none_left: bool,
}

pub(super) const fn phase(phase: xdp_lb_abi::Phase) -> Phase {
    match phase {
        xdp_lb_abi::Phase::Rest => Phase::Rest,
        xdp_lb_abi::Phase::Handover => Phase::Handover,
        xdp_lb_abi::Phase::Exceptions => Phase::Exceptions,
    }
}

/// A check that is well where there is nothing to say; of much, the beginning is said.
fn check(name: &str, wrong: impl Iterator<Item = String>) -> Check {
    const MANY: usize = 20;
    let mut all: Vec<String> = wrong.collect();
    let more = all.len().saturating_sub(MANY);
    all.truncate(MANY);
    if more > 0 {
        all.push(format!("and {more} more"));
    }
    let state = if all.is_empty() { HealthState::Ok } else { HealthState::Degraded };
    Check { name: name.to_owned(), state, detail: all.join("\n") }
}
