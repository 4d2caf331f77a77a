//! ICMP and ICMPv6 that the program answers itself: echo requests to a frontend's address, and
//! packets that do not fit the path to their backend.

use xdp_lb_abi::{Address, AddressFlags, Reason};

use crate::{
    Frame, Tables, Truncated,
    checksum::{self, Sum},
    frame::write,
    header::{TTL, write_ipv4_header, write_ipv6_start},
    link::Link,
    parse::{Facts, IPV4, IPV6, protocol},
};

/// Bytes of the offending packet that an ICMP error quotes: no more than fit in 576 (RFC 1812,
/// 4.3.2.3).
const QUOTE_V4: usize = 576 - IPV4 - HEADER;
/// The same for ICMPv6: no more than fit in IPv6's minimum MTU (RFC 4443, 3.2).
const QUOTE_V6: usize = MINIMUM_MTU - IPV6 - HEADER;
/// Length of the ICMP header of both families' errors.
const HEADER: usize = 8;
/// IPv6's minimum MTU (RFC 8200, 5).
const MINIMUM_MTU: usize = 1280;
/// Type and code: destination unreachable, fragmentation needed (RFC 1191).
const FRAGMENTATION_NEEDED: u16 = 0x0304;
/// Type and code: packet too big (RFC 4443, 3.2).
const PACKET_TOO_BIG: u16 = 0x0200;
/// Words of four bytes in the longest quote.
const QUOTE_WORDS: usize = QUOTE_V6 / 4;

/// Answers an echo request to a frontend's address; others are left to the kernel.
///
/// The reply is the request with its addresses swapped and a fresh TTL.
#[inline(never)]
pub fn echo<F: Frame, T: Tables>(frame: &mut F, tables: &T, facts: &Facts) -> Reason {
    if tables.address_flags(&facts.destination) & AddressFlags::FRONTEND == 0 {
        return Reason::Icmp;
    }
    // Options may carry a source route, which a reply would have to reverse (RFC 1122, 3.2.2.6), and
    // extension headers what only the kernel can answer: a route, an authentication.
    let header = if facts.destination.is_v6() { IPV6 } else { IPV4 };
    if facts.transport != facts.link + header {
        return Reason::Icmp;
    }
    if !is_host(&facts.source) {
        return Reason::Icmp;
    }
    match write_echo_reply(frame, facts) {
        Ok(()) => Reason::Echo,
        Err(reason) => reason,
    }
}

#[inline(always)]
fn write_echo_reply<F: Frame>(frame: &mut F, facts: &Facts) -> Result<(), Reason> {
    // Everything is inside the linear part: the parser read the transport header.
    if facts.destination.is_v6() {
        frame.window::<IPV6>(facts.link)?[7] = TTL;
        write(frame, facts.link + 8, facts.destination.octets())?;
        write(frame, facts.link + 24, facts.source.octets())?;
        // The pseudo header's sum is that of the same addresses.
        turn(frame, facts.transport, [128, 0], [129, 0])?;
    } else {
        let header = frame.window::<IPV4>(facts.link)?;
        let before = u16::from_be_bytes([header[8], header[9]]);
        let after = u16::from_be_bytes([TTL, header[9]]);
        let sum = checksum::update(u16::from_be_bytes([header[10], header[11]]), before, after);
        header[8] = TTL;
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header[12..16].copy_from_slice(&facts.destination.v4_octets());
        header[16..20].copy_from_slice(&facts.source.v4_octets());
        turn(frame, facts.transport, [8, 0], [0, 0])?;
    }
    Link::read(frame, facts.link)?.answer().write(frame, facts.destination.is_v6())
}

/// Changes type and code of an ICMP message from `old` to `new`.
#[inline(always)]
fn turn<F: Frame>(frame: &mut F, at: usize, old: [u8; 2], new: [u8; 2]) -> Result<(), Reason> {
    let header = frame.window::<4>(at)?;
    let sum = checksum::update(
        u16::from_be_bytes([header[2], header[3]]),
        u16::from_be_bytes(old),
        u16::from_be_bytes(new),
    );
    let [high, low] = sum.to_be_bytes();
    *header = [new[0], new[1], high, low];
    Ok(())
}

/// Whether the address is one host's, so that an ICMP message may be sent to it (RFC 1122, 3.2.2;
/// RFC 4443, 2.4 e).
#[inline(always)]
fn is_host(address: &Address) -> bool {
    let first = if address.is_v6() { address.octets()[0] } else { address.v4_octets()[0] };
    if address.is_v6() {
        // Multicast, unspecified and loopback.
        let [high, low] = address.words();
        first != 0xff && (high != 0 || u64::from_be(low) > 1)
    } else {
        // "This network", loopback, multicast and broadcast.
        first != 0 && first != 127 && first < 224
    }
}

