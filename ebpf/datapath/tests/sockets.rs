//! Calls of sockets: laws by cases, and as properties.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

use std::{collections::BTreeMap, net::IpAddr};

use proptest::{collection::vec, prelude::*};
use xdp_lb_abi::{
    Address, Backend, FrontendKey, Mode, Scope, Service, Settings, SocketReason, SocketSettings,
    Table, probe_mark,
};
use xdp_lb_datapath::{
    Verdict,
    socket::{self, Call, Outcome, errno},
    testing::{
        MemoryFrame, MemoryTables,
        packet::{ip, link},
        world::{FLOW_KEY, INGRESS, OUR_MAC, ROUTER_MAC},
    },
};

const HOST: u64 = 1;
const POD: u64 = 2;
const TCP: u8 = 6;
const UDP: u8 = 17;

fn own(text: &str) -> Address {
    text.parse::<IpAddr>().unwrap().into()
}

/// What a service of the tables is like.
#[derive(Clone, Copy, Default)]
struct Shape {
    scope: Scope,
    affinity: u32,
    drop: bool,
}

/// Tables with the host's settings all on.
fn tables() -> MemoryTables {
    let mut tables = MemoryTables::new(Settings::new(FLOW_KEY, 7, 64, 0));
    tables.socket_settings =
        SocketSettings::new(HOST).with_loopback(true).with_bind_protection(true);
    tables
}

/// A service at an address and port, TCP and UDP, with these backends on port 8080.
fn serve(tables: &mut MemoryTables, at: &str, port: u16, backends: &[&str], shape: Shape) -> u32 {
    let add = |tables: &mut MemoryTables, one: &&str| {
        tables.add_backend(Backend::new(own(one), 8080, TCP, Mode::Local, 3))
    };
    let ids: Vec<u32> = backends.iter().map(|one| add(tables, one)).collect();
    let table = table(tables, &ids);
    let service = Service::at_rest(table, 0).with_affinity(shape.affinity).with_reject(!shape.drop);
    let service = tables.add_record(service);
    for protocol in [TCP, UDP] {
        let key = FrontendKey::new(own(at), port, protocol).with_scope(shape.scope);
        tables.add_frontend(key, service);
    }
    service
}

/// As many slots as backends, one each; none without a backend.
fn table(tables: &mut MemoryTables, ids: &[u32]) -> Table {
    let slots: Vec<u16> = (0..ids.len() as u16).collect();
    tables.add_table(&slots, ids)
}

fn call(cookie: u64, netns: u64, to: &str, port: u16, protocol: u8) -> Call {
    Call { cookie, netns, address: own(to), port, protocol, mark: 0 }
}

fn peer(address: &str, port: u16) -> Outcome {
    Outcome::Peer(own(address), port)
}

#[test]
fn a_call_is_led_to_a_backend_and_its_answers_name_the_frontend() {
    let mut tables = tables();
    serve(&mut tables, "10.96.0.1", 80, &["10.0.0.1"], Shape::default());
    serve(&mut tables, "fd00:96::1", 80, &["fd00::1"], Shape::default());
    for (to, backend) in [
        ("10.96.0.1", "10.0.0.1"),
        ("fd00:96::1", "fd00::1"),
        ("::ffff:10.96.0.1", "::ffff:10.0.0.1"),
    ] {
        for protocol in [TCP, UDP] {
            let connected = socket::connect(&call(5, POD, to, 80, protocol), &tables);
            assert_eq!(connected, peer(backend, 8080), "{to}");
            let back = call(5, POD, backend, 8080, protocol);
            assert_eq!(socket::getpeername(&back, &tables), peer(to, 80));
            assert_eq!(socket::recvmsg(&back, &tables), peer(to, 80));
            let other = call(6, POD, backend, 8080, protocol);
            assert_eq!(socket::recvmsg(&other, &tables), Outcome::Unchanged, "another socket");
            socket::release(&back, &tables);
            assert_eq!(socket::getpeername(&back, &tables), Outcome::Unchanged);
        }
    }
    assert!(tables.sockets.borrow().is_empty());
}

