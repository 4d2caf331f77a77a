//! Whom pods serve, and what is refused: by services' rules, and of tunnels.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use xdp_lb::lab::{
    ClientError, Node, Pod, PodsSpec, ServerSpec,
    forge::{Datagram, Wire, ethernet, tunnel, tunnel_with},
    geneve,
    pods::{CLIENTS_4, CLIENTS_6},
};
use xdp_lb_netns_tests::{
    Daemon, POD_PORT, PodService, PodsNet, assert_whole, client_towards, load_balancer, seen,
    wait_until, without_root,
};

const NODES: [Node; 2] = [Node::Balancer, Node::Worker];

fn pods() -> [Pod; 2] {
    NODES.map(|node| Pod { node, number: 1 })
}

/// What a client's datagram gets, as the kernel tells its socket.
fn datagram(net: &PodsNet, to: SocketAddr) -> ErrorKind {
    let ask = || {
        let socket = UdpSocket::bind(SocketAddr::new(client_towards(to.ip()), 0)).unwrap();
        socket.connect(to).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        socket.send(b"hello").unwrap();
        socket.recv(&mut [0; 500]).unwrap_err().kind()
    };
    net.ns("client").run(ask).unwrap()
}

/// What a client's attempt to connect gets.
fn connection(net: &PodsNet, to: SocketAddr) -> ErrorKind {
    let client = net.lab().client().unwrap().timeout(Duration::from_millis(300));
    let refused = client.ask(to, None).unwrap_err();
    let ClientError::Connect { source, .. } = refused else { panic!("{refused}") };
    source.kind()
}

#[test]
fn what_no_pod_serves_is_refused_or_dropped_as_configured() {
    if without_root() {
        return;
    }
    let net = PodsNet::up("xlbnpolicy", PodsSpec::default().pods(1));
    let _servers = net.serve();
    let ranges = format!("sourceRanges: [{}/32, \"{}/128\"]", CLIENTS_4[0], CLIENTS_6[0]);
    let services = [
        PodService::new("web", "geneve").at(&[80], &[30_080]).pods(pods(), POD_PORT),
        PodService::new("none", "geneve").at(&[81], &[30_081]),
        PodService::new("silent", "geneve").with("noBackends: drop").at(&[82], &[]),
        PodService::new("some", "geneve").with(&ranges).at(&[83], &[30_083]).pods(pods(), POD_PORT),
        PodService::new("sticky", "geneve")
            .with("sessionAffinity: 1h")
            .at(&[84, 85], &[])
            .pods(pods(), POD_PORT),
    ];
    let [balancer, worker] = net.daemons(NODES, &services, "");
    let wire = net.wire(Node::Balancer);

    // A port that no frontend has, and a service without pods.
    for (refused, reasons) in [
        (load_balancer(4711), ["unknown_port_reset", "unknown_port_unreachable"]),
        (load_balancer(81), ["no_backend_reset", "no_backend_unreachable"]),
        (Node::Balancer.at(30_081), ["no_backend_reset", "no_backend_unreachable"]),
    ] {
        let before = reasons.map(|reason| balancer.reason(reason));
        for to in refused {
            assert_eq!(connection(&net, to), ErrorKind::ConnectionRefused, "{to}");
            assert_eq!(datagram(&net, to), ErrorKind::ConnectionRefused, "{to}");
        }
        for (reason, before) in reasons.into_iter().zip(before) {
            assert_eq!(balancer.reason(reason), before + 2, "{reason}");
        }
    }
    let dropped = balancer.reason("no_backend");
    for to in load_balancer(82) {
        assert_eq!(connection(&net, to), ErrorKind::TimedOut);
        assert_eq!(datagram(&net, to), ErrorKind::WouldBlock);
    }
    assert!(balancer.reason("no_backend") >= dropped + 4);

    // Source ranges are those of LoadBalancer addresses, not of node ports.
    let other = |to: SocketAddr| {
        let address = if to.is_ipv4() { CLIENTS_4[1] } else { CLIENTS_6[1] };
        net.lab().client().unwrap().timeout(Duration::from_millis(300)).from(address)
    };
    for to in load_balancer(83) {
        net.client().ask(to, None).unwrap();
        other(to).ask(to, None).unwrap_err();
        net.client().ask_udp(to, None, 10, 2).unwrap();
        other(to).ask_udp(to, None, 10, 1).unwrap_err();
    }
    assert!(balancer.reason("source_not_allowed") >= 4);
    for to in Node::Balancer.at(30_083) {
        let answer = other(to).ask(to, None).unwrap();
        assert_eq!(answer.client.ip(), if to.is_ipv4() { CLIENTS_4[1] } else { CLIENTS_6[1] });
    }

    // One client has one pod, by all its ports and both frontends.
    for (one, two) in load_balancer(84).into_iter().zip(load_balancer(85)) {
        let mut by = BTreeSet::new();
        for to in [one, two] {
            for outcome in net.client().ask_each(to, 5000..=5039).unwrap() {
                by.insert(outcome.answer.unwrap().backend);
            }
        }
        assert_eq!(by.len(), 1, "{by:?}");
    }

    // What is refused or dropped goes nowhere, least of all back to where it came from.
    let recording = wire.stop().unwrap();
    assert_whole(&recording);
    let back = seen(&recording).into_iter().filter(|one| {
        one.sender == Node::Balancer.mac()
            && !one.tunnelled
            && one.to.ip() != client_towards(one.to.ip())
            && ![CLIENTS_4[1], CLIENTS_6[1]].contains(&one.to.ip())
    });
    assert_eq!(back.collect::<Vec<_>>(), []);
    assert_eq!(worker.reason("pod_not_here"), 0);
}

