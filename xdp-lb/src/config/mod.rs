//! The configuration file: YAML in, a checked [`Config`] or every mistake out.
//!
//! Pure: the caller reads the file. `docs/configuration.md` describes the format.

mod api;
mod health;
mod json;
mod kubernetes;
mod metrics;
mod mistake;
mod read;
mod replacement;
mod service;
mod tree;
mod value;
mod write;

use std::{collections::HashMap, fmt, net::IpAddr, ops::RangeInclusive, time::Duration};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use xdp_lb_plan::{
    IdleTimes,
    model::{Mode, Service},
};

pub use api::{ApiConfig, SOCKET};
pub use json::{service_from_json, yaml_to_json};
pub use kubernetes::{Credentials, KubernetesConfig, NodeIdentity};
pub use metrics::MetricsConfig;
use mistake::Sink;
pub use mistake::{Mistake, Mistakes};
use read::At;
pub use replacement::{Replacement, ReplacementMode, SocketConfig};
pub use service::Listen;
use tree::Place;
pub use write::{service_to_json, settings_to_json};

/// Largest file, in bytes.
pub const MAX_FILE: usize = 64 << 20;

/// Most devices: index 0 of the data path's table means "none".
const MAX_DEVICES: usize = xdp_lb_abi::MAX_DEVICES as usize - 1;

/// What the file says, checked as a whole.
#[derive(Clone, Eq, PartialEq)]
pub struct Config {
    /// Where traffic comes in; at least one, names unique
    pub devices: Vec<Device>,
    /// Keys all hashes; a secret, the same on all instances of a cluster
    pub hash_key: [u8; 16],
    /// Outer source addresses
    pub tunnel: Tunnel,
    /// Whether tunnel packets that are for this host are unwrapped, and whose
    pub terminate: Option<Terminate>,
    /// What mode `snat` sends from
    pub snat: Snat,
    /// Which of the node's addresses have node ports
    pub node_port_addresses: NodePortAddresses,
    /// What becomes of packets to unknown ports
    pub unknown_ports: UnknownPorts,
    /// Sizes of the data path's tables
    pub limits: Limits,
    /// How many ICMP errors a CPU may send a second
    pub icmp_errors_per_second: u32,
    /// How long a slot's old and new backend both own flows; zero switches that off
    pub handover: Duration,
    /// How long a recorded flow may be silent until it counts as over
    pub idle: IdleTimes,
    /// How services that name no mode forward their packets
    pub default_mode: Mode,
    /// Where the API is served, and to whom
    pub api: ApiConfig,
    /// The cluster that is followed, where there is one
    pub kubernetes: Option<KubernetesConfig>,
    /// What of kube-proxy's work is done here
    pub replacement: Replacement,
    /// Which metrics are served
    pub metrics: MetricsConfig,
    /// In the file's order; names unique, no frontend twice
    pub services: Vec<Service>,
}

impl fmt::Debug for Config {
    /// Everything but the key, which must not get into a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            devices,
            hash_key: _,
            tunnel,
            terminate,
            snat,
            node_port_addresses,
            unknown_ports,
            limits,
            icmp_errors_per_second,
            handover,
            idle,
            default_mode,
            api,
            kubernetes,
            replacement,
            metrics,
            services,
        } = self;
        f.debug_struct("Config")
            .field("devices", devices)
            .field("hash_key", &format_args!("(secret)"))
            .field("tunnel", tunnel)
            .field("terminate", terminate)
            .field("snat", snat)
            .field("node_port_addresses", node_port_addresses)
            .field("unknown_ports", unknown_ports)
            .field("limits", limits)
            .field("icmp_errors_per_second", icmp_errors_per_second)
            .field("handover", handover)
            .field("idle", idle)
            .field("default_mode", default_mode)
            .field("api", api)
            .field("kubernetes", kubernetes)
            .field("replacement", replacement)
            .field("metrics", metrics)
            .field("services", services)
            .finish()
    }
}

