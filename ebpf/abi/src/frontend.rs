//! The table of frontends: an array of buckets, two candidates a key.
//!
//! A kernel hash map costs some 30 ns a look-up; this one costs a few, and a miss touches two
//! cache lines. It needs no kernel helper, so any type of program can read it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    Address,
    hash::{finish, round},
};

/// Whom a frontend is for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Ord, PartialOrd, Hash)]
#[repr(u8)]
pub enum Scope {
    /// Packets that come in, and sockets of this host where [`Scope::Sockets`] has none of the same
    /// address, port and protocol.
    #[default]
    All = 0,
    /// Sockets of this host alone: packets that come in never meet it.
    Sockets = 1,
}

/// Address, port and protocol that clients use.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct FrontendKey {
    address: Address,
    port: u16,
    protocol: u8,
    scope: Scope,
}

impl FrontendKey {
    /// Words of the array `PORT_FILTER`.
    pub const FILTER_WORDS: u32 = 1024;

    /// The bit beside the family that marks [`Scope::Sockets`].
    const SOCKETS: u32 = 0x80;

    /// A key of [`Scope::All`]; `port` in host order, `protocol` an IP protocol number.
    #[inline(always)]
    pub const fn new(address: Address, port: u16, protocol: u8) -> Self {
        Self { address, port, protocol, scope: Scope::All }
    }

    /// The same key in another scope.
    #[inline(always)]
    #[must_use]
    pub const fn with_scope(mut self, scope: Scope) -> Self {
        self.scope = scope;
        self
    }

    /// Whom the frontend is for.
    pub const fn scope(&self) -> Scope {
        self.scope
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

    /// Port, protocol, scope and family in one word.
    #[inline(always)]
    const fn rest(&self) -> u32 {
        let scope = match self.scope {
            Scope::All => 0,
            Scope::Sockets => Self::SOCKETS,
        };
        let family = self.address.family() as u32;
        (self.port as u32) << 16 | (self.protocol as u32) << 8 | scope | family
    }

    /// Where `PORT_FILTER` says whether some frontend has a port, of whatever protocol: the word, and
    /// the bit in it. A clear bit saves the look-ups in `FRONTENDS`.
    #[inline(always)]
    pub const fn filter(port: u16) -> (u32, u64) {
        (port as u32 >> 6, 1 << (port & 63))
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
        let sockets = u32::from(family) & FrontendKey::SOCKETS;
        let scope = if sockets == 0 { Scope::All } else { Scope::Sockets };
        let address = match u32::from(family) ^ sockets {
            4 => Address::from_words(self.words, false),
            6 => Address::from_words(self.words, true),
            _ => return None,
        };
        let port = u16::from_be_bytes([port_high, port_low]);
        Some(FrontendKey::new(address, port, protocol).with_scope(scope))
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
            let key = key.with_scope(Scope::Sockets);
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
        assert_eq!(bucket.find(&keys[0].with_scope(Scope::Sockets)), 0);
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
