//! Mode `snat`: many flows, time, and what races leave behind.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeSet, net::IpAddr};

use proptest::{prelude::*, sample::select, strategy::ValueTree};
use xdp_lb_abi::{FlowKey, Forward, Hop, Idle, Reason, Seen};
use xdp_lb_datapath::{
    Verdict,
    testing::{
        MemoryFrame, MemoryTables,
        check::{check_frame, ip_packet},
        packet::{ACK, FIN, Ip, RST, SYN, ip, link},
        world,
        world::*,
    },
};

const SECOND: u64 = 1_000_000_000;
const TCP: u8 = 6;
const UDP: u8 = 17;
const SERVER_PORT: u16 = 8080;

/// The world with more ports and room, at a time when flows can be old.
fn wide(ports: (u16, u16)) -> MemoryTables {
    let mut tables = world();
    tables.settings = tables.settings.with_nat_ports(ports.0, ports.1);
    tables.nat_room.set(usize::MAX);
    tables.nat_forward.borrow_mut().clear();
    tables.nat_reverse.borrow_mut().clear();
    tables.now.set(1 << 50);
    tables
}

/// Sends a packet through; the verdict, what was counted, and the frame afterwards.
fn run(tables: &MemoryTables, packet: Vec<u8>) -> (Verdict, Option<Reason>, Vec<u8>) {
    tables.reason_stats.borrow_mut().clear();
    let mut frame = MemoryFrame::new(&link(ROUTER_MAC, OUR_MAC).holds(packet), INGRESS);
    let verdict = tables.run(&mut frame);
    let reason = tables.reason_stats.borrow().keys().next().copied();
    (verdict, reason, frame.bytes().to_vec())
}

/// Sends a packet that must be sent on; our port.
fn sent_from(tables: &MemoryTables, packet: Vec<u8>) -> u16 {
    let (verdict, reason, frame) = run(tables, packet);
    assert_eq!((verdict, reason), (Verdict::Transmit, None));
    assert_eq!(check_frame(&frame), Ok(()));
    let packet = ip_packet(&frame).unwrap();
    let at = if packet[0] >> 4 == 6 { 40 } else { usize::from(packet[0] & 15) * 4 };
    u16::from_be_bytes([packet[at], packet[at + 1]])
}

fn tcp(client_port: u16, flags: u8) -> Vec<u8> {
    ip(CLIENT_V4, VIP_V4).tcp((client_port, port::SNAT), flags, 0)
}

fn udp(client_port: u16) -> Vec<u8> {
    ip(CLIENT_V4, VIP_V4).udp((client_port, port::SNAT), 5)
}

/// From the backend of [`port::SNAT`].
fn answer() -> Ip {
    ip(server(false, port::SNAT).0, HOST_V4)
}

fn key(client_port: u16, protocol: u8) -> FlowKey {
    FlowKey::new(CLIENT_V4.into(), VIP_V4.into(), (client_port, port::SNAT), protocol)
}

fn forward(tables: &MemoryTables, client_port: u16, protocol: u8) -> Option<Forward> {
    tables.nat_forward.borrow().get(&key(client_port, protocol)).copied()
}

fn wait(tables: &MemoryTables, time: u64) {
    tables.now.set(tables.now.get() + time);
}

/// Every record of one table leads to one of the other and back.
fn assert_whole(tables: &MemoryTables) {
    let (forwards, reverses) = (tables.nat_forward.borrow(), tables.nat_reverse.borrow());
    for (key, forward) in forwards.iter() {
        let other = &reverses[&forward.reverse_key(key.protocol(), key.is_v6())];
        assert_eq!(other.forward_key(key.protocol(), key.is_v6()), *key);
    }
    assert_eq!(forwards.len(), reverses.len());
}

