//! Pods: services in modes `geneve` and `local`, and what is recorded for them.

use core::net::IpAddr;

use xdp_lb_abi::{
    Address, Answer, Backend, FlowKey, FrontendKey, Hop, Mode, Phase, Settings, Table,
};

use super::*;
use crate::{deliver, testing::MemoryTables};

/// A pod on another node.
pub const POD_V4: IpAddr = v4(10, 244, 1, 5);
/// A pod on another node.
pub const POD_V6: IpAddr = v6(0x51, 0x5);
/// A pod on this host.
pub const LOCAL_POD_V4: IpAddr = v4(10, 244, 0, 7);
/// A pod on this host.
pub const LOCAL_POD_V6: IpAddr = v6(0x50, 0x7);
/// The port of all pods.
pub const POD_PORT: u16 = 8080;

/// A client's port with which all ports towards the local pods are taken that a flow to
/// [`pod::LOCAL`] might get.
pub const EXHAUSTED: u16 = 50_100;

/// Services of pods, by the port of their frontends.
pub mod pod {
    /// Geneve in IPv4 by [`super::device::UNTAGGED`]
    pub const GENEVE_V4: u16 = 400;
    /// Geneve in IPv6 by [`super::device::UNTAGGED`]
    pub const GENEVE_V6: u16 = 401;
    /// Geneve in IPv4 by [`super::device::OTHER`]
    pub const GENEVE_V4_OTHER: u16 = 402;
    /// Geneve in IPv6 by [`super::device::VLAN`]
    pub const GENEVE_V6_VLAN: u16 = 403;
    /// Geneve in IPv4 by [`super::device::QINQ`]
    pub const GENEVE_V4_QINQ: u16 = 404;
    /// Geneve in IPv4, with a path MTU of 1400
    pub const GENEVE_V4_NARROW: u16 = 405;
    /// Geneve in IPv6, with a path MTU of 1400
    pub const GENEVE_V6_NARROW: u16 = 406;
    /// Geneve, next hop unknown
    pub const GENEVE_NO_HOP: u16 = 407;
    /// Geneve by [`super::device::GONE`]
    pub const GENEVE_GONE: u16 = 408;
    /// Geneve by a device that does not exist
    pub const GENEVE_BAD_DEVICE: u16 = 409;
    /// The pod on this host
    pub const LOCAL: u16 = 420;
    /// The same pod by another frontend
    pub const LOCAL_AGAIN: u16 = 421;
    /// The same pod by a frontend with the pod's own port
    pub const LOCAL_SAME: u16 = super::POD_PORT;
    /// A pod on this host, of the other family than the frontend
    pub const FAMILY: u16 = 422;
}

/// The pod of a family that is on another node.
pub fn remote_pod(v6: bool) -> IpAddr {
    if v6 { POD_V6 } else { POD_V4 }
}

/// The pod of a family that is on this host.
pub fn local_pod(v6: bool) -> IpAddr {
    if v6 { LOCAL_POD_V6 } else { LOCAL_POD_V4 }
}

/// The port under which a local pod sees a client whose own is taken, of all that are tried.
pub fn translated_port(client: (IpAddr, u16), frontend: (IpAddr, u16), number: u8, n: u32) -> u16 {
    deliver::candidate(hash(client.0, frontend.0, (client.1, frontend.1), number), n)
}

/// A pod of a family on this host that serves nothing.
pub fn neighbour_pod(v6: bool) -> IpAddr {
    if v6 { super::v6(0x50, 0x8) } else { v4(10, 244, 0, 8) }
}

pub(super) fn fill_pods(tables: &mut MemoryTables) {
    tables.settings = Settings::with_terminate(tables.settings, true);
    tables.add_pods(v4(10, 244, 0, 0), 24);
    tables.add_pods(v6(0x50, 0), 64);
    for (port, end, device, mtu) in [
        (pod::GENEVE_V4, TUNNEL_END_V4, device::UNTAGGED, 0),
        (pod::GENEVE_V6, TUNNEL_END_V6, device::UNTAGGED, 0),
        (pod::GENEVE_V4_OTHER, TUNNEL_END_V4, device::OTHER, 0),
        (pod::GENEVE_V6_VLAN, TUNNEL_END_V6, device::VLAN, 0),
        (pod::GENEVE_V4_QINQ, TUNNEL_END_V4, device::QINQ, 0),
        (pod::GENEVE_V4_NARROW, TUNNEL_END_V4, device::UNTAGGED, 1400),
        (pod::GENEVE_V6_NARROW, TUNNEL_END_V6, device::UNTAGGED, 1400),
        (pod::GENEVE_NO_HOP, TUNNEL_END_V4, 0, 0),
        (pod::GENEVE_GONE, TUNNEL_END_V4, device::GONE, 0),
        (pod::GENEVE_BAD_DEVICE, TUNNEL_END_V4, 200, 0),
    ] {
        let source = if end.is_ipv6() { TUNNEL_SOURCE_V6 } else { TUNNEL_SOURCE_V4 };
        let hop = if device == 0 { Hop::UNKNOWN } else { Hop::new(next_hop(port), device) };
        serve(tables, port, |v6| {
            let backend = Backend::new(remote_pod(v6).into(), POD_PORT, 6, Mode::Geneve, 1);
            // The source's bits are those of other modes.
            backend.with_tunnel(end.into()).with_path(hop, mtu, source.into(), 8)
        });
    }
    for port in [pod::LOCAL, pod::LOCAL_AGAIN, pod::LOCAL_SAME] {
        serve(tables, port, |v6| local(local_pod(v6)));
    }
    serve(tables, pod::FAMILY, |v6| local(local_pod(!v6)));
    exhaust(tables);
}

fn local(pod: IpAddr) -> Backend {
    Backend::new(pod.into(), POD_PORT, 6, Mode::Local, 1)
}

/// A service with one pod of each family.
fn serve(tables: &mut MemoryTables, port: u16, backend: impl Fn(bool) -> Backend) {
    for vip in [VIP_V4, VIP_V6] {
        let id = tables.add_backend(backend(vip.is_ipv6()));
        let table = tables.add_table(&[0], &[id]);
        let none = Table::new(0, 0, 0, 0);
        let service = tables.add_service(table, none, Phase::Rest);
        for protocol in [6, 17, 132] {
            tables.add_frontend(FrontendKey::new(vip.into(), port, protocol), service);
        }
    }
}

/// Records flows of other frontends under all ports that [`EXHAUSTED`] might get.
fn exhaust(tables: &MemoryTables) {
    for (client, vip) in [(CLIENT_V4, VIP_V4), (CLIENT_V6, VIP_V6)] {
        let pod: Address = local_pod(vip.is_ipv6()).into();
        let tried = (0..deliver::TRIES)
            .map(|n| translated_port((client, EXHAUSTED), (vip, pod::LOCAL), 6, n));
        for port in tried.chain([EXHAUSTED]) {
            let key = FlowKey::new(client.into(), pod, (port, POD_PORT), 6);
            // Seen at the end of time: no clock is past that.
            let answer = Answer::new((vip.into(), 9), (client.into(), port), u64::MAX);
            tables.answers.borrow_mut().insert(key, answer);
        }
    }
}
