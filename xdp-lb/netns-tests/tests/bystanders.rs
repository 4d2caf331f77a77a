//! Traffic that is not for a frontend passes as it came.

use std::{net::SocketAddr, time::Duration};

use xdp_lb::lab::{Capture, describe};
use xdp_lb_netns_tests::{
    Net, Service, V4, V6, assert_right, config, near, near6, network, vip_at, wait_until,
    without_root,
};

#[test]
fn the_balancers_own_traffic_is_untouched() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbnbystand", network(1, 0));
    let own: [SocketAddr; 4] =
        ["10.0.1.7:22", "[2001:db8:2:1::7]:22", "10.0.1.7:80", "[2001:db8:2:1::7]:80"]
            .map(|text| text.parse().unwrap());
    let _own = net.serve(["balancer"], &own);
    let _servers = net.serve(["b1"], &[vip_at(V4, 80), vip_at(V6, 80)]);
    // Opened before the balancer starts, and kept.
    let mut session = net.client().hold(own[0], None).unwrap();
    let services = [
        Service::new("four", "l2").tcp(vip_at(V4, 80)).backend(near(1)),
        Service::new("six", "l2").tcp(vip_at(V6, 80)).backend(near6(1)),
    ];
    let daemon = net.balance(&config(&services));
    let capture = Capture::start(net.ns("router"), "near").unwrap();
    assert_eq!(session.ask().unwrap().backend, "balancer");
    // Ports of frontends at other addresses are no frontends.
    for address in own {
        assert_eq!(net.client().ask(address, None).unwrap().backend, "balancer");
        net.client().upload(address, 300_000).unwrap();
        net.client().download(address, 300_000).unwrap();
        for length in [0, 1, 1000, 4000] {
            let answer = net.client().ask_udp(address, None, length, 3).unwrap().answer;
            assert_eq!(answer.received, u64::from(length), "fragments included");
        }
    }
    // ARP and neighbour discovery: everyone forgets, and finds each other again.
    for node in ["router", "balancer", "b1"] {
        net.ip(node, "neighbour flush all");
    }
    for address in own {
        assert_eq!(net.client().ask(address, None).unwrap().backend, "balancer");
    }
    // The daemon asks for its backends again by itself.
    for frontend in [vip_at(V4, 80), vip_at(V6, 80)] {
        wait_until("the backend is found again", || net.client().ask(frontend, None).is_ok());
    }
    assert_eq!(session.ask().unwrap().backend, "balancer");
    let recording = capture.stop().unwrap();
    assert_right(&recording);
    let seen =
        |what: &str| recording.frames.iter().any(|frame| describe(&frame.bytes).contains(what));
    assert!(seen("ARP") && seen("neighbour"), "neighbours asked for each other");
    assert!(daemon.reason("not_ip") > 0 && daemon.reason("no_frontend") > 1000);

    // Another port or protocol of a frontend's address is not served, nor answered by the balancer.
    let quick = net.client().timeout(Duration::from_millis(200));
    quick.ask(vip_at(V4, 81), None).unwrap_err();
    quick.ask_udp(vip_at(V4, 80), None, 10, 1).unwrap_err();
    assert_eq!(daemon.stats().backends.len(), 2);
    // The balancer's own requests go out as ever.
    let balancer = xdp_lb::lab::Client::new(net.ns("balancer"));
    let direct = net.serve(["b1"], &[SocketAddr::new(near(1), 8080)]);
    balancer.upload(SocketAddr::new(near(1), 8080), 100_000).unwrap();
    assert_eq!(direct["b1"].served().connections, 1);
}
