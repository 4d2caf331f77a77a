//! Network address translation of one packet (RFC 3022): addresses, ports, and every checksum over
//! them; in the packet itself, or in the one that an ICMP error quotes.
//!
//! The parser has seen the headers, so nothing here fails on a sound frame; if it does, the frame may
//! be half written, and [`Reason::Headroom`] drops it.

use xdp_lb_abi::{Address, FlowKey, Reason};

use crate::{
    Frame, Truncated,
    checksum::{Cover, Delta},
    crc32c,
    frame::{write, write_v6},
    parse::{Facts, Kind, protocol},
    stage::Quote,
};

/// Address and port of one end of a flow.
pub(crate) type End = (Address, u16);

/// Which end of a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Side {
    Source,
    Destination,
}

impl Facts {
    /// The packet's flow, as its sender sees it.
    #[inline(always)]
    pub const fn flow(&self) -> FlowKey {
        FlowKey::new(self.source, self.destination, self.ports.0, self.protocol.0)
    }

    #[inline(always)]
    const fn side(&self, side: Side) -> End {
        match side {
            Side::Source => (self.source, self.ports.0.0),
            Side::Destination => (self.destination, self.ports.0.1),
        }
    }
}

/// Gives one side of a packet another address, of the same family, and port.
///
/// The packet says which family that is, not the address: where an address comes by way of another
/// function's stack, Linux 6.1's verifier may take one family's number for the only one there is, and
/// cut the other branch off.
///
/// A later fragment has no ports, and an ICMP error has its own in its quotation ([`quoted`]): of
/// both only the address changes.
///
/// # Errors
///
/// [`Reason::SctpFragment`], before anything is written.
#[inline(always)]
pub(crate) fn rewrite<F: Frame>(
    frame: &mut F,
    facts: &Facts,
    side: Side,
    new: End,
) -> Result<(), Reason> {
    let old = facts.side(side);
    let v6 = facts.destination.is_v6();
    let sctp = facts.protocol.0 == protocol::SCTP;
    let ports = matches!(facts.kind.0, Kind::Flow | Kind::FirstFragment) && old.1 != new.1;
    if sctp && ports && facts.kind.0 == Kind::FirstFragment {
        // Its checksum is over the whole packet, whose end is in another fragment.
        return Err(Reason::SctpFragment);
    }
    let delta = address(frame, facts.link(), side, old.0, new.0, v6)?;
    if facts.kind.0 == Kind::LaterFragment {
        return Ok(());
    }
    let at = facts.transport();
    let (field, pseudo, header) = match facts.protocol.0 {
        protocol::TCP => (at + 16, Cover::Pseudo, Cover::Header),
        protocol::UDP => (at + 6, Cover::PseudoUdp, Cover::HeaderUdp),
        protocol::ICMPV6 => (at + 2, Cover::Pseudo, Cover::Header),
        // ICMP and SCTP have no pseudo header (RFC 792, RFC 9260).
        _ => (0, Cover::Pseudo, Cover::Header),
    };
    if field != 0 {
        frame.apply(field, delta, pseudo).map_err(|Truncated| Reason::Headroom)?;
    }
    if !ports {
        return Ok(());
    }
    write(frame, at + port_offset(side), new.1.to_be_bytes())?;
    if sctp {
        return sctp_checksum(frame, facts, side, old.1 ^ new.1);
    }
    let delta = Delta::NONE.word(old.1, new.1);
    frame.apply(field, delta, header).map_err(|Truncated| Reason::Headroom)
}

/// Gives one side of the packet that an ICMP error quotes another address and port.
///
/// The quoted transport checksum is kept right where it is quoted (RFC 5508, 4.2); SCTP's cannot be,
/// since the packet's end is missing.
#[inline(always)]
pub(crate) fn quoted<F: Frame>(
    frame: &mut F,
    facts: &Facts,
    quote: &Quote,
    side: Side,
    new: End,
) -> Result<(), Reason> {
    let old = match side {
        Side::Source => (quote.source, quote.ports.0.0),
        Side::Destination => (quote.destination, quote.ports.0.1),
    };
    let v6 = facts.destination.is_v6();
    let addresses = difference(old.0, new.0, v6);
    let ports = Delta::NONE.word(old.1, new.1);
    let mut message = addresses.and(ports);
    if !v6 {
        message = message.and(replace(frame, quote.at() + 10, addresses, Cover::Header)?);
    }
    write_address(frame, quote.at(), side, new.0, v6)?;
    write(frame, quote.transport() + port_offset(side), new.1.to_be_bytes())?;
    let (field, cover) = match quote.protocol.0 {
        protocol::TCP => (quote.transport() + 16, Cover::Header),
        protocol::UDP => (quote.transport() + 6, Cover::HeaderUdp),
        _ => (0, Cover::Header),
    };
    if field != 0 && field + 2 <= quote.end {
        message = message.and(replace(frame, field, addresses.and(ports), cover)?);
    }
    frame.apply(facts.transport() + 2, message, Cover::Header).map_err(|Truncated| Reason::Headroom)
}