/// How many flows towards one backend get a port out of `count` before the first is refused.
fn first_refusal(count: u16) -> usize {
    let tables = wide((10_000, 10_000 + count - 1));
    let mut tuples = BTreeSet::new();
    for client in 0_u32.. {
        let [_, high, middle, low] = client.to_be_bytes();
        let client = IpAddr::from([10, high + 1, middle, low]);
        let packet = ip(client, VIP_V4).tcp((40_000, port::SNAT), SYN, 0);
        let (verdict, reason, frame) = run(&tables, packet);
        if verdict == Verdict::Drop {
            assert_eq!(reason, Some(Reason::NatExhausted));
            assert_whole(&tables);
            return tuples.len();
        }
        // Source address and port.
        let tuple = (frame[26..30].to_vec(), frame[34..36].to_vec());
        assert!(tuples.insert(tuple), "a port was given out twice");
    }
    unreachable!()
}

/// As the documentation of the ports' module says.
#[test]
fn a_range_is_nearly_full_before_a_flow_is_refused() {
    assert_eq!([1, 7, 128].map(first_refusal), [1, 7, 128]);
    let middle = first_refusal(4500);
    assert!(middle >= 4500 * 95 / 100, "{middle} of 4500");
    let large = first_refusal(50_000);
    assert!(large >= 50_000 * 93 / 100, "{large} of 50000");
}

/// At 90 % in use, which is where an operator would be warned, no new flow is refused.
#[test]
fn a_loaded_range_serves_new_flows() {
    let tables = wide((10_000, 14_499));
    let mut refused = 0;
    for round in 0..20_000_u32 {
        let [_, _, high, low] = round.to_be_bytes();
        let packet = ip([10, 7, high, low].into(), VIP_V4).udp((40_000, port::SNAT), 1);
        refused += u32::from(run(&tables, packet).0 == Verdict::Drop);
        if round >= 4050 {
            // The flow that was opened 4050 rounds before is swept.
            let [_, _, high, low] = (round - 4050).to_be_bytes();
            let client: IpAddr = [10, 7, high, low].into();
            let key = FlowKey::new(client.into(), VIP_V4.into(), (40_000, port::SNAT), UDP);
            let old = tables.nat_forward.borrow_mut().remove(&key).unwrap();
            tables.nat_reverse.borrow_mut().remove(&old.reverse_key(UDP, false));
        }
    }
    assert_eq!(refused, 0);
    assert_whole(&tables);
}

/// A client that tries again later finds one of the few ports that are left.
#[test]
fn who_is_refused_finds_other_ports_later() {
    let tables = wide((10_000, 14_499));
    let mut clients = (0_u32..).map(|n| {
        let [_, high, middle, low] = n.to_be_bytes();
        ip([10, high + 1, middle, low].into(), VIP_V4).tcp((40_000, port::SNAT), SYN, 0)
    });
    let refused = clients.find(|packet| run(&tables, packet.clone()).0 == Verdict::Drop).unwrap();
    assert_eq!(run(&tables, refused.clone()).1, Some(Reason::NatExhausted));
    let tries = (1..100).find(|_| {
        wait(&tables, 2 * SECOND);
        run(&tables, refused.clone()).0 == Verdict::Transmit
    });
    assert!(tries.is_some());
}

#[test]
fn a_silent_flow_gives_its_port_to_another() {
    let tables = wide((61_000, 61_000));
    let ours = sent_from(&tables, tcp(40_000, SYN));
    assert_eq!(
        run(&tables, answer().tcp((SERVER_PORT, ours), SYN | ACK, 0)).1,
        Some(Reason::NatAnswer)
    );
    sent_from(&tables, tcp(40_000, ACK));
    // Established: two hours and four minutes (RFC 5382, REQ-5).
    wait(&tables, Idle::ESTABLISHED);
    assert_eq!(run(&tables, tcp(40_001, SYN)).1, Some(Reason::NatExhausted));
    wait(&tables, SECOND);
    assert_eq!(sent_from(&tables, tcp(40_001, SYN)), ours);
    assert_whole(&tables);
    assert_eq!(run(&tables, tcp(40_000, ACK)).1, Some(Reason::NatUnknown));
    // Half open: four minutes.
    wait(&tables, Idle::TRANSITORY);
    assert_eq!(run(&tables, tcp(40_002, SYN)).1, Some(Reason::NatExhausted));
    wait(&tables, SECOND);
    assert_eq!(sent_from(&tables, tcp(40_002, SYN)), ours);
    // The answer is the new flow's.
    let (_, _, frame) = run(&tables, answer().tcp((SERVER_PORT, ours), SYN | ACK, 0));
    let expected = ip(VIP_V4, CLIENT_V4).ttl(60).tcp((port::SNAT, 40_002), SYN | ACK, 0);
    assert_eq!(ip_packet(&frame).unwrap(), expected);
}

