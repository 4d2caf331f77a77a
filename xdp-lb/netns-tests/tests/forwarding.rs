//! Modes `l2` and `ipip`: real requests, what backends see, and what is on the wire.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, UdpSocket},
};

use nix::sys::socket::{
    setsockopt,
    sockopt::{Ipv4Tos, Ipv6TClass},
};
use xdp_lb::lab::{
    Capture, Recording, describe,
    layers::{self, Body, Ip},
};
use xdp_lb_netns_tests::{
    Net, PATIENCE, Service, V4, V4_OVER_6, V6, V6_OVER_4, assert_right, config, far, far6, near,
    near6, network, vip_at, without_root,
};

/// DSCP EF, and ECT(0).
const TRAFFIC_CLASS: u8 = 0xba;
const PORT: u16 = 80;

/// Requests from several ports by TCP, UDP and with a traffic class; returns who answered.
fn ask(net: &Net, address: IpAddr) -> BTreeSet<String> {
    let (client, frontend) = (net.client(), vip_at(address, PORT));
    let own: IpAddr =
        if address.is_ipv4() { "198.51.100.2" } else { "2001:db8:1::2" }.parse().unwrap();
    let mut backends = BTreeSet::new();
    let tcp = client.ask_each(frontend, 40_000..=40_039).unwrap();
    let udp = client.ask_udp_each(frontend, 41_000..=41_039, 3).unwrap();
    for outcome in tcp.into_iter().chain(udp) {
        let answer = outcome.answer.unwrap();
        assert_eq!(answer.client, SocketAddr::new(own, outcome.port));
        assert_eq!(answer.server, frontend);
        backends.insert(answer.backend);
    }
    client.upload(frontend, 300_000).unwrap();
    client.download(frontend, 300_000).unwrap();
    // Odd lengths have a byte of padding in their checksum.
    for length in [0, 1, 2, 3, 101] {
        client.ask_udp(frontend, None, length, 3).unwrap();
    }
    net.ns("client")
        .run(|| {
            let any = SocketAddr::new(own, 42_000);
            let socket = UdpSocket::bind(any).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            if own.is_ipv4() {
                setsockopt(&socket, Ipv4Tos, &TRAFFIC_CLASS.into()).unwrap();
            } else {
                setsockopt(&socket, Ipv6TClass, &TRAFFIC_CLASS.into()).unwrap();
            }
            socket.send_to(b"marked", frontend).unwrap();
            socket.recv(&mut [0; 500]).unwrap();
        })
        .unwrap();
    backends
}

/// The address of backend `n`.
type Addresses = fn(u8) -> IpAddr;

fn is_service(address: IpAddr) -> bool {
    [V4, V6, V4_OVER_6, V6_OVER_4].contains(&address)
}

/// Panics if an answer went by way of the balancer.
fn assert_no_answers(at_the_balancer: &Recording) {
    let mut requests = 0;
    for frame in &at_the_balancer.frames {
        let parsed = layers::frame(&frame.bytes).unwrap();
        if let Some(ip) = parsed.headers.last() {
            // The balancer's own ICMP errors come from the service's address too.
            let own = matches!(parsed.body, Body::Icmp(_) | Body::Icmpv6(_));
            assert!(own || !is_service(ip.source), "an answer: {}", describe(&frame.bytes));
            requests += usize::from(is_service(ip.destination));
        }
    }
    assert!(requests > 200, "the capture saw {requests} requests");
}

#[test]
fn l2_delivers_requests_with_the_clients_address_and_answers_bypass_the_balancer() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbnl2", network(3, 0));
    let services = [
        Service::new("four", "l2").both(vip_at(V4, PORT)).backends((1..=3).map(near)),
        Service::new("six", "l2").both(vip_at(V6, PORT)).backends((1..=3).map(near6)),
    ];
    let daemon = net.balance(&config(&services));
    let servers = net.serve(["b1", "b2", "b3"], &[vip_at(V4, PORT), vip_at(V6, PORT)]);
    let at_the_balancer = Capture::start(net.ns("near"), "balancer").unwrap();
    let captures: Vec<Capture> = [("router", "clients"), ("router", "near")]
        .into_iter()
        .chain(["b1", "b2", "b3"].map(|name| (name, "eth0")))
        .map(|(node, device)| Capture::start(net.ns(node), device).unwrap())
        .collect();
    for address in [V4, V6] {
        assert_eq!(ask(&net, address).len(), 3, "all backends serve");
    }
    let recording = at_the_balancer.stop().unwrap();
    assert_right(&recording);
    assert_no_answers(&recording);
    for capture in captures {
        assert_right(&capture.stop().unwrap());
    }
    // The balancer has counted each request that it forwarded, and nothing of the answers.
    let stats = daemon.stats();
    let forwarded: u64 = stats.frontends.iter().map(|one| one.packets).sum();
    let requests = recording.frames.iter().filter(|frame| {
        let parsed = layers::frame(&frame.bytes).unwrap();
        // What the switch's port sends is what the balancer receives.
        frame.sent
            && parsed.headers.last().is_some_and(|ip| is_service(ip.destination))
            && matches!(parsed.body, Body::Tcp(_) | Body::Udp(_))
    });
    assert_eq!(forwarded, requests.count() as u64);
    let by_backend: u64 = stats.backends.iter().map(|one| one.packets).sum();
    assert_eq!(by_backend, forwarded);
    assert!(servers.values().all(|server| server.served().connections > 0));
}

