//! The previous table of a service whose backends change.
//!
//! At rest a flow's hash alone says where it belongs. A change leaves two tables, and the flow table
//! records which flow belongs where, for every flow whose slot the two disagree on. A further change
//! must then look up every flow that may have been recorded, also where the next pair of tables
//! happens to agree: those slots of the previous table carry [`Table::LOOK_UP`].

use std::collections::BTreeSet;

use xdp_lb_abi::{Phase, Table};

/// Slots, and the backend ids that they name by index.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    /// Indices into `ids`, perhaps with [`Table::LOOK_UP`]
    pub(crate) slots: &'a [u16],
    /// Backend ids
    pub(crate) ids: &'a [u32],
}

impl View<'_> {
    /// The backend of a slot; nothing where the slot names none.
    pub(crate) fn owner(&self, slot: usize) -> Option<u32> {
        self.ids.get(usize::from(self.slots[slot] & !Table::LOOK_UP)).copied()
    }

    fn marked(&self, slot: usize) -> bool {
        self.slots[slot] & Table::LOOK_UP != 0
    }
}

/// Where the flows belong that a service has when its backends change again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Base {
    /// The table before the last change
    Previous,
    /// The table of the last change
    Current,
}

/// The two tables of a service.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tables<'a> {
    /// That of flows from before the last change
    pub(crate) previous: View<'a>,
    /// That of new flows
    pub(crate) current: View<'a>,
    /// Something else picks the one's slots than the other's.
    pub(crate) switched: bool,
}

/// The slots of the next previous table, for a service in `phase` with these two tables whose next
/// backends are `next`.
///
/// A backend that is not among them has no slot any more. That its record says whether it serves is
/// not enough: it may serve another service, or return.
pub(crate) fn next_previous(phase: Phase, tables: &Tables<'_>, next: &[u32]) -> (Base, Vec<u16>) {
    let (base, mut slots) = marked(phase, tables);
    let ids = match base {
        Base::Previous => tables.previous.ids,
        Base::Current => tables.current.ids,
    };
    let next: BTreeSet<u32> = next.iter().copied().collect();
    let stays: Vec<bool> = ids.iter().map(|id| next.contains(id)).collect();
    for slot in &mut slots {
        let index = usize::from(*slot & !Table::LOOK_UP);
        if !stays.get(index).is_some_and(|stays| *stays) {
            *slot |= Table::GONE;
        }
    }
    (base, slots)
}

/// The base's slots, with marks.
fn marked(phase: Phase, tables: &Tables<'_>) -> (Base, Vec<u16>) {
    match phase {
        Phase::Rest => (Base::Current, tables.current.slots.to_vec()),
        // No flow belongs to the current table; those that are left are all recorded.
        Phase::Handover | Phase::Exceptions if tables.current.slots.is_empty() => {
            (Base::Previous, mark_all(tables.previous))
        }
        // Flows that were not seen yet still belong to the previous table.
        Phase::Handover => (Base::Previous, mark(Base::Previous, tables)),
        // Unknown flows belong to the current one.
        Phase::Exceptions => (Base::Current, mark(Base::Current, tables)),
    }
}

fn mark_all(table: View<'_>) -> Vec<u16> {
    table.slots.iter().map(|slot| slot | Table::LOOK_UP).collect()
}

/// The base's slots, marked where `previous` and `current` disagree or `previous` is marked.
fn mark(base: Base, tables: &Tables<'_>) -> Vec<u16> {
    let &Tables { previous, current, switched } = tables;
    let table = match base {
        Base::Previous => previous,
        Base::Current => current,
    };
    // A flow may have any slot of the one and any slot of the other.
    if switched {
        return mark_all(table);
    }
    let mut slots: Vec<u16> = table.slots.iter().map(|slot| slot & !Table::LOOK_UP).collect();
    for_overlaps(previous.slots.len(), current.slots.len(), |p, c| {
        if previous.marked(p) || previous.owner(p) != current.owner(c) {
            let slot = match base {
                Base::Previous => p,
                Base::Current => c,
            };
            slots[slot] |= Table::LOOK_UP;
        }
    });
    slots
}

