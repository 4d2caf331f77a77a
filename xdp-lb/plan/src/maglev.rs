//! Maglev tables: which backend owns which slot.
//!
//! A table is a function of the cluster's key, of the set of backends with their weights and of
//! the table's size, and of nothing else: instances that know the same three build the same table
//! whatever their history, so a flow may change the balancer and keep its backend.
//!
//! Source: Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer",
//! NSDI 2016, section 3.4. Weights are ours.

mod fill;
mod quota;
#[cfg(test)]
mod tests;

use std::{fmt, net::IpAddr};

use siphasher::{sip, sip128};
use xdp_lb_abi::MAX_SERVICE_BACKENDS;

use self::fill::Walk;
use crate::model::Protocol;

/// Sizes that a table may have: primes, so that every step of a permutation reaches every slot.
pub const LADDER: [u32; 7] = [1, 251, 1021, 4093, 16_381, 65_537, 131_071];

/// Slots per backend that [`table_size`] aims for: the paper's figure for shares within 1 %.
const SLOTS_PER_BACKEND: usize = 100;

/// Size of the table for `backends` backends with a positive weight: the smallest of [`LADDER`]
/// with at least 100 slots for each, its largest where none suffices, 1 where there is no choice
/// to make.
pub fn table_size(backends: usize) -> u32 {
    let [one, .., largest] = LADDER;
    if backends <= 1 {
        return one;
    }
    let wanted = backends.saturating_mul(SLOTS_PER_BACKEND);
    LADDER.into_iter().find(|&size| size as usize >= wanted).unwrap_or(largest)
}

/// Secret that a cluster's instances share: without it nobody can compute which packets meet on
/// one backend.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct HashKey([u8; 16]);

impl From<[u8; 16]> for HashKey {
    fn from(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashKey(secret)")
    }
}

/// What makes a backend the same backend on every instance and over time.
///
/// Its order (IPv4 before IPv6, then address, port, protocol number) is the order of its
/// [canonical bytes](Self::to_bytes). It decides whose turn comes first, so it is as much a part
/// of the agreement between instances as the hash is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct Identity {
    /// Address that serves
    pub address: IpAddr,
    /// Port that serves
    pub port: u16,
    /// Transport protocol
    pub protocol: Protocol,
}

impl Identity {
    /// Canonical form, the input of the hash:
    ///
    /// | bytes | content |
    /// | --- | --- |
    /// | 0 | 4 or 6, the IP version |
    /// | 1–16 | address in network byte order; IPv4 in bytes 1–4 with zeros behind |
    /// | 17–18 | port in network byte order |
    /// | 19 | IP protocol number |
    pub fn to_bytes(&self) -> [u8; 20] {
        let mut bytes = [0; 20];
        match self.address {
            IpAddr::V4(v4) => {
                bytes[0] = 4;
                bytes[1..5].copy_from_slice(&v4.octets());
            }
            IpAddr::V6(v6) => {
                bytes[0] = 6;
                bytes[1..17].copy_from_slice(&v6.octets());
            }
        }
        bytes[17..19].copy_from_slice(&self.port.to_be_bytes());
        bytes[19] = self.protocol.number();
        bytes
    }

    /// The two hashes of the paper: SipHash-2-4 with a 128-bit result over
    /// [`to_bytes`](Self::to_bytes), keyed by the 16 bytes of `key`. The first is the result's
    /// bytes 0–7 as a little-endian number, the second its bytes 8–15.
    fn hashes(&self, key: &HashKey) -> (u64, u64) {
        let hash = sip128::SipHasher24::new_with_key(&key.0).hash(&self.to_bytes());
        (hash.h1, hash.h2)
    }

    /// Where the backend's permutation of `size` slots starts, and how far each step goes.
    fn walk(&self, key: &HashKey, size: u32, weight: u16) -> Walk {
        let (h1, h2) = self.hashes(key);
        let size = u64::from(size);
        // A table of one slot has no second slot to step to; any step will do.
        let steps = (size - 1).max(1);
        Walk { offset: (h1 % size) as u32, skip: (h2 % steps) as u32 + 1, weight }
    }
}

/// A backend that asks for slots.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct Candidate {
    /// Who it is
    pub identity: Identity,
    /// Share in proportion to the other candidates' weights; 0 keeps the place in the list of
    /// backends and gets no slot
    pub weight: u16,
}

/// Why no table was built.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BuildError {
    /// The size is not in [`LADDER`]: in a table whose size is no prime, a walk may miss slots.
    #[error("a Maglev table cannot have {0} slots; choose one of {LADDER:?}")]
    Size(u32),
    /// A slot has no room for the index of so many.
    #[error(
        "a service can have {MAX_SERVICE_BACKENDS} backends, this one has {0}; split it in two"
    )]
    Backends(usize),
}

/// Backends in their canonical order, and the slots that name them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Table {
    backends: Vec<Candidate>,
    slots: Vec<u16>,
}

/// Builds the table of `size` slots (one of [`LADDER`]; see [`table_size`]) for `candidates`, which
/// may come in any order.
pub fn build(key: &HashKey, candidates: &[Candidate], size: u32) -> Result<Table, BuildError> {
    if !LADDER.contains(&size) {
        return Err(BuildError::Size(size));
    }
    if candidates.len() > MAX_SERVICE_BACKENDS {
        return Err(BuildError::Backends(candidates.len()));
    }
    let mut backends = candidates.to_vec();
    backends.sort_unstable();
    let walks: Vec<Walk> =
        backends.iter().map(|backend| backend.identity.walk(key, size, backend.weight)).collect();
    let slots = fill::fill(&walks, size);
    Ok(Table { backends, slots })
}

impl Table {
    /// Every candidate, sorted by identity. Slots are indices into this list.
    pub fn backends(&self) -> &[Candidate] {
        &self.backends
    }

    /// For each slot the index of its backend in [`backends`](Self::backends). Empty if no
    /// candidate has a positive weight, otherwise as long as the size that was asked for.
    pub fn slots(&self) -> &[u16] {
        &self.slots
    }

    /// How many slots each of the [`backends`](Self::backends) has, in their order.
    pub fn shares(&self) -> Vec<u32> {
        let mut shares = vec![0; self.backends.len()];
        for &slot in &self.slots {
            shares[usize::from(slot)] += 1;
        }
        shares
    }

    /// Number by which instances can compare tables: equal tables have equal digests on every
    /// machine. It covers what decides about packets, so neither the weights nor the key as such.
    ///
    /// SipHash-2-4 (64 bits, key of zeros) over: number of slots (u32), number of backends (u32),
    /// each backend's [canonical bytes](Identity::to_bytes), each slot (u16); numbers
    /// little-endian.
    pub fn digest(&self) -> u64 {
        digest(self.backends.iter().map(|backend| backend.identity), &self.slots)
    }
}

/// The [digest](Table::digest) of a table of these backends, in their order, and slots.
pub fn digest(backends: impl Iterator<Item = Identity>, slots: &[u16]) -> u64 {
    let identities: Vec<[u8; 20]> = backends.map(|backend| backend.to_bytes()).collect();
    let mut bytes = Vec::with_capacity(8 + identities.len() * 20 + slots.len() * 2);
    bytes.extend((slots.len() as u32).to_le_bytes());
    bytes.extend((identities.len() as u32).to_le_bytes());
    bytes.extend(identities.as_flattened());
    bytes.extend(slots.iter().flat_map(|slot| slot.to_le_bytes()));
    sip::SipHasher24::new().hash(&bytes)
}
