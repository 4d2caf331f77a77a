//! What one stage hands to the next, and what fixtures cannot show: time that passes, and other
//! settings.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{IpAddr, Ipv4Addr};

use xdp_lb_abi::{
    Address, Answer, Backend, FrontendKey, Hop, Mode, Phase, Reason, Settings, Table, fragment_key,
};
use xdp_lb_datapath::{
    Hand, Stage, Verdict,
    fragment::FRAGMENT_LIFETIME,
    geneve::PORT as GENEVE,
    handle,
    parse::Kind,
    resume,
    testing::{
        MemoryFrame, MemoryTables,
        check::check_frame,
        packet::{ACK, Ip, SYN, filler, ip, link},
        world,
        world::*,
    },
};

const NAT_PORTS: (u16, u16) = (30_000, 30_999);
const CLIENT_PORT: u16 = 40_000;

fn frame(packet: &[u8]) -> MemoryFrame {
    MemoryFrame::new(&link(ROUTER_MAC, OUR_MAC).holds(packet), INGRESS)
}

fn to_vip(v6: bool) -> Ip {
    if v6 { ip(CLIENT_V6, VIP_V6) } else { ip(CLIENT_V4, VIP_V4) }
}

/// From a backend of mode `snat` to this host.
fn to_host(v6: bool) -> Ip {
    if v6 { ip(TUNNEL_END_V6, HOST_V6) } else { ip(TUNNEL_END_V4, HOST_V4) }
}

/// An ICMP error from somewhere, which quotes this packet.
fn error(v6: bool, quote: &[u8]) -> Vec<u8> {
    let word = [0, 0, 5, 0];
    if v6 {
        ip(PEER_V6, address(quote, true)).icmp(2, 0, word, quote)
    } else {
        ip(PEER_V4, address(quote, false)).icmp(3, 4, word, quote)
    }
}

/// The source of a packet.
fn address(packet: &[u8], v6: bool) -> IpAddr {
    if v6 {
        IpAddr::from(<[u8; 16]>::try_from(&packet[8..24]).unwrap())
    } else {
        IpAddr::from(<[u8; 4]>::try_from(&packet[12..16]).unwrap())
    }
}

/// All fragments of a UDP packet.
fn fragments(header: &Ip, ports: (u16, u16), v6: bool) -> Vec<Vec<u8>> {
    header.fragments(17, &header.udp(ports, 100)[if v6 { 40 } else { 20 }..], 64)
}

/// The tables with settings of mode `snat` and of tunnels that end here.
fn tables() -> MemoryTables {
    let mut tables = world();
    tables.settings = tables.settings.with_nat_ports(NAT_PORTS.0, NAT_PORTS.1).with_terminate(true);
    tables
}

/// A service on both addresses whose backends are of this mode, by its port.
fn serve(tables: &mut MemoryTables, port: u16, mode: Mode) -> u32 {
    let backend = Backend::new(HOST_V4.into(), 8080, 6, mode, 3);
    let hop = Hop::new(next_hop(port), device::UNTAGGED);
    let id = tables.add_backend(backend.with_path(hop, 0, Address::v4([0; 4]), 0));
    let table = tables.add_table(&[0], &[id]);
    let none = Table::new(0, 0, 0, 0);
    let service = tables.add_service(table, none, Phase::Rest);
    for address in [VIP_V4, VIP_V6] {
        for protocol in [6, 17] {
            tables.add_frontend(FrontendKey::new(address.into(), port, protocol), service);
        }
    }
    id
}

/// Runs the packet until it goes on in a stage behind this one, and the second one of errors: that
/// stage, and what it is told.
fn handed_on(tables: &MemoryTables, by: Stage, packet: &[u8]) -> (Stage, Hand) {
    let mut frame = frame(packet);
    let mut verdict = handle(&mut frame, tables);
    assert_eq!(verdict, Verdict::Next(by));
    while let Verdict::Next(stage) = verdict
        && (stage == by || stage == Stage::Error)
    {
        let hand = tables.hand.get().unwrap();
        verdict = resume(stage, &mut frame, tables, &hand);
    }
    let Verdict::Next(stage) = verdict else {
        panic!("{:?}", tables.reason_stats.borrow());
    };
    assert_eq!(frame.bytes(), link(ROUTER_MAC, OUR_MAC).holds(packet), "nothing is written yet");
    (stage, tables.hand.get().unwrap())
}

/// Runs the packet: the verdict, and what was counted.
fn run(tables: &MemoryTables, packet: &[u8]) -> (Verdict, Option<Reason>, Vec<u8>) {
    tables.reason_stats.borrow_mut().clear();
    let mut frame = frame(packet);
    let verdict = tables.run(&mut frame);
    let reason = tables.reason_stats.borrow().keys().copied().next();
    (verdict, reason, frame.bytes().to_vec())
}

