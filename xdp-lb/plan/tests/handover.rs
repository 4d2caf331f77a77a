//! The law of the handover: a flow that is seen in each one stays with its backend as long as that
//! backend is in the service.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{net::Ipv4Addr, time::Duration};

use proptest::{collection::vec, option, prelude::*, sample::select};
use xdp_lb_abi::{Address, FlowKey, Phase, Reason};
use xdp_lb_datapath::{
    decide::decide,
    parse::{Facts, Kind, Offset, Word},
};
use xdp_lb_plan::{
    BackendKey, Layout,
    model::{Backend, Frontend, Mode, Protocol, Service},
};

use crate::common::{
    HANDOVER, Run, all,
    input::{address, frontend},
    world::World,
};

/// Room for two services with two tables each, and two that are being replaced.
const ROOM: Layout = Layout { frontends: 2, backends: 64, words: 4_000, buckets: 8, seed: 3 };

/// What happens to the services between packets.
#[derive(Clone, Debug)]
enum Event {
    Add(usize, u8, u16),
    Remove(usize, usize),
    Weigh(usize, usize, u16),
    Replace(usize, usize, u8),
    Resize(usize, Option<u32>),
    DrainAll(usize),
    Wait(u64),
    Restart,
}

fn event() -> impl Strategy<Value = Event> {
    let (service, which) = (0_usize..2, 0_usize..8);
    let weight = select(vec![0, 1, 1, 1, 5]);
    let size = select(vec![None, Some(1), Some(251), Some(1021)]);
    prop_oneof![
        4 => (service.clone(), 0_u8..9, weight.clone()).prop_map(|(s, b, w)| Event::Add(s, b, w)),
        3 => (service.clone(), which.clone()).prop_map(|(s, b)| Event::Remove(s, b)),
        3 => (service.clone(), which.clone(), weight).prop_map(|(s, b, w)| Event::Weigh(s, b, w)),
        2 => (service.clone(), which, 0_u8..9).prop_map(|(s, b, n)| Event::Replace(s, b, n)),
        2 => (service.clone(), size).prop_map(|(s, size)| Event::Resize(s, size)),
        1 => service.prop_map(Event::DrainAll),
        5 => (1_u64..12).prop_map(Event::Wait),
        1 => Just(Event::Restart),
    ]
}

/// An event, and then traffic: flows whose number this divides send a packet, and new ones open.
#[derive(Clone, Debug)]
struct Turn {
    event: Event,
    active: Option<u32>,
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let active = option::weighted(0.8, select(vec![1_u32, 1, 2, 3]));
    vec((event(), active).prop_map(|(event, active)| Turn { event, active }), 1..25)
}

impl Event {
    fn happen(&self, services: &mut [Service], run: &mut Run) {
        match *self {
            Self::Add(service, number, weight) => add(&mut services[service], number, weight),
            Self::Remove(service, which) => {
                let backends = &mut services[service].backends;
                if which < backends.len() {
                    backends.remove(which);
                }
            }
            Self::Weigh(service, which, weight) => {
                if let Some(backend) = services[service].backends.get_mut(which) {
                    backend.weight = weight;
                }
            }
            Self::Replace(service, which, number) => {
                let backends = &mut services[service].backends;
                if which < backends.len() {
                    backends.remove(which);
                }
                add(&mut services[service], number, 1);
            }
            Self::Resize(service, size) => services[service].table_size = size,
            Self::DrainAll(service) => {
                services[service].backends.iter_mut().for_each(|backend| backend.weight = 0);
            }
            Self::Wait(seconds) => run.wait(Duration::from_secs(seconds)),
            Self::Restart => run.restart(),
        }
    }
}

fn add(service: &mut Service, number: u8, weight: u16) {
    let address = address(number);
    if service.backends.iter().all(|backend| backend.address != address) {
        service.backends.push(Backend { weight, ..Backend::new(address) });
    }
}

/// Two services with a frontend each, which have no backend in common: their ports differ.
fn start() -> Vec<Service> {
    [3, 2]
        .map(|number| Service {
            name: format!("service-{number}"),
            frontends: vec![frontend(number)],
            mode: Mode::L2,
            backends: (1..4).map(|number| Backend::new(address(number))).collect(),
            ..Service::default()
        })
        .into()
}

fn packet(frontend: &Frontend, source: u32, opens: bool) -> Facts {
    Facts {
        kind: Word(Kind::Flow),
        link: Offset::new(14),
        priority: Word(0),
        transport: Offset::new(34),
        source: Address::v4(Ipv4Addr::from(0x0a63_0000 | source >> 8).octets()),
        destination: frontend.address.into(),
        protocol: Word(frontend.protocol.number()),
        ports: Word((1024 + (source & 0xff) as u16, frontend.port.get())),
        opens: Word(opens),
        length: 60,
        traffic_class: Word(0),
        ttl: Word(64),
        identification: Word(0),
    }
}

/// Where a packet goes.
fn send(run: &Run, facts: &Facts) -> Result<BackendKey, Reason> {
    decide(facts, &run.world).map(|choice| run.world.named(choice.chosen.id))
}

