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

/// Where a header starts, in bytes from the start of the frame.
///
/// Sixteen bits: what one stage hands to the next is read back from memory, and there the verifier
/// knows no more of a number than its size.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(align(8))]
pub struct Offset(u16);

impl Offset {
    /// An offset of at most 65535.
    #[inline(always)]
    pub const fn new(offset: usize) -> Self {
        Self(offset as u16)
    }

    /// Makes it another one of at most 65535.
    #[inline(always)]
    pub(crate) const fn set(&mut self, offset: usize) {
        self.0 = offset as u16;
    }

    /// The offset as a number.
    #[inline(always)]
    pub const fn get(self) -> usize {
        self.0 as usize
    }
}

/// What the headers say.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Facts {
    /// What kind of packet it is
    pub kind: Word<Kind>,
    /// Length of the Ethernet header with its tags: where the IP header starts.
    pub link: Offset,
    /// Priority and drop eligibility of the outermost tag: the upper four bits of a TCI's first byte.
    pub priority: Word<u8>,
    /// Where the transport header starts, or a tunnel's inner header.
    pub transport: Offset,
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
    /// Identification, where it is a fragment
    pub identification: Word<u32>,
}

impl Facts {
    /// Where the IP header starts.
    #[inline(always)]
    pub const fn link(&self) -> usize {
        self.link.get()
    }

    /// Where the transport header starts.
    #[inline(always)]
    pub const fn transport(&self) -> usize {
        self.transport.get()
    }

    /// Copies them field by field: the whole, with its padding, would be copied byte by byte.
    #[inline(always)]
    pub(crate) fn copy_to(&self, into: &mut Self) {
        into.kind.0 = self.kind.0;
        into.link.set(self.link());
        into.priority.0 = self.priority.0;
        into.transport.set(self.transport());
        into.source = self.source;
        into.destination = self.destination;
        into.protocol.0 = self.protocol.0;
        into.ports.0 = self.ports.0;
        into.opens.0 = self.opens.0;
        into.length = self.length;
        into.traffic_class.0 = self.traffic_class.0;
        into.ttl.0 = self.ttl.0;
        into.identification.0 = self.identification.0;
    }

    /// Where the IP packet ends.
    #[inline(always)]
    pub const fn end(&self) -> usize {
        self.link.get() + self.length
    }
}

/// What kind of packet it is that the path may have to do with.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Kind {
    /// TCP, UDP or SCTP
    #[default]
    Flow,
    /// An ICMP or ICMPv6 echo request
    Echo,
    /// An ICMP or ICMPv6 error, which quotes a packet
    Error,
    /// An IP packet inside another
    Tunnel,
    /// The first fragment of a flow's packet
    FirstFragment,
    /// Any other fragment: it has no ports
    LaterFragment,
}

/// Reads the headers.
///
/// # Errors
///
/// The [`Reason`] to hand the packet to the kernel, or to drop it.
#[inline(always)]
pub fn parse<F: Frame>(frame: &mut F) -> Result<Facts, Reason> {
    let Network { kind, link, priority } = network(frame)?;
    match kind {
        ethertype::IPV4 => ipv4(frame, link, priority),
        ethertype::IPV6 => ipv6(frame, link, priority),
        _ => Err(not_ip(kind)),
    }
}

/// Why a packet of an EtherType that is neither of IP's is not read.
#[inline(always)]
pub(crate) const fn not_ip(kind: u16) -> Reason {
    if is_tag(kind) { Reason::TooManyTags } else { Reason::NotIp }
}

/// The destination of an IP packet of which [`parse`] makes nothing.
#[inline(always)]
pub(crate) fn destination<F: Frame>(frame: &mut F) -> Result<Address, Reason> {
    let Network { kind, link, .. } = network(frame)?;
    match kind {
        ethertype::IPV4 => Ok(Address::v4(*frame.window::<4>(link + 16)?)),
        ethertype::IPV6 => Ok(Address::v6(*frame.window::<16>(link + 24)?)),
        _ => Err(Reason::NotIp),
    }
}

/// What the link header says.
pub(crate) struct Network {
    /// EtherType behind the tags
    pub(crate) kind: u16,
    /// Where the network header starts
    pub(crate) link: usize,
    pub(crate) priority: u8,
}

