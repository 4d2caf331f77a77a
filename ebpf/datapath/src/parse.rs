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

/// A value on an eight-byte boundary.
///
/// The compiler joins neighbouring stores, also across a boundary; the verifier accepts only aligned
/// access to the stack. What lies on words of its own is never joined.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(align(8))]
pub struct Word<T>(pub T);

/// What the headers say.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Facts {
    /// What kind of packet it is
    pub kind: Word<Kind>,
    /// Length of the Ethernet header with its tags: where the IP header starts.
    pub link: usize,
    /// Priority and drop eligibility of the outermost tag: the upper four bits of a TCI's first byte.
    pub priority: Word<u8>,
    /// Where the transport header starts, or a tunnel's inner header.
    pub transport: usize,
    /// Source address
    pub source: Address,
    /// Destination address
    pub destination: Address,
    /// Transport protocol
    pub protocol: Word<u8>,
    /// Source and destination port; zeros where the protocol has none
    pub ports: Word<(u16, u16)>,
    /// The packet starts a connection: TCP SYN without ACK, SCTP INIT.
    pub opens: Word<bool>,
    /// Length of the IP packet, header included
    pub length: usize,
    /// Type of service or traffic class: DSCP and ECN
    pub traffic_class: Word<u8>,
    /// TTL or hop limit on arrival
    pub ttl: Word<u8>,
}

/// What kind of packet it is that the path may have to do with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// TCP, UDP or SCTP
    Flow,
    /// An ICMP or ICMPv6 echo request
    Echo,
    /// An IP packet inside another
    Tunnel,
}

/// Reads the headers.
///
/// # Errors
///
/// The [`Reason`] to hand the packet to the kernel, or to drop it.
#[inline(always)]
pub fn parse<F: Frame>(frame: &mut F) -> Result<Facts, Reason> {
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
fn ipv4<F: Frame>(frame: &mut F, link: usize, priority: u8) -> Result<Facts, Reason> {
    let header = frame.window::<IPV4>(link)?;
    let header_length = usize::from(header[0] & 0x0f) * 4;
    if header[0] >> 4 != 4 || header_length < IPV4 {
        return Err(Reason::BadHeader);
    }
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    let (ttl, protocol) = (header[8], header[9]);
    let facts = Facts {
        kind: Word(Kind::Flow),
        link,
        priority: Word(priority),
        transport: link + header_length,
        source: Address::v4([header[12], header[13], header[14], header[15]]),
        destination: Address::v4([header[16], header[17], header[18], header[19]]),
        protocol: Word(protocol),
        ports: Word((0, 0)),
        opens: Word(false),
        length,
        traffic_class: Word(header[1]),
        ttl: Word(ttl),
    };
    if !holds(frame, link, length) || length < header_length {
        return Err(Reason::BadLength);
    }
    // More fragments, or an offset.
    if fragment & 0x3fff != 0 {
        return Err(Reason::Fragment);
    }
    transport(frame, facts)
}

#[inline(always)]
fn ipv6<F: Frame>(frame: &mut F, link: usize, priority: u8) -> Result<Facts, Reason> {
    let header = frame.window::<IPV6>(link)?;
    if header[0] >> 4 != 6 {
        return Err(Reason::BadHeader);
    }
    let length = IPV6 + usize::from(u16::from_be_bytes([header[4], header[5]]));
    let (next, hop_limit) = (header[6], header[7]);
    let traffic_class = header[0] << 4 | header[1] >> 4;
    let [_, _, _, _, _, _, _, _, rest @ ..] = header;
    let (source, destination) = addresses(rest);
    if !holds(frame, link, length) {
        return Err(Reason::BadLength);
    }
    let (protocol, transport_at) = if is_extension(next) {
        follow_extensions(frame, next, link + IPV6)?
    } else {
        (next, link + IPV6)
    };
    let facts = Facts {
        kind: Word(Kind::Flow),
        link,
        priority: Word(priority),
        transport: transport_at,
        source,
        destination,
        protocol: Word(protocol),
        ports: Word((0, 0)),
        opens: Word(false),
        length,
        traffic_class: Word(traffic_class),
        ttl: Word(hop_limit),
    };
    transport(frame, facts)
}

/// Source and destination of an IPv6 header, from its last 32 bytes.
#[inline(always)]
pub(crate) fn addresses(bytes: &[u8; 32]) -> (Address, Address) {
    let mut source = [0; 16];
    source.copy_from_slice(&bytes[..16]);
    let mut destination = [0; 16];
    destination.copy_from_slice(&bytes[16..]);
    (Address::v6(source), Address::v6(destination))
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
fn transport<F: Frame>(frame: &mut F, mut facts: Facts) -> Result<Facts, Reason> {
    let at = facts.transport;
    let room = (facts.link + facts.length).wrapping_sub(at);
    if room > facts.length {
        return Err(Reason::BadLength);
    }
    let v6 = facts.destination.is_v6();
    let needed = match facts.protocol.0 {
        protocol::TCP => 20,
        protocol::UDP => 8,
        protocol::SCTP => 12,
        protocol::ICMP if !v6 => 8,
        protocol::ICMPV6 if v6 => 8,
        protocol::IPV4 | protocol::IPV6 => {
            facts.kind = Word(Kind::Tunnel);
            return Ok(facts);
        }
        _ => return Err(Reason::Protocol),
    };
    if room < needed {
        return Err(Reason::BadLength);
    }
    let header = *frame.window::<8>(at)?;
    match facts.protocol.0 {
        // Flags: SYN 0x02, ACK 0x10.
        protocol::TCP => facts.opens = Word(frame.window::<20>(at)?[13] & 0x12 == 0x02),
        // A verification tag of 0 belongs to INIT alone (RFC 9260, 8.5.1).
        protocol::SCTP => {
            facts.opens = Word(header[4] | header[5] | header[6] | header[7] == 0);
        }
        protocol::UDP => {}
        _ => {
            let request = if v6 { 128 } else { 8 };
            if header[0] != request || header[1] != 0 {
                return Err(Reason::Icmp);
            }
            facts.kind = Word(Kind::Echo);
            return Ok(facts);
        }
    }
    let source_port = u16::from_be_bytes([header[0], header[1]]);
    let destination_port = u16::from_be_bytes([header[2], header[3]]);
    facts.ports = Word((source_port, destination_port));
    Ok(facts)
}