/// Tells the sender that its packet does not fit the path, whose MTU leaves it `mtu` bytes.
///
/// The answer comes from the frontend's address, the one that the sender knows. A sender that
/// allowed fragments is told too: this program cannot fragment, and the sender can.
#[inline(never)]
pub fn too_big<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    facts: &Facts,
    mtu: usize,
    rate: u32,
) -> Reason {
    if facts.destination.is_v6() && facts.length <= MINIMUM_MTU {
        return Reason::MinimumMtu;
    }
    if !is_host(&facts.source) {
        return Reason::TooBigSilent;
    }
    if !tables.may_send_icmp(rate) {
        return Reason::TooBigLimited;
    }
    let written = if facts.destination.is_v6() {
        write_packet_too_big(frame, facts, mtu)
    } else {
        write_fragmentation_needed(frame, facts, mtu)
    };
    match written {
        Ok(()) => Reason::TooBig,
        Err(reason) => reason,
    }
}

#[inline(always)]
fn write_fragmentation_needed<F: Frame>(
    frame: &mut F,
    facts: &Facts,
    mtu: usize,
) -> Result<(), Reason> {
    // A packet that is shorter than the longest quote is quoted as far as RFC 792 asks at least.
    let header_length = facts.transport - facts.link;
    let quote = if facts.length >= QUOTE_V4 { QUOTE_V4 } else { header_length + 8 };
    let reported = if mtu > 0xffff { 0xffff } else { mtu as u16 };
    let message = Sum::ZERO.add(FRAGMENTATION_NEEDED).add(reported);
    let sum = sum_of(frame, facts.link, quote, message)?;

    make_room(frame, facts, quote, IPV4 + HEADER)?;
    let source = facts.destination.v4_octets();
    let destination = facts.source.v4_octets();
    let length = IPV4 + HEADER + quote;
    write_ipv4_header(frame, facts.link, 0, length, protocol::ICMP, source, destination)?;
    write_error(frame, facts.link + IPV4, FRAGMENTATION_NEEDED, sum, reported.into())
}

#[inline(always)]
fn write_packet_too_big<F: Frame>(frame: &mut F, facts: &Facts, mtu: usize) -> Result<(), Reason> {
    // Longer than the minimum MTU, so the longest quote is always there.
    let quote = QUOTE_V6;
    let reported = if mtu < MINIMUM_MTU { MINIMUM_MTU } else { mtu };
    // The pseudo header of RFC 8200, 8.1.
    let message = Sum::ZERO
        .add_address(facts.source.words())
        .add_address(facts.destination.words())
        .add((HEADER + quote) as u16)
        .add(protocol::ICMPV6.into())
        .add(PACKET_TOO_BIG)
        .add_u32(reported as u32);
    let sum = sum_of(frame, facts.link, quote, message)?;

    make_room(frame, facts, quote, IPV6 + HEADER)?;
    write_ipv6_start(frame, facts.link, 0, 0, HEADER + quote, protocol::ICMPV6)?;
    write(frame, facts.link + 8, facts.destination.octets())?;
    write(frame, facts.link + 24, facts.source.octets())?;
    write_error(frame, facts.link + IPV6, PACKET_TOO_BIG, sum, reported as u32)
}

/// Writes the header of an ICMP error: type and code, checksum, MTU.
#[inline(always)]
fn write_error<F: Frame>(
    frame: &mut F,
    at: usize,
    kind: u16,
    sum: Sum,
    mtu: u32,
) -> Result<(), Reason> {
    let message = u64::from(kind) << 48 | u64::from(sum.finish()) << 32 | u64::from(mtu);
    write(frame, at, message.to_be_bytes())
}

/// Adds `length` bytes (a multiple of four) from `start` on to a sum.
#[inline(always)]
fn sum_of<F: Frame>(
    frame: &mut F,
    start: usize,
    length: usize,
    mut sum: Sum,
) -> Result<Sum, Reason> {
    let mut done = 0;
    for _ in 0..QUOTE_WORDS {
        if done >= length {
            break;
        }
        // The linear part may be shorter than the packet; nothing is written yet.
        let word = frame.window::<4>(start + done).map_err(|Truncated| Reason::TooBigSilent)?;
        sum = sum.add_bytes(word);
        done += 4;
    }
    Ok(sum)
}

/// Cuts the frame off behind the quote, makes `room` bytes before it, and writes a link header back
/// to the sender in front of both.
#[inline(always)]
fn make_room<F: Frame>(
    frame: &mut F,
    facts: &Facts,
    quote: usize,
    room: usize,
) -> Result<(), Reason> {
    let link = Link::read(frame, facts.link)?;
    frame.truncate(facts.link + quote)?;
    frame.grow_front(room as i32)?;
    link.answer().write(frame, facts.destination.is_v6())
}