#[test]
fn an_error_goes_on_in_the_stage_of_its_flows_mode_with_its_quotation() {
    const PODS: u16 = 700;
    const SNAT: u16 = 701;
    let mut tables = tables();
    for (port, mode, stage) in [(PODS, Mode::Geneve, Stage::Pods), (SNAT, Mode::Snat, Stage::Snat)]
    {
        let id = serve(&mut tables, port, mode);
        for v6 in [false, true] {
            let (vip, client) = if v6 { (VIP_V6, CLIENT_V6) } else { (VIP_V4, CLIENT_V4) };
            let quote = ip(vip, client).tcp((port, CLIENT_PORT), ACK, 50);
            let packet = error(v6, &quote);
            let (next, hand) = handed_on(&tables, Stage::Icmp, &packet);
            assert_eq!(next, stage);
            assert_eq!(hand.facts.kind.0, Kind::Error);
            assert_eq!(hand.facts.source.to_ip(), if v6 { PEER_V6 } else { PEER_V4 });
            assert_eq!(hand.facts.length, packet.len());
            assert_eq!(hand.backend.id, id);
            assert_eq!(hand.backend.hash, hash(client, vip, (CLIENT_PORT, port), 6));
            let header = if v6 { 40 } else { 20 };
            assert_eq!(hand.quote.at(), 14 + header + 8);
            assert_eq!(hand.quote.transport(), 14 + header + 8 + header);
            assert_eq!(hand.quote.end, 14 + packet.len());
            assert_eq!(hand.quote.source.to_ip(), vip);
            assert_eq!(hand.quote.destination.to_ip(), client);
            assert_eq!(hand.quote.ports.0, (port, CLIENT_PORT));
            assert_eq!(hand.quote.protocol.0, 6);
        }
    }
    assert!(tables.reason_stats.borrow().is_empty(), "those stages count");
    assert!(tables.backend_stats.borrow().is_empty());
}

#[test]
fn an_error_about_a_packet_that_snat_sent_goes_on_there() {
    let tables = tables();
    for v6 in [false, true] {
        let sent = if v6 { ip(HOST_V6, TUNNEL_END_V6) } else { ip(HOST_V4, TUNNEL_END_V4) };
        let packet = error(v6, &sent.udp((NAT_PORTS.0, 8080), 50));
        let (stage, hand) = handed_on(&tables, Stage::Icmp, &packet);
        assert_eq!(stage, Stage::Unsnat);
        assert_eq!(hand.facts.kind.0, Kind::Error);
        assert_eq!(hand.quote.ports.0, (NAT_PORTS.0, 8080));
        assert_eq!(hand.quote.source.to_ip(), if v6 { HOST_V6 } else { HOST_V4 });
        let beside = error(v6, &sent.udp((NAT_PORTS.1 + 1, 8080), 50));
        assert_eq!(run(&tables, &beside).1, Some(Reason::Icmp));
    }
}

#[test]
fn a_first_fragment_goes_on_in_the_stage_of_its_mode_and_later_ones_follow() {
    const PODS: u16 = 700;
    let mut tables = tables();
    let id = serve(&mut tables, PODS, Mode::Geneve);
    for v6 in [false, true] {
        let (vip, client) = if v6 { (VIP_V6, CLIENT_V6) } else { (VIP_V4, CLIENT_V4) };
        let pieces = fragments(&to_vip(v6), (CLIENT_PORT, PODS), v6);
        let hash = hash(client, vip, (CLIENT_PORT, PODS), 17);
        for (index, piece) in pieces.iter().enumerate() {
            let (stage, hand) = handed_on(&tables, Stage::Fragment, piece);
            let kind = if index == 0 { Kind::FirstFragment } else { Kind::LaterFragment };
            assert_eq!((stage, hand.facts.kind.0), (Stage::Pods, kind));
            assert_eq!((hand.backend.id, hand.backend.hash), (id, hash));
            assert_ne!(hand.backend.stats, 0);
        }
    }
}

#[test]
fn fragments_of_an_answer_to_snat_go_on_there() {
    let tables = tables();
    for v6 in [false, true] {
        let header = to_host(v6);
        let pieces = fragments(&header, (8080, NAT_PORTS.1), v6);
        let (stage, hand) = handed_on(&tables, Stage::Fragment, &pieces[0]);
        assert_eq!((stage, hand.facts.kind.0), (Stage::Unsnat, Kind::FirstFragment));
        assert_eq!(hand.facts.ports.0, (8080, NAT_PORTS.1));

        assert_eq!(run(&tables, &pieces[1]).1, Some(Reason::Fragment), "nothing is recorded yet");
        let (source, destination) = (hand.facts.source, hand.facts.destination);
        let key = fragment_key(source, destination, 17, hand.facts.identification.0);
        let end = (destination, NAT_PORTS.1);
        tables.answer_fragments.borrow_mut().insert(key, Answer::new(end, end, 1));
        let (stage, hand) = handed_on(&tables, Stage::Fragment, &pieces[1]);
        assert_eq!((stage, hand.facts.kind.0), (Stage::Unsnat, Kind::LaterFragment));
    }
}

