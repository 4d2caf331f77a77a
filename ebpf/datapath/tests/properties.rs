//! What holds for every packet, whatever its bytes.

use std::sync::LazyLock;

use proptest::{collection::vec, prelude::*, sample::select};
use xdp_lb_abi::{Disposition, Reason};
use xdp_lb_datapath::{
    Verdict, handle,
    testing::{
        Fixture, HEADROOM, MemoryFrame,
        check::{check_frame, complement_sum, ip_packet},
        fixtures,
        packet::{Ip, ip, link},
        world,
        world::*,
    },
};

static FIXTURES: LazyLock<Vec<Fixture>> = LazyLock::new(fixtures);

/// A frame, how much of it is linear, and the headroom before it.
#[derive(Clone, Debug)]
struct Input {
    bytes: Vec<u8>,
    linear: usize,
    headroom: usize,
}

fn input(bytes: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Input> {
    let linear = prop_oneof![4 => Just(usize::MAX), 1 => 0..200_usize];
    let headroom = prop_oneof![4 => Just(HEADROOM), 1 => 0..60_usize];
    (bytes, linear, headroom).prop_map(|(bytes, linear, headroom)| {
        let linear = linear.min(bytes.len());
        Input { bytes, linear, headroom }
    })
}

/// A fixture's frame with some bytes of its headers changed, cut off or longer.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let change = (0..100_usize, any::<u8>());
    let length = prop_oneof![3 => Just(0_isize), 1 => -60..60_isize];
    (0..FIXTURES.len(), vec(change, 0..5), length).prop_map(|(index, changes, length)| {
        let mut bytes = FIXTURES[index].packet.clone();
        for (at, value) in changes {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        bytes.resize(bytes.len().saturating_add_signed(length), 0x77);
        bytes
    })
}

/// A sound packet to one of the services: by any family and protocol, of any size and class.
fn sound() -> impl Strategy<Value = Vec<u8>> {
    let ports = select(vec![
        port::L2,
        port::L2_OTHER,
        port::L2_VLAN,
        port::L2_QINQ,
        port::L2_TINY,
        port::L2_NARROW,
        port::L2_SPREAD,
        port::TUNNEL_V4,
        port::TUNNEL_V6,
        port::TUNNEL_V6_VLAN,
        port::TUNNEL_V4_VARIED,
        port::TUNNEL_V6_VARIED,
        port::TUNNEL_V4_NARROW,
        port::TUNNEL_V6_NARROW,
        port::MOVED,
    ]);
    let header = (any::<bool>(), any::<u8>(), 1..=255_u8, 0..=10_usize, 0..3_usize);
    (header, 0..3_usize, (any::<u16>(), ports), any::<u8>(), 0..2000_usize, 0..4_u8).prop_map(
        |((v6, class, ttl, options, extensions), tags, ports, flags, data, kind)| {
            let (source, destination) = if v6 { (CLIENT_V6, VIP_V6) } else { (CLIENT_V4, VIP_V4) };
            let mut header: Ip = ip(source, destination).traffic_class(class).ttl(ttl);
            header = header.options(&vec![1; options * 4]);
            for _ in 0..extensions {
                header = header.extension(60, &[0, 1, 4, 0, 0, 0, 0]);
            }
            let packet = match kind {
                0 => header.tcp(ports, flags, data),
                1 => header.udp(ports, data),
                2 => header.sctp(ports, u32::from(flags), data),
                _ if v6 => header.icmp(128, 0, [1, 2, 3, flags], vec![class; data]),
                _ => header.icmp(8, 0, [1, 2, 3, flags], vec![class; data]),
            };
            let mut outside = link(ROUTER_MAC, OUR_MAC);
            for tag in 0..tags {
                outside = outside.vlan(u16::from(class) << 8 | tag as u16);
            }
            outside.holds(packet)
        },
    )
}

/// Runs a frame over fresh tables: the verdict, what was counted, and the frame afterwards.
fn run(input: &Input) -> (Verdict, Option<Reason>, Vec<u8>) {
    let tables = world();
    let mut frame = MemoryFrame::new(&input.bytes, INGRESS)
        .with_linear(input.linear)
        .with_headroom(input.headroom);
    let verdict = handle(&mut frame, &tables);
    let reasons: Vec<_> = tables.reason_stats.borrow().keys().copied().collect();
    let forwarded = tables.backend_stats.borrow().len();
    assert_eq!(reasons.len() + forwarded, 1, "counted once, as forwarded or with a reason");
    assert_eq!(forwarded, tables.frontend_stats.borrow().len());
    (verdict, reasons.first().copied(), frame.bytes().to_vec())
}

/// The laws that hold for any bytes.
fn judge(input: &Input) -> Result<(), TestCaseError> {
    let (verdict, reason, output) = run(input);
    match reason {
        None => {
            let forwarded = matches!(verdict, Verdict::Transmit | Verdict::Redirect(_));
            prop_assert!(forwarded, "{verdict:?} without a reason");
            carries_unchanged(&input.bytes, &output)?;
        }
        Some(Reason::Headroom) => prop_assert_eq!(verdict, Verdict::Drop),
        Some(reason) => match reason.disposition() {
            Disposition::Pass => prop_assert_eq!((verdict, &output), (Verdict::Pass, &input.bytes)),
            Disposition::Drop => prop_assert_eq!((verdict, &output), (Verdict::Drop, &input.bytes)),
            Disposition::Answer => {
                prop_assert_eq!(verdict, Verdict::Transmit);
                prop_assert_eq!(&output[..6], &input.bytes[6..12], "back to the sender");
                // An echo's data may have come with a wrong checksum, which its reply then has too.
                if reason == Reason::TooBig || check_frame(&input.bytes).is_ok() {
                    prop_assert_eq!(check_frame(&output), Ok(()));
                }
            }
            Disposition::Deliver => {
                prop_assert_eq!(verdict, Verdict::Pass);
                prop_assert!(input.bytes.len() - output.len() >= 20);
                if check_frame(&input.bytes).is_ok() {
                    prop_assert_eq!(check_frame(&output), Ok(()));
                }
            }
        },
    }
    Ok(())
}

/// The frame holds the same IP packet, as it is or inside a right outer header.
fn carries_unchanged(before: &[u8], after: &[u8]) -> Result<(), TestCaseError> {
    let (Some(packet), Some(sent)) = (ip_packet(before), ip_packet(after)) else {
        return Err(TestCaseError::fail("no IP packet"));
    };
    if sent == packet {
        return Ok(());
    }
    let (length, protocol) = if sent[0] == 0x45 { (20, sent[9]) } else { (40, sent[6]) };
    prop_assert!(sent[0] == 0x45 || sent[0] >> 4 == 6);
    prop_assert_eq!(&sent[length..], packet);
    prop_assert_eq!(protocol, if packet[0] >> 4 == 6 { 41 } else { 4 });
    if length == 20 {
        prop_assert_eq!(complement_sum(&sent[..20]), 0xffff);
    }
    Ok(())
}

proptest! {
    #[test]
    fn any_bytes(input in input(vec(any::<u8>(), 0..200))) {
        judge(&input)?;
    }

    #[test]
    fn bytes_that_are_nearly_a_packet(input in input(mutated())) {
        judge(&input)?;
    }

    #[test]
    fn sound_packets(input in input(sound())) {
        judge(&input)?;
    }

    #[test]
    fn from_a_sound_packet_only_sound_packets_are_made(bytes in sound()) {
        prop_assert_eq!(check_frame(&bytes), Ok(()));
        let linear = bytes.len();
        let (verdict, _, output) = run(&Input { bytes, linear, headroom: HEADROOM });
        if verdict != Verdict::Drop {
            prop_assert_eq!(check_frame(&output), Ok(()));
        }
    }
}
