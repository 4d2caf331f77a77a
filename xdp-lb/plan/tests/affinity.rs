//! Random histories of a service whose session affinity is switched on and off while its backends
//! change, against the simplest model: who has a connection keeps it, and a client keeps its backend.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{collections::BTreeSet, net::Ipv4Addr, num::NonZeroU16, time::Duration};

use proptest::{collection::vec, prelude::*, sample::select};
use xdp_lb_abi::{Address, Phase, Reason};
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

const ROOM: Layout = Layout { frontends: 1, backends: 64, words: 8_000, buckets: 8, seed: 3 };

const IDLE: IdleTimes = IdleTimes { tcp: Duration::from_secs(40), udp: Duration::from_secs(40) };

/// Longer than [`IDLE`]: what a client that comes later has does not concern its connections.
const AFFINITY: Duration = Duration::from_secs(60);

/// A record may be that much older than its flow's last packet.
const REFRESH: Duration = Duration::from_secs(1);

const CLIENTS: usize = 12;

#[derive(Clone, Debug)]
enum Change {
    Switch,
    Add(u8, u16),
    Remove(usize),
    Weigh(usize, u16),
    Resize(Option<u32>),
    Mode(Mode),
}

#[derive(Clone, Debug)]
enum Step {
    Change(Change),
    /// These clients open a connection each.
    Open(Vec<usize>),
    /// These connections go on.
    Data(Vec<usize>),
    /// All connections go on.
    Everybody,
    Wait(u64),
    Sweep,
    Restart,
}

fn change() -> impl Strategy<Value = Change> {
    let which = 0_usize..6;
    prop_oneof![
        5 => Just(Change::Switch),
        3 => (0_u8..8, select(vec![0, 1, 1, 5])).prop_map(|(b, w)| Change::Add(b, w)),
        2 => which.clone().prop_map(Change::Remove),
        3 => (which, select(vec![0, 0, 1, 5])).prop_map(|(b, w)| Change::Weigh(b, w)),
        1 => select(vec![None, Some(251), Some(1021)]).prop_map(Change::Resize),
        1 => select(vec![Mode::L2, Mode::Ipip]).prop_map(Change::Mode),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => change().prop_map(Step::Change),
        4 => vec(0..CLIENTS, 1..8).prop_map(Step::Open),
        4 => vec(any::<usize>(), 1..12).prop_map(Step::Data),
        3 => Just(Step::Everybody),
        4 => select(vec![0, 1, 5, 10, 11, 41]).prop_map(Step::Wait),
        4 => Just(Step::Sweep),
        1 => Just(Step::Restart),
    ];
    vec(step, 1..40)
}

