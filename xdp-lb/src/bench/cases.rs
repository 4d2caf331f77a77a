//! The kinds of packets, and what is to become of them.

use std::net::{IpAddr, SocketAddr};

use xdp_lb_abi::{Reason, bench::Template};
use xdp_lb_api::benchmark::BenchmarkScale;

use super::world::{HOST, OUR_MAC, PEER, POD, POD_PORT, ROUTER_MAC, STRANGER, VIP, port};
use crate::lab::forge::{ACK, Datagram, SYN, ethernet, segment, tunnel};

/// What the programs return (`enum xdp_action`, `TC_ACT_UNSPEC`).
pub(super) const PASS: u32 = 2;
pub(super) const TRANSMIT: u32 = 3;
pub(super) const ONWARD: u32 = u32::MAX;

/// Length of frames where nothing else is said: room for the headers of all but tunnels.
const LENGTH: usize = 128;
/// The same for tunnel packets.
const TUNNELLED: usize = 256;
const CLIENT_PORT: u16 = 40_000;
/// The first client's IPv4 address: those of all flows begin with the same byte.
const CLIENT_4: u32 = 0x6400_0000;
/// So many flows that none comes twice in a run.
const ENDLESS: u32 = 1 << 24;

/// Numbers of flows, by name.
pub(super) const FLOWS: [(&str, u32); 5] =
    [("1", 1), ("1k", 1 << 10), ("64k", 1 << 16), ("1m", 1 << 20), ("new", ENDLESS)];

/// A frame, and how its flow varies.
#[derive(Clone)]
pub(super) struct Frame {
    pub(super) bytes: Vec<u8>,
    flow_at: usize,
    pub(super) flows: u32,
}

impl Frame {
    pub(super) fn template(&self) -> Template {
        let mut bytes = [0; Template::BYTES];
        let count = self.bytes.len().min(Template::BYTES);
        bytes[..count].copy_from_slice(&self.bytes[..count]);
        let base = self.bytes.get(self.flow_at..).and_then(|rest| rest.first_chunk::<4>());
        Template {
            bytes,
            length: self.bytes.len() as u32,
            flow_at: self.flow_at as u32,
            flow_base: base.map_or(0, |base| u32::from_be_bytes(*base)),
            flow_mask: self.flows - 1,
            // The packet path does not look at it.
            checksum_at: 0,
            checksum_sum: 0,
            counter: 0,
            idle: 0,
        }
    }
}

/// Which program the frames meet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Program {
    /// On the way in
    In,
    /// On the way out
    Out,
    /// One of the benchmark's own
    Floor(&'static str),
}

/// A kind of packet.
#[derive(Clone)]
pub(super) struct Case {
    pub(super) name: String,
    pub(super) program: Program,
    pub(super) frame: Frame,
    /// Meets the program on the way in before, once for each flow
    pub(super) first: Option<Frame>,
    pub(super) returns: u32,
    /// What each packet is counted as; nothing where it is simply forwarded
    pub(super) reason: Option<Reason>,
    /// How many services there are, in all
    pub(super) services: u32,
    /// The frame is an answer to what the data path makes of `first`.
    pub(super) answers: bool,
}

