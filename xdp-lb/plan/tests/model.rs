//! Random histories of changes, packets and time, against the simplest model of "which backend owns
//! this flow".
//!
//! The model knows no slot, table or phase. It knows who answered a client last, whether the client
//! has been heard since, and what a user may therefore expect; the tables and the packet path are the
//! real ones.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{collections::BTreeSet, net::Ipv4Addr, num::NonZeroU16, time::Duration};

use proptest::{collection::vec, prelude::*, sample::select};
use xdp_lb_abi::{Address, FlowKey, Phase, Reason};
use xdp_lb_datapath::{
    decide::decide,
    parse::{Facts, Kind, Offset, Word},
};
use xdp_lb_plan::{
    BackendKey, IdleTimes, Layout,
    maglev::Identity,
    model::{Backend, Frontend, Mode, Protocol, Service},
};

use crate::common::{HANDOVER, Run, input::address, world::Seen};

/// Room for three services with two tables each, and some that are being replaced.
const ROOM: Layout = Layout { frontends: 3, backends: 64, words: 8_000, buckets: 8, seed: 3 };

/// Longer and shorter than some of the waits.
const IDLE: IdleTimes = IdleTimes { tcp: Duration::from_secs(40), udp: Duration::from_secs(25) };

/// Two TCP services that share their backends, and a UDP one.
fn start() -> Vec<Service> {
    let backends = (1..4).map(|number| backend(number, 1)).collect::<Vec<_>>();
    [(1, Protocol::Tcp), (2, Protocol::Tcp), (3, Protocol::Udp)]
        .map(|(last, protocol)| Service {
            name: format!("service-{last}"),
            frontends: vec![Frontend {
                address: Ipv4Addr::new(192, 0, 2, last).into(),
                port: NonZeroU16::new(80).unwrap(),
                protocol,
            }],
            mode: Mode::L2,
            backends: backends.clone(),
            ..Service::default()
        })
        .into()
}

fn backend(number: u8, weight: u16) -> Backend {
    Backend { weight, ..Backend::new(address(number)) }
}

/// What a user changes of a service.
#[derive(Clone, Debug)]
enum Change {
    Add(u8, u16),
    Remove(usize),
    Weigh(usize, u16),
    Replace(usize, u8),
    Resize(Option<u32>),
    Mode(Mode),
    DrainAll,
}

/// What a client sends. Flows are named by number, and wrap around.
#[derive(Clone, Debug)]
enum Packet {
    /// A flow that nobody knows opens.
    Open,
    /// A flow goes on.
    Data(usize),
    /// A flow's SYN comes again, or its port is used again: the balancer cannot tell.
    Syn(usize),
}

#[derive(Clone, Debug)]
enum Step {
    Change(usize, Change),
    Packets(usize, Vec<Packet>),
    /// All flows go on.
    Everybody,
    Wait(u64),
    Sweep,
    Restart,
}

fn change() -> impl Strategy<Value = Change> {
    let which = 0_usize..8;
    prop_oneof![
        4 => (0_u8..8, select(vec![0, 1, 1, 1, 5])).prop_map(|(b, w)| Change::Add(b, w)),
        3 => which.clone().prop_map(Change::Remove),
        4 => (which.clone(), select(vec![0, 0, 1, 5])).prop_map(|(b, w)| Change::Weigh(b, w)),
        2 => (which, 0_u8..8).prop_map(|(b, n)| Change::Replace(b, n)),
        1 => select(vec![None, Some(251), Some(1021)]).prop_map(Change::Resize),
        1 => select(vec![Mode::L2, Mode::Ipip]).prop_map(Change::Mode),
        1 => Just(Change::DrainAll),
    ]
}

fn packet() -> impl Strategy<Value = Packet> {
    prop_oneof![
        2 => Just(Packet::Open),
        4 => any::<usize>().prop_map(Packet::Data),
        2 => any::<usize>().prop_map(Packet::Syn),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0_usize..3, change()).prop_map(|(service, change)| Step::Change(service, change)),
        6 => (0_usize..3, vec(packet(), 1..12)).prop_map(|(service, all)| Step::Packets(service, all)),
        3 => Just(Step::Everybody),
        4 => select(vec![0, 1, 5, 10, 11, 26, 41]).prop_map(Step::Wait),
        4 => Just(Step::Sweep),
        1 => Just(Step::Restart),
    ];
    vec(step, 1..40)
}