/// Where the current table sends a packet.
fn chosen(run: &Run, slots: &[BackendKey], facts: &Facts) -> Option<BackendKey> {
    let flow = FlowKey::new(facts.source, facts.destination, facts.ports.0, facts.protocol.0);
    let hash = flow.hash(run.world.settings.flow_key());
    let slot = (u64::from(hash) * slots.len() as u64) >> 32;
    slots.get(slot as usize).copied()
}

/// A flow as its client knows it.
#[derive(Clone, Debug)]
struct Flow {
    frontend: Frontend,
    source: u32,
    /// The backend that has its connection; nobody where it was lost
    owner: Option<BackendKey>,
    /// It was seen since its service's tables last changed
    seen: bool,
}

/// All flows.
#[derive(Default)]
struct Clients {
    flows: Vec<Flow>,
    moved: usize,
}

impl Clients {
    /// What the plan's last change means for a frontend's flows.
    fn note(&mut self, frontend: &Frontend, before: &World, after: &World) {
        let key = frontend.key();
        let phase = |world: &World| world.record(&key).unwrap().phase();
        let over = phase(before) == Phase::Handover && phase(after) == Phase::Exceptions;
        let members = after.seen(&key).unwrap().members;
        let changed = before.seen(&key) != after.seen(&key);
        for flow in self.flows.iter_mut().filter(|flow| flow.frontend == *frontend) {
            let lost = over && !flow.seen;
            flow.owner = flow.owner.filter(|owner| !lost && members.contains(owner));
            flow.seen &= !changed;
        }
    }

    fn send(&mut self, run: &Run, frontend: Frontend, divisor: u32) {
        let seen = run.world.seen(&frontend.key()).unwrap();
        let sends =
            |flow: &&mut Flow| flow.frontend == frontend && flow.source.is_multiple_of(divisor);
        for flow in self.flows.iter_mut().filter(sends) {
            let facts = packet(&flow.frontend, flow.source, false);
            let to = send(run, &facts);
            match to {
                Ok(to) => {
                    assert!(seen.members.contains(&to), "{flow:?} goes to a stranger, {to:?}")
                }
                Err(reason) => {
                    assert_eq!(reason, Reason::Reset, "{flow:?}");
                    assert!(seen.slots.is_empty(), "{flow:?} has no backend");
                }
            }
            if flow.owner.is_some_and(|owner| Ok(owner) != to) {
                self.moved += 1;
            }
            flow.owner = to.ok();
            flow.seen = true;
        }
    }

    /// New flows go where the current table says.
    fn open(&mut self, run: &Run, frontend: Frontend, count: usize) {
        let slots = run.world.seen(&frontend.key()).unwrap().slots;
        for _ in 0..count {
            let source = self.flows.len() as u32;
            let facts = packet(&frontend, source, true);
            let to = send(run, &facts);
            let chosen = chosen(run, &slots, &facts);
            assert_eq!(to, chosen.ok_or(Reason::Reset), "a new flow to {frontend}");
            self.flows.push(Flow { frontend, source, owner: chosen, seen: true });
        }
    }
}

/// Plays a history; returns how many flows moved that should not have.
fn play(turns: &[Turn], handover: Duration) -> usize {
    let mut run = Run::new(ROOM, handover);
    let mut services = start();
    let mut clients = Clients::default();
    run.apply(&services);
    let frontends: Vec<Frontend> = all(&services).map(|(_, frontend)| *frontend).collect();
    frontends.iter().for_each(|frontend| clients.open(&run, *frontend, 60));
    for turn in turns {
        turn.event.happen(&mut services, &mut run);
        let before = run.world.clone();
        assert_eq!(run.apply(&services).refused, []);
        frontends.iter().for_each(|frontend| clients.note(frontend, &before, &run.world));
        if let Some(divisor) = turn.active {
            frontends.iter().for_each(|frontend| clients.send(&run, *frontend, divisor));
        }
        frontends.iter().for_each(|frontend| clients.open(&run, *frontend, 6));
    }
    clients.moved
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300, failure_persistence: None, max_shrink_iters: 20_000, ..ProptestConfig::default()
    })]

    #[test]
    fn a_flow_stays_with_its_backend(turns in turns()) {
        prop_assert_eq!(play(&turns, HANDOVER), 0);
    }
}

/// Flows that move when one of ten backends is replaced, of those whose backend stays.
fn moved_by_a_replacement(handover: Duration) -> usize {
    let mut run = Run::new(ROOM, handover);
    let [mut service, _] = <[Service; 2]>::try_from(start()).unwrap();
    let frontend = service.frontends[0];
    service.backends.clear();
    (0..10).for_each(|number| add(&mut service, number, 1));
    run.apply(std::slice::from_ref(&service));
    let mut clients = Clients::default();
    clients.open(&run, frontend, 5000);
    let before = run.world.clone();
    service.backends.remove(4);
    add(&mut service, 10, 1);
    run.apply(std::slice::from_ref(&service));
    clients.note(&frontend, &before, &run.world);
    clients.send(&run, frontend, 1);
    clients.moved
}