#[test]
fn forged_tunnel_packets_are_refused_and_counted_by_name() {
    if without_root() {
        return;
    }
    let net = PodsNet::up("xlbnpforged", PodsSpec::default().pods(1));
    let servers = net.serve();
    let services = [PodService::new("web", "geneve").at(&[80], &[]).pods(pods(), POD_PORT)];
    let [balancer, worker] = net.daemons(NODES, &services, "");
    let outside = Wire::open(net.ns("client"), "eth0").unwrap();
    let peer = Wire::open(net.ns("balancer"), "eth0").unwrap();
    let counted = |daemon: &Daemon, reason: &str, send: &dyn Fn()| {
        let before = daemon.reason(reason);
        send();
        wait_until(reason, || daemon.reason(reason) > before);
    };
    for (index, frontend) in load_balancer(80).into_iter().enumerate() {
        let client = SocketAddr::new(client_towards(frontend.ip()), 4000);
        let pod = pods()[1].at(POD_PORT)[index];
        let node = Node::Worker.at(0)[index].ip();
        let inner = Datagram::new(client, pod, b"hello").packet();
        let from_peer = SocketAddr::new(Node::Balancer.at(0)[index].ip(), 50_000);
        let to_worker = |packet: &[u8]| {
            peer.send(&ethernet(Node::Worker.mac(), Node::Balancer.mac(), packet)).unwrap();
        };
        counted(&worker, "tunnel_unknown_peer", &|| {
            let packet = tunnel(SocketAddr::new(client.ip(), 50_000), node, frontend, &inner);
            outside.send(&ethernet([2, 0, 0, 0, 2, 0xfe], [2, 0, 0, 0, 2, 2], &packet)).unwrap();
        });
        // The last word of the option's address is missing.
        let mut option = geneve::frontend_option(frontend);
        option.truncate(option.len() - 4);
        option[3] -= 1;
        counted(&worker, "geneve_option", &|| {
            to_worker(&tunnel_with(from_peer, node, &option, &inner));
        });
        // The header ends inside the option, and says that there is one to be understood.
        let mut option = geneve::frontend_option(frontend);
        option.truncate(option.len() - 4);
        counted(&worker, "geneve_option", &|| {
            let mut packet = tunnel_with(from_peer, node, &option, &inner);
            let header = if frontend.is_ipv4() { 20 + 8 } else { 40 + 8 };
            packet[header + 1] |= 0x40;
            to_worker(&packet);
        });
        counted(&worker, "geneve_format", &|| {
            to_worker(&tunnel_with(from_peer, node, &[], &inner));
        });
        let elsewhere = pods()[0].at(POD_PORT)[index];
        counted(&worker, "pod_not_here", &|| {
            let inner = Datagram::new(client, elsewhere, b"hello").packet();
            to_worker(&tunnel(from_peer, node, frontend, &inner));
        });
        // What is as it should be is delivered: the forger's tools are right.
        counted(&worker, "tunnel_unwrapped", &|| {
            to_worker(&tunnel(from_peer, node, frontend, &inner))
        });
    }
    let served = || servers.iter().map(|server| server.served().datagrams).sum::<u64>();
    // The kernel still has to deliver what was counted last.
    wait_until("what was right is served", || served() >= 2);
    assert_eq!(served(), 2, "only what was right");
    // As a user sees it.
    let table = worker.stats().table();
    for name in ["tunnel_unknown_peer", "geneve_option", "geneve_format", "pod_not_here"] {
        assert!(table.contains(name), "{table}");
    }
    assert_eq!(balancer.reason("pod_not_here"), 0);
}

/// A packet without what routers change: MAC addresses, TTL, and IPv4's checksum of that.
fn lasting(frame: &[u8]) -> Vec<u8> {
    let mut packet = frame[14..].to_vec();
    if packet[0] >> 4 == 4 {
        packet[8] = 0;
        packet[10..12].fill(0);
    } else {
        packet[7] = 0;
    }
    packet
}

