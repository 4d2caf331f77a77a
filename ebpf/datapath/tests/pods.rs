//! What depends on time, on other stages, or on more than one packet: packets to pods, and back.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::IpAddr;

use xdp_lb_abi::{Address, FlowKey, Reason};
use xdp_lb_datapath::{
    Hand, Stage, Verdict,
    egress::{Outgoing, egress},
    parse::{Kind, Offset, Word, parse},
    resume,
    stage::{Chosen, Quote},
    testing::{
        MemoryFrame, MemoryTables,
        packet::{ACK, Ip, geneve, ip, link},
        world,
        world::*,
    },
};

const SECOND: u64 = 1_000_000_000;

fn client(v6: bool) -> IpAddr {
    if v6 { CLIENT_V6 } else { CLIENT_V4 }
}

fn vip(v6: bool) -> IpAddr {
    if v6 { VIP_V6 } else { VIP_V4 }
}

fn arriving(packet: impl AsRef<[u8]>) -> Vec<u8> {
    link(ROUTER_MAC, OUR_MAC).holds(packet)
}

fn leaving(packet: impl AsRef<[u8]>) -> Vec<u8> {
    link(OUR_MAC, ROUTER_MAC).holds(packet)
}

/// Sends a packet from the client to a frontend; the port under which the pod sees the client.
fn send(tables: &MemoryTables, number: u8, from: u16, to: u16) -> Result<u16, Reason> {
    let header = ip(CLIENT_V4, VIP_V4);
    let packet = match number {
        6 => header.tcp((from, to), ACK, 3),
        _ => header.udp((from, to), 3),
    };
    let mut frame = MemoryFrame::new(&arriving(packet), INGRESS);
    tables.reason_stats.borrow_mut().clear();
    let verdict = tables.run(&mut frame);
    let reason = *tables.reason_stats.borrow().keys().next().unwrap();
    if reason != Reason::Local {
        assert_eq!(verdict, Verdict::Drop);
        return Err(reason);
    }
    Ok(u16::from_be_bytes([frame.bytes()[34], frame.bytes()[35]]))
}

/// Sends a pod's answer; the source and destination port that it leaves with.
fn answer(tables: &MemoryTables, number: u8, to: u16) -> (Outgoing, u16, u16) {
    let header = ip(LOCAL_POD_V4, CLIENT_V4);
    let packet = match number {
        6 => header.tcp((POD_PORT, to), ACK, 3),
        _ => header.udp((POD_PORT, to), 3),
    };
    let mut frame = MemoryFrame::new(&leaving(packet), INGRESS);
    let outgoing = egress(&mut frame, tables);
    let port = |at: usize| u16::from_be_bytes([frame.bytes()[at], frame.bytes()[at + 1]]);
    (outgoing, port(34), port(36))
}

#[test]
fn a_flow_keeps_its_translated_port_when_its_own_becomes_free() {
    for (number, lifetime) in [(17, 300), (6, 7440)] {
        let tables = world();
        assert_eq!(send(&tables, number, 40_000, pod::LOCAL), Ok(40_000));
        let port = send(&tables, number, 40_000, pod::LOCAL_AGAIN).unwrap();
        assert_ne!(port, 40_000);
        tables.now.set((lifetime + 2) * SECOND);
        assert_eq!(send(&tables, number, 40_000, pod::LOCAL_AGAIN), Ok(port));
        // The table of answers is an LRU: the other flow's record may be gone, too.
        let key = FlowKey::new(CLIENT_V4.into(), LOCAL_POD_V4.into(), (40_000, POD_PORT), number);
        assert!(tables.answers.borrow_mut().remove(&key).is_some());
        assert_eq!(send(&tables, number, 40_000, pod::LOCAL_AGAIN), Ok(port));
        assert_eq!(answer(&tables, number, port), (Outgoing::Rewritten, pod::LOCAL_AGAIN, 40_000));
    }
}

#[test]
fn a_silent_flow_loses_its_port_only_after_its_lifetime() {
    for (number, lifetime) in [(17, 300), (6, 7440)] {
        for (later, free) in [(lifetime, false), (lifetime + 1, true)] {
            let tables = world();
            tables.now.set(5 * SECOND);
            assert_eq!(send(&tables, number, 40_000, pod::LOCAL), Ok(40_000));
            tables.now.set((5 + later) * SECOND);
            let port = send(&tables, number, 40_000, pod::LOCAL_AGAIN).unwrap();
            assert_eq!(port == 40_000, free, "protocol {number} after {later} s");
            assert_eq!(
                answer(&tables, number, port),
                (Outgoing::Rewritten, pod::LOCAL_AGAIN, 40_000)
            );
        }
    }
}

