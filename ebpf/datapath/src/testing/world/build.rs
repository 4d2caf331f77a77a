//! Fills the tables.

use core::net::IpAddr;

use xdp_lb_abi::{
    Address, AddressFlags, Backend, Device, Flow, FlowKey, FrontendKey, Hop, Mode, Phase, Service,
    Settings, Table,
};

use super::*;
use crate::testing::MemoryTables;

/// The tables.
pub fn world() -> MemoryTables {
    let (IpAddr::V4(own_v4), own_v6) = (HOST_V4, HOST_V6.into()) else { unreachable!() };
    let settings = Settings::new(FLOW_KEY, 0x5eed, 256, ICMP_RATE)
        .with_own(own_v4.octets(), own_v6)
        .with_nat_ports(NAT_PORTS.0, NAT_PORTS.1);
    let mut tables = MemoryTables::new(settings);
    for (address, flags) in [
        (VIP_V4, AddressFlags::FRONTEND),
        (VIP_V6, AddressFlags::FRONTEND),
        (HOST_V4, AddressFlags::LOCAL),
        (HOST_V6, AddressFlags::LOCAL),
        (OWNED_V4, AddressFlags::LOCAL | AddressFlags::FRONTEND),
        (OWNED_V6, AddressFlags::LOCAL | AddressFlags::FRONTEND),
    ] {
        tables.add_address(address, flags);
    }
    tables.now.set(RECORDED_AT + 1);
    tables.add_peer(v4(10, 9, 0, 0), 16);
    tables.add_peer(v6(0x9, 0), 48);
    add_devices(&mut tables);
    add_direct(&mut tables);
    add_tunnels(&mut tables);
    add_handovers(&mut tables);
    add_policies(&mut tables);
    add_broken(&mut tables);
    fill_pods(&mut tables);
    nat::add(&mut tables);
    tables
}

fn add_devices(tables: &mut MemoryTables) {
    let ingress = |mtu| Device::new(INGRESS, OUR_MAC, mtu);
    let egress = Device::new(EGRESS, OTHER_MAC, 1500);
    for (index, device) in [
        (device::UNTAGGED, ingress(1500)),
        (device::OTHER, egress),
        (device::VLAN, ingress(1500).with_tag((0x8100, 10))),
        (device::QINQ, ingress(1500).with_tag((0x88a8, 100)).with_tag((0x8100, 200))),
        (device::JUMBO, ingress(9000)),
        (device::TINY, ingress(60)),
        (device::LOOPBACK, ingress(65_600)),
        (device::OTHER_VLAN, egress.with_tag((0x8100, 20))),
        (device::GONE, egress),
    ] {
        assert_eq!(tables.add_device(device), index);
    }
    tables.absent.push(device::GONE);
}

/// A backend in mode l2.
fn direct() -> Backend {
    Backend::new(v4(10, 6, 0, 1).into(), 8080, 6, Mode::L2, 1)
}

fn tunnel(end: IpAddr) -> Backend {
    Backend::new(v4(10, 6, 0, 1).into(), 8080, 6, Mode::Ipip, 1).with_tunnel(end.into())
}

const NO_SOURCE: Address = Address::v4([0; 4]);
const NO_TABLE: Table = Table::new(0, 0, 0, 0);

/// Gives a service its frontends.
fn publish(tables: &mut MemoryTables, port: u16, service: u32) {
    for address in [VIP_V4, VIP_V6] {
        for protocol in [6, 17, 132] {
            tables.add_frontend(FrontendKey::new(address.into(), port, protocol), service);
        }
    }
}

/// A service at rest.
fn serve(tables: &mut MemoryTables, port: u16, current: Table) {
    let service = tables.add_service(current, NO_TABLE, Phase::Rest);
    publish(tables, port, service);
}

/// A service at rest with one backend.
fn serve_one(tables: &mut MemoryTables, port: u16, backend: Backend) {
    let id = tables.add_backend(backend);
    let table = tables.add_table(&[0], &[id]);
    serve(tables, port, table);
}

