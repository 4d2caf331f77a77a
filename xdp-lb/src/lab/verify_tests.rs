use super::super::frames::{self, bytes};
use super::*;

/// Each frame, the number of its checksums, and what is skipped in it.
const GOOD: &[(&str, &str, usize, Option<&str>)] = &[
    ("TCP over IPv4", frames::TCP4, 2, None),
    ("TCP over IPv6", frames::TCP6, 1, None),
    ("UDP over IPv4", frames::UDP4, 2, None),
    ("UDP over IPv6", frames::UDP6, 1, None),
    ("ping", frames::PING4, 2, None),
    ("ping over IPv6", frames::PING6, 1, None),
    ("port unreachable", frames::UNREACHABLE4, 4, None),
    ("port unreachable over IPv6", frames::UNREACHABLE6, 2, None),
    ("neighbour solicitation", frames::SOLICITATION, 1, None),
    ("two tags", frames::TAGGED, 2, None),
    ("IPv4 in IPv4", frames::IPIP, 3, None),
    ("IPv6 in IPv4", frames::SIX_IN_FOUR, 2, None),
    ("IPv4 in IPv6", frames::FOUR_IN_SIX, 2, None),
    ("IPv6 in IPv6", frames::SIX_IN_SIX, 1, None),
    ("Geneve", frames::GENEVE4, 3, None),
    ("Geneve over IPv6", frames::GENEVE6, 1, None),
    ("IPv4 in Geneve over IPv6", frames::GENEVE_FOUR_IN_SIX, 2, None),
    ("extension headers", frames::EXTENDED, 1, None),
    ("IPv4 options", frames::OPTIONS, 2, None),
    ("fragmentation needed", frames::TOO_BIG4, 3, None),
    ("packet too big", frames::TOO_BIG6, 2, None),
    ("fragment", frames::FRAGMENT4, 1, Some("a fragment")),
    ("fragment of IPv6", frames::FRAGMENT6, 0, Some("a fragment")),
    ("ARP", frames::ARP, 0, None),
];

#[test]
fn right_frames_are_right_and_it_says_how_much_of_them() {
    for (name, hex, right, skipped) in GOOD {
        let expected = Checked { right: *right, skipped: *skipped };
        assert_eq!(checksums(&bytes(hex)), Ok(expected), "{name}");
    }
}

/// Every single bit that a checksum covers, or that states a length, matters.
#[test]
fn a_flipped_bit_is_found_wherever_a_checksum_covers_it() {
    for (name, hex, _, _) in GOOD.iter().filter(|(_, _, right, skip)| *right > 0 && skip.is_none())
    {
        let good = bytes(hex);
        let frame = layers::frame(&good).unwrap();
        let payload = frame.headers.last().unwrap().payload.len();
        let at_transport = good.len() - payload;
        // All IPv4 headers, and everything from the transport header on.
        let mut covered: Vec<usize> = (at_transport..good.len()).collect();
        for ip in frame.headers.iter().filter(|ip| ip.source.is_ipv4()) {
            let start = ip.header.as_ptr() as usize - good.as_ptr() as usize;
            covered.extend(start..start + ip.header.len());
        }
        for at in covered {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                assert!(checksums(&bad).is_err(), "{name}: bit {bit} of byte {at}");
            }
        }
    }
}

#[test]
fn addresses_of_ipv6_are_covered_by_the_transports_sum() {
    for hex in [frames::TCP6, frames::UDP6, frames::PING6, frames::EXTENDED] {
        for at in 14 + 8..14 + 40 {
            let mut bad = bytes(hex);
            bad[at] ^= 1;
            let fault = checksums(&bad).unwrap_err();
            assert!(matches!(fault, Fault::Checksum { .. }), "{fault}");
        }
    }
}

#[test]
fn a_sum_left_to_the_device_is_called_so() {
    let mut frame = bytes(frames::TCP4);
    let parsed = layers::frame(&frame).unwrap();
    let start = fold(pseudo_header(&parsed.headers[0], 6));
    frame[50..52].copy_from_slice(&start.to_be_bytes());
    let text = checksums(&frame).unwrap_err().to_string();
    assert!(text.contains("tx offload"), "{text}");
    assert!(text.contains("should be 0xd3f1"), "{text}");
}

#[test]
fn no_udp_checksum_is_for_ipv4_only() {
    let mut four = bytes(frames::UDP4);
    four[40..42].fill(0);
    let skipped = Some("UDP without a checksum");
    assert_eq!(checksums(&four), Ok(Checked { right: 1, skipped }));
    let mut six = bytes(frames::UDP6);
    six[60..62].fill(0);
    assert_eq!(checksums(&six), Err(Fault::NoChecksum));
}

