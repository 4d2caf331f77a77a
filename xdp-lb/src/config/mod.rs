//! The configuration file: YAML in, a checked [`Config`] or every mistake out.
//!
//! Pure: the caller reads the file. `docs/configuration.md` describes the format.

mod mistake;
mod read;
mod service;
mod tree;
mod value;

use std::{collections::HashMap, fmt, ops::RangeInclusive, time::Duration};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use xdp_lb_plan::model::{Mode, Service};

use mistake::Sink;
pub use mistake::{Mistake, Mistakes};
use read::At;
use tree::Place;

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
    /// Sizes of the data path's tables
    pub limits: Limits,
    /// How many ICMP errors a CPU may send a second
    pub icmp_errors_per_second: u32,
    /// How long a slot's old and new backend both own flows; zero switches that off
    pub handover: Duration,
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
            limits,
            icmp_errors_per_second,
            handover,
            services,
        } = self;
        f.debug_struct("Config")
            .field("devices", devices)
            .field("hash_key", &format_args!("(secret)"))
            .field("tunnel", tunnel)
            .field("terminate", terminate)
            .field("limits", limits)
            .field("icmp_errors_per_second", icmp_errors_per_second)
            .field("handover", handover)
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
    /// Outer sources that are accepted; at least one, none twice
    pub peers: Vec<IpNet>,
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
}

impl Default for Limits {
    fn default() -> Self {
        Self { frontends: 16_384, backends: 131_072, slots: 16_777_216, flows: 262_144 }
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
        "limits",
        "icmpErrorsPerSecond",
        "handover",
    ])?;
    let hash_key = fields
        .required("hashKey", "hashKey: \"<32 hexadecimal digits>\"")
        .and_then(|at| value::hash_key(&at));
    let devices = fields.required("devices", "devices: [{name: eth0}]").and_then(|at| devices(&at));
    let default_mode =
        fields.optional("defaultMode").map_or(Some(Mode::L2), |at| service::mode(&at));
    let tunnel = fields.optional("tunnel").map_or(Some(Tunnel::default()), |at| tunnel(&at));
    let terminate = fields.optional("terminate").map(|at| terminate(&at));
    let limits = fields.optional("limits").map_or(Some(Limits::default()), |at| limits(&at));
    let icmp_errors_per_second =
        fields.optional("icmpErrorsPerSecond").map_or(Some(100), |at| at.number(0..=1_000_000));
    let handover = fields
        .optional("handover")
        .map_or(Some(Duration::from_secs(300)), |at| value::duration(&at));
    let services = fields
        .optional("services")
        .map_or(Some(Vec::new()), |at| services(&at, default_mode, limits.as_ref()));
    Some(Config {
        devices: devices?,
        hash_key: hash_key?,
        tunnel: tunnel?,
        terminate: match terminate {
            Some(terminate) => Some(terminate?),
            None => None,
        },
        limits: limits?,
        icmp_errors_per_second: icmp_errors_per_second?,
        handover: handover?,
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
    let fields = at.fields(&["peers"])?;
    let at = fields.required("peers", "peers: [10.0.0.0/24]")?;
    let items = at.items("a list of prefixes, like `[10.0.0.0/24]`")?;
    if items.len() == 0 {
        at.mistake("there is no peer: add a prefix, or remove `terminate`");
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
    Some(Terminate { peers: all.into_iter().collect::<Option<_>>()? })
}

fn limits(at: &At<'_>) -> Option<Limits> {
    let fields = at.fields(&["frontends", "backends", "slots", "flows"])?;
    let limit = |key, default, range: RangeInclusive<u32>| {
        fields.optional(key).map_or(Some(default), |at| at.number(range))
    };
    let default = Limits::default();
    // The upper bounds keep each table within about a gigabyte.
    let frontends = limit("frontends", default.frontends, 1..=1 << 20);
    let backends = limit("backends", default.backends, 1..=1 << 23);
    let slots = limit("slots", default.slots, 1..=1 << 29);
    let flows = limit("flows", default.flows, 1..=1 << 23);
    Some(Limits { frontends: frontends?, backends: backends?, slots: slots?, flows: flows? })
}

fn services(
    at: &At<'_>,
    default_mode: Option<Mode>,
    limits: Option<&Limits>,
) -> Option<Vec<Service>> {
    let items = at.items("a list of services; `[]` where there is none")?;
    let mut reader = service::Reader::new(default_mode);
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
