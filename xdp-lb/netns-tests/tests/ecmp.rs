//! Two balancers with the same configuration behind a router that spreads flows over them (ECMP).
//! One goes, and every connection goes on by the other.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
};

use xdp_lb::lab::{Held, Item, end, host, link, route, sysctl};
use xdp_lb_netns_tests::{
    Daemon, Net, Service, V4, V6, config, near, near6, network, wait_until, without_root,
};

const FOUR: SocketAddr = SocketAddr::new(V4, 80);
const SIX: SocketAddr = SocketAddr::new(V6, 80);
/// Client ports of the connections to each frontend.
const PORTS: RangeInclusive<u16> = 40_000..=40_299;
/// The second balancer beside `balancer`.
const SECOND: &str = "second";
const ROUTES: [(&str, &str, [&str; 2]); 2] = [
    ("-4", "203.0.113.0/24", ["10.0.1.7", "10.0.1.8"]),
    ("-6", "2001:db8:f::/64", ["2001:db8:2:1::7", "2001:db8:2:1::8"]),
];

/// The network of the tests, with a second balancer on the near segment.
fn topology(backends: u8) -> Vec<Item> {
    let mut items = network(backends, 0);
    items.extend([
        host(SECOND),
        link(
            end(SECOND, "eth0")
                .mac("02:00:00:00:01:08")
                .addr("10.0.1.8/24")
                .addr("2001:db8:2:1::8/64"),
            end("near", SECOND),
        ),
        route(SECOND, "0.0.0.0/0", "10.0.1.1"),
        route(SECOND, "::/0", "2001:db8:2:1::1"),
        // By addresses and ports, so that the connections of one client are spread too.
        sysctl("router", "net.ipv4.fib_multipath_hash_policy", "1"),
        sysctl("router", "net.ipv6.fib_multipath_hash_policy", "1"),
    ]);
    items
}

/// Has the router send the services' addresses to these of the two balancers.
fn spread(net: &Net, over: &[usize]) {
    for (family, prefix, hops) in ROUTES {
        let hops: Vec<String> =
            over.iter().map(|index| format!("nexthop via {}", hops[*index])).collect();
        net.ip("router", &format!("{family} route replace {prefix} {}", hops.join(" ")));
    }
}

fn services() -> [Service; 2] {
    [
        Service::new("four", "l2").tcp(FOUR).backends((1..=4).map(near)),
        Service::new("six", "l2").tcp(SIX).backends((1..=4).map(near6)),
    ]
}

/// Packets that a balancer has taken for each frontend, by its address.
fn taken(daemon: &Daemon, frontend: SocketAddr) -> u64 {
    let name = format!("{frontend}/TCP");
    daemon.stats().frontends.iter().find(|one| one.frontend == name).unwrap().packets
}

struct Kept(Vec<(Held, String)>);

impl Kept {
    fn open(net: &Net) -> Self {
        let hold = |frontend| net.client().hold_each(frontend, PORTS).unwrap();
        let kept = [FOUR, SIX].into_iter().flat_map(hold).map(|mut held| {
            let backend = held.ask().unwrap().backend;
            (held, backend)
        });
        Self(kept.collect())
    }

    fn ask(&mut self, when: &str) {
        for (held, backend) in &mut self.0 {
            let answer = held.ask().unwrap_or_else(|error| panic!("{when}: {backend}: {error}"));
            assert_eq!(answer.backend, *backend, "{when}: {}", held.local());
        }
    }
}

#[test]
fn all_connections_go_on_by_the_other_balancer_when_one_goes() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbnecmp", topology(4));
    let text = config(&services());
    // The same objects in another order: the tables must be the same.
    let mut reverse = services();
    reverse.reverse();
    let turned = reverse.map(|service| service.reversed());
    let first = net.balance(&text);
    let second = net.daemon(SECOND, &config(&turned));
    let digests = [&first, &second].map(|one| {
        let all = xdp_lb::maglev_cli::digests(one.pins(), None).unwrap();
        serde_json::to_string(&all).unwrap()
    });
    assert_eq!(digests[0], digests[1]);
    let _servers = net.serve((1..=4).map(|n| format!("b{n}")), &[FOUR, SIX]);

    spread(&net, &[0, 1]);
    let mut kept = Kept::open(&net);
    assert_eq!(kept.0.len(), 600);
    for frontend in [FOUR, SIX] {
        for (name, daemon) in [("first", &first), ("second", &second)] {
            let packets = taken(daemon, frontend);
            assert!(packets > 300, "{name} took {packets} packets for {frontend}");
        }
    }
    kept.ask("with both");

    // The first one dies as a machine does: nothing passes its cable any more.
    net.ip("near", "link set dev balancer down");
    spread(&net, &[1]);
    kept.ask("with the second alone");
    let before: Vec<u64> = [FOUR, SIX].map(|one| taken(&first, one)).to_vec();
    kept.ask("with the second alone, again");
    assert_eq!([FOUR, SIX].map(|one| taken(&first, one)).to_vec(), before);

    // It comes back, and the other one goes. Daemons are not needed for that, once the first one
    // has its next hops again.
    net.ip("near", "link set dev balancer up");
    wait_until("the first one can send", || {
        first.stats().backends.iter().all(|backend| backend.next_hop.is_some())
    });
    first.kill();
    second.kill();
    spread(&net, &[0, 1]);
    kept.ask("with both again");
    spread(&net, &[0]);
    kept.ask("with the first alone");
    for frontend in [FOUR, SIX] {
        for outcome in net.client().ask_each(frontend, 50_000..=50_049).unwrap() {
            outcome.answer.unwrap();
        }
    }
}

#[test]
fn balancers_agree_after_different_histories() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbnhistories", topology(4));
    let _servers = net.serve((1..=4).map(|n| format!("b{n}")), &[FOUR]);
    let with = |backends: &[u8]| {
        let addresses: Vec<IpAddr> = backends.iter().map(|n| near(*n)).collect();
        config(&[Service::new("four", "l2").tcp(FOUR).backends(addresses)])
    };
    // One has seen it all, the other has started just now.
    let mut first = net.balance(&with(&[1]));
    for backends in [&[1, 2][..], &[4, 2, 1], &[2, 4], &[4, 3, 2, 1]] {
        first.reload(&with(backends));
    }
    spread(&net, &[0]);
    let mut held = net.client().hold_each(FOUR, 40_000..=40_199).unwrap();
    let backends: Vec<String> = held.iter_mut().map(|one| one.ask().unwrap().backend).collect();
    let _second = net.daemon(SECOND, &with(&[1, 2, 3, 4]));
    spread(&net, &[1]);
    for (one, backend) in held.iter_mut().zip(&backends) {
        assert_eq!(one.ask().unwrap().backend, *backend, "{}", one.local());
    }
}
