//! kube-proxy's virtual servers in IPVS, by /proc/net/ip_vs.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use super::{
    Family,
    served::{Answer, At, NodeAddresses, Served},
};

/// The dummy device that has all addresses of services.
pub(super) const DEVICE: &str = "kube-ipvs0";
/// What names of its sets of addresses begin with (ipset(8)).
pub(super) const SETS: &str = "KUBE-";
/// Its own ones among them: others may begin so, too.
const SET_NAMES: [&str; 17] = [
    "LOOP-BACK",
    "CLUSTER-IP",
    "EXTERNAL-IP",
    "EXTERNAL-IP-LOCAL",
    "LOAD-BALANCER",
    "LOAD-BALANCER-LOCAL",
    "LOAD-BALANCER-FW",
    "LOAD-BALANCER-SOURCE-IP",
    "LOAD-BALANCER-SOURCE-CIDR",
    "NODE-PORT-TCP",
    "NODE-PORT-LOCAL-TCP",
    "NODE-PORT-UDP",
    "NODE-PORT-LOCAL-UDP",
    "NODE-PORT-SCTP-HASH",
    "NODE-PORT-LOCAL-SCTP-HASH",
    "HEALTH-CHECK-NODE-PORT",
    "IPVS-IPS",
];

/// Whether kube-proxy makes sets of this name for a family: of IPv6 they begin with `KUBE-6-`.
pub(super) fn is_set(family: Family, name: &str) -> bool {
    let Some(rest) = name.strip_prefix(SETS) else { return false };
    let (of, rest) = match rest.strip_prefix("6-") {
        Some(rest) => (Family::V6, rest),
        None => (Family::V4, rest),
    };
    of == family && SET_NAMES.contains(&rest)
}

/// A virtual server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Virtual {
    pub(super) at: SocketAddr,
    /// `TCP`, `UDP` or `SCTP`
    pub(super) protocol: String,
    pub(super) scheduler: String,
    /// Seconds for which a client stays
    pub(super) persistent: Option<u32>,
    /// Where it leads, and the weight
    pub(super) real: Vec<(SocketAddr, u32)>,
}

/// Reads /proc/net/ip_vs; addresses and ports there are hexadecimal.
pub(super) fn parse(text: &str) -> Result<Vec<Virtual>, String> {
    let mut all: Vec<Virtual> = Vec::new();
    // Three lines of head.
    for line in text.lines().skip(3).filter(|line| !line.trim().is_empty()) {
        let wrong = || format!("there is no server in {line:?}");
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["->", real, _, weight, ..] => {
                let real = socket(real).ok_or_else(wrong)?;
                let weight = weight.parse().map_err(|_| wrong())?;
                all.last_mut().ok_or_else(wrong)?.real.push((real, weight));
            }
            [protocol @ ("TCP" | "UDP" | "SCTP"), at, scheduler, flags @ ..] => {
                let persistent = flags.iter().position(|word| *word == "persistent");
                let persistent = persistent.and_then(|at| flags.get(at + 1)?.parse().ok());
                all.push(Virtual {
                    at: socket(at).ok_or_else(wrong)?,
                    protocol: (*protocol).to_owned(),
                    scheduler: (*scheduler).to_owned(),
                    persistent,
                    real: Vec::new(),
                });
            }
            // By mark: never kube-proxy's.
            ["FWM", ..] => {
                let at = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
                let (protocol, scheduler) = ("FWM".to_owned(), String::new());
                all.push(Virtual { at, protocol, scheduler, persistent: None, real: Vec::new() });
            }
            _ => return Err(wrong()),
        }
    }
    Ok(all)
}

fn socket(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.rsplit_once(':')?;
    let address: IpAddr = match address.strip_prefix('[') {
        Some(v6) => v6.strip_suffix(']')?.parse().ok()?,
        None => Ipv4Addr::from_bits(u32::from_str_radix(address, 16).ok()?).into(),
    };
    Some(SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?))
}

/// Which of them are kube-proxy's: those on addresses of its device, and node ports of its sets.
pub(super) fn own(
    all: &[Virtual],
    device: &BTreeSet<IpAddr>,
    node_ports: &BTreeSet<(String, u16)>,
) -> Vec<Virtual> {
    let is_own = |one: &&Virtual| {
        device.contains(&one.at.ip()) || node_ports.contains(&(one.protocol.clone(), one.at.port()))
    };
    all.iter().filter(is_own).cloned().collect()
}