#[test]
fn packets_of_either_direction_keep_a_flow() {
    let tables = wide((61_000, 61_000));
    let ours = sent_from(&tables, udp(40_000));
    for _ in 0..3 {
        wait(&tables, Idle::DATAGRAM);
        assert_eq!(run(&tables, answer().udp((SERVER_PORT, ours), 1)).1, Some(Reason::NatAnswer));
        assert_eq!(run(&tables, udp(40_001)).1, Some(Reason::NatExhausted));
        wait(&tables, Idle::DATAGRAM);
        assert_eq!(sent_from(&tables, udp(40_000)), ours);
        assert_eq!(run(&tables, udp(40_001)).1, Some(Reason::NatExhausted));
    }
}

#[test]
fn a_record_is_written_when_something_changes_and_else_once_a_second() {
    let tables = wide(NAT_PORTS);
    let ours = sent_from(&tables, tcp(40_000, SYN));
    let start = tables.now.get();
    let seen = || forward(&tables, 40_000, TCP).map(|flow| (flow.seen - start, flow.state));
    assert_eq!(seen(), Some((0, 0)));
    wait(&tables, 5);
    sent_from(&tables, tcp(40_000, ACK));
    assert_eq!(seen(), Some((5, Seen::DATA)));
    wait(&tables, Seen::REFRESH - 1);
    sent_from(&tables, tcp(40_000, ACK));
    assert_eq!(seen(), Some((5, Seen::DATA)));
    wait(&tables, 1);
    sent_from(&tables, tcp(40_000, ACK));
    assert_eq!(seen(), Some((5 + Seen::REFRESH, Seen::DATA)));
    let reverse =
        FlowKey::new(server(false, port::SNAT).0.into(), HOST_V4.into(), (SERVER_PORT, ours), TCP);
    run(&tables, answer().tcp((SERVER_PORT, ours), FIN | ACK, 0));
    let state = tables.nat_reverse.borrow()[&reverse].state;
    assert_eq!(state, Seen::DATA | Seen::FIN);
}

/// A forged reset does not shorten a connection whose client goes on (RFC 7857, 2.2).
#[test]
fn who_goes_on_after_a_reset_has_not_sent_it() {
    let tables = wide(NAT_PORTS);
    let state = || forward(&tables, 40_000, TCP).unwrap().state;
    sent_from(&tables, tcp(40_000, SYN));
    sent_from(&tables, tcp(40_000, RST));
    assert_eq!(state(), Seen::DATA | Seen::RESET);
    sent_from(&tables, tcp(40_000, ACK));
    assert_eq!(state(), Seen::DATA);
}

/// SCTP's chunks (RFC 9260, 3.2): what the first one says of the association.
#[test]
fn the_first_chunk_ends_an_association() {
    let tables = wide(NAT_PORTS);
    let send = |tag: u32, chunk: u8| {
        let mut packet = [40_000_u16.to_be_bytes(), port::SNAT.to_be_bytes()].concat();
        packet.extend(tag.to_be_bytes());
        packet.extend([0; 4]);
        packet.extend([chunk, 0, 0, 4]);
        let sum = xdp_lb_datapath::testing::check::crc32c(&packet);
        packet[8..12].copy_from_slice(&sum.to_le_bytes());
        sent_from(&tables, ip(CLIENT_V4, VIP_V4).holds(132, packet));
        forward(&tables, 40_000, 132).unwrap().state
    };
    assert_eq!(send(0, 1), 0);
    assert_eq!(send(7, 0), Seen::DATA);
    assert_eq!(send(7, 6), Seen::DATA | Seen::RESET);
    assert_eq!(send(7, 0), Seen::DATA);
    for shutdown in [7, 8, 14] {
        assert_eq!(send(7, shutdown), Seen::DATA | Seen::FIN);
    }
}

