//! The IP headers that the program writes itself.
//!
//! Computed as numbers, not as arrays of bytes: those would lie on the stack, where the verifier
//! accepts aligned access only.

use xdp_lb_abi::{Address, Reason};

use crate::{
    Frame,
    checksum::Sum,
    frame::{write, write_v6},
    parse::{IPV4, IPV6},
};

/// TTL and hop limit (the default that RFC 1700 names for IP).
pub(crate) const TTL: u8 = 64;

/// Writes an IPv4 header of an atomic datagram: don't fragment set, and so no identification (RFC
/// 6864, 4.1).
#[inline(always)]
pub(crate) fn write_ipv4_header<F: Frame>(
    frame: &mut F,
    at: usize,
    traffic_class: u8,
    length: usize,
    protocol: u8,
    source: [u8; 4],
    destination: [u8; 4],
) -> Result<(), Reason> {
    const DONT_FRAGMENT: u16 = 0x4000;
    let start = 0x4500 | u16::from(traffic_class);
    let protocol = u16::from(TTL) << 8 | u16::from(protocol);
    let source = u32::from_be_bytes(source);
    let destination = u32::from_be_bytes(destination);
    let sum = Sum::ZERO
        .add(start)
        .add(length as u16)
        .add(DONT_FRAGMENT)
        .add(protocol)
        .add_u32(source)
        .add_u32(destination)
        .finish();
    let first = u64::from(start) << 48 | (length as u64 & 0xffff) << 32 | u64::from(DONT_FRAGMENT);
    let second = u64::from(protocol) << 48 | u64::from(sum) << 32 | u64::from(source);
    write(frame, at, first.to_be_bytes())?;
    write(frame, at + 8, second.to_be_bytes())?;
    write(frame, at + 16, destination.to_be_bytes())
}

/// Writes the first eight bytes of an IPv6 header: all but the addresses. `label` has 20 bits.
#[inline(always)]
pub(crate) fn write_ipv6_start<F: Frame>(
    frame: &mut F,
    at: usize,
    traffic_class: u8,
    label: u32,
    payload: usize,
    next: u8,
) -> Result<(), Reason> {
    let first = 6 << 28 | u32::from(traffic_class) << 20 | label;
    let rest = (payload as u32 & 0xffff) << 16 | u32::from(next) << 8 | u32::from(TTL);
    write(frame, at, (u64::from(first) << 32 | u64::from(rest)).to_be_bytes())
}

/// Length of the IP header that [`write_ip_header`] writes.
#[inline(always)]
pub(crate) const fn ip_length(v6: bool) -> usize {
    if v6 { IPV6 } else { IPV4 }
}

/// Writes the IP header of a packet of our own: of either family, as its addresses say, without DSCP,
/// ECN and flow label. `payload` is its length without the header.
#[inline(always)]
pub(crate) fn write_ip_header<F: Frame>(
    frame: &mut F,
    at: usize,
    source: &Address,
    destination: &Address,
    payload: usize,
    protocol: u8,
) -> Result<(), Reason> {
    if destination.is_v6() {
        write_ipv6_start(frame, at, 0, 0, payload, protocol)?;
        write_v6(frame, at + 8, source)?;
        write_v6(frame, at + 24, destination)
    } else {
        let (source, destination) = (source.v4_octets(), destination.v4_octets());
        write_ipv4_header(frame, at, 0, IPV4 + payload, protocol, source, destination)
    }
}

/// The sum of the pseudo header of TCP (RFC 9293, 3.1) and of ICMPv6 (RFC 8200, 8.1).
#[inline(always)]
pub(crate) const fn pseudo_header(
    source: &Address,
    destination: &Address,
    payload: usize,
    protocol: u8,
) -> Sum {
    // The words of an IPv4 address are zero before its four bytes.
    Sum::ZERO
        .add_address(source.words())
        .add_address(destination.words())
        .add(payload as u16)
        .add(protocol as u16)
}
