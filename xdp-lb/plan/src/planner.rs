//! Turns what users want into operations on the tables, and remembers what the tables hold.

mod assignment;
mod change;
mod drift;
mod settle;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use xdp_lb_abi::{FrontendKey, IDS_PER_WORD, Phase, SLOTS_PER_WORD, Scope};

pub(crate) use self::assignment::Assignment;
use self::assignment::draining;
use crate::{
    arena::{Arena, Pool, Range},
    backends::{BackendKey, Backends, Path, Use},
    frontends::{Place, Places},
    maglev::{self, Candidate, HashKey, Identity},
    model::{Node, Service},
    op::Op,
    outcome::{Outcome, Refusal, Refused},
    shared::Shared,
    target::{Picks, Target, Targets, Touched, Traits, Wanted},
};

/// Sizes of the arrays, and what their hashes are keyed with.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Most frontends at one time
    pub frontends: u32,
    /// Most backends at one time
    pub backends: u32,
    /// Words of the arena
    pub words: u32,
    /// Buckets of the frontend table, a power of two
    pub buckets: u32,
    /// Seed of the frontend table's hash
    pub seed: u64,
}

/// A frontend as the tables have it.
#[derive(Clone, Debug)]
pub(crate) struct Installed {
    pub(crate) place: Place,
    pub(crate) record: u32,
    pub(crate) stats: u32,
    pub(crate) current: Assignment,
    pub(crate) previous: Option<Previous>,
    pub(crate) phase: Phase,
    pub(crate) traits: Traits,
    /// What `current` was computed from, where this process did it with the present key
    pub(crate) wanted: Option<Wanted>,
    /// When the last change was; time as in [`Planner::apply`].
    pub(crate) since: Duration,
    /// When the phase began
    pub(crate) phase_since: Duration,
    /// When it last left its rest, in nanoseconds: flows recorded earlier do not count.
    pub(crate) started: u64,
}

/// The table that flows from before the last change belong to.
#[derive(Clone, Debug)]
pub(crate) struct Previous {
    pub(crate) assignment: Assignment,
    /// What picked its slots: something else than the current table's where affinity was switched
    pub(crate) picks: Picks,
}

impl Installed {
    pub(crate) fn assignments(&self) -> impl Iterator<Item = &Assignment> {
        let previous = self.previous.iter().map(|previous| &previous.assignment);
        std::iter::once(&self.current).chain(previous)
    }

    /// Whether something else picks the previous table's slots than the current one's.
    pub(crate) fn switched(&self) -> bool {
        self.previous.as_ref().is_some_and(|previous| previous.picks != self.traits.picks())
    }
}

/// What is free again after the next grace period.
#[derive(Clone, Copy, Debug)]
enum Retired {
    Words(Range),
    Record(u32),
    Stats(u32),
    Backend(u32),
    Place(Place),
}

/// Built tables, by what they are built from: frontends may share them, and what was refused is
/// tried again and again.
type Memo = HashMap<(Vec<Candidate>, u32), Arc<[u16]>>;

/// What the tables hold, and how to change them.
///
/// Nothing that a packet may still look at is written again before the next [`Op::Grace`].
#[derive(Clone, Debug)]
pub struct Planner {
    key: HashKey,
    handover: Duration,
    node: Node,
    arena: Arena,
    slots: Shared<u16>,
    lists: Shared<u32>,
    backends: Backends,
    records: Pool,
    stats: Pool,
    places: Places,
    installed: BTreeMap<FrontendKey, Installed>,
    targets: Targets,
    /// Frontends that could not be installed as they are wanted
    refused: BTreeSet<FrontendKey>,
    /// What is installed may be another thing than what is wanted, whatever changed
    pub(crate) unknown: bool,
    /// Installed ones that stay, though no service names them
    pub(crate) held: BTreeSet<FrontendKey>,
    memo: Memo,
    retired: Vec<Retired>,
}