fn make(service: &mut Service, change: &Change) {
    let present = |service: &Service, number: u8| {
        service.backends.iter().any(|backend| backend.address == address(number))
    };
    match *change {
        Change::Add(number, weight) => {
            if !present(service, number) {
                service.backends.push(backend(number, weight));
            }
        }
        Change::Remove(which) => {
            if which < service.backends.len() {
                service.backends.remove(which);
            }
        }
        Change::Weigh(which, weight) => {
            if let Some(backend) = service.backends.get_mut(which) {
                backend.weight = weight;
            }
        }
        Change::Replace(which, number) => {
            make(service, &Change::Remove(which));
            make(service, &Change::Add(number, 1));
        }
        Change::Resize(size) => service.table_size = size,
        Change::Mode(mode) => service.mode = mode,
        Change::DrainAll => service.backends.iter_mut().for_each(|one| one.weight = 0),
    }
}

/// Who is in a service.
struct Members {
    all: BTreeSet<Identity>,
    /// Those that take new flows, in the mode in which they do
    open: BTreeSet<BackendKey>,
}

/// A flow as its client knows it.
#[derive(Clone, Debug)]
struct Flow {
    source: u32,
    /// Who has its connection; nobody where it was lost, which the balancer is not to blame for
    owner: Option<BackendKey>,
    /// Heard since the service last changed
    heard: bool,
    last: Duration,
}

/// A service's clients, and what they may expect.
#[derive(Clone, Debug)]
struct Clients {
    frontend: Frontend,
    flows: Vec<Flow>,
    /// Backends that were removed, of which no sweep knows yet
    leaving: BTreeSet<Identity>,
    /// Flows that went elsewhere without need
    broken: usize,
}

impl Clients {
    fn new(frontend: Frontend) -> Self {
        Self { frontend, flows: Vec::new(), leaving: BTreeSet::new(), broken: 0 }
    }

    fn facts(&self, source: u32, opens: bool) -> Facts {
        Facts {
            kind: Word(Kind::Flow),
            link: Offset::new(14),
            priority: Word(0),
            transport: Offset::new(34),
            source: Address::v4(Ipv4Addr::from(0x0a63_0000 | source >> 8).octets()),
            destination: self.frontend.address.into(),
            protocol: Word(self.frontend.protocol.number()),
            ports: Word((1024 + (source & 0xff) as u16, self.frontend.port.get())),
            // UDP has no packet that opens.
            opens: Word(opens && self.frontend.protocol != Protocol::Udp),
            length: 60,
            traffic_class: Word(0),
            ttl: Word(64),
            identification: Word(0),
        }
    }

    /// Sends a packet; who gets it, and who would if nothing were known of the flow.
    fn ask(&self, run: &Run, source: u32, opens: bool) -> (Option<BackendKey>, Option<BackendKey>) {
        let facts = self.facts(source, opens);
        let seen = run.world.seen(&self.frontend.key()).unwrap();
        let flow = FlowKey::new(facts.source, facts.destination, facts.ports.0, facts.protocol.0);
        let hash = u64::from(flow.hash(run.world.settings.flow_key()));
        let chosen = seen.slots.get(((hash * seen.slots.len() as u64) >> 32) as usize);
        let to = match decide(&facts, &run.world) {
            Ok(choice) => Some(run.world.named(choice.chosen.id)),
            Err(reason) => {
                assert_eq!(reason, Reason::Reset, "{facts:?}");
                assert!(seen.slots.is_empty(), "{facts:?} has no backend");
                None
            }
        };
        (to, chosen.copied())
    }

