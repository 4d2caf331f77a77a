//! A lab of Kubernetes-like nodes: each is a router for the pods behind it.
//!
//! ```text
//!                        near 10.0.0.0/24, 2001:db8:10::/64
//! client ─── router ──┬──── balancer (.1) ── pods 10.244.1.0/24, fd00:244:1::/64
//!  .2         .254    ├──── worker (.2) ──── pods 10.244.2.0/24, fd00:244:2::/64
//! 198.51.100.0/24     ├──── plain (.4) ───── pods 10.244.4.0/24, fd00:244:4::/64
//! 2001:db8:1::/64     │  far 10.0.1.0/24, 2001:db8:11::/64
//!                     └──── worker2 (.3) ─── pods 10.244.3.0/24, fd00:244:3::/64
//! ```
//!
//! - The router sends 203.0.113.0/24 and 2001:db8:80::/64 to the balancer, and all packets of nodes
//!   and pods to the client straight. An address of these prefixes that no frontend has comes back
//!   to the router by the balancer's default route, as with a real router.
//! - Everyone reaches nodes and pods by routes, without any translation; so an answer that nobody
//!   translates comes to the client from the pod's own address, where a capture shows it.
//! - A pod is a namespace with addresses of its own alone (/32, /128) behind a veth pair; its
//!   gateway is the node's end, which has the same address for every pod (.1).
//! - Nodes, balancers included, forward packets, so each counts down their TTL.
//! - ICMP errors are not limited in number.
//! - Nodes' `eth0` may send frames back by XDP. For an XDP program on a node's `podN`, prepare the
//!   pod with [`Namespace::receive_xdp`].
//!
//! ```no_run
//! use xdp_lb::lab::{Capture, Client, Node, PodsSpec};
//!
//! let lab = PodsSpec::default().far_mtu(1400).up("example")?;
//! let pod = lab.pods_of(Node::Worker2)[0];
//! let _server = lab.serve(pod, 8080)?;
//! // What the node sends and receives, as the switch sees it: XDP hides nothing there.
//! let wire = Capture::start(lab.ns(Node::Worker2.segment())?, Node::Worker2.name())?;
//! for target in pod.at(8080) {
//!     let answer = Client::new(lab.node(Node::Balancer)?).ask(target, None)?;
//!     assert_eq!(answer.backend, pod.name());
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod cluster;

use ipnet::IpNet;

use super::{
    Client, End, Item, Lab, LabError, Namespace, Server, ServerSpec, end, host, ip, link, route,
    router, switch, sysctl,
};
pub use cluster::{CLIENTS_4, CLIENTS_6, LOAD_BALANCER_4, LOAD_BALANCER_6, Node, Pod};
use cluster::{gateways, mac};

/// MTU of a link for which no other was asked.
const MTU: u16 = 1500;

/// How many pods there are, and what the links carry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PodsSpec {
    pods: u8,
    client: u16,
    near: u16,
    far: u16,
    pod: u16,
}

impl Default for PodsSpec {
    /// Two pods a node, and 1500 bytes everywhere.
    fn default() -> Self {
        Self { pods: 2, client: MTU, near: MTU, far: MTU, pod: MTU }
    }
}

impl PodsSpec {
    /// So many pods (1 to 200) on each node.
    pub fn pods(mut self, count: u8) -> Self {
        self.pods = count.clamp(1, 200);
        self
    }

    /// No pods at first: they are added later.
    pub(super) fn without_pods(mut self) -> Self {
        self.pods = 0;
        self
    }

    /// MTU between router and client. The client offers TCP segments for 1500 bytes all the same, so
    /// that servers have to learn of it from the router.
    pub fn client_mtu(mut self, mtu: u16) -> Self {
        self.client = mtu;
        self
    }

    /// MTU of the segment of balancer, worker and plain.
    pub fn near_mtu(mut self, mtu: u16) -> Self {
        self.near = mtu;
        self
    }

    /// MTU between the router and worker2. The near nodes' routes to it and to its pods say so too:
    /// nobody tells a balancer when the tunnel packets that XDP made were too long.
    pub fn far_mtu(mut self, mtu: u16) -> Self {
        self.far = mtu;
        self
    }

