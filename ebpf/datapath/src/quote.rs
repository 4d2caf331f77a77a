//! Reads the packet that an ICMP error quotes (RFC 792, RFC 4443).
//!
//! Eight bytes of the transport header are enough: they hold both ports. How much more is quoted is
//! up to the sender.

use xdp_lb_abi::{Address, Reason};

use crate::{
    Frame, Truncated,
    parse::{
        Facts, IPV4, IPV6, NO_FRAGMENT, Offset, Word, follow_extensions, is_extension, part,
        protocol,
    },
    stage::Quote,
};

/// Length of the header of an ICMP error, of both families.
const HEADER: usize = 8;
/// What is needed of the quoted transport header.
const PORTS: usize = 8;

/// Reads the quoted packet of an ICMP error.
///
/// # Errors
///
/// [`Reason::IcmpQuote`] where it is cut off before its ports, has none, or is malformed.
#[inline(always)]
pub(crate) fn read_quote<F: Frame>(frame: &mut F, facts: &Facts) -> Result<Quote, Reason> {
    let at = facts.transport() + HEADER;
    let mut quote = if facts.destination.is_v6() {
        read_ipv6(frame, at, facts.end())?
    } else {
        read_ipv4(frame, at, facts.end())?
    };
    if !matches!(quote.protocol.0, protocol::TCP | protocol::UDP | protocol::SCTP)
        || quote.transport() + PORTS > quote.end
    {
        return Err(Reason::IcmpQuote);
    }
    let header = frame.window::<4>(quote.transport()).map_err(cut_off)?;
    quote.ports = Word((
        u16::from_be_bytes([header[0], header[1]]),
        u16::from_be_bytes([header[2], header[3]]),
    ));
    Ok(quote)
}

#[inline(always)]
fn read_ipv4<F: Frame>(frame: &mut F, at: usize, room: usize) -> Result<Quote, Reason> {
    let header = frame.window::<IPV4>(at).map_err(cut_off)?;
    let header_length = usize::from(header[0] & 0x0f) * 4;
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    if header[0] >> 4 != 4 || header_length < IPV4 || fragment & 0x1fff != 0 {
        return Err(Reason::IcmpQuote);
    }
    let end = at + usize::from(u16::from_be_bytes([header[2], header[3]]));
    Ok(Quote {
        at: Offset::new(at),
        transport: Offset::new(at + header_length),
        end: if end < room { end } else { room },
        source: Address::v4(part(header, 12)),
        destination: Address::v4(part(header, 16)),
        ports: Word((0, 0)),
        protocol: Word(header[9]),
    })
}

#[inline(always)]
fn read_ipv6<F: Frame>(frame: &mut F, at: usize, room: usize) -> Result<Quote, Reason> {
    let header = frame.window::<IPV6>(at).map_err(cut_off)?;
    if header[0] >> 4 != 6 {
        return Err(Reason::IcmpQuote);
    }
    let end = at + IPV6 + usize::from(u16::from_be_bytes([header[4], header[5]]));
    let mut next = header[6];
    let (source, destination) = (Address::v6(part(header, 8)), Address::v6(part(header, 24)));
    let mut transport = at + IPV6;
    if is_extension(next) {
        let chain = follow_extensions(frame, next, transport).map_err(|_| Reason::IcmpQuote)?;
        // A first fragment has the ports, a later one has not.
        if chain.fragment != NO_FRAGMENT && chain.fragment != 0 {
            return Err(Reason::IcmpQuote);
        }
        next = chain.next;
        transport = chain.end;
    }
    let end = if end < room { end } else { room };
    let ports = Word((0, 0));
    let (at, transport) = (Offset::new(at), Offset::new(transport));
    Ok(Quote { at, transport, end, source, destination, ports, protocol: Word(next) })
}

#[inline(always)]
fn cut_off(Truncated: Truncated) -> Reason {
    Reason::IcmpQuote
}
