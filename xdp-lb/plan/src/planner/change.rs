//! The life of one frontend's entry: added, changed, handed over, removed.

use std::time::Duration;

use xdp_lb_abi::{FrontendEntry, FrontendKey, Phase, Service, Table};

use super::{Assignment, Installed, Planner, Previous, Retired};
use crate::{
    arena::Range,
    backends::Use,
    frontends::Place,
    handover::{Base, Tables, next_previous},
    op::Op,
    outcome::Refusal,
    shared::{id_words, slot_words},
    target::Wanted,
};

impl Planner {
    /// Puts a table, its list and, for a current one, what is [`draining`](super::draining) into the
    /// arena; nothing where there is no room.
    pub(super) fn assign(
        &mut self,
        slots: &[u16],
        mut ids: Vec<u32>,
        draining: Vec<u32>,
        ops: &mut Vec<Op>,
    ) -> Option<Assignment> {
        let members = ids.len();
        ids.extend(draining);
        let (list, write_list) = self.lists.acquire(&ids, &mut self.arena)?;
        let Some((table, write_table)) = self.slots.acquire(slots, &mut self.arena) else {
            if let Some(range) = self.lists.release(&list) {
                self.arena.give_back(range);
            }
            return None;
        };
        if write_list {
            ops.push(Op::Arena { word: list.range.start, words: id_words(&ids) });
        }
        if write_table {
            ops.push(Op::Arena { word: table.range.start, words: slot_words(slots) });
        }
        Some(Assignment { table, list, members })
    }

    pub(super) fn add(
        &mut self,
        key: FrontendKey,
        wanted: &Wanted,
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
            traits: wanted.traits,
            wanted: None,
            since: now,
            phase_since: now,
            started: 0,
        };
        ops.push(Op::ResetFrontend { stats });
        publish(key, &one, ops);
        self.installed.insert(key, one);
        Ok(())
    }

    /// Moves a frontend to other backends; its flows stay where they are for the handover.
    pub(super) fn change(
        &mut self,
        key: FrontendKey,
        one: Installed,
        wanted: &Wanted,
        current: &Assignment,
        now: Duration,
        ops: &mut Vec<Op>,
    ) -> (Installed, Result<(), Refusal>) {
        let Some(record) = self.records.take() else { return (one, Err(Refusal::Frontends)) };
        let next_previous = self.next_previous(&one, &current.list.items, ops);
        // What the next state uses is acquired before anything is released.
        if let Some(previous) = &next_previous {
            self.backends.acquire(previous.assignment.ids(), Use::Previous);
        }
        let phase = if next_previous.is_some() { Phase::Handover } else { Phase::Rest };
        let next = Installed {
            record,
            current: current.clone(),
            previous: next_previous,
            phase,
            traits: wanted.traits,
            since: now,
            phase_since: now,
            started: if one.phase == Phase::Rest { nanoseconds(now) } else { one.started },
            ..one.clone()
        };
        publish(key, &next, ops);
        self.release_current(&one.current);
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
    ) -> Option<Previous> {
        let (previous, picked) = match &one.previous {
            Some(previous) => (&previous.assignment, previous.picks),
            None => (&one.current, one.traits.picks()),
        };
        if self.handover.is_zero() || previous.table.items.is_empty() {
            return None;
        }
        let tables = Tables {
            previous: previous.view(),
            current: one.current.view(),
            switched: one.switched(),
        };
        let (base, slots) = next_previous(one.phase, &tables, next);
        let (ids, picks) = match base {
            Base::Previous => (previous.ids().to_vec(), picked),
            Base::Current => (one.current.ids().to_vec(), one.traits.picks()),
        };
        // Without room the flows go where the new table says: the change itself matters more.
        let assignment = self.assign(&slots, ids, Vec::new(), ops)?;
        Some(Previous { assignment, picks })
    }

    pub(super) fn remove(&mut self, key: &FrontendKey, ops: &mut Vec<Op>) {
        let Some(one) = self.installed.remove(key) else { return };
        let Place { bucket, entry } = one.place;
        ops.push(Op::Publish { bucket, entry, value: FrontendEntry::new(*key, 0) });
        self.release_current(&one.current);
        self.release_previous(&one);
        self.retired.extend([
            Retired::Record(one.record),
            Retired::Stats(one.stats),
            Retired::Place(one.place),
        ]);
    }

    /// After the handover only recorded flows are exceptions.
    pub(super) fn end_handovers(&mut self, now: Duration, ops: &mut Vec<Op>) {
        let over: Vec<FrontendKey> = self
            .installed
            .iter()
            .filter(|(_, one)| one.phase == Phase::Handover && now >= self.end_of_handover(one))
            .map(|(key, _)| *key)
            .collect();
        for key in over {
            // Without a free record it is tried again at the next apply.
            let Some(record) = self.records.take() else { return };
            let Some(one) = self.installed.get_mut(&key) else { continue };
            self.retired.push(Retired::Record(one.record));
            one.record = record;
            one.phase = Phase::Exceptions;
            one.phase_since = now;
            publish(key, one, ops);
        }
    }

    pub(super) fn release_current(&mut self, current: &Assignment) {
        self.backends.release(current.ids(), Use::Current);
        self.backends.release(current.draining(), Use::Draining);
        self.discard(current);
    }

    pub(super) fn release_previous(&mut self, one: &Installed) {
        if let Some(previous) = &one.previous {
            self.backends.release(previous.assignment.ids(), Use::Previous);
            self.discard(&previous.assignment);
        }
    }

    /// One use less of an assignment's places in the arena.
    fn discard(&mut self, assignment: &Assignment) {
        let unused = self.release(assignment);
        self.retired.extend(unused.map(Retired::Words));
    }

    /// Takes an assignment back that was never published.
    pub(super) fn cancel(&mut self, assignment: &Assignment) {
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

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Writes a frontend's record, then makes it current.
pub(super) fn publish(key: FrontendKey, one: &Installed, ops: &mut Vec<Op>) {
    let none = Table::new(0, 0, 0, 0);
    let previous = one.previous.as_ref().map_or(none, |previous| previous.assignment.record());
    let service = Service::new(one.current.record(), previous, one.phase, one.stats)
        .with_affinity(one.traits.affinity)
        .with_reject(one.traits.reject)
        .with_switched(one.switched())
        .with_sources(one.traits.sources)
        .with_draining(one.current.draining().len() as u16)
        .with_started(one.started);
    ops.push(Op::Service { index: one.record, service });
    let Place { bucket, entry } = one.place;
    ops.push(Op::Publish { bucket, entry, value: FrontendEntry::new(key, one.record) });
}
