//! What changes around the balancer: MAC addresses, routes, backends that go down.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

use std::{net::SocketAddr, time::Duration};

use xdp_lb::lab::{Capture, end, layers, link, route, router, sysctl};
use xdp_lb_netns_tests::{
    Net, Service, V4, V6, config, far, far6, near, near6, network, wait_until, without_root,
};

const FOUR: SocketAddr = SocketAddr::new(V4, 80);
const SIX: SocketAddr = SocketAddr::new(V6, 80);

fn all_served(net: &Net) -> bool {
    let client = net.client().timeout(Duration::from_millis(500));
    [FOUR, SIX].into_iter().all(|frontend| {
        let outcomes = client.ask_each(frontend, 50_000..=50_015).unwrap();
        outcomes.iter().all(|outcome| outcome.answer.is_ok())
    })
}

#[test]
fn a_backend_with_a_new_mac_address_is_found_again() {
    if without_root() {
        return;
    }
    let mut items = network(2, 0);
    // As a host that takes over an address announces itself.
    items.push(sysctl("b1", "net.ipv4.conf.eth0.arp_notify", "1"));
    items.push(sysctl("b1", "net.ipv6.conf.eth0.ndisc_notify", "1"));
    let net = Net::up("xlbnmac", items);
    let _servers = net.serve(["b1", "b2"], &[FOUR, SIX]);
    let services = [
        Service::new("four", "l2").tcp(FOUR).backends((1..=2).map(near)),
        Service::new("six", "l2").tcp(SIX).backends((1..=2).map(near6)),
    ];
    let daemon = net.balance(&config(&services));
    assert!(all_served(&net));
    let new = "02:00:00:00:0a:0a";
    net.ip("b1", &format!("link set dev eth0 address {new}"));
    wait_until("the new address is in the tables", || {
        let stats = daemon.stats();
        stats.backends.iter().filter(|one| one.next_hop.as_deref() == Some(new)).count() == 2
    });
    wait_until("all are served", || all_served(&net));
}

#[test]
fn traffic_follows_the_route_to_another_router() {
    if without_root() {
        return;
    }
    let mut items = network(0, 2);
    items.extend([
        router("second"),
        link(
            end("second", "near").addr("10.0.1.2/24").addr("2001:db8:2:1::2/64"),
            end("near", "second"),
        ),
        link(
            end("second", "far").addr("10.0.2.2/24").addr("2001:db8:2:2::2/64"),
            end("far", "second"),
        ),
        route("second", "0.0.0.0/0", "10.0.2.1"),
    ]);
    let net = Net::up("xlbnroute", items);
    let _unwrapping = net.terminate(["t1", "t2"]);
    let _servers = net.serve(["t1", "t2"], &[FOUR, SIX]);
    let services = [
        Service::new("four", "ipip").tcp(FOUR).backends((1..=2).map(far)),
        Service::new("six", "ipip").tcp(SIX).backends((1..=2).map(far6)),
    ];
    let daemon = net.balance(&config(&services));
    assert!(all_served(&net));
    let mut held = net.client().hold_each(FOUR, 42_000..=42_009).unwrap();

    net.ip("balancer", "route add 10.0.2.0/24 via 10.0.1.2");
    net.ip("balancer", "route add 2001:db8:2:2::/64 via 2001:db8:2:1::2");
    let hops = || {
        let mut hops: Vec<_> =
            daemon.stats().backends.into_iter().map(|one| one.next_hop).collect();
        hops.dedup();
        hops
    };
    let second = net.ip("second", "-br link show dev near");
    let second = second.split_whitespace().nth(2).unwrap().to_owned();
    wait_until("the tables name the second router", || hops() == [Some(second.clone())]);
    let capture = Capture::start(net.ns("second"), "near").unwrap();
    assert!(all_served(&net));
    for one in &mut held {
        one.ask().unwrap();
    }
    let recording = capture.stop().unwrap();
    let wrapped = recording
        .received()
        .filter(|frame| layers::frame(frame).is_ok_and(|frame| frame.headers.len() == 2));
    assert!(wrapped.count() > 100, "requests pass the second router");

    // And back.
    net.ip("balancer", "route delete 10.0.2.0/24 via 10.0.1.2");
    net.ip("balancer", "route delete 2001:db8:2:2::/64 via 2001:db8:2:1::2");
    wait_until("the tables name the first router", || hops() != [Some(second.clone())]);
    net.ip("second", "link set dev near down");
    wait_until("all are served", || all_served(&net));
    for one in &mut held {
        one.ask().unwrap();
    }
}