#[test]
fn what_is_no_service_stays_as_it_is_and_is_not_counted() {
    let mut tables = tables();
    serve(&mut tables, "10.96.0.1", 80, &["10.0.0.1"], Shape::default());
    for (to, port, protocol) in [
        ("10.96.0.1", 81, TCP),
        ("10.96.0.2", 80, TCP),
        ("10.96.0.1", 80, 132),
        ("10.96.0.1", 80, 1),
        ("::10.96.0.1", 80, TCP),
        ("127.0.0.1", 80, TCP),
        ("0.0.0.0", 80, TCP),
        ("::1", 80, TCP),
    ] {
        let call = call(1, HOST, to, port, protocol);
        assert_eq!(socket::connect(&call, &tables), Outcome::Unchanged, "{to}:{port}/{protocol}");
        assert_eq!(socket::sendmsg(&call, &tables), Outcome::Unchanged);
        assert_eq!(socket::bind(&call, &tables), Outcome::Unchanged);
    }
    assert!(tables.socket_stats.borrow().is_empty() && tables.sockets.borrow().is_empty());
    tables.socket_settings = SocketSettings::default();
    let served = call(1, HOST, "10.96.0.1", 80, TCP);
    assert_eq!(socket::connect(&served, &tables), Outcome::Unchanged, "nobody wrote settings yet");
}

#[test]
fn a_frontend_for_sockets_comes_before_that_for_packets_and_packets_never_meet_it() {
    let mut tables = tables();
    let inside = Shape { scope: Scope::Sockets, ..Shape::default() };
    serve(&mut tables, "203.0.113.1", 80, &["10.0.0.1"], Shape::default());
    serve(&mut tables, "203.0.113.1", 80, &["10.0.0.2"], inside);
    serve(&mut tables, "10.96.0.1", 80, &["10.0.0.3"], inside);
    let led = |to| socket::connect(&call(1, POD, to, 80, TCP), &tables);
    assert_eq!(led("203.0.113.1"), peer("10.0.0.2", 8080));
    assert_eq!(led("10.96.0.1"), peer("10.0.0.3", 8080));
    let packet = ip("192.0.2.1".parse().unwrap(), "10.96.0.1".parse().unwrap());
    let packet = link(ROUTER_MAC, OUR_MAC).holds(packet.tcp((4000, 80), 2, 0));
    let mut frame = MemoryFrame::new(&packet, INGRESS);
    assert_eq!(tables.run(&mut frame), Verdict::Pass);
    assert_eq!(frame.bytes(), packet);
}

#[test]
fn node_ports_are_on_the_hosts_loopback_alone() {
    let mut tables = tables();
    let inside = Shape { scope: Scope::Sockets, ..Shape::default() };
    serve(&mut tables, "0.0.0.0", 30_001, &["10.0.0.1"], inside);
    serve(&mut tables, "::", 30_001, &["fd00::1"], inside);
    let led = |netns, to| socket::connect(&call(1, netns, to, 30_001, TCP), &tables);
    for to in ["127.0.0.1", "127.9.9.9", "0.0.0.0"] {
        assert_eq!(led(HOST, to), peer("10.0.0.1", 8080), "{to}");
        assert_eq!(led(POD, to), Outcome::Unchanged, "{to}");
    }
    assert_eq!(led(HOST, "::1"), peer("fd00::1", 8080));
    assert_eq!(led(HOST, "::ffff:127.0.0.1"), peer("::ffff:10.0.0.1", 8080));
    let back = call(1, HOST, "10.0.0.1", 8080, TCP);
    assert_eq!(socket::getpeername(&back, &tables), peer("127.0.0.1", 30_001));
    tables.socket_settings = SocketSettings::new(HOST);
    let off = socket::connect(&call(1, HOST, "127.0.0.1", 30_001, TCP), &tables);
    assert_eq!(off, Outcome::Unchanged);
}