    fn open(&mut self, run: &Run) {
        let source = self.flows.len() as u32;
        let (to, chosen) = self.ask(run, source, true);
        // In a handover a UDP packet may be an older flow's: it is the one before's then.
        let record = *run.world.record(&self.frontend.key()).unwrap();
        if self.frontend.protocol != Protocol::Udp || record.phase() != Phase::Handover {
            assert_eq!(to, chosen, "a new flow to {}", self.frontend);
        }
        self.flows.push(Flow { source, owner: to, heard: true, last: run.now });
    }

    fn data(&mut self, run: &Run, which: usize, members: &Members) {
        let flow = self.flows[which].clone();
        let (to, _) = self.ask(run, flow.source, false);
        self.expect_member(&flow, to, members);
        if flow.owner.is_some() && identity(to) != identity(flow.owner) {
            self.broken += 1;
        }
        self.heard(which, to, run.now);
    }

    /// A SYN of a known 5-tuple: whoever answered it last may answer again if that backend takes new
    /// flows, and must if the client was heard since the last change.
    fn syn(&mut self, run: &Run, which: usize, members: &Members) {
        let flow = self.flows[which].clone();
        if self.frontend.protocol == Protocol::Udp {
            return self.data(run, which, members);
        }
        let (to, chosen) = self.ask(run, flow.source, true);
        let open = |owner: &BackendKey| members.open.contains(owner);
        match flow.owner.filter(open) {
            Some(owner) if flow.heard => assert_eq!(to, Some(owner), "{flow:?} comes again"),
            Some(owner) => assert!(to == chosen || to == Some(owner), "{flow:?} goes to {to:?}"),
            None if flow.owner.is_some() => {
                assert_eq!(to, chosen, "{flow:?} belongs to one that takes no new flows");
            }
            None => self.expect_member(&flow, to, members),
        }
        self.heard(which, to, run.now);
    }

    /// Nobody gets packets of a service that it is not in, except what was recorded for it until the
    /// next sweep.
    fn expect_member(&self, flow: &Flow, to: Option<BackendKey>, members: &Members) {
        if let Some(to) = to {
            let known = members.all.contains(&to.identity) || self.leaving.contains(&to.identity);
            assert!(known, "{flow:?} goes to a stranger, {to:?}");
        }
    }

    fn heard(&mut self, which: usize, to: Option<BackendKey>, now: Duration) {
        let lost = to.is_some_and(|to| self.leaving.contains(&to.identity));
        let flow = &mut self.flows[which];
        *flow = Flow { owner: to.filter(|_| !lost), heard: true, last: now, ..*flow };
    }

    /// What the tables say of the service.
    fn look(&self, run: &Run) -> (Phase, Seen) {
        let key = self.frontend.key();
        (run.world.record(&key).unwrap().phase(), run.world.seen(&key).unwrap())
    }

    /// The service may have changed.
    fn note(&mut self, before: &(Phase, Seen), after: &(Phase, Seen), members: &Members) {
        let ((was, had), (is, has)) = (before, after);
        let over = *was == Phase::Handover && *is != Phase::Handover;
        let gone = |one: &&BackendKey| !members.all.contains(&one.identity);
        self.leaving.extend(had.members.iter().filter(gone).map(|one| one.identity));
        self.leaving.retain(|one| !members.all.contains(one));
        for flow in &mut self.flows {
            let silent = over && !flow.heard;
            flow.owner =
                flow.owner.filter(|owner| !silent && members.all.contains(&owner.identity));
            flow.heard &= had == has;
        }
    }

    /// Time has passed: what was silent for too long has no claim any more.
    fn age(&mut self, now: Duration) {
        let idle = if self.frontend.protocol == Protocol::Udp { IDLE.udp } else { IDLE.tcp };
        for flow in self.flows.iter_mut().filter(|flow| now - flow.last + REFRESH > idle) {
            flow.owner = None;
        }
    }
}

/// A record may be that much older than its flow's last packet.
const REFRESH: Duration = Duration::from_secs(1);

fn identity(key: Option<BackendKey>) -> Option<Identity> {
    key.map(|key| key.identity)
}

