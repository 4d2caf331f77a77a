//! The demo's network: who is in it, where, and what each of them is told.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use crate::lab::{Item, end, host, link, route, router, switch, vip};

/// Port of every service.
pub(super) const PORT: u16 = 80;
/// The balancer's node.
pub(super) const BALANCER: &str = "lb";
/// The switch that the balancer and the `l2` backends are plugged into.
pub(super) const SWITCH: &str = "switch-a";
/// The balancer's port of it: what passes there is all that the balancer receives and sends.
pub(super) const BALANCER_PORT: &str = "lb";

/// A host behind the router.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Host {
    /// Name of its node
    pub(super) node: &'static str,
    segment: Segment,
    /// Last part of its addresses
    number: u8,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Segment {
    A,
    B,
}

impl Host {
    const fn new(node: &'static str, segment: Segment, number: u8) -> Self {
        Self { node, segment, number }
    }

    pub(super) fn v4(&self) -> IpAddr {
        Ipv4Addr::new(10, 0, self.segment.number(), self.number).into()
    }

    pub(super) fn v6(&self) -> IpAddr {
        // The number is written as in the IPv4 address, so that people see the same digits.
        let digits = u16::from_str_radix(&self.number.to_string(), 16).unwrap_or_default();
        Ipv6Addr::new(0x2001, 0xdb8, self.segment.letter(), 0, 0, 0, 0, digits).into()
    }

    fn mac(&self) -> [u8; 6] {
        [2, 0, 0, 0, self.segment.number(), self.number]
    }
}

impl Segment {
    fn number(self) -> u8 {
        match self {
            Self::A => 1,
            Self::B => 2,
        }
    }

    fn letter(self) -> u16 {
        match self {
            Self::A => 0xa,
            Self::B => 0xb,
        }
    }

    fn switch(self) -> &'static str {
        match self {
            Self::A => SWITCH,
            Self::B => "switch-b",
        }
    }

    /// The router's device here.
    fn device(self) -> &'static str {
        match self {
            Self::A => "seg-a",
            Self::B => "seg-b",
        }
    }

    /// The router, as hosts of this segment see it.
    fn router(self) -> Host {
        Host::new("router", self, 1)
    }
}

/// A host beside the balancer.
pub(super) const fn beside(node: &'static str, number: u8) -> Host {
    Host::new(node, Segment::A, number)
}

/// A host behind the router.
pub(super) const fn behind(node: &'static str, number: u8) -> Host {
    Host::new(node, Segment::B, number)
}

/// The balancer.
pub(super) const LB: Host = Host::new(BALANCER, Segment::A, 10);
/// Backends beside the balancer.
pub(super) const NEAR: [Host; 3] = [
    Host::new("b1", Segment::A, 11),
    Host::new("b2", Segment::A, 12),
    Host::new("b3", Segment::A, 13),
];
/// Backends behind the router.
pub(super) const FAR: [Host; 3] = [
    Host::new("t1", Segment::B, 21),
    Host::new("t2", Segment::B, 22),
    Host::new("t3", Segment::B, 23),
];

const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// The client's addresses.
pub(super) const CLIENT: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2)),
];

/// A service of the demo.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Service {
    pub(super) name: &'static str,
    /// As the configuration writes it
    pub(super) mode: &'static str,
    number: u8,
    pub(super) hosts: [Host; 3],
    pub(super) weights: [u16; 3],
    /// Whether the configuration names the backends by their IPv6 addresses
    v6: bool,
}

/// All services: `l2`, and `ipip` with either version of IP outside.
pub(super) const SERVICES: [Service; 3] = [
    Service { name: "web", mode: "l2", number: 10, hosts: NEAR, weights: [1, 1, 2], v6: false },
    Service { name: "api", mode: "ipip", number: 20, hosts: FAR, weights: [1; 3], v6: false },
    Service { name: "api6", mode: "ipip", number: 30, hosts: FAR, weights: [1; 3], v6: true },
];

impl Service {
    /// Its frontends over IPv4 and IPv6.
    pub(super) fn frontends(&self) -> [SocketAddr; 2] {
        frontends(self.number)
    }

    /// The address by which the configuration names a backend.
    pub(super) fn address(&self, host: &Host) -> IpAddr {
        if self.v6 { host.v6() } else { host.v4() }
    }