impl Planner {
    /// Tables that hold nothing. `handover` is how long flows have to show themselves after a
    /// change; zero lets them go where the new table says.
    pub fn new(layout: &Layout, key: HashKey, handover: Duration) -> Self {
        Self {
            key,
            handover,
            node: Node::default(),
            arena: Arena::new(layout.words),
            slots: Shared::new(SLOTS_PER_WORD),
            lists: Shared::new(IDS_PER_WORD),
            backends: Backends::new(layout.backends),
            // Index 0 means "no service". A change needs a second record for a while.
            records: Pool::new(1, record_count(layout)),
            stats: Pool::new(0, layout.frontends),
            places: Places::new(layout.seed, layout.buckets),
            installed: BTreeMap::new(),
            targets: Targets::default(),
            refused: BTreeSet::new(),
            unknown: true,
            held: BTreeSet::new(),
            memo: Memo::new(),
            retired: Vec::new(),
        }
    }

    /// Sets the key of the Maglev hash and how long a handover lasts, for the next [`Self::apply`].
    pub fn configure(&mut self, key: HashKey, handover: Duration) {
        if self.key != key {
            self.memo.clear();
            self.installed.values_mut().for_each(|one| one.wanted = None);
            self.unknown = true;
        }
        self.key = key;
        self.handover = handover;
    }

    /// Sets what the node contributes to its services, for the next [`Self::apply`].
    pub fn set_node(&mut self, node: Node) {
        self.node = node;
    }

    /// What must be written so that the tables serve these services, over these paths.
    ///
    /// `path` says how packets get to a backend; where it says nothing, the last way known stays.
    ///
    /// The same input twice gives no operation the second time. A frontend that cannot be served
    /// stays as it was, and the others go on. `now` is the clock that flows are recorded by: the
    /// kernel's monotonic one, in its coarse form (`CLOCK_MONOTONIC_COARSE`).
    pub fn apply(
        &mut self,
        services: &[Service],
        path: &impl Fn(&BackendKey) -> Option<Path>,
        now: Duration,
    ) -> Outcome {
        self.backends.ask_all_paths();
        self.apply_over_known_paths(services, path, now)
    }

    /// The same where no path is another one than at the last time: what did not change costs little.
    pub fn apply_over_known_paths(
        &mut self,
        services: &[Service],
        path: &impl Fn(&BackendKey) -> Option<Path>,
        now: Duration,
    ) -> Outcome {
        let mut ops = Vec::new();
        let mut memo = Memo::new();
        let mut targets = std::mem::take(&mut self.targets);
        let touched = targets.update(services, &self.node);
        self.held.retain(|key| targets.get(key).is_none());
        let (wanted, gone) = match touched {
            Touched::These(touched) if !self.unknown => self.compare(touched, &targets),
            Touched::These(_) | Touched::All => self.compare_all(&targets),
        };
        self.unknown = false;
        let wanted = wanted.iter().filter_map(|key| Some((*key, targets.get(key)?)));
        let mut refused = self.install_all(wanted, path, now, &mut memo, &mut ops);
        for key in gone {
            self.remove(&key, &mut ops);
        }
        self.backends.set_down(targets.iter().flat_map(|(_, target)| &target.wanted.down));
        self.end_handovers(now, &mut ops);
        self.refresh(path, &mut ops);
        // What was refused may fit into what the others gave up.
        while self.reuse_retired(&mut ops) && !refused.is_empty() {
            let again = refused.iter().map(|one| one.key);
            let again = again.filter_map(|key| Some((key, targets.get(&key)?)));
            refused = self.install_all(again, path, now, &mut memo, &mut ops);
            self.refresh(path, &mut ops);
        }
        self.memo = if refused.is_empty() { Memo::new() } else { memo };
        self.refused = refused.iter().map(|one| one.key).collect();
        self.targets = targets;
        Outcome { ops, refused }
    }

