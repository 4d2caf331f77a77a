//! Which records of flows are still needed, and whose they are.
//!
//! The packet path records flows and never deletes one. A record may go once its deletion moves no
//! live flow, whatever the packet path does at the same moment:
//!
//! | record | handover | exceptions | rest |
//! | --- | --- | --- | --- |
//! | its flow was not seen for the idle time | goes | goes | goes |
//! | its backend was removed from this service, and serves another | goes | goes | goes |
//! | its backend is gone, or it is of an earlier handover | stays: the next packet overwrites it | goes | goes |
//! | the current table says the same | stays: it is why a flow is where it is | goes | goes |
//! | any other | stays | stays, an exception | goes |
//!
//! "Goes" is right in the third row only where unknown flows belong to the current table: there the
//! record that overwrites it says what the table says. A service is at rest when no exception is left
//! ([`Planner::settle`]).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::Duration,
};

use xdp_lb_abi::{Flow, FlowKey, FrontendKey, Phase, Table};

use crate::{model::Protocol, planner::Planner};

/// How long a flow may be silent until it counts as over.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct IdleTimes {
    /// TCP and SCTP. RFC 5382 (REQ-5) asks translators to keep a connection for 2 h 4 min: a
    /// keepalive comes every two hours (RFC 1122, 4.2.3.6).
    pub tcp: Duration,
    /// UDP. RFC 4787 (REQ-5) asks translators for 5 min; QUIC's idle timeout is at most what both
    /// ends say (RFC 9000, 10.1).
    pub udp: Duration,
}

impl Default for IdleTimes {
    fn default() -> Self {
        Self { tcp: Duration::from_secs(2 * 3600 + 4 * 60), udp: Duration::from_secs(300) }
    }
}

/// What a record is worth.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// Nobody needs it: it may be deleted.
    Delete,
    /// It says nothing, but the packet path may be about to overwrite it: it stays.
    Spent,
    /// It says where a live flow belongs: it stays.
    Needed {
        /// The flow's frontend
        frontend: FrontendKey,
        /// The backend's id
        backend: u32,
    },
}

/// Judges records by what the tables hold at one moment.
#[derive(Clone, Debug)]
pub struct Judge<'a> {
    planner: &'a Planner,
    flow_key: [u64; 2],
    idle: IdleTimes,
    now: Duration,
    /// Backends by frontend, for those that were asked for
    members: HashMap<FrontendKey, HashSet<u32>>,
}

impl<'a> Judge<'a> {
    /// Judges by what `planner` has installed at time `now` (as in [`Planner::apply`]); `flow_key`
    /// keys the hash of flows.
    pub fn new(planner: &'a Planner, flow_key: [u64; 2], idle: IdleTimes, now: Duration) -> Self {
        Self { planner, flow_key, idle, now, members: HashMap::new() }
    }

    /// What this record is worth.
    pub fn judge(&mut self, key: &FlowKey, flow: &Flow) -> Verdict {
        let frontend = key.frontend();
        let Some(one) = self.planner.installed(&frontend) else { return Verdict::Delete };
        let spent = match one.phase {
            Phase::Rest => return Verdict::Delete,
            Phase::Handover => Verdict::Spent,
            Phase::Exceptions => Verdict::Delete,
        };
        if flow.seen() < one.started {
            return spent;
        }
        let idle = if frontend.protocol() == Protocol::Udp.number() {
            self.idle.udp
        } else {
            self.idle.tcp
        };
        if self.now.saturating_sub(Duration::from_nanos(flow.seen())) > idle {
            return Verdict::Delete;
        }
        let backend = flow.backend();
        let record = self.planner.backend_record(backend);
        if !record.is_some_and(|one| one.generation() == flow.generation() && one.serving()) {
            return spent;
        }
        if !self.lists(&frontend, backend) {
            return Verdict::Delete;
        }
        let view = one.current.view();
        let hash = if one.traits.affinity == 0 { *key } else { key.client() }.hash(self.flow_key);
        let slot = Table::new(0, view.slots.len() as u32, 0, 0).slot(hash);
        let same = !view.slots.is_empty() && view.owner(slot as usize) == Some(backend);
        // With session affinity, the flow is recorded because its client has another backend.
        let same = same && one.traits.affinity == 0;
        match one.phase {
            Phase::Exceptions if same => Verdict::Delete,
            Phase::Rest | Phase::Handover | Phase::Exceptions => {
                Verdict::Needed { frontend, backend }
            }
        }
    }
}

impl Judge<'_> {
    /// Whether a backend is one of a frontend's, those that take no new flows included.
    pub fn lists(&mut self, frontend: &FrontendKey, backend: u32) -> bool {
        let Some(one) = self.planner.installed(frontend) else { return false };
        let members = self.members.entry(*frontend);
        members
            .or_insert_with(|| one.current.list.items.iter().copied().collect())
            .contains(&backend)
    }
}

/// What a look at all records found.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct FlowCounts {
    /// Flows that are recorded for each backend id, by frontend
    pub flows: BTreeMap<FrontendKey, BTreeMap<u32, u64>>,
    /// Records that stay, those that say nothing included
    pub records: u64,
}

impl FlowCounts {
    /// Counts a record.
    pub fn add(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Delete => return,
            Verdict::Spent => {}
            Verdict::Needed { frontend, backend } => {
                *self.flows.entry(frontend).or_default().entry(backend).or_default() += 1;
            }
        }
        self.records += 1;
    }

    /// Flows of a frontend that are recorded for a backend.
    ///
    /// While the frontend hands over, a flow that sent nothing since the change is not recorded yet:
    /// the number is a lower bound then.
    pub fn of(&self, frontend: &FrontendKey, backend: u32) -> u64 {
        self.flows.get(frontend).and_then(|flows| flows.get(&backend)).copied().unwrap_or(0)
    }

    /// Flows that are recorded for a backend, of all frontends.
    pub fn of_backend(&self, backend: u32) -> u64 {
        self.flows.values().filter_map(|flows| flows.get(&backend)).sum()
    }

    /// The frontends that have recorded flows, for [`Planner::settle`].
    pub fn exceptions(&self) -> BTreeSet<FrontendKey> {
        self.flows.keys().copied().collect()
    }
}
