//! Pods behind LoadBalancer addresses and node ports, in every mode, over TCP and UDP, IPv4 and IPv6.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use xdp_lb::lab::{Answer, Capture, Client, Node, Outcome, Pod, PodsSpec};
use xdp_lb_netns_tests::{
    Daemon, POD_PORT, PodService, PodsNet, Seen, assert_whole, client_towards, load_balancer, seen,
    without_root,
};

const TCP: u8 = 6;
const UDP: u8 = 17;
const GENEVE: u16 = 80;
const LOCAL: u16 = 81;
const SNAT: u16 = 82;
const HYBRID: u16 = 83;
const OTHER: u16 = 84;
const NODE_PORTS: u16 = 30_000;
/// The instances: `plain` has none.
const INSTANCES: [Node; 3] = [Node::Balancer, Node::Worker, Node::Worker2];

fn first_pods(nodes: &[Node]) -> Vec<Pod> {
    nodes.iter().map(|node| Pod { node: *node, number: 1 }).collect()
}

fn services() -> Vec<PodService> {
    let service = |name, mode, port, nodes: &[Node]| {
        PodService::new(name, mode)
            .at(&[port], &[NODE_PORTS + port])
            .pods(first_pods(nodes), POD_PORT)
    };
    vec![
        service("geneve", "geneve", GENEVE, &INSTANCES),
        service("local", "local", LOCAL, &[Node::Balancer]),
        service("snat", "snat", SNAT, &Node::ALL),
        service("hybrid", "hybrid", HYBRID, &INSTANCES),
        service("other", "geneve", OTHER, &INSTANCES),
    ]
}

/// The nodes whose pods a mode's service has, and those whose pods see the client itself.
fn nodes_of(port: u16, protocol: u8) -> (&'static [Node], &'static [Node]) {
    match (port, protocol) {
        (LOCAL, _) => (&[Node::Balancer], &[Node::Balancer]),
        (SNAT, _) => (&Node::ALL, &[Node::Balancer]),
        (HYBRID, UDP) => (&INSTANCES, &[Node::Balancer]),
        _ => (&INSTANCES, &INSTANCES),
    }
}

fn node_of(answer: &Answer) -> Node {
    let name = answer.backend.split('-').next().unwrap();
    Node::ALL.into_iter().find(|node| node.name() == name).unwrap()
}

/// A lab with a pod on each node, servers in them, and a daemon on each node but `plain`.
fn up(name: &str) -> (PodsNet, Vec<xdp_lb::lab::Server>, [Daemon; 3]) {
    let net = PodsNet::up(name, PodsSpec::default().pods(1));
    let servers = net.serve();
    let daemons = net.daemons(INSTANCES, &services(), "");
    (net, servers, daemons)
}

#[test]
fn every_mode_serves_by_both_kinds_of_frontends() {
    if without_root() {
        return;
    }
    let (net, _servers, daemons) = up("xlbnpmodes");
    // A client's port that another frontend of the same pod has used may be translated.
    let mut first = 5000;
    for port in [GENEVE, LOCAL, SNAT, HYBRID] {
        let node_port = NODE_PORTS + port;
        for frontend in load_balancer(port).into_iter().chain(Node::Balancer.at(node_port)) {
            check(&net, port, frontend, first);
            first += 100;
        }
    }
    for daemon in &daemons {
        for odd in ["inconsistent_tables", "answer_malformed", "no_next_hop", "bad_ip_length"] {
            assert_eq!(daemon.reason(odd), 0, "{odd}");
        }
    }
}

/// Connections and datagrams to a frontend: who serves, whom they see, and which way answers take.
fn check(net: &PodsNet, port: u16, frontend: SocketAddr, first: u16) {
    let wires = Node::ALL.map(|node| net.wire(node));
    let outside = Capture::start(net.ns("client"), "eth0").unwrap();
    let client = net.client();
    let asked = [
        (TCP, client.ask_each(frontend, first..=first + 49).unwrap()),
        (UDP, client.ask_udp_each(frontend, first..=first + 49, 2).unwrap()),
    ];
    let own = client_towards(frontend.ip());
    let mut served: BTreeMap<(u8, SocketAddr), Node> = BTreeMap::new();
    for (protocol, outcomes) in asked {
        let (wanted, direct) = nodes_of(port, protocol);
        let mut by = BTreeSet::new();
        for Outcome { port, answer } in outcomes {
            let answer = answer.unwrap_or_else(|error| panic!("{frontend} from {port}: {error}"));
            let node = node_of(&answer);
            let client = SocketAddr::new(own, port);
            if direct.contains(&node) {
                assert_eq!(answer.client, client, "the pod sees the client's own address");
            } else {
                let index = usize::from(own.is_ipv6());
                assert_eq!(answer.client.ip(), Node::Balancer.at(0)[index].ip());
                assert!(answer.client.port() >= 61_000);
            }
            assert_eq!(answer.server.port(), POD_PORT);
            served.insert((protocol, client), node);
            by.insert(node);
        }
        assert_eq!(by, wanted.iter().copied().collect(), "{frontend}");
    }
    let all = outside.stop().unwrap();
    assert_whole(&all);
    for one in seen(&all) {
        // Nothing but the frontend speaks to the client.
        assert!(one.from == frontend || one.to == frontend, "{one:?}");
    }
    for (node, wire) in Node::ALL.into_iter().zip(wires) {
        let recording = wire.stop().unwrap();
        assert_whole(&recording);
        let packets = seen(&recording);
        let answers: Vec<&Seen> = packets.iter().filter(|one| one.from == frontend).collect();
        for (&(protocol, client), &by) in &served {
            let (_, direct) = nodes_of(port, protocol);
            let through = if direct.contains(&by) { by } else { Node::Balancer };
            let own = answers.iter().filter(|one| (one.protocol, one.to) == (protocol, client));
            if node == through {
                assert!(own.clone().count() > 0, "no answer to {client} left {node:?}");
                assert!(own.clone().all(|one| one.sender == node.mac() && !one.tunnelled));
            } else {
                assert_eq!(own.count(), 0, "{node:?} saw an answer of {by:?}");
            }
        }
    }
}

