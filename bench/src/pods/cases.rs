//! The packets, and what is to become of them.

use std::net::IpAddr;

use xdp_lb_abi::{Reason, names};
use xdp_lb_datapath::testing::{
    packet::{ACK, Link, SYN, filler, geneve, ip, link},
    world::*,
};

use super::{
    Error,
    flows::{CLIENT_PORT, SERVER_PORT, Which, client, translated},
};

/// The case that differs from [`WITHOUT_LOOKUP`] in one look-up of an address in a hash map.
pub(super) const WITH_LOOKUP: &str = "not ours: IPv4 TCP, one hash look-up";
/// Traffic for an address that no filter knows.
pub(super) const WITHOUT_LOOKUP: &str = "not ours: IPv4 TCP";
/// An address of the host that is no frontend's, and has the filter's bit.
pub(super) const LOOKED_UP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 201));
const UNKNOWN: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 200));

/// What the programs return (`enum xdp_action`, `TC_ACT_UNSPEC`).
const PASS: u32 = 2;
const TRANSMIT: u32 = 3;
const ONWARD: u32 = u32::MAX;

/// A packet, or one for each flow.
pub(super) enum Packets {
    /// Always the same
    Same(Vec<u8>),
    /// By the flow's number
    Each(Which, fn(u32) -> Vec<u8>),
}

/// Packets, and what is to become of them.
pub(super) struct Case {
    name: &'static str,
    pub(super) program: &'static str,
    pub(super) packets: Packets,
    returns: u32,
    reason: Option<Reason>,
}

impl Case {
    /// The packet of a flow.
    pub(super) fn packet(&self, flow: u32) -> Vec<u8> {
        match &self.packets {
            Packets::Same(packet) => packet.clone(),
            Packets::Each(_, build) => build(flow),
        }
    }

    /// The name, with the number of recorded flows.
    pub(super) fn label(&self, answers: u32, nat_flows: u32) -> String {
        let recorded = match &self.packets {
            Packets::Same(_) => return self.name.to_owned(),
            Packets::Each(Which::Nat, _) => nat_flows,
            Packets::Each(Which::Fresh | Which::Old, _) => answers,
        };
        format!("{}, of {recorded}", self.name)
    }

    /// Whether the program returned what it should.
    pub(super) fn expect(&self, returned: u32) -> Result<(), Error> {
        if returned == self.returns {
            return Ok(());
        }
        let what = format!("the program returned {returned} instead of {}", self.returns);
        Err(Error::Wrong { case: self.name, what })
    }

    /// Whether so many packets were counted for the case's reason, and none for another.
    pub(super) fn check(&self, before: &[u64], after: &[u64], packets: u64) -> Result<(), Error> {
        for (reason, (before, after)) in Reason::ALL.iter().zip(before.iter().zip(after)) {
            let expected = if self.reason == Some(*reason) { packets } else { 0 };
            if after - before != expected {
                let name = reason.as_str();
                let what = format!("{name}: {} instead of {expected}", after - before);
                return Err(Error::Wrong { case: self.name, what });
            }
        }
        Ok(())
    }
}

/// A frame that is not IP: where the program on the way out does nothing.
pub(super) fn not_ip() -> Vec<u8> {
    arriving().carries(0x0806, [0; 46])
}

fn arriving() -> Link {
    link(ROUTER_MAC, OUR_MAC)
}

fn leaving() -> Link {
    link(OUR_MAC, ROUTER_MAC)
}

/// TCP in mid-stream from a client to a frontend.
fn tcp(v6: bool, port: u16) -> Vec<u8> {
    let (client, vip) = if v6 { (CLIENT_V6, VIP_V6) } else { (CLIENT_V4, VIP_V4) };
    arriving().holds(ip(client, vip).tcp((CLIENT_PORT, port), ACK, 10))
}

