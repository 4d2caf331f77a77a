//! Devices: gone and back, several, generic mode.

use std::{
    net::SocketAddr,
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use xdp_lb::lab::{Client, Item, end, host, ip, link, route, switch};
use xdp_lb_netns_tests::{
    Net, Service, V4, V6, config, config_with, near, near6, network, wait_until, without_root,
};

const FOUR: SocketAddr = SocketAddr::new(V4, 80);
const SIX: SocketAddr = SocketAddr::new(V6, 80);

fn services() -> [Service; 2] {
    [
        Service::new("four", "l2").both(FOUR).backends((1..=2).map(near)),
        Service::new("six", "l2").both(SIX).backends((1..=2).map(near6)),
    ]
}

fn is_served(client: &Client) -> bool {
    [FOUR, SIX].into_iter().all(|frontend| {
        client.ask(frontend, None).is_ok() && client.ask_udp(frontend, None, 10, 1).is_ok()
    })
}

#[test]
fn a_device_that_was_deleted_and_made_again_is_served() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbndevice", network(2, 0));
    let _servers = net.serve(["b1", "b2"], &[FOUR, SIX]);
    let mut daemon = net.balance(&config(&services()));
    let client = net.client();
    assert!(is_served(&client));
    let index = daemon.stats().devices[0].ifindex;
    for _ in 0..2 {
        let at = daemon.log().len();
        net.ip("balancer", "link delete dev eth0");
        daemon.wait_for(at, "device eth0 is gone");
        wait_until("the link of the device is unpinned", || daemon.stats().devices.is_empty());

        let at = daemon.log().len();
        let switch = net.ns("near").name();
        net.ip(
            "balancer",
            &format!(
                "link add eth0 address 02:00:00:00:01:07 type veth peer balancer netns {switch}"
            ),
        );
        net.ns("near").receive_xdp("balancer").unwrap();
        for (node, device) in [("near", "balancer"), ("balancer", "eth0")] {
            net.ns(node).tool("ethtool", &format!("-K {device} tx off gro on")).unwrap();
        }
        net.ip("near", "link set dev balancer master br0 up");
        net.ip("balancer", "link set dev eth0 up");
        net.ip("balancer", "address add 10.0.1.7/24 dev eth0");
        net.ip("balancer", "address add 2001:db8:2:1::7/64 dev eth0 nodad");
        net.ip("balancer", "route add default via 10.0.1.1");
        net.ip("balancer", "route add default via 2001:db8:2:1::1");
        daemon.wait_for(at, "eth0 runs in native XDP");
        wait_until("clients are served again", || is_served(&client));
        assert_ne!(daemon.stats().devices[0].ifindex, index);
        for outcome in client.ask_each(FOUR, 40_000..=40_019).unwrap() {
            outcome.answer.unwrap();
        }
    }
}

/// A second client, whose way to the balancer is a device of its own; answers come by the router.
fn second_client() -> Vec<Item> {
    vec![
        host("other"),
        switch("side"),
        link(
            end("other", "eth0").addr("10.9.0.2/24").addr("2001:db8:9::2/64"),
            end("side", "other"),
        ),
        link(
            end("balancer", "eth1").addr("10.9.0.7/24").addr("2001:db8:9::7/64"),
            end("side", "balancer"),
        ),
        link(
            end("other", "back").addr("192.0.2.2/24").addr("2001:db8:a::2/64"),
            end("router", "back").addr("192.0.2.1/24").addr("2001:db8:a::1/64"),
        ),
        route("other", "0.0.0.0/0", "192.0.2.1"),
        route("other", "::/0", "2001:db8:a::1"),
        ip("other", "route add 203.0.113.0/24 via 10.9.0.7 src 192.0.2.2"),
        ip("other", "route add 2001:db8:f::/64 via 2001:db8:9::7 src 2001:db8:a::2"),
    ]
}

#[test]
fn a_frontend_is_served_on_several_devices() {
    if without_root() {
        return;
    }
    let mut items = network(2, 0);
    items.extend(second_client());
    let net = Net::up("xlbndevices", items);
    let _servers = net.serve(["b1", "b2"], &[FOUR, SIX]);
    let both = [("eth0", "native"), ("eth1", "native")];
    let mut daemon = net.balance(&config_with(&both, &services(), ""));
    let other = Client::new(net.ns("other")).timeout(Duration::from_secs(2));
    for frontend in [FOUR, SIX] {
        for client in [&net.client(), &other] {
            for outcome in client.ask_each(frontend, 40_000..=40_019).unwrap() {
                outcome.answer.unwrap();
            }
            client.ask_udp(frontend, None, 100, 3).unwrap();
            client.upload(frontend, 200_000).unwrap();
        }
        let answer = other.ask(frontend, None).unwrap();
        let expected = if frontend.is_ipv4() { "192.0.2.2" } else { "2001:db8:a::2" };
        assert_eq!(answer.client.ip().to_string(), expected);
    }
    // One of them is taken out of the configuration, and comes back.
    daemon.reload_devices(&config(&services()), "detached from eth1");
    assert!(net.has_xdp("balancer", "eth0") && !net.has_xdp("balancer", "eth1"));
    assert!(is_served(&net.client()));
    assert!(!is_served(&other.clone().timeout(Duration::from_millis(200))));
    daemon.reload_devices(&config_with(&both, &services(), ""), "eth1 runs in native XDP");
    assert!(is_served(&net.client()) && is_served(&other));
}

