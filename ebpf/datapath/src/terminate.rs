//! Unwraps tunnel packets that another instance sent to this host.
//!
//! A packet is ours if its outer destination and its inner destination are both addresses of this
//! host. Everything else is somebody else's tunnel, and passes untouched.

use xdp_lb_abi::{Address, AddressFlags, Reason};

use crate::{
    Frame, Tables, checksum,
    link::Link,
    parse::{Facts, IPV4, IPV6, addresses, protocol},
};

/// Explicit congestion notification: the lowest two bits of the traffic class (RFC 3168).
mod ecn {
    pub(super) const MASK: u8 = 3;
    pub(super) const NOT_ECT: u8 = 0;
    pub(super) const ECT_1: u8 = 1;
    pub(super) const ECT_0: u8 = 2;
    pub(super) const CE: u8 = 3;
}

/// What is needed of the inner header.
#[derive(Clone, Copy)]
struct Inner {
    destination: Address,
    traffic_class: u64,
}

/// Unwraps a tunnel packet, which the kernel then delivers; or says why not.
#[inline(never)]
pub fn terminate<F: Frame, T: Tables>(frame: &mut F, tables: &T, facts: &Facts) -> Reason {
    if tables.address_flags(&facts.destination) & AddressFlags::LOCAL == 0 {
        return Reason::TunnelNotOurs;
    }
    let inner = match inner(frame, facts) {
        Ok(inner) => inner,
        Err(reason) => return reason,
    };
    if tables.address_flags(&inner.destination) & AddressFlags::LOCAL == 0 {
        return Reason::TunnelNotOurs;
    }
    if !tables.is_peer(&facts.source) {
        return Reason::TunnelPeer;
    }
    let Some(mark) =
        congestion(facts.traffic_class.0 & ecn::MASK, inner.traffic_class as u8 & ecn::MASK)
    else {
        return Reason::TunnelEcn;
    };
    match unwrap(frame, facts, &inner, mark) {
        Ok(()) => Reason::Unwrapped,
        Err(reason) => reason,
    }
}

#[inline(always)]
fn inner<F: Frame>(frame: &mut F, facts: &Facts) -> Result<Inner, Reason> {
    let at = facts.transport;
    let room = facts.link + facts.length - at;
    if facts.protocol.0 == protocol::IPV4 {
        let header = frame.window::<IPV4>(at)?;
        let header_length = usize::from(header[0] & 0x0f) * 4;
        if header[0] >> 4 != 4 || header_length < IPV4 {
            return Err(Reason::BadHeader);
        }
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if length < header_length || length > room {
            return Err(Reason::BadLength);
        }
        let destination = Address::v4([header[16], header[17], header[18], header[19]]);
        Ok(Inner { destination, traffic_class: header[1].into() })
    } else {
        let header = frame.window::<IPV6>(at)?;
        if header[0] >> 4 != 6 {
            return Err(Reason::BadHeader);
        }
        let length = IPV6 + usize::from(u16::from_be_bytes([header[4], header[5]]));
        if length > room {
            return Err(Reason::BadLength);
        }
        let traffic_class = header[0] << 4 | header[1] >> 4;
        let [_, _, _, _, _, _, _, _, rest @ ..] = header;
        let (_, destination) = addresses(rest);
        Ok(Inner { destination, traffic_class: traffic_class.into() })
    }
}

/// The mark of the delivered packet; nothing where it must be dropped (RFC 6040, figure 4).
#[inline(always)]
const fn congestion(outer: u8, inner: u8) -> Option<u8> {
    match (inner, outer) {
        (ecn::NOT_ECT, ecn::CE) => None,
        (ecn::NOT_ECT, _) => Some(ecn::NOT_ECT),
        (_, ecn::CE) => Some(ecn::CE),
        (ecn::ECT_0, ecn::ECT_1) => Some(ecn::ECT_1),
        (inner, _) => Some(inner),
    }
}

#[inline(always)]
fn unwrap<F: Frame>(frame: &mut F, facts: &Facts, inner: &Inner, mark: u8) -> Result<(), Reason> {
    let link = Link::read(frame, facts.link)?;
    let v6 = inner.destination.is_v6();
    frame.grow_front(facts.link as i32 - facts.transport as i32)?;
    link.write(frame, v6)?;
    if inner.traffic_class as u8 & ecn::MASK != mark {
        set_congestion(frame, facts.link, v6, mark)?;
    }
    Ok(())
}

/// Writes the mark into the delivered packet's header.
#[inline(always)]
fn set_congestion<F: Frame>(frame: &mut F, at: usize, v6: bool, mark: u8) -> Result<(), Reason> {
    if v6 {
        // The traffic class lies across the first two bytes; its lowest bits are bits 5 and 4.
        let first = frame.window::<2>(at)?;
        first[1] = first[1] & !0x30 | mark << 4;
    } else {
        let header = frame.window::<IPV4>(at)?;
        let before = u16::from_be_bytes([header[0], header[1]]);
        header[1] = header[1] & !ecn::MASK | mark;
        let after = u16::from_be_bytes([header[0], header[1]]);
        let sum = checksum::update(u16::from_be_bytes([header[10], header[11]]), before, after);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    Ok(())
}