fn add_direct(tables: &mut MemoryTables) {
    for (port, device, mtu) in [
        (port::L2, device::UNTAGGED, 0),
        (port::L2_OTHER, device::OTHER, 0),
        (port::L2_VLAN, device::VLAN, 0),
        (port::L2_QINQ, device::QINQ, 0),
        (port::L2_OTHER_VLAN, device::OTHER_VLAN, 0),
        (port::L2_JUMBO, device::JUMBO, 0),
        (port::L2_TINY, device::TINY, 0),
        (port::L2_GONE, device::GONE, 0),
        (port::L2_NARROW, device::UNTAGGED, 1270),
    ] {
        let hop = Hop::new(next_hop(port), device);
        serve_one(tables, port, direct().with_path(hop, mtu, NO_SOURCE, 0));
    }
    let ids = MACS.map(|mac| {
        let hop = Hop::new(mac, device::UNTAGGED);
        tables.add_backend(direct().with_path(hop, 0, NO_SOURCE, 0))
    });
    let table = tables.add_table(&SPREAD_SLOTS, &ids);
    serve(tables, port::L2_SPREAD, table);
}

fn add_tunnels(tables: &mut MemoryTables) {
    for (port, end, device, mtu, source_bits) in [
        (port::TUNNEL_V4, TUNNEL_END_V4, device::UNTAGGED, 0, 0),
        (port::TUNNEL_V6, TUNNEL_END_V6, device::UNTAGGED, 0, 0),
        (port::TUNNEL_V4_OTHER, TUNNEL_END_V4, device::OTHER, 0, 0),
        (port::TUNNEL_V6_VLAN, TUNNEL_END_V6, device::VLAN, 0, 0),
        (port::TUNNEL_V4_QINQ, TUNNEL_END_V4, device::QINQ, 0, 0),
        (port::TUNNEL_V4_VARIED, TUNNEL_END_V4, device::UNTAGGED, 0, 8),
        (port::TUNNEL_V6_VARIED, TUNNEL_END_V6, device::UNTAGGED, 0, 32),
        (port::TUNNEL_V4_NARROW, TUNNEL_END_V4, device::UNTAGGED, 1400, 0),
        (port::TUNNEL_V6_NARROW, TUNNEL_END_V6, device::UNTAGGED, 1400, 0),
        (port::TUNNEL_V4_JUMBO, TUNNEL_END_V4, device::JUMBO, 0, 0),
        (port::TUNNEL_V4_LOOPBACK, TUNNEL_END_V4, device::LOOPBACK, 0, 0),
        (port::TUNNEL_V6_LOOPBACK, TUNNEL_END_V6, device::LOOPBACK, 0, 0),
    ] {
        let source = if end.is_ipv6() { TUNNEL_SOURCE_V6 } else { TUNNEL_SOURCE_V4 };
        let hop = Hop::new(next_hop(port), device);
        serve_one(tables, port, tunnel(end).with_path(hop, mtu, source.into(), source_bits));
    }
}