/// All that is measured.
pub(super) fn cases(scale: BenchmarkScale) -> Vec<Case> {
    let full = scale == BenchmarkScale::Full;
    let mut list = floors();
    for v6 in [false, true] {
        for udp in [false, true] {
            list.extend(resting(v6, udp));
            list.push(stranger(v6, udp, "1", 1));
        }
        list.push(terminated(v6, "1", 1));
        list.push(answered(v6, "1", 1));
        list.push(moved(v6, "ipip", port::IPIP, "1", 1));
    }
    list.push(outgoing("other", HOST[0]));
    list.push(outgoing("pod", POD[0]));
    list.push(nat_answer());
    list.push(sticky());
    let few = FLOWS.iter().filter(|(_, flows)| *flows > 1 && (full || *flows != 1 << 20));
    for &(name, flows) in few {
        for (mode, port) in [("l2", port::L2), ("ipip", port::IPIP), ("geneve", port::GENEVE)] {
            list.push(forwarded(false, false, mode, port, (name, flows), ACK));
            if flows == ENDLESS {
                list.push(forwarded(false, false, mode, port, (name, flows), SYN));
            }
        }
        if flows == ENDLESS {
            list.push(forwarded(true, false, "ipip", port::IPIP, (name, flows), SYN));
            list.push(stranger(false, false, name, flows));
            list.push(opening_moved());
        } else {
            list.push(delivered(false, false, name, flows));
            list.push(terminated(false, name, flows));
            list.push(answered(false, name, flows));
            list.push(moved(false, "ipip", port::IPIP, name, flows));
            if flows <= 1 << 16 {
                list.push(translated(false, false, name, flows));
            }
        }
    }
    for (mode, port) in [("l2", port::L2), ("geneve", port::GENEVE), ("snat", port::SNAT)] {
        list.push(moved(false, mode, port, "1", 1));
    }
    for length in [64, 1424] {
        for (mode, port) in [("l2", port::L2), ("ipip", port::IPIP), ("geneve", port::GENEVE)] {
            let mut case = forwarded(false, false, mode, port, ("1", 1), ACK);
            case.frame = from_client(false, false, VIP[0], port, 1, ACK, length);
            case.name += &format!("-bytes-{length}");
            list.push(case);
        }
    }
    let around: &[(&str, u32)] =
        if full { &[("1k", 1000), ("10k", 10_000)] } else { &[("1k", 1000)] };
    for &(name, services) in around {
        let mut more = vec![stranger(false, false, "1", 1)];
        for (mode, port) in [("l2", port::L2), ("ipip", port::IPIP)] {
            more.push(forwarded(false, false, mode, port, ("1", 1), ACK));
        }
        more.push(forwarded(true, false, "ipip", port::IPIP, ("1", 1), ACK));
        list.extend(more.into_iter().map(|case| Case {
            name: format!("{}-services-{name}", case.name),
            services,
            ..case
        }));
    }
    list
}

/// What the packet path is compared with.
fn floors() -> Vec<Case> {
    use xdp_lb_abi::bench::names;
    let floor = |name: &str, program, length, (flows, count): (&str, u32)| {
        let frame = from_client(false, false, STRANGER[0], 80, count, ACK, length);
        let program = Program::Floor(program);
        Case { program, ..case(format!("{name}-{flows}"), frame, TRANSMIT, None) }
    };
    vec![
        floor("floor-tx", names::TX, LENGTH, ("1", 1)),
        floor("floor-tx-bytes-64", names::TX, 64, ("1", 1)),
        floor("floor-tx-bytes-256", names::TX, TUNNELLED, ("1", 1)),
        floor("floor-swap", names::SWAP, LENGTH, ("1", 1)),
        floor("floor-encap", names::ENCAP, LENGTH, ("1", 1)),
        floor("floor-hash", names::HASH, LENGTH, ("1", 1)),
        floor("floor-hash", names::HASH, LENGTH, ("16k", 1 << 14)),
        floor("floor-lru", names::LRU, LENGTH, ("1", 1)),
        floor("floor-lru", names::LRU, LENGTH, ("16k", 1 << 14)),
    ]
}

/// The floor that is the unit of the figures.
pub(super) const HASH_LOOKUP: &str = "floor-hash-1";

fn case(name: String, frame: Frame, returns: u32, reason: Option<Reason>) -> Case {
    let (program, services) = (Program::In, 0);
    Case { name, program, frame, first: None, returns, reason, services, answers: false }
}

/// One flow of a family and a protocol in every mode.
fn resting(v6: bool, udp: bool) -> Vec<Case> {
    let modes = [("l2", port::L2), ("ipip", port::IPIP), ("geneve", port::GENEVE)];
    let mut list: Vec<Case> = modes
        .into_iter()
        .map(|(mode, port)| forwarded(v6, udp, mode, port, ("1", 1), ACK))
        .collect();
    list.push(delivered(v6, udp, "1", 1));
    list.push(translated(v6, udp, "1", 1));
    list
}

/// The hash alone decides.
fn forwarded(
    v6: bool,
    udp: bool,
    mode: &str,
    port: u16,
    (flows, count): (&str, u32),
    flags: u8,
) -> Case {
    let state = if flags == SYN { "syn" } else { "rest" };
    let frame = from_client(v6, udp, VIP[usize::from(v6)], port, count, flags, LENGTH);
    case(format!("{}-{mode}-{state}-{flows}", kind(v6, udp)), frame, TRANSMIT, None)
}