#[test]
fn fragments_of_tunnel_packets_are_the_kernels() {
    let tables = tables();
    for v6 in [false, true] {
        for piece in fragments(&to_host(v6), (50_000, GENEVE), v6) {
            assert_eq!(run(&tables, &piece).1, Some(Reason::Fragment));
        }
    }
}

#[test]
fn a_later_fragment_follows_for_thirty_seconds() {
    for (age, reason) in [
        (0, None),
        (FRAGMENT_LIFETIME, None),
        (FRAGMENT_LIFETIME + 1, Some(Reason::FragmentUnknown)),
    ] {
        let tables = tables();
        let pieces = fragments(&to_vip(false), (CLIENT_PORT, port::L2), false);
        assert_eq!(run(&tables, &pieces[0]).1, None);
        tables.now.set(tables.now.get() + age);
        assert_eq!(run(&tables, &pieces[1]).1, reason, "{age}");
        // A clock of another CPU may be behind.
        tables.now.set(0);
        assert_eq!(run(&tables, &pieces[1]).1, None);
    }
}

#[test]
fn a_later_fragment_does_not_follow_to_another_backend_or_to_one_that_serves_no_more() {
    let pieces = fragments(&to_vip(true), (CLIENT_PORT, port::L2), true);
    let mut tables = tables();
    assert_eq!(run(&tables, &pieces[0]).1, None);
    let id = *tables.backend_stats.borrow().keys().next().unwrap() as usize;
    let before = tables.backends[id];

    tables.backends[id] = before.with_serving(false);
    assert_eq!(run(&tables, &pieces[1]).1, Some(Reason::FragmentUnknown));
    let address = Address::v4([10, 6, 0, 1]);
    let hop = Hop::new(next_hop(port::L2), device::UNTAGGED);
    let other = Backend::new(address, 8080, 6, Mode::L2, before.generation() + 1);
    tables.backends[id] = other.with_path(hop, 0, Address::v4([0; 4]), 0);
    assert_eq!(run(&tables, &pieces[1]).1, Some(Reason::FragmentUnknown));
    tables.backends.truncate(id);
    assert_eq!(run(&tables, &pieces[1]).1, Some(Reason::FragmentUnknown));
}

/// The kernel gets all of a packet or nothing.
#[test]
fn what_the_kernel_may_have_of_a_frontends_address_it_gets_in_pieces_too() {
    for pass in [false, true] {
        let mut tables = tables();
        tables.settings = tables.settings.with_pass_unknown(pass);
        let pieces = fragments(&ip(CLIENT_V4, OWNED_V4), (CLIENT_PORT, 79), false);
        assert_eq!(run(&tables, &pieces[0]).1, Some(Reason::Fragment));
        assert_eq!(run(&tables, &pieces[1]).1, Some(Reason::Fragment));
        // This address is not the host's own.
        let pieces = fragments(&to_vip(false), (CLIENT_PORT, 79), false);
        let first = if pass { Reason::UnknownPort } else { Reason::UnknownPortUnreachable };
        assert_eq!(run(&tables, &pieces[0]).1, Some(first));
        assert_eq!(run(&tables, &pieces[1]).1, Some(Reason::FragmentUnknown));
    }
}

#[test]
fn without_an_address_of_its_own_the_host_speaks_for_the_frontend() {
    let mut tables = tables();
    for (own_v4, own_v6, v6, source) in [
        ([0; 4], HOST_V6.into(), false, VIP_V4),
        ([192, 0, 2, 99], Address::v6([0; 16]), false, Ipv4Addr::new(192, 0, 2, 99).into()),
        ([192, 0, 2, 99], Address::v6([0; 16]), true, VIP_V6),
        ([0; 4], HOST_V6.into(), true, HOST_V6),
    ] {
        tables.settings = tables.settings.with_own(own_v4, own_v6);
        let packet = to_vip(v6).ttl(0).tcp((CLIENT_PORT, port::L2), ACK, 3);
        let (verdict, reason, output) = run(&tables, &packet);
        assert_eq!((verdict, reason), (Verdict::Transmit, Some(Reason::TimeExceeded)));
        assert_eq!(address(&output[14..], v6), source);
        assert_eq!(check_frame(&output), Ok(()));
    }
}