fn add_handovers(tables: &mut MemoryTables) {
    const NOBODY: u32 = 60_000;
    const GENERATION: u32 = 7;
    let [a, b, c] = MACS.map(|mac| {
        let backend = Backend::new(v4(10, 6, 0, 1).into(), 8080, 6, Mode::L2, GENERATION);
        let hop = Hop::new(mac, device::UNTAGGED);
        tables.add_backend(backend.with_path(hop, 0, NO_SOURCE, 0))
    });
    tables.backends[c as usize] = tables.backends[c as usize].with_serving(false);
    for (port, phase, current, previous, slot) in [
        (port::AGREE, Phase::Handover, a, a, 0),
        (port::AGREE_LOOK_UP, Phase::Handover, a, a, Table::LOOK_UP),
        (port::MOVED, Phase::Handover, b, a, 0),
        (port::GONE, Phase::Handover, b, a, Table::GONE),
        (port::NOT_SERVING, Phase::Handover, b, c, 0),
        (port::EXCEPTIONS, Phase::Exceptions, b, a, 0),
        (port::PREVIOUS_SLOT, Phase::Handover, b, a, 1),
        (port::PREVIOUS_NOBODY, Phase::Handover, b, NOBODY, 0),
        (port::CURRENT_NOBODY, Phase::Handover, NOBODY, a, Table::GONE),
    ] {
        let current = tables.add_table(&[0], &[current]);
        let previous = tables.add_table(&[slot], &[previous]);
        let service = tables.add_service(current, previous, phase);
        publish(tables, port, service);
        record(
            tables,
            port,
            &[
                (RECORDED, a, GENERATION),
                (RECORDED_LONG_AGO, a, GENERATION - 1),
                (RECORDED_NOT_SERVING, c, GENERATION),
                (RECORDED_NOWHERE, NOBODY, GENERATION),
            ],
        );
    }
    // A is the current backend here, so a record of B tells whether flows are looked up.
    for port in [port::AGREE, port::AGREE_LOOK_UP] {
        record(tables, port, &[(RECORDED, b, GENERATION)]);
    }
    add_draining(tables, a, b, GENERATION);
    let current = tables.add_table(&[0], &[b]);
    let outside = Table::new(1 << 20, 1, 1 << 20, 1);
    let service = tables.add_service(current, outside, Phase::Handover);
    publish(tables, port::PREVIOUS_OUTSIDE, service);
}

fn add_draining(tables: &mut MemoryTables, a: u32, b: u32, generation: u32) {
    // Ids above the backends' own, so that the search for A halves more than once.
    let others = [60_001, 60_002, 60_003, 60_004, 60_005];
    for (port, phase, slots) in [
        (port::DRAINED, Phase::Handover, &[0][..]),
        (port::DRAINED_EXCEPTIONS, Phase::Exceptions, &[0]),
        (port::ALL_DRAINED, Phase::Handover, &[]),
    ] {
        let list = [&[b, a][..], &others].concat();
        let current = tables.add_table(slots, &list);
        let current = Table::new(current.slots(), current.size(), current.list(), 1);
        let previous = tables.add_table(&[0], &[a]);
        let service = tables.add_service(current, previous, phase);
        let draining = (list.len() - 1) as u16;
        let record = &mut tables.services[service as usize];
        *record = record.with_draining(draining);
        publish(tables, port, service);
        self::record(tables, port, &[(RECORDED, a, generation), (RECORDED_AGAIN, a, generation)]);
    }
    let current = tables.add_table(&[0], &[b]);
    let previous = tables.add_table(&[0], &[a]);
    let service = tables.add_service(current, previous, Phase::Exceptions);
    let later = &mut tables.services[service as usize];
    *later = later.with_started(RECORDED_AT + 1);
    publish(tables, port::LATER, service);
    record(tables, port::LATER, &[(RECORDED, a, generation)]);
}

/// When the flows of [`record`] were last seen.
const RECORDED_AT: u64 = 1;

