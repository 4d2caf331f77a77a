//! Packets of all sizes to pods and back: the path's MTU learnt from both ends, datagrams in
//! fragments, packets at the end of their TTL, and large transfers while daemons die.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;
use xdp_lb::lab::{Capture, Client, Node, Pod, PodsSpec, Probe, describe, trace};
use xdp_lb_netns_tests::{
    POD_PORT, PodService, PodsNet, assert_whole, client_towards, load_balancer, wait_for,
    without_root,
};

/// Bytes that a tunnel takes of the path's MTU: IP, UDP, Geneve and its option, for IPv4 and IPv6.
const OVERHEAD: [u32; 2] = [20 + 8 + 8 + 12, 40 + 8 + 8 + 24];

const MODES: [(&str, u16); 3] = [("geneve", 80), ("snat", 82), ("hybrid", 83)];

/// A service in each mode whose only pod is this one.
fn services(pod: Pod) -> Vec<PodService> {
    let service = |(mode, port)| PodService::new(mode, mode).at(&[port], &[]).pods([pod], POD_PORT);
    MODES.into_iter().map(service).collect()
}

#[test]
fn both_ends_learn_the_mtu_of_a_narrow_path() {
    if without_root() {
        return;
    }
    let narrow = [PodsSpec::default().far_mtu(1400), PodsSpec::default().client_mtu(1400)];
    for (spec, far) in narrow.into_iter().zip([true, false]) {
        let net = PodsNet::up("xlbnpmtu", spec.pods(1));
        let _servers = net.serve();
        let pod = Pod { node: Node::Worker2, number: 1 };
        let nodes = [Node::Balancer, Node::Worker2];
        let [balancer, worker2] = net.daemons(nodes, &services(pod), "");
        let inside = Client::new(net.lab().pod(pod).unwrap());
        for (_, port) in MODES {
            for (family, frontend) in load_balancer(port).into_iter().enumerate() {
                // What the client has learnt of this address in another mode.
                net.ns("client").ip("route flush cache").unwrap();
                net.ns("client").ip("-6 route flush cache").unwrap();
                let captures = nodes.map(|node| net.wire(node));
                let client = net.client();
                let up = client.upload(frontend, 500_000).unwrap();
                let down = client.download(frontend, 500_000).unwrap();
                assert_eq!(up.bytes + down.bytes, 1_000_000);
                let path = if far { 1400 } else { 1500 };
                let tunnel = if port == 82 { 0 } else { OVERHEAD[family] };
                let narrowest = (path - tunnel).min(1400);
                assert_eq!(up.path_mtu, narrowest, "{frontend}");
                client.exchange_udp(frontend, None, [1472, 1472], 4).unwrap();
                client.exchange_udp(frontend, None, [8192, 8192], 4).unwrap();
                captures.into_iter().for_each(|one| assert_whole(&one.stop().unwrap()));
            }
        }
        // The pod was told by a router that knows the frontend alone.
        for (family, ip) in load_balancer(1).into_iter().enumerate() {
            let client = SocketAddr::new(client_towards(ip.ip()), 9);
            let learnt = inside.path_mtu(client).unwrap();
            assert_eq!(learnt, 1400, "family {family}, far {far}");
        }
        let forwarded = balancer.reason("icmp_error_forwarded");
        if far {
            assert!(balancer.reason("too_big_answered") > 0);
        } else {
            assert!(forwarded > 0);
        }
        assert_eq!(worker2.reason("answer_malformed"), 0);
    }
}

#[test]
fn datagrams_in_fragments_arrive_both_ways() {
    if without_root() {
        return;
    }
    let net = PodsNet::up("xlbnpfrag", PodsSpec::default().pods(1));
    let _servers = net.serve();
    let nodes = [Node::Balancer, Node::Worker];
    for node in nodes {
        let pod = Pod { node, number: 1 };
        let daemons = net.daemons(nodes, &services(pod), "");
        for (_, port) in MODES {
            for frontend in load_balancer(port) {
                let captures = nodes.map(|node| net.wire(node));
                let outside = Capture::start(net.ns("client"), "eth0").unwrap();
                for (index, lengths) in
                    [[8192, 8192], [60_000, 60_000], [100, 60_000]].into_iter().enumerate()
                {
                    let from = 7000 + index as u16;
                    let answer = net.client().exchange_udp(frontend, Some(from), lengths, 4);
                    let answer =
                        answer.unwrap_or_else(|error| panic!("{frontend} {lengths:?}: {error}"));
                    assert_eq!(answer.answer.backend, pod.name());
                }
                assert_whole(&outside.stop().unwrap());
                captures.into_iter().for_each(|one| assert_whole(&one.stop().unwrap()));
            }
        }
        for daemon in daemons {
            assert_eq!(daemon.reason("fragment_without_first"), 0);
            daemon.kill();
        }
    }
}