/// What only a race can leave: two flows of one port. The second one owns it.
#[test]
fn a_flow_that_lost_its_port_begins_again() {
    let tables = wide((61_000, 61_001));
    let ours = sent_from(&tables, udp(40_000));
    let lost = forward(&tables, 40_000, UDP).unwrap();
    sent_from(&tables, tcp(40_000, SYN));
    let lost_tcp = forward(&tables, 40_000, TCP).unwrap();
    tables.nat_reverse.borrow_mut().clear();
    for client_port in 41_000..41_002 {
        sent_from(&tables, udp(client_port));
    }
    wait(&tables, Seen::REFRESH);
    // No port is free for it, and the one that it had stays its new owner's.
    assert_eq!(run(&tables, udp(40_000)).1, Some(Reason::NatExhausted));
    assert_eq!(forward(&tables, 40_000, UDP), None);
    assert_eq!(tables.nat_reverse.borrow().len(), 2);
    assert!(tables.nat_reverse.borrow().contains_key(&lost.reverse_key(UDP, false)));
    assert_eq!(ours, lost.source(false).1);
    // A connection in mid-stream cannot begin again.
    assert_eq!(run(&tables, tcp(40_000, ACK)).1, Some(Reason::NatUnknown));
    assert_eq!(sent_from(&tables, tcp(40_000, SYN)), lost_tcp.source(false).1);
    assert_whole(&tables);
}

/// An answer whose flow has no other half is the host's, and does not keep the half alive.
#[test]
fn an_answer_to_half_a_flow_is_not_translated() {
    let tables = wide(NAT_PORTS);
    let ours = sent_from(&tables, udp(40_000));
    let lost = tables.nat_forward.borrow_mut().remove(&key(40_000, UDP)).unwrap();
    let reverse = lost.reverse_key(UDP, false);
    let before = tables.nat_reverse.borrow()[&reverse];
    wait(&tables, Seen::REFRESH);
    let packet = answer().udp((SERVER_PORT, ours), 1);
    assert_eq!(run(&tables, packet).1, Some(Reason::NoFrontend));
    assert_eq!(tables.nat_reverse.borrow()[&reverse], before);
}

#[test]
fn a_route_back_goes_before_the_way_that_the_client_came_by() {
    let mut tables = wide(NAT_PORTS);
    let ours = sent_from(&tables, udp(40_000));
    tables.routes.insert(CLIENT_V4.into(), Hop::new(next_hop(7), device::OTHER));
    let (verdict, _, frame) = run(&tables, answer().udp((SERVER_PORT, ours), 1));
    assert_eq!(verdict, Verdict::Redirect(device::OTHER.into()));
    assert_eq!((&frame[..6], &frame[6..12]), (&next_hop(7)[..], &OTHER_MAC[..]));
}

/// The path's own address may change; a flow that is open keeps what its backend knows it by.
#[test]
fn an_open_flow_keeps_its_address() {
    let mut tables = wide(NAT_PORTS);
    sent_from(&tables, udp(40_000));
    for backend in &mut tables.backends {
        *backend = backend.with_path(backend.hop(), 0, PEER_V4.into(), 0);
    }
    let source = |packet| {
        let (_, _, frame) = run(&tables, packet);
        IpAddr::from([frame[26], frame[27], frame[28], frame[29]])
    };
    assert_eq!(source(udp(40_000)), HOST_V4);
    assert_eq!(source(udp(40_001)), PEER_V4);
}

#[test]
fn ten_thousand_flows_share_no_tuple() {
    let tables = wide((1024, u16::MAX));
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let flow = (
        any::<[u8; 3]>(),
        1..u16::MAX,
        any::<bool>(),
        select(vec![port::SNAT, port::SNAT_NARROW, port::SNAT_FULL]),
    );
    let mut flows = BTreeSet::new();
    for _ in 0..10_000 {
        let flow = flow.new_tree(&mut runner).unwrap().current();
        let ([a, b, c], client_port, is_tcp, port) = flow;
        let header = ip([11, a, b, c].into(), VIP_V4);
        let ports = (client_port, port);
        sent_from(&tables, if is_tcp { header.tcp(ports, SYN, 0) } else { header.udp(ports, 3) });
        flows.insert(flow);
    }
    // One key of answers for each flow: address and port of the backend, ours, and protocol.
    assert_eq!(tables.nat_reverse.borrow().len(), flows.len());
    assert_whole(&tables);
}