fn make(service: &mut Service, change: &Change) {
    match *change {
        Change::Switch => {
            service.affinity = if service.affinity.is_some() { None } else { Some(AFFINITY) };
        }
        Change::Add(number, weight) => {
            if service.backends.iter().all(|one| one.address != address(number)) {
                service.backends.push(Backend { weight, ..Backend::new(address(number)) });
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
        Change::Resize(size) => service.table_size = size,
        Change::Mode(mode) => service.mode = mode,
    }
}

#[derive(Clone, Debug)]
struct Connection {
    client: usize,
    port: u16,
    /// Who has it; nobody where it was lost, which the balancer is not to blame for
    owner: Option<Identity>,
    /// Heard since the service last changed
    heard: bool,
    last: Duration,
}

/// The service, and what its clients may expect.
struct Play {
    run: Run,
    service: Service,
    connections: Vec<Connection>,
    /// Where each client was sent last since affinity was switched on, and when
    stuck: [Option<(BackendKey, Duration)>; CLIENTS],
    /// Until then a client may have a backend that takes no new connections, and others beside it
    drained: Duration,
    /// Connections that went elsewhere without need
    broken: usize,
    /// Connections of clients that went elsewhere without need
    strayed: usize,
}

impl Play {
    fn new(handover: Duration) -> Self {
        let frontend = Frontend {
            address: Ipv4Addr::new(192, 0, 2, 1).into(),
            port: NonZeroU16::new(80).unwrap(),
            protocol: Protocol::Tcp,
        };
        let service = Service {
            name: "service".to_owned(),
            frontends: vec![frontend],
            mode: Mode::L2,
            backends: (1..4).map(|number| Backend::new(address(number))).collect(),
            ..Service::default()
        };
        let mut run = Run::new(ROOM, handover);
        run.apply(std::slice::from_ref(&service));
        let mut play = Self {
            run,
            service,
            connections: Vec::new(),
            stuck: [None; CLIENTS],
            drained: Duration::ZERO,
            broken: 0,
            strayed: 0,
        };
        play.open(&[(0..CLIENTS), (0..CLIENTS)].into_iter().flatten().collect::<Vec<_>>());
        play
    }

    fn send(&self, client: usize, port: u16, opens: bool) -> Option<BackendKey> {
        let frontend = self.service.frontends[0];
        let facts = Facts {
            kind: Word(Kind::Flow),
            link: Offset::new(14),
            priority: Word(0),
            transport: Offset::new(34),
            source: Address::v4([10, 99, 0, client as u8]),
            destination: frontend.address.into(),
            protocol: Word(frontend.protocol.number()),
            ports: Word((port, frontend.port.get())),
            opens: Word(opens),
            length: 60,
            traffic_class: Word(0),
            ttl: Word(64),
            identification: Word(0),
        };
        match decide(&facts, &self.run.world) {
            Ok(choice) => Some(self.run.world.named(choice.chosen.id)),
            Err(reason) => {
                assert_eq!(reason, Reason::Reset);
                assert!(self.look().1.slots.is_empty(), "{client}:{port} has no backend");
                None
            }
        }
    }

    /// What the tables say.
    fn look(&self) -> (Phase, Seen, bool) {
        let key = self.service.frontends[0].key();
        let record = self.run.world.record(&key).unwrap();
        (record.phase(), self.run.world.seen(&key).unwrap(), record.affinity() != 0)
    }

    fn members(&self) -> BTreeSet<Identity> {
        let frontend = self.service.frontends[0];
        let identity = |backend: &Backend| Identity {
            address: backend.address,
            port: frontend.port.get(),
            protocol: frontend.protocol,
        };
        self.service.backends.iter().map(identity).collect()
    }

    /// A new connection goes where its client was sent before, if that takes new ones.
    fn open(&mut self, clients: &[usize]) {
        let open: BTreeSet<BackendKey> = self.look().1.slots.into_iter().collect();
        for &client in clients {
            let port = 1024 + self.connections.len() as u16;
            let to = self.send(client, port, true);
            assert_eq!(to.is_none(), open.is_empty());
            assert!(to.is_none_or(|to| open.contains(&to)), "{to:?} takes no new connections");
            let now = self.run.now;
            if self.service.affinity.is_some() && now >= self.drained {
                let stuck = self.stuck[client];
                let stuck = stuck.filter(|(to, last)| open.contains(to) && now - *last < AFFINITY);
                self.strayed += usize::from(stuck.is_some_and(|(had, _)| Some(had) != to));
                self.stuck[client] = to.map(|to| (to, now));
            }
            let owner = to.map(|to| to.identity);
            self.connections.push(Connection { client, port, owner, heard: true, last: now });
        }
    }

    fn data(&mut self, which: usize) {
        let Connection { client, port, owner, .. } = self.connections[which];
        let to = self.send(client, port, false).map(|to| to.identity);
        assert!(to.is_none_or(|to| self.members().contains(&to)), "{to:?} is a stranger");
        self.broken += usize::from(owner.is_some() && owner != to);
        let one = &mut self.connections[which];
        *one = Connection { owner: to, heard: true, last: self.run.now, ..*one };
    }

    fn step(&mut self, step: &Step) {
        let before = self.look();
        match step {
            Step::Change(change) => make(&mut self.service, change),
            Step::Wait(seconds) => self.run.wait(Duration::from_secs(*seconds)),
            Step::Sweep => _ = self.run.sweep(IDLE),
            Step::Restart => self.run.restart(),
            Step::Open(_) | Step::Data(_) | Step::Everybody => {}
        }
        assert_eq!(self.run.apply(std::slice::from_ref(&self.service)).refused, []);
        self.note(&before);
        match step {
            Step::Open(clients) => self.open(clients),
            Step::Data(which) => {
                which.iter().for_each(|one| self.data(one % self.connections.len()));
            }
            Step::Everybody => (0..self.connections.len()).for_each(|one| self.data(one)),
            Step::Change(_) | Step::Wait(_) | Step::Sweep | Step::Restart => {}
        }
    }

    /// The service may have changed, and time has passed.
    fn note(&mut self, before: &(Phase, Seen, bool)) {
        let after = self.look();
        let (members, now) = (self.members(), self.run.now);
        let over = before.0 == Phase::Handover && after.0 != Phase::Handover;
        let changed = (&before.1, before.2) != (&after.1, after.2);
        for one in &mut self.connections {
            let silent = over && !one.heard || now - one.last + REFRESH > IDLE.tcp;
            one.owner = one.owner.filter(|owner| !silent && members.contains(owner));
            one.heard &= !changed;
        }
        let key = self.service.frontends[0].key();
        if self.run.world.record(&key).unwrap().draining() > 0 {
            self.drained = now + AFFINITY;
        }
        let kept = after.2 && now >= self.drained;
        for stuck in &mut self.stuck {
            *stuck = stuck.filter(|(to, _)| kept && members.contains(&to.identity));
        }
    }

    /// When nobody sends any more, nothing is left of the connections.
    fn rest(&mut self) {
        for wait in [HANDOVER, IDLE.tcp + REFRESH, REFRESH, REFRESH] {
            self.run.wait(wait);
            self.run.apply(std::slice::from_ref(&self.service));
            self.run.sweep(IDLE);
        }
        let drains = self.service.backends.iter().any(|one| one.weight == 0);
        let apart = self.service.affinity.is_some() && drains;
        assert!(self.look().0 == Phase::Rest || apart, "{:?}", self.look());
        assert!(self.run.world.flows.borrow().is_empty());
    }
}

/// Plays a history; how many connections broke that should not have, and how many of clients went
/// to another backend than those before.
fn play(steps: &[Step], handover: Duration) -> (usize, usize) {
    let mut play = Play::new(handover);
    steps.iter().for_each(|step| play.step(step));
    play.rest();
    (play.broken, play.strayed)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 512, failure_persistence: None, max_shrink_iters: 20_000, ..ProptestConfig::default()
    })]

    #[test]
    fn connections_and_clients_stay_with_their_backends(steps in steps()) {
        prop_assert_eq!(play(&steps, HANDOVER), (0, 0));
    }
}

#[test]
fn the_model_notices_that_switching_without_a_handover_breaks_connections() {
    for switches in [1, 2] {
        let all: Vec<usize> = (0..CLIENTS).collect();
        let mut steps = vec![Step::Change(Change::Switch); switches];
        steps.extend([Step::Open(all), Step::Everybody]);
        let again = [Step::Change(Change::Switch), Step::Everybody];
        steps.extend(again);
        assert_eq!(play(&steps, HANDOVER), (0, 0));
        assert_ne!(play(&steps, Duration::ZERO).0, 0);
    }
}
