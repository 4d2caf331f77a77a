//! The lab of nodes and pods, without any daemon: plain traffic goes where routes lead, and only
//! there. Needs root; says so and passes without.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

mod common;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use xdp_lb::lab::{
    Capture, Client, Node, PodsLab, PodsSpec, Probe, ServerSpec, describe,
    forge::{Datagram, Wire, ethernet, tunnel},
    layers,
    pods::{CLIENTS_4, CLIENTS_6, LOAD_BALANCER_4, LOAD_BALANCER_6},
    reassembly, trace,
};

use crate::common::without_root;

const PORT: u16 = 8080;

#[test]
fn plain_traffic_goes_where_routes_lead() {
    if without_root() {
        return;
    }
    let start = Instant::now();
    let lab = PodsSpec::default().up("xlbpodsplain").unwrap();
    eprintln!("built in {:?}", start.elapsed());
    let servers: Vec<_> = lab.pods().into_iter().map(|pod| lab.serve(pod, PORT).unwrap()).collect();
    assert_eq!(servers.len(), 8);
    // From every node and from a pod of every node to every pod, with nobody's address changed.
    for node in Node::ALL {
        let from = lab.pods_of(node)[1];
        for pod in lab.pods() {
            for (to, own) in pod.at(PORT).into_iter().zip([from.v4(), from.v6()]) {
                let answer = Client::new(lab.node(node).unwrap()).ask(to, None).unwrap();
                assert_eq!((answer.backend, answer.server), (pod.name(), to));
                let client = Client::new(lab.pod(from).unwrap());
                let answer = client.ask(to, None).unwrap();
                assert_eq!((answer.backend, answer.client.ip()), (pod.name(), own));
                let answer = client.ask_udp(to, None, 1000, 3).unwrap().answer;
                assert_eq!((answer.backend, answer.client.ip()), (pod.name(), own));
            }
        }
    }
}

#[test]
fn the_client_reaches_nodes_and_pods_reach_the_client() {
    if without_root() {
        return;
    }
    let lab = PodsSpec::default().pods(1).up("xlbpodsout").unwrap();
    let client = lab.client().unwrap();
    let outside = outside(80);
    let spec =
        outside.iter().fold(ServerSpec::named("outside"), |spec, one| spec.http(*one).udp(*one));
    let _server = spec.start(lab.ns("client").unwrap()).unwrap();
    for node in Node::ALL {
        let spec = node.at(PORT).iter().fold(ServerSpec::named(node.name()), |s, one| s.http(*one));
        let _server = spec.start(lab.node(node).unwrap()).unwrap();
        for to in node.at(PORT) {
            assert_eq!(client.ask(to, None).unwrap().backend, node.name());
        }
        let pod = lab.pods_of(node)[0];
        let inside = Client::new(lab.pod(pod).unwrap());
        for (to, own) in outside.into_iter().zip([pod.v4(), pod.v6()]) {
            assert_eq!(inside.ask(to, None).unwrap().client.ip(), own);
            assert_eq!(inside.ask_udp(to, None, 3000, 3).unwrap().answer.client.ip(), own);
        }
    }
}

/// The client's own addresses, where nobody listens.
fn outside(port: u16) -> [SocketAddr; 2] {
    [CLIENTS_4[0], CLIENTS_6[0]].map(|address| SocketAddr::new(address, port))
}

/// A capture of all that a node sends and receives.
fn wire(lab: &PodsLab, node: Node) -> Capture {
    Capture::start(lab.ns(node.segment()).unwrap(), node.name()).unwrap()
}

#[test]
fn large_datagrams_and_transfers_arrive_whole() {
    if without_root() {
        return;
    }
    let lab = PodsSpec::default().pods(1).up("xlbpodslarge").unwrap();
    let client = lab.client().unwrap();
    let pod = lab.pods_of(Node::Worker)[0];
    let _server = lab.serve(pod, PORT).unwrap();
    for to in pod.at(PORT) {
        let capture = wire(&lab, Node::Worker);
        for lengths in [[8192, 8192], [60_000, 60_000]] {
            let udp = client.exchange_udp(to, Some(7000), lengths, 3).unwrap();
            assert_eq!((udp.answer.received, udp.answer.client.port()), (lengths[0].into(), 7000));
        }
        let recording = capture.stop().unwrap();
        assert_eq!(recording.dropped, 0);
        let verified = reassembly::verify(&recording).unwrap_or_else(|fault| panic!("{fault}"));
        assert_eq!((verified.reassembled, verified.incomplete), (4, 0));
        let rate = |bytes: u64, took: Duration| bytes as f64 / took.as_secs_f64() / 1e6;
        let up = client.upload(to, 50_000_000).unwrap();
        let down = client.download(to, 50_000_000).unwrap();
        let (up_rate, down_rate) = (rate(up.bytes, up.took), rate(down.bytes, down.took));
        eprintln!("{to}: up {up_rate:.0} MB/s, down {down_rate:.0} MB/s");
        assert_eq!((up.path_mtu, down.path_mtu), (1500, 1500));
    }
}