/// What a packet of a client and its answer are made of.
#[derive(Clone, Debug)]
struct Shape {
    v6: bool,
    class: u8,
    ttl: u8,
    options: usize,
    extensions: usize,
    tags: usize,
    data: usize,
    kind: u8,
}

fn shape() -> impl Strategy<Value = Shape> {
    let header = (any::<bool>(), any::<u8>(), 2..=255_u8, 0..=10_usize, 0..3_usize);
    (header, 0..3_usize, 0..1300_usize, 0..4_u8).prop_map(
        |((v6, class, ttl, options, extensions), tags, data, kind)| {
            // UDP without a checksum is IPv4's only.
            let kind = if v6 && kind == 3 { 1 } else { kind };
            Shape { v6, class, ttl, options, extensions, tags, data, kind }
        },
    )
}

impl Shape {
    fn packet(
        &self,
        source: IpAddr,
        destination: IpAddr,
        less: u8,
        ports: (u16, u16),
        opens: bool,
    ) -> Vec<u8> {
        let mut header = ip(source, destination).traffic_class(self.class).ttl(self.ttl - less);
        header = header.options(&vec![1; self.options * 4]);
        for _ in 0..self.extensions {
            header = header.extension(60, &[0, 1, 4, 0, 0, 0, 0]);
        }
        match self.kind {
            0 => header.tcp(ports, if opens { SYN } else { ACK }, self.data),
            1 => header.udp(ports, self.data),
            2 => header.sctp(ports, u32::from(!opens), self.data),
            _ => header.udp_without_checksum(ports, self.data),
        }
    }

    fn frame(&self, packet: &[u8]) -> Vec<u8> {
        let mut outside = link(ROUTER_MAC, OUR_MAC);
        for tag in 0..self.tags {
            outside = outside.vlan(tag as u16 + 7);
        }
        outside.holds(packet)
    }
}

proptest! {
    #[test]
    fn a_packet_and_its_answer_come_back_as_the_client_expects(
        shape in shape(),
        client_port in 1..=u16::MAX,
    ) {
        let mut tables = wide((1024, u16::MAX));
        let (client, vip, host) =
            if shape.v6 { (CLIENT_V6, VIP_V6, HOST_V6) } else { (CLIENT_V4, VIP_V4, HOST_V4) };
        tables.routes.insert(client.into(), Hop::new(ROUTER_MAC, device::UNTAGGED));
        let (backend, backend_port) = server(shape.v6, port::SNAT);
        let run = |packet: Vec<u8>| {
            let mut frame = MemoryFrame::new(&shape.frame(&packet), INGRESS);
            (tables.run(&mut frame), frame.bytes().to_vec())
        };
        let packet = shape.packet(client, vip, 0, (client_port, port::SNAT), true);
        let (verdict, frame) = run(packet);
        prop_assert_eq!(verdict, Verdict::Transmit);
        prop_assert_eq!(check_frame(&frame), Ok(()));
        let ours = tables.nat_forward.borrow().values().next().unwrap().source(shape.v6).1;
        let expected = shape.packet(host, backend, 1, (ours, backend_port), true);
        prop_assert_eq!(frame, link(OUR_MAC, next_hop(port::SNAT)).holds(expected));
        let packet = shape.packet(backend, host, 0, (backend_port, ours), false);
        let (verdict, frame) = run(packet);
        prop_assert_eq!(verdict, Verdict::Transmit);
        let expected = shape.packet(vip, client, 1, (port::SNAT, client_port), false);
        prop_assert_eq!(frame, link(OUR_MAC, ROUTER_MAC).holds(expected));
    }
}
