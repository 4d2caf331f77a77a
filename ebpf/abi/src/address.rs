//! Addresses of both families as map keys.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Address family, as a byte of map keys.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
#[repr(u8)]
pub enum Family {
    /// IPv4
    V4 = 4,
    /// IPv6
    V6 = 6,
}

/// An IPv4 or IPv6 address with its family, 24 bytes.
///
/// The sixteen address bytes are kept as two words, as they lie in a packet: no byte is moved on the
/// way from the wire into a key. An IPv4 address is the upper half of the second word's bytes, the
/// others are zero. The family keeps `192.0.2.1` apart from `::192.0.2.1`.
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
pub struct Address {
    words: [u64; 2],
    family: u64,
}
const _: () = assert!(size_of::<Address>() == 24);

impl Address {
    /// An IPv4 address from its four bytes.
    #[inline(always)]
    pub const fn v4(octets: [u8; 4]) -> Self {
        let [a, b, c, d] = octets;
        let low = u64::from_ne_bytes([0, 0, 0, 0, a, b, c, d]);
        Self { words: [0, low], family: Family::V4 as u64 }
    }

    /// An IPv6 address from its sixteen bytes.
    #[inline(always)]
    pub const fn v6(octets: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
        let words = [
            u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
            u64::from_ne_bytes([i, j, k, l, m, n, o, p]),
        ];
        Self { words, family: Family::V6 as u64 }
    }

    /// An address from its words.
    #[inline(always)]
    pub(crate) const fn from_words(words: [u64; 2], v6: bool) -> Self {
        Self { words, family: if v6 { Family::V6 as u64 } else { Family::V4 as u64 } }
    }

    /// The sixteen address bytes as two words, as they lie in a packet.
    #[inline(always)]
    pub const fn words(&self) -> [u64; 2] {
        self.words
    }

    /// The sixteen address bytes in network order; IPv4 in the last four.
    #[inline(always)]
    pub const fn octets(&self) -> [u8; 16] {
        let [a, b, c, d, e, f, g, h] = self.words[0].to_ne_bytes();
        let [i, j, k, l, m, n, o, p] = self.words[1].to_ne_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }

    /// The last four bytes: all of an IPv4 address.
    #[inline(always)]
    pub const fn v4_octets(&self) -> [u8; 4] {
        let [.., a, b, c, d] = self.words[1].to_ne_bytes();
        [a, b, c, d]
    }

    /// Whether this is an IPv6 address.
    #[inline(always)]
    pub const fn is_v6(&self) -> bool {
        self.family == Family::V6 as u64
    }

    /// The family's number, 4 or 6.
    #[inline(always)]
    pub const fn family(&self) -> u8 {
        if self.is_v6() { Family::V6 as u8 } else { Family::V4 as u8 }
    }

    /// The standard library's form, for people and for netlink.
    pub const fn to_ip(&self) -> IpAddr {
        if self.is_v6() {
            IpAddr::V6(Ipv6Addr::from_octets(self.octets()))
        } else {
            IpAddr::V4(Ipv4Addr::from_octets(self.v4_octets()))
        }
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::v4(v4.octets()),
            IpAddr::V6(v6) => Self::v6(v6.octets()),
        }
    }
}

/// What an address in `ADDRESSES` is to this host, as bits.
pub struct AddressFlags;

impl AddressFlags {
    /// The host itself has the address: tunnel packets to it are ours, inner packets are delivered.
    pub const LOCAL: u32 = 1;
    /// A frontend has the address: echo requests to it are answered.
    pub const FRONTEND: u32 = 2;
}

/// Data of a key of the LPM trie `PEERS`, 20 bytes: the family, then the address.
///
/// The family stands first, where every prefix covers it.
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
    Unaligned,
)]
#[repr(C, packed)]
pub struct PeerKey {
    family: u32,
    words: [u64; 2],
}
const _: () = assert!(size_of::<PeerKey>() == 20);

impl PeerKey {
    /// Bits of a key: the prefix length of a look-up.
    pub const BITS: u32 = 160;

    /// The key of an address.
    #[inline(always)]
    pub const fn new(address: &Address) -> Self {
        Self { family: (address.family() as u32).to_be(), words: address.words() }
    }

    /// Prefix length, in bits of the key, of a network of `length` bits.
    pub const fn prefix_length(&self, length: u8) -> u32 {
        let offset = if self.family == (Family::V6 as u32).to_be() { 32 } else { 32 + 96 };
        offset + length as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_survives_the_way_there_and_back() {
        for text in ["192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1", "0.0.0.0", "::"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(Address::from(ip).to_ip(), ip);
        }
    }

    #[test]
    fn the_families_never_alias() {
        assert_ne!(
            Address::from("192.0.2.1".parse::<IpAddr>().unwrap()),
            Address::from("::192.0.2.1".parse::<IpAddr>().unwrap()),
        );
    }
}
