//! A second opinion on checksums and lengths: simple, slow, and independent of the data path.

use super::{
    geneve,
    layers::{self, Body, Frame, Ip, Malformed},
};

/// Shortest frame that Ethernet allows, without its check sequence: shorter packets are padded.
const SHORTEST_FRAME: usize = 60;
/// IP protocol number.
const SCTP: u8 = 132;

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
    /// A wrong sum of SCTP.
    #[error("SCTP checksum is {found:#010x} and should be {right:#010x}")]
    Crc {
        /// In the packet
        found: u32,
        /// As computed
        right: u32,
    },
    /// A fault in the packet that an ICMP error quotes.
    #[error("in the packet that it quotes: {0}")]
    Quoted(Box<Self>),
}

/// Checks every length and checksum in an Ethernet frame: those of each IPv4 header, of a tunnel's
/// UDP header, and of TCP, UDP, SCTP, ICMP or ICMPv6 behind the innermost header; and those of the
/// packet that an ICMP error quotes, as far as it is there.
///
/// The transport's sum is skipped, and the result says so, in fragments (it covers the whole
/// packet: see [`super::reassembly`]), with a source route under way (it covers the last
/// destination), and in UDP over IPv4 without one. A tunnel's UDP header needs none over IPv6
/// either (RFC 6935).
pub fn checksums(bytes: &[u8]) -> Result<Checked, Fault> {
    let frame = layers::frame(bytes)?;
    let mut checked = Checked::default();
    check_lengths(bytes.len(), &frame)?;
    check_headers(&frame.headers, &mut checked)?;
    if let Some(ip) = frame.headers.last() {
        check_body(ip, frame.body, &mut checked)?;
    }
    Ok(checked)
}

/// Checks what the innermost header carries when its fragments are put together: `ip` is the header
/// of one of them.
pub(super) fn reassembled(ip: &Ip<'_>, payload: &[u8]) -> Result<Checked, Fault> {
    let whole = Ip { payload, fragment: None, ..ip.clone() };
    let mut checked = Checked::default();
    check_body(&whole, layers::body(&whole), &mut checked)?;
    Ok(checked)
}

fn check_headers(headers: &[Ip<'_>], checked: &mut Checked) -> Result<(), Fault> {
    for ip in headers {
        if ip.source.is_ipv4() {
            compare("IPv4 header", ip.header, 10, 0)?;
            checked.right += 1;
        }
        if ip.tunnel.is_some() && check_udp(ip, ip.payload)? {
            checked.right += 1;
        }
    }
    Ok(())
}

fn check_body(ip: &Ip<'_>, body: Body<'_>, checked: &mut Checked) -> Result<(), Fault> {
    if ip.routed && !matches!(body, Body::Icmp(_) | Body::Arp(_)) {
        checked.skipped = Some("a source route under way");
        return Ok(());
    }
    match body {
        Body::Tcp(segment) => {
            let length = segment.get(12).map_or(0, |byte| usize::from(byte >> 4) * 4);
            if length < 20 || length > segment.len() {
                let reason = format!("its length is {length} of {} bytes", segment.len());
                return Err(Fault::Length("TCP", reason));
            }
            compare("TCP", segment, 16, pseudo_header(ip, 6))?;
        }
        Body::Udp(datagram) => {
            if !check_udp(ip, datagram)? {
                checked.skipped = Some("UDP without a checksum");
                return Ok(());
            }
        }
        Body::Icmp(message) if message.len() >= 8 => {
            compare("ICMP", message, 2, 0)?;
            if matches!(message[0], 3 | 4 | 5 | 11 | 12) {
                checked.right += quote(&message[8..])?;
            }
        }
        Body::Icmpv6(message) if message.len() >= 8 => {
            compare("ICMPv6", message, 2, pseudo_header(ip, 58))?;
            if message[0] < 128 {
                checked.right += quote(&message[8..])?;
            }
        }
        Body::Icmp(message) | Body::Icmpv6(message) => {
            return Err(Fault::Length("ICMP", format!("it has only {} bytes", message.len())));
        }
        Body::Fragment(_) => {
            checked.skipped = Some("a fragment");
            return Ok(());
        }
        Body::Other(packet) if ip.protocol == SCTP => check_sctp(packet)?,
        Body::Arp(_) | Body::Other(_) => return Ok(()),
    }
    checked.right += 1;
    Ok(())
}

/// Whether there is a checksum, and it is right.
fn check_udp(ip: &Ip<'_>, datagram: &[u8]) -> Result<bool, Fault> {
    let length = datagram.get(4..6).map_or(0, |field| usize::from(word(field)));
    if datagram.len() < 8 || length != datagram.len() {
        let reason = format!("it states {length} of {} bytes", datagram.len());
        return Err(Fault::Length("UDP", reason));
    }
    if word(&datagram[6..8]) != 0 {
        compare("UDP", datagram, 6, pseudo_header(ip, 17))?;
        return Ok(true);
    }
    if ip.source.is_ipv4() || word(&datagram[2..4]) == geneve::PORT {
        Ok(false)
    } else {
        Err(Fault::NoChecksum)
    }
}

/// Checks the packet that an ICMP error quotes; returns how many sums were right. Routers change
/// nothing that a sum covers without mending the sum, and neither may a balancer. Nothing is checked
/// where no header can be read, and the transport's sum only where all that it covers is there.
fn quote(bytes: &[u8]) -> Result<usize, Fault> {
    let Ok((headers, body)) = layers::quoted(bytes) else { return Ok(0) };
    let mut checked = Checked::default();
    let in_quote = |fault| Fault::Quoted(Box::new(fault));
    if headers.iter().all(Ip::is_whole) {
        check_headers(&headers, &mut checked).map_err(in_quote)?;
        if let Some(ip) = headers.last() {
            check_body(ip, body, &mut checked).map_err(in_quote)?;
        }
    } else {
        for ip in headers.iter().filter(|ip| ip.source.is_ipv4()) {
            compare("IPv4 header", ip.header, 10, 0).map_err(in_quote)?;
            checked.right += 1;
        }
    }
    Ok(checked.right)
}

/// CRC32c over the whole packet, its own field being zero (RFC 9260, appendix A).
fn check_sctp(packet: &[u8]) -> Result<(), Fault> {
    let Some(found) = packet.get(8..12) else {
        return Err(Fault::Length("SCTP", format!("it has only {} bytes", packet.len())));
    };
    let found = u32::from_le_bytes([found[0], found[1], found[2], found[3]]);
    let mut without = packet.to_vec();
    without[8..12].fill(0);
    let right = crc32c(&without);
    if found == right { Ok(()) } else { Err(Fault::Crc { found, right }) }
}

/// Bit by bit, with the polynomial of Castagnoli mirrored.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 }
        })
    })
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
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|pair| u64::from(word(pair))).sum()
}

fn word(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes.get(1).copied().unwrap_or_default()])
}

pub(crate) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