    /// MTU between nodes and pods.
    pub fn pod_mtu(mut self, mtu: u16) -> Self {
        self.pod = mtu;
        self
    }

    /// The pods of a node.
    pub fn pods_of(&self, node: Node) -> Vec<Pod> {
        (1..=self.pods).map(|number| Pod { node, number }).collect()
    }

    /// The lab's items.
    pub fn items(&self) -> Vec<Item> {
        let mut items = self.outside();
        for node in Node::ALL {
            items.extend(self.node(node));
            for pod in self.pods_of(node) {
                items.extend(self.pod(pod));
            }
        }
        items
    }

    /// Builds it; `prefix` (lower-case letters and digits) begins the names of its namespaces.
    pub fn up(self, prefix: &str) -> Result<PodsLab, LabError> {
        Ok(PodsLab { lab: Lab::build(prefix, self.items())?, spec: self })
    }

    /// Client, router and the switches.
    fn outside(&self) -> Vec<Item> {
        let ([client4, other4], [client6, other6]) = (CLIENTS_4, CLIENTS_6);
        let mut items = vec![
            host("client"),
            router("router"),
            link(
                end("client", "eth0")
                    .mac("02:00:00:00:02:02")
                    .mtu(self.client)
                    .addr(&format!("{client4}/24"))
                    .addr(&format!("{client6}/64")),
                end("router", "clients")
                    .mac("02:00:00:00:02:fe")
                    .mtu(self.client)
                    .addr("198.51.100.254/24")
                    .addr("2001:db8:1::fe/64"),
            ),
            ip("client", &format!("address add {other4}/24 dev eth0")),
            // Deprecated, so that nothing is sent from it that does not ask for it.
            ip("client", &format!("address add {other6}/64 dev eth0 nodad preferred_lft 0")),
            ip("client", "route add 0.0.0.0/0 via 198.51.100.254 advmss 1460"),
            ip("client", "route add ::/0 via 2001:db8:1::fe advmss 1440"),
        ];
        for (number, name, mtu) in [(0, "near", self.near), (1, "far", self.far)] {
            let [v4, v6] = gateways(number);
            items.push(switch(name));
            items.push(link(
                end("router", name)
                    .mac(&format!("02:00:00:00:{number:02x}:fe"))
                    .mtu(mtu)
                    .addr(&format!("{v4}/24"))
                    .addr(&format!("{v6}/64")),
                end(name, "router").mtu(mtu),
            ));
        }
        items.extend(unlimited_errors("client"));
        items.extend(unlimited_errors("router"));
        items.push(route("router", "203.0.113.0/24", &Node::Balancer.v4().to_string()));
        items.push(route("router", "2001:db8:80::/64", &Node::Balancer.v6().to_string()));
        items
    }

    fn node(&self, node: Node) -> Vec<Item> {
        let (name, mtu) = (node.name(), self.segment_mtu(node));
        let mut items = vec![
            router(name),
            link(
                with_addresses(end(name, "eth0").mac(&mac(node.mac())).mtu(mtu), node),
                end(node.segment(), name).mtu(mtu),
            ),
        ];
        let gateways = node.gateways();
        for (default, gateway) in ["0.0.0.0/0", "::/0"].iter().zip(gateways) {
            items.push(route(name, default, &gateway.to_string()));
        }
        for (network, by) in [node.pod_network_4(), node.pod_network_6()].iter().zip(node.at(0)) {
            items.push(route("router", &network.to_string(), &by.ip().to_string()));
        }
        for other in Node::ALL.into_iter().filter(|other| *other != node) {
            items.extend(self.way(node, other));
        }
        items.extend(unlimited_errors(name));
        items
    }

