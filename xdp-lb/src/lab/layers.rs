//! A frame taken apart: Ethernet, VLAN tags, IP headers in IP headers or behind Geneve, and what they
//! carry.
//!
//! Written for captures, to be read beside the RFCs: it copies, it is slow, and it shares nothing
//! with the data path that it helps to judge. Lengths are checked, checksums are not (see
//! [`super::verify`]).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::geneve::{self, Geneve};

/// EtherTypes.
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
const SERVICE_VLAN: u16 = 0x88a8;

/// IP protocol numbers.
const ICMP: u8 = 1;
const IPIP: u8 = 4;
const TCP: u8 = 6;
const UDP: u8 = 17;
const IPV6_IN_IP: u8 = 41;
const ICMPV6: u8 = 58;

/// An Ethernet frame.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Frame<'a> {
    /// Destination MAC address
    pub destination: [u8; 6],
    /// Source MAC address
    pub source: [u8; 6],
    /// VLAN tags, the outermost first
    pub tags: Vec<Tag>,
    /// EtherType behind the tags
    pub ether_type: u16,
    /// IP headers, the outermost first
    pub headers: Vec<Ip<'a>>,
    /// What the last header carries
    pub body: Body<'a>,
}

/// A VLAN tag.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Tag {
    /// Tag protocol: 0x8100 or 0x88a8
    pub protocol: u16,
    /// VLAN number
    pub id: u16,
}

/// An IP header, with its options or extension headers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ip<'a> {
    /// Source address
    pub source: IpAddr,
    /// Destination address
    pub destination: IpAddr,
    /// Time to live or hop limit
    pub ttl: u8,
    /// DSCP and ECN
    pub traffic_class: u8,
    /// IP protocol of the payload, behind all extension headers
    pub protocol: u8,
    /// Bytes of the header and its extension headers
    pub header: &'a [u8],
    /// Bytes behind them, up to the length that the header states
    pub payload: &'a [u8],
    /// Set in every fragment of a packet
    pub fragment: Option<Fragment>,
    /// A source route or routing header names another destination than the address above, so
    /// that the transport's checksum is over that one
    pub routed: bool,
    /// Bytes behind the stated length
    pub trailing: usize,
    /// What is between this header and the next one, where that is no IP in IP: UDP and this
    pub tunnel: Option<Geneve<'a>>,
}

impl Ip<'_> {
    /// Whether all of the payload is there that the header states; what an ICMP error quotes may
    /// end early.
    pub fn is_whole(&self) -> bool {
        let stated = match (self.source, self.header) {
            (IpAddr::V4(_), [_, _, high, low, ..]) => {
                usize::from(u16::from_be_bytes([*high, *low]))
            }
            (IpAddr::V6(_), [_, _, _, _, high, low, ..]) => {
                40 + usize::from(u16::from_be_bytes([*high, *low]))
            }
            _ => return false,
        };
        self.header.len() + self.payload.len() >= stated
    }
}

/// A packet's part.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fragment {
    /// Identification
    pub id: u32,
    /// Offset of the payload, in bytes, behind `skipped`
    pub offset: u16,
    /// Bytes of extension headers that belong to the fragmented part: in front of the first
    /// fragment's payload
    pub skipped: u16,
    /// More fragments follow
    pub more: bool,
}