/// To the pod on this host, with recorded flows.
fn delivered(v6: bool, udp: bool, flows: &str, count: u32) -> Case {
    let frame =
        |flags| from_client(v6, udp, VIP[usize::from(v6)], port::LOCAL, count, flags, LENGTH);
    let name = format!("{}-local-rest-{flows}", kind(v6, udp));
    Case { first: Some(frame(SYN)), ..case(name, frame(ACK), PASS, Some(Reason::Local)) }
}

/// Mode `snat`, with recorded flows.
fn translated(v6: bool, udp: bool, flows: &str, count: u32) -> Case {
    let frame =
        |flags| from_client(v6, udp, VIP[usize::from(v6)], port::SNAT, count, flags, LENGTH);
    let name = format!("{}-snat-rest-{flows}", kind(v6, udp));
    Case { first: Some(frame(SYN)), ..case(name, frame(ACK), TRANSMIT, None) }
}

/// An answer to mode `snat`.
fn nat_answer() -> Case {
    let first = from_client(false, false, VIP[0], port::SNAT, 1, SYN, LENGTH);
    let (name, reason) = ("ipv4-tcp-snat-answer-1".to_owned(), Some(Reason::NatAnswer));
    Case { first: Some(first.clone()), answers: true, ..case(name, first, TRANSMIT, reason) }
}

/// In a handover between tables that agree on no slot, with recorded flows.
fn moved(v6: bool, mode: &str, port: u16, flows: &str, count: u32) -> Case {
    let port = port + port::MOVED;
    let frame = |flags| from_client(v6, false, VIP[usize::from(v6)], port, count, flags, LENGTH);
    let name = format!("{}-{mode}-handover-{flows}", kind(v6, false));
    Case { first: Some(frame(SYN)), ..case(name, frame(ACK), TRANSMIT, None) }
}

/// A flood of new flows in a handover: each is recorded.
fn opening_moved() -> Case {
    let port = port::IPIP + port::MOVED;
    let frame = from_client(false, false, VIP[0], port, ENDLESS, SYN, LENGTH);
    case("ipv4-tcp-ipip-handover-syn-new".to_owned(), frame, TRANSMIT, None)
}

/// Session affinity, a known client.
fn sticky() -> Case {
    let frame = from_client(false, false, VIP[0], port::AFFINITY, 1, ACK, LENGTH);
    case("ipv4-tcp-l2-affinity-1".to_owned(), frame, TRANSMIT, None)
}

/// Not ours.
fn stranger(v6: bool, udp: bool, flows: &str, count: u32) -> Case {
    let frame = from_client(v6, udp, STRANGER[usize::from(v6)], 80, count, ACK, LENGTH);
    let name = format!("{}-pass-rest-{flows}", kind(v6, udp));
    case(name, frame, PASS, Some(Reason::NoFrontend))
}

/// A tunnel packet for the pod on this host, with recorded flows.
fn terminated(v6: bool, flows: &str, count: u32) -> Case {
    let at = usize::from(v6);
    // That of mode `local`: a client that uses two frontends of a pod from one port is another case.
    let frontend = SocketAddr::new(VIP[at], port::LOCAL);
    let outer = if v6 { 14 + 40 + 8 + 8 + 24 } else { 14 + 20 + 8 + 8 + 12 };
    let frame = |flags| {
        let inner =
            packet((client(v6), CLIENT_PORT), (POD[at], POD_PORT), false, flags, TUNNELLED - outer);
        let packet = tunnel(SocketAddr::new(PEER[at], 50_000), HOST[at], frontend, &inner);
        let flow_at = outer + if v6 { 8 + 12 } else { 12 };
        Frame { bytes: ethernet(OUR_MAC, ROUTER_MAC, &packet), flow_at, flows: count }
    };
    let name = format!("{}-terminate-known-{flows}", kind(v6, false));
    Case { first: Some(frame(SYN)), ..case(name, frame(ACK), PASS, Some(Reason::Unwrapped)) }
}

/// A pod's answers to recorded flows, on their way out.
fn answered(v6: bool, flows: &str, count: u32) -> Case {
    let at = usize::from(v6);
    let first = from_client(v6, false, VIP[at], port::LOCAL, count, SYN, LENGTH);
    let bytes = packet((POD[at], POD_PORT), (client(v6), CLIENT_PORT), false, ACK, LENGTH - 14);
    let flow_at = 14 + if v6 { 24 + 12 } else { 16 };
    let frame = Frame { bytes: ethernet(ROUTER_MAC, OUR_MAC, &bytes), flow_at, flows: count };
    let name = format!("{}-egress-answer-{flows}", kind(v6, false));
    let case = case(name, frame, ONWARD, Some(Reason::Answered));
    Case { program: Program::Out, first: Some(first), ..case }
}

