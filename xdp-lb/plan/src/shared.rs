//! Contents of the arena that several services share: equal contents lie there once.

use std::{collections::HashMap, hash::Hash, sync::Arc};

use crate::arena::{Arena, Range};

/// Contents that lie in the arena.
#[derive(Clone, Debug)]
pub(crate) struct Stored<T> {
    /// What lies there
    pub(crate) items: Arc<[T]>,
    /// Where it lies, in words of the arena
    pub(crate) range: Range,
}

/// Contents of one kind by what they are, with how often each is used.
#[derive(Clone, Debug)]
pub(crate) struct Shared<T> {
    stored: HashMap<Arc<[T]>, (Range, usize)>,
    per_word: usize,
}

impl<T: Clone + Eq + Hash> Shared<T> {
    /// Nothing yet; `per_word` items fit in a word of the arena.
    pub(crate) fn new(per_word: u32) -> Self {
        Self { stored: HashMap::new(), per_word: per_word as usize }
    }

    /// One more use of these contents; `true` where they must be written to their range first.
    ///
    /// Nothing where the arena has no room for them.
    pub(crate) fn acquire(&mut self, items: &[T], arena: &mut Arena) -> Option<(Stored<T>, bool)> {
        if let Some((items, (range, uses))) =
            self.stored.get_key_value(items).map(|(k, v)| (k.clone(), *v))
        {
            self.stored.insert(items.clone(), (range, uses + 1));
            return Some((Stored { items, range }, false));
        }
        let range = arena.take(self.words(items.len()))?;
        let items: Arc<[T]> = items.into();
        self.stored.insert(items.clone(), (range, 1));
        Some((Stored { items, range }, true))
    }

    /// One more use of contents that lie in the arena already; `None` where the range is not free.
    pub(crate) fn adopt(
        &mut self,
        items: &[T],
        start: u32,
        arena: &mut Arena,
    ) -> Option<Stored<T>> {
        let range = Range { start, length: self.words(items.len()) };
        if let Some((known, (place, uses))) =
            self.stored.get_key_value(items).map(|(k, v)| (k.clone(), *v))
        {
            if place != range {
                return None;
            }
            self.stored.insert(known.clone(), (place, uses + 1));
            return Some(Stored { items: known, range });
        }
        if !arena.claim(range) {
            return None;
        }
        let items: Arc<[T]> = items.into();
        self.stored.insert(items.clone(), (range, 1));
        Some(Stored { items, range })
    }

    /// One use less; the range that nobody uses any more.
    pub(crate) fn release(&mut self, stored: &Stored<T>) -> Option<Range> {
        let (range, uses) = self.stored.get_mut(&stored.items)?;
        *uses -= 1;
        if *uses > 0 {
            return None;
        }
        let range = *range;
        self.stored.remove(&stored.items);
        Some(range)
    }

    fn words(&self, items: usize) -> u32 {
        // A range is never empty: even the empty list has a place.
        items.div_ceil(self.per_word).max(1) as u32
    }
}

/// Slots as words of the arena, lowest bits first.
pub(crate) fn slot_words(slots: &[u16]) -> Vec<u64> {
    slots
        .chunks(4)
        .map(|chunk| chunk.iter().rev().fold(0, |word, slot| word << 16 | u64::from(*slot)))
        .collect()
}

/// Backend ids as words of the arena, lowest bits first.
pub(crate) fn id_words(ids: &[u32]) -> Vec<u64> {
    ids.chunks(2)
        .map(|chunk| chunk.iter().rev().fold(0, |word, id| word << 32 | u64::from(*id)))
        .collect()
}

#[cfg(test)]
mod tests {
    use xdp_lb_abi::Table;

    use super::*;

    #[test]
    fn equal_contents_lie_there_once() {
        let mut arena = Arena::new(10);
        let mut shared = Shared::<u16>::new(4);
        let (first, write) = shared.acquire(&[1, 2, 3, 4, 5], &mut arena).unwrap();
        assert!(write);
        let (second, write) = shared.acquire(&[1, 2, 3, 4, 5], &mut arena).unwrap();
        assert!(!write);
        assert_eq!(first.range, second.range);
        assert_eq!(arena.free(), 8);
        assert_eq!(shared.release(&first), None);
        assert_eq!(shared.release(&second), Some(Range { start: 0, length: 2 }));
    }

    #[test]
    fn a_full_arena_changes_nothing() {
        let mut arena = Arena::new(1);
        let mut shared = Shared::<u32>::new(2);
        assert!(shared.acquire(&[1, 2, 3], &mut arena).is_none());
        assert!(shared.acquire(&[1, 2], &mut arena).is_some());
    }

    #[test]
    fn words_hold_what_the_data_path_reads() {
        let slots: Vec<u16> = (1..=9).collect();
        let words = slot_words(&slots);
        let table = Table::new(0, 9, 0, 0);
        for (slot, &value) in slots.iter().enumerate() {
            let (word, shift) = table.locate_slot(slot as u32);
            assert_eq!((words[word as usize] >> shift) as u16, value);
        }
        let ids = [7, 0xffff_ffff, 9];
        let words = id_words(&ids);
        for (index, &value) in ids.iter().enumerate() {
            let (word, shift) = table.locate_id(index as u32);
            assert_eq!((words[word as usize] >> shift) as u32, value);
        }
    }
}