#[test]
fn a_trace_through_a_frontend_names_router_nodes_and_frontend() {
    if without_root() {
        return;
    }
    let net = PodsNet::up("xlbnptrace", PodsSpec::default().pods(1));
    let _servers = net.serve();
    let service = |name, port, node| {
        PodService::new(name, "geneve").at(&[port], &[]).pods([Pod { node, number: 1 }], POD_PORT)
    };
    let services = [service("far", 80, Node::Worker), service("here", 81, Node::Balancer)];
    let _daemons = net.daemons([Node::Balancer, Node::Worker], &services, "");
    let routers = ["198.51.100.254", "2001:db8:1::fe"];
    for (port, through) in [(80, &[Node::Balancer, Node::Worker][..]), (81, &[Node::Balancer])] {
        for (index, frontend) in load_balancer(port).into_iter().enumerate() {
            for probe in [Probe::Udp, Probe::Tcp] {
                let hops = trace(net.ns("client"), "eth0", probe, (6000, frontend), 8).unwrap();
                let answers: Vec<_> = hops.iter().filter_map(|hop| hop.answer.as_ref()).collect();
                let from: Vec<String> =
                    answers.iter().map(|answer| answer.from.ip().to_string()).collect();
                let nodes = through.iter().map(|node| node.at(0)[index].ip().to_string());
                let expected: Vec<String> = [routers[index].to_owned()]
                    .into_iter()
                    .chain(nodes)
                    .chain([frontend.ip().to_string()])
                    .collect();
                assert_eq!(from, expected, "{probe:?} {hops:?}");
                for hop in &answers[..answers.len() - 1] {
                    assert!(hop.is_time_exceeded(), "{}", describe(&hop.frame));
                    assert_eq!(hop.quoted.unwrap()[1], frontend, "{}", describe(&hop.frame));
                }
            }
        }
    }
}

#[test]
fn large_transfers_go_on_while_daemons_are_killed() {
    if without_root() {
        return;
    }
    const BYTES: u64 = 4_000_000;
    let net = PodsNet::up("xlbnplarge", PodsSpec::default().pods(1));
    let _servers = net.serve();
    let pods = [Node::Balancer, Node::Worker].map(|node| Pod { node, number: 1 });
    let services =
        MODES.map(|(mode, port)| PodService::new(mode, mode).at(&[port], &[]).pods(pods, POD_PORT));
    let nodes = [Node::Balancer, Node::Worker];
    let mut daemons = nodes.map(|node| Some(net.daemon(node, &services, "")));
    let frontends: Vec<_> = MODES.iter().flat_map(|(_, port)| load_balancer(*port)).collect();
    let held = frontends
        .iter()
        .flat_map(|frontend| net.client().hold_each(*frontend, 7000..=7009).unwrap());
    let mut held: Vec<_> = held.collect();
    let (stop, moved) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let work = |upwards: bool| {
            for frontend in frontends.iter().cycle() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                {
                    let client = net.client();
                    let done = if upwards {
                        client.upload(*frontend, BYTES)
                    } else {
                        client.download(*frontend, BYTES)
                    };
                    let done = done.unwrap_or_else(|error| panic!("{frontend}: {error}"));
                    moved.fetch_add(done.bytes, Ordering::Relaxed);
                }
            }
        };
        let workers = [scope.spawn(move || work(true)), scope.spawn(move || work(false))];
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..2 {
                for (daemon, node) in daemons.iter_mut().zip(nodes) {
                    let one = daemon.take().unwrap();
                    one.signal(Signal::SIGKILL);
                    one.kill();
                    *daemon = Some(net.daemon(node, &services, ""));
                }
                for one in &mut held {
                    one.ask().unwrap();
                }
            }
            wait_for(Duration::from_secs(120), "100 MB have moved", || {
                moved.load(Ordering::Relaxed) >= 100_000_000
            });
        }));
        stop.store(true, Ordering::Relaxed);
        for worker in workers {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}
