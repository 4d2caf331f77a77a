//! The lab of nodes and pods with daemons under test in its nodes, and their configurations.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    panic::resume_unwind,
    thread,
    time::Duration,
};

use xdp_lb::lab::{
    Capture, Client, Namespace, Node, Pod, PodsLab, PodsSpec, Recording, Server,
    layers::{self, Body},
    pods::{CLIENTS_4, CLIENTS_6, LOAD_BALANCER_4, LOAD_BALANCER_6},
    reassembly,
};

use crate::{Daemon, HASH_KEY_TEXT, Scratch, daemon::run};

/// Where servers in pods listen; never a port of a frontend.
pub const POD_PORT: u16 = 8080;

/// Networks of all nodes: who may send tunnel packets.
const PEERS: &str = "10.0.0.0/24, 10.0.1.0/24, \"2001:db8:10::/64\", \"2001:db8:11::/64\"";

/// A port on the LoadBalancer address of each family.
pub fn load_balancer(port: u16) -> [SocketAddr; 2] {
    [LOAD_BALANCER_4, LOAD_BALANCER_6].map(|address| SocketAddr::new(address, port))
}

/// The client's first address of the family of `other`.
pub fn client_towards(other: IpAddr) -> IpAddr {
    if other.is_ipv4() { CLIENTS_4[0] } else { CLIENTS_6[0] }
}

/// A service with pods.
#[derive(Clone, Debug)]
pub struct PodService {
    text: String,
    backends: String,
}

impl PodService {
    /// A service without frontends and backends.
    pub fn new(name: &str, mode: &str) -> Self {
        let text = format!("  - name: {name}\n    mode: {mode}\n");
        Self { text, backends: String::new() }
    }

    /// Adds another key, like `sessionAffinity: 1h`.
    pub fn with(mut self, line: &str) -> Self {
        let _ = writeln!(self.text, "    {line}");
        self
    }

    /// Sets the frontends: ports on both LoadBalancer addresses, and node ports; each for TCP and
    /// UDP.
    pub fn at(mut self, load_balancer_ports: &[u16], node_ports: &[u16]) -> Self {
        let _ = writeln!(self.text, "    frontends:");
        for protocol in ["TCP", "UDP"] {
            for socket in load_balancer_ports.iter().flat_map(|port| load_balancer(*port)) {
                let (ip, port) = (socket.ip(), socket.port());
                let _ = writeln!(
                    self.text,
                    "      - {{address: \"{ip}\", port: {port}, protocol: {protocol}}}"
                );
            }
            for port in node_ports {
                let _ = writeln!(self.text, "      - {{nodePort: {port}, protocol: {protocol}}}");
            }
        }
        self
    }

    /// Adds a port of pods, by their addresses of both families.
    pub fn pods(mut self, pods: impl IntoIterator<Item = Pod>, port: u16) -> Self {
        for pod in pods {
            for (address, node) in pod.at(port).into_iter().zip(pod.node.at(0)) {
                let _ = writeln!(
                    self.backends,
                    "      - {{address: \"{}\", port: {port}, node: \"{}\"}}",
                    address.ip(),
                    node.ip()
                );
            }
        }
        self
    }

    fn yaml(&self) -> String {
        if self.backends.is_empty() {
            return format!("{}    backends: []\n", self.text);
        }
        format!("{}    backends:\n{}", self.text, self.backends)
    }
}

/// The configuration of a node: its device, its pods, its peers, and `more` lines.
pub fn pods_config(node: Node, services: &[PodService], more: &str) -> String {
    let (v4, v6) = (node.pod_network_4(), node.pod_network_6());
    let mut text = format!(
        "hashKey: \"{HASH_KEY_TEXT}\"\n\
         devices: [{{name: eth0}}]\n\
         terminate: {{peers: [{PEERS}], pods: [{v4}, \"{v6}\"]}}\n"
    );
    // Small tables: a test loads several data paths at once.
    if !more.contains("limits:") {
        text += "limits: {frontends: 128, backends: 256, slots: 1048576, flows: 65536, \
                 answers: 65536, natFlows: 65536}\n";
    }
    if !more.contains("icmpErrorsPerSecond:") {
        text += "icmpErrorsPerSecond: 100000\n";
    }
    let _ = writeln!(text, "{more}");
    if !services.is_empty() {
        text += "services:\n";
    }
    text.extend(services.iter().map(PodService::yaml));
    text
}

