//! The cluster of the scenario `pods`: who is in it, its services, and what its nodes are told.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

use crate::lab::{
    Node, Pod, PodsSpec,
    pods::{CLIENTS_4, CLIENTS_6, LOAD_BALANCER_4, LOAD_BALANCER_6},
};

/// Port of all pods.
pub(super) const POD_PORT: u16 = 8080;
/// Nodes with an instance.
pub(super) const INSTANCES: [Node; 3] = [Node::Balancer, Node::Worker, Node::Worker2];
/// IP protocol numbers.
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;

/// A service of the demo.
#[derive(Clone, Copy, Debug)]
pub(super) struct Service {
    pub(super) name: &'static str,
    /// As the configuration writes it
    pub(super) mode: &'static str,
    /// On the LoadBalancer addresses
    pub(super) port: u16,
    pub(super) pods: &'static [Pod],
}

const fn pod(node: Node, number: u8) -> Pod {
    Pod { node, number }
}

/// A service in each mode.
pub(super) const SERVICES: [Service; 4] = [
    Service {
        name: "web",
        mode: "geneve",
        port: 80,
        pods: &[pod(Node::Balancer, 1), pod(Node::Worker, 1), pod(Node::Worker2, 1)],
    },
    Service {
        name: "cache",
        mode: "local",
        port: 81,
        pods: &[pod(Node::Balancer, 1), pod(Node::Balancer, 2)],
    },
    Service {
        name: "old",
        mode: "snat",
        port: 82,
        pods: &[pod(Node::Plain, 1), pod(Node::Plain, 2), pod(Node::Worker2, 2)],
    },
    Service {
        name: "dns",
        mode: "hybrid",
        port: 83,
        pods: &[pod(Node::Worker, 1), pod(Node::Worker, 2), pod(Node::Worker2, 1)],
    },
];

impl Service {
    pub(super) fn node_port(&self) -> u16 {
        30_000 + self.port
    }

    /// Its port on the LoadBalancer addresses.
    pub(super) fn load_balancer(&self) -> [SocketAddr; 2] {
        [LOAD_BALANCER_4, LOAD_BALANCER_6].map(|address| SocketAddr::new(address, self.port))
    }

    /// Where clients find it: both LoadBalancer addresses, and the balancing node's own.
    pub(super) fn frontends(&self) -> [SocketAddr; 4] {
        let [a, b] = self.load_balancer();
        let [c, d] = Node::Balancer.at(self.node_port());
        [a, b, c, d]
    }

    /// How packets get to a pod: `local`, `geneve` or `snat`.
    pub(super) fn way(&self, pod: Pod, protocol: u8) -> &'static str {
        match (self.mode, protocol) {
            _ if pod.node == Node::Balancer => "local",
            ("snat", _) | ("hybrid", UDP) => "snat",
            _ => "geneve",
        }
    }

    fn yaml(&self) -> String {
        let mut text =
            format!("  - name: {}\n    mode: {}\n    frontends:\n", self.name, self.mode);
        for protocol in ["TCP", "UDP"] {
            for socket in self.load_balancer() {
                let (ip, port) = (socket.ip(), socket.port());
                let _ = writeln!(
                    text,
                    "      - {{address: \"{ip}\", port: {port}, protocol: {protocol}}}"
                );
            }
            let port = self.node_port();
            let _ = writeln!(text, "      - {{nodePort: {port}, protocol: {protocol}}}");
        }
        text += "    backends:\n";
        for pod in self.pods {
            for (socket, node) in pod.at(POD_PORT).into_iter().zip(pod.node.at(0)) {
                let _ = writeln!(
                    text,
                    "      - {{address: \"{}\", port: {POD_PORT}, node: \"{}\"}}",
                    socket.ip(),
                    node.ip()
                );
            }
        }
        text
    }
}

/// The lab's links and hosts.
pub(super) fn spec() -> PodsSpec {
    PodsSpec::default().pods(2)
}

/// All pods.
pub(super) fn pods() -> Vec<Pod> {
    Node::ALL.into_iter().flat_map(|node| spec().pods_of(node)).collect()
}

/// The pod of a name.
pub(super) fn pod_named(name: &str) -> Option<Pod> {
    pods().into_iter().find(|pod| pod.name() == name)
}

/// A node's configuration: every instance has the same services.
pub(super) fn config(node: Node) -> String {
    let (v4, v6) = (node.pod_network_4(), node.pod_network_6());
    let mut text = format!(
        "hashKey: \"4f0c6d1be2a94b7f8d35c6a1907e2b58\"\n\
         devices: [{{name: eth0}}]\n\
         terminate:\n\
         \x20 peers: [10.0.0.0/24, 10.0.1.0/24, \"2001:db8:10::/64\", \"2001:db8:11::/64\"]\n\
         \x20 pods: [{v4}, \"{v6}\"]\n\
         limits: {{frontends: 64, backends: 256, slots: 1048576, flows: 65536, answers: 65536, \
         natFlows: 65536}}\n\
         services:\n"
    );
    text.extend(SERVICES.iter().map(Service::yaml));
    text
}

/// The client's address of a family.
pub(super) fn client(v6: bool) -> IpAddr {
    if v6 { CLIENTS_6[0] } else { CLIENTS_4[0] }
}

/// The balancing node's address of a family.
pub(super) fn balancer(v6: bool) -> IpAddr {
    if v6 { Node::Balancer.v6() } else { Node::Balancer.v4() }
}

/// The name of the node that a MAC address belongs to.
pub(super) fn owner(mac: [u8; 6]) -> &'static str {
    match mac {
        [2, 0, 0, 0, 2, 2] => "client",
        [2, 0, 0, 0, _, 0xfe] => "router",
        mac => Node::ALL.into_iter().find(|node| node.mac() == mac).map_or("?", Node::name),
    }
}

/// The network, for people.
pub(super) const PICTURE: &str = "\
client ── router ─┬─ balancer  10.0.0.1  2001:db8:10::1 ── balancer-pod1 and 2
                  │  balances, and has pods of its own
                  ├─ worker    10.0.0.2  2001:db8:10::2 ── worker-pod1 and 2
                  ├─ plain     10.0.0.4  2001:db8:10::4 ── plain-pod1 and 2
                  │  runs no instance
                  └─ worker2   10.0.1.3  2001:db8:11::3 ── worker2-pod1 and 2";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn the_configurations_are_right() {
        for node in INSTANCES {
            let parsed = config::parse(&config(node))
                .unwrap_or_else(|mistakes| panic!("{}", mistakes.in_file(node.name())));
            assert_eq!(parsed.services.len(), SERVICES.len());
        }
    }

    #[test]
    fn ways_are_those_of_the_modes() {
        let [web, cache, old, dns] = SERVICES;
        assert_eq!(web.way(web.pods[0], TCP), "local");
        assert_eq!(web.way(web.pods[1], UDP), "geneve");
        assert_eq!(cache.way(cache.pods[1], UDP), "local");
        assert_eq!(old.way(old.pods[2], TCP), "snat");
        assert_eq!((dns.way(dns.pods[0], TCP), dns.way(dns.pods[0], UDP)), ("geneve", "snat"));
    }
}
