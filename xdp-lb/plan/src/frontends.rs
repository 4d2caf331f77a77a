//! Places of frontends in their table.

use std::collections::BTreeMap;

use xdp_lb_abi::{BUCKET_ENTRIES, FrontendKey};

/// Where an entry lies.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub(crate) struct Place {
    /// Index into `FRONTENDS`
    pub(crate) bucket: u32,
    /// Entry of the bucket
    pub(crate) entry: usize,
}

/// Which places of the frontend table are taken.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    taken: BTreeMap<u32, [bool; BUCKET_ENTRIES]>,
    seed: u64,
    buckets: u32,
}

impl Places {
    /// All places of a table of `buckets` (a power of two) are free.
    pub(crate) fn new(seed: u64, buckets: u32) -> Self {
        Self { taken: BTreeMap::new(), seed, buckets }
    }

    /// A free place in the less filled of the key's two buckets; nothing where both are full.
    pub(crate) fn take(&mut self, key: &FrontendKey) -> Option<Place> {
        let load = |bucket: &u32| {
            self.taken.get(bucket).map_or(0, |taken| taken.iter().filter(|&&taken| taken).count())
        };
        let bucket = key.buckets(self.seed, self.buckets).into_iter().min_by_key(load)?;
        let taken = self.taken.entry(bucket).or_default();
        let entry = taken.iter().position(|taken| !taken)?;
        taken[entry] = true;
        Some(Place { bucket, entry })
    }

    /// Takes this place; `false` where it is taken, or none of the key's.
    pub(crate) fn claim(&mut self, key: &FrontendKey, place: Place) -> bool {
        if !key.buckets(self.seed, self.buckets).contains(&place.bucket) {
            return false;
        }
        let taken = self.taken.entry(place.bucket).or_default();
        !std::mem::replace(&mut taken[place.entry], true)
    }

    /// Gives a place back.
    pub(crate) fn give_back(&mut self, place: Place) {
        if let Some(taken) = self.taken.get_mut(&place.bucket) {
            taken[place.entry] = false;
        }
    }
}

/// Buckets for at most `frontends` frontends: four times the places.
///
/// Of as many keys as buckets, each in the less filled of two, practically never a fifth meets two
/// full ones (Azar et al., "Balanced Allocations", 1994); should it, that frontend is refused.
pub fn buckets(frontends: u32) -> u32 {
    frontends.max(8).next_power_of_two()
}

#[cfg(test)]
mod tests {
    use xdp_lb_abi::Address;

    use super::*;

    #[test]
    fn a_table_takes_all_that_it_is_made_for() {
        for count in [1, 100, 16_384] {
            let mut places = Places::new(7, buckets(count));
            for n in 0..count {
                let address = Address::v4((0x0a00_0000 + n / 50).to_be_bytes());
                let key = FrontendKey::new(address, (n % 50) as u16 + 1, 6);
                assert!(places.take(&key).is_some(), "{n} of {count}");
            }
        }
    }

    #[test]
    fn a_place_is_taken_once() {
        let key = FrontendKey::new(Address::v4([192, 0, 2, 1]), 80, 6);
        let mut places = Places::new(1, 8);
        let place = places.take(&key).unwrap();
        assert!(!places.claim(&key, place));
        places.give_back(place);
        assert!(places.claim(&key, place));
    }
}