/// Who is in a service, by what the user says, and who takes new flows, by the table.
fn members(run: &Run, service: &Service) -> Members {
    let frontend = service.frontends[0];
    let all = service.backends.iter().map(|backend| Identity {
        address: backend.address,
        port: frontend.port.get(),
        protocol: frontend.protocol,
    });
    let open = run.world.seen(&frontend.key()).unwrap().slots.into_iter().collect();
    Members { all: all.collect(), open }
}

/// Plays a history; how many flows broke that should not have.
fn play(steps: &[Step], handover: Duration) -> usize {
    let mut run = Run::new(ROOM, handover);
    let mut services = start();
    run.apply(&services);
    let mut all: Vec<Clients> =
        services.iter().map(|service| Clients::new(service.frontends[0])).collect();
    all.iter_mut().for_each(|clients| (0..40).for_each(|_| clients.open(&run)));
    for step in steps {
        let before: Vec<_> = all.iter().map(|clients| clients.look(&run)).collect();
        match step {
            Step::Change(service, change) => make(&mut services[*service], change),
            Step::Wait(seconds) => run.wait(Duration::from_secs(*seconds)),
            Step::Sweep => {
                let counts = run.sweep(IDLE);
                let recorded = run.world.flows.borrow().len() as u64;
                assert_eq!(counts.records, recorded);
            }
            Step::Restart => run.restart(),
            Step::Packets(..) | Step::Everybody => {}
        }
        assert_eq!(run.apply(&services).refused, []);
        for ((clients, service), before) in all.iter_mut().zip(&services).zip(&before) {
            let after = clients.look(&run);
            clients.note(before, &after, &members(&run, service));
            clients.age(run.now);
            if matches!(step, Step::Sweep) {
                clients.leaving.clear();
            }
        }
        match step {
            Step::Packets(service, packets) => {
                let (clients, members) = (&mut all[*service], members(&run, &services[*service]));
                for packet in packets {
                    let count = clients.flows.len();
                    match packet {
                        Packet::Open => clients.open(&run),
                        Packet::Data(which) => clients.data(&run, which % count, &members),
                        Packet::Syn(which) => clients.syn(&run, which % count, &members),
                    }
                }
            }
            Step::Everybody => {
                for (clients, service) in all.iter_mut().zip(&services) {
                    let members = members(&run, service);
                    (0..clients.flows.len()).for_each(|one| clients.data(&run, one, &members));
                }
            }
            Step::Change(..) | Step::Wait(_) | Step::Sweep | Step::Restart => {}
        }
    }
    rest(&mut run, &services);
    all.iter().map(|clients| clients.broken).sum()
}

/// When nobody sends any more, every service comes to rest, and nothing is left of its flows.
fn rest(run: &mut Run, services: &[Service]) {
    for wait in [HANDOVER, IDLE.tcp + REFRESH, REFRESH, REFRESH] {
        run.wait(wait);
        run.apply(services);
        run.sweep(IDLE);
    }
    for frontend in run.planner.frontends() {
        assert_eq!((frontend.phase, frontend.previous_ids), (Phase::Rest, &[][..]));
    }
    assert!(run.world.flows.borrow().is_empty());
    assert_eq!(run.sweep(IDLE).records, 0);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 256, failure_persistence: None, max_shrink_iters: 20_000, ..ProptestConfig::default()
    })]

    #[test]
    fn the_model_is_right(steps in steps()) {
        prop_assert_eq!(play(&steps, HANDOVER), 0);
    }
}

/// Some changes with traffic in between.
fn busy() -> Vec<Step> {
    let changes = [
        Change::Add(4, 1),
        Change::Weigh(0, 0),
        Change::Replace(1, 5),
        Change::Weigh(0, 5),
        Change::Resize(Some(1021)),
    ];
    changes.into_iter().flat_map(|one| [Step::Change(0, one), Step::Everybody]).collect()
}

#[test]
fn the_model_notices_that_plain_maglev_breaks_flows() {
    assert_eq!(play(&busy(), HANDOVER), 0);
    assert_ne!(play(&busy(), Duration::ZERO), 0);
}
