//! Turns what users want into operations on the tables, and remembers what the tables hold.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use xdp_lb_abi::{
    FrontendEntry, FrontendKey, IDS_PER_WORD, Phase, SLOTS_PER_WORD, Service as Record, Table,
};

use crate::{
    arena::{Arena, Pool, Range},
    backends::{BackendKey, Backends, Path, Use},
    frontends::{Place, Places},
    handover::{Base, View, next_previous},
    maglev::{self, Candidate, HashKey},
    model::{Frontend, Service},
    op::Op,
    shared::{Shared, Stored, id_words, slot_words},
    target::{Target, Wanted, targets},
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

/// Why a frontend is not as it should be.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// The frontend table is full.
    #[error("no room for another frontend: raise limits.frontends")]
    Frontends,
    /// The backend table is full.
    #[error("no room for its backends: raise limits.backends")]
    Backends,
    /// The arena is full.
    #[error("no room for its Maglev table: raise limits.slots, or lower the service's tableSize")]
    Slots,
    /// The Maglev table cannot be built.
    #[error(transparent)]
    Maglev(#[from] maglev::BuildError),
}

/// A frontend that stays as it was, and why.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refused {
    /// The service's name
    pub service: String,
    /// The frontend
    pub frontend: Frontend,
    /// The reason
    pub refusal: Refusal,
}

/// What an [`Planner::apply`] comes to.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// What to write, in order; empty where nothing changed
    pub ops: Vec<Op>,
    /// What could not be served; it stays as it was
    pub refused: Vec<Refused>,
}

/// A table and the list of backends that its slots name.
#[derive(Clone, Debug)]
pub(crate) struct Assignment {
    pub(crate) table: Stored<u16>,
    pub(crate) list: Stored<u32>,
}

impl Assignment {
    fn view(&self) -> View<'_> {
        View { slots: &self.table.items, ids: &self.list.items }
    }

    /// Whether every slot names a backend of the list; those of a `previous` table may be marked,
    /// or have lost theirs.
    pub(crate) fn is_sound(&self, previous: bool) -> bool {
        let length = self.list.items.len();
        self.table.items.iter().all(|&slot| {
            let index = if previous { slot & !Table::LOOK_UP } else { slot };
            usize::from(index) < length || previous && index == Table::GONE
        })
    }

    fn record(&self) -> Table {
        let (slots, list) = (self.table.range.start, self.list.range.start);
        Table::new(slots, self.table.items.len() as u32, list, self.list.items.len() as u32)
    }
}