    /// What a frontend's packets look like on their way to a backend.
    pub(super) fn form(&self, frontend: SocketAddr) -> &'static str {
        match (self.mode, self.v6, frontend.is_ipv6()) {
            ("ipip", false, false) => "IPv4 in IPv4",
            ("ipip", false, true) => "IPv6 in IPv4",
            ("ipip", true, false) => "IPv4 in IPv6",
            ("ipip", true, true) => "IPv6 in IPv6",
            _ => "destination MAC address replaced",
        }
    }
}

/// The frontends over IPv4 and IPv6 whose addresses end with these digits.
pub(super) fn frontends(number: u8) -> [SocketAddr; 2] {
    let digits = u16::from_str_radix(&number.to_string(), 16).unwrap_or_default();
    let v4 = Ipv4Addr::new(203, 0, 113, number);
    let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, digits);
    [SocketAddr::new(v4.into(), PORT), SocketAddr::new(v6.into(), PORT)]
}

/// The name of the node that a MAC address belongs to.
pub(super) fn owner(mac: [u8; 6]) -> &'static str {
    let hosts = [LB].into_iter().chain(NEAR).chain(FAR);
    let routers = [Segment::A.router(), Segment::B.router()];
    match mac {
        CLIENT_MAC => "client",
        ROUTER_MAC => "router",
        mac => hosts.chain(routers).find(|host| host.mac() == mac).map_or("?", |host| host.node),
    }
}

/// The router's device to a segment: that of the backends behind it.
pub(super) fn far_device() -> &'static str {
    Segment::B.device()
}

/// The router's device to the balancer's segment.
pub(super) fn near_device() -> &'static str {
    Segment::A.device()
}

/// A lab's items: the client, the router, the balancer and these hosts, each with the services'
/// addresses that it serves.
pub(super) fn topology(hosts: &[(Host, Vec<IpAddr>)]) -> Vec<Item> {
    let [client4, client6] = CLIENT;
    let mut items = vec![
        host("client"),
        router("router"),
        link(
            end("client", "eth0")
                .mac(&text(CLIENT_MAC))
                .addr(&format!("{client4}/24"))
                .addr(&format!("{client6}/64")),
            end("router", "clients")
                .mac(&text(ROUTER_MAC))
                .addr("198.51.100.1/24")
                .addr("2001:db8:1::1/64"),
        ),
        route("client", "0.0.0.0/0", "198.51.100.1"),
        route("client", "::/0", "2001:db8:1::1"),
    ];
    for segment in [Segment::A, Segment::B] {
        items.push(switch(segment.switch()));
        items.push(link(
            at(end("router", segment.device()), &segment.router()),
            end(segment.switch(), "router"),
        ));
    }
    for one in [LB].iter().chain(hosts.iter().map(|(host, _)| host)) {
        items.push(host(one.node));
        let port = end(one.segment.switch(), one.node);
        items.push(link(at(end(one.node, "eth0"), one), port));
        let router = one.segment.router();
        items.push(route(one.node, "0.0.0.0/0", &router.v4().to_string()));
        items.push(route(one.node, "::/0", &router.v6().to_string()));
    }
    for (one, addresses) in hosts {
        items.extend(addresses.iter().map(|address| vip(one.node, &address.to_string())));
    }
    items.push(route("router", "203.0.113.0/24", &LB.v4().to_string()));
    items.push(route("router", "2001:db8:f::/64", &LB.v6().to_string()));
    items
}

/// The hosts of [`SERVICES`], each with the frontends that it serves.
pub(super) fn servers() -> Vec<(Host, Vec<SocketAddr>)> {
    let of = |host: Host| {
        let services = SERVICES.iter().filter(|service| service.hosts.contains(&host));
        (host, services.flat_map(|service| service.frontends()).collect())
    };
    NEAR.into_iter().chain(FAR).map(of).collect()
}

