//! What a frontend's packets are chosen by.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{IDS_PER_WORD, SLOTS_PER_WORD};

/// A Maglev table in the arena and the backends that its slots name, 16 bytes.
///
/// Slots and ids lie in `ARENA`, four and two to a word, lowest bits first.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Table {
    slots: u32,
    size: u32,
    list: u32,
    length: u32,
}
const _: () = assert!(size_of::<Table>() == 16);

impl Table {
    /// In a slot of a previous table: flows of this slot may be recorded, so look them up even
    /// where both tables name the same backend.
    pub const LOOK_UP: u16 = 0x8000;
    /// In a slot of a previous table: its backend takes no more packets.
    pub const GONE: u16 = 0x7fff;

    /// `size` slots from word `slots` of the arena on; `length` backend ids from word `list` on.
    pub const fn new(slots: u32, size: u32, list: u32, length: u32) -> Self {
        Self { slots, size, list, length }
    }

    /// Number of slots, M of the Maglev paper; 0 where there is no table.
    #[inline(always)]
    pub const fn size(&self) -> u32 {
        self.size
    }

    /// First word of the slots.
    pub const fn slots(&self) -> u32 {
        self.slots
    }

    /// First word of the backend list.
    pub const fn list(&self) -> u32 {
        self.list
    }

    /// Number of backends in the list.
    #[inline(always)]
    pub const fn length(&self) -> u32 {
        self.length
    }

    /// The slot of a flow: `hash × M >> 32`, so that no division is needed.
    #[inline(always)]
    pub const fn slot(&self, hash: u32) -> u32 {
        ((hash as u64 * self.size as u64) >> 32) as u32
    }

    /// Where slot `slot` lies: the arena's word, and how far to shift it right.
    #[inline(always)]
    pub const fn locate_slot(&self, slot: u32) -> (u32, u32) {
        (self.slots.wrapping_add(slot / SLOTS_PER_WORD), slot % SLOTS_PER_WORD * 16)
    }

    /// Where the id of backend `index` lies: the arena's word, and how far to shift it right.
    #[inline(always)]
    pub const fn locate_id(&self, index: u32) -> (u32, u32) {
        (self.list.wrapping_add(index / IDS_PER_WORD), index % IDS_PER_WORD * 32)
    }
}

/// How a service treats flows that its tables disagree on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Phase {
    /// One table; no flow is looked up.
    Rest = 0,
    /// Unknown flows in mid-stream belong to the previous table, new ones to the current one; both
    /// are recorded.
    Handover = 1,
    /// Unknown flows belong to the current table; only recorded ones are exceptions.
    Exceptions = 2,
}

/// What a frontend's packets are chosen by, 56 bytes.
///
/// A record never changes once a [`crate::FrontendEntry`] names it: a change writes a new record
/// and then moves the entry, so no packet sees half of it.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Service {
    current: Table,
    previous: Table,
    stats: u32,
    phase: u8,
    flags: u8,
    draining: u16,
    sources: u32,
    affinity: u32,
    started: u64,
}
const _: () = assert!(size_of::<Service>() == 56);

impl Service {
    const REJECT: u8 = 1;
    const SWITCHED: u8 = 2;

    /// A service at rest.
    ///
    /// `stats` is the frontend's index into `FRONTEND_STATS`.
    pub const fn at_rest(current: Table, stats: u32) -> Self {
        let none = Table::new(0, 0, 0, 0);
        Self::new(current, none, Phase::Rest, stats)
    }

    /// A service in any phase.
    pub const fn new(current: Table, previous: Table, phase: Phase, stats: u32) -> Self {
        Self {
            current,
            previous,
            stats,
            phase: phase as u8,
            flags: 0,
            draining: 0,
            sources: 0,
            affinity: 0,
            started: 0,
        }
    }

    /// The same service with another index into `FRONTEND_STATS`.
    pub const fn with_stats(mut self, stats: u32) -> Self {
        self.stats = stats;
        self
    }

