//! Packets made by hand, with right lengths and checksums, and a way to put them on a wire: what no
//! socket would send.
//!
//! ```no_run
//! use xdp_lb::lab::{Node, PodsSpec, forge::{Datagram, Wire, ethernet, tunnel}};
//!
//! let lab = PodsSpec::default().up("example")?;
//! // A tunnel packet to a pod, from an address that no instance has.
//! let inner = Datagram::new("198.51.100.2:4000".parse()?, "10.244.2.2:8080".parse()?, b"hello");
//! let packet = tunnel(
//!     "198.51.100.2:50000".parse()?,
//!     Node::Worker.v4(),
//!     "203.0.113.80:80".parse()?,
//!     &inner.packet(),
//! );
//! let frame = ethernet([2, 0, 0, 0, 2, 0xfe], [2, 0, 0, 0, 2, 2], &packet);
//! Wire::open(lab.ns("client")?, "eth0")?.send(&frame)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
};

use super::{
    LabError, Namespace, geneve, raw,
    verify::{fold, sum},
};

/// IP protocol numbers.
const TCP: u8 = 6;
const UDP: u8 = 17;
const FRAGMENT: u8 = 44;
/// TCP flag: opens a connection
pub const SYN: u8 = 0x02;
/// TCP flag: acknowledges, as all segments but the first do
pub const ACK: u8 = 0x10;
/// TTL of packets that say nothing else.
const TTL: u8 = 64;

/// A UDP datagram over IPv4 or IPv6; both ends are of one version.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Datagram {
    source: SocketAddr,
    destination: SocketAddr,
    payload: Vec<u8>,
    ttl: u8,
}

impl Datagram {
    /// A datagram with a checksum, and a TTL of 64.
    pub fn new(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Self {
        Self { source, destination, payload: payload.to_vec(), ttl: TTL }
    }

    /// Sets the TTL or hop limit.
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// The IP packet.
    pub fn packet(&self) -> Vec<u8> {
        let ends = [self.source.ip(), self.destination.ip()];
        ip(ends, UDP, self.ttl, None, &self.udp(true))
    }

    /// The IP packet with UDP checksum 0.
    pub fn without_checksum(&self) -> Vec<u8> {
        let ends = [self.source.ip(), self.destination.ip()];
        ip(ends, UDP, self.ttl, None, &self.udp(false))
    }

    /// The IP packet in fragments with `size` bytes (a multiple of 8) of its payload each.
    pub fn fragments(&self, id: u16, size: usize) -> Vec<Vec<u8>> {
        let ends = [self.source.ip(), self.destination.ip()];
        let datagram = self.udp(true);
        let parts = datagram.chunks(size).enumerate();
        let part = |(index, part): (usize, &[u8])| {
            let offset = index * size;
            let more = offset + part.len() < datagram.len();
            ip(ends, UDP, self.ttl, Some((id, offset as u16, more)), part)
        };
        parts.map(part).collect()
    }

    fn udp(&self, with_checksum: bool) -> Vec<u8> {
        let length = (self.payload.len() + 8) as u16;
        let ports = [self.source.port(), self.destination.port(), length, 0];
        let mut bytes = ports.map(u16::to_be_bytes).concat();
        bytes.extend(&self.payload);
        if with_checksum {
            let addresses = [self.source.ip(), self.destination.ip()].map(octets).concat();
            let pseudo = sum(&addresses) + u64::from(length) + u64::from(UDP);
            let right = match !fold(pseudo + sum(&bytes)) {
                0 => 0xffff,
                right => right,
            };
            bytes[6..8].copy_from_slice(&right.to_be_bytes());
        }
        bytes
    }
}

/// A TCP segment that opens a connection, as an IP packet; both ends are of one version.
pub fn syn(source: SocketAddr, destination: SocketAddr, sequence: u32) -> Vec<u8> {
    segment(source, destination, sequence, SYN, &[])
}

/// A TCP segment with these flags, as an IP packet; both ends are of one version.
pub fn segment(
    source: SocketAddr,
    destination: SocketAddr,
    sequence: u32,
    flags: u8,
    data: &[u8],
) -> Vec<u8> {
    let ports = [source.port(), destination.port()].map(u16::to_be_bytes).concat();
    // No acknowledgement; 5 words of header; window, checksum, urgent pointer.
    let rest = [0, 0, 0, 0, 5 << 4, flags, 0xfa, 0xf0, 0, 0, 0, 0];
    let mut segment = [&ports[..], &sequence.to_be_bytes(), &rest, data].concat();
    let ends = [source.ip(), destination.ip()];
    let pseudo = sum(&ends.map(octets).concat()) + segment.len() as u64 + u64::from(TCP);
    let right = !fold(pseudo + sum(&segment));
    segment[16..18].copy_from_slice(&right.to_be_bytes());
    ip(ends, TCP, TTL, None, &segment)
}

/// A tunnel packet as an instance sends it: Geneve, with the option that names `frontend`.
pub fn tunnel(source: SocketAddr, node: IpAddr, frontend: SocketAddr, inner: &[u8]) -> Vec<u8> {
    tunnel_with(source, node, &geneve::frontend_option(frontend), inner)
}

/// A tunnel packet with any options, in a header that states their length in whole words.
pub fn tunnel_with(source: SocketAddr, node: IpAddr, options: &[u8], inner: &[u8]) -> Vec<u8> {
    let protocol = if inner.first().is_some_and(|byte| byte >> 4 == 6) { 0x86dd } else { 0x0800 };
    let payload = [geneve::header(protocol, options).as_slice(), inner].concat();
    let destination = SocketAddr::new(node, geneve::PORT);
    Datagram::new(source, destination, &payload).without_checksum()
}

/// An Ethernet frame around an IP packet.
pub fn ethernet(destination: [u8; 6], source: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let v6 = packet.first().is_some_and(|byte| byte >> 4 == 6);
    let ether_type: &[u8] = if v6 { &[0x86, 0xdd] } else { &[0x08, 0x00] };
    [&destination, &source, ether_type, packet].concat()
}

/// An IP packet around what its protocol has in it.
pub fn packet(ends: [IpAddr; 2], protocol: u8, ttl: u8, payload: &[u8]) -> Vec<u8> {
    ip(ends, protocol, ttl, None, payload)
}

/// An IP packet, or a fragment: identification, offset in bytes, whether more follow.
fn ip(
    [source, destination]: [IpAddr; 2],
    protocol: u8,
    ttl: u8,
    fragment: Option<(u16, u16, bool)>,
    payload: &[u8],
) -> Vec<u8> {
    let length = payload.len() as u16;
    if source.is_ipv4() {
        let (id, offset, more) = fragment.unwrap_or_default();
        let position = match fragment {
            Some(_) => (offset / 8) | if more { 0x2000 } else { 0 },
            None => 0x4000,
        };
        let words = [0x4500, length + 20, id, position].map(u16::to_be_bytes).concat();
        let mut header = [&words, [ttl, protocol, 0, 0].as_slice()].concat();
        header.extend([source, destination].map(octets).concat());
        let right = !fold(sum(&header));
        header[10..12].copy_from_slice(&right.to_be_bytes());
        return [&header, payload].concat();
    }
    let extension = fragment.map(|(id, offset, more)| {
        let [high, low] = (offset | u16::from(more)).to_be_bytes();
        let [id_high, id_low] = id.to_be_bytes();
        vec![protocol, 0, high, low, 0, 0, id_high, id_low]
    });
    let next = if extension.is_some() { FRAGMENT } else { protocol };
    let behind = [extension.unwrap_or_default().as_slice(), payload].concat();
    let [high, low] = (behind.len() as u16).to_be_bytes();
    let mut packet = vec![0x60, 0, 0, 0, high, low, next, ttl];
    packet.extend([source, destination].map(octets).concat());
    packet.extend(behind);
    packet
}

/// The bytes of an address.
pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// A device to send whole frames from.
#[derive(Debug)]
pub struct Wire {
    socket: OwnedFd,
    name: String,
}

impl Wire {
    /// Frames will leave `space` by `device`.
    pub fn open(space: &Namespace, device: &str) -> Result<Self, LabError> {
        let name = format!("{device} in {}", space.name());
        let socket = space.run(|| raw::sender(device))?;
        let socket = socket.map_err(LabError::system(format!("open {name} to send frames")))?;
        Ok(Self { socket, name })
    }

