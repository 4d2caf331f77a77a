//! The network of the tests.
//!
//! ```text
//!                           near 10.0.1.0/24, 2001:db8:2:1::/64
//! client ─── router ──┬──── balancer (.7), b1 (.11), b2 (.12), …
//!  .2     .1          └──── far  10.0.2.0/24, 2001:db8:2:2::/64
//! 198.51.100.0/24           t1 (.11), t2 (.12), …
//! ```
//! The router sends the services' addresses to the balancer; every backend has them on its loopback.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use xdp_lb::lab::{
    Client, Item, Lab, Namespace, Server, ServerSpec, end, host, link, route, router, switch, vip,
};

use crate::{Daemon, Scratch, config_with, daemon::run};

/// Addresses of services.
pub const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10));
/// An IPv6 address of services.
pub const V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, 0x10));
/// For services whose packets travel in IPv6.
pub const V4_OVER_6: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 46));
/// For services whose packets travel in IPv4.
pub const V6_OVER_4: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, 0x64));

/// A service's socket address.
pub fn vip_at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

/// IPv4 address of backend `b{n}`, on the balancer's segment.
pub fn near(n: u8) -> IpAddr {
    text(&format!("10.0.1.{}", n + 10))
}

/// IPv6 address of backend `b{n}`.
pub fn near6(n: u8) -> IpAddr {
    text(&format!("2001:db8:2:1::{}", n + 10))
}

/// IPv4 address of backend `t{n}`, behind the router.
pub fn far(n: u8) -> IpAddr {
    text(&format!("10.0.2.{}", n + 10))
}

/// IPv6 address of backend `t{n}`.
pub fn far6(n: u8) -> IpAddr {
    text(&format!("2001:db8:2:2::{}", n + 10))
}

fn text(address: &str) -> IpAddr {
    address.parse().unwrap()
}

/// The name of the backend with this address.
pub fn host_name(address: IpAddr) -> String {
    for n in 1..=9 {
        if address == near(n) || address == near6(n) {
            return format!("b{n}");
        }
        if address == far(n) || address == far6(n) {
            return format!("t{n}");
        }
    }
    panic!("{address} is no backend");
}

/// The items of the network with so many backends.
pub fn network(near: u8, far: u8) -> Vec<Item> {
    let mut items = vec![
        host("client"),
        router("router"),
        link(
            end("client", "eth0").addr("198.51.100.2/24").addr("2001:db8:1::2/64"),
            end("router", "clients").addr("198.51.100.1/24").addr("2001:db8:1::1/64"),
        ),
        route("client", "0.0.0.0/0", "198.51.100.1"),
        route("client", "::/0", "2001:db8:1::1"),
    ];
    for (segment, number, letter, count) in [("near", 1, "b", near), ("far", 2, "t", far)] {
        items.push(switch(segment));
        items.push(link(
            end("router", segment)
                .addr(&format!("10.0.{number}.1/24"))
                .addr(&format!("2001:db8:2:{number}::1/64")),
            end(segment, "router"),
        ));
        let mut hosts: Vec<(String, u8)> =
            (1..=count).map(|n| (format!("{letter}{n}"), n + 10)).collect();
        if number == 1 {
            hosts.push(("balancer".to_owned(), 7));
        }
        for (name, id) in hosts {
            items.push(host(&name));
            items.push(link(
                end(&name, "eth0")
                    .mac(&format!("02:00:00:00:0{number}:{id:02}"))
                    .addr(&format!("10.0.{number}.{id}/24"))
                    .addr(&format!("2001:db8:2:{number}::{id}/64")),
                end(segment, &name),
            ));
            items.push(route(&name, "0.0.0.0/0", &format!("10.0.{number}.1")));
            items.push(route(&name, "::/0", &format!("2001:db8:2:{number}::1")));
            if name != "balancer" {
                items
                    .extend([V4, V6, V4_OVER_6, V6_OVER_4].map(|one| vip(&name, &one.to_string())));
            }
        }
    }
    items.push(route("router", "203.0.113.0/24", "10.0.1.7"));
    items.push(route("router", "2001:db8:f::/64", "2001:db8:2:1::7"));
    items
}

/// A network that is up, and the scratch space of its test.
#[derive(Debug)]
pub struct Net {
    scratch: Scratch,
    lab: Lab,
}

impl Net {
    /// Builds a network; `name` (lower-case letters and digits) is the test's own.
    pub fn up(name: &str, items: impl AsRef<[Item]>) -> Self {
        let lab = Lab::build(name, items).unwrap();
        Self { scratch: Scratch::new(name), lab }
    }

    /// Files and pins.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// A node.
    pub fn ns(&self, node: &str) -> &Namespace {
        self.lab.ns(node).unwrap()
    }

    /// Runs a command of ip(8) in a node.
    pub fn ip(&self, node: &str, arguments: &str) -> String {
        self.ns(node).ip(arguments).unwrap()
    }

    /// The client, with little patience.
    pub fn client(&self) -> Client {
        Client::new(self.ns("client")).timeout(Duration::from_secs(2))
    }

    /// Adds to the network.
    pub fn add(&mut self, items: impl AsRef<[Item]>) {
        self.lab.add(items).unwrap();
    }

    /// Servers for TCP and UDP in these nodes, by name.
    pub fn serve(
        &self,
        nodes: impl IntoIterator<Item = impl AsRef<str>>,
        sockets: &[SocketAddr],
    ) -> BTreeMap<String, Server> {
        let start = |node: &str| {
            let spec = sockets
                .iter()
                .fold(ServerSpec::named(node), |spec, &socket| spec.http(socket).udp(socket));
            (node.to_owned(), spec.start(self.ns(node)).unwrap())
        };
        nodes.into_iter().map(|node| start(node.as_ref())).collect()
    }

    /// The daemon in the balancer.
    pub fn balance(&self, config: &str) -> Daemon {
        self.daemon("balancer", config)
    }

    /// A daemon in a node, serving.
    pub fn daemon(&self, node: &str, config: &str) -> Daemon {
        run(&self.scratch, self.ns(node), node, config, &[])
            .unwrap_or_else(|ended| panic!("{ended}"))
    }

    /// Daemons that unwrap tunnel packets in these nodes.
    pub fn terminate(&self, nodes: impl IntoIterator<Item = impl AsRef<str>>) -> Vec<Daemon> {
        let peers =
            format!("terminate: {{peers: [{}, \"{}\"]}}", crate::SOURCE_V4, crate::SOURCE_V6);
        let config = config_with(&[("eth0", "native")], &[], &peers);
        nodes.into_iter().map(|node| self.daemon(node.as_ref(), &config)).collect()
    }

    /// Whether an XDP program is attached to a device, as ip(8) sees it.
    pub fn has_xdp(&self, node: &str, device: &str) -> bool {
        let links = self.ip(node, &format!("-j -d link show dev {device}"));
        let links: serde_json::Value = serde_json::from_str(&links).unwrap();
        links[0].get("xdp").is_some()
    }
}