/// Calls `visit` for every pair of slots, of tables of `a` and `b` slots, that share a hash.
///
/// Slot `i` of `a` has the hashes from `i / a` to `(i + 1) / a` of the whole range, give or take
/// one; pairs that only touch are visited too, since rounding may let them share a hash.
fn for_overlaps(a: usize, b: usize, mut visit: impl FnMut(usize, usize)) {
    if a == b {
        (0..a).for_each(|slot| visit(slot, slot));
        return;
    }
    for i in 0..a {
        let first = i * b / a;
        let last = ((i + 1) * b / a).min(b - 1);
        (first..=last).for_each(|j| visit(i, j));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn both<'a>(previous: View<'a>, current: View<'a>) -> Tables<'a> {
        Tables { previous, current, switched: false }
    }

    #[test]
    fn a_service_at_rest_starts_from_its_table() {
        let view = View { slots: &[0, 1, 0], ids: &[7, 8] };
        let next = next_previous(Phase::Rest, &both(view, view), &[7, 8, 9]);
        assert_eq!(next, (Base::Current, vec![0, 1, 0]));
    }

    #[test]
    fn a_removed_backend_has_no_slot_any_more() {
        let view = View { slots: &[0, 1, 0], ids: &[7, 8] };
        let gone = Table::GONE;
        let next = next_previous(Phase::Rest, &both(view, view), &[8, 9]);
        assert_eq!(next, (Base::Current, vec![gone, 1, gone]));
        // It returns, but whose flow the slot's flows are is only known where they are recorded.
        let previous = View { slots: &[gone, 1, gone], ids: &[7, 8] };
        let current = View { slots: &[0, 0, 1], ids: &[8, 9] };
        let next = next_previous(Phase::Handover, &both(previous, current), &[7, 8, 9]);
        let marked = gone | Table::LOOK_UP;
        assert_eq!(next, (Base::Previous, vec![marked, 1, marked]));
    }

    #[test]
    fn a_change_back_still_looks_up_what_was_recorded() {
        let before = View { slots: &[0, 1, 0, 1], ids: &[7, 8] };
        let between = View { slots: &[0, 0, 0, 0], ids: &[7] };
        let (base, slots) = next_previous(Phase::Handover, &both(before, between), &[7, 8]);
        assert_eq!(base, Base::Previous);
        let marked = Table::LOOK_UP;
        assert_eq!(slots, [0, 1 | marked, 0, 1 | marked]);
    }

    #[test]
    fn flows_of_a_drained_service_still_belong_to_the_table_before() {
        let before = View { slots: &[0, 1, 0, 1], ids: &[7, 8] };
        let drained = View { slots: &[], ids: &[7, 8] };
        let all = [0, 1, 0, 1].map(|slot| slot | Table::LOOK_UP).to_vec();
        for phase in [Phase::Handover, Phase::Exceptions] {
            let next = next_previous(phase, &both(before, drained), &[7, 8]);
            assert_eq!(next, (Base::Previous, all.clone()));
        }
    }

    #[test]
    fn after_the_handover_unknown_flows_belong_to_the_current_table() {
        let before = View { slots: &[0, 1, 0, 1], ids: &[7, 8] };
        let now = View { slots: &[0, 0, 0, 0], ids: &[7] };
        let (base, slots) = next_previous(Phase::Exceptions, &both(before, now), &[7, 8]);
        assert_eq!(base, Base::Current);
        assert_eq!(slots, [0, Table::LOOK_UP, 0, Table::LOOK_UP]);
    }

    #[test]
    fn where_affinity_was_switched_any_flow_may_be_recorded() {
        let before = View { slots: &[0, 1, 0], ids: &[7, 8] };
        let now = View { slots: &[1, 1, 0], ids: &[7, 8] };
        let tables = Tables { previous: before, current: now, switched: true };
        for (phase, base, slots) in [
            (Phase::Handover, Base::Previous, [0, 1, 0]),
            (Phase::Exceptions, Base::Current, [1, 1, 0]),
        ] {
            let marked = slots.map(|slot| slot | Table::LOOK_UP).to_vec();
            assert_eq!(next_previous(phase, &tables, &[7, 8]), (base, marked));
        }
    }

    proptest! {
        #[test]
        fn every_hash_is_in_a_visited_pair(hash: u32, sizes in prop::sample::select(vec![
            (1, 251), (251, 1021), (1021, 251), (251, 251), (4093, 1021), (1, 1),
        ])) {
            let (a, b) = sizes;
            let table = |size| Table::new(0, size, 0, 0).slot(hash) as usize;
            let pair = (table(a), table(b));
            let mut seen = false;
            for_overlaps(a as usize, b as usize, |i, j| seen |= (i, j) == pair);
            prop_assert!(seen);
        }
    }
}
