//! What kube-proxy serves beside what xdp-lb serves.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
};

use serde::Serialize;
use xdp_lb_api::view::{
    BackendState, DeviceView, FrontendState, FrontendView, HealthState, HealthView, Owner,
};

use super::{
    Error, Family, Found,
    found::addresses,
    served::{Answer, At, NodeAddresses, Served},
};

/// What kube-proxy serves beside what xdp-lb serves.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Comparison {
    /// Frontends of kube-proxy's that were looked at, node ports by address
    pub frontends: usize,
    /// Their endpoints
    pub endpoints: usize,
    /// What xdp-lb does not serve as kube-proxy does
    pub differences: Vec<Difference>,
    /// What to know, and no reason to stay
    pub notes: Vec<String>,
}

/// Something that xdp-lb does not serve as kube-proxy does.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Difference {
    /// Address, port and protocol
    pub frontend: String,
    /// Type of the service
    #[serde(rename = "type")]
    pub kind: String,
    /// The service, as far as kube-proxy's rules name it
    pub service: String,
    /// What is different, and why
    pub reason: String,
    /// What to do about it
    pub advice: String,
}

/// What the daemon tells of itself.
#[derive(Clone, Debug)]
pub struct Told {
    /// What it serves, or does not
    pub frontends: Vec<FrontendView>,
    /// Where clients' packets come in
    pub devices: Vec<DeviceView>,
    /// What it has looked at
    pub health: HealthView,
}

/// Checks of the daemon's without which it serves nothing, whatever its tables say.
const NEEDED: [&str; 3] = ["tables", "devices", "sockets"];

/// Compares them.
///
/// # Errors
///
/// Where some of kube-proxy's rules cannot be read.
pub fn compare(found: &Found, told: &Told) -> Result<Comparison, Error> {
    let attached = told.devices.iter().filter(|one| one.xdp.is_some());
    let local = LocalAddresses {
        on_devices: attached.flat_map(|one| addresses(Some(&one.name))).collect(),
        all: addresses(None).into_iter().collect(),
    };
    let mut result = between(&found.served()?, &told.frontends, &local);
    result.differences.extend(unwell(&told.health));
    Ok(result)
}

/// What is wrong with the data path as a whole.
pub(super) fn unwell(health: &HealthView) -> impl Iterator<Item = Difference> {
    let needed = health.checks.iter().filter(|one| NEEDED.contains(&one.name.as_str()));
    needed.filter(|one| one.state != HealthState::Ok).map(|one| Difference {
        frontend: "all".to_owned(),
        kind: "-".to_owned(),
        service: "-".to_owned(),
        reason: format!("xdp-lb's check `{}`: {}", one.name, one.detail.replace('\n', "; ")),
        advice: "mend what it names; `xdp-lb doctor` may know how".to_owned(),
    })
}

/// Addresses of this host.
#[derive(Clone, Debug, Default)]
pub(super) struct LocalAddresses {
    /// Of the devices that xdp-lb is attached to
    pub(super) on_devices: BTreeSet<IpAddr>,
    pub(super) all: BTreeSet<IpAddr>,
}

/// `ADDRESS:PORT/PROTOCOL`
type Key = (SocketAddr, String);

/// What xdp-lb serves, by its keys.
struct Ours<'a> {
    /// For all who come, or for sockets alone where nothing else may
    outside: HashMap<Key, &'a FrontendView>,
    /// For sockets, where they are led elsewhere
    inside: HashMap<Key, &'a FrontendView>,
    /// Node ports that are not served, by their names
    others: HashMap<&'a str, &'a FrontendView>,
}

impl<'a> Ours<'a> {
    fn of(frontends: &'a [FrontendView]) -> Self {
        let mut ours =
            Self { outside: HashMap::new(), inside: HashMap::new(), others: HashMap::new() };
        for one in frontends {
            let name = one.frontend.strip_suffix("/i").unwrap_or(&one.frontend);
            let key = name.rsplit_once('/').and_then(|(socket, protocol)| {
                Some((socket.parse::<SocketAddr>().ok()?, protocol.to_owned()))
            });
            match key {
                Some(key) if name.len() < one.frontend.len() => drop(ours.inside.insert(key, one)),
                Some(key) => drop(ours.outside.insert(key, one)),
                None => drop(ours.others.insert(&one.frontend, one)),
            }
        }
        ours
    }
}