/// What leaves and is no answer: of the host, or of a pod.
fn outgoing(what: &str, source: IpAddr) -> Case {
    let bytes = packet((source, 22), (client(false), CLIENT_PORT), false, ACK, LENGTH - 14);
    let frame = Frame { bytes: ethernet(ROUTER_MAC, OUR_MAC, &bytes), flow_at: 30, flows: 1 };
    Case { program: Program::Out, ..case(format!("ipv4-tcp-egress-{what}-1"), frame, ONWARD, None) }
}

fn kind(v6: bool, udp: bool) -> &'static str {
    match (v6, udp) {
        (false, false) => "ipv4-tcp",
        (false, true) => "ipv4-udp",
        (true, false) => "ipv6-tcp",
        (true, true) => "ipv6-udp",
    }
}

fn client(v6: bool) -> IpAddr {
    if v6 {
        IpAddr::from([0x2001, 0xdb8, 1, 0, 0, 0, 0, 0])
    } else {
        std::net::Ipv4Addr::from_bits(CLIENT_4).into()
    }
}

/// A frame of the given length from a client, whose address tells the flow.
fn from_client(
    v6: bool,
    udp: bool,
    to: IpAddr,
    port: u16,
    flows: u32,
    flags: u8,
    length: usize,
) -> Frame {
    let packet = packet((client(v6), CLIENT_PORT), (to, port), udp, flags, length - 14);
    let flow_at = 14 + if v6 { 8 + 12 } else { 12 };
    Frame { bytes: ethernet(OUR_MAC, ROUTER_MAC, &packet), flow_at, flows }
}

/// An IP packet of the given length.
fn packet(from: (IpAddr, u16), to: (IpAddr, u16), udp: bool, flags: u8, length: usize) -> Vec<u8> {
    let (from, to) = (SocketAddr::from(from), SocketAddr::from(to));
    let header = if from.is_ipv6() { 40 } else { 20 } + if udp { 8 } else { 20 };
    let data = vec![0x2e; length.saturating_sub(header)];
    if udp { Datagram::new(from, to, &data).packet() } else { segment(from, to, 1, flags, &data) }
}

/// The frame with which a backend answers a frame that was forwarded to it: IPv4 TCP.
pub(super) fn answer_to(forwarded: &[u8]) -> Option<Frame> {
    let bytes = |at: usize| forwarded.get(at..)?.first_chunk::<4>().copied();
    let ports = bytes(34)?;
    let end = |address: [u8; 4], port: [u8; 2]| (IpAddr::from(address), u16::from_be_bytes(port));
    let ours = end(bytes(26)?, [ports[0], ports[1]]);
    let server = end(bytes(30)?, [ports[2], ports[3]]);
    let packet = packet(server, ours, false, ACK, LENGTH - 14);
    Some(Frame { bytes: ethernet(OUR_MAC, ROUTER_MAC, &packet), flow_at: 26, flows: 1 })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_a_quick_run_is_a_part_of_a_full_one() {
        let names = |scale| cases(scale).into_iter().map(|case| case.name).collect::<Vec<_>>();
        let (quick, full) = (names(BenchmarkScale::Quick), names(BenchmarkScale::Full));
        let set: BTreeSet<&String> = full.iter().collect();
        assert_eq!(set.len(), full.len());
        assert!(quick.iter().all(|name| set.contains(name)) && quick.len() < full.len());
        assert!(set.contains(&"ipv4-tcp-ipip-rest-1".to_owned()), "{set:?}");
    }

    #[test]
    fn each_frame_is_whole_and_its_flow_is_an_address() {
        for case in cases(BenchmarkScale::Full) {
            for frame in [Some(&case.frame), case.first.as_ref()].into_iter().flatten() {
                let template = frame.template();
                assert!(frame.flow_at + 4 <= frame.bytes.len().min(Template::BYTES));
                assert!(frame.flows.is_power_of_two(), "{}", case.name);
                let base = template.flow_base;
                assert!([CLIENT_4, 0].contains(&base) || case.answers, "{}: {base:x}", case.name);
                let checked = crate::lab::verify::checksums(&frame.bytes);
                assert!(checked.is_ok(), "{}: {checked:?}", case.name);
            }
        }
    }
}
