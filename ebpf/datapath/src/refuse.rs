//! Tells senders why their packets are not forwarded: too big, at the end of their TTL, or refused.
//!
//! Answers are ICMP errors that quote the packet, and TCP RST; one limit holds for both, since they
//! can be caused by anyone in any number.

use xdp_lb_abi::{Address, Reason, Settings};

use crate::{
    Frame, Hand, Tables, Truncated,
    checksum::Sum,
    frame::write,
    header::{ip_length, pseudo_header, write_ip_header},
    icmp::is_host,
    link::Link,
    parse::{Facts, IPV4, IPV6, Kind, protocol},
    reset::Reset,
};

/// Bytes of the offending packet that an ICMP error quotes: as many as fit in 576 (RFC 1812,
/// 4.3.2.3).
const QUOTE_V4: usize = 576 - IPV4 - HEADER;
/// The same for ICMPv6: as many as fit in IPv6's minimum MTU (RFC 4443, 2.4 c).
const QUOTE_V6: usize = MINIMUM_MTU - IPV6 - HEADER;
/// Length of the ICMP header of both families' errors.
const HEADER: usize = 8;
/// IPv6's minimum MTU (RFC 8200, 5).
const MINIMUM_MTU: usize = 1280;
/// Whole words of four bytes in the longest quote.
const QUOTE_WORDS: usize = QUOTE_V6 / 4;

/// Types and codes of ICMP (RFC 792) and ICMPv6 (RFC 4443).
mod kind {
    /// Destination unreachable: fragmentation needed (RFC 1191)
    pub(super) const FRAGMENTATION_NEEDED: u16 = 0x0304;
    /// Packet too big
    pub(super) const PACKET_TOO_BIG: u16 = 0x0200;
    /// Time exceeded in transit
    pub(super) const TIME_EXCEEDED: u16 = 0x0b00;
    /// Time exceeded: hop limit
    pub(super) const TIME_EXCEEDED_V6: u16 = 0x0300;
    /// Destination unreachable: port
    pub(super) const PORT_UNREACHABLE: u16 = 0x0303;
    /// Destination unreachable: port
    pub(super) const PORT_UNREACHABLE_V6: u16 = 0x0104;
}

/// Answers the packet; what is counted for it.
///
/// ICMP errors and later fragments are never answered, nor what no single host has sent (RFC 1122,
/// 3.2.2; RFC 4443, 2.4 e).
#[inline(always)]
pub fn refuse<F: Frame, T: Tables>(frame: &mut F, tables: &T, hand: &Hand) -> Reason {
    let Some(settings) = tables.settings() else { return Reason::Inconsistent };
    let facts = &hand.facts;
    let refusal = hand.refusal.0;
    let tcp = facts.protocol.0 == protocol::TCP;
    let v6 = facts.destination.is_v6();
    let (error, answered) = if refusal == Reason::TooBig {
        if v6 && facts.length <= MINIMUM_MTU {
            return Reason::MinimumMtu;
        }
        (too_big(facts, hand.mtu), Reason::TooBig)
    } else if refusal == Reason::TimeExceeded {
        (time_exceeded(facts, settings), Reason::TimeExceeded)
    } else if refusal == Reason::Reset {
        (port_unreachable(facts), if tcp { Reason::Reset } else { Reason::Unreachable })
    } else if refusal == Reason::UnknownPort && settings.pass_unknown() {
        // It cannot be passed either: the kernel would route it back.
        return Reason::UnknownPort;
    } else if refusal == Reason::UnknownPort {
        let unreachable = Reason::UnknownPortUnreachable;
        (port_unreachable(facts), if tcp { Reason::UnknownPortReset } else { unreachable })
    } else {
        return Reason::Inconsistent;
    };
    if matches!(facts.kind.0, Kind::Error | Kind::LaterFragment) || !is_host(&facts.source) {
        return silent(refusal);
    }
    if matches!(answered, Reason::Reset | Reason::UnknownPortReset) {
        let Some(reset) = Reset::answering(frame, facts) else { return silent(refusal) };
        if !tables.may_send_icmp(settings.icmp_rate()) {
            return silent(refusal);
        }
        return told(reset.write(frame, facts), answered);
    }
    if !tables.may_send_icmp(settings.icmp_rate()) {
        return if refusal == Reason::TooBig { Reason::TooBigLimited } else { silent(refusal) };
    }
    let quote = quote_length(facts);
    // The linear part may be shorter than the packet; nothing is written yet.
    let Ok(sum) = sum_of(frame, facts.link(), quote) else { return silent(refusal) };
    told(write_error(frame, facts, &error, quote, sum), answered)
}

/// What is counted where no answer may be sent, or none can be.
#[inline(always)]
const fn silent(refusal: Reason) -> Reason {
    if matches!(refusal, Reason::TooBig) {
        Reason::TooBigSilent
    } else if matches!(refusal, Reason::TimeExceeded) {
        Reason::TtlZero
    } else if matches!(refusal, Reason::UnknownPort) {
        Reason::UnknownPort
    } else {
        Reason::RefusedSilently
    }
}