#[test]
fn answers_of_all_kinds_share_one_limit() {
    let tables = tables();
    let reject = (CLIENT_PORT, port::REJECT);
    let packets = [
        to_vip(false).tcp(reject, SYN, 0),
        to_vip(true).udp(reject, 9),
        to_vip(false).ttl(0).udp((CLIENT_PORT, port::L2), 9),
        to_vip(true).tcp((CLIENT_PORT, 79), SYN, 0),
        to_vip(false).tcp((CLIENT_PORT, port::L2), ACK, 1461),
    ];
    tables.icmp_tokens.set(packets.len() as u32);
    for packet in &packets {
        assert_eq!(run(&tables, packet).0, Verdict::Transmit);
    }
    for packet in &packets {
        assert_eq!(run(&tables, packet).0, Verdict::Drop);
    }
    let settings = Settings::new(FLOW_KEY, 0x5eed, 256, 0);
    let silent = MemoryTables { settings, ..tables };
    silent.icmp_tokens.set(9);
    assert_eq!(run(&silent, &packets[0]).1, Some(Reason::RefusedSilently));
}

/// What is never answered uses up nothing of the limit.
#[test]
fn what_is_not_answered_does_not_count_against_the_limit() {
    let tables = tables();
    tables.icmp_tokens.set(1);
    let reset = to_vip(false).tcp((CLIENT_PORT, port::REJECT), 0x04, 0);
    assert_eq!(run(&tables, &reset).1, Some(Reason::RefusedSilently));
    let nobody = ip(IpAddr::from([224, 0, 0, 1]), VIP_V4).udp((CLIENT_PORT, port::REJECT), 0);
    assert_eq!(run(&tables, &nobody).1, Some(Reason::RefusedSilently));
    let long = ip(VIP_V4, CLIENT_V4).tcp((port::TUNNEL_V4, CLIENT_PORT), ACK, 1430);
    assert_eq!(run(&tables, &error(false, &long)).1, Some(Reason::TooBigSilent));
    assert_eq!(tables.icmp_tokens.get(), 1);
}

#[test]
fn an_error_about_a_flow_is_not_recorded() {
    let tables = tables();
    let before = tables.flows.borrow().len();
    let quote = ip(VIP_V4, CLIENT_V4).tcp((port::MOVED, CLIENT_PORT), ACK, 0);
    let (verdict, reason, output) = run(&tables, &error(false, &quote[..28]));
    assert_eq!((verdict, reason), (Verdict::Transmit, Some(Reason::IcmpForwarded)));
    assert_eq!(output[..6], MACS[0]);
    assert_eq!(tables.flows.borrow().len(), before);
    let packet = to_vip(false).tcp((CLIENT_PORT, port::MOVED), ACK, 0);
    run(&tables, &packet);
    assert_eq!(tables.flows.borrow().len(), before + 1);
}

#[test]
fn every_fragment_of_a_packet_is_counted_for_its_frontend() {
    let tables = tables();
    let pieces = fragments(&to_vip(true), (CLIENT_PORT, port::TUNNEL_V4), true);
    let bytes: usize = pieces.iter().map(Vec::len).sum();
    for piece in &pieces {
        assert_eq!(run(&tables, piece).1, None);
    }
    for counters in [&tables.frontend_stats, &tables.backend_stats] {
        let counters = counters.borrow();
        let counted: Vec<_> = counters.values().collect();
        assert_eq!(counted.len(), 1);
        assert_eq!((counted[0].packets, counted[0].bytes), (pieces.len() as u64, bytes as u64));
    }
    let stranger = to_vip(true).id(9).fragments(17, &filler(128), 64).swap_remove(1);
    assert_eq!(run(&tables, &stranger).1, Some(Reason::FragmentUnknown));
}

#[test]
fn a_flow_is_counted_as_new_by_its_first_packet_alone_in_every_mode() {
    for (name, to) in [("l2", port::L2), ("snat", port::SNAT)] {
        let tables = tables();
        let ports = (CLIENT_PORT, to);
        let packet = |flags| to_vip(false).tcp(ports, flags, 0);
        for (packet, new) in [
            (packet(SYN), 1),
            (packet(ACK), 1),
            // Sent again: nobody can tell.
            (packet(SYN), 2),
            (to_vip(false).udp(ports, 9), 2),
        ] {
            assert_eq!(run(&tables, &packet).1, None, "{name}");
            for stats in [&tables.frontend_stats, &tables.backend_stats] {
                let flows: u64 = stats.borrow().values().map(|traffic| traffic.flows).sum();
                assert_eq!(flows, new, "{name}");
            }
        }
    }
}
