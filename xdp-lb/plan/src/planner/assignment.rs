//! A Maglev table with the list of backends that its slots name, as they lie in the arena.

use xdp_lb_abi::Table;

use crate::{handover::View, shared::Stored};

/// A table and the list of backends that its slots name.
#[derive(Clone, Debug)]
pub(crate) struct Assignment {
    pub(crate) table: Stored<u16>,
    /// The backends, then those that take no new flows
    pub(crate) list: Stored<u32>,
    /// How many backends there are
    pub(crate) members: usize,
}

impl Assignment {
    /// The backends, which slots name by index.
    pub(crate) fn ids(&self) -> &[u32] {
        self.list.items.get(..self.members).unwrap_or(&self.list.items)
    }

    /// The backends that take no new flows, in ascending order: those that no slot names, and those
    /// that the service has in another mode now.
    pub(crate) fn draining(&self) -> &[u32] {
        self.list.items.get(self.members..).unwrap_or_default()
    }

    pub(crate) fn view(&self) -> View<'_> {
        View { slots: &self.table.items, ids: self.ids() }
    }

    /// Whether every slot names a backend of the list; those of a `previous` table may be marked,
    /// or have lost theirs.
    pub(crate) fn is_sound(&self, previous: bool) -> bool {
        self.table.items.iter().all(|&slot| {
            let index = if previous { slot & !Table::LOOK_UP } else { slot };
            usize::from(index) < self.members || previous && index == Table::GONE
        })
    }

    pub(crate) fn record(&self) -> Table {
        let (slots, list) = (self.table.range.start, self.list.range.start);
        Table::new(slots, self.table.items.len() as u32, list, self.members as u32)
    }
}

/// The backends of a list that no slot names, and `former` ones, in ascending order.
pub(super) fn draining(slots: &[u16], ids: &[u32], former: &[u32]) -> Vec<u32> {
    let mut named = vec![false; ids.len()];
    for slot in slots {
        if let Some(named) = named.get_mut(usize::from(*slot)) {
            *named = true;
        }
    }
    let mut draining: Vec<u32> =
        ids.iter().zip(named).filter(|(_, named)| !named).map(|(id, _)| *id).collect();
    draining.extend(former);
    draining.sort_unstable();
    draining
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_without_a_slot_are_draining() {
        assert_eq!(draining(&[1, 2, 1], &[9, 5, 7, 3], &[]), [3, 9]);
        assert_eq!(draining(&[0, 1], &[9, 5], &[7]), [7]);
        assert_eq!(draining(&[], &[9, 5], &[7]), [5, 7, 9]);
    }
}