    /// The frontends to install, and those to remove, where only these were touched.
    fn compare(
        &self,
        touched: BTreeSet<FrontendKey>,
        targets: &Targets,
    ) -> (Vec<FrontendKey>, Vec<FrontendKey>) {
        let mut keys = touched;
        keys.extend(&self.refused);
        let (wanted, gone): (Vec<_>, Vec<_>) =
            keys.into_iter().partition(|key| targets.get(key).is_some());
        (wanted, gone.into_iter().filter(|key| self.installed.contains_key(key)).collect())
    }

    fn compare_all(&self, targets: &Targets) -> (Vec<FrontendKey>, Vec<FrontendKey>) {
        let wanted = targets.iter().map(|(key, _)| *key).collect();
        let gone = |key: &FrontendKey| targets.get(key).is_none() && !self.held.contains(key);
        (wanted, self.installed_keys().filter(gone).collect())
    }

    /// When [`Self::apply`] has something to do though nothing changes: the end of a handover.
    pub fn deadline(&self) -> Option<Duration> {
        let running = self.installed.values().filter(|one| one.phase == Phase::Handover);
        running.map(|one| self.end_of_handover(one)).min()
    }

    /// When every live flow has had the time to show itself.
    fn end_of_handover(&self, one: &Installed) -> Duration {
        one.since.saturating_add(self.handover)
    }

