//! Reads a frame's headers once into [`Facts`].
//!
//! Layouts: Ethernet and tags IEEE 802.3 and 802.1Q; IPv4 RFC 791; IPv6 and its extension headers
//! RFC 8200, RFC 4302; TCP RFC 9293; UDP RFC 768; SCTP RFC 9260; ICMP RFC 792, RFC 4443.

use xdp_lb_abi::{Address, Reason};

use crate::Frame;

/// EtherTypes
pub mod ethertype {
    /// IPv4
    pub const IPV4: u16 = 0x0800;
    /// IPv6
    pub const IPV6: u16 = 0x86dd;
    /// IEEE 802.1Q tag
    pub const VLAN: u16 = 0x8100;
    /// IEEE 802.1ad service tag
    pub const SERVICE_VLAN: u16 = 0x88a8;
}

/// IP protocol numbers
pub mod protocol {
    /// IPv6 hop-by-hop options
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP
    pub const ICMP: u8 = 1;
    /// IPv4 inside IP (RFC 2003, RFC 2473)
    pub const IPV4: u8 = 4;
    /// TCP
    pub const TCP: u8 = 6;
    /// UDP
    pub const UDP: u8 = 17;
    /// IPv6 inside IP (RFC 2473, RFC 4213)
    pub const IPV6: u8 = 41;
    /// IPv6 routing header
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header
    pub const FRAGMENT: u8 = 44;
    /// Authentication header (RFC 4302)
    pub const AUTHENTICATION: u8 = 51;
    /// ICMPv6
    pub const ICMPV6: u8 = 58;
    /// IPv6 destination options
    pub const DESTINATION: u8 = 60;
    /// SCTP
    pub const SCTP: u8 = 132;
}

/// Length of an Ethernet header without tags.
pub const ETHERNET: usize = 14;
/// Length of a VLAN tag.
pub const TAG: usize = 4;
/// Length of an IPv4 header without options.
pub const IPV4: usize = 20;
/// Length of an IPv6 header.
pub const IPV6: usize = 40;

/// IPv6 extension headers that are followed: as many as RFC 8200 (4.1) allows each once, and one.
const MAX_EXTENSIONS: usize = 6;

/// What the headers say.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Facts {
    /// Length of the Ethernet header with its tags: where the IP header starts.
    pub link: usize,
    /// Priority and drop eligibility of the outermost tag: the upper four bits of a TCI's first byte.
    pub priority: u8,
    /// Where the transport header starts, or a tunnel's inner header.
    pub transport: usize,
    /// Source address
    pub source: Address,
    /// Destination address
    pub destination: Address,
    /// Transport protocol
    pub protocol: u8,
    /// Source and destination port; zeros where the protocol has none
    pub ports: (u16, u16),
    /// The packet starts a connection: TCP SYN without ACK, SCTP INIT.
    pub opens: bool,
    /// Length of the IP packet, header included
    pub length: usize,
    /// Type of service or traffic class: DSCP and ECN
    pub traffic_class: u8,
    /// IPv4: don't fragment
    pub dont_fragment: bool,
}

/// A packet that the path may have to do with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Parsed {
    /// TCP, UDP or SCTP
    Flow(Facts),
    /// An ICMP or ICMPv6 echo request
    Echo(Facts),
    /// An IP packet inside another
    Tunnel(Facts),
}

/// Reads the headers.
///
/// # Errors
///
/// The [`Reason`] to hand the packet to the kernel, or to drop it.
#[inline(always)]
pub fn parse<F: Frame>(frame: &mut F) -> Result<Parsed, Reason> {
    let ethernet = frame.window::<ETHERNET>(0)?;
    if ethernet[0] & 1 != 0 {
        return Err(Reason::GroupAddress);
    }
    let mut kind = u16::from_be_bytes([ethernet[12], ethernet[13]]);
    let mut link = ETHERNET;
    let mut priority = 0;
    if is_tag(kind) {
        let tag = frame.window::<TAG>(ETHERNET)?;
        priority = tag[0] & 0xf0;
        kind = u16::from_be_bytes([tag[2], tag[3]]);
        link += TAG;
        if is_tag(kind) {
            let tag = frame.window::<TAG>(ETHERNET + TAG)?;
            kind = u16::from_be_bytes([tag[2], tag[3]]);
            link += TAG;
        }
    }
    match kind {
        ethertype::IPV4 => ipv4(frame, link, priority),
        ethertype::IPV6 => ipv6(frame, link, priority),
        kind if is_tag(kind) => Err(Reason::TooManyTags),
        _ => Err(Reason::NotIp),
    }
}

#[inline(always)]
const fn is_tag(kind: u16) -> bool {
    kind == ethertype::VLAN || kind == ethertype::SERVICE_VLAN
}

#[inline(always)]
fn ipv4<F: Frame>(frame: &mut F, link: usize, priority: u8) -> Result<Parsed, Reason> {
    let header = frame.window::<IPV4>(link)?;
    let header_length = usize::from(header[0] & 0x0f) * 4;
    if header[0] >> 4 != 4 || header_length < IPV4 {
        return Err(Reason::BadHeader);
    }
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    let (ttl, protocol) = (header[8], header[9]);
    let mut facts = Facts {
        link,
        priority,
        transport: link + header_length,
        source: Address::v4([header[12], header[13], header[14], header[15]]),
        destination: Address::v4([header[16], header[17], header[18], header[19]]),
        protocol,
        ports: (0, 0),
        opens: false,
        length,
        traffic_class: header[1],
        dont_fragment: fragment & 0x4000 != 0,
    };
    if !holds(frame, link, length) || length < header_length {
        return Err(Reason::BadLength);
    }
    // More fragments, or an offset.
    if fragment & 0x3fff != 0 {
        return Err(Reason::Fragment);
    }
    transport(frame, &mut facts, ttl)
}