/// Takes one off the TTL or hop limit of a packet that is routed on.
#[inline(always)]
pub(crate) fn decrement_ttl<F: Frame>(frame: &mut F, facts: &Facts) -> Result<(), Reason> {
    let ttl = facts.ttl.0.wrapping_sub(1);
    if facts.destination.is_v6() {
        // With the byte before it: the verifier learns nothing from a check of a single byte.
        let fields = frame.window::<2>(facts.link() + 6).map_err(|Truncated| Reason::Headroom)?;
        fields[1] = ttl;
        return Ok(());
    }
    let header = frame.window::<4>(facts.link() + 8).map_err(|Truncated| Reason::Headroom)?;
    let before = u16::from_be_bytes([header[0], header[1]]);
    let after = u16::from_be_bytes([ttl, header[1]]);
    let sum = u16::from_be_bytes([header[2], header[3]]);
    let sum = Delta::NONE.word(before, after).applied(sum, Cover::Header);
    let rest = u32::from(after) << 16 | u32::from(sum);
    *header = rest.to_be_bytes();
    Ok(())
}

/// Writes another address into an IP header, with its checksum; the difference that it makes.
#[inline(always)]
fn address<F: Frame>(
    frame: &mut F,
    at: usize,
    side: Side,
    old: Address,
    new: Address,
    v6: bool,
) -> Result<Delta, Reason> {
    let delta = difference(old, new, v6);
    if !v6 {
        replace(frame, at + 10, delta, Cover::Header)?;
    }
    write_address(frame, at, side, new, v6)?;
    Ok(delta)
}

#[inline(always)]
fn write_address<F: Frame>(
    frame: &mut F,
    at: usize,
    side: Side,
    new: Address,
    v6: bool,
) -> Result<(), Reason> {
    match (v6, side) {
        (true, Side::Source) => write_v6(frame, at + 8, &new),
        (true, Side::Destination) => write_v6(frame, at + 24, &new),
        (false, Side::Source) => write(frame, at + 12, new.v4_octets()),
        (false, Side::Destination) => write(frame, at + 16, new.v4_octets()),
    }
}

#[inline(always)]
fn difference(old: Address, new: Address, v6: bool) -> Delta {
    if v6 {
        Delta::NONE.address_v6(old.words(), new.words())
    } else {
        Delta::NONE.address_v4(old.v4_octets(), new.v4_octets())
    }
}

/// Applies a difference to a checksum that is plain data; the difference that this makes.
#[inline(always)]
fn replace<F: Frame>(
    frame: &mut F,
    at: usize,
    delta: Delta,
    cover: Cover,
) -> Result<Delta, Reason> {
    let field = frame.window::<2>(at).map_err(|Truncated| Reason::Headroom)?;
    let before = u16::from_be_bytes(*field);
    let after = delta.applied(before, cover);
    *field = after.to_be_bytes();
    Ok(Delta::NONE.word(before, after))
}

#[inline(always)]
const fn port_offset(side: Side) -> usize {
    match side {
        Side::Source => 0,
        Side::Destination => 2,
    }
}

/// Brings SCTP's CRC32c (RFC 9260, appendix A) up to date after a port has changed in these bits.
#[inline(always)]
fn sctp_checksum<F: Frame>(
    frame: &mut F,
    facts: &Facts,
    side: Side,
    changed: u16,
) -> Result<(), Reason> {
    let length = facts.end().wrapping_sub(facts.transport());
    // As the first four bytes of the packet, lowest first.
    let bits = match side {
        Side::Source => u32::from(changed.swap_bytes()),
        Side::Destination => u32::from(changed.swap_bytes()) << 16,
    };
    let field = frame.window::<4>(facts.transport() + 8).map_err(|Truncated| Reason::Headroom)?;
    let checksum = u32::from_le_bytes(*field);
    // A packet that the stack left to the device to complete has none yet.
    if checksum != 0 {
        *field = (checksum ^ crc32c::difference(bits, length as u32)).to_le_bytes();
    }
    Ok(())
}
