//! From a topology to the commands that build it. Pure: nothing is run here.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use super::{
    LabError,
    topology::{End, Item, Kind, Role},
};

/// Bridge of a switch.
const BRIDGE: &str = "br0";

/// Settings of every node, before it has devices: addresses are usable at once, nothing is learnt
/// from routers, asymmetric routes are welcome (answers of a DSR backend are such), and 10,000
/// connections may knock at the same time.
const EVERY_NODE: &[(&str, &str)] = &[
    ("net.ipv4.conf.all.rp_filter", "0"),
    ("net.ipv4.conf.default.rp_filter", "0"),
    ("net.ipv6.conf.all.accept_dad", "0"),
    ("net.ipv6.conf.default.accept_dad", "0"),
    ("net.ipv6.conf.default.dad_transmits", "0"),
    ("net.ipv6.conf.default.router_solicitations", "0"),
    ("net.ipv6.conf.default.accept_ra", "0"),
    ("net.core.somaxconn", "65535"),
    ("net.ipv4.tcp_max_syn_backlog", "65535"),
    ("net.ipv4.tcp_tw_reuse", "1"),
    // Ports that tests choose: none of them is given to a connection that asks for any.
    ("net.ipv4.ip_local_reserved_ports", "32768-34999,40000-47999,50000-50999"),
];

const ROUTER: &[(&str, &str)] = &[
    ("net.ipv4.ip_forward", "1"),
    ("net.ipv6.conf.all.forwarding", "1"),
    ("net.ipv6.conf.default.forwarding", "1"),
];

/// A switch is silent: no addresses of its own, so no neighbour discovery either.
const SWITCH: &[(&str, &str)] =
    &[("net.ipv6.conf.all.disable_ipv6", "1"), ("net.ipv6.conf.default.disable_ipv6", "1")];

const VIP: &[(&str, &str)] =
    &[("net.ipv4.conf.all.arp_ignore", "1"), ("net.ipv4.conf.all.arp_announce", "2")];

/// What exists already, and what the items of one call add to it.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pub(super) roles: BTreeMap<String, Role>,
    devices: BTreeSet<(String, String)>,
    links: u16,
}

impl Known {
    /// A node is gone, and devices of other nodes with it.
    pub(super) fn forget(&mut self, node: &str, devices: &[(&str, &str)]) {
        self.roles.remove(node);
        self.devices.retain(|(of, name)| of != node && !devices.contains(&(of, name)));
    }
}

/// Commands in the order in which they have to run.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Script {
    /// Nodes to create
    pub(super) create: Vec<String>,
    /// Commands of ip(8) outside of all nodes
    pub(super) links: Vec<String>,
    /// What happens inside each node
    pub(super) nodes: BTreeMap<String, NodeScript>,
}

/// Commands inside one node, in the order of the fields.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct NodeScript {
    /// Settings before the node has devices: key and value
    pub(super) before: Vec<(String, String)>,
    /// Devices whose offloads have to go
    pub(super) plain: Vec<String>,
    /// Those of them that receive what an XDP program at the other end sends back
    pub(super) receive: Vec<String>,
    /// Commands of ip(8)
    pub(super) ip: Vec<String>,
    /// Settings at the end: key and value
    pub(super) after: Vec<(String, String)>,
}

/// Checks `items` and says how to build them. `namespace` gives a node's full name.
pub(super) fn script(
    known: &mut Known,
    items: &[Item],
    namespace: impl Fn(&str) -> String,
) -> Result<Script, LabError> {
    let mut script = Script::default();
    for item in items {
        add(known, &mut script, item, &namespace)
            .map_err(|reason| LabError::Topology { item: format!("{:?}", item.0), reason })?;
    }
    Ok(script)
}

fn add(
    known: &mut Known,
    script: &mut Script,
    item: &Item,
    namespace: &impl Fn(&str) -> String,
) -> Result<(), String> {
    match &item.0 {
        Kind::Node { name, role } => add_node(known, script, name, *role),
        Kind::Link { ends } => add_link(known, script, ends, namespace),
        Kind::Vlan { id, protocol, parent, end } => {
            if !(1..=4094).contains(id) {
                return Err("a VLAN's number is 1 to 4094".into());
            }
            claim(known, end)?;
            let address = option("address", end.mac.as_deref());
            let mtu = option("mtu", end.mtu);
            let line = format!(
                "link add link {parent} name {}{address}{mtu} type vlan protocol {protocol} id {id}",
                end.device
            );
            let node = inside(known, script, &end.node)?;
            node.ip.push(line);
            bring_up(node, end, Role::Host)
        }
        Kind::Vip { node, address } => {
            let address: IpAddr =
                address.parse().map_err(|_| format!("{address:?} is no IP address"))?;
            let node = inside(known, script, node)?;
            node.before.extend(owned(VIP));
            node.ip.push(address_line(IpNet::from(address), "lo"));
            Ok(())
        }
        Kind::Route { node, destination, via } => {
            let to: IpNet =
                destination.parse().map_err(|_| format!("{destination:?} is no IP prefix"))?;
            let by: IpAddr = via.parse().map_err(|_| format!("{via:?} is no IP address"))?;
            if to.addr().is_ipv4() != by.is_ipv4() {
                return Err("destination and neighbour are of different IP versions".into());
            }
            inside(known, script, node)?.ip.push(format!("route add {to} via {by}"));
            Ok(())
        }
        Kind::Sysctl { node, key, value } => {
            if key.contains("..") {
                return Err("a key leads downwards from /proc/sys".into());
            }
            inside(known, script, node)?.after.push((key.clone(), value.clone()));
            Ok(())
        }
        Kind::Ip { node, command } => {
            if command.contains('\n') {
                return Err("one item is one command".into());
            }
            inside(known, script, node)?.ip.push(command.clone());
            Ok(())
        }
    }
}

