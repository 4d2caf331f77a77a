//! Which frontends, services and backends have series of their own, so that their number has bounds.

use std::collections::{BTreeMap, BTreeSet};

use xdp_lb_api::view::{BackendState, FrontendState, FrontendView, State};

use crate::config::MetricsConfig;

/// Series of each frontend: packets, bytes, new flows, recorded flows.
pub(super) const PER_FRONTEND: u32 = 4;
/// Series of each service: backends in each state.
pub(super) const PER_SERVICE: u32 = STATES.len() as u32;
/// Series of each backend id: packets, bytes, new flows.
pub(super) const PER_BACKEND: u32 = 3;
/// Series of each backend of a service: whether it takes new flows, changes of its health.
pub(super) const PER_MEMBER: u32 = 2;

/// What a backend may do.
pub(super) const STATES: [BackendState; 6] = [
    BackendState::Active,
    BackendState::Draining,
    BackendState::Drained,
    BackendState::Terminating,
    BackendState::Down,
    BackendState::Unreachable,
];

/// A backend as its series name it: address and port, protocol.
pub(super) type Name = (String, String);

/// A backend of a service.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Member {
    /// Whether it takes new flows
    pub(super) active: bool,
    /// How often its health changed; none where nobody asks
    pub(super) changes: Option<u64>,
}

/// What has series of its own.
#[derive(Debug, Default)]
pub(super) struct Choice<'a> {
    /// Those that are served
    pub(super) frontends: Vec<&'a FrontendView>,
    /// Backends of each service, by state
    pub(super) services: BTreeMap<&'a str, [u64; STATES.len()]>,
    /// The data path's numbers of each backend
    pub(super) backends: BTreeMap<Name, BTreeSet<u32>>,
    /// By service and backend
    pub(super) members: BTreeMap<(&'a str, Name), Member>,
    /// How many have none: frontends, services, backends
    pub(super) left_out: [u64; 3],
}

/// Chooses in the order of the data path's numbers, which stay: one that is new takes no other's place.
pub(super) fn choose(state: &State, config: MetricsConfig) -> Choice<'_> {
    let mut choice = Choice::default();
    let mut room = config.max_series;
    let mut take = |count: u32| {
        let fits = count <= room;
        room -= if fits { count } else { 0 };
        fits
    };
    let mut frontends: Vec<_> =
        state.frontends.values().filter(|one| one.state == FrontendState::Served).collect();
    frontends.sort_by_key(|one| one.id);
    for one in &frontends {
        if take(PER_FRONTEND) { choice.frontends.push(one) } else { choice.left_out[0] += 1 }
    }
    // One without backends has series too: they say 0.
    let names = state.frontends.values().map(|one| (one.service.as_str(), [0; STATES.len()]));
    let mut services: BTreeMap<&str, [u64; STATES.len()]> = names.collect();
    for ((service, _), backend) in &state.backends {
        let counts = services.entry(service).or_default();
        let place = STATES.iter().position(|one| *one == backend.state);
        if let Some(count) = place.and_then(|place| counts.get_mut(place)) {
            *count += 1;
        }
    }
    for (service, counts) in services {
        if take(PER_SERVICE) {
            choice.services.insert(service, counts);
        } else {
            choice.left_out[1] += 1;
        }
    }
    let mut backends: BTreeMap<(u32, Name), ()> = BTreeMap::new();
    let mut members = BTreeMap::new();
    for frontend in frontends {
        let (_, protocol) = frontend.frontend.rsplit_once('/').unwrap_or_default();
        for one in &frontend.backends {
            let name = (one.backend.clone(), protocol.to_owned());
            if let Some(id) = one.id {
                backends.insert((id, name.clone()), ());
            }
            let active = one.state == BackendState::Active;
            let changes = health_changes(state, &frontend.service, &one.backend);
            members.insert((frontend.service.as_str(), name), Member { active, changes });
        }
    }
    for (id, name) in backends.into_keys() {
        let known = choice.backends.contains_key(&name);
        if config.per_backend && (known || take(PER_BACKEND)) {
            choice.backends.entry(name).or_default().insert(id);
        } else {
            choice.left_out[2] += 1;
        }
    }
    for (key, member) in members {
        // One without traffic's series has none of these either: they belong together.
        if choice.backends.contains_key(&key.1) && take(PER_MEMBER) {
            choice.members.insert(key, member);
        }
    }
    choice
}

/// The service may have declared the backend with or without its port.
fn health_changes(state: &State, service: &str, backend: &str) -> Option<u64> {
    let find = |name: &str| state.backends.get(&(service.to_owned(), name.to_owned()));
    let bare = || Some(backend.parse::<std::net::SocketAddr>().ok()?.ip().to_string());
    let view = find(backend).or_else(|| find(&bare()?))?;
    Some(view.health.as_ref()?.changes)
}