    /// Sends a frame, as it is.
    pub fn send(&self, frame: &[u8]) -> Result<(), LabError> {
        raw::send(&self.socket, frame)
            .map_err(LabError::system(format!("send a frame by {}", self.name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::{
        describe,
        frames::{self, bytes},
        verify,
    };

    #[test]
    fn a_datagram_is_as_linux_sends_it() {
        let linux = bytes(frames::UDP6);
        let datagram = Datagram::new(
            "[2001:db8::2]:43209".parse().unwrap(),
            "[2001:db8::1]:53".parse().unwrap(),
            b"hello6",
        );
        let mut ours = ethernet([2, 0, 0, 0, 0, 0xb], [2, 0, 0, 0, 0, 0xa], &datagram.packet());
        // But for the flow label.
        ours[14..18].copy_from_slice(&linux[14..18]);
        assert_eq!(ours, linux);
    }

    #[test]
    fn a_connection_is_opened_by_a_right_segment() {
        for (from, to) in [
            ("198.51.100.2:4000", "203.0.113.10:80"),
            ("[2001:db8:1::2]:4000", "[2001:db8:f::10]:80"),
        ] {
            let packet = syn(from.parse().unwrap(), to.parse().unwrap(), 0x0102_0304);
            let frame = ethernet([2; 6], [4; 6], &packet);
            let headers = if packet[0] >> 4 == 4 { 1 } else { 0 };
            assert_eq!(verify::checksums(&frame).unwrap().right, headers + 1);
            let text = describe(&frame);
            assert!(text.starts_with(&format!("{from} > {to} TCP SYN")), "{text}");
        }
    }

    #[test]
    fn what_is_made_is_right_in_both_families() {
        for (from, to, node, frontend) in [
            ("198.51.100.2:4000", "10.244.2.2:8080", "10.0.0.2", "203.0.113.80:80"),
            (
                "[2001:db8:1::2]:4000",
                "[fd00:244:2::2]:8080",
                "2001:db8:10::2",
                "[2001:db8:80::80]:80",
            ),
        ] {
            let inner = Datagram::new(from.parse().unwrap(), to.parse().unwrap(), b"hi").ttl(63);
            let source = SocketAddr::new(inner.source.ip(), 50_000);
            let frontend = frontend.parse().unwrap();
            let packet = tunnel(source, node.parse().unwrap(), frontend, &inner.packet());
            let extra = if frontend.is_ipv4() { 48 } else { 80 };
            assert_eq!(packet.len(), inner.packet().len() + extra);
            let frame = ethernet([2; 6], [4; 6], &packet);
            let headers = if frontend.is_ipv4() { 2 } else { 0 };
            assert_eq!(verify::checksums(&frame).unwrap().right, headers + 1);
            assert_eq!(
                describe(&frame),
                format!(
                    "{source} > {node} Geneve for {frontend} | {from} > {to} UDP, 2 bytes, ttl 63"
                )
            );
        }
    }
}
