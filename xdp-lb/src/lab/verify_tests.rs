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
    ("port unreachable", frames::UNREACHABLE4, 2, None),
    ("port unreachable over IPv6", frames::UNREACHABLE6, 1, None),
    ("neighbour solicitation", frames::SOLICITATION, 1, None),
    ("two tags", frames::TAGGED, 2, None),
    ("IPv4 in IPv4", frames::IPIP, 3, None),
    ("IPv6 in IPv4", frames::SIX_IN_FOUR, 2, None),
    ("IPv4 in IPv6", frames::FOUR_IN_SIX, 2, None),
    ("IPv6 in IPv6", frames::SIX_IN_SIX, 1, None),
    ("extension headers", frames::EXTENDED, 1, None),
    ("IPv4 options", frames::OPTIONS, 2, None),
    ("fragmentation needed", frames::TOO_BIG4, 2, None),
    ("packet too big", frames::TOO_BIG6, 1, None),
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
