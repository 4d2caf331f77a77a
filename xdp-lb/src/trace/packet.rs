//! Frames to trace, made from their ends.

use std::net::{IpAddr, SocketAddr};

use xdp_lb_api::trace::TraceRequest;

use super::story::family;
use crate::lab::{
    forge::{self, octets},
    verify::{crc32c, fold, sum},
};

/// A router's MAC address: the frame's source.
pub(super) const SENDER: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// A key of a request that cannot be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct Wrong {
    /// Name of the key
    pub key: &'static str,
    /// What is wrong, and what to write instead
    pub problem: String,
}

fn wrong(key: &'static str, problem: impl Into<String>) -> Wrong {
    Wrong { key, problem: problem.into() }
}

/// The frame that a request describes; `to` is the MAC address of the device that it comes in by.
///
/// # Errors
///
/// What is wrong with it.
pub(super) fn frame(request: &TraceRequest, to: [u8; 6]) -> Result<Vec<u8>, Wrong> {
    let TraceRequest { from, to: destination, protocol, flags, length, ttl, .. } = request;
    let ends = from.is_some() || destination.is_some() || protocol.is_some();
    if let Some(frame) = &request.frame {
        if ends || flags.is_some() || length.is_some() || ttl.is_some() {
            return Err(wrong("frame", "give a whole frame, or the packet's ends, not both"));
        }
        return bytes(frame);
    }
    let protocol = protocol.as_deref().unwrap_or("TCP").to_ascii_uppercase();
    let ported = protocol != "ICMP";
    let (source, destination) =
        (end("from", from.as_deref(), ported)?, end("to", destination.as_deref(), ported)?);
    let [source_ip, destination_ip] = [source.ip(), destination.ip()];
    if source_ip.is_ipv4() != destination_ip.is_ipv4() {
        let (one, other) = (family(source_ip), family(destination_ip));
        return Err(wrong("to", format!("from is an {one} address, and this is {other}")));
    }
    let (number, header) = transport(&protocol, flags.as_deref(), source, destination)?;
    let ip = if source_ip.is_ipv4() { 20 } else { 40 };
    let shortest = ip + header.len();
    let length = length.map_or(shortest, |length| length as usize);
    let longest = if ip == 20 { 0xffff } else { 40 + 0xffff };
    if !(shortest..=longest).contains(&length) {
        let problem = format!("such a packet has {shortest} to {longest} bytes");
        return Err(wrong("length", problem));
    }
    let mut payload = header;
    payload.resize(length - ip, 0);
    finish(&mut payload, number, [source_ip, destination_ip]);
    let packet = forge::packet([source_ip, destination_ip], number, ttl.unwrap_or(64), &payload);
    Ok(forge::ethernet(to, SENDER, &packet))
}

/// An address and a port; of ICMP the address alone.
fn end(key: &'static str, text: Option<&str>, ported: bool) -> Result<SocketAddr, Wrong> {
    let text = text.ok_or_else(|| wrong(key, "it is missing: write ADDRESS:PORT"))?;
    if ported {
        let form = "write ADDRESS:PORT, like 198.51.100.7:40000 or [2001:db8::7]:40000";
        return text.parse().map_err(|_| wrong(key, format!("{text} is no socket: {form}")));
    }
    let address: Result<IpAddr, _> = text.trim_matches(['[', ']']).parse();
    let address = address.or_else(|_| text.parse().map(|socket: SocketAddr| socket.ip()));
    let address = address.map_err(|_| wrong(key, format!("{text} is no address")))?;
    Ok(SocketAddr::new(address, 0))
}

