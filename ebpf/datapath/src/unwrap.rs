//! Unwraps tunnel packets that another instance sent to this host.
//!
//! A packet in IP is ours if its outer destination and its inner destination are both addresses of
//! this host. Everything else is somebody else's tunnel, and passes untouched.
//!
//! A Geneve packet is for a pod on this host, or for a server in the host's own network; the frontend
//! that it names is what the answers come from.

use xdp_lb_abi::{Address, AddressFlags, Reason};

use crate::{
    Frame, Tables, Verdict, checksum,
    deliver::deliver_with,
    geneve,
    link::Link,
    parse::{self, Facts, IPV4, IPV6, Kind, Offset, part, protocol},
    stage::Chosen,
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
///
/// # Errors
///
/// Always: what is counted.
#[inline(always)]
pub fn unwrap<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    facts: &Facts,
) -> Result<Verdict, Reason> {
    if facts.kind.0 == Kind::Tunnel {
        return Err(ipip(frame, tables, facts));
    }
    geneve(frame, tables, facts).map_err(|reason| {
        // Sound, but nothing that a balancer forwards.
        let foreign = matches!(
            reason,
            Reason::ExtensionHeader
                | Reason::Fragment
                | Reason::Icmp
                | Reason::Neighbour
                | Reason::Protocol
        );
        if foreign { Reason::GeneveFormat } else { reason }
    })
}

/// Opens a Geneve packet and has delivered what is inside; everything is checked before it is
/// touched.
#[inline(always)]
fn geneve<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    outer: &Facts,
) -> Result<Verdict, Reason> {
    if tables.address_flags(&outer.destination) & AddressFlags::LOCAL == 0
        || geneve::is_overlay(frame, outer)
    {
        return Err(Reason::NoFrontend);
    }
    if !tables.is_peer(&outer.source) {
        return Err(Reason::TunnelPeer);
    }
    let opened = geneve::read_headers(frame, outer)?;
    let mut inner = carried(frame, outer, &opened)?;
    if !tables.is_pod(&inner.destination)
        && tables.address_flags(&inner.destination) & AddressFlags::LOCAL == 0
    {
        return Err(Reason::NotHere);
    }
    let marks = (outer.traffic_class.0 & ecn::MASK, inner.traffic_class.0 & ecn::MASK);
    let mark = congestion(marks.0, marks.1).ok_or(Reason::TunnelEcn)?;
    strip(frame, outer.link(), inner.link(), inner.destination.is_v6())?;
    let headers = inner.transport() - inner.link();
    inner.link = outer.link;
    inner.transport = Offset::new(outer.link() + headers);
    if marks.1 != mark {
        set_congestion(frame, inner.link(), inner.destination.is_v6(), mark)?;
    }
    let nobody = Chosen::default();
    Ok(deliver_with(tables, &inner, nobody, opened.frontend, Reason::Unwrapped))
}

/// Reads the packet in a Geneve packet, whose end it must not go beyond.
#[inline(always)]
fn carried<F: Frame>(
    frame: &mut F,
    outer: &Facts,
    opened: &geneve::Opened,
) -> Result<Facts, Reason> {
    let inner = if opened.frontend.0.is_v6() {
        parse::ipv6(frame, opened.inner, outer.priority.0)?
    } else {
        parse::ipv4(frame, opened.inner, outer.priority.0)?
    };
    if inner.end() > opened.end {
        return Err(Reason::BadLength);
    }
    match inner.kind.0 {
        Kind::Flow | Kind::FirstFragment | Kind::LaterFragment | Kind::Error => Ok(inner),
        Kind::Echo | Kind::Tunnel => Err(Reason::GeneveFormat),
    }
}

#[inline(always)]
fn ipip<F: Frame, T: Tables>(frame: &mut F, tables: &T, facts: &Facts) -> Reason {
    let flags = tables.address_flags(&facts.destination);
    if flags & AddressFlags::LOCAL == 0 {
        // The kernel would route what is for a frontend back to where it came from.
        let foreign = flags & AddressFlags::FRONTEND != 0;
        return if foreign { Reason::NotServed } else { Reason::TunnelNotOurs };
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
    let v6 = inner.destination.is_v6();
    let unwrapped = strip(frame, facts.link(), facts.transport(), v6).and_then(|()| {
        if inner.traffic_class as u8 & ecn::MASK == mark {
            return Ok(());
        }
        set_congestion(frame, facts.link(), v6, mark)
    });
    match unwrapped {
        Ok(()) => Reason::Unwrapped,
        Err(reason) => reason,
    }
}

#[inline(always)]
fn inner<F: Frame>(frame: &mut F, facts: &Facts) -> Result<Inner, Reason> {
    let at = facts.transport();
    let room = facts.link() + facts.length - at;
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
        let destination = Address::v4(part(header, 16));
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
        let destination = Address::v6(part(header, 24));
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

/// Puts the link header, which ends at `link`, in front of the packet at `inner`.
#[inline(always)]
fn strip<F: Frame>(frame: &mut F, link: usize, inner: usize, v6: bool) -> Result<(), Reason> {
    let header = Link::read(frame, link)?;
    frame.grow_front(link as i32 - inner as i32)?;
    header.write(frame, v6)
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
