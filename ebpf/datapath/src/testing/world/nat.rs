//! Services in mode `snat`: a backend of each family behind every port.

use core::net::IpAddr;

use xdp_lb_abi::{Address, Backend, Forward, FrontendKey, Hop, Mode, Phase, Reverse, Seen, Table};

use super::*;
use crate::{Tables, testing::MemoryTables};

const NO_TABLE: Table = Table::new(0, 0, 0, 0);
const GENERATION: u32 = 3;

/// Adds the services, and the flows that are recorded from the start.
pub(super) fn add(tables: &mut MemoryTables) {
    tables.nat_room.set(NAT_ROOM);
    for (port, device, mtu) in [
        (port::SNAT, device::UNTAGGED, 0),
        (port::SNAT_OTHER, device::OTHER, 0),
        (port::SNAT_VLAN, device::VLAN, 0),
        (port::SNAT_NARROW, device::UNTAGGED, 1400),
        (port::SNAT_FULL, device::UNTAGGED, 0),
        (port::SNAT_NO_HOP, 0, 0),
        (port::SNAT_GONE, device::GONE, 0),
        (port::SNAT_MOVED, device::UNTAGGED, 0),
    ] {
        serve(tables, port, device, mtu);
    }
    for index in 0..8 {
        serve(tables, port::SNAT_MANY + index, device::UNTAGGED, 0);
    }
    for v6 in [false, true] {
        let hop = Hop::new(next_hop(port::SNAT_FAMILY), device::UNTAGGED);
        let other = backend(!v6, port::SNAT_FAMILY).with_path(hop, 0, host(!v6).into(), 0);
        publish(tables, v6, port::SNAT_FAMILY, other);
        let nowhere = if v6 { Address::v6([0; 16]) } else { Address::v4([0; 4]) };
        let hop = Hop::new(next_hop(port::SNAT_NO_SOURCE), device::UNTAGGED);
        let sourceless = backend(v6, port::SNAT_NO_SOURCE).with_path(hop, 0, nowhere, 0);
        publish(tables, v6, port::SNAT_NO_SOURCE, sourceless);
        record(tables, v6);
    }
}

/// The address that backends see.
fn host(v6: bool) -> IpAddr {
    if v6 { HOST_V6 } else { HOST_V4 }
}

fn backend(v6: bool, port: u16) -> Backend {
    let (address, server_port) = server(v6, port);
    Backend::new(address.into(), server_port, 6, Mode::Snat, GENERATION)
}

fn serve(tables: &mut MemoryTables, port: u16, device: u16, mtu: u16) {
    for v6 in [false, true] {
        let hop = if device == 0 { Hop::UNKNOWN } else { Hop::new(next_hop(port), device) };
        publish(tables, v6, port, backend(v6, port).with_path(hop, mtu, host(v6).into(), 0));
    }
}

fn publish(tables: &mut MemoryTables, v6: bool, port: u16, backend: Backend) {
    let id = tables.add_backend(backend);
    let table = tables.add_table(&[0], &[id]);
    let service = tables.add_service(table, NO_TABLE, Phase::Rest);
    let vip = if v6 { VIP_V6 } else { VIP_V4 };
    for protocol in [6, 17, 132] {
        tables.add_frontend(FrontendKey::new(vip.into(), port, protocol), service);
    }
}

/// Flows with backends that the service has no more: one that still serves, one whose id has another
/// owner now, one that serves no more; and one that is closed.
fn record(tables: &mut MemoryTables, v6: bool) {
    let hop = Hop::new(next_hop(port::SNAT_MOVED_A), device::UNTAGGED);
    let serving = backend(v6, port::SNAT_MOVED_A).with_path(hop, 0, host(v6).into(), 0);
    let serving_id = tables.add_backend(serving);
    let gone_id = tables.add_backend(serving.with_serving(false));
    let (client, vip) = if v6 { (CLIENT_V6, VIP_V6) } else { (CLIENT_V4, VIP_V4) };
    for (index, (client_port, id, generation, state)) in [
        (RECORDED, serving_id, GENERATION, 0),
        (RECORDED_LONG_AGO, serving_id, GENERATION - 1, 0),
        (RECORDED_NOT_SERVING, gone_id, GENERATION, 0),
        (RECORDED_CLOSED, serving_id, GENERATION, Seen::DATA | Seen::FIN),
    ]
    .into_iter()
    .enumerate()
    {
        let (target, target_port) = server(v6, port::SNAT_MOVED_A);
        let source = (host(v6).into(), NAT_RECORDED + index as u16);
        let seen = tables.now.get();
        let target = (target.into(), target_port);
        let mut forward = Forward::new((id, generation), source, target, seen);
        let client = (client.into(), client_port);
        let frontend = (vip.into(), port::SNAT_MOVED);
        let back = Hop::new(ROUTER_MAC, device::UNTAGGED);
        let mut reverse = Reverse::new(client, frontend, back, seen);
        (forward.state, reverse.state) = (state, state);
        tables.claim_nat_forward(&reverse.forward_key(6, v6), &forward);
        tables.claim_nat_reverse(&forward.reverse_key(6, v6), &reverse);
    }
}