/// The protocol's number and its header, without a checksum.
fn transport(
    protocol: &str,
    flags: Option<&str>,
    source: SocketAddr,
    destination: SocketAddr,
) -> Result<(u8, Vec<u8>), Wrong> {
    let ports = [source.port(), destination.port()].map(u16::to_be_bytes).concat();
    match protocol {
        "TCP" => {
            let bits = tcp_flags(flags.unwrap_or("syn"))?;
            let acknowledged = u8::from(bits & 0x10 != 0);
            // Sequence number, acknowledgement, 5 words, flags, window, checksum, urgent pointer.
            let rest = [0, 0, 0, 1, 0, 0, 0, acknowledged, 5 << 4, bits, 0xfa, 0xf0, 0, 0, 0, 0];
            Ok((TCP, [&ports[..], &rest].concat()))
        }
        "SCTP" => {
            // A verification tag of 0 belongs to INIT alone (RFC 9260, 8.5.1).
            let (tag, chunk): (u8, &[u8]) = match flags.unwrap_or("init") {
                "init" => (0, &[1, 0, 0, 20, 0, 0, 0, 1, 0, 0, 0x10, 0, 0, 1, 0, 1, 0, 0, 0, 1]),
                "data" => (1, &[0, 3, 0, 20, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
                other => {
                    return Err(wrong("flags", format!("SCTP has init and data, not {other}")));
                }
            };
            Ok((SCTP, [&ports[..], &[0, 0, 0, tag, 0, 0, 0, 0], chunk].concat()))
        }
        "UDP" | "ICMP" if flags.is_some() => {
            Err(wrong("flags", format!("{protocol} has none; leave them out")))
        }
        "UDP" => Ok((UDP, [&ports[..], &[0, 8, 0, 0]].concat())),
        "ICMP" if source.is_ipv4() => Ok((ICMP, vec![8, 0, 0, 0, 0, 1, 0, 1])),
        "ICMP" => Ok((ICMPV6, vec![128, 0, 0, 0, 0, 1, 0, 1])),
        other => Err(wrong("protocol", format!("{other} is none of TCP, UDP, SCTP and ICMP"))),
    }
}

fn tcp_flags(text: &str) -> Result<u8, Wrong> {
    if text == "none" {
        return Ok(0);
    }
    text.split([',', '+']).try_fold(0, |bits, flag| {
        Ok(bits
            | match flag.trim().to_ascii_lowercase().as_str() {
                "fin" => 0x01,
                "syn" => 0x02,
                "rst" => 0x04,
                "psh" => 0x08,
                "ack" => 0x10,
                "urg" => 0x20,
                other => {
                    let known = "use syn, ack, fin, rst, psh, urg or none";
                    return Err(wrong("flags", format!("{other} is no flag: {known}")));
                }
            })
    })
}

/// Writes lengths and checksums.
fn finish(payload: &mut [u8], protocol: u8, ends: [IpAddr; 2]) {
    let length = payload.len();
    let at = match protocol {
        TCP => 16,
        UDP => {
            payload[4..6].copy_from_slice(&(length as u16).to_be_bytes());
            6
        }
        SCTP => {
            // What the chunk does not say is padding.
            let sum = crc32c(payload);
            return payload[8..12].copy_from_slice(&sum.to_le_bytes());
        }
        _ => 2,
    };
    let pseudo = if protocol == ICMP {
        0
    } else {
        sum(&ends.map(octets).concat()) + length as u64 + u64::from(protocol)
    };
    let right = match !fold(pseudo + sum(payload)) {
        0 if protocol == UDP => 0xffff,
        right => right,
    };
    payload[at..at + 2].copy_from_slice(&right.to_be_bytes());
}

/// Bytes written in hexadecimal digits; spaces and colons may stand between them.
fn bytes(text: &str) -> Result<Vec<u8>, Wrong> {
    let digits: Option<Vec<u8>> = text
        .chars()
        .filter(|one| !one.is_whitespace() && *one != ':')
        .map(|digit| digit.to_digit(16).map(|value| value as u8))
        .collect();
    let digits = digits.ok_or_else(|| wrong("frame", "write hexadecimal digits"))?;
    if digits.len() % 2 != 0 {
        return Err(wrong("frame", "a byte has two hexadecimal digits, and one is missing"));
    }
    check(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// Shortest and longest frame that can be traced.
const LENGTHS: std::ops::RangeInclusive<usize> = 14..=65_549;

/// Refuses what is no frame.
pub(super) fn check(frame: Vec<u8>) -> Result<Vec<u8>, Wrong> {
    if LENGTHS.contains(&frame.len()) {
        return Ok(frame);
    }
    let (shortest, longest) = (LENGTHS.start(), LENGTHS.end());
    let problem = format!("it has {} bytes; frames have {shortest} to {longest}", frame.len());
    Err(wrong("frame", problem))
}

/// Bytes as hexadecimal digits.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::{describe, verify};

    fn request(from: &str, to: &str, protocol: &str) -> TraceRequest {
        TraceRequest {
            from: Some(from.into()),
            to: Some(to.into()),
            protocol: Some(protocol.into()),
            ..TraceRequest::default()
        }
    }

    #[test]
    fn every_packet_that_can_be_asked_for_is_right() {
        for (from, to) in [
            ("198.51.100.7:40000", "203.0.113.10:80"),
            ("[2001:db8::7]:40000", "[2001:db8:f::10]:80"),
        ] {
            for protocol in ["tcp", "UDP", "sctp", "ICMP"] {
                for length in [None, Some(101), Some(1500)] {
                    let asked = TraceRequest { length, ..request(from, to, protocol) };
                    let frame = frame(&asked, [2; 6]).unwrap();
                    if protocol != "sctp" || length.is_none() {
                        verify::checksums(&frame).unwrap();
                    }
                    if let Some(length) = length {
                        assert_eq!(frame.len(), 14 + length as usize);
                    }
                    assert!(describe(&frame).contains(&protocol.to_uppercase()), "{protocol}");
                }
            }
        }
        let ack = TraceRequest {
            flags: Some("syn,ACK".into()),
            ..request("10.0.0.1:1", "10.0.0.2:2", "TCP")
        };
        assert!(describe(&frame(&ack, [2; 6]).unwrap()).contains("SYN ACK"));
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_key() {
        let fine = request("10.0.0.1:1", "10.0.0.2:2", "TCP");
        for (asked, key) in [
            (TraceRequest { from: None, ..fine.clone() }, "from"),
            (TraceRequest { from: Some("10.0.0.1".into()), ..fine.clone() }, "from"),
            (TraceRequest { to: Some("[::1]:2".into()), ..fine.clone() }, "to"),
            (TraceRequest { protocol: Some("GRE".into()), ..fine.clone() }, "protocol"),
            (TraceRequest { flags: Some("syn,ackk".into()), ..fine.clone() }, "flags"),
            (TraceRequest { length: Some(39), ..fine.clone() }, "length"),
            (TraceRequest { length: Some(65_536), ..fine.clone() }, "length"),
            (TraceRequest { frame: Some("00".repeat(20)), ..fine }, "frame"),
            (TraceRequest { frame: Some("0x".into()), ..TraceRequest::default() }, "frame"),
            (TraceRequest { frame: Some("00".repeat(13)), ..TraceRequest::default() }, "frame"),
        ] {
            assert_eq!(frame(&asked, [2; 6]).unwrap_err().key, key);
        }
        let frame_only =
            |text: &str| TraceRequest { frame: Some(text.into()), ..Default::default() };
        let spaced = "ff:".repeat(13) + "0a";
        assert_eq!(frame(&frame_only(&spaced), [2; 6]).unwrap()[13], 10);
    }
}
