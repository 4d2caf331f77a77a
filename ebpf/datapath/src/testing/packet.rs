//! Builds packets for tests, from the inside out: `link(a, b).vlan(10).holds(ip(c, d).tcp(…))`.

use core::net::IpAddr;
use std::{vec, vec::Vec};

use super::check::{complement_sum, crc32c};

/// TCP flags: FIN
pub const FIN: u8 = 0x01;
/// TCP flags: SYN
pub const SYN: u8 = 0x02;
/// TCP flags: RST
pub const RST: u8 = 0x04;
/// TCP flags: ACK
pub const ACK: u8 = 0x10;

/// Sequence number of [`Ip::tcp`]
pub const SEQUENCE: u32 = 0x0102_0304;
/// Acknowledgment number of [`Ip::tcp`]
pub const ACKNOWLEDGMENT: u32 = 0x0506_0708;

/// An Ethernet header.
#[derive(Clone, Debug)]
pub struct Link {
    destination: [u8; 6],
    source: [u8; 6],
    tags: Vec<(u16, u16)>,
}

/// An Ethernet header without tags.
pub fn link(source: [u8; 6], destination: [u8; 6]) -> Link {
    Link { destination, source, tags: Vec::new() }
}

impl Link {
    /// Adds a tag behind those that are there: TPID, and TCI with the priority.
    pub fn tag(mut self, tpid: u16, tci: u16) -> Self {
        self.tags.push((tpid, tci));
        self
    }

    /// Adds an 802.1Q tag.
    pub fn vlan(self, id: u16) -> Self {
        self.tag(0x8100, id)
    }

    /// The frame around an IP packet; its first bits tell the EtherType.
    pub fn holds(&self, packet: impl AsRef<[u8]>) -> Vec<u8> {
        let packet = packet.as_ref();
        let kind = if packet[0] >> 4 == 6 { 0x86dd } else { 0x0800 };
        self.carries(kind, packet)
    }

    /// The frame around anything.
    pub fn carries(&self, kind: u16, payload: impl AsRef<[u8]>) -> Vec<u8> {
        let mut frame = Vec::new();
        frame.extend(self.destination);
        frame.extend(self.source);
        for (tpid, tci) in &self.tags {
            frame.extend(tpid.to_be_bytes());
            frame.extend(tci.to_be_bytes());
        }
        frame.extend(kind.to_be_bytes());
        frame.extend(payload.as_ref());
        frame
    }
}

/// An IPv4 or IPv6 header; what only one family has is ignored in the other.
#[derive(Clone, Debug)]
pub struct Ip {
    source: IpAddr,
    destination: IpAddr,
    traffic_class: u8,
    ttl: u8,
    id: u16,
    fragment: u16,
    options: Vec<u8>,
    label: u32,
    extensions: Vec<(u8, Vec<u8>)>,
}

/// A header as a client's host sends it, some hops later.
pub fn ip(source: IpAddr, destination: IpAddr) -> Ip {
    Ip {
        source,
        destination,
        traffic_class: 0,
        ttl: 61,
        id: 0x1d1d,
        fragment: 0x4000,
        options: Vec::new(),
        label: 0,
        extensions: Vec::new(),
    }
}

impl Ip {
    /// DSCP and ECN
    pub fn traffic_class(mut self, value: u8) -> Self {
        self.traffic_class = value;
        self
    }

    /// TTL or hop limit
    pub fn ttl(mut self, value: u8) -> Self {
        self.ttl = value;
        self
    }

    /// The identification: of IPv6, only its fragments have one.
    pub fn id(mut self, value: u16) -> Self {
        self.id = value;
        self
    }

    /// IPv4: flags and fragment offset, as on the wire.
    pub fn fragment(mut self, value: u16) -> Self {
        self.fragment = value;
        self
    }

    /// IPv4: options, padded to a multiple of four.
    pub fn options(mut self, bytes: &[u8]) -> Self {
        self.options = bytes.to_vec();
        self
    }

    /// IPv6: the flow label.
    pub fn label(mut self, value: u32) -> Self {
        self.label = value;
        self
    }

    /// IPv6: an extension header behind those that are there, without its first byte (next header).
    pub fn extension(mut self, number: u8, rest: &[u8]) -> Self {
        self.extensions.push((number, rest.to_vec()));
        self
    }

