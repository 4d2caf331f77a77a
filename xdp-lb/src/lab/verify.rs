//! A second opinion on checksums and lengths: simple, slow, and independent of the data path.

use super::layers::{self, Body, Frame, Ip, Malformed};

/// Shortest frame that Ethernet allows, without its check sequence: shorter packets are padded.
const SHORTEST_FRAME: usize = 60;

/// What was checked in a frame that has no fault.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Checked {
    /// Checksums that are right
    pub right: usize,
    /// Why the transport's checksum was not looked at, if there is one
    pub skipped: Option<&'static str>,
}

/// What is wrong with a frame.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Fault {
    /// Lengths that do not add up.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// Bytes behind the packet that are no padding of a short frame.
    #[error("{0} bytes behind the end that IP header {1} states")]
    Trailing(usize, usize),
    /// The transport's header contradicts the packet's length.
    #[error("{0} header: {1}")]
    Length(&'static str, String),
    /// IPv6 has no UDP without a checksum (RFC 8200, section 8.1).
    #[error("UDP over IPv6 without a checksum")]
    NoChecksum,
    /// A wrong sum.
    #[error("{what} checksum is {found:#06x} and should be {right:#06x}{hint}")]
    Checksum {
        /// Which one
        what: &'static str,
        /// In the frame
        found: u16,
        /// As computed
        right: u16,
        /// What may have caused it
        hint: &'static str,
    },
}

/// Checks every length and checksum in an Ethernet frame: those of each IPv4 header, and that of
/// TCP, UDP, ICMP or ICMPv6 behind the innermost header.
///
/// The transport's sum is skipped, and the result says so, in fragments (it covers the whole
/// packet), with a source route under way (it covers the last destination), and in UDP over IPv4
/// without one. A packet that an ICMP error quotes is not checked: routers change it.
pub fn checksums(bytes: &[u8]) -> Result<Checked, Fault> {
    let frame = layers::frame(bytes)?;
    let mut checked = Checked::default();
    check_lengths(bytes.len(), &frame)?;
    for ip in frame.headers.iter().filter(|ip| ip.source.is_ipv4()) {
        compare("IPv4 header", ip.header, 10, 0)?;
        checked.right += 1;
    }
    let Some(ip) = frame.headers.last() else { return Ok(checked) };
    let transport = match frame.body {
        Body::Tcp(segment) => {
            let length = segment.get(12).map_or(0, |byte| usize::from(byte >> 4) * 4);
            if length < 20 || length > segment.len() {
                let reason = format!("its length is {length} of {} bytes", segment.len());
                return Err(Fault::Length("TCP", reason));
            }
            Some(("TCP", segment, 16, pseudo_header(ip, 6)))
        }
        Body::Udp(datagram) => {
            let length = datagram.get(4..6).map_or(0, |field| usize::from(word(field)));
            if datagram.len() < 8 || length != datagram.len() {
                let reason = format!("it states {length} of {} bytes", datagram.len());
                return Err(Fault::Length("UDP", reason));
            }
            match (word(&datagram[6..8]), ip.source.is_ipv4()) {
                (0, true) => {
                    checked.skipped = Some("UDP without a checksum");
                    None
                }
                (0, false) => return Err(Fault::NoChecksum),
                _ => Some(("UDP", datagram, 6, pseudo_header(ip, 17))),
            }
        }
        Body::Icmp(message) if message.len() >= 8 => Some(("ICMP", message, 2, 0)),
        Body::Icmpv6(message) if message.len() >= 4 => {
            Some(("ICMPv6", message, 2, pseudo_header(ip, 58)))
        }
        Body::Icmp(message) | Body::Icmpv6(message) => {
            return Err(Fault::Length("ICMP", format!("it has only {} bytes", message.len())));
        }
        Body::Fragment(_) => {
            checked.skipped = Some("a fragment");
            None
        }
        Body::Arp(_) | Body::Other(_) => None,
    };
    match transport {
        Some(_) if ip.routed && !matches!(frame.body, Body::Icmp(_)) => {
            checked.skipped = Some("a source route under way");
        }
        Some((what, bytes, at, start)) => {
            compare(what, bytes, at, start)?;
            checked.right += 1;
        }
        None => {}
    }
    Ok(checked)
}

fn check_lengths(length: usize, frame: &Frame<'_>) -> Result<(), Fault> {
    for (depth, ip) in frame.headers.iter().enumerate() {
        let padding = depth == 0 && length <= SHORTEST_FRAME + 4 * frame.tags.len();
        if ip.trailing > 0 && !padding {
            return Err(Fault::Trailing(ip.trailing, depth));
        }
    }
    Ok(())
}

/// Sum over the addresses, the length and the protocol (RFC 9293 section 3.1, RFC 8200 section
/// 8.1).
fn pseudo_header(ip: &Ip<'_>, protocol: u8) -> u64 {
    let mut bytes = Vec::new();
    for address in [ip.source, ip.destination] {
        match address {
            std::net::IpAddr::V4(address) => bytes.extend(address.octets()),
            std::net::IpAddr::V6(address) => bytes.extend(address.octets()),
        }
    }
    sum(&bytes) + ip.payload.len() as u64 + u64::from(protocol)
}

/// Compares the checksum at `at` with that over `bytes` and what `start` sums up.
fn compare(what: &'static str, bytes: &[u8], at: usize, start: u64) -> Result<(), Fault> {
    let found = word(&bytes[at..at + 2]);
    let with = fold(start + sum(bytes));
    if with == 0xffff {
        return Ok(());
    }
    let mut without = bytes.to_vec();
    without[at..at + 2].fill(0);
    let mut right = !fold(start + sum(&without));
    if right == 0 && what == "UDP" {
        right = 0xffff;
    }
    let hint = if start != 0 && found == fold(start) {
        "; it covers the pseudo header alone: turn tx offload off where it was sent"
    } else {
        ""
    };
    Err(Fault::Checksum { what, found, right, hint })
}

/// Sum of 16-bit words, an odd byte at the end being the high one (RFC 1071).
fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|pair| u64::from(word(pair))).sum()
}

fn word(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes.get(1).copied().unwrap_or_default()])
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
