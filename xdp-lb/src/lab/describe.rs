//! A frame in one line, for people.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

use super::layers::{self, Body, Ip};

/// What a description says beside addresses, protocols and flags.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Detail {
    /// Begin with source and destination MAC address
    pub macs: bool,
    /// End with the time to live also where nothing is nested
    pub ttl: bool,
}

/// [`describe_with`] without details: `198.51.100.2:40000 > 203.0.113.10:80 TCP SYN`, or
/// `10.9.0.7 > 10.0.2.11 IPIP | 198.51.100.2:40000 > 203.0.113.10:80 TCP SYN, ttl 63`.
pub fn describe(frame: &[u8]) -> String {
    describe_with(frame, Detail::default())
}

/// Describes an Ethernet frame in one line. A frame that cannot be read is described by what is
/// wrong with it.
pub fn describe_with(bytes: &[u8], detail: Detail) -> String {
    let frame = match layers::frame(bytes) {
        Ok(frame) => frame,
        Err(fault) => return format!("{} bytes that cannot be read: {fault}", bytes.len()),
    };
    let mut parts = Vec::new();
    if detail.macs {
        parts.push(format!("{} > {}", mac(&frame.source), mac(&frame.destination)));
    }
    for tag in &frame.tags {
        let kind = if tag.protocol == 0x88a8 { "service vlan" } else { "vlan" };
        parts.push(format!("{kind} {}", tag.id));
    }
    let nested = frame.headers.len() > 1;
    match frame.headers.as_slice() {
        [] => parts.push(without_ip(frame.ether_type, frame.body)),
        headers => parts.extend(packet(headers, frame.body)),
    }
    let mut line = parts.join(" | ");
    if let Some(ip) = frame.headers.last().filter(|_| nested || detail.ttl) {
        // Writing to a string cannot fail.
        let _ = write!(line, ", ttl {}", ip.ttl);
    }
    line
}

fn packet(headers: &[Ip<'_>], body: Body<'_>) -> Vec<String> {
    let outer = headers.iter().zip(headers.iter().skip(1)).map(|(ip, inner)| {
        if let Some(tunnel) = &ip.tunnel {
            let from = SocketAddr::new(ip.source, tunnel.source_port);
            let frontend = tunnel.frontend().map(|one| format!(" for {one}")).unwrap_or_default();
            return format!("{from} > {} Geneve{frontend}", ip.destination);
        }
        let kind = match (ip.source.is_ipv4(), inner.source.is_ipv4()) {
            (true, true) => "IPIP",
            (true, false) => "6in4",
            (false, true) => "4in6",
            (false, false) => "6in6",
        };
        format!("{} > {} {kind}", ip.source, ip.destination)
    });
    outer.chain(headers.last().map(|ip| innermost(ip, body))).collect()
}

fn innermost(ip: &Ip<'_>, body: Body<'_>) -> String {
    let Ip { source, destination, .. } = ip;
    let addresses = format!("{source} > {destination}");
    match body {
        Body::Tcp(segment) if segment.len() >= 14 => {
            let length = usize::from(segment[12] >> 4) * 4;
            let data = match segment.len().saturating_sub(length) {
                0 => String::new(),
                bytes => format!(", {bytes} bytes"),
            };
            format!("{} TCP {}{data}", with_ports(ip, segment), flags(segment[13]))
        }
        Body::Udp(datagram) if datagram.len() >= 8 => {
            format!("{} UDP, {} bytes", with_ports(ip, datagram), datagram.len() - 8)
        }
        // What an ICMP error quotes may end behind the ports.
        Body::Tcp(start) if start.len() >= 4 => format!("{} TCP", with_ports(ip, start)),
        Body::Udp(start) if start.len() >= 4 => format!("{} UDP", with_ports(ip, start)),
        Body::Icmp(message) if message.len() >= 8 => format!("{addresses} {}", icmp(message)),
        Body::Icmpv6(message) if message.len() >= 8 => format!("{addresses} {}", icmpv6(message)),
        Body::Fragment(part) => {
            let Some(fragment) = ip.fragment else { return addresses };
            let end = usize::from(fragment.offset) + part.len();
            let more = if fragment.more { " and more" } else { "" };
            format!("{addresses} {} fragment {}..{end}{more}", name(ip.protocol), fragment.offset)
        }
        Body::Arp(_)
        | Body::Tcp(_)
        | Body::Udp(_)
        | Body::Icmp(_)
        | Body::Icmpv6(_)
        | Body::Other(_) => format!("{addresses} {}", name(ip.protocol)),
    }
}

fn name(protocol: u8) -> String {
    match protocol {
        1 => "ICMP".into(),
        4 => "IPv4".into(),
        6 => "TCP".into(),
        17 => "UDP".into(),
        41 => "IPv6".into(),
        58 => "ICMPv6".into(),
        132 => "SCTP".into(),
        other => format!("protocol {other}"),
    }
}

fn with_ports(ip: &Ip<'_>, start: &[u8]) -> String {
    let port = |at: usize| u16::from_be_bytes([start[at], start[at + 1]]);
    let from = SocketAddr::new(ip.source, port(0));
    let to = SocketAddr::new(ip.destination, port(2));
    format!("{from} > {to}")
}

fn flags(bits: u8) -> String {
    let names = [(1, "FIN"), (2, "SYN"), (4, "RST"), (8, "PSH"), (32, "URG"), (16, "ACK")];
    let set: Vec<_> = names.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, n)| *n).collect();
    if set.is_empty() { "without flags".into() } else { set.join(" ") }
}

