//! Modes `geneve` and `local`: the destination becomes the pod's.

use xdp_lb_abi::{Backend, Device, Mode, Reason};

use crate::{
    Frame, Hand, Tables, Verdict,
    decide::Choice,
    deliver::deliver_with,
    forward::{leave, link_length, next_hop, path_mtu, write_link},
    frame::write_v6,
    geneve,
    header::{write_ipv4_header, write_ipv6_start},
    parse::{Facts, IPV4, IPV6, Kind, Word, ethertype, protocol},
    rewrite::{End, Side, decrement_ttl, quoted, rewrite},
    stage::hand_back,
};

/// Rewrites the packet for its pod, then sends it to the pod's node or to the stack.
///
/// # Errors
///
/// What is counted.
#[inline(always)]
pub fn pods<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    hand: &Hand,
) -> Result<Verdict, Reason> {
    let backend = tables.backend(hand.backend.id).ok_or(Reason::Inconsistent)?;
    let pod = (backend.address(), backend.port());
    if pod.0.is_v6() != hand.facts.destination.is_v6() {
        return Err(Reason::Family);
    }
    match backend.mode() {
        Some(Mode::Geneve) => tunnel(frame, tables, hand, backend, pod),
        Some(Mode::Local) => local(frame, tables, hand, pod),
        Some(Mode::L2 | Mode::Ipip | Mode::Snat) | None => Err(Reason::Inconsistent),
    }
}

/// The frontend that the packet came by; of a later fragment, without its port.
#[inline(always)]
const fn frontend(hand: &Hand) -> End {
    if matches!(hand.facts.kind.0, Kind::Error) {
        return (hand.quote.source, hand.quote.ports.0.0);
    }
    (hand.facts.destination, hand.facts.ports.0.1)
}

/// Addresses the packet to the pod; an error's quotation then came from there.
#[inline(always)]
fn aim<F: Frame>(frame: &mut F, hand: &Hand, pod: End) -> Result<(), Reason> {
    rewrite(frame, &hand.facts, Side::Destination, pod)?;
    if hand.facts.kind.0 == Kind::Error {
        quoted(frame, &hand.facts, &hand.quote, Side::Source, pod)?;
    }
    Ok(())
}

/// Counts a packet for its frontend and its pod.
#[inline(always)]
pub(crate) fn count<T: Tables>(tables: &T, hand: &Hand) {
    tables.count_frontend(hand.backend.stats, &hand.facts);
    tables.count_backend(hand.backend.id, &hand.facts);
}

/// Has the packet delivered on this host.
#[inline(always)]
fn local<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    hand: &Hand,
    pod: End,
) -> Result<Verdict, Reason> {
    aim(frame, hand, pod)?;
    let ports = Word((hand.facts.ports.0.0, pod.1));
    let aimed = Facts { destination: pod.0, ports, ..hand.facts };
    Ok(deliver_with(tables, &aimed, hand.backend, frontend(hand), Reason::Local))
}

/// Sends the packet to the pod's node. Unlike in the other modes, the balancer is a router to it: the
/// inner packet is no longer the client's own.
#[inline(always)]
fn tunnel<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    hand: &Hand,
    backend: &Backend,
    pod: End,
) -> Result<Verdict, Reason> {
    let facts = &hand.facts;
    if facts.ttl.0 <= 1 {
        return Ok(hand_back(tables, Reason::TimeExceeded, 0));
    }
    let hop = next_hop(tables, facts, backend)?;
    let device = tables.device(hop.device()).ok_or(Reason::Inconsistent)?;
    let ip = if backend.tunnel_is_v6() { IPV6 } else { IPV4 };
    let datagram = geneve::overhead(facts.destination.is_v6());
    let mtu = path_mtu(backend, device);
    if facts.length + ip + datagram > mtu {
        let room = mtu.saturating_sub(ip + datagram);
        return Ok(hand_back(tables, Reason::TooBig, room));
    }
    let verdict = leave(frame, tables, device, hop)?;
    aim(frame, hand, pod)?;
    decrement_ttl(frame, facts)?;
    wrap(frame, facts, &Choice { chosen: hand.backend, backend }, device, frontend(hand))?;
    let kind = if backend.tunnel_is_v6() { ethertype::IPV6 } else { ethertype::IPV4 };
    write_link(frame, device, hop, facts.priority.0, kind)?;
    count(tables, hand);
    if facts.kind.0 == Kind::Error {
        tables.count_reason(Reason::IcmpForwarded, frame.linear_length());
    }
    Ok(verdict)
}

/// Puts the tunnel's headers in front of a packet that is addressed to its pod, and makes room for the
/// link header.
#[inline(always)]
pub(crate) fn wrap<F: Frame>(
    frame: &mut F,
    facts: &Facts,
    choice: &Choice<'_>,
    device: &Device,
    frontend: End,
) -> Result<(), Reason> {
    let ip = if choice.backend.tunnel_is_v6() { IPV6 } else { IPV4 };
    let datagram = geneve::overhead(facts.destination.is_v6());
    let link = link_length(device);
    frame.wrap_front(link as i32 - facts.link() as i32, ip, datagram)?;
    write_outer(frame, link, facts, choice, facts.length + datagram)?;
    geneve::write_headers(frame, link + ip, choice.chosen.hash, facts.length, frontend)
}

/// Writes the outer IP header, with the inner DSCP and ECN (RFC 2983, 4.1; RFC 6040, 4.1, normal
/// mode).
#[inline(always)]
fn write_outer<F: Frame>(
    frame: &mut F,
    at: usize,
    facts: &Facts,
    choice: &Choice<'_>,
    datagram: usize,
) -> Result<(), Reason> {
    let (class, backend) = (facts.traffic_class.0, choice.backend);
    let (source, end) = (backend.source(), backend.tunnel());
    if backend.tunnel_is_v6() {
        // RFC 6438
        let label = choice.chosen.hash >> 12;
        write_ipv6_start(frame, at, class, label, datagram, protocol::UDP)?;
        write_v6(frame, at + 8, &source)?;
        return write_v6(frame, at + 24, &end);
    }
    let (source, end) = (source.v4_octets(), end.v4_octets());
    write_ipv4_header(frame, at, class, IPV4 + datagram, protocol::UDP, source, end)
}