/// The node ports in what `ipset save` prints.
pub(super) fn node_ports(sets: &str) -> BTreeSet<(String, u16)> {
    let port = |line: &str| {
        let (set, entry) = line.strip_prefix("add ")?.split_once(' ')?;
        let rest = set.strip_prefix(SETS)?;
        let protocol = rest.strip_prefix("6-").unwrap_or(rest).strip_prefix("NODE-PORT-")?;
        let protocol = protocol.strip_prefix("LOCAL-").unwrap_or(protocol);
        let protocol = protocol.split('-').next()?.to_owned();
        // `30080`, or `10.0.0.1,sctp:30080`.
        let port = entry.split_whitespace().next()?.rsplit(':').next()?;
        Some((protocol, port.parse().ok()?))
    };
    sets.lines().filter_map(port).collect()
}

/// What virtual servers serve; those of one node port are one.
pub(super) fn served(all: &[Virtual], device: &BTreeSet<IpAddr>) -> Vec<Served> {
    let mut found: Vec<Served> = Vec::new();
    for one in all {
        let weighty = one.real.iter().filter(|(_, weight)| *weight > 0);
        let endpoints: BTreeSet<SocketAddr> = weighty.map(|(real, _)| *real).collect();
        let answer =
            if endpoints.is_empty() { Answer::Refused } else { Answer::Endpoints(endpoints) };
        let ip = one.at.ip();
        let is_node_port = !device.contains(&ip);
        let at = if is_node_port {
            At::NodePort(NodeAddresses::These([ip].into()))
        } else {
            At::Address(ip)
        };
        let (port, protocol) = (one.at.port(), one.protocol.clone());
        // Its own address: whether of a cluster or a load balancer is not told.
        let kind = if is_node_port { "NodePort" } else { "Service" };
        let service = String::new();
        let new = Served { at, port, protocol, kind, service, answer, inside: None };
        match found.iter_mut().find_map(|other| same_node_port(other, &new)) {
            Some(addresses) => drop(addresses.insert(ip)),
            None => found.push(new),
        }
    }
    found
}

/// The addresses of a node port, where another server is the same one's.
fn same_node_port<'a>(one: &'a mut Served, other: &Served) -> Option<&'a mut BTreeSet<IpAddr>> {
    let of = |one: &Served| (one.port, one.protocol.clone(), one.answer.clone());
    let same = of(one) == of(other);
    match (&mut one.at, &other.at) {
        (At::NodePort(NodeAddresses::These(all)), At::NodePort(_)) if same => Some(all),
        (At::NodePort(_) | At::Address(_), _) => None,
    }
}

/// What `ip -batch` reads to do something with addresses of the device.
pub(super) fn batch(action: &str, addresses: impl Iterator<Item = IpAddr>) -> String {
    let length = |ip: IpAddr| if ip.is_ipv4() { 32 } else { 128 };
    addresses.map(|ip| format!("address {action} {ip}/{} dev {DEVICE}\n", length(ip))).collect()
}

/// The words of ipvsadm(8) that remove each.
pub(super) fn removal(all: &[Virtual]) -> Vec<[String; 3]> {
    let one = |one: &Virtual| ["-D".to_owned(), flag(one).to_owned(), one.at.to_string()];
    all.iter().map(one).collect()
}

/// What `ipvsadm --restore` reads to have them again.
pub(super) fn restoration(all: &[Virtual]) -> String {
    let mut text = String::new();
    for one in all {
        let (flag, at) = (flag(one), one.at);
        let persistent = one.persistent.map(|seconds| format!(" -p {seconds}")).unwrap_or_default();
        text.push_str(&format!("-A {flag} {at} -s {}{persistent}\n", one.scheduler));
        for (real, weight) in &one.real {
            text.push_str(&format!("-a {flag} {at} -r {real} -m -w {weight}\n"));
        }
    }
    text
}

fn flag(one: &Virtual) -> &'static str {
    match one.protocol.as_str() {
        "UDP" => "-u",
        "SCTP" => "--sctp-service",
        _ => "-t",
    }
}
