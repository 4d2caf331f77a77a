//! Flows: their hash, which picks the slot, and the records of those that a handover moved.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    Address, Family, FrontendKey, Scope,
    hash::{finish, round},
};

/// A flow, as its client sends it: the 5-tuple, 40 bytes.
#[derive(
    Clone,
    Copy,
    Debug,
    Eq,
    PartialEq,
    Ord,
    PartialOrd,
    Hash,
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout,
)]
#[repr(C)]
pub struct FlowKey {
    source: [u64; 2],
    destination: [u64; 2],
    ports: u32,
    /// Protocol, family, scope and a zero, one byte each. One word: the compiler joins stores of bytes, also
    /// such as do not lie on a boundary, and the verifier accepts aligned ones only.
    rest: u32,
}
const _: () = assert!(size_of::<FlowKey>() == 40);

impl FlowKey {
    /// A key; both addresses of one family, ports in host order.
    #[inline(always)]
    pub const fn new(
        source: Address,
        destination: Address,
        ports: (u16, u16),
        protocol: u8,
    ) -> Self {
        Self {
            source: source.words(),
            destination: destination.words(),
            ports: (ports.0 as u32) << 16 | ports.1 as u32,
            rest: Self::rest(protocol, destination.family(), Scope::All as u8),
        }
    }

    #[inline(always)]
    const fn rest(protocol: u8, family: u8, scope: u8) -> u32 {
        u32::from_ne_bytes([protocol, family, scope, 0])
    }

    #[inline(always)]
    const fn family(&self) -> u8 {
        self.rest.to_ne_bytes()[1]
    }

    /// The same flow, to the frontend of another scope.
    #[inline(always)]
    #[must_use]
    pub const fn with_scope(mut self, scope: Scope) -> Self {
        self.rest = Self::rest(self.protocol(), self.family(), scope as u8);
        self
    }

    /// The client's address.
    pub const fn source(&self) -> Address {
        Address::from_words(self.source, self.is_v6())
    }

    /// The frontend's address.
    pub const fn destination(&self) -> Address {
        Address::from_words(self.destination, self.is_v6())
    }

    /// The client's and the frontend's port.
    pub const fn ports(&self) -> (u16, u16) {
        ((self.ports >> 16) as u16, self.ports as u16)
    }

    /// The frontend that the flow's client uses.
    pub const fn frontend(&self) -> FrontendKey {
        let address = Address::from_words(self.destination, self.is_v6());
        let sockets = self.rest.to_ne_bytes()[2] == Scope::Sockets as u8;
        let scope = if sockets { Scope::Sockets } else { Scope::All };
        FrontendKey::new(address, self.ports as u16, self.protocol()).with_scope(scope)
    }

    /// The key of all flows of the same client: what picks the slot with session affinity.
    #[inline(always)]
    #[must_use]
    pub const fn client(&self) -> Self {
        Self {
            source: self.source,
            destination: [0; 2],
            ports: 0,
            rest: Self::rest(0, self.family(), 0),
        }
    }

    /// IP protocol number.
    #[inline(always)]
    pub const fn protocol(&self) -> u8 {
        self.rest.to_ne_bytes()[0]
    }

    /// Whether the addresses are IPv6.
    #[inline(always)]
    pub const fn is_v6(&self) -> bool {
        self.family() == Family::V6 as u8
    }

    /// Whether two keys are the same: by one branch, since the verifier follows each.
    #[inline(always)]
    pub const fn equals(&self, other: &Self) -> bool {
        let addresses = (self.source[0] ^ other.source[0])
            | (self.source[1] ^ other.source[1])
            | (self.destination[0] ^ other.destination[0])
            | (self.destination[1] ^ other.destination[1]);
        let rest = (self.ports ^ other.ports) | (self.rest ^ other.rest);
        addresses | rest as u64 == 0
    }