#[test]
fn packets_keep_a_flow_alive() {
    let tables = world();
    for second in (0..2000).step_by(200) {
        tables.now.set(second * SECOND);
        assert_eq!(send(&tables, 17, 40_000, pod::LOCAL), Ok(40_000));
        assert_ne!(send(&tables, 17, 40_000, pod::LOCAL_AGAIN), Ok(40_000));
    }
}

#[test]
fn a_record_is_not_written_for_every_packet() {
    let tables = world();
    let key = FlowKey::new(CLIENT_V4.into(), LOCAL_POD_V4.into(), (40_000, POD_PORT), 6);
    let mut seen = Vec::new();
    for millisecond in [0, 400, 1000, 1001, 1500, 2002] {
        tables.now.set(10 * SECOND + millisecond * 1_000_000);
        assert_eq!(send(&tables, 6, 40_000, pod::LOCAL), Ok(40_000));
        seen.push((tables.answers.borrow()[&key].seen() - 10 * SECOND) / 1_000_000);
    }
    assert_eq!(seen, [0, 0, 0, 1001, 1001, 2002]);
}

#[test]
fn a_translated_port_that_another_flow_took_is_given_up() {
    let tables = world();
    assert_eq!(send(&tables, 17, 40_000, pod::LOCAL), Ok(40_000));
    let port = send(&tables, 17, 40_000, pod::LOCAL_AGAIN).unwrap();
    // Both are silent for so long that the client's other flow gets the port; then one comes back.
    tables.now.set(400 * SECOND);
    assert_eq!(send(&tables, 17, port, pod::LOCAL), Ok(port));
    assert_eq!(send(&tables, 17, 40_000, pod::LOCAL), Ok(40_000));
    let next = send(&tables, 17, 40_000, pod::LOCAL_AGAIN).unwrap();
    assert!(next != port && next != 40_000);
    assert_eq!(answer(&tables, 17, port), (Outgoing::Rewritten, pod::LOCAL, port));
    assert_eq!(answer(&tables, 17, next), (Outgoing::Rewritten, pod::LOCAL_AGAIN, 40_000));
}

/// Twenty frontends of one pod through a tunnel, all from one port: each gets a port of its own as
/// long as there is one to find, and each answer leaves from the right frontend.
#[test]
fn many_frontends_of_one_pod_are_told_apart() {
    let tables = world();
    let mut seen = Vec::new();
    for frontend in 1..=20 {
        let inner = ip(CLIENT_V4, LOCAL_POD_V4).udp((40_000, POD_PORT), 3);
        let header = geneve(50_000, (VIP_V4, frontend));
        let tunnel = ip(PEER_V6, HOST_V6).geneve(&header, inner);
        let mut frame = MemoryFrame::new(&arriving(tunnel), INGRESS);
        assert_eq!(tables.run(&mut frame), Verdict::Pass);
        let port = u16::from_be_bytes([frame.bytes()[34], frame.bytes()[35]]);
        assert!(!seen.contains(&port));
        seen.push(port);
    }
    for (frontend, port) in (1..).zip(&seen) {
        assert_eq!(answer(&tables, 17, *port), (Outgoing::Rewritten, frontend, 40_000));
    }
}

/// What the first stages hand to stage `Pods` for a packet to a service.
fn hand(tables: &MemoryTables, frame: &mut MemoryFrame, v6: bool, port: u16, quote: Quote) -> Hand {
    let facts = parse(frame).unwrap();
    let pod: Address = if port < pod::LOCAL { remote_pod(v6) } else { local_pod(v6) }.into();
    let end: Address = if port == pod::GENEVE_V6 { TUNNEL_END_V6 } else { TUNNEL_END_V4 }.into();
    let id = tables.backends.iter().position(|backend| {
        let by_tunnel = port >= pod::LOCAL || backend.tunnel() == end;
        backend.address() == pod && by_tunnel
    });
    let backend = Chosen { id: id.unwrap() as u32, hash: 0x1234_5678, stats: 7 };
    Hand { facts, backend, quote, refusal: Word(Reason::Inconsistent), mtu: 0 }
}