#[test]
fn without_a_handover_flows_move() {
    assert_eq!(moved_by_a_replacement(HANDOVER), 0);
    assert_ne!(moved_by_a_replacement(Duration::ZERO), 0);
}

#[test]
fn a_flow_that_shows_itself_too_late_may_move() {
    let mut run = Run::new(ROOM, HANDOVER);
    let mut services = start();
    run.apply(&services);
    let frontend = services[0].frontends[0];
    let to = |run: &Run| -> Vec<_> {
        (0..500).map(|source| send(run, &packet(&frontend, source, false)).unwrap()).collect()
    };
    let at_first = to(&run);
    add(&mut services[0], 4, 1);
    run.apply(&services);
    run.wait(HANDOVER);
    run.apply(&services);
    assert_ne!(to(&run), at_first);
}

#[test]
fn a_drained_service_keeps_its_flows_and_takes_no_new_ones() {
    let mut run = Run::new(ROOM, HANDOVER);
    let mut services = start();
    run.apply(&services);
    let frontend = services[0].frontends[0];
    let mut clients = Clients::default();
    clients.open(&run, frontend, 500);
    services[0].backends.iter_mut().for_each(|backend| backend.weight = 0);
    for _ in 0..3 {
        run.apply(&services);
        clients.send(&run, frontend, 1);
        let opened = send(&run, &packet(&frontend, 1_000_000, true));
        assert_eq!(opened, Err(Reason::Reset));
        run.wait(HANDOVER);
    }
    services[0].table_size = Some(1021);
    services[0].backends[0].weight = 1;
    run.apply(&services);
    clients.send(&run, frontend, 1);
    assert_eq!(clients.moved, 0);
}

#[test]
fn a_backend_that_one_of_two_services_removes_gets_no_packet_of_that_one() {
    let mut run = Run::new(ROOM, HANDOVER);
    let mut services = start();
    services[1].frontends = vec![frontend(0)];
    run.apply(&services);
    let (first, second) = (services[0].frontends[0], services[1].frontends[0]);
    let mut clients = Clients::default();
    clients.open(&run, first, 300);
    clients.open(&run, second, 300);
    services[0].backends.remove(0);
    for wait in [0, 1, 10, 11] {
        let before = run.world.clone();
        run.wait(Duration::from_secs(wait));
        run.apply(&services);
        for frontend in [first, second] {
            clients.note(&frontend, &before, &run.world);
            clients.send(&run, frontend, 1);
        }
    }
    assert_eq!(clients.moved, 0);
}

/// Where 500 flows in mid-stream go before and after a service's first backend is taken for dead; and
/// the service then.
fn around_a_death(
    run: &mut Run,
    protocol: Protocol,
) -> (Vec<BackendKey>, Vec<BackendKey>, Service) {
    let mut services = start();
    let service = &mut services[0];
    service.frontends[0].protocol = protocol;
    let frontend = service.frontends[0];
    let to = |run: &Run| -> Vec<_> {
        (0..500).map(|source| send(run, &packet(&frontend, source, false)).unwrap()).collect()
    };
    run.apply(std::slice::from_ref(service));
    // A handover that is under way, so that some are recorded.
    add(service, 4, 1);
    run.apply(std::slice::from_ref(service));
    let before = to(run);
    run.wait(Duration::from_secs(1));
    (service.backends[0].weight, service.backends[0].down) = (0, true);
    run.apply(std::slice::from_ref(service));
    (before, to(run), service.clone())
}

#[test]
fn datagrams_leave_a_dead_backend_at_once_and_connections_stay() {
    let dead = |to: &BackendKey| to.identity.address == address(1);
    let (before, after, _) = around_a_death(&mut Run::new(ROOM, HANDOVER), Protocol::Tcp);
    assert_eq!(before, after);
    let mut run = Run::new(ROOM, HANDOVER);
    let (before, after, mut service) = around_a_death(&mut run, Protocol::Udp);
    assert!(before.iter().any(dead) && !after.iter().any(dead));
    for (before, after) in before.iter().zip(&after).filter(|(before, _)| !dead(before)) {
        assert_eq!(before, after, "flows of the living stay");
    }
    // The same after a restart, and after another service has it too and knows nothing of its death.
    run.restart();
    assert_eq!(run.apply(std::slice::from_ref(&service)).ops, []);
    let (mut other, port) = (service.clone(), service.frontends[0].port);
    other.name = "other".to_owned();
    other.frontends = vec![Frontend { protocol: Protocol::Udp, port, ..frontend(0) }];
    other.backends = vec![Backend::new(address(1))];
    run.apply(&[service.clone(), other.clone()]);
    let to_other = packet(&other.frontends[0], 7, false);
    assert!(send(&run, &to_other).is_ok_and(|to| dead(&to)));
    // Up again.
    (service.backends[0].weight, service.backends[0].down) = (1, false);
    run.apply(std::slice::from_ref(&service));
    run.wait(HANDOVER * 2);
    run.apply(std::slice::from_ref(&service));
    let opened = |source| send(&run, &packet(&service.frontends[0], source, true)).unwrap();
    assert!((1000..1500).map(opened).any(|to| dead(&to)));
}
