//! What the tests share: the maps as memory, and services to plan for.

#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![allow(dead_code, reason = "each test binary uses its own part of this module")]

pub(crate) mod input;
pub(crate) mod world;

use std::time::Duration;

use xdp_lb_abi::Hop;
use xdp_lb_plan::{
    BackendKey, FlowCounts, IdleTimes, Judge, Layout, Outcome, Path, Planner, Verdict,
    maglev::{self, Candidate, HashKey, Identity, table_size},
    model::{Frontend, Service},
};

use self::world::{Seen, World};

/// Key of the Maglev hash.
pub(crate) fn key() -> HashKey {
    HashKey::from([7; 16])
}

/// How long a handover lasts, where the test does not say.
pub(crate) const HANDOVER: Duration = Duration::from_secs(10);

/// Room for everything that [`input`] asks for.
pub(crate) const AMPLE: Layout =
    Layout { frontends: 16, backends: 256, words: 40_000, buckets: 16, seed: 0x5eed };

/// A planner, the maps that it writes, and the time.
#[derive(Clone)]
pub(crate) struct Run {
    pub(crate) planner: Planner,
    pub(crate) world: World,
    pub(crate) layout: Layout,
    pub(crate) handover: Duration,
    pub(crate) now: Duration,
    /// Which way leads to the backends
    pub(crate) way: u8,
    /// The way that the planner knows
    known: Option<u8>,
}

impl Run {
    pub(crate) fn new(layout: Layout, handover: Duration) -> Self {
        let mut run = Self {
            planner: Planner::new(&layout, key(), handover),
            world: World::new(&layout),
            layout,
            handover,
            now: Duration::ZERO,
            way: 1,
            known: None,
        };
        run.wait(Duration::from_secs(1000));
        run
    }

    /// Time goes on, for the planner and for packets.
    pub(crate) fn wait(&mut self, time: Duration) {
        self.now += time;
        self.world.now.set(self.now.as_nanos() as u64);
    }

    /// Looks at all recorded flows, deletes what nobody needs, and ends handovers.
    pub(crate) fn sweep(&mut self, idle: IdleTimes) -> FlowCounts {
        let mut judge = Judge::new(&self.planner, self.world.settings.flow_key(), idle, self.now);
        let mut counts = FlowCounts::default();
        self.world.flows.borrow_mut().retain(|key, flow| {
            let verdict = judge.judge(key, flow);
            counts.add(verdict);
            verdict != Verdict::Delete
        });
        let mut clients = self.world.clients.borrow_mut();
        clients.retain(|key, client| judge.lists(&key.frontend(), client.backend()));
        drop(clients);
        for op in self.planner.settle(&counts.exceptions(), self.now) {
            self.world.carry_out(&op);
        }
        counts
    }

    /// Plans, and carries it out.
    pub(crate) fn apply(&mut self, services: &[Service]) -> Outcome {
        let outcome = self.plan(services);
        for op in &outcome.ops {
            self.world.carry_out(op);
        }
        outcome
    }

    /// Plans only.
    pub(crate) fn plan(&mut self, services: &[Service]) -> Outcome {
        let way = self.way;
        let path = |key: &_| Some(path(key, way));
        if self.known.replace(way) == Some(way) {
            return self.planner.apply_over_known_paths(services, &path, self.now);
        }
        self.planner.apply(services, &path, self.now)
    }

    /// A new process takes over what the maps hold.
    pub(crate) fn restart(&mut self) {
        self.planner = Planner::new(&self.layout, key(), self.handover);
        self.planner.adopt(&self.world, self.now).unwrap();
        self.known = None;
        self.world.settle();
    }
}

pub(crate) fn path(to: &BackendKey, way: u8) -> Path {
    Path { hop: Hop::new([way; 6], 1), mtu: 1500, ..Path::unknown(to.identity.address) }
}

/// What a frontend must lead to: computed from its service alone.
pub(crate) fn expected(service: &Service, frontend: &Frontend) -> Seen {
    let candidates: Vec<Candidate> = service
        .backends
        .iter()
        .rev()
        .map(|backend| {
            let port = backend.port.unwrap_or(frontend.port).get();
            let protocol = frontend.protocol;
            let identity = Identity { address: backend.address, port, protocol };
            Candidate { identity, weight: backend.weight }
        })
        .collect();
    let serving = candidates.iter().filter(|candidate| candidate.weight > 0).count();
    let size = service.table_size.unwrap_or_else(|| table_size(serving));
    let table = maglev::build(&key(), &candidates, size).unwrap();
    let named = |candidate: &Candidate| {
        named(candidate.identity, service.mode.forwarding(candidate.identity.protocol, false))
    };
    let members: Vec<BackendKey> = table.backends().iter().map(named).collect();
    Seen { slots: table.slots().iter().map(|&slot| members[usize::from(slot)]).collect(), members }
}

fn named(identity: Identity, mode: xdp_lb_abi::Mode) -> BackendKey {
    BackendKey { identity, mode, tunnel: None }
}

/// Every frontend with its service.
pub(crate) fn all(services: &[Service]) -> impl Iterator<Item = (&Service, &Frontend)> {
    services.iter().flat_map(|one| one.frontends.iter().map(move |frontend| (one, frontend)))
}