/// The fields of an outer header that are documented.
fn check_outer(outer: &Ip<'_>, inner: &Ip<'_>) {
    assert_eq!(outer.ttl, 64);
    assert_eq!(outer.traffic_class, inner.traffic_class);
    let protocol = if inner.source.is_ipv4() { 4 } else { 41 };
    assert_eq!(outer.protocol, protocol);
    match outer.source {
        IpAddr::V4(source) => {
            assert_eq!(source.octets()[..3], [10, 200, 0]);
            // No identification, don't fragment, no offset.
            assert_eq!(outer.header[4..8], [0, 0, 0x40, 0]);
            assert_eq!(outer.header.len(), 20);
        }
        IpAddr::V6(source) => {
            assert_eq!(source.segments()[..6], [0xfd00, 0x200, 0, 0, 0, 0]);
            assert_eq!(outer.header.len(), 40);
        }
    }
    assert_eq!(usize::from(inner.header.len() as u16) + inner.payload.len(), outer.payload.len());
}

#[test]
fn ipip_wraps_all_four_ways_and_another_instance_unwraps() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbnipip", network(0, 2));
    let ways: [(&str, IpAddr, Addresses); 4] = [
        ("four-in-four", V4, far),
        ("six-in-six", V6, far6),
        ("four-in-six", V4_OVER_6, far6),
        ("six-in-four", V6_OVER_4, far),
    ];
    let services = ways.map(|(name, frontend, backend)| {
        Service::new(name, "ipip").both(vip_at(frontend, PORT)).backends((1..=2).map(backend))
    });
    let unwrapping = net.terminate(["t1", "t2"]);
    let _daemon = net.balance(&config(&services));
    let sockets = ways.map(|(_, frontend, _)| vip_at(frontend, PORT));
    let _servers = net.serve(["t1", "t2"], &sockets);
    for (name, frontend, _) in ways {
        let at_the_balancer = Capture::start(net.ns("near"), "balancer").unwrap();
        // The router sees the wrapped packets pass, the switch's ports what the backends get.
        let others = [("router", "clients"), ("router", "far"), ("far", "t1"), ("far", "t2")]
            .map(|(node, device)| Capture::start(net.ns(node), device).unwrap());
        assert_eq!(ask(&net, frontend).len(), 2, "{name}: both backends serve");
        let recording = at_the_balancer.stop().unwrap();
        assert_right(&recording);
        assert_no_answers(&recording);
        for capture in others {
            assert_right(&capture.stop().unwrap());
        }
        let mut sources: BTreeSet<((u8, u16), IpAddr)> = BTreeSet::new();
        let mut marked = 0;
        for frame in recording.received() {
            let parsed = layers::frame(frame).unwrap();
            let [outer, inner] = parsed.headers.as_slice() else { continue };
            check_outer(outer, inner);
            assert_eq!(inner.destination, frontend);
            marked += usize::from(outer.traffic_class == TRAFFIC_CLASS);
            let port = u16::from_be_bytes([inner.payload[0], inner.payload[1]]);
            sources.insert(((inner.protocol, port), outer.source));
        }
        assert_eq!(marked, 1, "{name}: the marked datagram kept its traffic class");
        // One source for each flow, and many of them.
        let flows: BTreeSet<(u8, u16)> = sources.iter().map(|(flow, _)| *flow).collect();
        let distinct: BTreeSet<IpAddr> = sources.iter().map(|(_, source)| *source).collect();
        assert_eq!(sources.len(), flows.len(), "{name}: a flow has one source");
        assert!(flows.len() >= 80 && distinct.len() > flows.len() / 2, "{name}: {distinct:?}");
    }
    for daemon in &unwrapping {
        assert!(daemon.reason("tunnel_unwrapped") > 500);
        assert_eq!(daemon.reason("tunnel_unknown_peer"), 0);
    }
}

#[test]
fn tunnel_packets_from_strangers_are_dropped() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbnpeer", network(0, 1));
    let service = Service::new("web", "ipip").tcp(vip_at(V4, PORT)).backend(far(1));
    let more = "terminate: {peers: [10.99.0.0/16]}";
    let config_of_t1 = xdp_lb_netns_tests::config_with(&[("eth0", "native")], &[], more);
    let unwrapping = net.daemon("t1", &config_of_t1);
    let _daemon = net.balance(&config(&[service]));
    let _servers = net.serve(["t1"], &[vip_at(V4, PORT)]);
    let client = net.client().timeout(std::time::Duration::from_millis(300));
    client.ask(vip_at(V4, PORT), None).unwrap_err();
    assert!(unwrapping.reason("tunnel_unknown_peer") > 0);
    assert_eq!(unwrapping.reason("tunnel_unwrapped"), 0);
}
