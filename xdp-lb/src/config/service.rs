//! The services: frontends, backends, and what must hold among them.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    net::IpAddr,
    num::NonZeroU16,
    time::Duration,
};

use ipnet::IpNet;
use xdp_lb_abi::MAX_SERVICE_BACKENDS;
use xdp_lb_plan::{
    maglev::LADDER,
    model::{Backend, Frontend, Mode, NoBackends, NodePort, Protocol, Service},
};

use super::{health::health_check, read::At, tree::Place, value};

/// Slots that a table has at least for each backend, unless it is the largest there is.
const SLOTS_PER_BACKEND: usize = 100;

/// The forwarding mode.
pub(super) fn mode(at: &At<'_>) -> Option<Mode> {
    at.choice(&Mode::NAMES)
}

/// Reads services one after another and remembers what must not come twice.
pub(super) struct Reader {
    default_mode: Option<Mode>,
    /// Networks of pods on this host
    pods: Vec<IpNet>,
    /// Places by names
    names: HashMap<String, Place>,
    frontends: HashMap<Listen, FrontendPlace>,
}

/// A frontend as the file has it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Listen {
    /// On an address
    Address(Frontend),
    /// On the node's own addresses
    NodePort(NodePort),
}

impl Listen {
    /// All frontends of a service: those with addresses, then the node ports.
    pub fn of(service: &Service) -> impl Iterator<Item = Self> + '_ {
        let addresses = service.frontends.iter().copied().map(Self::Address);
        addresses.chain(service.node_ports.iter().copied().map(Self::NodePort))
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(frontend) => frontend.fmt(f),
            Self::NodePort(port) => port.fmt(f),
        }
    }
}

struct FrontendPlace {
    service: usize,
    index: usize,
    place: Place,
}

impl Reader {
    /// Services that name no mode get `default_mode`; nothing where that one is a mistake.
    /// `pods` are the networks of pods on this host.
    pub(super) fn new(default_mode: Option<Mode>, pods: Vec<IpNet>) -> Self {
        Self { default_mode, pods, names: HashMap::new(), frontends: HashMap::new() }
    }

    /// How many different frontends there are so far.
    pub(super) fn frontends(&self) -> usize {
        self.frontends.len()
    }

    /// The service at `at`, item `number` of the list.
    pub(super) fn read(&mut self, at: &At<'_>, number: usize) -> Option<Service> {
        let fields = at.fields(&[
            "name",
            "mode",
            "tableSize",
            "sessionAffinity",
            "sourceRanges",
            "noBackends",
            "healthCheck",
            "frontends",
            "backends",
        ])?;
        let name = fields.required("name", "name: web").and_then(|at| self.name(&at));
        let mode = match fields.optional("mode") {
            Some(at) => mode(&at),
            None => self.default_mode,
        };
        let frontends = fields
            .required("frontends", "frontends: [{address: 203.0.113.10, port: 80}]")
            .and_then(|at| self.frontend_list(&at, number));
        let backends = fields
            .required("backends", "backends: []")
            .and_then(|at| backend_list(&at, mode, frontends.as_deref(), &self.pods));
        let table_size = match fields.optional("tableSize") {
            Some(at) => Some(table_size(&at, backends.as_deref())?),
            None => None,
        };
        let affinity = match fields.optional("sessionAffinity") {
            Some(at) => Some(affinity(&at)?),
            None => None,
        };
        let sources = fields.optional("sourceRanges").map_or(Some(Vec::new()), |at| ranges(&at));
        let no_backends = fields
            .optional("noBackends")
            .map_or(Some(NoBackends::default()), |at| no_backends(&at));
        let health_check = match fields.optional("healthCheck") {
            Some(at) => Some(health_check(&at)?),
            None => None,
        };
        let (frontends, backends) = (frontends?, backends?);
        let mut service = Service::new(name?, mode?, Vec::new(), backends);
        for listen in frontends {
            match listen {
                Listen::Address(frontend) => service.frontends.push(frontend),
                Listen::NodePort(port) => service.node_ports.push(port),
            }
        }
        Some(Service {
            table_size,
            affinity,
            sources: sources?,
            no_backends: no_backends?,
            health_check,
            ..service
        })
    }

    fn name(&mut self, at: &At<'_>) -> Option<String> {
        let name = value::service_name(at)?;
        if let Some(first) = self.names.get(name) {
            at.mistake(format_args!("the service {first} has the same name: write another"));
            return None;
        }
        self.names.insert(name.to_owned(), at.place());
        Some(name.to_owned())
    }

