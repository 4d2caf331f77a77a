//! What each frontend must lead to.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, btree_map},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use xdp_lb_abi::{FrontendKey, Scope};

use crate::{
    backends::BackendKey,
    maglev::{self, BuildError, Candidate, HashKey, Identity, table_size},
    model::{Backend, Frontend, NoBackends, Node, Protocol, Service},
    sources::Sources,
};

/// What one frontend must lead to.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) service: String,
    pub(crate) frontend: Frontend,
    pub(crate) wanted: Wanted,
}

/// What a frontend's record is computed from, apart from the cluster's key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) table_size: u32,
    /// Sorted by identity
    pub(crate) candidates: Vec<Candidate>,
    /// The candidates' backends, in their order
    pub(crate) backends: Vec<BackendKey>,
    /// Those of them that get no packets at all, though they stay
    pub(crate) down: Vec<BackendKey>,
    pub(crate) traits: Traits,
}

/// What a frontend's record says beside its tables.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Traits {
    /// How many seconds a silent client keeps its backend; 0 where the flow decides
    pub(crate) affinity: u32,
    pub(crate) reject: bool,
    /// Number in `SOURCES`
    pub(crate) sources: u32,
}

impl Traits {
    /// What picks a slot.
    pub(crate) fn picks(&self) -> Picks {
        if self.affinity == 0 { Picks::Flow } else { Picks::Client }
    }
}

/// What picks a flow's slot in a table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Picks {
    /// The flow
    Flow,
    /// The client's address alone: session affinity
    Client,
}

impl Picks {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Flow => Self::Client,
            Self::Client => Self::Flow,
        }
    }
}

/// Which frontends' targets may be other ones than before.
#[derive(Debug)]
pub(crate) enum Touched {
    All,
    These(BTreeSet<FrontendKey>),
}

/// The targets of all services, kept so that a change costs what it changes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Targets {
    all: BTreeMap<FrontendKey, Target>,
    /// What they were computed from: each service with its frontends, by its name
    services: HashMap<String, (Service, Vec<FrontendKey>)>,
    sources: Sources,
    node: Node,
    /// Two services want one frontend, or one name: their order decides.
    ambiguous: bool,
}

impl Targets {
    /// Takes in what the services are now.
    pub(crate) fn update(&mut self, services: &[Service], node: &Node) -> Touched {
        let sources = Sources::of(services);
        let same = !self.ambiguous && self.sources == sources && self.node == *node;
        (self.sources, self.node) = (sources, node.clone());
        let touched = if same { self.update_changed(services) } else { None };
        match touched {
            Some(touched) => Touched::These(touched),
            None => {
                self.rebuild(services);
                Touched::All
            }
        }
    }

    /// Takes in those that changed; nothing where the order of the services matters.
    fn update_changed(&mut self, services: &[Service]) -> Option<BTreeSet<FrontendKey>> {
        let is_known =
            |one: &Service| self.services.get(&one.name).is_some_and(|(known, _)| known == one);
        let changed: Vec<&Service> = services.iter().filter(|one| !is_known(one)).collect();
        let mut gone: Vec<String> = changed.iter().map(|one| one.name.clone()).collect();
        let new = changed.iter().filter(|one| !self.services.contains_key(&one.name)).count();
        if services.len() != self.services.len() + new {
            let names: HashSet<&str> = services.iter().map(|one| &*one.name).collect();
            gone.extend(self.services.keys().filter(|name| !names.contains(&***name)).cloned());
        }
        let mut touched = BTreeSet::new();
        for name in gone {
            for key in self.services.remove(&name).into_iter().flat_map(|(_, keys)| keys) {
                self.all.remove(&key);
                touched.insert(key);
            }
        }
        for service in changed {
            let mut keys = Vec::new();
            for (frontend, key, number) in frontends(service, &self.sources, &self.node) {
                let btree_map::Entry::Vacant(entry) = self.all.entry(key) else {
                    return None;
                };
                keys.push(key);
                entry.insert(target(service, frontend, number, &self.node));
            }
            touched.extend(&keys);
            self.services.insert(service.name.clone(), (service.clone(), keys));
        }
        (self.services.len() == services.len()).then_some(touched)
    }

