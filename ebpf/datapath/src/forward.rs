//! Sends a packet to its backend: modes `l2` and `ipip`.

use xdp_lb_abi::{Backend, Device, Hop, Mode, Reason};

use crate::{
    Frame, Hand, Tables, Verdict,
    decide::Choice,
    frame::{write, write_v6},
    header::{write_ipv4_header, write_ipv6_start},
    link::write_macs,
    parse::{ETHERNET, Facts, IPV4, IPV6, Kind, TAG, ethertype, protocol},
    stage::refuse_with,
};

/// Sends the packet to the chosen backend.
///
/// # Errors
///
/// The [`Reason`] why it cannot go there; the frame is then unchanged, or answered.
#[inline(always)]
pub fn forward<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    facts: &Facts,
    choice: &Choice<'_>,
) -> Result<Verdict, Reason> {
    let backend = choice.backend;
    let outer = outer_length(backend)?;
    let hop = next_hop(tables, facts, backend)?;
    let device = tables.device(hop.device()).ok_or(Reason::Inconsistent)?;
    let mtu = path_mtu(backend, device);
    if facts.length + outer > mtu {
        return Ok(refuse_with(tables, facts, Reason::TooBig, mtu - outer));
    }
    let verdict = leave(frame, tables, device, hop)?;
    wrap(frame, facts, choice, device, hop, outer)?;
    Ok(verdict)
}

/// Length of the header that goes in front of a packet for a backend.
#[inline(always)]
pub(crate) fn outer_length(backend: &Backend) -> Result<usize, Reason> {
    match backend.mode() {
        Some(Mode::L2) => Ok(0),
        Some(Mode::Ipip) if backend.tunnel_is_v6() => Ok(IPV6),
        Some(Mode::Ipip) => Ok(IPV4),
        Some(Mode::Geneve | Mode::Local | Mode::Snat) | None => Err(Reason::Inconsistent),
    }
}

/// Writes the link header, and the outer one of `outer` bytes behind it.
#[inline(always)]
pub(crate) fn wrap<F: Frame>(
    frame: &mut F,
    facts: &Facts,
    choice: &Choice<'_>,
    device: &Device,
    hop: Hop,
    outer: usize,
) -> Result<(), Reason> {
    let link = link_length(device);
    let growth = link as i32 - facts.link() as i32;
    if growth + outer as i32 != 0 {
        frame.wrap_front(growth, outer, 0)?;
    }
    let kind = match outer {
        IPV4 => write_ipv4(frame, link, facts, choice)?,
        IPV6 => write_ipv6(frame, link, facts, choice)?,
        _ => inner_kind(facts),
    };
    write_link(frame, device, hop, facts.priority.0, kind)
}

/// Sends the packet to the chosen backend, and counts it.
#[inline(always)]
pub(crate) fn forward_and_count<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    facts: &Facts,
    choice: &Choice<'_>,
) -> Result<Verdict, Reason> {
    let verdict = forward(frame, tables, facts, choice)?;
    if !matches!(verdict, Verdict::Next(_)) {
        tables.count_frontend(choice.chosen.stats, facts);
        tables.count_backend(choice.chosen.id, facts);
    }
    Ok(verdict)
}

/// Stage `Forward`: sends a packet whose backend was chosen in an earlier stage, a fragment or an ICMP
/// error.
///
/// # Errors
///
/// As [`forward`].
#[inline(always)]
pub fn forward_later<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    hand: &Hand,
) -> Result<Verdict, Reason> {
    let backend = tables.backend(hand.backend.id).ok_or(Reason::Inconsistent)?;
    let choice = Choice { chosen: hand.backend, backend };
    let verdict = forward_and_count(frame, tables, &hand.facts, &choice)?;
    if hand.facts.kind.0 == Kind::Error && !matches!(verdict, Verdict::Next(_)) {
        tables.count_reason(Reason::IcmpForwarded, frame.linear_length());
    }
    Ok(verdict)
}

/// The next hop towards a backend.
#[inline(always)]
pub(crate) fn next_hop<T: Tables>(
    tables: &T,
    facts: &Facts,
    backend: &Backend,
) -> Result<Hop, Reason> {
    let mut hop = backend.hop();
    if hop.device() == 0 {
        hop = tables.route(facts, backend);
        if hop.device() == 0 {
            return Err(Reason::NoNextHop);
        }
    }
    Ok(hop)
}