#[inline(always)]
const fn told(written: Result<(), Reason>, answered: Reason) -> Reason {
    match written {
        Ok(()) => answered,
        Err(reason) => reason,
    }
}

/// An ICMP error.
struct Error {
    /// Type and code
    kind: u16,
    /// What stands behind the checksum
    word: u32,
    source: Address,
}

/// The packet does not fit the path, whose MTU leaves it `mtu` bytes.
///
/// The answer comes from the frontend's address, the one that the sender knows. A sender that
/// allowed fragments is told too: this program cannot fragment, and the sender can.
#[inline(always)]
const fn too_big(facts: &Facts, mtu: usize) -> Error {
    let source = facts.destination;
    if source.is_v6() {
        let word = if mtu < MINIMUM_MTU { MINIMUM_MTU } else { mtu } as u32;
        Error { kind: kind::PACKET_TOO_BIG, word, source }
    } else {
        let word = if mtu > 0xffff { 0xffff } else { mtu } as u32;
        Error { kind: kind::FRAGMENTATION_NEEDED, word, source }
    }
}

/// The packet's time is over. The answer comes from this host, as a router's would; from the
/// frontend where the host has no address of that family.
#[inline(always)]
const fn time_exceeded(facts: &Facts, settings: &Settings) -> Error {
    let v6 = facts.destination.is_v6();
    let (own, kind) = if v6 {
        (settings.own_v6(), kind::TIME_EXCEEDED_V6)
    } else {
        (settings.own_v4(), kind::TIME_EXCEEDED)
    };
    let [high, low] = own.words();
    let source = if high == 0 && low == 0 { facts.destination } else { own };
    Error { kind, word: 0, source }
}

/// Nothing serves that port, says the frontend's address.
#[inline(always)]
const fn port_unreachable(facts: &Facts) -> Error {
    let source = facts.destination;
    let kind = if source.is_v6() { kind::PORT_UNREACHABLE_V6 } else { kind::PORT_UNREACHABLE };
    Error { kind, word: 0, source }
}

/// How much of the packet is quoted: all of it, or as much as an error may have.
#[inline(always)]
const fn quote_length(facts: &Facts) -> usize {
    let longest = if facts.destination.is_v6() { QUOTE_V6 } else { QUOTE_V4 };
    if facts.length < longest { facts.length } else { longest }
}

/// Adds up `length` bytes from `start` on, four at least; an odd last one as if a zero followed (RFC
/// 1071, 1).
#[inline(always)]
fn sum_of<F: Frame>(frame: &mut F, start: usize, length: usize) -> Result<Sum, Truncated> {
    // What whole words leave over is taken from the start: the verifier can follow where that lies.
    let odd = length & 3;
    let first = u32::from_be_bytes(*frame.window::<4>(start)?);
    let first = u64::from(first) >> (32 - 8 * odd) << (32 - 8 * odd);
    let mut sum = Sum::ZERO;
    let mut done = 0;
    for _ in 0..QUOTE_WORDS {
        if done + 4 > length {
            break;
        }
        sum = sum.add_bytes(frame.window::<4>(start + odd + done)?);
        done += 4;
    }
    // Behind an odd number of bytes, each pair is the wrong way round, and so is their sum (RFC 1071,
    // 2 B).
    let rest = if odd & 1 == 0 { sum.fold() } else { sum.fold().swap_bytes() };
    Ok(Sum::ZERO.add_u32(first as u32).add(rest))
}

/// Puts the headers of an ICMP error before the quote, whose sum is known, and cuts the frame off
/// behind it; the link header leads back to the sender.
#[inline(always)]
fn write_error<F: Frame>(
    frame: &mut F,
    facts: &Facts,
    error: &Error,
    quote: usize,
    sum: Sum,
) -> Result<(), Reason> {
    let v6 = facts.destination.is_v6();
    let number = if v6 { protocol::ICMPV6 } else { protocol::ICMP };
    let payload = HEADER + quote;
    let mut message = sum.add(error.kind).add_u32(error.word);
    if v6 {
        message = message.and(pseudo_header(&error.source, &facts.source, payload, number));
    }
    let message =
        u64::from(error.kind) << 48 | u64::from(message.finish()) << 32 | u64::from(error.word);

    let at = facts.link() + ip_length(v6);
    let link = Link::read(frame, facts.link())?;
    frame.truncate(facts.link() + quote)?;
    frame.grow_front((ip_length(v6) + HEADER) as i32)?;
    link.answer().write(frame, v6)?;
    write_ip_header(frame, facts.link(), &error.source, &facts.source, payload, number)?;
    write(frame, at, message.to_be_bytes())
}