    /// The frontends that are installed, with their counters' index and their backends' ids.
    pub fn frontends(&self) -> impl Iterator<Item = FrontendState<'_>> {
        self.installed.iter().map(|(key, one)| FrontendState {
            key: *key,
            stats: one.stats,
            phase: one.phase,
            since: one.phase_since,
            slots: &one.current.table.items,
            ids: one.current.ids(),
            draining: one.current.draining(),
            previous_ids: one.previous.as_ref().map_or(&[], |previous| previous.assignment.ids()),
        })
    }

    /// Whether a frontend is for sockets alone, and packets to the same address and port meet another
    /// one.
    pub fn has_twin(&self, key: &FrontendKey) -> bool {
        key.scope() == Scope::Sockets && self.installed.contains_key(&key.with_scope(Scope::All))
    }

    /// Whether any service knows its clients by what is recorded: it has session affinity, or had it
    /// before a handover.
    pub fn knows_clients(&self) -> bool {
        self.installed.values().any(|one| one.traits.affinity != 0 || one.switched())
    }

    /// The backends that have an id, with their records.
    pub fn backends(&self) -> impl Iterator<Item = (u32, &BackendKey, &xdp_lb_abi::Backend)> {
        self.backends.iter()
    }

    /// What a backend id stands for.
    pub fn backend(&self, id: u32) -> Option<&BackendKey> {
        self.backends.key(id)
    }

    pub(crate) fn installed_keys(&self) -> impl Iterator<Item = FrontendKey> {
        self.installed.keys().copied()
    }

    pub(crate) fn installed(&self, key: &FrontendKey) -> Option<&Installed> {
        self.installed.get(key)
    }

    pub(crate) fn backend_record(&self, id: u32) -> Option<&xdp_lb_abi::Backend> {
        self.backends.record(id)
    }

    /// Words of the arena: all, and the free ones.
    pub fn words(&self) -> (u32, u32) {
        (self.arena.capacity(), self.arena.free())
    }

    /// Waits until nobody uses what was given up, and frees it; `false` where there is nothing.
    fn reuse_retired(&mut self, ops: &mut Vec<Op>) -> bool {
        if self.retired.is_empty() {
            return false;
        }
        ops.push(Op::Grace);
        for retired in self.retired.drain(..) {
            match retired {
                Retired::Words(range) => self.arena.give_back(range),
                Retired::Record(index) => self.records.give_back(index),
                Retired::Stats(index) => self.stats.give_back(index),
                Retired::Backend(id) => self.backends.give_back(id),
                Retired::Place(place) => self.places.give_back(place),
            }
        }
        true
    }

    fn refresh(&mut self, path: &impl Fn(&BackendKey) -> Option<Path>, ops: &mut Vec<Op>) {
        let unused = self.backends.refresh(path, ops);
        self.retired.extend(unused.into_iter().map(Retired::Backend));
    }

    /// Installs what differs; returns what could not be.
    fn install_all<'a>(
        &mut self,
        targets: impl IntoIterator<Item = (FrontendKey, &'a Target)>,
        path: &impl Fn(&BackendKey) -> Option<Path>,
        now: Duration,
        memo: &mut Memo,
        ops: &mut Vec<Op>,
    ) -> Vec<Refused> {
        let mut refused = Vec::new();
        for (key, target) in targets {
            let before = ops.len();
            if let Err(refusal) = self.install(key, target, path, now, memo, ops) {
                self.undo(ops.drain(before..));
                let (service, frontend) = (target.service.clone(), target.frontend);
                refused.push(Refused { service, frontend, key, refusal });
            }
        }
        refused
    }

    /// Frees the ids that these operations would have given to backends.
    fn undo(&mut self, ops: impl Iterator<Item = Op>) {
        for op in ops {
            if let Op::Backend { id, new: true, .. } = op {
                self.backends.cancel(id);
            }
        }
    }

    fn install(
        &mut self,
        key: FrontendKey,
        target: &Target,
        path: &impl Fn(&BackendKey) -> Option<Path>,
        now: Duration,
        memo: &mut Memo,
        ops: &mut Vec<Op>,
    ) -> Result<(), Refusal> {
        if let Some(one) = self.installed.get(&key)
            && one.wanted.as_ref() == Some(&target.wanted)
        {
            return Ok(());
        }
        let slots = self.slots_of(&target.wanted, memo)?;
        let keys = &target.wanted.backends;
        let ids = self.backends.ids(keys, path, ops).ok_or(Refusal::Backends)?;
        let handover = !self.handover.is_zero();
        if let Some(one) = self.installed.get_mut(&key)
            && *one.current.ids() == ids[..]
            && one.current.table.items == slots
            && (one.traits.picks() == target.wanted.traits.picks() || !handover)
        {
            if one.traits != target.wanted.traits {
                let record = self.records.take().ok_or(Refusal::Frontends)?;
                self.retired.push(Retired::Record(one.record));
                one.record = record;
                one.traits = target.wanted.traits;
                change::publish(key, one, ops);
            }
            one.wanted = Some(target.wanted.clone());
            return Ok(());
        }
        let draining = draining(&slots, &ids, &self.former(&key, &ids));
        let current = self.assign(&slots, ids, draining, ops).ok_or(Refusal::Slots)?;
        let result = match self.installed.remove(&key) {
            Some(one) => {
                let (next, result) = self.change(key, one, &target.wanted, &current, now, ops);
                self.installed.insert(key, next);
                result
            }
            None => self.add(key, &target.wanted, &current, now, ops),
        };
        match result {
            Ok(()) => {
                self.backends.acquire(current.ids(), Use::Current);
                self.backends.acquire(current.draining(), Use::Draining);
                if let Some(one) = self.installed.get_mut(&key) {
                    one.wanted = Some(target.wanted.clone());
                }
            }
            Err(_) => self.cancel(&current),
        }
        result
    }

    /// The ids by which a frontend's flows may know backends that it has in another mode from now on.
    ///
    /// Such a flow keeps its mode: what the backend sees of it depends on the mode.
    fn former(&self, key: &FrontendKey, ids: &[u32]) -> Vec<u32> {
        let Some(one) = self.installed.get(key) else { return Vec::new() };
        if self.handover.is_zero() {
            return Vec::new();
        }
        let mut had: BTreeSet<u32> = one.current.ids().iter().copied().collect();
        if let Some(previous) = &one.previous {
            had.extend(previous.assignment.ids());
            had.extend(one.current.draining());
        }
        let identity = |id: &u32| self.backends.key(*id).map(|key| key.identity);
        let members: BTreeSet<u32> = ids.iter().copied().collect();
        let stays: BTreeSet<Identity> = ids.iter().filter_map(identity).collect();
        had.retain(|id| !members.contains(id));
        had.retain(|id| identity(id).is_some_and(|identity| stays.contains(&identity)));
        had.into_iter().collect()
    }

    /// The table that is wanted, built unless it was built for an earlier frontend.
    fn slots_of(&self, wanted: &Wanted, memo: &mut Memo) -> Result<Arc<[u16]>, Refusal> {
        let key = (wanted.candidates.clone(), wanted.table_size);
        if let Some(slots) = memo.get(&key) {
            return Ok(slots.clone());
        }
        let slots = match self.memo.get(&key) {
            Some(slots) => slots.clone(),
            None => maglev::build(&self.key, &wanted.candidates, wanted.table_size)?.slots().into(),
        };
        memo.insert(key, slots.clone());
        Ok(slots)
    }
}