/// How the frame leaves by a device; before the frame is changed, since the device may be gone.
#[inline(always)]
pub(crate) fn leave<F: Frame, T: Tables>(
    frame: &F,
    tables: &T,
    device: &Device,
    hop: Hop,
) -> Result<Verdict, Reason> {
    if device.ifindex() == frame.ingress() {
        return Ok(Verdict::Transmit);
    }
    if !tables.redirect(hop.device()) {
        return Err(Reason::NoNextHop);
    }
    Ok(Verdict::Redirect(hop.device().into()))
}

/// Length of the link header of frames that leave by a device.
#[inline(always)]
pub(crate) fn link_length(device: &Device) -> usize {
    ETHERNET + usize::from(device.tags()) * TAG
}

/// Largest IP packet on the way to the backend; at least what any link carries (RFC 791, 3.2), at
/// most what an IPv4 header can say: a loopback device's MTU is more.
#[inline(always)]
pub(crate) fn path_mtu(backend: &Backend, device: &Device) -> usize {
    let mtu = if backend.mtu() != 0 { backend.mtu().into() } else { device.mtu() as usize };
    mtu.clamp(68, 0xffff)
}

#[inline(always)]
pub(crate) const fn inner_kind(facts: &Facts) -> u16 {
    if facts.destination.is_v6() { ethertype::IPV6 } else { ethertype::IPV4 }
}

#[inline(always)]
const fn inner_protocol(facts: &Facts) -> u8 {
    if facts.destination.is_v6() { protocol::IPV6 } else { protocol::IPV4 }
}

/// Writes the Ethernet header with the device's tags.
#[inline(always)]
pub(crate) fn write_link<F: Frame>(
    frame: &mut F,
    device: &Device,
    hop: Hop,
    priority: u8,
    kind: u16,
) -> Result<(), Reason> {
    write_macs(frame, hop.mac_number(), device.mac_number())?;
    let mut end = 12;
    if device.tags() >= 1 {
        write_tag(frame, end, device.outer_tag(), priority)?;
        end += TAG;
        if device.tags() >= 2 {
            write_tag(frame, end, device.inner_tag(), priority)?;
            end += TAG;
        }
    }
    write(frame, end, kind.to_be_bytes())
}

#[inline(always)]
fn write_tag<F: Frame>(frame: &mut F, at: usize, tag: [u8; 4], priority: u8) -> Result<(), Reason> {
    let [tpid_high, tpid_low, id_high, id_low] = tag;
    write(frame, at, [tpid_high, tpid_low, priority | id_high & 0x0f, id_low])
}

/// The outer source: its lowest bits come from the flow, so that receivers spread load.
#[inline(always)]
fn varied(source: [u8; 4], backend: &Backend, hash: u32) -> [u8; 4] {
    let bits = backend.source_bits();
    let mask = if bits >= 32 { u32::MAX } else { (1_u32 << bits) - 1 };
    (u32::from_be_bytes(source) & !mask | hash & mask).to_be_bytes()
}

/// Writes the outer IPv4 header (RFC 2003).
///
/// DSCP and ECN are the inner ones (RFC 2983, 4.1; RFC 6040, 4.1, normal mode). Don't fragment is
/// always set: what does not fit was answered before.
#[inline(always)]
fn write_ipv4<F: Frame>(
    frame: &mut F,
    at: usize,
    facts: &Facts,
    choice: &Choice<'_>,
) -> Result<u16, Reason> {
    let source = varied(choice.backend.source().v4_octets(), choice.backend, choice.chosen.hash);
    let destination = choice.backend.tunnel().v4_octets();
    let length = facts.length + IPV4;
    let protocol = inner_protocol(facts);
    write_ipv4_header(frame, at, facts.traffic_class.0, length, protocol, source, destination)?;
    Ok(ethertype::IPV4)
}

/// Writes the outer IPv6 header (RFC 2473); the flow label carries the flow's hash (RFC 6438).
#[inline(always)]
fn write_ipv6<F: Frame>(
    frame: &mut F,
    at: usize,
    facts: &Facts,
    choice: &Choice<'_>,
) -> Result<u16, Reason> {
    let source = choice.backend.source();
    let low = varied(source.v4_octets(), choice.backend, choice.chosen.hash);
    let label = choice.chosen.hash >> 12;
    write_ipv6_start(frame, at, facts.traffic_class.0, label, facts.length, inner_protocol(facts))?;
    write_v6(frame, at + 8, &source)?;
    write(frame, at + 20, low)?;
    write_v6(frame, at + 24, &choice.backend.tunnel())?;
    Ok(ethertype::IPV6)
}