#[test]
fn lengths_have_to_agree() {
    for (name, hex, _, _) in GOOD.iter().filter(|(name, ..)| *name != "ARP") {
        let mut short = bytes(hex);
        short.pop();
        let fault = checksums(&short).unwrap_err();
        assert!(matches!(fault, Fault::Malformed(_)), "{name}: {fault}");
    }
    // Nothing may follow a packet but the padding of a short frame.
    let mut long = bytes(frames::TCP4);
    long.push(0);
    assert_eq!(checksums(&long), Err(Fault::Trailing(1, 0)));
    let mut padded = bytes(frames::UDP4);
    padded.resize(60, 0);
    assert!(checksums(&padded).is_ok());
    padded.push(0);
    assert!(checksums(&padded).is_err());
}

#[test]
fn an_inner_packet_fills_its_outer_one() {
    // One byte behind the inner packet, inside the outer: lengths and outer sum say so.
    let mut frame = bytes(frames::SIX_IN_SIX);
    frame.push(0);
    frame[19] += 1;
    assert_eq!(checksums(&frame), Err(Fault::Trailing(1, 1)));
}

#[test]
fn nothing_makes_it_panic() {
    for (_, hex, _, _) in GOOD {
        let good = bytes(hex);
        for length in 0..good.len() {
            let _ = checksums(&good[..length]);
        }
        for at in 0..good.len() {
            for value in [0, 1, 0x0f, 0x7f, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                let _ = checksums(&bad);
                let _ = crate::lab::describe(&bad);
            }
        }
    }
}

/// A quoted packet with a fault, in a message whose own sum is right.
#[test]
fn what_an_icmp_error_quotes_is_judged_too() {
    for (hex, start, at) in [
        (frames::UNREACHABLE4, 20, 10),
        (frames::UNREACHABLE4, 20, 26),
        (frames::TOO_BIG4, 20, 12),
        (frames::UNREACHABLE6, 40, 46),
    ] {
        let mut bad = bytes(hex);
        let message = 14 + start;
        bad[message + 8 + at] ^= 0x10;
        let parsed = layers::frame(&bad).unwrap();
        let ip = &parsed.headers[0];
        let pseudo = if start == 20 { 0 } else { pseudo_header(ip, 58) };
        let mut payload = ip.payload.to_vec();
        payload[2..4].fill(0);
        let right = !fold(pseudo + sum(&payload));
        bad[message + 2..message + 4].copy_from_slice(&right.to_be_bytes());
        let fault = checksums(&bad).unwrap_err();
        assert!(matches!(fault, Fault::Quoted(_)), "{fault}");
    }
}

#[test]
fn a_tunnel_needs_no_udp_checksum_but_a_right_length() {
    use crate::lab::forge::{Datagram, ethernet, tunnel};
    let inner = Datagram::new(
        "198.51.100.2:4000".parse().unwrap(),
        "10.244.2.2:80".parse().unwrap(),
        b"hello",
    );
    let (source, node) = ("[fd00::1]:50000".parse().unwrap(), "fd00::2".parse().unwrap());
    let packet = tunnel(source, node, "203.0.113.80:80".parse().unwrap(), &inner.packet());
    let good = ethernet([2; 6], [4; 6], &packet);
    assert_eq!(checksums(&good), Ok(Checked { right: 2, skipped: None }));
    let mut wrong_sum = good.clone();
    wrong_sum[14 + 40 + 7] = 1;
    assert!(matches!(checksums(&wrong_sum), Err(Fault::Checksum { what: "UDP", .. })));
    let mut wrong_length = good.clone();
    wrong_length[14 + 40 + 5] -= 1;
    assert!(matches!(checksums(&wrong_length), Err(Fault::Length("UDP", _))));
    let mut wrong_option = good.clone();
    wrong_option[14 + 40 + 8 + 8 + 3] += 1;
    assert!(matches!(checksums(&wrong_option), Err(Fault::Malformed(_))));
    let mut inner_byte = good;
    *inner_byte.last_mut().unwrap() ^= 1;
    assert!(matches!(checksums(&inner_byte), Err(Fault::Checksum { what: "UDP", .. })));
}

#[test]
fn the_sum_of_sctp_is_that_of_its_rfc() {
    // The check value of CRC-32C.
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    let mut packet = vec![0; 16];
    let right = crc32c(&packet);
    packet[8..12].copy_from_slice(&right.to_le_bytes());
    assert_eq!(check_sctp(&packet), Ok(()));
    packet[15] = 1;
    assert!(matches!(check_sctp(&packet), Err(Fault::Crc { .. })));
}
