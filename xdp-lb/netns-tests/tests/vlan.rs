//! Frames with VLAN tags.
//!
//! The balancer gets clients' packets tagged on a trunk, and sends them to backends on a device
//! without tags. Tags come from user space, since not every kernel has VLAN devices; so what a
//! balancer's own VLAN device adds is left to the packet path's fixtures.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

use xdp_lb::lab::{Capture, Item, Tagger, describe, end, ip, layers, layers::Tag, link, switch};
use xdp_lb_netns_tests::{
    Net, Service, V4, V6, assert_right, config_with, near, near6, network, vip_at, without_root,
};

/// The network, and a trunk from the router to the balancer. The router uses it by `access`.
fn trunk(tags: u16) -> Vec<Item> {
    let mut items = network(2, 0);
    let mtu = 1500 - 4 * tags;
    items.extend([
        switch("trunk"),
        link(end("router", "trunk"), end("trunk", "router")),
        link(end("balancer", "trunk").mac("02:00:00:00:09:07"), end("trunk", "balancer")),
        link(
            end("router", "access").addr("10.7.0.1/24").addr("2001:db8:7::1/64").mtu(mtu),
            end("router", "port").mtu(mtu),
        ),
        // The balancer has no address behind the tags, so nobody there could answer for it.
        ip("router", "neighbour add 10.7.0.7 lladdr 02:00:00:00:09:07 dev access"),
        ip("router", "neighbour add 2001:db8:7::7 lladdr 02:00:00:00:09:07 dev access"),
        ip("router", "route replace 203.0.113.0/24 via 10.7.0.7"),
        ip("router", "route replace 2001:db8:f::/64 via 2001:db8:7::7"),
    ]);
    items
}

fn tagged_traffic_is_served(name: &str, tags: &[Tag]) {
    let net = Net::up(name, trunk(tags.len() as u16));
    let _tagger = Tagger::start(net.ns("router"), "port", "trunk", tags).unwrap();
    let services = [
        Service::new("four", "l2").both(vip_at(V4, 80)).backends((1..=2).map(near)),
        Service::new("six", "l2").both(vip_at(V6, 80)).backends((1..=2).map(near6)),
    ];
    let devices = [("trunk", "native"), ("eth0", "native")];
    let daemon = net.balance(&config_with(&devices, &services, ""));
    let _servers = net.serve(["b1", "b2"], &[vip_at(V4, 80), vip_at(V6, 80)]);
    let trunk = Capture::start(net.ns("trunk"), "balancer").unwrap();
    let near = Capture::start(net.ns("near"), "balancer").unwrap();
    for address in [V4, V6] {
        let frontend = vip_at(address, 80);
        for outcome in net.client().ask_each(frontend, 40_000..=40_019).unwrap() {
            outcome.answer.unwrap();
        }
        for outcome in net.client().ask_udp_each(frontend, 41_000..=41_019, 3).unwrap() {
            outcome.answer.unwrap();
        }
        net.client().upload(frontend, 200_000).unwrap();
        // Answers to pings go back behind the tags that the requests had.
        let text = net.ns("client").tool("ping", &format!("-n -c 1 -W 2 {address}")).unwrap();
        assert!(text.contains("1 received"), "{text}");
    }
    assert_eq!(daemon.reason("echo_answered"), 2);
    let (trunk, near) = (trunk.stop().unwrap(), near.stop().unwrap());
    assert_right(&trunk);
    assert_right(&near);
    let is_request = |frame: &&[u8]| {
        let parsed = layers::frame(frame).unwrap();
        parsed.headers.first().is_some_and(|ip| ip.destination == V4 || ip.destination == V6)
    };
    let (mut came, mut left) = (0, 0);
    for frame in trunk.sent().filter(is_request) {
        assert_eq!(layers::frame(frame).unwrap().tags, tags, "{}", describe(frame));
        came += 1;
    }
    for frame in near.received().filter(is_request) {
        assert_eq!(layers::frame(frame).unwrap().tags, [], "{}", describe(frame));
        left += 1;
    }
    // All that came left, but for the two pings, which went back behind their tags.
    assert_eq!(came, left + 2);
    let back = trunk.received().filter(|frame| {
        let parsed = layers::frame(frame).unwrap();
        parsed.tags == tags && parsed.headers.iter().any(|ip| ip.source == V4 || ip.source == V6)
    });
    assert_eq!(back.count(), 2);
}

#[test]
fn a_tag_is_read_and_taken_off() {
    if without_root() {
        return;
    }
    tagged_traffic_is_served("xlbnvlan", &[Tag { protocol: 0x8100, id: 7 }]);
}

#[test]
fn two_tags_are_read_and_taken_off() {
    if without_root() {
        return;
    }
    let tags = [Tag { protocol: 0x88a8, id: 100 }, Tag { protocol: 0x8100, id: 7 }];
    tagged_traffic_is_served("xlbnqinq", &tags);
}