/// A network device to balance on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Device {
    /// Name that the kernel accepts
    pub name: String,
    /// How the program is attached
    pub xdp: Attach,
}

/// How the program may be attached to a device.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Attach {
    /// In the driver, before the kernel allocates anything
    #[default]
    Native,
    /// In the kernel's network stack: any device, slower
    Generic,
    /// In the driver where it can, otherwise in the network stack
    NativeOrGeneric,
}

impl Attach {
    /// The ways that are allowed, the preferred one first; `true` is native.
    pub const fn modes(self) -> &'static [bool] {
        match self {
            Self::Native => &[true],
            Self::Generic => &[false],
            Self::NativeOrGeneric => &[true, false],
        }
    }
}

/// Prefixes that outer source addresses are taken from; of each, at most the 32 lowest host bits
/// vary.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Tunnel {
    /// For IPv4 outer headers; the device's own address where there is none
    pub source_v4: Option<Ipv4Net>,
    /// For IPv6 outer headers; the device's own address where there is none
    pub source_v6: Option<Ipv6Net>,
}

/// Unwrapping of tunnel packets that are for this host.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Terminate {
    /// Outer sources that are accepted; none twice
    pub peers: Vec<IpNet>,
    /// Networks of the pods on this host
    pub pods: Vec<IpNet>,
}

/// What mode `snat` sends from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Snat {
    /// The host's own address on the way to the backend where there is none
    pub source_v4: Option<IpAddr>,
    /// The same for IPv6
    pub source_v6: Option<IpAddr>,
    /// Source ports; none of them should be one that the host's own sockets use
    pub ports: RangeInclusive<u16>,
}

impl Default for Snat {
    /// Above Linux's own range, which ends at 60999 (ip_local_port_range).
    fn default() -> Self {
        Self { source_v4: None, source_v6: None, ports: 61_000..=65_535 }
    }
}

/// Which of the node's addresses have node ports; never loopback ones.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum NodePortAddresses {
    /// The first address of each family on the devices
    Primary,
    /// All in these networks
    In(Vec<IpNet>),
}

/// What becomes of packets to a frontend's address whose port no frontend has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum UnknownPorts {
    /// TCP is reset, others are told that the port is unreachable.
    Reject,
    /// The kernel gets them where the address is the host's own; others are refused.
    Pass,
}

/// Sizes of the data path's tables, in entries.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Frontends
    pub frontends: u32,
    /// Backends
    pub backends: u32,
    /// Maglev slots of all tables together
    pub slots: u32,
    /// Flows that are recorded during handovers
    pub flows: u32,
    /// Clients of services with session affinity
    pub clients: u32,
    /// Flows to pods on this host, whose answers are rewritten
    pub answers: u32,
    /// Flows of mode `snat`
    pub nat_flows: u32,
    /// Sockets of this host that speak to a backend
    pub sockets: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            frontends: 16_384,
            backends: 131_072,
            slots: 16_777_216,
            flows: 262_144,
            clients: 65_536,
            answers: 262_144,
            nat_flows: 131_072,
            sockets: 131_072,
        }
    }
}

/// The configuration that `text` describes, or everything that is wrong with it.
pub fn parse(text: &str) -> Result<Config, Mistakes> {
    let sink = Sink::default();
    let config = document(text, &sink);
    match (config, sink.into_mistakes()) {
        (Some(config), None) => Ok(config),
        (_, Some(mistakes)) => Err(mistakes),
        (None, None) => unreachable!("every reader that returns nothing has reported a mistake"),
    }
}

fn document(text: &str, sink: &Sink) -> Option<Config> {
    if text.len() > MAX_FILE {
        let message = "the file is larger than 64 MiB: split it among several instances";
        sink.add(Place::START, "", message);
        return None;
    }
    let Some(root) = tree::load(text, sink) else {
        // Nothing but comments is a file without a document.
        if sink.is_empty() {
            empty(sink);
        }
        return None;
    };
    let root = At::root(&root, sink);
    if root.is_null() {
        empty(sink);
        return None;
    }
    config(&root)
}