#[test]
fn a_bind_to_a_node_port_is_refused_on_the_host_and_nowhere_else() {
    let mut tables = tables();
    let inside = Shape { scope: Scope::Sockets, ..Shape::default() };
    serve(&mut tables, "0.0.0.0", 30_001, &["10.0.0.1"], inside);
    serve(&mut tables, "192.0.2.9", 30_001, &["10.0.0.1"], Shape::default());
    serve(&mut tables, "192.0.2.9", 80, &["10.0.0.1"], Shape::default());
    let bind = |netns, at, port| {
        socket::bind(&call(1, netns, at, port, TCP), &tables) != Outcome::Unchanged
    };
    for at in ["0.0.0.0", "127.0.0.1", "192.0.2.9", "::", "::ffff:192.0.2.9", "::ffff:0.0.0.0"] {
        assert!(bind(HOST, at, 30_001), "{at}");
        assert!(!bind(POD, at, 30_001), "{at}");
        assert!(!bind(HOST, at, 30_002), "{at}");
    }
    assert!(!bind(HOST, "192.0.2.8", 30_001), "an address without node ports");
    assert!(!bind(HOST, "::1", 30_001), "a family without them");
    assert!(!bind(HOST, "192.0.2.9", 80), "no node port");
    let refused = socket::bind(&call(1, HOST, "0.0.0.0", 30_001, UDP), &tables);
    assert_eq!(refused, Outcome::Refused(errno::EADDRINUSE));
}

#[test]
fn without_a_backend_the_call_fails_and_says_how() {
    let mut tables = tables();
    serve(&mut tables, "10.96.0.1", 80, &[], Shape::default());
    serve(&mut tables, "10.96.0.2", 80, &[], Shape { drop: true, ..Shape::default() });
    for protocol in [TCP, UDP] {
        let led = |to| socket::connect(&call(1, POD, to, 80, protocol), &tables);
        assert_eq!(led("10.96.0.1"), Outcome::Refused(errno::ECONNREFUSED));
        assert_eq!(led("10.96.0.2"), Outcome::Refused(errno::ETIMEDOUT));
    }
    tables.socket_settings = SocketSettings::new(HOST).with_refuse_excluded(true);
    let refused = socket::sendmsg(&call(1, POD, "10.96.0.2", 80, UDP), &tables);
    assert_eq!(refused, Outcome::Refused(errno::ECONNREFUSED));
    let counted = BTreeMap::from([(SocketReason::NoBackend, 2), (SocketReason::Excluded, 3)]);
    assert_eq!(*tables.socket_stats.borrow(), counted);
}

#[test]
fn services_whose_backends_have_their_address_are_left_to_packets() {
    let mut tables = tables();
    let id = tables.add_backend(Backend::new(own("10.0.0.1"), 80, TCP, Mode::L2, 1));
    let table = table(&mut tables, &[id]);
    let service = tables.add_record(Service::at_rest(table, 0));
    tables.add_frontend(FrontendKey::new(own("203.0.113.1"), 80, TCP), service);
    let led = socket::connect(&call(1, HOST, "203.0.113.1", 80, TCP), &tables);
    assert_eq!(led, Outcome::Unchanged);
    assert_eq!(tables.socket_stats.borrow().get(&SocketReason::KeepsAddress), Some(&1));
}

#[test]
fn only_the_hosts_own_sockets_are_served_where_that_is_wanted() {
    let mut tables = tables();
    serve(&mut tables, "10.96.0.1", 80, &["10.0.0.1"], Shape::default());
    tables.socket_settings = SocketSettings::new(HOST).with_host_only(true);
    let led = |netns| socket::connect(&call(1, netns, "10.96.0.1", 80, TCP), &tables);
    assert_eq!((led(HOST), led(POD)), (peer("10.0.0.1", 8080), Outcome::Unchanged));
}

#[test]
fn the_daemons_questions_to_a_backend_are_left_alone() {
    let mut tables = tables();
    serve(&mut tables, "10.96.0.1", 80, &["10.0.0.1"], Shape::default());
    let asked = call(1, HOST, "10.96.0.1", 80, TCP);
    for mark in [1, 2, 1000].map(|id| probe_mark(id).unwrap()) {
        assert_eq!(socket::connect(&Call { mark, ..asked }, &tables), Outcome::Unchanged);
    }
    let other = Call { mark: 7, ..asked };
    assert_eq!(socket::connect(&other, &tables), peer("10.0.0.1", 8080), "somebody else's mark");
}

