//! The recorded flows, each known by its number, and the order in which they send.

use std::net::{IpAddr, Ipv4Addr};

use xdp_lb_abi::{Answer, FlowKey, Forward, Hop, Reverse, Seen};
use xdp_lb_datapath::testing::world::{
    HOST_V4, LOCAL_POD_V4, POD_PORT, ROUTER_MAC, VIP_V4, device, pod, port,
};

use crate::random::Random;

/// The port of all clients.
pub(super) const CLIENT_PORT: u16 = 40_000;
/// First and last port that mode `snat` sends from: the configuration's default.
pub(super) const NAT_PORTS: (u16, u16) = (61_000, 65_535);
/// The port of all backends of mode `snat`.
pub(super) const SERVER_PORT: u16 = 8080;
const TCP: u8 = 6;
/// One in so many records is old.
const OLD: u32 = 8;

/// Which of the recorded flows send.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Which {
    /// To a pod on this host; a packet was seen within the last second.
    Fresh,
    /// To a pod on this host; the last packet was seen long ago, so that the next one dates the
    /// record anew.
    Old,
    /// Of mode `snat`
    Nat,
}

/// Whose turn it is: each flow sends once, in random order, then all again.
pub(super) struct Order {
    flows: Vec<u32>,
    next: usize,
}

impl Order {
    /// Of so many recorded flows.
    pub(super) fn new(which: Which, recorded: u32) -> Self {
        let mut flows: Vec<u32> = (0..recorded)
            .filter(|flow| match which {
                Which::Fresh => !is_old(*flow),
                Which::Old => is_old(*flow),
                Which::Nat => true,
            })
            .collect();
        Random::new(1).shuffle(&mut flows);
        Self { flows, next: 0 }
    }

    /// The next flow's number; 0 where none is recorded.
    pub(super) fn next(&mut self) -> u32 {
        let flow = self.flows.get(self.next).copied().unwrap_or_default();
        self.next = if self.next + 1 < self.flows.len() { self.next + 1 } else { 0 };
        flow
    }
}

const fn is_old(flow: u32) -> bool {
    flow % OLD == OLD - 1
}

/// The client of a flow.
pub(super) fn client(flow: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0a80_0000 + flow).into()
}

/// How the answers of a flow to the local pod leave: key and record.
pub(super) fn answer(flow: u32) -> (FlowKey, Answer) {
    let client = (client(flow).into(), CLIENT_PORT);
    let key = FlowKey::new(client.0, LOCAL_POD_V4.into(), (CLIENT_PORT, POD_PORT), TCP);
    // No clock is past the end of time: a record of then is never dated anew.
    let seen = if is_old(flow) { 0 } else { u64::MAX };
    (key, Answer::new((VIP_V4.into(), pod::LOCAL), client, seen))
}

/// Backend and port of ours of a flow of mode `snat`: as many flows to a backend as there are ports.
pub(super) fn translated(flow: u32) -> (IpAddr, u16) {
    let ports = u32::from(NAT_PORTS.1 - NAT_PORTS.0) + 1;
    let backend = Ipv4Addr::from_bits(0x0ac0_0000 + flow / ports);
    (backend.into(), NAT_PORTS.0 + (flow % ports) as u16)
}

/// Both records of a flow of mode `snat`; the backend is known by id and generation.
pub(super) fn nat(flow: u32, backend: (u32, u32)) -> ((FlowKey, Forward), (FlowKey, Reverse)) {
    let client = (client(flow).into(), CLIENT_PORT);
    let frontend = (VIP_V4.into(), port::SNAT);
    let (server, ours) = translated(flow);
    let target = (server.into(), SERVER_PORT);
    let back = Hop::new(ROUTER_MAC, device::UNTAGGED);
    let mut forward = Forward::new(backend, (HOST_V4.into(), ours), target, u64::MAX);
    let mut reverse = Reverse::new(client, frontend, back, u64::MAX);
    (forward.state, reverse.state) = (Seen::DATA, Seen::DATA);
    let keys = (reverse.forward_key(TCP, false), forward.reverse_key(TCP, false));
    ((keys.0, forward), (keys.1, reverse))
}