pub(super) fn between(
    served: &[Served],
    frontends: &[FrontendView],
    local: &LocalAddresses,
) -> Comparison {
    let ours = Ours::of(frontends);
    let mut result = Comparison::default();
    let mut seen = BTreeSet::new();
    // Addresses with node ports of kube-proxy's alone, by their number of ports.
    let mut unserved: BTreeMap<IpAddr, usize> = BTreeMap::new();
    for one in served {
        for (ip, must) in places(one, local) {
            let key = (SocketAddr::new(ip, one.port), one.protocol.clone());
            seen.insert(key.clone());
            if !must && !ours.outside.contains_key(&key) {
                *unserved.entry(ip).or_default() += 1;
                continue;
            }
            result.frontends += 1;
            if let Answer::Endpoints(endpoints) = &one.answer {
                result.endpoints += endpoints.len();
            }
            let found = differences(one, &key, &ours);
            result.differences.extend(found.into_iter().map(|(reason, advice)| Difference {
                frontend: format!("{}/{}", key.0, key.1),
                kind: ours.outside.get(&key).map_or(one.kind, |view| &view.kind).to_owned(),
                service: one.service.clone(),
                reason,
                advice,
            }));
        }
    }
    for (ip, ports) in unserved {
        result.notes.push(format!(
            "kube-proxy answers {ports} node ports on {ip}, too, which is on no device of xdp-lb's: \
             `nodePortAddresses` names whose addresses have them"
        ));
    }
    let only_ours = ours.outside.iter().filter(|(key, one)| {
        one.owner == Owner::Kubernetes && one.state == FrontendState::Served && !seen.contains(*key)
    });
    let mut only_ours: Vec<&str> = only_ours.map(|(_, one)| one.frontend.as_str()).collect();
    only_ours.sort_unstable();
    if !only_ours.is_empty() {
        let (count, some) = (only_ours.len(), only_ours[..only_ours.len().min(5)].join(", "));
        result.notes.push(format!("xdp-lb alone serves {count} frontends, among them {some}"));
    }
    result
}

/// The addresses where clients reach it, and whether xdp-lb must have it there.
fn places(one: &Served, local: &LocalAddresses) -> Vec<(IpAddr, bool)> {
    match &one.at {
        At::Address(ip) => vec![(*ip, true)],
        At::NodePort(NodeAddresses::These(all)) => all.iter().map(|ip| (*ip, true)).collect(),
        At::NodePort(NodeAddresses::All { family, loopback }) => {
            let own =
                local.all.iter().filter(|ip| Family::of(**ip) == *family && !ip.is_loopback());
            let own = own.map(|ip| (*ip, local.on_devices.contains(ip)));
            // How xdp-lb writes that a node port is on loopback addresses.
            let unspecified = match family {
                Family::V4 => IpAddr::from([0; 4]),
                Family::V6 => IpAddr::from([0; 16]),
            };
            own.chain(loopback.then_some((unspecified, true))).collect()
        }
    }
}

/// What is different about one, and what to do.
fn differences(one: &Served, key: &Key, ours: &Ours<'_>) -> Vec<(String, String)> {
    let Some(view) = ours.outside.get(key) else { return vec![missing(one, key, ours)] };
    if view.state != FrontendState::Served {
        return vec![not_served(view)];
    }
    if view.kind != "ClusterIP" && !key.0.ip().is_unspecified() && view.mode == "socket" {
        let reason = "xdp-lb serves it for sockets of this host and its pods alone";
        let advice = "attach xdp-lb to the device that clients' packets come in by (`devices`)";
        return vec![(reason.to_owned(), advice.to_owned())];
    }
    let inside = one.inside.clone().map(Answer::Endpoints);
    let from_inside = ours.inside.get(key).unwrap_or(view);
    // Nobody outside sends to loopback addresses.
    if key.0.ip().is_unspecified() {
        return answers(inside.as_ref().unwrap_or(&one.answer), from_inside);
    }
    let mut found = answers(&one.answer, view);
    if let Some(inside) = &inside {
        let more = answers(inside, from_inside).into_iter();
        found.extend(
            more.map(|(reason, advice)| (format!("for pods and this host: {reason}"), advice)),
        );
    }
    found
}