#[test]
fn a_backend_that_is_down_takes_none_but_its_own_flows_with_it() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbndown", network(3, 0));
    let servers = net.serve(["b1", "b2", "b3"], &[FOUR, SIX]);
    let services = [
        Service::new("four", "l2").tcp(FOUR).backends((1..=3).map(near)),
        Service::new("six", "l2").tcp(SIX).backends((1..=3).map(near6)),
    ];
    let _daemon = net.balance(&config(&services));
    let mut held: Vec<_> = [FOUR, SIX]
        .into_iter()
        .flat_map(|frontend| net.client().hold_each(frontend, 40_000..=40_029).unwrap())
        .map(|mut one| {
            let backend = one.ask().unwrap().backend;
            (one, backend)
        })
        .collect();
    net.ip("b2", "link set dev eth0 down");
    for (one, backend) in &mut held {
        if backend != "b2" {
            assert_eq!(one.ask().unwrap().backend, *backend);
        }
    }
    assert!(held.iter().filter(|(_, backend)| backend == "b2").count() > 5);
    assert!(servers["b2"].served().requests > 0);
    net.ip("b2", "link set dev eth0 up");
    net.ip("b2", "route add default via 10.0.1.1");
    // The kernel takes IPv6 addresses away with the link.
    net.ip("b2", "address replace 2001:db8:2:1::12/64 dev eth0 nodad");
    net.ip("b2", "route replace default via 2001:db8:2:1::1");
    wait_until("all are served", || all_served(&net));
}

#[test]
fn a_backend_that_nobody_answers_for_is_counted_and_the_others_serve() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbnnobody", network(2, 0));
    let _servers = net.serve(["b1"], &[FOUR, SIX]);
    let lost = SocketAddr::new(V4, 81);
    let services = [
        Service::new("four", "l2").tcp(FOUR).backend(near(1)),
        Service::new("six", "l2").tcp(SIX).backend(near6(1)),
        // Nobody has this address; and one behind the router, where mode l2 cannot reach.
        Service::new("lost", "l2").tcp(lost).backend(near(9)),
        Service::new("routed", "l2").tcp(SocketAddr::new(V4, 82)).backend(far(1)),
    ];
    let mut daemon = net.balance(&config(&services));
    daemon.wait_for(0, "no path to 10.0.1.19: 10.0.1.19 does not answer on eth0");
    daemon.wait_for(0, "no path to 10.0.2.11: it is behind the router 10.0.1.1");
    assert!(all_served(&net));
    let quick = net.client().timeout(Duration::from_millis(100));
    let before = daemon.reason("no_next_hop");
    quick.ask(lost, None).unwrap_err();
    quick.ask(SocketAddr::new(V4, 82), None).unwrap_err();
    assert!(daemon.reason("no_next_hop") >= before + 2);

    // It is there as soon as somebody answers.
    let at = daemon.log().len();
    net.ip("b2", "address add 10.0.1.19/24 dev eth0");
    let _server = net.serve(["b2"], &[lost]);
    wait_until("the backend that came late serves", || {
        quick.ask(lost, None).is_ok_and(|answer| answer.backend == "b2")
    });
    daemon.wait_for(at, "there is a path to 10.0.1.19 again");
}