    /// A node's routes to another node's pods, and to the node itself where it is not on the link.
    fn way(&self, from: Node, to: Node) -> Vec<Item> {
        let name = from.name();
        let (networks, nodes) = ([to.pod_network_4(), to.pod_network_6()], [to.v4(), to.v6()]);
        if from.segment() == to.segment() {
            let ways = networks.iter().zip(nodes);
            return ways.map(|(net, by)| route(name, &net.to_string(), &by.to_string())).collect();
        }
        let mtu = self.segment_mtu(from).min(self.segment_mtu(to));
        let mut items = Vec::new();
        for ((network, node), by) in networks.iter().zip(nodes).zip(from.gateways()) {
            for to in [network.to_string(), IpNet::from(node).to_string()] {
                items.push(ip(name, &format!("route add {to} via {by} mtu {mtu}")));
            }
        }
        items
    }

    fn segment_mtu(&self, node: Node) -> u16 {
        if node.segment() == "far" { self.far } else { self.near }
    }

    /// A pod, and its cable to its node.
    pub(super) fn pod(&self, pod: Pod) -> Vec<Item> {
        let (name, node, device) = (pod.name(), pod.node.name(), pod.device());
        let gateway = Pod { number: 0, ..pod };
        let addresses = |end: End, of: Pod| {
            end.mtu(self.pod).addr(&format!("{}/32", of.v4())).addr(&format!("{}/128", of.v6()))
        };
        let mut items = vec![
            host(&name),
            link(addresses(end(node, &device), gateway), addresses(end(&name, "eth0"), pod)),
        ];
        let defaults = ["0.0.0.0/0", "::/0"];
        let ends = [pod.v4(), pod.v6()].into_iter().zip([gateway.v4(), gateway.v6()]);
        for ((address, by), default) in ends.zip(defaults) {
            items.push(ip(node, &format!("route add {} dev {device}", IpNet::from(address))));
            items.push(ip(&name, &format!("route add {} dev eth0", IpNet::from(by))));
            items.push(route(&name, default, &by.to_string()));
        }
        items.extend(unlimited_errors(&name));
        items
    }
}

fn with_addresses(end: End, node: Node) -> End {
    end.addr(&format!("{}/24", node.v4())).addr(&format!("{}/64", node.v6()))
}

fn unlimited_errors(node: &str) -> [Item; 2] {
    ["net.ipv4.icmp_ratelimit", "net.ipv6.icmp.ratelimit"].map(|key| sysctl(node, key, "0"))
}

/// A lab of pods that is up; dropping it removes it.
#[derive(Debug)]
pub struct PodsLab {
    lab: Lab,
    spec: PodsSpec,
}

impl PodsLab {
    /// Any namespace: `client`, `router`, a segment's switch, a node, a pod, or what was added.
    pub fn ns(&self, name: &str) -> Result<&Namespace, LabError> {
        self.lab.ns(name)
    }

    /// A node's namespace.
    pub fn node(&self, node: Node) -> Result<&Namespace, LabError> {
        self.lab.ns(node.name())
    }

    /// A pod's namespace.
    pub fn pod(&self, pod: Pod) -> Result<&Namespace, LabError> {
        self.lab.ns(&pod.name())
    }

    /// The pods of a node.
    pub fn pods_of(&self, node: Node) -> Vec<Pod> {
        self.spec.pods_of(node)
    }

    /// All pods.
    pub fn pods(&self) -> Vec<Pod> {
        Node::ALL.iter().flat_map(|node| self.pods_of(*node)).collect()
    }

    /// The outside client.
    pub fn client(&self) -> Result<Client, LabError> {
        Ok(Client::new(self.lab.ns("client")?))
    }

    /// A server in a pod, on both of its addresses, for HTTP on TCP and for UDP; it gives the pod's
    /// name as its own.
    pub fn serve(&self, pod: Pod, port: u16) -> Result<Server, LabError> {
        let sockets = pod.at(port);
        let spec = ServerSpec::named(&pod.name());
        let spec = sockets.iter().fold(spec, |spec, one| spec.http(*one).udp(*one));
        spec.start(self.pod(pod)?)
    }

    /// The lab below, to add to it or to keep it.
    pub fn lab(&mut self) -> &mut Lab {
        &mut self.lab
    }

    /// Leaves it up, signals or not; [`Lab::clean`] removes it.
    pub fn keep(self) {
        self.lab.keep();
    }
}