fn empty(sink: &Sink) {
    sink.add(Place::START, "", "the file is empty: it needs at least `hashKey` and `devices`");
}

fn config(root: &At<'_>) -> Option<Config> {
    let fields = root.fields(&[
        "hashKey",
        "devices",
        "services",
        "defaultMode",
        "tunnel",
        "terminate",
        "snat",
        "nodePortAddresses",
        "unknownPorts",
        "limits",
        "icmpErrorsPerSecond",
        "handover",
        "tcpIdle",
        "udpIdle",
        "api",
        "kubernetes",
        "kubeProxyReplacement",
        "socketLB",
        "nodePort",
        "externalIPs",
        "loadBalancer",
        "metrics",
    ])?;
    let hash_key = fields
        .required("hashKey", "hashKey: \"<32 hexadecimal digits>\"")
        .and_then(|at| value::hash_key(&at));
    let devices = fields.required("devices", "devices: [{name: eth0}]").and_then(|at| devices(&at));
    let default_mode =
        fields.optional("defaultMode").map_or(Some(Mode::L2), |at| service::mode(&at));
    let tunnel = fields.optional("tunnel").map_or(Some(Tunnel::default()), |at| tunnel(&at));
    let terminate = fields.optional("terminate").map(|at| terminate(&at));
    let snat = fields.optional("snat").map_or(Some(Snat::default()), |at| snat(&at));
    let node_port_addresses = fields
        .optional("nodePortAddresses")
        .map_or(Some(NodePortAddresses::Primary), |at| node_port_addresses(&at));
    let unknown_ports = fields.optional("unknownPorts").map_or(Some(UnknownPorts::Reject), |at| {
        at.choice(&[("reject", UnknownPorts::Reject), ("pass", UnknownPorts::Pass)])
    });
    let limits = fields.optional("limits").map_or(Some(Limits::default()), |at| limits(&at));
    let icmp_errors_per_second =
        fields.optional("icmpErrorsPerSecond").map_or(Some(100), |at| at.number(0..=1_000_000));
    let handover = fields
        .optional("handover")
        .map_or(Some(Duration::from_secs(300)), |at| value::duration(&at));
    let idle = |key, default: Duration| {
        fields.optional(key).map_or(Some(default), |at| value::idle_time(&at))
    };
    let tcp = idle("tcpIdle", IdleTimes::default().tcp);
    let udp = idle("udpIdle", IdleTimes::default().udp);
    let api = fields.optional("api").map_or_else(|| Some(ApiConfig::default()), |at| api::api(&at));
    let kubernetes =
        api::wanted(fields.optional("kubernetes").map(|at| kubernetes::kubernetes(&at)));
    let follows = fields.optional("kubernetes").is_some();
    let replacement = replacement::replacement(&fields, follows);
    let metrics = fields
        .optional("metrics")
        .map_or(Some(MetricsConfig::default()), |at| metrics::metrics(&at));
    let services = fields.optional("services").map_or(Some(Vec::new()), |at| {
        let pods = terminate.iter().flatten().flat_map(|one| one.pods.clone()).collect();
        let services = services(&at, default_mode, pods, limits.as_ref())?;
        snat_overlap(&at, &services, snat.as_ref())?;
        Some(services)
    });
    Some(Config {
        devices: devices?,
        hash_key: hash_key?,
        tunnel: tunnel?,
        terminate: match terminate {
            Some(terminate) => Some(terminate?),
            None => None,
        },
        snat: snat?,
        node_port_addresses: node_port_addresses?,
        unknown_ports: unknown_ports?,
        limits: limits?,
        icmp_errors_per_second: icmp_errors_per_second?,
        handover: handover?,
        idle: IdleTimes { tcp: tcp?, udp: udp? },
        default_mode: default_mode?,
        api: api?,
        kubernetes: kubernetes?,
        replacement: replacement?,
        metrics: metrics?,
        services: services?,
    })
}