fn at(end: crate::lab::End, host: &Host) -> crate::lab::End {
    end.mac(&text(host.mac())).addr(&format!("{}/24", host.v4())).addr(&format!("{}/64", host.v6()))
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The network in 80 columns.
pub(super) fn picture() -> String {
    let mut lines = [
        "client ── router ─┬─ segment A ─┬─ ".to_owned(),
        "                  │             ├─ ".to_owned(),
        "                  │             ├─ ".to_owned(),
        "                  │             └─ ".to_owned(),
        "                  └─ segment B ─┬─ ".to_owned(),
        "                                ├─ ".to_owned(),
        "                                └─ ".to_owned(),
    ];
    let parts = ["balances", "┐", "│ serve web", "┘", "┐", "│ api, api6", "┘"];
    let hosts = [LB].into_iter().chain(NEAR).chain(FAR);
    for ((line, part), host) in lines.iter_mut().zip(parts).zip(hosts) {
        let (v4, v6) = (host.v4().to_string(), host.v6().to_string());
        let _ = write!(line, "{}  {v4:9}  {v6:14}  {part}", host.node);
    }
    lines.join("\n")
}

/// Names the file of the balancer's configuration, at its top.
const HEAD: &str = "\
# Written by `xdp-lb demo`. The daemon looks at this file every second: edit it, and see.
";

/// What both kinds of instances are told.
const COMMON: &str = "\
hashKey: \"6d61676c65762064656d6f206b657921\"
devices:
  - {name: eth0, xdp: native}
# Small tables: the demo runs several instances on one machine.
limits: {frontends: 64, backends: 64, slots: 65536, flows: 65536}
";

/// The head of every configuration.
pub(super) fn head() -> String {
    format!("{HEAD}{COMMON}")
}

/// What becomes of a backend of the first service.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Change {
    /// All backends serve
    None,
    /// The backend has weight 0: no new connections
    Drained(Host),
    /// The file does not name the backend any more
    Removed(Host),
}

/// The balancer's configuration.
pub(super) fn balancer(change: Change) -> String {
    let mut text = format!("{}services:\n", head());
    for service in &SERVICES {
        let _ = writeln!(text, "  - name: {}\n    mode: {}", service.name, service.mode);
        text.push_str("    frontends:\n");
        for frontend in service.frontends() {
            let address = quoted(frontend.ip());
            let _ = writeln!(text, "      - {{address: {address}, port: {PORT}}}");
        }
        text.push_str("    backends:\n");
        for (host, weight) in service.hosts.iter().zip(service.weights) {
            let weight = match change {
                Change::Removed(removed) if removed == *host => continue,
                Change::Drained(drained) if drained == *host => 0,
                Change::None | Change::Drained(_) | Change::Removed(_) => weight,
            };
            let address = quoted(service.address(host));
            let _ =
                writeln!(text, "      - {{address: {address}, weight: {weight}}}  # {}", host.node);
        }
    }
    text
}

/// The configuration of a host behind the router: unwrap what the balancer sends.
pub(super) fn terminator() -> String {
    let (v4, v6) = (LB.v4(), LB.v6());
    format!("{}terminate:\n  peers: [{v4}/32, \"{v6}/128\"]\n", head())
}

/// An address as YAML wants it.
pub(super) fn quoted(address: IpAddr) -> String {
    if address.is_ipv6() { format!("\"{address}\"") } else { address.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn the_daemons_take_their_configurations() {
        let whole = config::parse(&balancer(Change::None)).unwrap();
        assert_eq!(whole.services.len(), SERVICES.len());
        let [_, b2, _] = NEAR;
        let drained = config::parse(&balancer(Change::Drained(b2))).unwrap();
        assert_eq!(drained.services[0].backends[1].weight, 0);
        let removed = config::parse(&balancer(Change::Removed(b2))).unwrap();
        assert_eq!(removed.services[0].backends.len(), 2);
        assert_eq!(removed.services[1..], whole.services[1..]);
        let terminate = config::parse(&terminator()).unwrap().terminate.unwrap();
        assert_eq!(terminate.peers.len(), 2);
    }

    #[test]
    fn addresses_of_a_host_are_of_one_kind() {
        let [_, t2, _] = FAR;
        assert_eq!(
            (t2.v4().to_string(), t2.v6().to_string()),
            ("10.0.2.22".to_owned(), "2001:db8:b::22".to_owned())
        );
        assert_eq!(owner(t2.mac()), "t2");
        assert_eq!(owner([2; 6]), "?");
    }

    #[test]
    fn the_picture_fits_and_names_every_host() {
        let picture = picture();
        assert!(picture.lines().all(|line| line.chars().count() <= 78), "{picture}");
        for host in [LB].iter().chain(&NEAR).chain(&FAR) {
            assert!(picture.contains(&host.v4().to_string()), "{picture}");
        }
    }
}
