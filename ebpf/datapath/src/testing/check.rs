//! A second opinion on lengths and checksums: slow, simple, and no code of the packet path.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::{format, string::String, vec::Vec};

use super::packet::pseudo_header;

/// The ones' complement sum of 16-bit words (RFC 1071), by division: 2^16 is 1 modulo 65535.
pub fn complement_sum(bytes: &[u8]) -> u16 {
    let mut total = 0_u64;
    for (index, byte) in bytes.iter().enumerate() {
        total += u64::from(*byte) * if index % 2 == 0 { 256 } else { 1 };
    }
    match total % 65535 {
        0 if total > 0 => 65535,
        rest => rest as u16,
    }
}

/// CRC-32C, bit by bit (RFC 9260, appendix A).
pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut state = u32::MAX;
    for byte in bytes {
        state ^= u32::from(*byte);
        for _ in 0..8 {
            state = if state & 1 == 1 { state >> 1 ^ 0x82f6_3b78 } else { state >> 1 };
        }
    }
    !state
}

/// The IP packet in a frame, without what lies behind it; nothing where there is none.
pub fn ip_packet(frame: &[u8]) -> Option<&[u8]> {
    let mut at = 12;
    let mut kind = frame.get(at..at + 2)?;
    while kind == [0x81, 0x00] || kind == [0x88, 0xa8] {
        at += 4;
        kind = frame.get(at..at + 2)?;
    }
    let packet = frame.get(at + 2..)?;
    let length = match kind {
        [0x08, 0x00] => field(packet, 2)?,
        [0x86, 0xdd] => 40 + field(packet, 4)?,
        _ => return None,
    };
    packet.get(..length)
}

/// Checks all lengths and checksums of the IP packet in a frame, of packets inside it too.
///
/// # Errors
///
/// What is wrong, in words.
pub fn check_frame(frame: &[u8]) -> Result<(), String> {
    check_packet(ip_packet(frame).ok_or("no whole IP packet in the frame")?)
}

/// Checks all lengths and checksums of an IP packet, of packets inside it too.
///
/// # Errors
///
/// What is wrong, in words.
pub fn check_packet(packet: &[u8]) -> Result<(), String> {
    match packet.first().map(|byte| byte >> 4) {
        Some(4) => check_ipv4(packet),
        Some(6) => check_ipv6(packet),
        version => Err(format!("IP version {version:?}")),
    }
}

fn check_ipv4(packet: &[u8]) -> Result<(), String> {
    let header_length = usize::from(packet[0] & 15) * 4;
    let header = packet.get(..header_length).ok_or("IPv4 header is cut off")?;
    if header_length < 20 {
        return Err(format!("IPv4 header of {header_length} bytes"));
    }
    if field(packet, 2) != Some(packet.len()) {
        return Err(format!("IPv4 length {:?} of {} bytes", field(packet, 2), packet.len()));
    }
    expect_ones("IPv4 header", header)?;
    if header[6] & 0x3f != 0 || header[7] != 0 {
        return Ok(());
    }
    let address = |at: usize| {
        IpAddr::V4(Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]))
    };
    check_transport(address(12), address(16), header[9], &packet[header_length..])
}

fn check_ipv6(packet: &[u8]) -> Result<(), String> {
    if packet.len() < 40 || field(packet, 4) != Some(packet.len() - 40) {
        return Err(format!("IPv6 length {:?} of {} bytes", field(packet, 4), packet.len()));
    }
    let address = |at: usize| {
        let mut octets = [0; 16];
        octets.copy_from_slice(&packet[at..at + 16]);
        IpAddr::V6(Ipv6Addr::from(octets))
    };
    let (mut next, mut rest) = (packet[6], &packet[40..]);
    loop {
        let length = match (next, rest) {
            (0 | 43 | 60, [_, units, ..]) => usize::from(*units) * 8 + 8,
            (51, [_, units, ..]) => usize::from(*units) * 4 + 8,
            (44, [_, _, high, low, ..]) if *high == 0 && low & 0xf9 == 0 => 8,
            (44, _) => return Ok(()),
            _ => break,
        };
        next = rest[0];
        rest = rest.get(length..).ok_or("IPv6 extension header is cut off")?;
    }
    check_transport(address(8), address(24), next, rest)
}

fn check_transport(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    message: &[u8],
) -> Result<(), String> {
    let with_pseudo_header = || {
        let mut bytes = pseudo_header(source, destination, protocol, message.len());
        bytes.extend(message);
        bytes
    };
    match protocol {
        4 | 41 => check_packet(message),
        1 => expect_ones("ICMP", message),
        6 => expect_ones("TCP", &with_pseudo_header()),
        58 => expect_ones("ICMPv6", &with_pseudo_header()),
        17 if field(message, 4) != Some(message.len()) => {
            Err(format!("UDP length {:?} of {} bytes", field(message, 4), message.len()))
        }
        // RFC 6935 lets tunnels go without in IPv6, too.
        17 if field(message, 6) == Some(0) && field(message, 2) == Some(6081) => {
            check_geneve(&message[8..])
        }
        17 if field(message, 6) == Some(0) && source.is_ipv4() => Ok(()),
        17 => expect_ones("UDP", &with_pseudo_header()),
        132 => {
            let found = message.get(8..12).ok_or("SCTP header is cut off")?;
            let zeroed: Vec<u8> = [&message[..8], &[0; 4], &message[12..]].concat();
            if crc32c(&zeroed).to_le_bytes() == found {
                Ok(())
            } else {
                Err(format!("SCTP checksum {found:02x?}"))
            }
        }
        _ => Ok(()),
    }
}

/// An IP packet in Geneve (RFC 8926, 3.4 and 3.5).
fn check_geneve(packet: &[u8]) -> Result<(), String> {
    let [first, flags, ..] = packet else { return Err("Geneve header is cut off".into()) };
    let words = usize::from(*first);
    if words > 0x3f || flags & 0x80 != 0 {
        return Err(format!("Geneve header {first:02x} {flags:02x}"));
    }
    let mut options = packet.get(8..8 + words * 4).ok_or("Geneve options are cut off")?;
    while !options.is_empty() {
        let length = options.get(3).ok_or("a Geneve option is cut off")? & 0x1f;
        options = options.get(4 + usize::from(length) * 4..).ok_or("a Geneve option is cut off")?;
    }
    check_packet(&packet[8 + words * 4..])
}

/// A right checksum makes the sum over everything all ones.
fn expect_ones(what: &str, bytes: &[u8]) -> Result<(), String> {
    match complement_sum(bytes) {
        0xffff => Ok(()),
        sum => Err(format!("{what} checksum is off: the sum is {sum:#06x}")),
    }
}

fn field(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..at + 2)?;
    Some(usize::from(bytes[0]) * 256 + usize::from(bytes[1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 1071, section 3; and the check value that every CRC catalogue gives for CRC-32C.
    #[test]
    fn published_values() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(complement_sum(&bytes), 0xddf2);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    /// An IPv4 header that was captured somewhere and is on Wikipedia's page about its checksum.
    #[test]
    fn one_wrong_bit_is_found() {
        let mut header = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8,
            0x00, 0x01, 0xc0, 0xa8, 0x00, 0xc7,
        ];
        assert_eq!(expect_ones("IPv4 header", &header), Ok(()));
        header[8] ^= 1;
        assert!(expect_ones("IPv4 header", &header).is_err());
    }
}