fn add_node(known: &mut Known, script: &mut Script, name: &str, role: Role) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > 40 || !name.chars().all(plain) {
        return Err("a node's name has 1 to 40 lower-case letters, digits and dashes".into());
    }
    if known.roles.insert(name.to_owned(), role).is_some() {
        return Err("there is a node of this name already".into());
    }
    script.create.push(name.to_owned());
    let node = script.nodes.entry(name.to_owned()).or_default();
    node.before.extend(owned(EVERY_NODE));
    node.ip.push("link set dev lo up".into());
    match role {
        Role::Host => {}
        Role::Router => node.before.extend(owned(ROUTER)),
        Role::Switch => {
            node.before.extend(owned(SWITCH));
            node.ip.push(format!(
                "link add name {BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
            ));
            node.ip.push(format!("link set dev {BRIDGE} up"));
        }
    }
    Ok(())
}

fn add_link(
    known: &mut Known,
    script: &mut Script,
    ends: &[End; 2],
    namespace: &impl Fn(&str) -> String,
) -> Result<(), String> {
    known.links = known.links.wrapping_add(1);
    let mut halves = Vec::new();
    for (index, end) in ends.iter().enumerate() {
        claim(known, end)?;
        let role = role(known, &end.node)?;
        let [high, low] = known.links.to_be_bytes();
        let mac = match &end.mac {
            Some(mac) => checked_mac(mac)?,
            None => format!("02:4c:42:{high:02x}:{low:02x}:{:02x}", index + 1),
        };
        let mtu = option("mtu", end.mtu);
        halves.push(format!(
            "name {}{mtu} address {mac} netns {}",
            end.device,
            namespace(&end.node)
        ));
        let node = script.nodes.entry(end.node.clone()).or_default();
        node.plain.push(end.device.clone());
        bring_up(node, end, role)?;
    }
    script.links.push(format!("link add {} type veth peer {}", halves[0], halves[1]));
    Ok(())
}

fn bring_up(node: &mut NodeScript, end: &End, role: Role) -> Result<(), String> {
    let device = &end.device;
    match role {
        Role::Switch if !end.addresses.is_empty() => {
            return Err("a switch has no addresses".into());
        }
        Role::Switch => {
            node.ip.push(format!("link set dev {device} master {BRIDGE}"));
            node.receive.push(device.clone());
        }
        Role::Host | Role::Router => {}
    }
    node.ip.push(format!("link set dev {device} up"));
    for address in &end.addresses {
        let net: IpNet = address
            .parse()
            .map_err(|_| format!("{address:?} is no IP address with a prefix length"))?;
        node.ip.push(address_line(net, device));
    }
    Ok(())
}

fn address_line(net: IpNet, device: &str) -> String {
    let nodad = if net.addr().is_ipv6() { " nodad" } else { "" };
    format!("address add {net} dev {device}{nodad}")
}

fn claim(known: &mut Known, end: &End) -> Result<(), String> {
    role(known, &end.node)?;
    let name = &end.device;
    let bad = |c: char| c.is_whitespace() || matches!(c, '/' | ':');
    if name.is_empty() || name.len() > 15 || name.contains(bad) || name == "." || name == ".." {
        return Err(format!("{name:?} cannot be a device's name (1 to 15 bytes)"));
    }
    if name == "lo" || !known.devices.insert((end.node.clone(), name.clone())) {
        return Err(format!("{} has a device {name} already", end.node));
    }
    Ok(())
}

fn checked_mac(text: &str) -> Result<String, String> {
    let bytes: Vec<u8> = text
        .split(':')
        .filter(|part| part.len() == 2)
        .filter_map(|part| u8::from_str_radix(part, 16).ok())
        .collect();
    if bytes.len() != 6 || text.len() != 17 || bytes[0] & 1 == 1 {
        return Err(format!("{text:?} is no MAC address of one device"));
    }
    Ok(text.to_owned())
}

fn role(known: &Known, node: &str) -> Result<Role, String> {
    known.roles.get(node).copied().ok_or_else(|| format!("no item above declares {node:?}"))
}

