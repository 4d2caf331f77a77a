//! Services for the page to show.

use std::sync::Arc;

use serde_json::json;
use xdp_lb_api::view::{
    BackendHealth, BackendState, BackendView, Check, Counter, CountersView, DeviceView, FlowTable,
    FrontendBackend, FrontendState, FrontendView, HealthState, MaglevView, Owner, PeerView, Phase,
    ServiceView, Services, State, Wellness,
};

use crate::common::Memory;

/// A service with a frontend, and backends in these states.
pub(crate) struct Made<'a> {
    pub(crate) name: &'a str,
    pub(crate) number: u32,
    pub(crate) owner: Owner,
    pub(crate) mode: &'a str,
    pub(crate) states: &'a [BackendState],
}

/// What an instance knows.
#[derive(Default)]
pub(crate) struct World {
    services: Services,
    state: State,
    counters: CountersView,
    tables: Vec<MaglevView>,
    next: u32,
}

impl World {
    pub(crate) fn add(&mut self, made: &Made<'_>) {
        let Made { name, number, owner, mode, states } = *made;
        let address = format!("203.0.{}.{}", 113 + number / 250, 1 + number % 250);
        let frontend = format!("{address}:80/TCP");
        let backends: Vec<FrontendBackend> = (0..)
            .zip(states)
            .map(|(at, state)| {
                self.next += 1;
                let backend = format!("10.{}.{}.{}:8080", number / 250, number % 250, 11 + at);
                FrontendBackend { id: Some(self.next), backend, state: *state }
            })
            .collect();
        let declared = json!({
            "name": name, "mode": mode,
            "frontends": [{"address": address, "port": 80}],
            "backends": backends.iter().map(|one| json!({
                "address": one.backend.trim_end_matches(":8080"), "port": 8080})).collect::<Vec<_>>(),
        });
        for one in &backends {
            let down = one.state == BackendState::Down;
            let health = down.then(|| BackendHealth {
                state: Wellness::Down,
                since: Some("2026-01-01T08:15:00.000Z".to_owned()),
                changes: 3,
                error: Some("HTTP 503 instead of 200-399".to_owned()),
                ..BackendHealth::default()
            });
            let view = BackendView {
                service: name.to_owned(),
                owner,
                backend: one.backend.clone(),
                weight: 1,
                drained: one.state == BackendState::Draining,
                removing: false,
                flows: if one.state == BackendState::Draining { 1204 } else { 0 },
                state: one.state,
                reason: (one.state == BackendState::Unreachable)
                    .then(|| "no neighbour answers for 10.0.0.1 on eth0".to_owned()),
                health,
            };
            self.state.backends.insert((name.to_owned(), one.backend.clone()), view);
            let counter = Counter {
                name: one.backend.clone(),
                id: one.id,
                packets: 0,
                bytes: 0,
                new_flows: Some(0),
            };
            self.counters.backends.push(counter);
        }
        let takes: Vec<u16> = (0..)
            .zip(states)
            .filter(|(_, state)| **state == BackendState::Active)
            .map(|(at, _)| at)
            .collect();
        let slots = takes.iter().copied().cycle().take(if takes.is_empty() { 0 } else { 251 });
        self.tables.push(MaglevView {
            frontend: frontend.clone(),
            digest: "0123456789abcdef".to_owned(),
            backends: backends.iter().map(|one| one.backend.clone()).collect(),
            slots: slots.collect(),
        });
        let draining = states.contains(&BackendState::Draining);
        let counter = Counter {
            name: frontend.clone(),
            id: Some(number + 1),
            packets: 0,
            bytes: 0,
            new_flows: Some(0),
        };
        self.counters.frontends.push(counter);
        let view = FrontendView {
            id: Some(number + 1),
            frontend: frontend.clone(),
            kind: "LoadBalancer".to_owned(),
            service: name.to_owned(),
            owner,
            mode: mode.to_owned(),
            state: FrontendState::Served,
            reason: None,
            phase: Some(if draining { Phase::Handover } else { Phase::Rest }),
            table_size: 251,
            policy: None,
            backends,
        };
        self.state.frontends.insert(frontend, view);
        let service = ServiceView {
            name: name.to_owned(),
            owner,
            drained: vec![],
            removing: vec![],
            service: declared,
        };
        self.services.by_name.insert(name.to_owned(), Arc::new(service));
    }