#[test]
fn a_full_table_of_sockets_leads_on_and_is_counted() {
    let mut tables = tables();
    serve(&mut tables, "10.96.0.1", 80, &["10.0.0.1"], Shape::default());
    tables.socket_room.set(0);
    let led = socket::connect(&call(1, HOST, "10.96.0.1", 80, TCP), &tables);
    assert_eq!(led, peer("10.0.0.1", 8080));
    assert_eq!(tables.socket_stats.borrow().get(&SocketReason::Unrecorded), Some(&1));
}

#[test]
fn affinity_lasts_for_its_time_after_the_last_call_and_no_longer() {
    let mut tables = tables();
    let sticky = Shape { affinity: 10, ..Shape::default() };
    let all = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"];
    let service = serve(&mut tables, "10.96.0.1", 80, &all, sticky);
    let led = |tables: &MemoryTables, netns| {
        socket::connect(&call(1, netns, "10.96.0.1", 80, TCP), tables)
    };
    let first = led(&tables, POD);
    // Its backend is the last one from now on, with one slot of all.
    let Outcome::Peer(kept, _) = first else { panic!("{first:?}") };
    let id = (1..=4).find(|id| tables.backends[*id as usize].address() == kept).unwrap();
    let other = if id == 1 { 2 } else { 1 };
    let changed = tables.add_table(&[0; 16], &[other, id]);
    tables.services[service as usize] = Service::at_rest(changed, service).with_affinity(10);
    for _ in 0..3 {
        tables.now.set(tables.now.get() + 9_000_000_000);
        assert_eq!(led(&tables, POD), first);
    }
    tables.now.set(tables.now.get() + 11_000_000_000);
    assert_eq!(led(&tables, POD), Outcome::Peer(tables.backends[other as usize].address(), 8080));
}

proptest! {
    /// Each slot is as likely as any other, and nothing but the current table is asked.
    #[test]
    fn a_connect_goes_where_the_slot_of_its_number_says(
        slots in vec(0_u16..8, 1..64),
        dice in any::<u32>(),
        cookie in 1_u64..,
    ) {
        let mut tables = tables();
        let ids: Vec<u32> = (0..8)
            .map(|n| {
                let address = Address::v4([10, 0, 0, n]);
                tables.add_backend(Backend::new(address, 8080, TCP, Mode::Geneve, 1))
            })
            .collect();
        let table = tables.add_table(&slots, &ids);
        let service = tables.add_record(Service::at_rest(table, 0));
        for protocol in [TCP, UDP] {
            tables.add_frontend(FrontendKey::new(own("10.96.0.1"), 80, protocol), service);
        }
        tables.dice.set(dice);
        let slot = (u64::from(dice) * slots.len() as u64) >> 32;
        let wanted = Address::v4([10, 0, 0, slots[slot as usize] as u8]);
        let to = call(cookie, POD, "10.96.0.1", 80, TCP);
        prop_assert_eq!(socket::connect(&to, &tables), Outcome::Peer(wanted, 8080));
        // A datagram's backend is the socket's, whatever is drawn.
        let datagram = call(cookie, POD, "10.96.0.1", 80, UDP);
        let first = socket::sendmsg(&datagram, &tables);
        tables.dice.set(!dice);
        prop_assert_eq!(socket::sendmsg(&datagram, &tables), first);
    }

    /// No call panics or changes what it must not, whatever the tables hold.
    #[test]
    fn broken_tables_break_no_call(
        size in any::<u32>(),
        start in prop_oneof![Just(0), any::<u32>()],
        list in prop_oneof![Just(0), any::<u32>()],
        length in any::<u32>(),
        affinity in any::<u32>(),
        draining in any::<u16>(),
        words in vec(prop_oneof![Just(0), any::<u64>()], 0..8),
    ) {
        let mut tables = tables();
        tables.arena = words;
        let table = Table::new(start, size, list, length);
        let service = Service::at_rest(table, 0).with_affinity(affinity).with_draining(draining);
        let service = tables.add_record(service);
        tables.add_frontend(FrontendKey::new(own("10.96.0.1"), 80, TCP), service);
        let led = socket::connect(&call(1, POD, "10.96.0.1", 80, TCP), &tables);
        // The only backend there is has no address of its own.
        prop_assert!(matches!(led, Outcome::Unchanged | Outcome::Refused(_)), "{led:?}");
    }
}