/// Services that not everybody may use, that stick to clients, or that say that nobody serves.
fn add_policies(tables: &mut MemoryTables) {
    const SOME: u32 = 1;
    const ONE: u32 = 2;
    tables.add_source(SOME, ALLOWED_V4.0, ALLOWED_V4.1);
    tables.add_source(SOME, ALLOWED_V6.0, ALLOWED_V6.1);
    tables.add_source(ONE, CLIENT_V4, 32);
    let ids = MACS.map(|mac| {
        let hop = Hop::new(mac, device::UNTAGGED);
        tables.add_backend(direct().with_path(hop, 0, NO_SOURCE, 0))
    });
    let spread = tables.add_table(&SPREAD_SLOTS, &ids);
    let a = tables.add_table(&[0], &ids);
    let b = tables.add_table(&[1], &ids);
    let rest = |table| Service::new(table, NO_TABLE, Phase::Rest, 0);
    let moved = |table| Service::new(table, a, Phase::Handover, 0);
    let switched = |phase| Service::new(spread, spread, phase, 0).with_switched(true);
    for (port, service) in [
        (port::REJECT, rest(NO_TABLE).with_reject(true)),
        (port::REJECT_NEW, moved(NO_TABLE).with_reject(true)),
        (port::ALLOWED, rest(a).with_sources(SOME)),
        (port::ALLOWED_ONE, rest(a).with_sources(ONE)),
        (port::AFFINITY, rest(spread).with_affinity(AFFINITY_SECONDS)),
        (port::AFFINITY_TOO, rest(spread).with_affinity(AFFINITY_SECONDS)),
        (port::AFFINITY_MOVED, moved(b).with_affinity(AFFINITY_SECONDS)),
        (port::AFFINITY_ON, switched(Phase::Handover).with_affinity(AFFINITY_SECONDS)),
        (port::AFFINITY_OFF, switched(Phase::Handover)),
        (port::AFFINITY_ON_EXCEPTIONS, switched(Phase::Exceptions).with_affinity(AFFINITY_SECONDS)),
    ] {
        let index = tables.add_record(service);
        publish(tables, port, index);
    }
    let generation = direct().generation();
    for (client, vip) in [(KNOWN_V4, VIP_V4), (KNOWN_V6, VIP_V6)] {
        for protocol in [6, 17, 132] {
            let key = FlowKey::new(client.into(), vip.into(), (0, port::AFFINITY_OFF), protocol);
            let record = Flow::new(ids[2], generation, RECORDED_AT);
            tables.clients.borrow_mut().insert(key, record);
        }
    }
}

/// Records TCP flows of the IPv4 client.
fn record(tables: &MemoryTables, port: u16, flows: &[(u16, u32, u32)]) {
    for (source_port, backend, generation) in flows {
        let ports = (*source_port, port);
        let key = FlowKey::new(CLIENT_V4.into(), VIP_V4.into(), ports, 6);
        tables.flows.borrow_mut().insert(key, Flow::new(*backend, *generation, RECORDED_AT));
    }
}

fn add_broken(tables: &mut MemoryTables) {
    const OUTSIDE: u32 = 1 << 20;
    let by = |device, backend: Backend| {
        backend.with_path(Hop::new(next_hop(0), device), 0, NO_SOURCE, 0)
    };
    serve(tables, port::EMPTY, NO_TABLE);
    serve_one(tables, port::L2_NO_HOP, direct());
    serve_one(tables, port::TUNNEL_V4_NO_HOP, tunnel(TUNNEL_END_V4));
    let only_source = tunnel(TUNNEL_END_V6).with_path(Hop::UNKNOWN, 0, TUNNEL_SOURCE_V6.into(), 0);
    serve_one(tables, port::TUNNEL_V6_NO_HOP, only_source);
    serve_one(tables, port::BAD_DEVICE, by(200, direct()));
    serve_one(tables, port::BAD_DEVICE_INDEX, by(u16::MAX, direct()));
    serve_one(tables, port::BAD_MODE, by(device::UNTAGGED, Backend::default()));

    let id = tables.add_backend(by(device::UNTAGGED, direct()));
    let sound = tables.add_table(&[0], &[id]);
    let bad_slot = tables.add_table(&[1], &[id]);
    serve(tables, port::BAD_SLOT, bad_slot);
    serve(tables, port::BAD_SLOTS, Table::new(OUTSIDE, 1, sound.list(), 1));
    serve(tables, port::BAD_LIST, Table::new(sound.slots(), 1, OUTSIDE, 1));
    let nobody = tables.add_table(&[0], &[60_000]);
    serve(tables, port::BAD_BACKEND, nobody);
    publish(tables, port::BAD_SERVICE, 60_000);
}