    /// Computes all anew. A frontend that two services name is the first one's; an address of its own
    /// comes before a node port on the same address.
    fn rebuild(&mut self, services: &[Service]) {
        let Self { all, services: known, sources, node, ambiguous } = self;
        all.clear();
        known.clear();
        *ambiguous = false;
        for (node_ports, service) in [false, true]
            .into_iter()
            .flat_map(|node_ports| services.iter().map(move |service| (node_ports, service)))
        {
            let known = known.entry(service.name.clone());
            let (_, keys) = known.or_insert_with(|| (service.clone(), Vec::new()));
            let own = service.frontends.len();
            let wanted = frontends(service, sources, node);
            let wanted: Vec<_> =
                if node_ports { wanted.skip(own).collect() } else { wanted.take(own).collect() };
            for (frontend, key, number) in wanted {
                match all.entry(key) {
                    btree_map::Entry::Vacant(entry) => {
                        keys.push(key);
                        entry.insert(target(service, frontend, number, node));
                    }
                    btree_map::Entry::Occupied(_) => *ambiguous = true,
                }
            }
        }
        *ambiguous |= known.len() != services.len();
    }

    pub(crate) fn get(&self, key: &FrontendKey) -> Option<&Target> {
        self.all.get(key)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&FrontendKey, &Target)> {
        self.all.iter()
    }
}

/// A service's frontends with their keys and the numbers of their sets of networks: first those with
/// an address of their own.
fn frontends(
    service: &Service,
    sources: &Sources,
    node: &Node,
) -> impl Iterator<Item = (Frontend, FrontendKey, u32)> {
    let own = service.frontends.iter();
    let own =
        own.map(|one| (*one, service.key(one), sources.number(service, one.address.is_ipv6())));
    let loopback: &[IpAddr] =
        if node.sockets && !service.sockets_apart { &UNSPECIFIED } else { &[] };
    let on_node = service.node_ports.iter().flat_map(move |port| {
        let addresses = node.node_port_addresses.iter().map(|address| (*address, service.scope));
        let loopback = loopback.iter().map(|address| (*address, Scope::Sockets));
        let addresses = addresses.chain(loopback);
        let addresses = addresses.filter(|(address, _)| service.has_node_ports_on(*address));
        addresses.map(|(address, scope)| {
            let frontend = Frontend { address, port: port.port, protocol: port.protocol };
            (frontend, frontend.key().with_scope(scope), 0)
        })
    });
    own.chain(on_node)
}

/// Under which sockets find the node ports of loopback addresses.
const UNSPECIFIED: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];

/// The Maglev table that a frontend of a service has, on every instance with this key.
///
/// # Errors
///
/// As [`maglev::build`].
pub fn table(
    key: &HashKey,
    service: &Service,
    frontend: Frontend,
) -> Result<maglev::Table, BuildError> {
    // What is here and what is elsewhere decides about the way, not about the table.
    let wanted = target(service, frontend, 0, &Node::default()).wanted;
    maglev::build(key, &wanted.candidates, wanted.table_size)
}

fn target(service: &Service, frontend: Frontend, sources: u32, node: &Node) -> Target {
    let rewritten = !service.mode.keeps_destination();
    // Addresses cannot be rewritten to the other family: those backends serve the other frontends.
    let fits =
        |backend: &&Backend| !rewritten || backend.address.is_ipv4() == frontend.address.is_ipv4();
    let mut down = Vec::new();
    let mut candidates: Vec<(Candidate, BackendKey)> = service
        .backends
        .iter()
        .filter(fits)
        .map(|backend| {
            let identity = Identity {
                address: backend.address,
                port: backend.port.unwrap_or(frontend.port).get(),
                protocol: frontend.protocol,
            };
            let mode = service.forwarding(frontend.protocol, backend, node);
            // A pod with its node's address: the record cannot tell that end from none.
            let tunnel = backend.node.filter(|node| *node != backend.address);
            let tunnel = tunnel.filter(|_| mode == xdp_lb_abi::Mode::Geneve);
            let key = BackendKey { identity, mode, tunnel };
            // A connection that its host still serves would break; a datagram has none.
            if backend.down && frontend.protocol == Protocol::Udp {
                down.push(key);
            }
            (Candidate { identity, weight: backend.weight }, key)
        })
        .collect();
    candidates.sort_unstable();
    candidates.dedup_by_key(|(candidate, _)| candidate.identity);
    let (candidates, backends): (Vec<Candidate>, Vec<BackendKey>) = candidates.into_iter().unzip();
    let with_weight = candidates.iter().filter(|candidate| candidate.weight > 0).count();
    Target {
        service: service.name.clone(),
        frontend,
        wanted: Wanted {
            table_size: service.table_size.unwrap_or_else(|| table_size(with_weight)),
            candidates,
            backends,
            down,
            traits: Traits {
                affinity: service.affinity.map_or(0, seconds),
                reject: service.no_backends == NoBackends::Reject,
                sources,
            },
        },
    }
}

/// At least one: 0 means that the flow decides.
fn seconds(affinity: Duration) -> u32 {
    u32::try_from(affinity.as_secs()).unwrap_or(u32::MAX).max(1)
}