/// Taking over what an earlier run left; see [`crate::adopt`].
impl Planner {
    /// Takes these indices, each list in ascending order; `false` where one is out of range.
    pub(crate) fn claim(
        &mut self,
        backends: &BTreeMap<u32, (BackendKey, xdp_lb_abi::Backend)>,
        stats: impl IntoIterator<Item = u32>,
        records: impl IntoIterator<Item = u32>,
    ) -> bool {
        self.backends.adopt(backends) && self.stats.claim(stats) && self.records.claim(records)
    }

    pub(crate) fn know_last_owners(
        &mut self,
        records: impl Iterator<Item = (u32, xdp_lb_abi::Backend)>,
    ) {
        self.backends.know_last_owners(records);
    }

    pub(crate) fn claim_place(&mut self, key: &FrontendKey, place: Place) -> bool {
        self.places.claim(key, place)
    }

    pub(crate) fn adopt_assignment(
        &mut self,
        slots: &[u16],
        first_slot_word: u32,
        list: &[u32],
        first_id_word: u32,
        members: usize,
    ) -> Option<Assignment> {
        let list = self.lists.adopt(list, first_id_word, &mut self.arena)?;
        let table = self.slots.adopt(slots, first_slot_word, &mut self.arena)?;
        Some(Assignment { table, list, members })
    }

    pub(crate) fn insert_adopted(&mut self, key: FrontendKey, one: Installed) {
        self.backends.acquire(one.current.ids(), Use::Current);
        self.backends.acquire(one.current.draining(), Use::Draining);
        if let Some(previous) = &one.previous {
            self.backends.acquire(previous.assignment.ids(), Use::Previous);
        }
        self.installed.insert(key, one);
    }
}

/// A frontend's state, to be shown.
#[derive(Clone, Copy, Debug)]
pub struct FrontendState<'a> {
    /// Address, port and protocol
    pub key: FrontendKey,
    /// Index into `FRONTEND_STATS`
    pub stats: u32,
    /// Whether a handover is under way
    pub phase: Phase,
    /// When the phase began; time as in [`Planner::apply`]
    pub since: Duration,
    /// The current table
    pub slots: &'a [u16],
    /// The backends that its slots name, by index
    pub ids: &'a [u32],
    /// Backends that take no new flows, in ascending order: those of them that no slot names, and
    /// those that the service has in another mode now
    pub draining: &'a [u32],
    /// The backends of the previous table; none at rest
    pub previous_ids: &'a [u32],
}

/// Entries that `SERVICES` needs: none for index 0, and two for each frontend.
pub fn record_count(layout: &Layout) -> u32 {
    layout.frontends.saturating_mul(2).saturating_add(1)
}