/// Goes on with a packet in stage `Pods`; what becomes of it, and what it began with.
fn run(
    tables: &MemoryTables,
    packet: &[u8],
    v6: bool,
    port: u16,
    quote: Quote,
) -> (Verdict, Vec<u8>, Hand) {
    let mut frame = MemoryFrame::new(&arriving(packet), INGRESS);
    let hand = hand(tables, &mut frame, v6, port, quote);
    let mut verdict = resume(Stage::Pods, &mut frame, tables, &hand);
    while let Verdict::Next(stage) = verdict {
        let next = tables.hand.take().unwrap();
        verdict = resume(stage, &mut frame, tables, &next);
    }
    (verdict, frame.bytes().to_vec(), hand)
}

/// The tunnel packet that leaves for a service in mode geneve.
fn tunnelled(v6: bool, port: u16, frontend_port: u16, inner: &[u8]) -> Vec<u8> {
    let outer = if port == pod::GENEVE_V6 {
        ip(TUNNEL_SOURCE_V6, TUNNEL_END_V6).label(0x12345)
    } else {
        ip(TUNNEL_SOURCE_V4, TUNNEL_END_V4)
    };
    let header = geneve(0xc000 | 0x1678, (vip(v6), frontend_port));
    link(OUR_MAC, next_hop(port)).holds(outer.id(0).ttl(64).geneve(&header, inner))
}

fn piece(ip: Ip, v6: bool, number: u8, offset: u16, more: u16, data: &[u8]) -> Vec<u8> {
    if v6 {
        let [high, low] = ((offset * 8) | more).to_be_bytes();
        return ip.extension(44, &[0, high, low, 0, 0, 9, 9]).holds(number, data);
    }
    ip.id(0x0909).fragment(offset | more << 13).holds(number, data)
}

#[test]
fn fragments_go_to_pods() {
    for v6 in [false, true] {
        let start = if v6 { 40 } else { 20 };
        for port in [pod::GENEVE_V4, pod::GENEVE_V6, pod::LOCAL] {
            let tables = world();
            let local = port == pod::LOCAL;
            let pod = if local { local_pod(v6) } else { remote_pod(v6) };
            let ttl = if local { 61 } else { 60 };
            let before = ip(client(v6), vip(v6));
            let after = ip(client(v6), pod).ttl(ttl);
            let whole = &before.udp((40_000, port), 90)[start..];
            let output = &after.udp((40_000, POD_PORT), 90)[start..];
            for (offset, more, range) in [(0, 1, 0..64), (8, 0, 64..98)] {
                let packet = piece(before.clone(), v6, 17, offset, more, &whole[range.clone()]);
                let expected = piece(after.clone(), v6, 17, offset, more, &output[range]);
                let (verdict, frame, _) = run(&tables, &packet, v6, port, Quote::NONE);
                let frontend_port = if offset == 0 { port } else { 0 };
                if local {
                    assert_eq!((verdict, frame), (Verdict::Pass, arriving(expected)));
                } else {
                    let expected = tunnelled(v6, port, frontend_port, &expected);
                    assert_eq!((verdict, frame), (Verdict::Transmit, expected));
                }
            }
            let sctp = &before.sctp((40_000, port), 9, 90)[start..];
            let packet = piece(before.clone(), v6, 132, 0, 1, &sctp[..64]);
            let (verdict, frame, _) = run(&tables, &packet, v6, port, Quote::NONE);
            assert_eq!((verdict, frame), (Verdict::Drop, arriving(packet)));
            assert!(tables.reason_stats.borrow().contains_key(&Reason::SctpFragment));
        }
    }
}

/// The first fragment is translated, the later ones have no port to translate.
#[test]
fn fragments_of_a_pod_to_itself_get_the_frontends_address() {
    for v6 in [false, true] {
        let start = if v6 { 40 } else { 20 };
        let tables = world();
        let (before, after) = (ip(local_pod(v6), vip(v6)), ip(vip(v6), local_pod(v6)));
        let whole = &before.udp((40_000, pod::LOCAL), 90)[start..];
        let output = &after.udp((40_000, POD_PORT), 90)[start..];
        for (offset, more, range) in [(0, 1, 0..64), (8, 0, 64..98)] {
            let packet = piece(before.clone(), v6, 17, offset, more, &whole[range.clone()]);
            let expected = piece(after.clone(), v6, 17, offset, more, &output[range]);
            let (verdict, frame, _) = run(&tables, &packet, v6, pod::LOCAL, Quote::NONE);
            assert_eq!((verdict, frame), (Verdict::Pass, arriving(expected)));
        }
    }
}

