//! Whom to ask, and how so that the question goes a client's way. Pure.
//!
//! In modes `l2`, `ipip` and `geneve`, clients' packets get to a backend in a form that the kernel's stack
//! does not make. It is asked at the frontend's address: the question's mark names it, and the program on
//! the way out writes the headers that clients' packets get. Pods on this host and backends of `snat` are
//! asked at their own addresses.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
};

use xdp_lb_abi::{Mode, probe_mark};
use xdp_lb_plan::{
    BackendKey,
    health::{HealthCheck, Probe},
    maglev::Identity,
    model::{Backend, Frontend, Protocol, Service},
};

use super::Targets;
use crate::{
    config::Config,
    net::{Path, View, Why},
    topology,
};

/// A backend to be asked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Target {
    /// Where it is asked
    pub to: SocketAddr,
    /// How it is asked
    pub check: HealthCheck,
    /// Mark of the question's packets
    pub mark: Option<u32>,
    /// Why it is asked at its own address, though clients' packets do not have it
    pub note: Option<String>,
}

/// The frontend at whose address a backend is asked, where its packets need headers that only the packet
/// path writes: one of the protocol that asks, or the first. `v6` is the backend's family.
pub fn asked_at(service: &Service, v6: bool) -> Option<&Frontend> {
    let check = service.health_check.as_ref()?;
    let fits = |protocol, family| match service.mode.forwarding(protocol, false) {
        Mode::L2 | Mode::Ipip => true,
        Mode::Geneve => family == v6,
        Mode::Local | Mode::Snat => false,
    };
    if !fits(asks(check), v6) {
        return None;
    }
    let frontends = service.frontends.iter();
    let mut frontends = frontends.filter(|one| fits(one.protocol, one.address.is_ipv6()));
    let first = frontends.clone().next();
    frontends.find(|one| one.protocol == asks(check)).or(first)
}

/// All backends of services that have a check; `ids` are those of the data path, `name` is what the API
/// calls a backend.
pub fn targets<'a>(
    config: &Config,
    view: &View,
    ids: impl Iterator<Item = (u32, &'a BackendKey)>,
    name: impl Fn(&Backend) -> String,
) -> Targets {
    let known = ids.map(|(id, key)| ((key.identity, key.mode), id));
    let known: HashMap<(Identity, Mode), u32> = known.collect();
    let node = topology::node(config, view);
    let mut targets = Targets::new();
    for service in &config.services {
        let Some(check) = &service.health_check else { continue };
        let ways = [false, true].map(|v6| way(service, check, v6, config, view));
        for backend in &service.backends {
            // To a pod of this host, the stack's own way is that of clients' packets.
            let here = !service.mode.keeps_destination() && node.has(backend);
            let target = match &ways[usize::from(backend.address.is_ipv6())] {
                _ if here => direct(service, check, backend, None),
                Way::Direct(note) => direct(service, check, backend, note.clone()),
                Way::Marked(frontend) => marked(service, check, backend, frontend, &known),
                Way::Unknown => None,
            };
            targets.insert((service.name.clone(), name(backend)), target);
        }
    }
    targets
}

/// How the backends of a service are asked.
enum Way {
    /// At their own addresses; and why, where clients' packets come in another form
    Direct(Option<String>),
    /// At the frontend's address
    Marked(Frontend),
    /// It will soon be known
    Unknown,
}

fn way(service: &Service, check: &HealthCheck, v6: bool, config: &Config, view: &View) -> Way {
    let Some(frontend) = asked_at(service, v6) else {
        // Where packets are rewritten, they reach the backend at its own address.
        let missing = "the service has no frontend with an address".to_owned();
        return Way::Direct(service.mode.keeps_destination().then_some(missing));
    };
    let other_port = check.port.is_some_and(|port| port != frontend.port);
    if other_port && !service.mode.keeps_destination() {
        // The frontend's port becomes the backend's, and no other.
        return Way::Direct(None);
    }
    let address = frontend.address;
    match view.paths.get(&address) {
        None | Some(Path::Unresolved { why: Why::Pending | Why::NoNeighbour { .. } }) => {
            Way::Unknown
        }
        Some(Path::Local) => Way::Direct(Some(format!("{address} is an address of this host"))),
        Some(Path::Unresolved { why }) => {
            Way::Direct(Some(format!("no path to {address}, which a question needs: {why}")))
        }
        Some(Path::Ready { device, .. }) => {
            let name = view.links.get(device).map_or("?", |link| &link.name);
            if config.devices.iter().any(|device| device.name == name) {
                return Way::Marked(*frontend);
            }
            Way::Direct(Some(format!(
                "the route to {address} leaves by {name}, which is none of `devices`"
            )))
        }
    }
}

/// The protocol of a check's questions.
fn asks(check: &HealthCheck) -> Protocol {
    match check.probe {
        Probe::Udp(_) => Protocol::Udp,
        Probe::Tcp | Probe::Http(_) => Protocol::Tcp,
    }
}

fn direct(
    service: &Service,
    check: &HealthCheck,
    backend: &Backend,
    note: Option<String>,
) -> Option<Target> {
    let ports = service.frontends.iter().map(|one| one.port);
    let mut ports = ports.chain(service.node_ports.iter().map(|one| one.port));
    let port = check.port.or(backend.port).or_else(|| ports.next())?;
    Some(Target { note, ..Target::at(socket(backend.address, port), check.clone()) })
}

fn marked(
    service: &Service,
    check: &HealthCheck,
    backend: &Backend,
    frontend: &Frontend,
    known: &HashMap<(Identity, Mode), u32>,
) -> Option<Target> {
    let Frontend { address, port, protocol } = *frontend;
    let identity =
        Identity { address: backend.address, port: backend.port.unwrap_or(port).get(), protocol };
    let mode = service.mode.forwarding(protocol, false);
    let mark = known.get(&(identity, mode)).and_then(|id| probe_mark(*id))?;
    let to = socket(address, check.port.unwrap_or(port));
    Some(Target { mark: Some(mark), ..Target::at(to, check.clone()) })
}

fn socket(address: IpAddr, port: NonZeroU16) -> SocketAddr {
    SocketAddr::new(address, port.get())
}
