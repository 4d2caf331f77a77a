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

/// An IPv4 or IPv6 address with its family, 20 bytes.
///
/// IPv4 addresses stand in the last four of the sixteen address bytes, the others are zero. The
/// family keeps `192.0.2.1` apart from `::192.0.2.1`.
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
#[repr(C)]
pub struct Address {
    family: u8,
    zero: [u8; 3],
    octets: [u8; 16],
}
const _: () = assert!(size_of::<Address>() == 20);

impl Address {
    /// An IPv4 address from its four bytes.
    #[inline(always)]
    pub const fn v4(octets: [u8; 4]) -> Self {
        let [a, b, c, d] = octets;
        Self {
            family: Family::V4 as u8,
            zero: [0; 3],
            octets: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d],
        }
    }

    /// An IPv6 address from its sixteen bytes.
    #[inline(always)]
    pub const fn v6(octets: [u8; 16]) -> Self {
        Self { family: Family::V6 as u8, zero: [0; 3], octets }
    }

    /// The sixteen address bytes in network order; IPv4 in the last four.
    #[inline(always)]
    pub const fn octets(&self) -> &[u8; 16] {
        &self.octets
    }

    /// The four bytes of an IPv4 address; meaningless for IPv6.
    #[inline(always)]
    pub const fn v4_octets(&self) -> [u8; 4] {
        [self.octets[12], self.octets[13], self.octets[14], self.octets[15]]
    }

    /// Whether this is an IPv6 address.
    #[inline(always)]
    pub const fn is_v6(&self) -> bool {
        self.family == Family::V6 as u8
    }

    /// The family's byte.
    #[inline(always)]
    pub const fn family(&self) -> u8 {
        self.family
    }

    /// The standard library's form, for people and for netlink.
    pub const fn to_ip(&self) -> IpAddr {
        if self.is_v6() {
            IpAddr::V6(Ipv6Addr::from_octets(self.octets))
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

/// Data of a key of the LPM trie `PEERS`; the prefix counts from the first bit of the family.
pub type PeerKey = Address;

impl PeerKey {
    /// Prefix length, in bits of the key, for a network of `length` bits.
    pub const fn prefix_length(&self, length: u8) -> u32 {
        let offset = if self.is_v6() { 32 } else { 32 + 96 };
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