    fn frontend_list(&mut self, at: &At<'_>, service: usize) -> Option<Vec<Listen>> {
        let items = at.items("a list of frontends")?;
        if items.len() == 0 {
            at.mistake("there is no frontend: add one, like `{address: 203.0.113.10, port: 80}`");
            return None;
        }
        let all: Vec<_> = items
            .enumerate()
            .map(|(index, at)| {
                let frontend = frontend(&at)?;
                if let Some(first) = self.frontends.get(&frontend) {
                    let FrontendPlace { service, index, place } = first;
                    // A service in JSON is not one of a list.
                    let first = match place.column {
                        0 => format!("frontends[{index}]"),
                        _ => format!("services[{service}].frontends[{index}] {place}"),
                    };
                    at.mistake(format_args!(
                        "{frontend} is already {first}: remove one of the two"
                    ));
                    return None;
                }
                let place = FrontendPlace { service, index, place: at.place() };
                self.frontends.insert(frontend, place);
                Some(frontend)
            })
            .collect();
        all.into_iter().collect()
    }
}

fn frontend(at: &At<'_>) -> Option<Listen> {
    let fields = at.fields(&["address", "port", "protocol", "nodePort"])?;
    let protocol = match fields.optional("protocol") {
        None => Some(Protocol::Tcp),
        Some(at) => protocol(&at),
    };
    if let Some(at) = fields.optional("nodePort") {
        if let Some(other) = fields.optional("address").or_else(|| fields.optional("port")) {
            other.mistake(
                "a frontend with a nodePort is on the node's own addresses: remove this key, or \
                 nodePort",
            );
            return None;
        }
        let port = port(&at)?;
        return Some(Listen::NodePort(NodePort { port, protocol: protocol? }));
    }
    let address = fields.required("address", "address: 203.0.113.10");
    let address = address.and_then(|at| value::host_address(&at));
    let port = fields.required("port", "port: 80").and_then(|at| port(&at));
    Some(Listen::Address(Frontend { address: address?, port: port?, protocol: protocol? }))
}

/// How long a client keeps its backend: as Kubernetes has it, a day at most.
fn affinity(at: &At<'_>) -> Option<Duration> {
    let time = value::duration(at)?;
    if time.is_zero() {
        at.mistake("a client would keep its backend for no time: write `3h`, or remove the key");
        return None;
    }
    Some(time)
}

fn ranges(at: &At<'_>) -> Option<Vec<IpNet>> {
    let items = at.items("a list of prefixes, like `[198.51.100.0/24]`")?;
    if items.len() == 0 {
        at.mistake("there is no prefix: add one, or remove the key to let all clients in");
        return None;
    }
    let all: Vec<_> = items.map(|at| value::prefix(&at)).collect();
    all.into_iter().collect()
}

fn no_backends(at: &At<'_>) -> Option<NoBackends> {
    at.choice(&[("reject", NoBackends::Reject), ("drop", NoBackends::Drop)])
}

fn protocol(at: &At<'_>) -> Option<Protocol> {
    let wanted = "`TCP`, `UDP` or `SCTP`";
    let protocol = at.scalar(wanted)?.parse();
    if protocol.is_err() {
        at.expected(wanted);
    }
    protocol.ok()
}

pub(super) fn port(at: &At<'_>) -> Option<NonZeroU16> {
    at.number(1..=0xffff).and_then(|port| NonZeroU16::new(u16::try_from(port).ok()?))
}

fn backend_list(
    at: &At<'_>,
    mode: Option<Mode>,
    frontends: Option<&[Listen]>,
    pods: &[IpNet],
) -> Option<Vec<Backend>> {
    let items = at.items("a list of backends; `[]` where there is none")?;
    if items.len() > MAX_SERVICE_BACKENDS {
        at.mistake(format_args!(
            "{} backends are too many: a service has at most {MAX_SERVICE_BACKENDS}",
            items.len()
        ));
        return None;
    }
    let rules = BackendRules::new(mode, frontends, pods);
    let mut seen = HashMap::with_capacity(items.len());
    let all: Vec<_> = items
        .map(|at| {
            let backend = backend(&at, &rules)?;
            let key = (backend.address, backend.port.or(rules.port));
            if let Some(first) = seen.get(&key) {
                at.mistake(format_args!(
                    "the backend is already {first}: remove one, or give it more `weight`"
                ));
                return None;
            }
            seen.insert(key, at.place());
            Some(backend)
        })
        .collect();
    all.into_iter().collect()
}

/// What the rest of a service asks of its backends.
struct BackendRules<'a> {
    mode: Option<Mode>,
    /// The frontends' port, where they all have the same
    port: Option<NonZeroU16>,
    own: HashSet<IpAddr>,
    /// Whether the frontends are known; otherwise nothing is said about ports
    known: bool,
    /// Whether there may be an IPv4 frontend, and an IPv6 one
    families: [Option<bool>; 2],
    /// Networks of pods on this host
    pods: &'a [IpNet],
}