/// A quotation at the start of an ICMP error's data, of a packet without options.
fn quote(v6: bool, port: u16, client_port: u16, number: u8, length: usize) -> Quote {
    let header = if v6 { 40 } else { 20 };
    let at = 14 + header + 8;
    Quote {
        at: Offset::new(at),
        transport: Offset::new(at + header),
        end: at + header + length,
        source: vip(v6).into(),
        destination: client(v6).into(),
        ports: Word((port, client_port)),
        protocol: Word(number),
    }
}

#[test]
fn errors_about_a_pods_packets_go_to_the_pod() {
    for v6 in [false, true] {
        let (kind, code) = if v6 { (2, 0) } else { (3, 4) };
        let router = if v6 { PEER_V6 } else { PEER_V4 };
        let header = if v6 { 40 } else { 20 };
        for port in [pod::GENEVE_V4, pod::GENEVE_V6, pod::LOCAL, pod::LOCAL_AGAIN] {
            let tables = world();
            let local = port >= pod::LOCAL;
            let pod = if local { local_pod(v6) } else { remote_pod(v6) };
            // Two flows from one port, of which the second is seen under another.
            let mut seen = 40_000;
            if local {
                for port in [pod::LOCAL, pod::LOCAL_AGAIN] {
                    let packet = ip(client(v6), vip(v6)).udp((40_000, port), 5);
                    let mut frame = MemoryFrame::new(&arriving(packet), INGRESS);
                    assert_eq!(tables.run(&mut frame), Verdict::Pass);
                }
            }
            if port == pod::LOCAL_AGAIN {
                seen = translated_port((client(v6), 40_000), (vip(v6), port), 17, 0);
            }
            for length in [8, 16, 100] {
                let error = |to, ttl, quoted: Vec<u8>| {
                    let quoted = &quoted[..header + length];
                    ip(router, to).ttl(ttl).icmp(kind, code, [0, 0, 5, 0], quoted)
                };
                let sent = ip(vip(v6), client(v6)).udp((port, 40_000), 200);
                let own = ip(pod, client(v6)).udp((POD_PORT, seen), 200);
                let packet = error(vip(v6), 61, sent);
                let expected = error(pod, if local { 61 } else { 60 }, own);
                let quote = quote(v6, port, 40_000, 17, length);
                let answers = tables.answers.borrow().len();
                let (verdict, frame, hand) = run(&tables, &packet, v6, port, quote);
                assert_eq!(hand.facts.kind.0, Kind::Error);
                if local {
                    assert_eq!((verdict, frame), (Verdict::Pass, arriving(expected)));
                } else {
                    let expected = tunnelled(v6, port, port, &expected);
                    assert_eq!((verdict, frame), (Verdict::Transmit, expected));
                }
                assert_eq!(tables.answers.borrow().len(), answers, "an error records nothing");
            }
        }
    }
}

#[test]
fn what_cannot_go_through_a_tunnel_is_handed_to_the_stage_that_says_so() {
    for v6 in [false, true] {
        let tables = world();
        let header = ip(client(v6), vip(v6));
        let room = 1400 - 20 - if v6 { 40 } else { 28 };
        let data = room + 1 - if v6 { 60 } else { 40 };
        for (packet, refusal, mtu) in [
            (
                header.clone().ttl(1).tcp((40_000, pod::GENEVE_V4_NARROW), ACK, 3),
                Reason::TimeExceeded,
                0,
            ),
            (header.tcp((40_000, pod::GENEVE_V4_NARROW), ACK, data), Reason::TooBig, room),
        ] {
            let frame = arriving(&packet);
            let mut memory = MemoryFrame::new(&frame, INGRESS);
            let first = xdp_lb_datapath::handle(&mut memory, &tables);
            assert_eq!(first, Verdict::Next(Stage::Pods));
            let hand = tables.hand.get().unwrap();
            let next = resume(Stage::Pods, &mut memory, &tables, &hand);
            assert_eq!(next, Verdict::Next(Stage::Refuse));
            let hand = tables.hand.get().unwrap();
            assert_eq!((hand.refusal.0, hand.mtu), (refusal, mtu));
            assert_eq!(memory.bytes(), frame);
            assert!(tables.backend_stats.borrow().is_empty());
        }
    }
}
