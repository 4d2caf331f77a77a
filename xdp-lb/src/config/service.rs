//! The services: frontends, backends, and what must hold among them.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    num::NonZeroU16,
};

use xdp_lb_abi::MAX_SERVICE_BACKENDS;
use xdp_lb_plan::{
    maglev::LADDER,
    model::{Backend, Frontend, Mode, Protocol, Service},
};

use super::{read::At, value};

/// Slots that a table has at least for each backend, unless it is the largest there is.
const SLOTS_PER_BACKEND: usize = 100;

/// The forwarding mode; those of later versions are known, so that the message can say so.
pub(super) fn mode(at: &At<'_>) -> Option<Mode> {
    let text = at.scalar("`l2` or `ipip`")?;
    if matches!(text, "geneve" | "local" | "snat" | "hybrid") {
        at.mistake(format_args!("mode {text} is not in this version: write `l2` or `ipip`"));
        return None;
    }
    at.choice(&[("l2", Mode::L2), ("ipip", Mode::Ipip)])
}

/// Reads services one after another and remembers what must not come twice.
pub(super) struct Reader {
    default_mode: Option<Mode>,
    /// Lines by names
    names: HashMap<String, u32>,
    frontends: HashMap<Frontend, FrontendPlace>,
}

struct FrontendPlace {
    service: usize,
    index: usize,
    line: u32,
}

impl Reader {
    /// Services that name no mode get `default_mode`; nothing where that one is a mistake.
    pub(super) fn new(default_mode: Option<Mode>) -> Self {
        Self { default_mode, names: HashMap::new(), frontends: HashMap::new() }
    }

    /// How many different frontends there are so far.
    pub(super) fn frontends(&self) -> usize {
        self.frontends.len()
    }

    /// The service at `at`, item `number` of the list.
    pub(super) fn read(&mut self, at: &At<'_>, number: usize) -> Option<Service> {
        let fields = at.fields(&["name", "mode", "tableSize", "frontends", "backends"])?;
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
            .and_then(|at| backend_list(&at, mode, frontends.as_deref()));
        let table_size = match fields.optional("tableSize") {
            Some(at) => Some(table_size(&at, backends.as_deref())?),
            None => None,
        };
        Some(Service {
            name: name?,
            frontends: frontends?,
            mode: mode?,
            table_size,
            backends: backends?,
        })
    }

    fn name(&mut self, at: &At<'_>) -> Option<String> {
        let name = value::service_name(at)?;
        if let Some(first) = self.names.get(name) {
            at.mistake(format_args!(
                "the service on line {first} has the same name: write another"
            ));
            return None;
        }
        self.names.insert(name.to_owned(), at.place().line);
        Some(name.to_owned())
    }

    fn frontend_list(&mut self, at: &At<'_>, service: usize) -> Option<Vec<Frontend>> {
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
                    at.mistake(format_args!(
                        "{frontend} is already services[{}].frontends[{}] on line {}: \
                         remove one of the two",
                        first.service, first.index, first.line
                    ));
                    return None;
                }
                let place = FrontendPlace { service, index, line: at.place().line };
                self.frontends.insert(frontend, place);
                Some(frontend)
            })
            .collect();
        all.into_iter().collect()
    }
}

fn frontend(at: &At<'_>) -> Option<Frontend> {
    let fields = at.fields(&["address", "port", "protocol"])?;
    let address = fields.required("address", "address: 203.0.113.10");
    let address = address.and_then(|at| value::host_address(&at));
    let port = fields.required("port", "port: 80").and_then(|at| port(&at));
    let protocol = match fields.optional("protocol") {
        None => Some(Protocol::Tcp),
        Some(at) => protocol(&at),
    };
    Some(Frontend { address: address?, port: port?, protocol: protocol? })
}

fn protocol(at: &At<'_>) -> Option<Protocol> {
    let wanted = "`TCP`, `UDP` or `SCTP`";
    let protocol = at.scalar(wanted)?.parse();
    if protocol.is_err() {
        at.expected(wanted);
    }
    protocol.ok()
}

fn port(at: &At<'_>) -> Option<NonZeroU16> {
    at.number(1..=0xffff).and_then(|port| NonZeroU16::new(u16::try_from(port).ok()?))
}

fn backend_list(
    at: &At<'_>,
    mode: Option<Mode>,
    frontends: Option<&[Frontend]>,
) -> Option<Vec<Backend>> {
    let items = at.items("a list of backends; `[]` where there is none")?;
    if items.len() > MAX_SERVICE_BACKENDS {
        at.mistake(format_args!(
            "{} backends are too many: a service has at most {MAX_SERVICE_BACKENDS}",
            items.len()
        ));
        return None;
    }
    let rules = BackendRules::new(mode, frontends);
    let mut seen = HashMap::with_capacity(items.len());
    let all: Vec<_> = items
        .map(|at| {
            let backend = backend(&at, &rules)?;
            let key = (backend.address, backend.port.or(rules.port));
            if let Some(first) = seen.get(&key) {
                at.mistake(format_args!(
                    "the backend is already on line {first}: remove one, or give it more `weight`"
                ));
                return None;
            }
            seen.insert(key, at.place().line);
            Some(backend)
        })
        .collect();
    all.into_iter().collect()
}

/// What the rest of a service asks of its backends.
struct BackendRules {
    mode: Option<Mode>,
    /// The frontends' port, where they all have the same
    port: Option<NonZeroU16>,
    own: HashSet<IpAddr>,
    /// Whether the frontends are known; otherwise nothing is said about ports
    known: bool,
}

impl BackendRules {
    fn new(mode: Option<Mode>, frontends: Option<&[Frontend]>) -> Self {
        let known = frontends.is_some();
        let frontends = frontends.unwrap_or_default();
        let first = frontends.first().map(|frontend| frontend.port);
        let port = first.filter(|port| frontends.iter().all(|f| f.port == *port));
        let own = frontends.iter().map(|frontend| frontend.address).collect();
        Self { mode, port, own, known }
    }
}

fn backend(at: &At<'_>, rules: &BackendRules) -> Option<Backend> {
    let fields = at.fields(&["address", "port", "weight"])?;
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
    Some(Backend { address: address?, port, weight })
}

fn backend_port(at: &At<'_>, rules: &BackendRules) -> Option<NonZeroU16> {
    let port = port(at)?;
    let name = match rules.mode {
        Some(Mode::L2) => "l2",
        Some(Mode::Ipip) => "ipip",
        None => return Some(port),
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