/// The lab that is up, and the scratch space of its test.
#[derive(Debug)]
pub struct PodsNet {
    scratch: Scratch,
    lab: PodsLab,
}

impl PodsNet {
    /// Builds it; `name` (lower-case letters and digits) is the test's own.
    pub fn up(name: &str, spec: PodsSpec) -> Self {
        let lab = spec.up(name).unwrap();
        Self { scratch: Scratch::new(name), lab }
    }

    /// The lab itself.
    pub fn lab(&self) -> &PodsLab {
        &self.lab
    }

    /// The lab itself, to add to it.
    pub fn lab_mut(&mut self) -> &mut PodsLab {
        &mut self.lab
    }

    /// A namespace by its name.
    pub fn ns(&self, name: &str) -> &Namespace {
        self.lab.ns(name).unwrap()
    }

    /// Files and pins.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// A daemon in a node, serving.
    pub fn daemon(&self, node: Node, services: &[PodService], more: &str) -> Daemon {
        let config = pods_config(node, services, more);
        run(&self.scratch, self.lab.node(node).unwrap(), node.name(), &config, &[])
            .unwrap_or_else(|ended| panic!("{ended}"))
    }

    /// Daemons in these nodes, all with the same services, as in a cluster.
    pub fn daemons<const N: usize>(
        &self,
        nodes: [Node; N],
        services: &[PodService],
        more: &str,
    ) -> [Daemon; N] {
        at_once(nodes, |node| self.daemon(node, services, more))
    }

    /// Servers in all pods.
    pub fn serve(&self) -> Vec<Server> {
        let pods = self.lab.pods();
        pods.into_iter().map(|pod| self.lab.serve(pod, POD_PORT).unwrap()).collect()
    }

    /// The outside client, with little patience.
    pub fn client(&self) -> Client {
        self.lab.client().unwrap().timeout(Duration::from_secs(2))
    }

    /// A capture of what a node sends and receives by `eth0`.
    pub fn wire(&self, node: Node) -> Capture {
        Capture::start(self.ns(node.segment()), node.name()).unwrap()
    }
}

/// Starts a daemon in each node: their programs' verification takes most of the time.
pub(crate) fn at_once<const N: usize>(
    nodes: [Node; N],
    start: impl Fn(Node) -> Daemon + Sync,
) -> [Daemon; N] {
    thread::scope(|scope| {
        let start = |node| {
            scope.spawn({
                let start = &start;
                move || start(node)
            })
        };
        nodes.map(start).map(|one| one.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

/// A TCP or UDP packet of a capture: the innermost one, where it travels in a tunnel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Seen {
    /// Source MAC address of the frame
    pub sender: [u8; 6],
    /// IP protocol
    pub protocol: u8,
    /// Source
    pub from: SocketAddr,
    /// Destination
    pub to: SocketAddr,
    /// Whether another IP header is around it
    pub tunnelled: bool,
    /// TTL or hop limit
    pub ttl: u8,
}

/// The TCP and UDP packets of a recording, in their order.
pub fn seen(recording: &Recording) -> Vec<Seen> {
    recording.frames.iter().filter_map(|frame| seen_in(&frame.bytes)).collect()
}

fn seen_in(bytes: &[u8]) -> Option<Seen> {
    let frame = layers::frame(bytes).unwrap();
    let ip = frame.headers.last()?;
    let (Body::Tcp(start) | Body::Udp(start)) = frame.body else { return None };
    let (ports, _) = start.split_first_chunk::<4>()?;
    Some(Seen {
        sender: frame.source,
        protocol: ip.protocol,
        from: SocketAddr::new(ip.source, u16::from_be_bytes([ports[0], ports[1]])),
        to: SocketAddr::new(ip.destination, u16::from_be_bytes([ports[2], ports[3]])),
        tunnelled: frame.headers.len() > 1,
        ttl: ip.ttl,
    })
}

/// Panics unless every length and checksum of a recording is right, those of packets in fragments
/// included, and the recording whole.
pub fn assert_whole(recording: &Recording) {
    assert_eq!(recording.dropped, 0, "the capture is not whole");
    reassembly::verify(recording).unwrap_or_else(|fault| panic!("{fault}"));
}