    /// The packet around any payload.
    pub fn holds(&self, protocol: u8, payload: impl AsRef<[u8]>) -> Vec<u8> {
        let payload = payload.as_ref();
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let header_length = 20 + self.options.len();
                let mut packet = vec![0x40 | (header_length / 4) as u8, self.traffic_class];
                packet.extend(((header_length + payload.len()) as u16).to_be_bytes());
                packet.extend(self.id.to_be_bytes());
                packet.extend(self.fragment.to_be_bytes());
                packet.extend([self.ttl, protocol, 0, 0]);
                packet.extend(source.octets());
                packet.extend(destination.octets());
                packet.extend(&self.options);
                let sum = !complement_sum(&packet);
                packet[10..12].copy_from_slice(&sum.to_be_bytes());
                packet.extend(payload);
                packet
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let chain: Vec<u8> =
                    self.extensions.iter().map(|(number, _)| *number).chain([protocol]).collect();
                let mut body = Vec::new();
                for ((_, rest), next) in self.extensions.iter().zip(&chain[1..]) {
                    body.push(*next);
                    body.extend(rest);
                }
                body.extend(payload);
                let first =
                    6_u32 << 28 | u32::from(self.traffic_class) << 20 | self.label & 0xf_ffff;
                let mut packet = first.to_be_bytes().to_vec();
                packet.extend((body.len() as u16).to_be_bytes());
                packet.extend([chain[0], self.ttl]);
                packet.extend(source.octets());
                packet.extend(destination.octets());
                packet.extend(body);
                packet
            }
            (source, destination) => panic!("{source} and {destination} are of two families"),
        }
    }

    /// A TCP segment with `data` bytes of data.
    pub fn tcp(&self, ports: (u16, u16), flags: u8, data: usize) -> Vec<u8> {
        self.segment(ports, (SEQUENCE, ACKNOWLEDGMENT), flags, 0x2000, &[], data)
    }

    /// A TCP segment with these sequence and acknowledgment numbers, window and options (padded to a
    /// multiple of four).
    pub fn segment(
        &self,
        ports: (u16, u16),
        numbers: (u32, u32),
        flags: u8,
        window: u16,
        options: &[u8],
        data: usize,
    ) -> Vec<u8> {
        let mut segment = port_bytes(ports);
        segment.extend(numbers.0.to_be_bytes());
        segment.extend(numbers.1.to_be_bytes());
        segment.extend([0x50 + (options.len() as u8 / 4) * 16, flags]);
        segment.extend(window.to_be_bytes());
        segment.extend([0, 0, 0, 0]);
        segment.extend(options);
        segment.extend(filler(data));
        self.summed(6, segment, 16)
    }

    /// A UDP datagram with `data` bytes of data.
    pub fn udp(&self, ports: (u16, u16), data: usize) -> Vec<u8> {
        self.summed(17, datagram(ports, data), 6)
    }

    /// The same with this data.
    pub fn udp_with(&self, ports: (u16, u16), data: &[u8]) -> Vec<u8> {
        let mut datagram = datagram(ports, 0);
        datagram[4..6].copy_from_slice(&((8 + data.len()) as u16).to_be_bytes());
        datagram.extend(data);
        self.summed(17, datagram, 6)
    }

    /// The same without a checksum (IPv4 only, RFC 768).
    pub fn udp_without_checksum(&self, ports: (u16, u16), data: usize) -> Vec<u8> {
        self.holds(17, datagram(ports, data))
    }

    /// An SCTP packet; verification tag 0 belongs to INIT.
    pub fn sctp(&self, ports: (u16, u16), tag: u32, data: usize) -> Vec<u8> {
        let mut packet = port_bytes(ports);
        packet.extend(tag.to_be_bytes());
        packet.extend([0; 4]);
        packet.extend(filler(data));
        // RFC 9260, appendix A: the sum's lowest byte comes first.
        let sum = crc32c(&packet);
        packet[8..12].copy_from_slice(&sum.to_le_bytes());
        self.holds(132, packet)
    }

    /// The fragments of the packet around a payload, each with `size` bytes of it (a multiple of
    /// eight), the last one with the rest. IPv6 has the fragment header behind the other ones.
    pub fn fragments(&self, protocol: u8, payload: &[u8], size: usize) -> Vec<Vec<u8>> {
        let pieces: Vec<&[u8]> = payload.chunks(size).collect();
        let last = pieces.len() - 1;
        let fragment = |(index, piece): (usize, &&[u8])| {
            let offset = (index * size / 8) as u16;
            let more = index < last;
            if self.destination.is_ipv6() {
                let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
                let [a, b] = self.id.to_be_bytes();
                self.clone().extension(44, &[0, high, low, 0, 0, a, b]).holds(protocol, piece)
            } else {
                let more = if more { 0x2000 } else { 0 };
                self.clone().fragment(more | offset).holds(protocol, piece)
            }
        };
        pieces.iter().enumerate().map(fragment).collect()
    }

    /// An ICMP or ICMPv6 message: type, code, the four bytes behind the checksum, and the rest.
    pub fn icmp(&self, kind: u8, code: u8, word: [u8; 4], rest: impl AsRef<[u8]>) -> Vec<u8> {
        let mut message = vec![kind, code, 0, 0];
        message.extend(word);
        message.extend(rest.as_ref());
        if self.destination.is_ipv6() {
            self.summed(58, message, 2)
        } else {
            let sum = !complement_sum(&message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            self.holds(1, message)
        }
    }

    /// A Geneve packet around another.
    pub fn geneve(&self, header: &Geneve, inner: impl AsRef<[u8]>) -> Vec<u8> {
        self.holds(17, header.datagram(inner.as_ref()))
    }

    /// Writes the checksum at `at`, with the pseudo header under it, and wraps the packet around.
    fn summed(&self, protocol: u8, mut message: Vec<u8>, at: usize) -> Vec<u8> {
        let mut covered = pseudo_header(self.source, self.destination, protocol, message.len());
        covered.extend(&message);
        let sum = match !complement_sum(&covered) {
            0 if protocol == 17 => 0xffff,
            sum => sum,
        };
        message[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        self.holds(protocol, message)
    }
}

/// A UDP and a Geneve header (RFC 8926, 3.3 to 3.5), each field as it is on the wire.
#[derive(Clone, Debug)]
pub struct Geneve {
    /// UDP source port
    pub source_port: u16,
    /// UDP checksum, right or wrong
    pub checksum: u16,
    /// The first two bits
    pub version: u8,
    /// The second byte: OAM `0x80`, critical options `0x40`
    pub flags: u8,
    /// What is inside
    pub protocol: u16,
    /// Virtual network, 24 bits
    pub network: u32,
    /// All options, a multiple of four bytes
    pub options: Vec<u8>,
    /// The length of the options in words, where it is to be wrong
    pub option_words: Option<u8>,
}

/// The headers in front of a packet that came by a frontend.
pub fn geneve(source_port: u16, frontend: (IpAddr, u16)) -> Geneve {
    let address: Vec<u8> = match frontend.0 {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let v6 = frontend.0.is_ipv6();
    let data = [&frontend.1.to_be_bytes()[..], &[0, 0], &address].concat();
    Geneve {
        source_port,
        checksum: 0,
        version: 0,
        flags: 0x40,
        protocol: if v6 { 0x86dd } else { 0x0800 },
        network: 0,
        options: option(0xff4c, if v6 { 0x82 } else { 0x81 }, &data),
        option_words: None,
    }
}

/// A Geneve option: class, type with its critical bit, and data of a multiple of four bytes.
pub fn option(class: u16, kind: u8, data: &[u8]) -> Vec<u8> {
    let [high, low] = class.to_be_bytes();
    [&[high, low, kind, (data.len() / 4) as u8], data].concat()
}

impl Geneve {
    fn datagram(&self, inner: &[u8]) -> Vec<u8> {
        let words = self.option_words.unwrap_or((self.options.len() / 4) as u8);
        let mut datagram = port_bytes((self.source_port, 6081));
        datagram.extend(((16 + self.options.len() + inner.len()) as u16).to_be_bytes());
        datagram.extend(self.checksum.to_be_bytes());
        datagram.extend([self.version << 6 | words, self.flags]);
        datagram.extend(self.protocol.to_be_bytes());
        datagram.extend((self.network << 8).to_be_bytes());
        datagram.extend(&self.options);
        datagram.extend(inner);
        datagram
    }
}

/// The pseudo header of RFC 9293 (3.1) and RFC 8200 (8.1).
pub(super) fn pseudo_header(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    length: usize,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    for address in [source, destination] {
        match address {
            IpAddr::V4(v4) => bytes.extend(v4.octets()),
            IpAddr::V6(v6) => bytes.extend(v6.octets()),
        }
    }
    bytes.extend((length as u32).to_be_bytes());
    bytes.extend(u32::from(protocol).to_be_bytes());
    bytes
}

/// `length` bytes of data, neither all the same nor symmetric.
pub fn filler(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 7 + index / 256 + 3) as u8).collect()
}

fn port_bytes(ports: (u16, u16)) -> Vec<u8> {
    [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat()
}

fn datagram(ports: (u16, u16), data: usize) -> Vec<u8> {
    let mut datagram = port_bytes(ports);
    datagram.extend(((8 + data) as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(filler(data));
    datagram
}