    /// Makes the instance know this, and nothing else.
    pub(crate) fn tell(mut self, memory: &Memory) {
        self.state.version = "0.1.0".to_owned();
        self.state.started = "2026-01-01T06:00:00.000Z".to_owned();
        self.state.words = (4_194_304, 4_110_000);
        self.state.flows = FlowTable { used: 1204, size: 1_048_576, full: false, times_full: 0 };
        let device = |name: &str, xdp: &str| DeviceView {
            name: name.to_owned(),
            wanted: "native-or-generic".to_owned(),
            xdp: Some(xdp.to_owned()),
            ifindex: Some(2),
        };
        self.state.devices = vec![device("eth0", "native"), device("eth1", "generic")];
        self.state.peers = vec![PeerView { prefix: "10.0.0.0/16".to_owned() }];
        let check = |name: &str, detail: &str| Check {
            name: name.to_owned(),
            state: if detail.is_empty() { HealthState::Ok } else { HealthState::Degraded },
            detail: detail.to_owned(),
        };
        self.state.checks = vec![
            check("tables", ""),
            check("devices", ""),
            check("backends", "10.0.2.13:8080 of service shop/api: no neighbour answers"),
        ];
        let reason = |name: &str, packets| Counter {
            name: name.to_owned(),
            id: None,
            packets,
            bytes: 60 * packets,
            new_flows: None,
        };
        self.counters.reasons = vec![
            reason("no_frontend", 120_482),
            reason("not_ip", 3_310),
            reason("too_big_answered", 12),
            reason("no_next_hop", 44),
        ];
        *memory.counters.lock().unwrap() = self.counters;
        *memory.tables.lock().unwrap() = self.tables;
        memory.services.send_replace(Arc::new(self.services));
        memory.state.send_replace(Arc::new(self.state));
    }
}

/// A handful of services in various states.
pub(crate) fn few(memory: &Memory) {
    use BackendState::{Active, Down, Drained, Draining, Unreachable};
    let mut world = World::default();
    let services: [(&str, Owner, &str, &[BackendState]); 7] = [
        ("cdn/edge", Owner::File, "l2", &[Active, Active, Active, Active]),
        ("default/web", Owner::Kubernetes, "geneve", &[Active, Active, Draining]),
        ("dns", Owner::File, "l2", &[Active, Active]),
        ("mail/smtp", Owner::Api, "ipip", &[Active, Drained]),
        ("shop/api", Owner::Kubernetes, "geneve", &[Active, Down, Unreachable, Active, Active]),
        ("shop/cart", Owner::Kubernetes, "geneve", &[Down, Down]),
        ("stage/empty", Owner::Api, "snat", &[]),
    ];
    for (number, (name, owner, mode, states)) in (0..).zip(services) {
        world.add(&Made { name, number, owner, mode, states });
    }
    world.tell(memory);
}

/// Thousands of services.
pub(crate) fn many(memory: &Memory, count: u32) {
    let mut world = World::default();
    for number in 0..count {
        let name = format!("team-{:02}/service-{number:05}", number % 37);
        let states: &[BackendState] = match number % 500 {
            7 => &[BackendState::Active, BackendState::Down],
            _ => &[BackendState::Active, BackendState::Active],
        };
        let owner = Owner::Kubernetes;
        world.add(&Made { name: &name, number, owner, mode: "geneve", states });
    }
    world.tell(memory);
}

/// Traffic: each frontend takes packets by its place, and spreads them over its active backends,
/// the first of which gets twice as many as the others.
pub(crate) fn traffic(memory: &Memory, seconds: u64) {
    let state = memory.state.borrow().clone();
    let mut counters = memory.counters.lock().unwrap();
    for (place, frontend) in (1..).zip(state.frontends.values()) {
        let packets = 1200 * place * seconds;
        let size = 400 + 100 * (place % 10);
        let add = |counter: &mut Counter, packets| {
            counter.packets += packets;
            counter.bytes += packets * size;
        };
        let of = |counter: &&mut Counter| counter.name == frontend.frontend;
        counters.frontends.iter_mut().filter(of).for_each(|one| add(one, packets));
        let active = |one: &&FrontendBackend| one.state == BackendState::Active;
        let ids: Vec<_> = frontend.backends.iter().filter(active).map(|one| one.id).collect();
        for (at, id) in ids.iter().enumerate() {
            let share = packets * if at == 0 { 2 } else { 1 } / (ids.len() as u64 + 1);
            let of = |counter: &&mut Counter| counter.id == *id;
            counters.backends.iter_mut().filter(of).for_each(|one| add(one, share));
        }
        if place > 20 {
            break;
        }
    }
    for (counter, rate) in counters.reasons.iter_mut().zip([900, 2, 0, 3]) {
        counter.packets += rate * seconds;
        counter.bytes += 60 * rate * seconds;
    }
}