    /// The hash that picks the Maglev slot: the same on every instance with the same key.
    #[inline(always)]
    pub const fn hash(&self, key: [u64; 2]) -> u32 {
        let [source_high, source_low] = self.source;
        let [destination_high, destination_low] = self.destination;
        let mut state = key[0];
        if self.is_v6() {
            state = round(state, u64::from_be(source_high));
            state = round(state, u64::from_be(source_low));
            state = round(state, u64::from_be(destination_high));
            state = round(state, u64::from_be(destination_low));
        } else {
            // Both fit in one word.
            state = round(state, u64::from_be(source_low) << 32 | u64::from_be(destination_low));
        }
        let last = key[1] ^ ((self.protocol() as u64) << 32 | self.ports as u64);
        (finish(round(state, last)) >> 32) as u32
    }
}

/// Which backend a recorded flow belongs to, 16 bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Flow {
    backend: u32,
    generation: u32,
    seen: u64,
}
const _: () = assert!(size_of::<Flow>() == 16);

impl Flow {
    /// Offset of [`Flow::seen`], in bytes: an aligned word, which may change in place by one store.
    pub const SEEN_OFFSET: usize = 8;

    /// A record; `seen` in nanoseconds of the kernel's monotonic clock.
    pub const fn new(backend: u32, generation: u32, seen: u64) -> Self {
        Self { backend, generation, seen }
    }

    /// Backend id.
    pub const fn backend(&self) -> u32 {
        self.backend
    }

    /// Generation that the backend's record must have; otherwise the id has another owner now.
    pub const fn generation(&self) -> u32 {
        self.generation
    }

    /// When the flow was last seen, give or take a second, in nanoseconds of the kernel's monotonic
    /// clock.
    pub const fn seen(&self) -> u64 {
        self.seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Chi-square over the slots of a table for flows that differ in one thing only.
    fn chi_square(flows: impl Iterator<Item = FlowKey>) -> f64 {
        const CELLS: usize = 251;
        let mut cells = [0_u32; CELLS];
        let mut n = 0.0;
        for flow in flows {
            let hash = flow.hash([0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210]);
            cells[((u64::from(hash) * CELLS as u64) >> 32) as usize] += 1;
            n += 1.0;
        }
        let expected = n / CELLS as f64;
        cells.iter().map(|&c| (f64::from(c) - expected).powi(2) / expected).sum()
    }

    /// 250 degrees of freedom: below 350 with a probability of 0.99995, so a fixed set that passes
    /// is no luck, and far below for a set that is spread more evenly than chance.
    const BOUND: f64 = 350.0;

    #[test]
    fn flows_that_differ_only_in_the_source_port_spread_evenly() {
        let flow = |port| {
            FlowKey::new(Address::v4([10, 0, 0, 1]), Address::v4([192, 0, 2, 1]), (port, 80), 6)
        };
        assert!(chi_square((1024..61024).map(flow)) < BOUND);
    }

    #[test]
    fn flows_that_differ_only_in_the_source_address_spread_evenly() {
        let v4 = |n: u32| {
            FlowKey::new(
                Address::v4((0x0a00_0000 + n).to_be_bytes()),
                Address::v4([192, 0, 2, 1]),
                (4000, 80),
                17,
            )
        };
        let v6 = |shift: u32| {
            move |n: u32| {
                let source = (0x2001_0db8_u128 << 96) | (u128::from(n) << shift);
                FlowKey::new(Address::v6(source.to_be_bytes()), Address::v6([7; 16]), (4000, 80), 6)
            }
        };
        assert!(chi_square((0..60_000).map(v4)) < BOUND);
        assert!(chi_square((0..60_000).map(v6(0))) < BOUND);
        assert!(chi_square((0..60_000).map(v6(64))) < BOUND);
    }

    #[test]
    fn a_flow_knows_its_frontend() {
        for (client, address) in [
            (Address::v4([10, 0, 0, 1]), Address::v4([192, 0, 2, 1])),
            (Address::v6([9; 16]), Address::v6([7; 16])),
        ] {
            let flow = FlowKey::new(client, address, (4000, 53), 17);
            assert_eq!(flow.frontend(), FrontendKey::new(address, 53, 17));
        }
    }

    #[test]
    fn the_key_decides() {
        let flow = FlowKey::new(Address::v4([10, 0, 0, 1]), Address::v4([192, 0, 2, 1]), (1, 2), 6);
        assert_ne!(flow.hash([1, 2]), flow.hash([1, 3]));
        assert_ne!(flow.hash([1, 2]), flow.hash([2, 2]));
    }
}