#[test]
fn two_frontends_of_one_pod_serve_one_port_of_a_client_at_once() {
    if without_root() {
        return;
    }
    let (net, _servers, daemons) = up("xlbnptwo");
    let client = net.client();
    for node in [Node::Balancer, Node::Worker, Node::Worker2] {
        // A port of the client from which both frontends lead to the pod of this node.
        for index in [0, 1] {
            let fronts = [GENEVE, OTHER].map(|port| load_balancer(port)[index]);
            let leads = |frontend, port| {
                client.ask(frontend, Some(port)).is_ok_and(|answer| node_of(&answer) == node)
            };
            let port = (7000..7400)
                .find(|port| fronts.iter().all(|frontend| leads(*frontend, *port)))
                .unwrap();
            let mut held = fronts.map(|frontend| client.hold(frontend, Some(port)).unwrap());
            for round in 0..3 {
                let ports: BTreeSet<u16> = held
                    .iter_mut()
                    .map(|one| {
                        let answer = one.ask().unwrap();
                        assert_eq!(node_of(&answer), node);
                        assert_eq!(answer.client.ip(), client_towards(answer.server.ip()));
                        answer.client.port()
                    })
                    .collect();
                assert_eq!(ports.len(), 2, "the pod tells the two apart");
                assert!(ports.contains(&port), "the first keeps its port: {ports:?} in {round}");
                for frontend in fronts {
                    let bytes = client.exchange_udp(frontend, Some(port), [3000, 5000], 3);
                    let answer = bytes.unwrap().answer;
                    assert_eq!(answer.received, 3000);
                }
            }
        }
    }
    for daemon in daemons {
        assert_eq!(daemon.reason("translation_ports_exhausted"), 0);
    }
}

#[test]
fn clients_inside_the_cluster_reach_pods_beside_them_and_themselves() {
    if without_root() {
        return;
    }
    let net = PodsNet::up("xlbnphair", PodsSpec::default().pods(2));
    let _servers = net.serve();
    let pods = INSTANCES.into_iter().flat_map(|node| net.lab().pods_of(node));
    let service = PodService::new("web", "geneve").at(&[GENEVE], &[NODE_PORTS + GENEVE]);
    let _daemons = net.daemons(INSTANCES, &[service.pods(pods, POD_PORT)], "");
    for node in Node::ALL {
        let pod = Pod { node, number: 1 };
        let own = |frontend: SocketAddr| if frontend.is_ipv4() { pod.v4() } else { pod.v6() };
        ask_inside(&Client::new(net.lab().pod(pod).unwrap()), node, own);
        let own = |frontend: SocketAddr| node.at(0)[usize::from(frontend.is_ipv6())].ip();
        ask_inside(&Client::new(net.lab().node(node).unwrap()), node, own);
    }
}

/// Asks all frontends from a pod or a node, many times.
fn ask_inside(client: &Client, node: Node, own: impl Fn(SocketAddr) -> IpAddr) {
    // What a node and its pods send to the node's own addresses never leaves it.
    let node_ports = Node::Balancer.at(NODE_PORTS + GENEVE);
    let node_ports = node_ports.into_iter().filter(|_| node != Node::Balancer);
    for frontend in load_balancer(GENEVE).into_iter().chain(node_ports) {
        let mut by = BTreeSet::new();
        let asked = client.ask_each(frontend, 5000..=5024).unwrap();
        let datagrams = client.ask_udp_each(frontend, 6000..=6024, 2).unwrap();
        for Outcome { port, answer } in asked.into_iter().chain(datagrams) {
            let answer =
                answer.unwrap_or_else(|error| panic!("{node:?} {frontend} from {port}: {error}"));
            // A pod beside the client answers through the frontend, any other one to the client.
            let beside = node_of(&answer) == node;
            let expected = if beside { frontend.ip() } else { own(frontend) };
            assert_eq!(answer.client.ip(), expected, "{node:?}");
            by.insert(answer.backend);
        }
        assert_eq!(by.len(), 6, "{by:?}");
    }
}

#[test]
fn thousands_of_connections_find_their_pods() {
    if without_root() {
        return;
    }
    let (net, servers, daemons) = up("xlbnpmany");
    let client = net.client();
    for port in [GENEVE, SNAT] {
        for frontend in load_balancer(port) {
            for outcome in client.ask_each(frontend, 20_000..=21_499).unwrap() {
                outcome
                    .answer
                    .unwrap_or_else(|error| panic!("{frontend} {}: {error}", outcome.port));
            }
        }
    }
    let connections: u64 = servers.iter().map(|one| one.served().connections).sum();
    assert_eq!(connections, 6000);
    let flows: u64 = daemons[0].stats().frontends.iter().map(|one| one.packets).sum();
    assert!(flows >= 4 * 6000, "{flows} packets");
}
