//! Addresses of both families as map keys.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::hash::{finish, round};

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

    /// The IPv4 address inside an IPv4-mapped one (RFC 4291, 2.5.5.2); any other as it is.
    #[inline(always)]
    #[must_use]
    pub const fn unmapped(self) -> Self {
        let [high, low] = self.words;
        if self.is_v6() && high == 0 && u64::from_be(low) >> 32 == 0xffff {
            // The upper half of the bytes is that of `::ffff`.
            let low = (u64::from_be(low) & 0xffff_ffff).to_be();
            return Self::from_words([0, low], false);
        }
        self
    }

    /// An IPv4 address as an IPv4-mapped one; an IPv6 address as it is.
    #[inline(always)]
    #[must_use]
    pub const fn mapped(self) -> Self {
        if self.is_v6() {
            return self;
        }
        let low = (u64::from_be(self.words[1]) | 0xffff << 32).to_be();
        Self::from_words([0, low], true)
    }

    /// The family's unspecified address.
    #[inline(always)]
    #[must_use]
    pub const fn unspecified(&self) -> Self {
        Self { words: [0; 2], family: self.family }
    }

    /// Whether it is its family's unspecified address.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        self.words[0] | self.words[1] == 0
    }

    /// Whether it is one of 127.0.0.0/8, or `::1`.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        let low = u64::from_be(self.words[1]);
        if self.is_v6() { self.words[0] == 0 && low == 1 } else { low >> 24 == 127 }
    }

    /// Stands for a socket, or a network namespace, where a client's address is asked for: one of
    /// 100::/64, which no client has (RFC 6666).
    #[inline(always)]
    pub const fn of_cookie(cookie: u64) -> Self {
        Self::from_words([(0x0100_u64 << 48).to_be(), cookie.to_be()], true)
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
    /// A LoadBalancer address or external IP: echo requests to it are answered, and what is not for
    /// one of its frontends is refused. Never set for an address that only NodePorts use.
    pub const FRONTEND: u32 = 2;

    /// Words of the array `ADDRESS_FILTER`.
    pub const FILTER_WORDS: u32 = 1024;

    /// Where `ADDRESS_FILTER` says whether an address may have [`Self::FRONTEND`]: the word, and the
    /// bit in it. A clear bit saves the look-up in `ADDRESSES`.
    #[inline(always)]
    pub const fn filter(address: &Address) -> (u32, u64) {
        let [high, low] = address.words();
        let hash = finish(round(high, low)) >> 48;
        ((hash >> 6) as u32 % Self::FILTER_WORDS, 1 << (hash & 63))
    }
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

/// Data of a key of the LPM trie `SOURCES`, 24 bytes: the number of the networks, then family and
/// address as in [`PeerKey`].
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
pub struct SourceKey {
    number: u32,
    peer: PeerKey,
}
const _: () = assert!(size_of::<SourceKey>() == 24);

impl SourceKey {
    /// Bits of a key: the prefix length of a look-up.
    pub const BITS: u32 = 192;

    /// The key of an address under a number that is not 0.
    #[inline(always)]
    pub const fn new(number: u32, address: &Address) -> Self {
        Self { number: number.to_be(), peer: PeerKey::new(address) }
    }

    /// Prefix length, in bits of the key, of a network of `length` bits.
    pub const fn prefix_length(&self, length: u8) -> u32 {
        let peer = self.peer;
        32 + peer.prefix_length(length)
    }

    /// Number of the networks.
    pub const fn number(&self) -> u32 {
        u32::from_be(self.number)
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
    fn mapped_addresses_are_those_of_the_standard_library() {
        let own = |text: &str| Address::from(text.parse::<IpAddr>().unwrap());
        for text in ["192.0.2.1", "255.255.255.255", "0.0.0.0"] {
            assert_eq!(own(text).mapped(), own(&format!("::ffff:{text}")));
            assert_eq!(own(text).mapped().unmapped(), own(text));
        }
        for text in ["2001:db8::1", "::", "::1", "::192.0.2.1", "1::ffff:192.0.2.1"] {
            assert_eq!((own(text).unmapped(), own(text).mapped()), (own(text), own(text)));
        }
        for text in ["127.0.0.1", "127.9.8.7", "126.0.0.1", "::1", "::2", "::127.0.0.1", "0.0.0.0"]
        {
            assert_eq!(own(text).is_loopback(), own(text).to_ip().is_loopback(), "{text}");
            assert_eq!(own(text).is_unspecified(), own(text).to_ip().is_unspecified(), "{text}");
        }
        assert_eq!(Address::of_cookie(0x1_0002).to_ip(), "100::1:2".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn the_families_never_alias() {
        assert_ne!(
            Address::from("192.0.2.1".parse::<IpAddr>().unwrap()),
            Address::from("::192.0.2.1".parse::<IpAddr>().unwrap()),
        );
    }
}
