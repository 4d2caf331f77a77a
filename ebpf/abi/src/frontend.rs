//! The table of frontends: an array of buckets, two candidates a key.
//!
//! A kernel hash map costs some 30 ns a look-up; this one costs a few, and a miss touches two
//! cache lines. It needs no kernel helper, so any type of program can read it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    Address,
    hash::{finish, round},
};

/// Address, port and protocol that clients use.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct FrontendKey {
    address: Address,
    port: u16,
    protocol: u8,
}

impl FrontendKey {
    /// A key; `port` in host order, `protocol` an IP protocol number.
    #[inline(always)]
    pub const fn new(address: Address, port: u16, protocol: u8) -> Self {
        Self { address, port, protocol }
    }

    /// The address that clients use.
    pub const fn address(&self) -> Address {
        self.address
    }

    /// The port that clients use, in host order.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// IP protocol number.
    pub const fn protocol(&self) -> u8 {
        self.protocol
    }

    /// Port, protocol and family in one word.
    #[inline(always)]
    const fn rest(&self) -> u32 {
        (self.port as u32) << 16 | (self.protocol as u32) << 8 | self.address.family() as u32
    }

    /// The two buckets that may hold the key, for a table of `buckets` (a power of two).
    #[inline(always)]
    pub const fn buckets(&self, seed: u64, buckets: u32) -> [u32; 2] {
        let [high, low] = self.address.words();
        let rest = self.rest() as u64;
        // An IPv4 address leaves the half of its word empty that the rest goes to.
        let mut state = round(seed, u64::from_be(low) ^ rest << 32);
        if self.address.is_v6() {
            state = round(state, u64::from_be(high));
        }
        let hash = finish(state);
        let mask = buckets.wrapping_sub(1);
        [(hash >> 32) as u32 & mask, hash as u32 & mask]
    }
}

/// Entries of a bucket.
pub const BUCKET_ENTRIES: usize = 4;

/// One frontend, 24 bytes; free while `service` is 0.
///
/// The writer stores the key first and `service` last, as one 32-bit store: that store publishes
/// the frontend, moves it to another [`crate::Service`] record, or ends it.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct FrontendEntry {
    words: [u64; 2],
    rest: u32,
    service: u32,
}
const _: () = assert!(size_of::<FrontendEntry>() == 24);

impl FrontendEntry {
    /// Offset of the word that publishes an entry, in bytes.
    pub const SERVICE_OFFSET: usize = 20;

    /// An entry for `key`; `service` is an index into `SERVICES`, 0 for none.
    pub const fn new(key: FrontendKey, service: u32) -> Self {
        Self { words: key.address.words(), rest: key.rest(), service }
    }

    /// Index of the service's record; 0 where the entry is free.
    #[inline(always)]
    pub const fn service(&self) -> u32 {
        self.service
    }

    /// The key, or nothing where the entry is free or holds no known family.
    pub fn key(&self) -> Option<FrontendKey> {
        if self.service == 0 {
            return None;
        }
        let [port_high, port_low, protocol, family] = self.rest.to_be_bytes();
        let address = match family {
            4 => Address::from_words(self.words, false),
            6 => Address::from_words(self.words, true),
            _ => return None,
        };
        Some(FrontendKey::new(address, u16::from_be_bytes([port_high, port_low]), protocol))
    }
}

/// A bucket of the frontend table, 96 bytes.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Bucket {
    /// The entries, in no order.
    pub entries: [FrontendEntry; BUCKET_ENTRIES],
}
const _: () = assert!(size_of::<Bucket>() == 96);

impl Bucket {
    /// The service index of `key`, or 0.
    #[inline(always)]
    pub fn find(&self, key: &FrontendKey) -> u32 {
        let [high, low] = key.address.words();
        let rest = key.rest();
        let [a, b, c, d] = &self.entries;
        for entry in [a, b, c, d] {
            if entry.rest == rest && entry.words[1] == low && entry.words[0] == high {
                return entry.service;
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(address: &str, port: u16, protocol: u8) -> FrontendKey {
        FrontendKey::new(address.parse::<core::net::IpAddr>().unwrap().into(), port, protocol)
    }

    #[test]
    fn an_entry_gives_back_its_key() {
        for key in [key("192.0.2.1", 80, 6), key("2001:db8::1", 65535, 17), key("::1", 1, 132)] {
            assert_eq!(FrontendEntry::new(key, 7).key(), Some(key));
            assert_eq!(FrontendEntry::new(key, 0).key(), None);
        }
    }

    #[test]
    fn a_bucket_tells_frontends_apart_that_differ_in_one_field() {
        let keys = [key("192.0.2.1", 80, 6), key("192.0.2.1", 80, 17), key("192.0.2.1", 81, 6)];
        let mut bucket = Bucket::default();
        for (entry, (index, key)) in bucket.entries.iter_mut().zip(keys.iter().enumerate()) {
            *entry = FrontendEntry::new(*key, index as u32 + 1);
        }
        for (index, key) in keys.iter().enumerate() {
            assert_eq!(bucket.find(key), index as u32 + 1);
        }
        assert_eq!(bucket.find(&key("::192.0.2.1", 80, 6)), 0);
        assert_eq!(bucket.find(&key("192.0.2.2", 80, 6)), 0);
    }

    #[test]
    fn frontends_spread_over_the_buckets() {
        let mut load = [0_u32; 1024];
        for port in 1..=2048 {
            let [first, second] = key("192.0.2.1", port, 6).buckets(42, 1024);
            let least = if load[first as usize] <= load[second as usize] { first } else { second };
            load[least as usize] += 1;
        }
        assert!(load.iter().all(|&n| n <= BUCKET_ENTRIES as u32), "{:?}", load.iter().max());
    }
}