#[inline(always)]
pub(crate) fn network<F: Frame>(frame: &mut F) -> Result<Network, Reason> {
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
    Ok(Network { kind, link, priority })
}

#[inline(always)]
const fn is_tag(kind: u16) -> bool {
    kind == ethertype::VLAN || kind == ethertype::SERVICE_VLAN
}

/// Reads an IPv4 packet that starts at `link`: in its frame, or in a tunnel packet.
#[inline(always)]
pub(crate) fn ipv4<F: Frame>(frame: &mut F, link: usize, priority: u8) -> Result<Facts, Reason> {
    let header = frame.window::<IPV4>(link)?;
    let start = u64::from_be_bytes(part(header, 0));
    let header_length = (start >> 56) as usize % 16 * 4;
    if start >> 60 != 4 || header_length < IPV4 {
        return Err(Reason::BadHeader);
    }
    let length = (start >> 32) as usize & 0xffff;
    let identification = (start >> 16) as u32 & 0xffff;
    let fragment = start as u16;
    let (ttl, protocol) = (header[8], header[9]);
    let facts = Facts {
        kind: Word(Kind::Flow),
        link: Offset::new(link),
        priority: Word(priority),
        transport: Offset::new(link + header_length),
        source: Address::v4(part(header, 12)),
        destination: Address::v4(part(header, 16)),
        protocol: Word(protocol),
        ports: Word((0, 0)),
        opens: Word(false),
        length,
        traffic_class: Word((start >> 48) as u8),
        ttl: Word(ttl),
        identification: Word(identification),
    };
    if !holds(frame, link, length) || length < header_length {
        return Err(Reason::BadLength);
    }
    // More fragments, or an offset.
    if fragment & 0x3fff == 0 {
        transport(frame, facts)
    } else {
        piece(frame, facts, fragment & 0x1fff)
    }
}

/// Reads an IPv6 packet that starts at `link`: in its frame, or in a tunnel packet.
#[inline(always)]
pub(crate) fn ipv6<F: Frame>(frame: &mut F, link: usize, priority: u8) -> Result<Facts, Reason> {
    let header = frame.window::<IPV6>(link)?;
    let start = u64::from_be_bytes(part(header, 0));
    if start >> 60 != 6 {
        return Err(Reason::BadHeader);
    }
    let length = IPV6 + ((start >> 16) as usize & 0xffff);
    let (next, hop_limit) = ((start >> 8) as u8, start as u8);
    let traffic_class = (start >> 52) as u8;
    let (source, destination) = (Address::v6(part(header, 8)), Address::v6(part(header, 24)));
    if !holds(frame, link, length) {
        return Err(Reason::BadLength);
    }
    let chain = if is_extension(next) {
        follow_extensions(frame, next, link + IPV6)?
    } else {
        Chain { next, end: link + IPV6, fragment: NO_FRAGMENT, identification: 0 }
    };
    let facts = Facts {
        kind: Word(Kind::Flow),
        link: Offset::new(link),
        priority: Word(priority),
        transport: Offset::new(chain.end),
        source,
        destination,
        protocol: Word(chain.next),
        ports: Word((0, 0)),
        opens: Word(false),
        length,
        traffic_class: Word(traffic_class),
        ttl: Word(hop_limit),
        identification: Word(chain.identification),
    };
    match chain.fragment {
        NO_FRAGMENT => transport(frame, facts),
        offset => piece(frame, facts, offset as u16),
    }
}

/// A fragment, whose data lies `offset` units into the packet.
#[inline(always)]
fn piece<F: Frame>(frame: &mut F, mut facts: Facts, offset: u16) -> Result<Facts, Reason> {
    if offset != 0 {
        facts.kind = Word(Kind::LaterFragment);
        return Ok(facts);
    }
    let mut facts = transport(frame, facts)?;
    // Pieces of tunnel packets and of ICMP are the kernel's.
    if facts.kind.0 != Kind::Flow {
        return Err(Reason::Fragment);
    }
    facts.kind = Word(Kind::FirstFragment);
    Ok(facts)
}

/// Bytes of a header from a constant offset on, read as one: byte by byte, each would have a register of
/// its own until it is used.
#[inline(always)]
pub(crate) fn part<const N: usize, const LENGTH: usize>(
    header: &[u8; LENGTH],
    at: usize,
) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&header[at..at + N]);
    bytes
}