fn inside<'a>(
    known: &Known,
    script: &'a mut Script,
    node: &str,
) -> Result<&'a mut NodeScript, String> {
    role(known, node)?;
    Ok(script.nodes.entry(node.to_owned()).or_default())
}

fn option<T: std::fmt::Display>(word: &str, value: Option<T>) -> String {
    value.map(|value| format!(" {word} {value}")).unwrap_or_default()
}

fn owned(pairs: &[(&str, &str)]) -> impl Iterator<Item = (String, String)> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::topology::{end, host, ip, link, route, router, switch, sysctl, vip, vlan};

    fn plan(items: &[Item]) -> Result<Script, String> {
        script(&mut Known::default(), items, |node| format!("t-{node}")).map_err(|e| e.to_string())
    }

    #[test]
    fn a_link_becomes_one_pair_with_both_ends_up_and_addressed() {
        let script = plan(&[
            host("a"),
            switch("s"),
            link(
                end("a", "eth0").addr("10.0.0.1/24").addr("2001:db8::1/64").mtu(9000),
                end("s", "p1").mac("02:00:00:00:00:09"),
            ),
        ])
        .unwrap();
        assert_eq!(script.create, ["a", "s"]);
        assert_eq!(
            (&script.nodes["a"].receive[..], &script.nodes["s"].receive[..]),
            (&[][..], &["p1".to_owned()][..])
        );
        assert_eq!(
            script.links,
            ["link add name eth0 mtu 9000 address 02:4c:42:00:01:01 netns t-a \
              type veth peer name p1 address 02:00:00:00:00:09 netns t-s"]
        );
        assert_eq!(
            script.nodes["a"].ip,
            [
                "link set dev lo up",
                "link set dev eth0 up",
                "address add 10.0.0.1/24 dev eth0",
                "address add 2001:db8::1/64 dev eth0 nodad"
            ]
        );
        assert_eq!(
            script.nodes["s"].ip[2..],
            ["link set dev br0 up", "link set dev p1 master br0", "link set dev p1 up"]
        );
        assert_eq!(script.nodes["s"].receive, ["p1"]);
        assert!(script.nodes["a"].receive.is_empty());
    }

    #[test]
    fn commands_keep_the_order_of_the_list() {
        let script = plan(&[
            router("r"),
            host("h"),
            link(end("r", "x"), end("h", "y")),
            vlan(7, "x", end("r", "x.7").addr("10.7.0.1/24")),
            ip("r", "rule add pref 5 from all lookup main"),
            route("r", "::/0", "2001:db8::2"),
            vip("r", "203.0.113.10"),
            sysctl("r", "net.ipv4.icmp_ratelimit", "0"),
        ])
        .unwrap();
        let node = &script.nodes["r"];
        assert_eq!(
            node.ip[2..],
            [
                "link add link x name x.7 type vlan protocol 802.1q id 7",
                "link set dev x.7 up",
                "address add 10.7.0.1/24 dev x.7",
                "rule add pref 5 from all lookup main",
                "route add ::/0 via 2001:db8::2",
                "address add 203.0.113.10/32 dev lo",
            ]
        );
        assert_eq!(node.after, [("net.ipv4.icmp_ratelimit".into(), "0".into())]);
        assert!(node.before.contains(&("net.ipv4.ip_forward".into(), "1".into())));
        assert!(node.before.contains(&("net.ipv4.conf.all.arp_ignore".into(), "1".into())));
    }

    #[test]
    fn contradictions_are_refused_by_name() {
        let pair = |a: End, b: End| plan(&[host("a"), switch("s"), link(a, b)]).unwrap_err();
        let cases = [
            (plan(&[host("a"), host("a")]).unwrap_err(), "already"),
            (plan(&[host("A b")]).unwrap_err(), "lower-case"),
            (plan(&[route("a", "::/0", "::1")]).unwrap_err(), "declares \"a\""),
            (plan(&[host("a"), route("a", "0.0.0.0/0", "::1")]).unwrap_err(), "versions"),
            (plan(&[host("a"), vip("a", "203.0.113.10/32")]).unwrap_err(), "no IP address"),
            (plan(&[host("a"), vlan(4095, "x", end("a", "v"))]).unwrap_err(), "4094"),
            (plan(&[host("a"), ip("a", "x\ny")]).unwrap_err(), "one command"),
            (pair(end("a", "x"), end("a", "x")), "already"),
            (pair(end("a", "lo"), end("s", "x")), "already"),
            (pair(end("a", "a-name-that-is-too-long"), end("s", "x")), "device's name"),
            (pair(end("a", "x").addr("10.0.0.1"), end("s", "x")), "prefix length"),
            (pair(end("a", "x"), end("s", "x").addr("10.0.0.1/8")), "switch has no"),
            (pair(end("a", "x").mac("01:00:00:00:00:01"), end("s", "x")), "MAC"),
            (pair(end("a", "x").mac("02:00:00:00:00"), end("s", "x")), "MAC"),
        ];
        for (message, part) in cases {
            assert!(message.contains(part), "{message:?} does not say {part:?}");
        }
    }
}