/// What is behind the last header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Body<'a> {
    /// ARP
    Arp(&'a [u8]),
    /// TCP segment
    Tcp(&'a [u8]),
    /// UDP datagram
    Udp(&'a [u8]),
    /// ICMP message
    Icmp(&'a [u8]),
    /// ICMPv6 message
    Icmpv6(&'a [u8]),
    /// Part of the payload of the last header
    Fragment(&'a [u8]),
    /// Another IP protocol, or another EtherType when there is no IP header
    Other(&'a [u8]),
}

/// A frame whose lengths do not add up.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{header} header {depth}: {reason}")]
pub struct Malformed {
    /// Which kind of header
    pub header: &'static str,
    /// How many IP headers are around it
    pub depth: usize,
    /// What is wrong
    pub reason: String,
}

/// Takes an Ethernet frame apart.
pub fn frame(bytes: &[u8]) -> Result<Frame<'_>, Malformed> {
    let malformed =
        |header, reason: &str| Malformed { header, depth: 0, reason: reason.to_owned() };
    let Some((macs, mut rest)) = bytes.split_first_chunk::<12>() else {
        return Err(malformed("Ethernet", "shorter than 14 bytes"));
    };
    let mut destination = [0; 6];
    let mut source = [0; 6];
    destination.copy_from_slice(&macs[..6]);
    source.copy_from_slice(&macs[6..]);
    let mut tags = Vec::new();
    let ether_type = loop {
        let Some((kind, behind)) = rest.split_first_chunk::<2>() else {
            return Err(malformed("Ethernet", "ends before its type"));
        };
        let protocol = u16::from_be_bytes(*kind);
        rest = behind;
        if protocol != VLAN && protocol != SERVICE_VLAN {
            break protocol;
        }
        let Some((control, behind)) = rest.split_first_chunk::<2>() else {
            return Err(malformed("VLAN", "ends inside the tag"));
        };
        tags.push(Tag { protocol, id: u16::from_be_bytes(*control) & 0xfff });
        rest = behind;
    };
    let (headers, body) = match ether_type {
        IPV4 | IPV6 => packet(rest, Lengths::Whole)?,
        ARP => (Vec::new(), Body::Arp(rest)),
        _ => (Vec::new(), Body::Other(rest)),
    };
    Ok(Frame { destination, source, tags, ether_type, headers, body })
}

/// Takes apart the packet that an ICMP error quotes, which may end early.
pub fn quoted(bytes: &[u8]) -> Result<(Vec<Ip<'_>>, Body<'_>), Malformed> {
    packet(bytes, Lengths::Quoted)
}

/// Whether all bytes have to be there that a header announces.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Lengths {
    Whole,
    Quoted,
}

fn packet(mut bytes: &[u8], lengths: Lengths) -> Result<(Vec<Ip<'_>>, Body<'_>), Malformed> {
    let mut headers: Vec<Ip<'_>> = Vec::new();
    let mut announced = None;
    loop {
        let depth = headers.len();
        let version = bytes.first().map(|byte| byte >> 4);
        let name = if version == Some(6) { "IPv6" } else { "IPv4" };
        let parsed = match (version, announced) {
            (Some(4), None | Some(IPIP)) => ipv4(bytes, lengths),
            (Some(6), None | Some(IPV6_IN_IP)) => ipv6(bytes, lengths),
            (Some(version), _) => Err(format!("its version is {version}")),
            (None, _) => Err("it is missing".to_owned()),
        };
        let mut ip = parsed.map_err(|reason| Malformed { header: name, depth, reason })?;
        let payload = ip.payload;
        let last = match ip.protocol {
            _ if ip.fragment.is_some() => body(&ip),
            IPIP | IPV6_IN_IP if lengths == Lengths::Quoted && payload.len() < 20 => {
                Body::Other(payload)
            }
            IPIP | IPV6_IN_IP => {
                bytes = payload;
                announced = Some(ip.protocol);
                headers.push(ip);
                continue;
            }
            UDP if payload.get(2..4) == Some(&geneve::PORT.to_be_bytes()) => {
                match tunnelled(payload, lengths) {
                    Err(reason) => return Err(Malformed { header: "Geneve", depth, reason }),
                    Ok(Some((tunnel, protocol))) => {
                        bytes = tunnel.inner;
                        announced = Some(protocol);
                        ip.tunnel = Some(tunnel);
                        headers.push(ip);
                        continue;
                    }
                    Ok(None) => body(&ip),
                }
            }
            _ => body(&ip),
        };
        headers.push(ip);
        return Ok((headers, last));
    }
}

/// What a header carries that no other header follows.
pub(super) fn body<'a>(ip: &Ip<'a>) -> Body<'a> {
    match ip.protocol {
        _ if ip.fragment.is_some() => Body::Fragment(ip.payload),
        TCP => Body::Tcp(ip.payload),
        UDP => Body::Udp(ip.payload),
        ICMP => Body::Icmp(ip.payload),
        ICMPV6 => Body::Icmpv6(ip.payload),
        _ => Body::Other(ip.payload),
    }
}

/// The header of a tunnel, and the protocol number that stands for what it carries; none where it
/// carries no IP packet, or a quote ends before one.
fn tunnelled(datagram: &[u8], lengths: Lengths) -> Result<Option<(Geneve<'_>, u8)>, String> {
    let tunnel = match Geneve::parse(datagram) {
        Err(_) if lengths == Lengths::Quoted => return Ok(None),
        parsed => parsed?,
    };
    let (protocol, shortest) = match tunnel.protocol {
        IPV4 => (IPIP, 20),
        IPV6 => (IPV6_IN_IP, 40),
        _ => return Ok(None),
    };
    let cut = lengths == Lengths::Quoted && tunnel.inner.len() < shortest;
    Ok((!cut).then_some((tunnel, protocol)))
}

/// RFC 791.
fn ipv4(bytes: &[u8], lengths: Lengths) -> Result<Ip<'_>, String> {
    let fixed: &[u8; 20] = bytes.first_chunk().ok_or("it is shorter than 20 bytes")?;
    let header_length = usize::from(fixed[0] & 15) * 4;
    let total = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
    if header_length < 20 || header_length > bytes.len() {
        return Err(format!("its header length is {header_length}"));
    }
    let end = stated_end(total, header_length, bytes.len(), lengths)?;
    let position = u16::from_be_bytes([fixed[6], fixed[7]]);
    let (offset, more) = ((position & 0x1fff) * 8, position & 0x2000 != 0);
    let id = u32::from(u16::from_be_bytes([fixed[4], fixed[5]]));
    Ok(Ip {
        source: Ipv4Addr::from_octets(fixed_array(fixed, 12)).into(),
        destination: Ipv4Addr::from_octets(fixed_array(fixed, 16)).into(),
        ttl: fixed[8],
        traffic_class: fixed[1],
        protocol: fixed[9],
        header: &bytes[..header_length],
        payload: &bytes[header_length..end],
        fragment: (offset > 0 || more).then_some(Fragment { id, offset, skipped: 0, more }),
        routed: source_routed(&bytes[20..header_length]),
        trailing: bytes.len() - end,
        tunnel: None,
    })
}

/// Whether the options hold a loose (131) or strict (137) source route that has not ended.
fn source_routed(mut options: &[u8]) -> bool {
    loop {
        match *options {
            [1, ref rest @ ..] => options = rest,
            [kind, length, ref rest @ ..] if kind != 0 && length >= 2 => {
                let pointer = rest.first().copied().unwrap_or_default();
                if (kind == 131 || kind == 137) && pointer <= length {
                    return true;
                }
                options = rest.get(usize::from(length) - 2..).unwrap_or_default();
            }
            _ => return false,
        }
    }
}

/// RFC 8200.
fn ipv6(bytes: &[u8], lengths: Lengths) -> Result<Ip<'_>, String> {
    let fixed: &[u8; 40] = bytes.first_chunk().ok_or("it is shorter than 40 bytes")?;
    let total = 40 + usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
    let end = stated_end(total, 40, bytes.len(), lengths)?;
    let bytes_trailing = bytes.len() - end;
    let bytes = &bytes[..end];
    let mut protocol = fixed[6];
    let mut at = 40;
    let mut fragment = None;
    let mut routed = false;
    // Hop-by-hop, routing, fragment, authentication, destination options, mobility.
    while matches!(protocol, 0 | 43 | 44 | 51 | 60 | 135) {
        if fragment.is_some_and(|part: Fragment| part.offset > 0) {
            break;
        }
        let Some(start) = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) else {
            return Err(format!("it ends inside extension header {protocol}"));
        };
        let length = match protocol {
            44 => 8,
            51 => (usize::from(start[1]) + 2) * 4,
            _ => (usize::from(start[1]) + 1) * 8,
        };
        if protocol == 43 && start[3] > 0 {
            routed = true;
        }
        if protocol == 44 {
            let position = u16::from_be_bytes([start[2], start[3]]);
            let id = u32::from_be_bytes(fixed_array(start, 4));
            let (offset, more) = (position & 0xfff8, position & 1 == 1);
            // Neither offset nor more: an atomic fragment, which is whole (RFC 6946).
            fragment = (offset > 0 || more).then_some(Fragment { id, offset, skipped: 0, more });
        } else if let Some(fragment) = &mut fragment {
            fragment.skipped += length as u16;
        }
        protocol = start[0];
        at += length;
        if at > bytes.len() {
            return Err("an extension header is longer than the packet".to_owned());
        }
    }
    Ok(Ip {
        source: Ipv6Addr::from_octets(fixed_array(fixed, 8)).into(),
        destination: Ipv6Addr::from_octets(fixed_array(fixed, 24)).into(),
        ttl: fixed[7],
        traffic_class: (fixed[0] << 4) | (fixed[1] >> 4),
        protocol,
        header: &bytes[..at],
        payload: &bytes[at..],
        fragment,
        routed,
        trailing: bytes_trailing,
        tunnel: None,
    })
}

fn stated_end(
    total: usize,
    header: usize,
    present: usize,
    lengths: Lengths,
) -> Result<usize, String> {
    if total < header {
        return Err(format!("it states {total} bytes, less than its header"));
    }
    if total > present && lengths == Lengths::Whole {
        return Err(format!("it states {total} bytes, and {present} are there"));
    }
    Ok(total.min(present))
}

/// `N` bytes of a fixed header; offset and length are constants of the format.
fn fixed_array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|index| bytes[at + index])
}
