//! Sends a packet to its backend: modes `l2` and `ipip`.

use xdp_lb_abi::{Backend, Device, Hop, Mode, Reason};

use crate::{
    Frame, Tables, Verdict,
    decide::Choice,
    frame::write,
    header::{write_ipv4_header, write_ipv6_start},
    icmp,
    parse::{ETHERNET, Facts, IPV4, IPV6, TAG, ethertype, protocol},
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
    let outer = match backend.mode() {
        Some(Mode::L2) => 0,
        Some(Mode::Ipip) if backend.tunnel_is_v6() => IPV6,
        Some(Mode::Ipip) => IPV4,
        None => return Err(Reason::Inconsistent),
    };
    let mut hop = backend.hop();
    if hop.device() == 0 {
        hop = tables.route(facts, backend);
        if hop.device() == 0 {
            return Err(Reason::NoNextHop);
        }
    }
    let device = tables.device(hop.device()).ok_or(Reason::Inconsistent)?;
    let mtu = path_mtu(backend, device);
    if facts.length + outer > mtu {
        return Err(icmp::too_big(frame, tables, facts, mtu - outer, choice.settings.icmp_rate()));
    }
    let transmit = device.ifindex() == frame.ingress();
    if !transmit && !tables.redirect(hop.device()) {
        return Err(Reason::NoNextHop);
    }
    let link = ETHERNET + usize::from(device.tags()) * TAG;
    let growth = (link + outer) as i32 - facts.link as i32;
    if growth != 0 {
        frame.grow_front(growth)?;
    }
    let kind = match outer {
        IPV4 => write_ipv4(frame, link, facts, choice)?,
        IPV6 => write_ipv6(frame, link, facts, choice)?,
        _ => inner_kind(facts),
    };
    write_link(frame, device, hop, facts.priority.0, kind)?;
    Ok(if transmit { Verdict::Transmit } else { Verdict::Redirect(hop.device()) })
}

/// Largest IP packet on the way to the backend; at least what any link carries (RFC 791, 3.2), at
/// most what an IPv4 header can say: a loopback device's MTU is more.
#[inline(always)]
fn path_mtu(backend: &Backend, device: &Device) -> usize {
    let mtu = if backend.mtu() != 0 { backend.mtu().into() } else { device.mtu() as usize };
    mtu.clamp(68, 0xffff)
}

#[inline(always)]
const fn inner_kind(facts: &Facts) -> u16 {
    if facts.destination.is_v6() { ethertype::IPV6 } else { ethertype::IPV4 }
}

#[inline(always)]
const fn inner_protocol(facts: &Facts) -> u8 {
    if facts.destination.is_v6() { protocol::IPV6 } else { protocol::IPV4 }
}

/// Writes the Ethernet header with the device's tags.
#[inline(always)]
fn write_link<F: Frame>(
    frame: &mut F,
    device: &Device,
    hop: Hop,
    priority: u8,
    kind: u16,
) -> Result<(), Reason> {
    write(frame, 0, hop.mac())?;
    write(frame, 6, device.mac())?;
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
    let source = varied(choice.backend.source().v4_octets(), choice.backend, choice.hash);
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
    let low = varied(source.v4_octets(), choice.backend, choice.hash);
    let label = choice.hash >> 12;
    write_ipv6_start(frame, at, facts.traffic_class.0, label, facts.length, inner_protocol(facts))?;
    write(frame, at + 8, source.octets())?;
    write(frame, at + 20, low)?;
    write(frame, at + 24, choice.backend.tunnel().octets())?;
    Ok(ethertype::IPV6)
}
