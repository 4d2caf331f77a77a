//! What holds for every packet, whatever its bytes.

use std::{net::IpAddr, sync::LazyLock};

use proptest::{collection::vec, prelude::*, sample::select};
use xdp_lb_abi::{Disposition, Reason};
use xdp_lb_datapath::{
    Verdict,
    egress::{Outgoing, egress},
    testing::{
        Fixture, HEADROOM, MemoryFrame, MemoryTables,
        check::{check_frame, check_packet, complement_sum, ip_packet},
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

/// A port that no frontend has.
const NOBODYS_PORT: u16 = 79;

/// A sound packet to one of the services: by any family and protocol, of any size and class; an ICMP
/// error about one, or its first fragment.
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
        pod::GENEVE_V4,
        pod::GENEVE_V6,
        pod::GENEVE_V4_OTHER,
        pod::GENEVE_V6_VLAN,
        pod::GENEVE_V4_NARROW,
        pod::LOCAL,
        pod::LOCAL_SAME,
        port::REJECT,
        port::REJECT_NEW,
        port::ALLOWED,
        port::ALLOWED_ONE,
        port::AFFINITY_MOVED,
        port::AFFINITY_ON,
        port::AFFINITY_OFF,
        NOBODYS_PORT,
        port::SNAT,
        port::SNAT_VLAN,
        port::SNAT_NARROW,
    ]);
    let header = (any::<bool>(), any::<u8>(), any::<u8>(), 0..=10_usize, 0..3_usize);
    (header, 0..3_usize, (any::<u16>(), ports), any::<u8>(), 0..2000_usize, 0..8_u8).prop_map(
        |((v6, class, ttl, options, extensions), tags, ports, flags, data, kind)| {
            let (source, destination) = if v6 { (CLIENT_V6, VIP_V6) } else { (CLIENT_V4, VIP_V4) };
            let mut header: Ip = ip(source, destination).traffic_class(class).ttl(ttl);
            header = header.options(&vec![1; options * 4]);
            for _ in 0..extensions {
                header = header.extension(60, &[0, 1, 4, 0, 0, 0, 0]);
            }
            let ip_header = if v6 { 40 } else { 20 };
            let packet = match kind {
                0 => header.tcp(ports, flags, data),
                1 => header.udp(ports, data),
                2 => header.sctp(ports, u32::from(flags), data),
                3 | 4 => {
                    let quote = ip(destination, source).tcp((ports.1, ports.0), flags, data);
                    let quote = &quote[..quote.len().min(usize::from(ttl) * 8)];
                    let (kind, code) = if v6 { (2, 0) } else { (3, 4) };
                    header.icmp(kind, code, [0, 0, 4, 0], quote)
                }
                5 => header
                    .fragments(17, &ip(source, destination).udp(ports, data)[ip_header..], 800)
                    .swap_remove(0),
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
    let verdict = tables.run(&mut frame);
    let reasons: Vec<_> = tables.reason_stats.borrow().keys().copied().collect();
    let forwarded = tables.backend_stats.borrow().len();
    // An ICMP error that is forwarded is counted as such too, and so is what is delivered to a pod.
    let besides = |reason: &&Reason| !matches!(reason, Reason::IcmpForwarded | Reason::Local);
    let counted = reasons.iter().filter(besides).count() + forwarded;
    assert_eq!(counted, 1, "counted once, as forwarded or with a reason");
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
        // Found out when the packet is no longer what it was.
        Some(
            Reason::Headroom
            | Reason::TranslationExhausted
            | Reason::SctpFragment
            | Reason::AnswerMalformed,
        ) => prop_assert_eq!(verdict, Verdict::Drop),
        Some(reason) => match reason.disposition() {
            Disposition::Pass => prop_assert_eq!((verdict, &output), (Verdict::Pass, &input.bytes)),
            Disposition::Drop => prop_assert_eq!((verdict, &output), (Verdict::Drop, &input.bytes)),
            Disposition::Answer => {
                prop_assert_eq!(verdict, Verdict::Transmit);
                prop_assert_eq!(&output[..6], &input.bytes[6..12], "back to the sender");
                // An echo's data may have come with a wrong checksum, which its reply then has too.
                if reason != Reason::Echo || check_frame(&input.bytes).is_ok() {
                    prop_assert_eq!(check_frame(&output), Ok(()));
                }
            }
            Disposition::Forward => {
                prop_assert!(matches!(verdict, Verdict::Transmit | Verdict::Redirect(_)));
                if reason == Reason::IcmpForwarded {
                    carries_unchanged(&input.bytes, &output)?;
                }
            }
            Disposition::Deliver => {
                prop_assert_eq!(verdict, Verdict::Pass);
                if check_frame(&input.bytes).is_ok() {
                    prop_assert_eq!(check_frame(&output), Ok(()));
                }
            }
        },
    }
    Ok(())
}

/// Whether a packet's source is our own address.
fn comes_from_us(packet: &[u8]) -> bool {
    match (HOST_V4, HOST_V6) {
        (IpAddr::V4(v4), _) if packet[0] >> 4 == 4 => packet[12..16] == v4.octets(),
        (_, IpAddr::V6(v6)) => packet[8..24] == v6.octets(),
        _ => false,
    }
}

/// The frame holds the same IP packet, as it is, translated, inside a right outer header, or in a
/// tunnel to a pod.
fn carries_unchanged(before: &[u8], after: &[u8]) -> Result<(), TestCaseError> {
    let (Some(packet), Some(sent)) = (ip_packet(before), ip_packet(after)) else {
        return Err(TestCaseError::fail("no IP packet"));
    };
    if sent == packet {
        return Ok(());
    }
    if comes_from_us(sent) {
        // Mode snat: addresses, TTL, ports and checksums.
        const MOST: usize = 32 + 1 + 4 + 4;
        prop_assert_eq!(sent.len(), packet.len());
        prop_assert!(sent.iter().zip(packet).filter(|(new, old)| new != old).count() <= MOST);
        if check_frame(before).is_ok() {
            prop_assert_eq!(check_frame(after), Ok(()));
        }
        return Ok(());
    }
    let (length, protocol) = if sent[0] == 0x45 { (20, sent[9]) } else { (40, sent[6]) };
    prop_assert!(sent[0] == 0x45 || sent[0] >> 4 == 6);
    if protocol == 17 {
        return is_for_a_pod(packet, sent, length);
    }
    prop_assert_eq!(&sent[length..], packet);
    prop_assert_eq!(protocol, if packet[0] >> 4 == 6 { 41 } else { 4 });
    if length == 20 {
        prop_assert_eq!(complement_sum(&sent[..20]), 0xffff);
    }
    Ok(())
}

/// The tunnel packet names the frontend, and its inner packet differs from what the client sent in
/// destination, TTL and the checksums over them alone.
fn is_for_a_pod(packet: &[u8], sent: &[u8], start: usize) -> Result<(), TestCaseError> {
    let v6 = packet[0] >> 4 == 6;
    let (address, option) = if v6 { (24..40, 40) } else { (16..20, 28) };
    if start == 20 {
        prop_assert_eq!(complement_sum(&sent[..20]), 0xffff);
    }
    let (udp, inner) = sent[start..].split_at(option);
    prop_assert!(udp[0] >= 0xc0);
    prop_assert_eq!(&udp[2..4], [0x17, 0xc1], "port 6081");
    prop_assert_eq!(usize::from(udp[4]) * 256 + usize::from(udp[5]), sent.len() - start);
    prop_assert_eq!(&udp[6..8], [0, 0]);
    let expected = if v6 { [6, 0x40, 0x86, 0xdd] } else { [3, 0x40, 0x08, 0x00] };
    prop_assert_eq!(&udp[8..16], [&expected[..], &[0; 4]].concat());
    prop_assert_eq!(&udp[16..20], if v6 { [0xff, 0x4c, 0x82, 5] } else { [0xff, 0x4c, 0x81, 2] });
    prop_assert_eq!(&udp[24..], &packet[address.clone()]);
    prop_assert_eq!(inner.len(), packet.len());
    let pod: Vec<u8> = match remote_pod(v6) {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    prop_assert_eq!(&inner[address.clone()], pod);
    let ttl = if v6 { 7 } else { 8 };
    prop_assert_eq!(inner[ttl], packet[ttl] - 1);
    if check_packet(packet).is_ok() {
        prop_assert_eq!(check_packet(inner), Ok(()));
    }
    // The transport header may be anywhere, so its fields are known by where the packets differ.
    let header = if v6 { 40 } else { usize::from(packet[0] & 15) * 4 };
    let changed: Vec<usize> = (0..header).filter(|at| packet[*at] != inner[*at]).collect();
    let sum = if v6 { 0..0 } else { 10..12 };
    prop_assert!(
        changed.iter().all(|at| *at == ttl || sum.contains(at) || address.contains(at)),
        "{changed:?}"
    );
    let changed = (header..packet.len()).filter(|at| packet[*at] != inner[*at]).count();
    let protocol = packet[if v6 { 6 } else { 9 }];
    // Of IPv6 with extension headers, the protocol stands behind them.
    let may_be_icmp = if v6 { !matches!(protocol, 6 | 17 | 132) } else { protocol == 1 };
    let most = if may_be_icmp {
        // The packet that an error quotes: address, port, header checksum and transport checksum, and
        // the error's own.
        if v6 { 16 + 2 + 4 + 2 } else { 4 + 2 + 2 + 4 + 2 }
    } else {
        // A port, and a checksum of up to four bytes.
        2 + 4
    };
    prop_assert!(changed <= most, "{changed} bytes behind the header");
    Ok(())
}

thread_local! {
    /// The tables after all fixtures have run.
    static USED: MemoryTables = {
        let tables = world();
        for fixture in &*FIXTURES {
            let mut frame = MemoryFrame::new(&fixture.packet, INGRESS);
            if fixture.outgoing.is_some() {
                egress(&mut frame, &tables);
            } else {
                tables.run(&mut frame);
            }
        }
        tables
    };
}

/// The laws of what leaves.
fn judge_outgoing(input: &Input) -> Result<(), TestCaseError> {
    let mut frame = MemoryFrame::new(&input.bytes, INGRESS).with_linear(input.linear);
    let (outgoing, counted) = USED.with(|tables| {
        tables.reason_stats.borrow_mut().clear();
        let outgoing = egress(&mut frame, tables);
        (outgoing, tables.reason_stats.borrow().len())
    });
    prop_assert_eq!(counted, usize::from(outgoing != Outgoing::Untouched));
    match outgoing {
        Outgoing::Untouched => prop_assert_eq!(frame.bytes(), &input.bytes),
        Outgoing::Rewritten | Outgoing::BackIn => {
            prop_assert_eq!(frame.bytes().len(), input.bytes.len());
            prop_assert_eq!(&frame.bytes()[6..14], &input.bytes[6..14]);
            if outgoing == Outgoing::BackIn {
                prop_assert_eq!(&frame.bytes()[..6], &input.bytes[6..12]);
            }
            if check_frame(&input.bytes).is_ok() {
                prop_assert_eq!(check_frame(frame.bytes()), Ok(()));
            }
        }
        Outgoing::Drop => {}
    }
    Ok(())
}

proptest! {
    #[test]
    fn any_bytes_that_leave(input in input(vec(any::<u8>(), 0..200))) {
        judge_outgoing(&input)?;
    }

    #[test]
    fn nearly_packets_that_leave(input in input(mutated())) {
        judge_outgoing(&input)?;
    }

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