fn icmp(message: &[u8]) -> String {
    let mtu = u16::from_be_bytes([message[6], message[7]]);
    match (message[0], message[1]) {
        (0, _) => "ICMP echo reply".into(),
        (8, _) => "ICMP echo request".into(),
        (3, 4) => format!("ICMP fragmentation needed, mtu {mtu}{}", about(&message[8..])),
        (3, code) => format!("ICMP unreachable (code {code}){}", about(&message[8..])),
        (5, _) => format!("ICMP redirect{}", about(&message[8..])),
        (11, _) => format!("ICMP time exceeded{}", about(&message[8..])),
        (12, _) => format!("ICMP parameter problem{}", about(&message[8..])),
        (kind, code) => format!("ICMP type {kind} code {code}"),
    }
}

fn icmpv6(message: &[u8]) -> String {
    let mtu = u32::from_be_bytes([message[4], message[5], message[6], message[7]]);
    match (message[0], message[1]) {
        (1, code) => format!("ICMPv6 unreachable (code {code}){}", about(&message[8..])),
        (2, _) => format!("ICMPv6 packet too big, mtu {mtu}{}", about(&message[8..])),
        (3, _) => format!("ICMPv6 time exceeded{}", about(&message[8..])),
        (4, _) => format!("ICMPv6 parameter problem{}", about(&message[8..])),
        (128, _) => "ICMPv6 echo request".into(),
        (129, _) => "ICMPv6 echo reply".into(),
        (133, _) => "ICMPv6 router solicitation".into(),
        (134, _) => "ICMPv6 router advertisement".into(),
        (135, _) => "ICMPv6 neighbour solicitation".into(),
        (136, _) => "ICMPv6 neighbour advertisement".into(),
        (143, _) => "ICMPv6 multicast listener report".into(),
        (kind, code) => format!("ICMPv6 type {kind} code {code}"),
    }
}

/// The packet that an ICMP error is about.
fn about(quote: &[u8]) -> String {
    match layers::quoted(quote) {
        Ok((headers, body)) => format!(", about {}", packet(&headers, body).join(" | ")),
        Err(_) => String::new(),
    }
}

fn without_ip(ether_type: u16, body: Body<'_>) -> String {
    let address = |bytes: &[u8], at: usize| {
        let octets: [u8; 4] = std::array::from_fn(|index| bytes[at + index]);
        IpAddr::from(octets)
    };
    match body {
        Body::Arp(arp) if arp.len() >= 28 => {
            let (asker, asked) = (address(arp, 14), address(arp, 24));
            match arp[7] {
                1 => format!("ARP who has {asked}, asks {asker}"),
                _ => format!("ARP {asker} is at {}", mac(&arp[8..14])),
            }
        }
        Body::Arp(_)
        | Body::Tcp(_)
        | Body::Udp(_)
        | Body::Icmp(_)
        | Body::Icmpv6(_)
        | Body::Fragment(_)
        | Body::Other(_) => format!("EtherType {ether_type:#06x}"),
    }
}

fn mac(bytes: &[u8]) -> String {
    let parts: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    parts.join(":")
}

#[cfg(test)]
#[path = "describe_tests.rs"]
mod tests;