/// All cases.
pub(super) fn cases() -> Vec<Case> {
    let case = |name, packet, returns, reason| Case {
        name,
        program: names::XDP,
        packets: Packets::Same(packet),
        returns,
        reason,
    };
    let each = |name, (which, build), returns, reason| Case {
        packets: Packets::Each(which, build),
        ..case(name, Vec::new(), returns, reason)
    };
    let out = |case| Case { program: names::EGRESS, ..case };
    let sent = |name, packet| case(name, packet, TRANSMIT, None);
    let not_ours = |name, packet| case(name, packet, PASS, Some(Reason::NoFrontend));
    let to = |address| arriving().holds(ip(CLIENT_V4, address).tcp((CLIENT_PORT, 80), ACK, 10));
    let v6 = ip(CLIENT_V6, CLIENT_V6).tcp((CLIENT_PORT, 80), ACK, 10);
    let recorded = ip(CLIENT_V4, VIP_V4).tcp((RECORDED, port::MOVED), ACK, 10);
    let echo = ip(CLIENT_V4, VIP_V4).icmp(8, 0, [0, 1, 0, 2], filler(56));
    let big = ip(CLIENT_V4, VIP_V4).tcp((CLIENT_PORT, port::TUNNEL_V4_NARROW), ACK, 1400);
    let syn = ip(CLIENT_V4, VIP_V4).tcp((CLIENT_PORT, port::REJECT), SYN, 0);
    let other = leaving().holds(ip(HOST_V4, CLIENT_V4).tcp((22, CLIENT_PORT), ACK, 10));
    let stranger = ip(LOCAL_POD_V4, PEER_V4).tcp((POD_PORT, CLIENT_PORT), ACK, 10);
    let stranger = leaving().holds(stranger);
    vec![
        Case {
            program: names::XDP_PASS,
            ..case("noise: the floor again", to(UNKNOWN), PASS, None)
        },
        not_ours(WITHOUT_LOOKUP, to(UNKNOWN)),
        not_ours(WITH_LOOKUP, to(LOOKED_UP)),
        not_ours("not ours: IPv6 TCP", arriving().holds(v6)),
        sent("l2: IPv4", tcp(false, port::L2)),
        sent("l2: IPv6", tcp(true, port::L2)),
        sent("ipip: IPv4 in IPv4", tcp(false, port::TUNNEL_V4)),
        sent("ipip: IPv6 in IPv6", tcp(true, port::TUNNEL_V6)),
        sent("geneve: IPv4 in IPv4", tcp(false, pod::GENEVE_V4)),
        sent("geneve: IPv6 in IPv6", tcp(true, pod::GENEVE_V6)),
        sent("handover, known flow: l2", arriving().holds(recorded)),
        sent("affinity, known client: l2", tcp(false, port::AFFINITY)),
        each("local, known flow", (Which::Fresh, to_frontend), PASS, Some(Reason::Local)),
        each("terminate, known flow", (Which::Fresh, tunnelled), PASS, Some(Reason::Unwrapped)),
        each("terminate, old record", (Which::Old, tunnelled), PASS, Some(Reason::Unwrapped)),
        each("snat, known flow", (Which::Nat, to_snat), TRANSMIT, None),
        each("snat, answer", (Which::Nat, from_backend), TRANSMIT, Some(Reason::NatAnswer)),
        case("echo", arriving().holds(echo), TRANSMIT, Some(Reason::Echo)),
        case("too big: answered", arriving().holds(big), TRANSMIT, Some(Reason::TooBig)),
        case("no backend: TCP RST", arriving().holds(syn), TRANSMIT, Some(Reason::Reset)),
        out(case("egress: noise, the floor again", not_ip(), ONWARD, None)),
        out(case("egress: other traffic", other, ONWARD, None)),
        out(case("egress: of a pod, no recorded flow", stranger, ONWARD, None)),
        out(each("egress: answer", (Which::Fresh, from_pod), ONWARD, Some(Reason::Answered))),
    ]
}

fn to_frontend(flow: u32) -> Vec<u8> {
    arriving().holds(ip(client(flow), VIP_V4).tcp((CLIENT_PORT, pod::LOCAL), ACK, 10))
}

fn tunnelled(flow: u32) -> Vec<u8> {
    let inner = ip(client(flow), LOCAL_POD_V4).tcp((CLIENT_PORT, POD_PORT), ACK, 10);
    let header = geneve(50_000, (VIP_V4, pod::LOCAL));
    arriving().holds(ip(PEER_V4, HOST_V4).geneve(&header, inner))
}

fn from_pod(flow: u32) -> Vec<u8> {
    leaving().holds(ip(LOCAL_POD_V4, client(flow)).tcp((POD_PORT, CLIENT_PORT), ACK, 10))
}

fn to_snat(flow: u32) -> Vec<u8> {
    arriving().holds(ip(client(flow), VIP_V4).tcp((CLIENT_PORT, port::SNAT), ACK, 10))
}

fn from_backend(flow: u32) -> Vec<u8> {
    let (server, ours) = translated(flow);
    arriving().holds(ip(server, HOST_V4).tcp((SERVER_PORT, ours), ACK, 10))
}