/// A frontend as the tables have it.
#[derive(Clone, Debug)]
pub(crate) struct Installed {
    pub(crate) place: Place,
    pub(crate) record: u32,
    pub(crate) stats: u32,
    pub(crate) current: Assignment,
    pub(crate) previous: Option<Assignment>,
    pub(crate) phase: Phase,
    /// What `current` was computed from, where this process did it with the present key
    pub(crate) wanted: Option<Wanted>,
    /// When the last change was; time as in [`Planner::apply`].
    pub(crate) since: Duration,
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
    arena: Arena,
    slots: Shared<u16>,
    lists: Shared<u32>,
    backends: Backends,
    records: Pool,
    stats: Pool,
    places: Places,
    installed: BTreeMap<FrontendKey, Installed>,
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
            arena: Arena::new(layout.words),
            slots: Shared::new(SLOTS_PER_WORD),
            lists: Shared::new(IDS_PER_WORD),
            backends: Backends::new(layout.backends),
            // Index 0 means "no service". A change needs a second record for a while.
            records: Pool::new(1, record_count(layout)),
            stats: Pool::new(0, layout.frontends),
            places: Places::new(layout.seed, layout.buckets),
            installed: BTreeMap::new(),
            memo: Memo::new(),
            retired: Vec::new(),
        }
    }

    /// Sets the key of the Maglev hash and how long a handover lasts, for the next [`Self::apply`].
    pub fn configure(&mut self, key: HashKey, handover: Duration) {
        if self.key != key {
            self.memo.clear();
            self.installed.values_mut().for_each(|one| one.wanted = None);
        }
        self.key = key;
        self.handover = handover;
    }

    /// What must be written so that the tables serve these services, over these paths.
    ///
    /// The same input twice gives no operation the second time. A frontend that cannot be served
    /// stays as it was, and the others go on. `now` is any clock that never goes back.
    pub fn apply(
        &mut self,
        services: &[Service],
        path: &impl Fn(&BackendKey) -> Path,
        now: Duration,
    ) -> Outcome {
        let mut ops = Vec::new();
        let mut memo = Memo::new();
        let targets = targets(services);
        let gone: Vec<FrontendKey> =
            self.installed.keys().filter(|key| !targets.contains_key(key)).copied().collect();
        let mut refused = self.install_all(
            targets.iter().map(|(key, target)| (*key, target)),
            path,
            now,
            &mut memo,
            &mut ops,
        );
        for key in gone {
            self.remove(&key, &mut ops);
        }
        self.end_handovers(now, &mut ops);
        self.refresh(path, &mut ops);
        // What was refused may fit into what the others gave up.
        while self.reuse_retired(&mut ops) && !refused.is_empty() {
            let again = refused.iter().map(|one| one.frontend.key());
            let again = again.filter_map(|key| Some((key, targets.get(&key)?)));
            refused = self.install_all(again, path, now, &mut memo, &mut ops);
            self.refresh(path, &mut ops);
        }
        self.memo = if refused.is_empty() { Memo::new() } else { memo };
        Outcome { ops, refused }
    }

    /// When [`Self::apply`] has something to do though nothing changes: the end of a handover.
    pub fn deadline(&self) -> Option<Duration> {
        let running = self.installed.values().filter(|one| one.phase == Phase::Handover);
        running.map(|one| one.since.saturating_add(self.handover)).min()
    }

    /// The frontends that are installed, with their counters' index and their backends' ids.
    pub fn frontends(&self) -> impl Iterator<Item = FrontendState<'_>> {
        self.installed.iter().map(|(key, one)| FrontendState {
            key: *key,
            stats: one.stats,
            phase: one.phase,
            slots: &one.current.table.items,
            ids: &one.current.list.items,
        })
    }

    /// The backends that have an id, with their records.
    pub fn backends(&self) -> impl Iterator<Item = (u32, &BackendKey, &xdp_lb_abi::Backend)> {
        self.backends.iter()
    }

    /// What a backend id stands for.
    pub fn backend(&self, id: u32) -> Option<&BackendKey> {
        self.backends.key(id)
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

    fn refresh(&mut self, path: &impl Fn(&BackendKey) -> Path, ops: &mut Vec<Op>) {
        let unused = self.backends.refresh(path, ops);
        self.retired.extend(unused.into_iter().map(Retired::Backend));
    }

    /// Installs what differs; returns what could not be.
    fn install_all<'a>(
        &mut self,
        targets: impl IntoIterator<Item = (FrontendKey, &'a Target<'a>)>,
        path: &impl Fn(&BackendKey) -> Path,
        now: Duration,
        memo: &mut Memo,
        ops: &mut Vec<Op>,
    ) -> Vec<Refused> {
        let mut refused = Vec::new();
        for (key, target) in targets {
            let before = ops.len();
            if let Err(refusal) = self.install(key, target, path, now, memo, ops) {
                self.undo(ops.drain(before..));
                let (service, frontend) = (target.service.to_owned(), target.frontend);
                refused.push(Refused { service, frontend, refusal });
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
        target: &Target<'_>,
        path: &impl Fn(&BackendKey) -> Path,
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
        let keys = target.wanted.backends();
        let ids = self.backends.ids(&keys, path, ops).ok_or(Refusal::Backends)?;
        if let Some(one) = self.installed.get_mut(&key)
            && one.current.list.items[..] == ids[..]
            && one.current.table.items == slots
        {
            one.wanted = Some(target.wanted.clone());
            return Ok(());
        }
        let current = self.assign(&slots, &ids, ops).ok_or(Refusal::Slots)?;
        let result = match self.installed.remove(&key) {
            Some(one) => {
                let (next, result) = self.change(key, one, &current, now, ops);
                self.installed.insert(key, next);
                result
            }
            None => self.add(key, &current, now, ops),
        };
        match result {
            Ok(()) => {
                self.backends.acquire(&current.list.items, Use::Current);
                if let Some(one) = self.installed.get_mut(&key) {
                    one.wanted = Some(target.wanted.clone());
                }
            }
            Err(_) => self.cancel(&current),
        }
        result
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

    /// Puts a table and a list into the arena; nothing where there is no room.
    fn assign(&mut self, slots: &[u16], ids: &[u32], ops: &mut Vec<Op>) -> Option<Assignment> {
        let (list, write_list) = self.lists.acquire(ids, &mut self.arena)?;
        let Some((table, write_table)) = self.slots.acquire(slots, &mut self.arena) else {
            if let Some(range) = self.lists.release(&list) {
                self.arena.give_back(range);
            }
            return None;
        };
        if write_list {
            ops.push(Op::Arena { word: list.range.start, words: id_words(ids) });
        }
        if write_table {
            ops.push(Op::Arena { word: table.range.start, words: slot_words(slots) });
        }
        Some(Assignment { table, list })
    }

    fn add(
        &mut self,
        key: FrontendKey,
        current: &Assignment,
        now: Duration,
        ops: &mut Vec<Op>,
    ) -> Result<(), Refusal> {
        let stats = self.stats.take().ok_or(Refusal::Frontends)?;
        let Some(place) = self.places.take(&key) else {
            self.stats.give_back(stats);
            return Err(Refusal::Frontends);
        };
        let Some(record) = self.records.take() else {
            self.stats.give_back(stats);
            self.places.give_back(place);
            return Err(Refusal::Frontends);
        };
        let one = Installed {
            place,
            record,
            stats,
            current: current.clone(),
            previous: None,
            phase: Phase::Rest,
            wanted: None,
            since: now,
        };
        ops.push(Op::ResetFrontend { stats });
        publish(key, &one, ops);
        self.installed.insert(key, one);
        Ok(())
    }

    /// Moves a frontend to other backends; its flows stay where they are for the handover.
    fn change(
        &mut self,
        key: FrontendKey,
        one: Installed,
        current: &Assignment,
        now: Duration,
        ops: &mut Vec<Op>,
    ) -> (Installed, Result<(), Refusal>) {
        let Some(record) = self.records.take() else { return (one, Err(Refusal::Frontends)) };
        let next_previous = self.next_previous(&one, &current.list.items, ops);
        // What the next state uses is acquired before anything is released.
        if let Some(previous) = &next_previous {
            self.backends.acquire(&previous.list.items, Use::Previous);
        }
        let phase = if next_previous.is_some() { Phase::Handover } else { Phase::Rest };
        let next = Installed {
            record,
            current: current.clone(),
            previous: next_previous,
            phase,
            since: now,
            ..one.clone()
        };
        publish(key, &next, ops);
        self.backends.release(&one.current.list.items, Use::Current);
        self.discard(&one.current);
        self.release_previous(&one);
        self.retired.push(Retired::Record(one.record));
        (next, Ok(()))
    }

    /// The previous table of a frontend that changes now, where there are flows to keep.
    fn next_previous(
        &mut self,
        one: &Installed,
        next: &[u32],
        ops: &mut Vec<Op>,
    ) -> Option<Assignment> {
        let previous = one.previous.as_ref().unwrap_or(&one.current);
        if self.handover.is_zero() || previous.table.items.is_empty() {
            return None;
        }
        let (base, slots) = next_previous(one.phase, previous.view(), one.current.view(), next);
        let ids = match base {
            Base::Previous => previous.list.items.clone(),
            Base::Current => one.current.list.items.clone(),
        };
        // Without room the flows go where the new table says: the change itself matters more.
        self.assign(&slots, &ids, ops)
    }

    fn remove(&mut self, key: &FrontendKey, ops: &mut Vec<Op>) {
        let Some(one) = self.installed.remove(key) else { return };
        let Place { bucket, entry } = one.place;
        ops.push(Op::Publish { bucket, entry, value: FrontendEntry::new(*key, 0) });
        self.backends.release(&one.current.list.items, Use::Current);
        self.discard(&one.current);
        self.release_previous(&one);
        self.retired.extend([
            Retired::Record(one.record),
            Retired::Stats(one.stats),
            Retired::Place(one.place),
        ]);
    }

    /// After the handover only recorded flows are exceptions.
    fn end_handovers(&mut self, now: Duration, ops: &mut Vec<Op>) {
        let over: Vec<FrontendKey> = self
            .installed
            .iter()
            .filter(|(_, one)| {
                one.phase == Phase::Handover && now >= one.since.saturating_add(self.handover)
            })
            .map(|(key, _)| *key)
            .collect();
        for key in over {
            // Without a free record it is tried again at the next apply.
            let Some(record) = self.records.take() else { return };
            let Some(one) = self.installed.get_mut(&key) else { continue };
            self.retired.push(Retired::Record(one.record));
            one.record = record;
            one.phase = Phase::Exceptions;
            publish(key, one, ops);
        }
    }

    fn release_previous(&mut self, one: &Installed) {
        if let Some(previous) = &one.previous {
            self.backends.release(&previous.list.items, Use::Previous);
            self.discard(previous);
        }
    }

    /// One use less of an assignment's places in the arena.
    fn discard(&mut self, assignment: &Assignment) {
        let unused = self.release(assignment);
        self.retired.extend(unused.map(Retired::Words));
    }

    /// Takes an assignment back that was never published.
    fn cancel(&mut self, assignment: &Assignment) {
        for range in self.release(assignment) {
            self.arena.give_back(range);
        }
    }

    /// The ranges that nobody uses when this assignment does not.
    fn release(&mut self, assignment: &Assignment) -> impl Iterator<Item = Range> + use<> {
        let list = self.lists.release(&assignment.list);
        list.into_iter().chain(self.slots.release(&assignment.table))
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
        ids: &[u32],
        first_id_word: u32,
    ) -> Option<Assignment> {
        let list = self.lists.adopt(ids, first_id_word, &mut self.arena)?;
        let table = self.slots.adopt(slots, first_slot_word, &mut self.arena)?;
        Some(Assignment { table, list })
    }

    pub(crate) fn insert_adopted(&mut self, key: FrontendKey, one: Installed) {
        self.backends.acquire(&one.current.list.items, Use::Current);
        if let Some(previous) = &one.previous {
            self.backends.acquire(&previous.list.items, Use::Previous);
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
    /// The current table
    pub slots: &'a [u16],
    /// The backends that its slots name, by index
    pub ids: &'a [u32],
}

/// Entries that `SERVICES` needs: none for index 0, and two for each frontend.
pub fn record_count(layout: &Layout) -> u32 {
    layout.frontends.saturating_mul(2).saturating_add(1)
}

/// Writes a frontend's record, then makes it current.
fn publish(key: FrontendKey, one: &Installed, ops: &mut Vec<Op>) {
    let none = Table::new(0, 0, 0, 0);
    let previous = one.previous.as_ref().map_or(none, Assignment::record);
    let service = Record::new(one.current.record(), previous, one.phase, one.stats);
    ops.push(Op::Service { index: one.record, service });
    let Place { bucket, entry } = one.place;
    ops.push(Op::Publish { bucket, entry, value: FrontendEntry::new(key, one.record) });
}