/// kube-proxy has it, and xdp-lb knows nothing of it.
fn missing(one: &Served, key: &Key, ours: &Ours<'_>) -> (String, String) {
    let name = format!("nodePort {}/{}", one.port, one.protocol);
    if let Some(view) = ours.others.get(name.as_str()) {
        return not_served(view);
    }
    let is_node_port = matches!(one.at, At::NodePort(_));
    if is_node_port && key.0.ip().is_unspecified() {
        let reason = "kube-proxy answers this node port on 127.0.0.0/8, xdp-lb does not";
        let advice = "set `socketLB.loopbackNodePorts: true`, or start kube-proxy with \
                      --iptables-localhost-nodeports=false if nobody uses them";
        return (reason.to_owned(), advice.to_owned());
    }
    if is_node_port && ours.has_node_port(one) {
        let reason = format!("xdp-lb has this node port, but not on {}", key.0.ip());
        let advice = "name the address's prefix in `nodePortAddresses`";
        return (reason, advice.to_owned());
    }
    let advice = "see `xdp-lb status` whether the cluster has been read and what is wrong, and \
                  `xdp-lb service list` for what is served";
    ("xdp-lb does not have it".to_owned(), advice.to_owned())
}

impl Ours<'_> {
    fn has_node_port(&self, one: &Served) -> bool {
        self.outside.iter().any(|((at, protocol), view)| {
            at.port() == one.port && *protocol == one.protocol && view.kind == "NodePort"
        })
    }
}

fn not_served(view: &FrontendView) -> (String, String) {
    let why = view.reason.as_deref().unwrap_or("no reason is told");
    let (what, advice) = match view.state {
        FrontendState::Served => ("xdp-lb serves it", ""),
        FrontendState::Pending => ("xdp-lb is about to serve it", "wait a moment"),
        FrontendState::Refused => ("xdp-lb refuses it", "mend what the reason names"),
        FrontendState::Elsewhere => (
            "xdp-lb leaves it to others",
            "enable it (`kubeProxyReplacement`, `socketLB`, `loadBalancerClass`), or remove the service",
        ),
    };
    (format!("{what}: {why}"), advice.to_owned())
}

/// The backends that new connections are led to.
fn chosen(view: &FrontendView) -> BTreeSet<SocketAddr> {
    let of = |state: BackendState| -> BTreeSet<SocketAddr> {
        let all = view.backends.iter().filter(|one| one.state == state);
        all.filter_map(|one| one.backend.parse().ok()).collect()
    };
    let active = of(BackendState::Active);
    // They get new connections where no other is left.
    if active.is_empty() { of(BackendState::Terminating) } else { active }
}

fn answers(theirs: &Answer, view: &FrontendView) -> Vec<(String, String)> {
    let ours = chosen(view);
    let nothing = BTreeSet::new();
    let theirs = match theirs {
        Answer::Endpoints(endpoints) => endpoints,
        Answer::Refused | Answer::Dropped => &nothing,
    };
    let list = |all: Vec<&SocketAddr>| {
        let all: Vec<String> = all.iter().map(|one| one.to_string()).collect();
        all.join(", ")
    };
    let mut found = Vec::new();
    for lost in theirs.difference(&ours) {
        let known = view.backends.iter().find(|one| one.backend.parse() == Ok(*lost));
        found.push(match known.map(|one| one.state) {
            None => (
                format!("xdp-lb does not have its endpoint {lost}"),
                "wait a moment; if it stays, see check `kubernetes` in `xdp-lb status`".to_owned(),
            ),
            Some(BackendState::Unreachable) => (
                format!("xdp-lb cannot reach its endpoint {lost}"),
                "`xdp-lb backend list -o wide` says why".to_owned(),
            ),
            Some(state) => (
                format!("endpoint {lost} gets new connections from kube-proxy, but not from xdp-lb: it is {state}"),
                "`xdp-lb backend list -o wide` says more; `xdp-lb backend undrain` gives it new ones".to_owned(),
            ),
        });
    }
    let more: Vec<&SocketAddr> = ours.difference(theirs).collect();
    if !more.is_empty() {
        found.push((
            format!("xdp-lb leads to {}, kube-proxy does not", list(more)),
            "wait a moment; if it stays, one of the two does not follow the cluster: see their logs"
                .to_owned(),
        ));
    }
    found
}