#[test]
fn generic_mode_serves_where_the_configuration_asks_for_it() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbngeneric", network(2, 0));
    let _servers = net.serve(["b1", "b2"], &[FOUR, SIX]);
    let daemon = net.balance(&config_with(&[("eth0", "generic")], &services(), ""));
    assert!(daemon.log().contains("eth0 runs in generic XDP"), "{}", daemon.log());
    assert_eq!(daemon.stats().devices[0].xdp, "generic");
    assert!(net.ip("balancer", "link show dev eth0").contains("xdpgeneric"));
    for frontend in [FOUR, SIX] {
        for outcome in net.client().ask_each(frontend, 40_000..=40_019).unwrap() {
            outcome.answer.unwrap();
        }
        net.client().upload(frontend, 200_000).unwrap();
        net.client().ask_udp(frontend, None, 100, 3).unwrap();
    }
    // The mode changes with the next start.
    daemon.stop();
    let daemon = net.balance(&config(&services()));
    assert!(daemon.log().contains("eth0 runs in native XDP"), "{}", daemon.log());
    assert!(!net.ip("balancer", "link show dev eth0").contains("xdpgeneric"));
    assert!(is_served(&net.client()));
}

#[test]
fn native_or_generic_falls_back_where_the_driver_cannot() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbnfallback", network(2, 0));
    let _servers = net.serve(["b1", "b2"], &[FOUR, SIX]);
    let devices = [("lo", "native-or-generic"), ("eth0", "native-or-generic")];
    let daemon = net.balance(&config_with(&devices, &services(), ""));
    let stats = daemon.stats();
    let modes: Vec<_> = stats.devices.iter().map(|one| (one.device.as_str(), one.xdp)).collect();
    assert_eq!(modes, [("eth0", "native"), ("lo", "generic")]);
    assert!(is_served(&net.client()));
}

#[test]
fn the_mode_of_a_device_changes_while_it_serves() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbnmode", network(2, 0));
    let _servers = net.serve(["b1", "b2"], &[FOUR, SIX]);
    let with = |mode, lo| config_with(&[("eth0", mode), ("lo", lo)], &services(), "");
    let mut daemon = net.balance(&with("native", "generic"));
    let client = net.client();
    daemon.reload_devices(&with("generic", "generic"), "eth0 runs in generic XDP");
    assert!(net.ip("balancer", "link show dev eth0").contains("xdpgeneric"));
    assert!(is_served(&client));
    daemon.reload_devices(&with("native", "generic"), "eth0 runs in native XDP");
    assert!(is_served(&client));
    // What the driver cannot do is said once, and the device goes on as it is.
    daemon.reload_devices(&with("native", "native"), "its driver has no native XDP");
    sleep(Duration::from_secs(3));
    assert_eq!(daemon.log().matches("its driver has no native XDP").count(), 1, "{}", daemon.log());
    assert!(net.ip("balancer", "link show dev lo").contains("xdpgeneric"));
    assert!(is_served(&client));
}

#[test]
fn what_somebody_detaches_is_attached_again() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbndetached", network(2, 0));
    let _servers = net.serve(["b1", "b2"], &[FOUR, SIX]);
    let daemon = net.balance(&config(&services()));
    let client = net.client();
    assert!(is_served(&client));
    let index = daemon.stats().devices[0].ifindex;
    let link = daemon.pins().links().unwrap().pop().unwrap();
    for pin in [daemon.pins().link(&link), daemon.pins().egress("eth0", index)] {
        let bpftool = ["link", "detach", "pinned"];
        let detached = Command::new("bpftool").args(bpftool).arg(pin).status().unwrap();
        assert!(detached.success());
    }
    assert!(!is_served(&client));
    // It looks every thirty seconds.
    let end = Instant::now() + Duration::from_secs(90);
    let said = ["the program from eth0", "the program on the way out of eth0"];
    while !said.iter().all(|text| daemon.log().contains(&format!("somebody detached {text}"))) {
        assert!(Instant::now() < end, "{}", daemon.log());
        sleep(Duration::from_millis(100));
    }
    wait_until("clients are served again", || is_served(&client));
}