fn devices(at: &At<'_>) -> Option<Vec<Device>> {
    let items = at.items("a list of devices")?;
    if items.len() == 0 {
        at.mistake("there is no device: add one, like `{name: eth0}`");
        return None;
    }
    if items.len() > MAX_DEVICES {
        at.mistake(format_args!(
            "{} devices are too many: one instance serves at most {MAX_DEVICES}",
            items.len()
        ));
        return None;
    }
    let mut names = HashMap::new();
    let all: Vec<_> = items
        .map(|at| {
            let fields = at.fields(&["name", "xdp"])?;
            let name = fields.required("name", "name: eth0").and_then(|at| {
                let name = value::device_name(&at)?.to_owned();
                if let Some(first) = names.insert(name.clone(), at.place().line) {
                    at.mistake(format_args!("{name} is already on line {first}: remove one"));
                    return None;
                }
                Some(name)
            });
            let xdp = fields.optional("xdp").map_or(Some(Attach::default()), |at| attach(&at));
            Some(Device { name: name?, xdp: xdp? })
        })
        .collect();
    all.into_iter().collect()
}

fn attach(at: &At<'_>) -> Option<Attach> {
    at.choice(&[
        ("native", Attach::Native),
        ("generic", Attach::Generic),
        ("native-or-generic", Attach::NativeOrGeneric),
    ])
}

fn tunnel(at: &At<'_>) -> Option<Tunnel> {
    let fields = at.fields(&["sourceIPv4", "sourceIPv6"])?;
    let source_v4 = fields.optional("sourceIPv4").map(|at| value::source_v4(&at));
    let source_v6 = fields.optional("sourceIPv6").map(|at| value::source_v6(&at));
    Some(Tunnel { source_v4: source_v4.flatten(), source_v6: source_v6.flatten() })
}

fn terminate(at: &At<'_>) -> Option<Terminate> {
    let fields = at.fields(&["peers", "pods"])?;
    let peers = match fields.optional("peers") {
        Some(at) => prefixes(&at),
        // Pods on this host alone need no tunnel.
        None if fields.optional("pods").is_some() => Some(Vec::new()),
        None => fields.required("peers", "peers: [10.0.0.0/24]").and(None),
    };
    let pods = fields.optional("pods").map_or(Some(Vec::new()), |at| prefixes(&at));
    Some(Terminate { peers: peers?, pods: pods? })
}

/// A list of prefixes, at least one and none twice.
fn prefixes(at: &At<'_>) -> Option<Vec<IpNet>> {
    let items = at.items("a list of prefixes, like `[10.0.0.0/24]`")?;
    if items.len() == 0 {
        at.mistake("there is no prefix: add one, or remove the key");
        return None;
    }
    let mut lines = HashMap::new();
    let all: Vec<_> = items
        .map(|at| {
            let net = value::prefix(&at)?;
            if let Some(first) = lines.insert(net, at.place().line) {
                at.mistake(format_args!("{net} is already on line {first}: remove one"));
                return None;
            }
            Some(net)
        })
        .collect();
    all.into_iter().collect()
}

fn node_port_addresses(at: &At<'_>) -> Option<NodePortAddresses> {
    if at.is_list() {
        return prefixes(at).map(NodePortAddresses::In);
    }
    let wanted = "`primary`, or a list of prefixes like `[10.0.0.0/8]`";
    if at.scalar(wanted)? == "primary" {
        return Some(NodePortAddresses::Primary);
    }
    at.expected(wanted);
    None
}