impl<'a> BackendRules<'a> {
    fn new(mode: Option<Mode>, frontends: Option<&[Listen]>, pods: &'a [IpNet]) -> Self {
        let known = frontends.is_some();
        let ports: Vec<NonZeroU16> = frontends
            .unwrap_or_default()
            .iter()
            .map(|listen| match listen {
                Listen::Address(frontend) => frontend.port,
                Listen::NodePort(port) => port.port,
            })
            .collect();
        let port = ports.first().copied().filter(|port| ports.iter().all(|other| other == port));
        let addresses = frontends.unwrap_or_default().iter().filter_map(|listen| match listen {
            Listen::Address(frontend) => Some(frontend.address),
            Listen::NodePort(_) => None,
        });
        let own: HashSet<IpAddr> = addresses.collect();
        let v4 = known.then(|| own.iter().any(IpAddr::is_ipv4));
        let v6 = known.then(|| own.iter().any(IpAddr::is_ipv6));
        let node_ports = !ports.is_empty() && own.is_empty()
            || frontends.unwrap_or_default().iter().any(|l| matches!(l, Listen::NodePort(_)));
        let families = [v4, v6].map(|some| some.map(|some| some || node_ports));
        Self { mode, port, own, known, families, pods }
    }
}

fn backend(at: &At<'_>, rules: &BackendRules<'_>) -> Option<Backend> {
    let fields = at.fields(&["address", "port", "weight", "node"])?;
    let address = fields.required("address", "address: 10.0.1.11").and_then(|at| {
        let address = value::host_address(&at)?;
        if rules.own.contains(&address) {
            at.mistake(format_args!(
                "{address} is a frontend of this service, so packets would come back again and \
                 again: write the server's own address"
            ));
            return None;
        }
        Some(address)
    });
    let port = match fields.optional("port") {
        Some(at) => Some(backend_port(&at, rules)?),
        None => None,
    };
    let weight = match fields.optional("weight") {
        Some(at) => u16::try_from(at.number(0..=0xffff)?).ok()?,
        None => 1,
    };
    let node = match fields.optional("node") {
        Some(at) => Some(value::host_address(&at)?),
        None => None,
    };
    let address = address?;
    let rewritten = rules.mode.is_some_and(|mode| !mode.keeps_destination());
    if rewritten && rules.families[usize::from(address.is_ipv6())] == Some(false) {
        at.mistake(
            "no frontend is of this address's family, and this mode cannot rewrite one to the other: \
             add a frontend of this family, or remove the backend",
        );
        return None;
    }
    let tunnelled = matches!(rules.mode, Some(Mode::Geneve | Mode::Hybrid));
    if tunnelled && node.is_none() && !rules.pods.iter().any(|net| net.contains(&address)) {
        at.mistake(
            "the pod's node is missing: add `node: ADDRESS`; pods on this host need none where \
             `terminate.pods` has their network",
        );
        return None;
    }
    Some(Backend { port, weight, node, ..Backend::new(address) })
}

fn backend_port(at: &At<'_>, rules: &BackendRules<'_>) -> Option<NonZeroU16> {
    let port = port(at)?;
    let name = match rules.mode {
        Some(mode) if mode.keeps_destination() => mode.as_str(),
        Some(_) | None => return Some(port),
    };
    match rules.port {
        Some(wanted) if wanted != port => {
            at.mistake(format_args!(
                "mode {name} changes no port: write the frontend's, {wanted}, or leave it out"
            ));
            None
        }
        None if rules.known => {
            at.mistake(format_args!(
                "mode {name} changes no port, and the frontends have different ones: leave it out"
            ));
            None
        }
        Some(_) | None => Some(port),
    }
}

fn table_size(at: &At<'_>, backends: Option<&[Backend]>) -> Option<u32> {
    let [.., largest] = LADDER;
    let size = at.number(1..=u32::MAX)?;
    if !LADDER.contains(&size) {
        let next = LADDER.into_iter().find(|step| *step > size).unwrap_or(largest);
        let sizes = LADDER.map(|step| step.to_string()).join(", ");
        at.mistake(format_args!("{size} is none of the sizes {sizes}: write {next}"));
        return None;
    }
    let count = backends?.len();
    let least = LADDER.into_iter().find(|step| *step as usize >= count * SLOTS_PER_BACKEND);
    let least = least.unwrap_or(largest);
    if size < least {
        at.mistake(format_args!(
            "{size} is too small for {count} backends: write at least {least}, or leave it out"
        ));
        return None;
    }
    Some(size)
}