#[inline(always)]
fn ipv6<F: Frame>(frame: &mut F, link: usize, priority: u8) -> Result<Parsed, Reason> {
    let header = frame.window::<IPV6>(link)?;
    if header[0] >> 4 != 6 {
        return Err(Reason::BadHeader);
    }
    let length = IPV6 + usize::from(u16::from_be_bytes([header[4], header[5]]));
    let (next, hop_limit) = (header[6], header[7]);
    let traffic_class = header[0] << 4 | header[1] >> 4;
    let mut source = [0; 16];
    source.copy_from_slice(&header[8..24]);
    let mut destination = [0; 16];
    destination.copy_from_slice(&header[24..40]);
    if !holds(frame, link, length) {
        return Err(Reason::BadLength);
    }
    let (protocol, transport_at) = if is_extension(next) {
        follow_extensions(frame, next, link + IPV6)?
    } else {
        (next, link + IPV6)
    };
    let mut facts = Facts {
        link,
        priority,
        transport: transport_at,
        source: Address::v6(source),
        destination: Address::v6(destination),
        protocol,
        ports: (0, 0),
        opens: false,
        length,
        traffic_class,
        dont_fragment: true,
    };
    transport(frame, &mut facts, hop_limit)
}

/// Whether the frame has `length` bytes from `link` on, with its fragments if need be.
#[inline(always)]
fn holds<F: Frame>(frame: &F, link: usize, length: usize) -> bool {
    link + length <= frame.linear_length() || link + length <= frame.total_length()
}

#[inline(always)]
const fn is_extension(next: u8) -> bool {
    matches!(
        next,
        protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::FRAGMENT
            | protocol::AUTHENTICATION
            | protocol::DESTINATION
    )
}

/// The transport protocol behind the extension headers, and where it starts.
#[inline(always)]
fn follow_extensions<F: Frame>(
    frame: &mut F,
    first: u8,
    start: usize,
) -> Result<(u8, usize), Reason> {
    let (mut next, mut offset) = (first, start);
    for _ in 0..MAX_EXTENSIONS {
        if !is_extension(next) {
            return Ok((next, offset));
        }
        let header = frame.window::<8>(offset)?;
        let units = usize::from(header[1]);
        offset += match next {
            protocol::FRAGMENT => {
                // An offset, or more to come; the two bits between are reserved.
                if u16::from_be_bytes([header[2], header[3]]) & 0xfff9 != 0 {
                    return Err(Reason::Fragment);
                }
                8
            }
            // With segments left, this is not the packet's last destination.
            protocol::ROUTING if header[3] != 0 => return Err(Reason::ExtensionHeader),
            protocol::AUTHENTICATION => (units + 2) * 4,
            _ => (units + 1) * 8,
        };
        next = header[0];
    }
    if is_extension(next) { Err(Reason::ExtensionHeader) } else { Ok((next, offset)) }
}

/// Reads what is needed of the transport header, whose length is checked against the IP packet's.
#[inline(always)]
fn transport<F: Frame>(frame: &mut F, facts: &mut Facts, ttl: u8) -> Result<Parsed, Reason> {
    let at = facts.transport;
    let room = (facts.link + facts.length).wrapping_sub(at);
    if room > facts.length {
        return Err(Reason::BadLength);
    }
    let needed = match facts.protocol {
        protocol::TCP => 20,
        protocol::UDP | protocol::ICMP | protocol::ICMPV6 => 8,
        protocol::SCTP => 12,
        protocol::IPV4 | protocol::IPV6 => return Ok(Parsed::Tunnel(*facts)),
        _ => return Err(Reason::Protocol),
    };
    if room < needed {
        return Err(Reason::BadLength);
    }
    let header = frame.window::<8>(at)?;
    let ports =
        (u16::from_be_bytes([header[0], header[1]]), u16::from_be_bytes([header[2], header[3]]));
    let echo = match facts.protocol {
        protocol::ICMP if !facts.destination.is_v6() => header[0] == 8 && header[1] == 0,
        protocol::ICMPV6 if facts.destination.is_v6() => header[0] == 128 && header[1] == 0,
        protocol::TCP => {
            // Flags: SYN 0x02, ACK 0x10.
            facts.opens = frame.window::<20>(at)?[13] & 0x12 == 0x02;
            false
        }
        protocol::SCTP => {
            // A verification tag of 0 belongs to INIT alone (RFC 9260, 8.5.1).
            facts.opens = header[4..8] == [0; 4];
            false
        }
        protocol::UDP => false,
        _ => return Err(Reason::Icmp),
    };
    if matches!(facts.protocol, protocol::ICMP | protocol::ICMPV6) {
        return if echo { Ok(Parsed::Echo(*facts)) } else { Err(Reason::Icmp) };
    }
    facts.ports = ports;
    if ttl == 0 {
        return Err(Reason::TtlZero);
    }
    Ok(Parsed::Flow(*facts))
}
