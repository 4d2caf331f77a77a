//! Hands out ranges of the arena, and single indices of the other arrays.

use std::collections::{BTreeMap, VecDeque};

/// A range of consecutive entries.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub(crate) struct Range {
    /// First entry
    pub(crate) start: u32,
    /// Number of entries; not 0
    pub(crate) length: u32,
}

/// The free ranges of an array.
#[derive(Clone, Debug)]
pub(crate) struct Arena {
    free: BTreeMap<u32, u32>,
    capacity: u32,
}

impl Arena {
    /// `capacity` entries, all free.
    pub(crate) fn new(capacity: u32) -> Self {
        let free = if capacity == 0 { BTreeMap::new() } else { BTreeMap::from([(0, capacity)]) };
        Self { free, capacity }
    }

    /// Number of entries, free or not.
    pub(crate) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Number of free entries.
    pub(crate) fn free(&self) -> u32 {
        self.free.values().sum()
    }

    /// The smallest free range that has `length` entries, cut to size; nothing where none is left.
    pub(crate) fn take(&mut self, length: u32) -> Option<Range> {
        let (&start, &found) = self
            .free
            .iter()
            .filter(|&(_, &found)| found >= length)
            .min_by_key(|&(start, found)| (*found, *start))?;
        self.free.remove(&start);
        if found > length {
            self.free.insert(start + length, found - length);
        }
        Some(Range { start, length })
    }

    /// Takes exactly this range; `false` where part of it is not free.
    pub(crate) fn claim(&mut self, range: Range) -> bool {
        let Some((&start, &length)) = self.free.range(..=range.start).next_back() else {
            return false;
        };
        let (end, wanted_end) = (start + length, range.start.saturating_add(range.length));
        if wanted_end > end {
            return false;
        }
        self.free.remove(&start);
        if start < range.start {
            self.free.insert(start, range.start - start);
        }
        if wanted_end < end {
            self.free.insert(wanted_end, end - wanted_end);
        }
        true
    }

    /// Gives a range back, and joins it with its free neighbours.
    pub(crate) fn give_back(&mut self, range: Range) {
        let Range { mut start, mut length } = range;
        if let Some((&before, &before_length)) = self.free.range(..start).next_back()
            && before + before_length == start
        {
            self.free.remove(&before);
            start = before;
            length += before_length;
        }
        if let Some(after_length) = self.free.remove(&(start + length)) {
            length += after_length;
        }
        self.free.insert(start, length);
    }
}

/// The free indices of an array; the one that was free the longest goes first, so that what still
/// names its last owner has the most time to vanish.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    free: VecDeque<u32>,
    next: u32,
    end: u32,
}

impl Pool {
    /// The indices `start..end`.
    pub(crate) fn new(start: u32, end: u32) -> Self {
        Self { free: VecDeque::new(), next: start, end }
    }

    /// A free index.
    pub(crate) fn take(&mut self) -> Option<u32> {
        if self.next < self.end {
            self.next += 1;
            return Some(self.next - 1);
        }
        self.free.pop_front()
    }

    /// Whether `count` more indices are free.
    pub(crate) fn has(&self, count: usize) -> bool {
        (self.end - self.next) as usize + self.free.len() >= count
    }

    /// Gives an index back.
    pub(crate) fn give_back(&mut self, index: u32) {
        self.free.push_back(index);
    }

    /// Takes these indices, in ascending order and before anything else was taken; `false` where
    /// one is out of range.
    pub(crate) fn claim(&mut self, indices: impl IntoIterator<Item = u32>) -> bool {
        for index in indices {
            if index < self.next || index >= self.end {
                return false;
            }
            while self.next < index {
                self.free.push_back(self.next);
                self.next += 1;
            }
            self.next = index + 1;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_never_overlap_and_all_come_back(
            steps in prop::collection::vec((1_u32..40, any::<prop::sample::Index>(), any::<bool>()), 1..200),
        ) {
            let mut arena = Arena::new(500);
            let mut taken: Vec<Range> = Vec::new();
            for (length, index, give) in steps {
                if give && !taken.is_empty() {
                    arena.give_back(taken.swap_remove(index.index(taken.len())));
                } else if let Some(range) = arena.take(length) {
                    prop_assert_eq!(range.length, length);
                    for other in &taken {
                        prop_assert!(range.start + length <= other.start || other.start + other.length <= range.start);
                    }
                    taken.push(range);
                }
                let used: u32 = taken.iter().map(|range| range.length).sum();
                prop_assert_eq!(arena.free(), 500 - used);
            }
            // Claiming what is taken in a fresh arena gives the same arena.
            let mut fresh = Arena::new(500);
            for range in &taken {
                prop_assert!(fresh.claim(*range));
                prop_assert!(!fresh.claim(*range));
            }
            prop_assert_eq!(&fresh.free, &arena.free);
            for range in taken {
                arena.give_back(range);
            }
            prop_assert_eq!(arena.take(500), Some(Range { start: 0, length: 500 }));
        }
    }

    #[test]
    fn a_pool_gives_every_index_once() {
        let mut pool = Pool::new(1, 4);
        assert_eq!(
            [pool.take(), pool.take(), pool.take(), pool.take()],
            [Some(1), Some(2), Some(3), None]
        );
        pool.give_back(2);
        assert!(pool.has(1) && !pool.has(2));
        assert_eq!([pool.take(), pool.take()], [Some(2), None]);
    }

    #[test]
    fn a_pool_can_start_with_some_indices_taken() {
        let mut pool = Pool::new(1, 6);
        assert!(pool.claim([2, 4]));
        assert!(!pool.clone().claim([6]) && !Pool::new(1, 6).claim([0]));
        let mut rest: Vec<u32> = std::iter::from_fn(|| pool.take()).collect();
        rest.sort_unstable();
        assert_eq!(rest, [1, 3, 5]);
    }
}
