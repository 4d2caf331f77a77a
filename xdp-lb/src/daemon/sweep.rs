//! Looks at all recorded flows every few seconds: deletes records that nobody needs, ends handovers
//! whose last exception is over, and counts the flows of each backend.
//!
//! The table is read on a thread of its own, then judged in small steps between other events. A
//! record is judged by what the tables hold at that moment, and read again before it is deleted.

use std::{
    collections::btree_map,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;
use tracing::{debug, info, warn};
use xdp_lb_abi::{Flow, FlowKey, names};
use xdp_lb_plan::{FlowCounts, IdleTimes, Judge, Planner, Verdict};

use crate::{
    clock,
    dataplane::{Dataplane, Flows, Snapshot},
    error::chain,
    maps::TableError,
    pins::Pins,
};

/// Time between two looks.
const PAUSE: Duration = Duration::from_secs(5);
/// Time between two looks where the tables change.
const SHORT: Duration = Duration::from_secs(1);
/// How often it is asked whether the table is read.
const POLL: Duration = Duration::from_millis(50);
/// Time between two steps of judging, and how long each takes at most.
const REST: Duration = Duration::from_millis(20);
const STEP: Duration = Duration::from_millis(10);
/// Records that are judged between two looks at the clock.
const BATCH: usize = 256;

/// What the last look at all recorded flows found.
#[derive(Clone, Debug, Default)]
pub struct FlowTable {
    /// Flows by frontend and backend
    pub counts: FlowCounts,
    /// Most records at one time
    pub capacity: u32,
    /// The oldest records give way to new ones.
    pub full: bool,
    /// Looks that found the table full, since the start
    pub times_full: u64,
    /// When the look began; none where it could not read all records
    pub began: Option<Duration>,
}

/// Sweeps the table of recorded flows.
pub struct Sweeper {
    pins: Pins,
    stage: Stage,
    next: Instant,
    /// When the last look ended
    last: Instant,
    found: Arc<FlowTable>,
    /// The tables changed since clients were looked at.
    changed: bool,
}

enum Stage {
    Waiting,
    Reading { began: Duration, answer: oneshot::Receiver<Result<Records, TableError>> },
    Judging(Look),
}

/// What a look reads.
struct Records {
    flows: Snapshot,
    /// Read only where some client may have lost its backend
    clients: Snapshot,
}

/// A look that is under way.
struct Look {
    began: Duration,
    complete: bool,
    full: bool,
    records: btree_map::IntoIter<FlowKey, Flow>,
    clients: btree_map::IntoIter<FlowKey, Flow>,
    counts: FlowCounts,
    deleted: u64,
}

impl Sweeper {
    /// Looks for the first time soon.
    pub fn new(pins: Pins) -> Self {
        let last = Instant::now();
        Self {
            pins,
            stage: Stage::Waiting,
            next: last + PAUSE,
            last,
            found: Arc::default(),
            changed: true,
        }
    }

    /// The tables have changed: a backend that was removed from one service and serves another is
    /// still sent the flows that are recorded for it, until the next look.
    pub fn hurry(&mut self) {
        self.changed = true;
        if matches!(self.stage, Stage::Waiting) {
            self.next = self.next.min(self.last + SHORT);
        }
    }

    /// What the last look found.
    pub fn found(&self) -> &Arc<FlowTable> {
        &self.found
    }

    /// When [`Sweeper::step`] has something to do.
    pub fn next(&self) -> Instant {
        self.next
    }

    /// Does what is due, for some milliseconds at most; `flow_key` keys the hash of flows.
    pub fn step(
        &mut self,
        planner: &mut Planner,
        dataplane: &mut Dataplane,
        flow_key: [u64; 2],
        idle: IdleTimes,
    ) {
        if Instant::now() < self.next {
            return;
        }
        let stage = std::mem::replace(&mut self.stage, Stage::Waiting);
        let (stage, pause) = match stage {
            Stage::Waiting => (self.read(planner.knows_clients()), POLL),
            Stage::Reading { began, mut answer } => match answer.try_recv() {
                Err(oneshot::error::TryRecvError::Empty) => {
                    (Stage::Reading { began, answer }, POLL)
                }
                Ok(Ok(records)) => (Stage::Judging(Look::new(began, records, dataplane)), REST),
                Ok(Err(error)) => {
                    warn!("recorded flows cannot be read: {}", chain(&error));
                    (Stage::Waiting, PAUSE)
                }
                Err(oneshot::error::TryRecvError::Closed) => (Stage::Waiting, PAUSE),
            },
            Stage::Judging(mut look) => {
                let judge = Judge::new(planner, flow_key, idle, clock::now());
                match look.judge(judge, dataplane) {
                    Ok(false) => (Stage::Judging(look), REST),
                    Ok(true) => {
                        self.finish(look, planner, dataplane);
                        (Stage::Waiting, PAUSE)
                    }
                    Err(error) => {
                        warn!("recorded flows cannot be swept: {}", chain(&error));
                        (Stage::Waiting, PAUSE)
                    }
                }
            }
        };
        self.stage = stage;
        // The tables may have changed during the look.
        let soon = self.changed && matches!(self.stage, Stage::Waiting);
        self.next = Instant::now() + if soon { SHORT } else { pause };
        if matches!(self.stage, Stage::Waiting) {
            self.last = Instant::now();
        }
    }

    /// Begins to read: clients only where they are recorded, and the tables changed.
    fn read(&mut self, has_clients: bool) -> Stage {
        let (sender, answer) = oneshot::channel();
        let (pins, began) = (self.pins.clone(), clock::now());
        let clients = std::mem::take(&mut self.changed) && has_clients;
        tokio::task::spawn_blocking(move || {
            // Nobody waits for it where the daemon stops meanwhile.
            let _ = sender.send(Records::read(&pins, clients));
        });
        Stage::Reading { began, answer }
    }

    fn finish(&mut self, look: Look, planner: &mut Planner, dataplane: &mut Dataplane) {
        let Look { began, complete, full, records: _, clients: _, counts, deleted } = look;
        if complete {
            let ops = planner.settle(&counts.exceptions(), began);
            if !ops.is_empty() {
                info!(operations = ops.len(), "services are at rest again");
            }
            // Only counters can fail, and none is reset here.
            if let Err(error) = dataplane.run(&ops) {
                warn!("services cannot be brought to rest: {}", chain(&error));
            }
        }
        if deleted > 0 {
            debug!(deleted, left = counts.records, "recorded flows are swept");
        }
        if full && !self.found.full {
            warn!(
                "the table of recorded flows is full: those that were silent for longest give way, \
                   and may move to another backend; raise limits.flows"
            );
        }
        let times_full = self.found.times_full + u64::from(full);
        let (capacity, began) = (dataplane.flows.capacity(), complete.then_some(began));
        self.found = Arc::new(FlowTable { counts, capacity, full, times_full, began });
    }
}

impl Records {
    fn read(pins: &Pins, clients: bool) -> Result<Self, TableError> {
        let flows = Flows::open(pins, names::FLOWS)?.read()?;
        let clients = match clients {
            true => Flows::open(pins, names::CLIENTS)?.read()?,
            false => Snapshot::default(),
        };
        Ok(Self { flows, clients })
    }
}

impl Look {
    fn new(began: Duration, records: Records, dataplane: &Dataplane) -> Self {
        let Records { flows: Snapshot { records, complete }, clients } = records;
        let full = dataplane.flows.is_full(records.len());
        Self {
            began,
            complete,
            full,
            records: records.into_iter(),
            clients: clients.records.into_iter(),
            counts: FlowCounts::default(),
            deleted: 0,
        }
    }

    /// Judges records for a while; whether it was the last of them.
    fn judge(
        &mut self,
        mut judge: Judge<'_>,
        dataplane: &mut Dataplane,
    ) -> Result<bool, TableError> {
        let Dataplane { flows, clients, .. } = dataplane;
        let start = Instant::now();
        while start.elapsed() < STEP {
            for _ in 0..BATCH {
                let Some((key, flow)) = self.records.next() else {
                    // A client's backend is the one of its service, though another may have it too.
                    let Some((key, client)) = self.clients.next() else { return Ok(true) };
                    if !judge.lists(&key.frontend(), client.backend()) {
                        clients.remove(&key)?;
                    }
                    continue;
                };
                let mut verdict = judge.judge(&key, &flow);
                if verdict == Verdict::Delete {
                    // Its flow may have gone on since.
                    let Some(now) = flows.get(&key)? else { continue };
                    verdict = judge.judge(&key, &now);
                    if verdict == Verdict::Delete {
                        flows.remove(&key)?;
                        self.deleted += 1;
                    }
                }
                self.counts.add(verdict);
            }
        }
        Ok(false)
    }
}