fn snat(at: &At<'_>) -> Option<Snat> {
    let fields = at.fields(&["sourceIPv4", "sourceIPv6", "ports"])?;
    let source = |key, v6: bool| match fields.optional(key) {
        None => Some(None),
        Some(at) => {
            let address = value::host_address(&at)?;
            if address.is_ipv6() != v6 {
                at.mistake("the address is of the other family");
                return None;
            }
            Some(Some(address))
        }
    };
    let (v4, v6) = (source("sourceIPv4", false), source("sourceIPv6", true));
    let ports = fields.optional("ports").map_or(Some(Snat::default().ports), |at| ports(&at));
    Some(Snat { source_v4: v4?, source_v6: v6?, ports: ports? })
}

/// A node port that mode `snat` sends from would take the answers to it.
fn snat_overlap(at: &At<'_>, services: &[Service], snat: Option<&Snat>) -> Option<()> {
    let Some(snat) = snat else { return Some(()) };
    let uses = |one: &Service| matches!(one.mode, Mode::Snat | Mode::Hybrid);
    if !services.iter().any(uses) {
        return Some(());
    }
    let mut ports =
        services.iter().flat_map(|one| one.node_ports.iter().map(move |port| (one, port)));
    if let Some((service, port)) = ports.find(|(_, port)| snat.ports.contains(&port.port.get())) {
        at.mistake(format_args!(
            "{port} of service {} is one of the ports that mode snat sends from: choose another, or \
             change `snat.ports`",
            service.name
        ));
        return None;
    }
    Some(())
}

/// A range of ports that leaves the well-known ones alone.
fn ports(at: &At<'_>) -> Option<RangeInclusive<u16>> {
    let wanted = "a range of ports from 1024 to 65535, like `61000-65535`";
    let text = at.scalar(wanted)?;
    let range = text.split_once('-').and_then(|(first, last)| {
        Some(first.trim().parse::<u16>().ok()?..=last.trim().parse::<u16>().ok()?)
    });
    match range {
        Some(range) if *range.start() >= 1024 && range.start() <= range.end() => Some(range),
        Some(_) | None => {
            at.expected(wanted);
            None
        }
    }
}

fn limits(at: &At<'_>) -> Option<Limits> {
    let fields = at.fields(&[
        "frontends",
        "backends",
        "slots",
        "flows",
        "clients",
        "answers",
        "natFlows",
        "sockets",
    ])?;
    let limit = |key, default, range: RangeInclusive<u32>| {
        fields.optional(key).map_or(Some(default), |at| at.number(range))
    };
    let default = Limits::default();
    // The upper bounds keep each table within about a gigabyte.
    let frontends = limit("frontends", default.frontends, 1..=1 << 20);
    let backends = limit("backends", default.backends, 1..=1 << 23);
    let slots = limit("slots", default.slots, 1..=1 << 29);
    let flows = limit("flows", default.flows, 1..=1 << 23);
    let clients = limit("clients", default.clients, 1..=1 << 23);
    let answers = limit("answers", default.answers, 1..=1 << 23);
    let nat_flows = limit("natFlows", default.nat_flows, 1..=1 << 22);
    let sockets = limit("sockets", default.sockets, 1..=1 << 23);
    Some(Limits {
        frontends: frontends?,
        backends: backends?,
        slots: slots?,
        flows: flows?,
        clients: clients?,
        answers: answers?,
        nat_flows: nat_flows?,
        sockets: sockets?,
    })
}

fn services(
    at: &At<'_>,
    default_mode: Option<Mode>,
    pods: Vec<IpNet>,
    limits: Option<&Limits>,
) -> Option<Vec<Service>> {
    let items = at.items("a list of services; `[]` where there is none")?;
    let mut reader = service::Reader::new(default_mode, pods);
    let all: Vec<_> = items.enumerate().map(|(index, at)| reader.read(&at, index)).collect();
    let count = reader.frontends();
    if let Some(limit) = limits.map(|limits| limits.frontends)
        && count > limit as usize
    {
        at.mistake(format_args!(
            "{count} frontends are more than `limits.frontends`, {limit}: raise that limit"
        ));
        return None;
    }
    all.into_iter().collect()
}

#[cfg(test)]
mod tests;