#[test]
fn both_ends_learn_the_paths_mtu() {
    if without_root() {
        return;
    }
    // On the pods' side, and on the client's.
    let specs = [PodsSpec::default().far_mtu(1400), PodsSpec::default().client_mtu(1400)];
    for (spec, client_learns) in specs.into_iter().zip([true, false]) {
        let lab = spec.pods(1).up("xlbpodsmtu").unwrap();
        let client = lab.client().unwrap();
        let pod = lab.pods_of(Node::Worker2)[0];
        let _server = lab.serve(pod, PORT).unwrap();
        for (to, back) in pod.at(PORT).into_iter().zip(outside(9)) {
            let inside = Client::new(lab.pod(pod).unwrap());
            assert_eq!(inside.path_mtu(back).unwrap(), 1500);
            let before = client.path_mtu(to).unwrap();
            assert_eq!(before, if client_learns { 1500 } else { 1400 });
            let capture = Capture::start(lab.ns("router").unwrap(), "far").unwrap();
            assert_eq!(client.upload(to, 1_000_000).unwrap().path_mtu, 1400);
            assert_eq!(client.download(to, 1_000_000).unwrap().path_mtu, 1400);
            assert_eq!(inside.path_mtu(back).unwrap(), 1400);
            client.exchange_udp(to, None, [8192, 8192], 3).unwrap();
            reassembly::verify(&capture.stop().unwrap()).unwrap_or_else(|fault| panic!("{fault}"));
        }
    }
}

#[test]
fn a_trace_names_every_hop_and_what_it_quotes() {
    if without_root() {
        return;
    }
    let lab = PodsSpec::default().pods(1).up("xlbpodstrace").unwrap();
    let space = lab.ns("client").unwrap();
    let pod = lab.pods_of(Node::Worker)[0];
    let _server = lab.serve(pod, PORT).unwrap();
    let routers = ["198.51.100.254", "2001:db8:1::fe"];
    let nodes = [Node::Worker.v4(), Node::Worker.v6()];
    for (index, to) in pod.at(PORT).into_iter().enumerate() {
        for probe in [Probe::Udp, Probe::Tcp, Probe::Echo] {
            let hops = trace(space, "eth0", probe, (6000, to), 8).unwrap();
            let answers: Vec<_> = hops.iter().map(|hop| hop.answer.as_ref().unwrap()).collect();
            let [router, node, end] = answers[..] else { panic!("{hops:?}") };
            assert_eq!(router.from.ip().to_string(), routers[index]);
            assert_eq!(node.from.ip(), nodes[index]);
            for hop in [router, node] {
                assert!(hop.is_time_exceeded(), "{}", describe(&hop.frame));
                let [from, quoted] = hop.quoted.unwrap();
                let ports = if probe == Probe::Echo { (0, 0) } else { (6000, PORT) };
                assert_eq!((from.ip(), quoted.ip()), (outside(0)[index].ip(), to.ip()));
                assert_eq!((from.port(), quoted.port()), ports);
            }
            assert_eq!((end.from.ip(), end.error), (to.ip(), None));
        }
    }
}

#[test]
fn one_port_of_the_client_serves_two_connections_and_forged_packets_travel() {
    if without_root() {
        return;
    }
    let lab = PodsSpec::default().pods(2).up("xlbpodsforge").unwrap();
    let client = lab.client().unwrap();
    let pods = lab.pods_of(Node::Worker);
    let _servers: Vec<_> = pods.iter().map(|pod| lab.serve(*pod, PORT).unwrap()).collect();
    for (one, other) in pods[0].at(PORT).into_iter().zip(pods[1].at(PORT)) {
        let mut held = [one, other].map(|to| client.hold(to, Some(5000)).unwrap());
        for (held, pod) in held.iter_mut().zip(&pods) {
            let answer = held.ask().unwrap();
            assert_eq!((answer.backend, answer.client.port()), (pod.name(), 5000));
        }
    }
    let other = client.clone().from(CLIENTS_6[1]);
    let answer = other.ask(pods[0].at(PORT)[1], Some(5000)).unwrap();
    assert_eq!(answer.client, SocketAddr::new(CLIENTS_6[1], 5000));

    let sender = Wire::open(lab.ns("client").unwrap(), "eth0").unwrap();
    let frontends = [LOAD_BALANCER_4, LOAD_BALANCER_6].map(|to| SocketAddr::new(to, 80));
    for (index, frontend) in frontends.into_iter().enumerate() {
        let (from, node) = (outside(50_000)[index], Node::Worker.at(0)[index].ip());
        let inner = Datagram::new(outside(4000)[index], pods[0].at(PORT)[index], b"hello");
        let packet = tunnel(from, node, frontend, &inner.packet());
        let capture = wire(&lab, Node::Worker);
        sender.send(&ethernet([2, 0, 0, 0, 2, 0xfe], [2, 0, 0, 0, 2, 2], &packet)).unwrap();
        let found = capture.wait_for(Duration::from_secs(5), |frame| {
            let parsed = layers::frame(&frame.bytes).unwrap();
            let tunnel = parsed.headers.first().and_then(|ip| ip.tunnel.as_ref());
            tunnel.is_some_and(|tunnel| tunnel.frontend() == Some(frontend))
        });
        assert!(found.is_some(), "{frontend}");
        reassembly::verify(&capture.stop().unwrap()).unwrap_or_else(|fault| panic!("{fault}"));
    }
}
