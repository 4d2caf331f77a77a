//! Turns what users want into operations on the tables, and remembers what the tables hold.

mod change;
mod drift;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use xdp_lb_abi::{FrontendKey, IDS_PER_WORD, Phase, SLOTS_PER_WORD, Table};

use crate::{
    arena::{Arena, Pool, Range},
    backends::{BackendKey, Backends, Path, Use},
    frontends::{Place, Places},
    handover::View,
    maglev::{self, Candidate, HashKey},
    model::Service,
    op::Op,
    outcome::{Outcome, Refusal, Refused},
    shared::{Shared, Stored},
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
    /// `path` says how packets get to a backend; where it says nothing, the last way known stays.
    ///
    /// The same input twice gives no operation the second time. A frontend that cannot be served
    /// stays as it was, and the others go on. `now` is any clock that never goes back.
    pub fn apply(
        &mut self,
        services: &[Service],
        path: &impl Fn(&BackendKey) -> Option<Path>,
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

    fn refresh(&mut self, path: &impl Fn(&BackendKey) -> Option<Path>, ops: &mut Vec<Op>) {
        let unused = self.backends.refresh(path, ops);
        self.retired.extend(unused.into_iter().map(Retired::Backend));
    }

    /// Installs what differs; returns what could not be.
    fn install_all<'a>(
        &mut self,
        targets: impl IntoIterator<Item = (FrontendKey, &'a Target<'a>)>,
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