#[test]
fn replies_of_other_traffic_leave_byte_for_byte() {
    if without_root() {
        return;
    }
    let net = PodsNet::up("xlbnpother", PodsSpec::default().pods(1));
    let _servers = net.serve();
    let services = [PodService::new("web", "geneve").at(&[80], &[]).pods(pods(), POD_PORT)];
    let _daemons = net.daemons(NODES, &services, "");
    let client = net.client();
    let pod = pods()[1];
    let spec =
        pod.at(9090).iter().fold(ServerSpec::named("other"), |s, one| s.http(*one).udp(*one));
    let _other = spec.start(net.lab().pod(pod).unwrap()).unwrap();
    // The pod's port has flows by the frontend.
    for frontend in load_balancer(80) {
        client.ask_each(frontend, 5000..=5019).unwrap();
    }
    let inside = xdp_lb::lab::Capture::start(net.ns("worker"), "pod1").unwrap();
    let wire = net.wire(Node::Worker);
    let mut asked = 0;
    // Another port of the pod, and the very port, by the pod's own address.
    for to in pod.at(9090).into_iter().chain(pod.at(POD_PORT)) {
        for outcome in client.ask_each(to, 8000..=8009).unwrap() {
            assert_eq!(outcome.answer.unwrap().client.port(), outcome.port);
            asked += 1;
        }
        client.exchange_udp(to, Some(8000), [8192, 8192], 2).unwrap();
    }
    assert_eq!(asked, 40);
    // Nothing listens there: the pod's kernel refuses.
    client.ask(pod.at(9999)[0], None).unwrap_err();
    assert_eq!(datagram(&net, pod.at(9999)[1]), ErrorKind::ConnectionRefused);
    let (inside, wire) = (inside.stop().unwrap(), wire.stop().unwrap());
    let ip = |frame: &&[u8]| matches!(frame[12..14], [0x08, 0x00] | [0x86, 0xdd]);
    let of_pod = |packet: &Vec<u8>| {
        let own = pod.at(0).map(|one| one.ip());
        match packet[0] >> 4 {
            4 => {
                packet[12..16] == own[0].to_string().parse::<std::net::Ipv4Addr>().unwrap().octets()
            }
            _ => {
                packet[8..24] == own[1].to_string().parse::<std::net::Ipv6Addr>().unwrap().octets()
            }
        }
    };
    // At the switch's port, what the node sends is received; on pod1, what the pod sends.
    let mut before: Vec<_> = inside.received().filter(ip).map(lasting).filter(of_pod).collect();
    let mut after: Vec<_> = wire.received().filter(ip).map(lasting).filter(of_pod).collect();
    // Neighbour discovery stays on its link.
    let routed = |packet: &Vec<u8>| packet[0] >> 4 == 4 || packet[6] != 58 || packet[40] < 133;
    before.retain(routed);
    after.retain(routed);
    before.sort();
    after.sort();
    assert!(before.len() > 200, "{} packets", before.len());
    assert!(before == after, "{} and {} packets", before.len(), after.len());
}

#[test]
fn node_ports_follow_the_nodes_addresses() {
    if without_root() {
        return;
    }
    let net = PodsNet::up("xlbnpaddr", PodsSpec::default().pods(1));
    let _servers = net.serve();
    let services = [PodService::new("web", "geneve").at(&[80], &[30_080]).pods(pods(), POD_PORT)];
    let more = "nodePortAddresses: [10.0.0.0/24, \"2001:db8:10::/64\"]";
    let [balancer, _worker] = net.daemons(NODES, &services, more);
    let has = |address: &str| {
        balancer
            .stats()
            .frontends
            .iter()
            .any(|one| one.frontend.starts_with(&format!("{address}:")))
    };
    let extra = ["10.0.0.77:30080", "[2001:db8:10::77]:30080"]
        .map(|one| one.parse::<SocketAddr>().unwrap());
    let mut held: Vec<_> = Node::Balancer
        .at(30_080)
        .into_iter()
        .map(|to| net.client().hold(to, Some(7000)).unwrap())
        .collect();
    for _ in 0..2 {
        for (to, length) in extra.iter().zip([24, 64]) {
            let nodad = if to.is_ipv4() { "" } else { "nodad" };
            net.ns("balancer")
                .ip(&format!("address add {}/{length} dev eth0 {nodad}", to.ip()))
                .unwrap();
            let name = if to.is_ipv4() { to.ip().to_string() } else { format!("[{}]", to.ip()) };
            wait_until("the new address has the node port", || has(&name));
            for outcome in net.client().ask_each(*to, 5000..=5019).unwrap() {
                let answer = outcome.answer.unwrap();
                assert_eq!(answer.client, SocketAddr::new(client_towards(to.ip()), outcome.port));
            }
            net.ns("balancer").ip(&format!("address del {}/{length} dev eth0", to.ip())).unwrap();
            wait_until("the address that is gone has it no more", || !has(&name));
        }
    }
    // Others were not touched by all that. Addresses that are not chosen have none: those of pods'
    // gateways, and loopback.
    for one in &mut held {
        one.ask().unwrap();
    }
    assert!(!has("10.244.1.1") && !has("127.0.0.1") && has("10.0.0.1"));
}
