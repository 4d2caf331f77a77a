//! What an index says, in few words.

use std::{fmt::Write, net::IpAddr};

use xdp_lb_abi::{Family, Scope};
use xdp_lb_plan::{
    kubernetes::{Endpoint, FrontendState, Index, PortState, Served, ServiceState},
    model::{Backend, Mode, NoBackends, Service},
};

/// What an index says, in few words. `shop/web` is left out where it begins a name.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    pub(crate) serves: Vec<String>,
    pub(crate) lists: Vec<String>,
    pub(crate) endpoints: Vec<String>,
    pub(crate) findings: Vec<String>,
    pub(crate) health: String,
}

impl Shown {
    pub(crate) fn of(index: &Index) -> Self {
        let mut shown = Self { health: "none".into(), ..Self::default() };
        let name = |key: String| key.replace("shop/web", "");
        for state in index.states() {
            shown.serves.extend(state.services.iter().map(serves));
            shown.findings.extend(state.findings.iter().map(ToString::to_string));
            let prefix = name(state.key.to_string());
            for port in &state.ports {
                let frontends = port.frontends.iter();
                shown.lists.extend(frontends.map(|one| format!("{prefix} {}", list(one, port))));
                shown.endpoints.extend(port.endpoints.iter().map(endpoint));
            }
            if let Some(health) = health(state) {
                shown.health = health;
            }
        }
        for line in &mut shown.lists {
            *line = line.trim().to_owned();
        }
        shown.findings.extend(index.findings().iter().map(ToString::to_string));
        shown
    }
}

/// `NAME TRAIT…: FRONTEND, … -> BACKEND, …`
fn serves(service: &Service) -> String {
    let mut line = service.name.strip_prefix("shop/web/").unwrap_or(&service.name).to_owned();
    if service.scope == Scope::Sockets {
        line.push_str(" sockets");
    }
    if service.sockets_apart {
        line.push_str(" apart");
    }
    if service.mode != Mode::Geneve && service.scope == Scope::All {
        write!(line, " {}", service.mode.as_str()).unwrap();
    }
    if service.no_backends == NoBackends::Drop {
        line.push_str(" drop");
    }
    if let Some(time) = service.affinity {
        write!(line, " affinity={}", time.as_secs()).unwrap();
    }
    if let Some(size) = service.table_size {
        write!(line, " size={size}").unwrap();
    }
    for net in &service.sources {
        write!(line, " from={net}").unwrap();
    }
    let at = service
        .frontends
        .iter()
        .map(|one| format!("{}/{}", socket(one.address, one.port.get()), one.protocol));
    let star = match service.node_port_family {
        Some(Family::V4) => "*4",
        Some(Family::V6) => "*6",
        None => "*",
    };
    let ports =
        service.node_ports.iter().map(|one| format!("{star}:{}/{}", one.port, one.protocol));
    let at: Vec<String> = at.chain(ports).collect();
    let backends: Vec<String> = service.backends.iter().map(backend).collect();
    format!("{line}: {} -> {}", at.join(", "), backends.join(", ")).trim_end().to_owned()
}

/// `ADDRESS:PORT@NODE*WEIGHT`
fn backend(backend: &Backend) -> String {
    let mut text = socket(backend.address, backend.port.unwrap().get());
    if let Some(node) = backend.node {
        write!(text, "@{}", node_name(node)).unwrap();
    }
    if backend.weight != 1 {
        write!(text, "*{}", backend.weight).unwrap();
    }
    text
}

/// The name of a Node that every case has.
fn node_name(address: IpAddr) -> String {
    match address.to_string().as_str() {
        "10.0.0.1" | "2001:db8::a" => "a".into(),
        "10.0.0.2" | "2001:db8::b" => "b".into(),
        "10.0.0.3" | "2001:db8::c" => "c".into(),
        other => other.into(),
    }
}

/// `KIND ADDRESS:PORT/PROTOCOL POLICY who`
fn list(one: &FrontendState, port: &PortState) -> String {
    let address = match (one.address, port.family) {
        (Some(address), _) => socket(address, one.port.get()),
        (None, Family::V4) => format!("*4:{}", one.port),
        (None, Family::V6) => format!("*6:{}", one.port),
    };
    let who = match &one.served {
        Served::Here(name) => format!("here {}", name.rsplit('/').next().unwrap()),
        Served::LeftToKubeProxy => "left".into(),
        Served::OtherClass => "other class".into(),
        Served::Taken(key) => format!("taken by {key}"),
        Served::SnatPort => "snat".into(),
        Served::NoHook => "no hook".into(),
    };
    let drop = if one.no_backends == NoBackends::Drop { " drop" } else { "" };
    let filtered = if one.filtered { " filtered" } else { "" };
    format!("{} {address}/{} {}{filtered}{drop} {who}", one.kind, port.protocol, one.policy)
}

/// `ADDRESS:PORT NAME NODE ZONE state POLICY…`
fn endpoint(one: &Endpoint) -> String {
    let text = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    let mut line = format!(
        "{} {} {} {} {}",
        socket(one.address, one.port.get()),
        text(&one.name),
        text(one.node.as_deref().unwrap_or_default()),
        text(one.zone.as_deref().unwrap_or_default()),
        one.state,
    );
    for (is, word) in [(one.cluster, " cluster"), (one.local, " local")] {
        if is {
            line.push_str(word);
        }
    }
    if one.weight != 1 {
        write!(line, " *{}", one.weight).unwrap();
    }
    line
}

/// `PORT: IPv4+IPv6`
fn health(state: &ServiceState) -> Option<String> {
    let check = state.health_check?;
    Some(format!("{}: {}+{}", check.port, check.local_ipv4, check.local_ipv6))
}

fn socket(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}