/// Whether the frame has `length` bytes from `link` on, with its fragments if need be.
#[inline(always)]
fn holds<F: Frame>(frame: &F, link: usize, length: usize) -> bool {
    link + length <= frame.linear_length() || link + length <= frame.total_length()
}

#[inline(always)]
pub(crate) const fn is_extension(next: u8) -> bool {
    matches!(
        next,
        protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::FRAGMENT
            | protocol::AUTHENTICATION
            | protocol::DESTINATION
    )
}

/// What the extension headers lead to.
pub(crate) struct Chain {
    /// The transport protocol; of a later fragment, what its fragment header names
    pub(crate) next: u8,
    /// Where the transport header starts
    pub(crate) end: usize,
    /// A fragment's offset; [`NO_FRAGMENT`] of a whole packet
    pub(crate) fragment: u32,
    identification: u32,
}

/// No fragment's offset.
pub(crate) const NO_FRAGMENT: u32 = u32::MAX;

/// Follows the extension headers.
#[inline(always)]
pub(crate) fn follow_extensions<F: Frame>(
    frame: &mut F,
    first: u8,
    start: usize,
) -> Result<Chain, Reason> {
    let mut chain = Chain { next: first, end: start, fragment: NO_FRAGMENT, identification: 0 };
    for _ in 0..MAX_EXTENSIONS {
        if !is_extension(chain.next) {
            return Ok(chain);
        }
        let header = frame.window::<8>(chain.end)?;
        let units = usize::from(header[1]);
        chain.end += match chain.next {
            protocol::FRAGMENT => {
                // An offset, or more to come; the two bits between are reserved.
                let field = u16::from_be_bytes([header[2], header[3]]);
                if field & 0xfff9 != 0 {
                    chain.fragment = (field >> 3).into();
                    chain.identification =
                        u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                    if field >> 3 != 0 {
                        // What follows is data.
                        chain.next = header[0];
                        chain.end += 8;
                        return Ok(chain);
                    }
                }
                8
            }
            // With segments left, this is not the packet's last destination.
            protocol::ROUTING if header[3] != 0 => return Err(Reason::ExtensionHeader),
            protocol::AUTHENTICATION => (units + 2) * 4,
            _ => (units + 1) * 8,
        };
        chain.next = header[0];
    }
    if is_extension(chain.next) { Err(Reason::ExtensionHeader) } else { Ok(chain) }
}

/// Reads what is needed of the transport header, whose length is checked against the IP packet's.
#[inline(always)]
fn transport<F: Frame>(frame: &mut F, mut facts: Facts) -> Result<Facts, Reason> {
    let at = facts.transport();
    let room = facts.end().wrapping_sub(at);
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
    let header = u64::from_be_bytes(*frame.window::<8>(at)?);
    match facts.protocol.0 {
        // Flags: SYN 0x02, ACK 0x10.
        protocol::TCP => facts.opens = Word(frame.window::<20>(at)?[13] & 0x12 == 0x02),
        // A verification tag of 0 belongs to INIT alone (RFC 9260, 8.5.1).
        protocol::SCTP => facts.opens = Word(header as u32 == 0),
        protocol::UDP => {}
        _ => {
            facts.kind = Word(icmp_kind((header >> 56) as u8, (header >> 48) as u8, v6)?);
            return Ok(facts);
        }
    }
    facts.ports = Word(((header >> 48) as u16, (header >> 32) as u16));
    Ok(facts)
}

/// Echo request, or an error that quotes a packet.
#[inline(always)]
const fn icmp_kind(kind: u8, code: u8, v6: bool) -> Result<Kind, Reason> {
    match (v6, kind, code) {
        (false, 8, 0) | (true, 128, 0) => Ok(Kind::Echo),
        // Destination unreachable, time exceeded, parameter problem.
        (false, 3 | 11 | 12, _) => Ok(Kind::Error),
        // The same, and packet too big.
        (true, 1..=4, _) => Ok(Kind::Error),
        (true, 133..=137, _) => Err(Reason::Neighbour),
        _ => Err(Reason::Icmp),
    }
}