    /// The same service, choosing by the client's address alone: a client keeps its backend until it
    /// was silent for this many seconds. 0 chooses by the flow.
    pub const fn with_affinity(mut self, seconds: u32) -> Self {
        self.affinity = seconds;
        self
    }

    /// The same service, answering or dropping what it has no backend for.
    pub const fn with_reject(mut self, reject: bool) -> Self {
        self.flags = if reject { self.flags | Self::REJECT } else { self.flags & !Self::REJECT };
        self
    }

    /// The same service, whose session affinity was switched on or off since its previous table.
    ///
    /// What picks a slot of the current table, the flow or the client's address alone, does not pick
    /// one of the previous table then: the other one does.
    pub const fn with_switched(mut self, switched: bool) -> Self {
        let others = self.flags & !Self::SWITCHED;
        self.flags = if switched { others | Self::SWITCHED } else { others };
        self
    }

    /// The same service with a number of `SOURCES` whose networks alone may use it; 0 lets all.
    pub const fn with_sources(mut self, sources: u32) -> Self {
        self.sources = sources;
        self
    }

    /// The same service, of whose backends `count` take no new flows.
    ///
    /// Their ids follow the current table's list in the arena, in ascending order: they are what the
    /// list has from index [`Table::length`] on.
    pub const fn with_draining(mut self, count: u16) -> Self {
        self.draining = count;
        self
    }

    /// The same service, which left its rest at `started` (nanoseconds of the kernel's monotonic
    /// clock): a flow's record that is older is of an earlier handover, and says nothing.
    pub const fn with_started(mut self, started: u64) -> Self {
        self.started = started;
        self
    }

    /// The table for new flows.
    #[inline(always)]
    pub const fn current(&self) -> &Table {
        &self.current
    }

    /// The table that flows from before the last change belong to.
    #[inline(always)]
    pub const fn previous(&self) -> &Table {
        &self.previous
    }

    /// Index into `FRONTEND_STATS`.
    #[inline(always)]
    pub const fn stats(&self) -> u32 {
        self.stats
    }

    /// How many seconds a silent client keeps its backend, where the client's address alone decides
    /// (session affinity); 0 where the flow decides.
    #[inline(always)]
    pub const fn affinity(&self) -> u32 {
        self.affinity
    }

    /// Whether a packet is answered (TCP RST, ICMP port unreachable) where there is no backend; it
    /// is dropped otherwise.
    #[inline(always)]
    pub const fn reject(&self) -> bool {
        self.flags & Self::REJECT != 0
    }

    /// Whether the previous table's slots are picked by the other hash; see
    /// [`Service::with_switched`].
    #[inline(always)]
    pub const fn switched(&self) -> bool {
        self.flags & Self::SWITCHED != 0
    }

    /// Number in `SOURCES` of the networks that may use it; 0 where all may.
    #[inline(always)]
    pub const fn sources(&self) -> u32 {
        self.sources
    }

    /// How many backends take no new flows; see [`Service::with_draining`].
    #[inline(always)]
    pub const fn draining(&self) -> u16 {
        self.draining
    }

    /// Records of flows that are older do not count; see [`Service::with_started`].
    #[inline(always)]
    pub const fn started(&self) -> u64 {
        self.started
    }

    /// The phase; a byte that is none counts as rest.
    #[inline(always)]
    pub const fn phase(&self) -> Phase {
        match self.phase {
            1 => Phase::Handover,
            2 => Phase::Exceptions,
            _ => Phase::Rest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_hash_has_a_slot_inside_the_table() {
        for size in [1, 251, 131_071] {
            let table = Table::new(8, size, 0, 0);
            assert_eq!(table.slot(0), 0);
            assert_eq!(table.slot(u32::MAX), size - 1);
        }
    }

    #[test]
    fn four_slots_and_two_ids_share_a_word() {
        let table = Table::new(100, 251, 50, 9);
        assert_eq!([0, 3, 4].map(|slot| table.locate_slot(slot)), [(100, 0), (100, 48), (101, 0)]);
        assert_eq!([0, 1, 8].map(|index| table.locate_id(index)), [(50, 0), (50, 32), (54, 0)]);
    }
}
