//! The little of a Service that the rules use.

use std::{collections::BTreeSet, net::IpAddr, num::NonZeroU16, sync::Arc, time::Duration};

use ipnet::IpNet;
use k8s_openapi::{api::core::v1, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use xdp_lb_abi::Family;

use crate::{
    kubernetes::{
        Key, Problem, ServiceType, TrafficPolicy,
        address::{family, host, network},
        annotations::Annotations,
        finding::Flaw,
    },
    model::Protocol,
};

const OTHER_PROXY: &str = "service.kubernetes.io/service-proxy-name";
/// What the API server fills in.
const AFFINITY_SECONDS: u64 = 10_800;
/// The longest name that the model has, without the longest `/65535-sctp-ipv4-external`.
const LONGEST_KEY: usize = 253 - 25;

/// The little of a Service that the rules use.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Service {
    pub(super) uid: Arc<str>,
    /// `metadata.creationTimestamp` in seconds since the epoch
    pub(super) created: i64,
    pub(super) kind: ServiceType,
    pub(super) class: Option<Box<str>>,
    pub(super) external_policy: TrafficPolicy,
    pub(super) internal_policy: TrafficPolicy,
    pub(super) traffic_distribution: Option<Arc<str>>,
    pub(super) affinity: Option<Duration>,
    pub(super) source_ranges: Vec<IpNet>,
    pub(super) health_check_port: Option<NonZeroU16>,
    pub(super) ipv4: FamilyAddresses,
    pub(super) ipv6: FamilyAddresses,
    pub(super) ports: Vec<ServicePort>,
    pub(super) annotations: Annotations,
    pub(super) flaws: Vec<Flaw>,
}

/// A Service's addresses of one family.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct FamilyAddresses {
    /// Whether the Service is of this family at all
    pub(super) served: bool,
    pub(super) cluster_ip: Option<IpAddr>,
    pub(super) external_ips: BTreeSet<IpAddr>,
    pub(super) load_balancer: BTreeSet<IpAddr>,
}

/// A port of a Service.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct ServicePort {
    pub(super) name: Arc<str>,
    pub(super) port: NonZeroU16,
    pub(super) protocol: Protocol,
    pub(super) node_port: Option<NonZeroU16>,
}

/// Whether kube-proxy would serve it: it has an address inside the cluster, and nobody else's proxy
/// is to serve it.
pub(super) fn is_served(service: &v1::Service) -> bool {
    let labels = service.metadata.labels.as_ref();
    if labels.is_some_and(|labels| labels.contains_key(OTHER_PROXY)) {
        return false;
    }
    let Some(spec) = &service.spec else { return false };
    let cluster_ip = spec.cluster_ip.as_deref().unwrap_or_default();
    !matches!(cluster_ip, "" | "None") && spec.type_.as_deref() != Some("ExternalName")
}

impl Service {
    /// Reads a Service that [`is_served`].
    pub(super) fn read(service: &v1::Service) -> Self {
        let mut flaws = Vec::new();
        let empty = v1::ServiceSpec::default();
        let spec = service.spec.as_ref().unwrap_or(&empty);
        let kind = match spec.type_.as_deref() {
            Some("LoadBalancer") => ServiceType::LoadBalancer,
            Some("NodePort") => ServiceType::NodePort,
            _ => ServiceType::ClusterIp,
        };
        let has_name = has_name(&service.metadata, &mut flaws);
        let mut one = Self {
            uid: service.metadata.uid.as_deref().unwrap_or_default().into(),
            created: created(&service.metadata),
            kind,
            class: spec.load_balancer_class.as_deref().map(Box::from),
            external_policy: TrafficPolicy::Cluster,
            internal_policy: policy(
                spec.internal_traffic_policy.as_deref(),
                "spec.internalTrafficPolicy",
                &mut flaws,
            ),
            traffic_distribution: spec.traffic_distribution.as_deref().map(Arc::from),
            affinity: affinity(spec, &mut flaws),
            source_ranges: source_ranges(spec, &mut flaws),
            health_check_port: None,
            ipv4: FamilyAddresses::default(),
            ipv6: FamilyAddresses::default(),
            ports: if has_name { ports(spec, &mut flaws) } else { Vec::new() },
            annotations: Annotations::read(service.metadata.annotations.as_ref(), &mut flaws),
            flaws: Vec::new(),
        };
        one.read_cluster_ips(spec, &mut flaws);
        one.read_external_ips(spec, &mut flaws);
        one.read_ingress(service.status.as_ref(), &mut flaws);
        // As kube-proxy: without a way in from outside, the policy means nothing.
        let external_ips = spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty());
        if kind != ServiceType::ClusterIp || external_ips {
            let field = "spec.externalTrafficPolicy";
            one.external_policy =
                policy(spec.external_traffic_policy.as_deref(), field, &mut flaws);
        }
        let checked =
            kind == ServiceType::LoadBalancer && one.external_policy == TrafficPolicy::Local;
        let port = spec.health_check_node_port.filter(|port| checked && *port != 0);
        let field = || "spec.healthCheckNodePort".to_owned();
        one.health_check_port = port.and_then(|port| port_number(port, field, &mut flaws));
        one.flaws = flaws;
        one
    }

    /// The families that it is served in, with its addresses of them.
    pub(super) fn families(&self) -> impl Iterator<Item = (Family, &FamilyAddresses)> {
        let both = [(Family::V4, &self.ipv4), (Family::V6, &self.ipv6)];
        both.into_iter().filter(|(_, addresses)| addresses.served)
    }

    fn of(&mut self, family: Family) -> &mut FamilyAddresses {
        match family {
            Family::V4 => &mut self.ipv4,
            Family::V6 => &mut self.ipv6,
        }
    }

    /// Each family's address inside the cluster, found as kube-proxy does.
    fn read_cluster_ips(&mut self, spec: &v1::ServiceSpec, flaws: &mut Vec<Flaw>) {
        let first = spec.cluster_ip.as_deref().unwrap_or_default();
        let all = spec.cluster_ips.as_deref().unwrap_or_default();
        let families = spec.ip_families.as_deref().unwrap_or_default();
        if families.is_empty() {
            let written = host(first).map_or(Family::V4, family);
            self.set_cluster_ip(written, first, "spec.clusterIP".into(), flaws);
        }
        for (index, name) in families.iter().enumerate() {
            let Some(text) = all.get(index).map(String::as_str) else { continue };
            let family = match name.as_str() {
                "IPv4" => Family::V4,
                "IPv6" => Family::V6,
                _ => continue,
            };
            if !text.is_empty() && !self.of(family).served {
                self.set_cluster_ip(family, text, format!("spec.clusterIPs[{index}]"), flaws);
            }
        }
    }

    fn set_cluster_ip(&mut self, of: Family, text: &str, field: String, flaws: &mut Vec<Flaw>) {
        let address = host(text).filter(|address| family(*address) == of);
        if address.is_none() {
            flaws.push(Flaw::new(field, Problem::Address(text.to_owned())));
        }
        let addresses = self.of(of);
        addresses.served = true;
        addresses.cluster_ip = address;
    }

    fn read_external_ips(&mut self, spec: &v1::ServiceSpec, flaws: &mut Vec<Flaw>) {
        for (index, text) in spec.external_ips.iter().flatten().enumerate() {
            let field = || format!("spec.externalIPs[{index}]");
            // The API server lets empty ones through.
            if text.trim().is_empty() {
                continue;
            }
            if let Some(address) = self.served_address(text, field, flaws) {
                self.of(family(address)).external_ips.insert(address);
            }
        }
    }

    fn read_ingress(&mut self, status: Option<&v1::ServiceStatus>, flaws: &mut Vec<Flaw>) {
        let ingress = status.and_then(|status| status.load_balancer.as_ref()?.ingress.as_deref());
        for (index, ingress) in ingress.unwrap_or_default().iter().enumerate() {
            let is_vip = matches!(ingress.ip_mode.as_deref(), None | Some("VIP"));
            let Some(text) = ingress.ip.as_deref().filter(|ip| is_vip && !ip.is_empty()) else {
                continue;
            };
            let field = || format!("status.loadBalancer.ingress[{index}].ip");
            if let Some(address) = self.served_address(text, field, flaws) {
                self.of(family(address)).load_balancer.insert(address);
            }
        }
    }

    /// An address of a family that the Service is of.
    fn served_address(
        &mut self,
        text: &str,
        field: impl Fn() -> String,
        flaws: &mut Vec<Flaw>,
    ) -> Option<IpAddr> {
        let Some(address) = host(text) else {
            flaws.push(Flaw::new(field(), Problem::Address(text.to_owned())));
            return None;
        };
        if !self.of(family(address)).served {
            flaws.push(Flaw::new(field(), Problem::Family(address)));
            return None;
        }
        Some(address)
    }
}

/// Whether the model's services can be named after it.
fn has_name(metadata: &ObjectMeta, flaws: &mut Vec<Flaw>) -> bool {
    let key = Key::of(metadata);
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let both = [&key.namespace, &key.name];
    let fits = both.iter().all(|part| !part.is_empty() && part.bytes().all(allowed))
        && both.iter().map(|part| part.len()).sum::<usize>() < LONGEST_KEY;
    if !fits {
        flaws.push(Flaw::new("metadata.name".into(), Problem::Name));
    }
    fits
}

/// Services without a time count as the youngest.
fn created(metadata: &ObjectMeta) -> i64 {
    metadata.creation_timestamp.as_ref().map_or(i64::MAX, |time| time.0.as_second())
}

fn policy(text: Option<&str>, field: &str, flaws: &mut Vec<Flaw>) -> TrafficPolicy {
    match text {
        None | Some("Cluster" | "") => TrafficPolicy::Cluster,
        Some("Local") => TrafficPolicy::Local,
        Some(other) => {
            let expected = "it is Cluster or Local, and Cluster counts";
            let problem = Problem::Value { value: other.to_owned(), expected };
            flaws.push(Flaw::new(field.to_owned(), problem));
            TrafficPolicy::Cluster
        }
    }
}

fn affinity(spec: &v1::ServiceSpec, flaws: &mut Vec<Flaw>) -> Option<Duration> {
    match spec.session_affinity.as_deref() {
        None | Some("None" | "") => return None,
        Some("ClientIP") => {}
        Some(other) => {
            let expected = "it is ClientIP or None, and None counts";
            let problem = Problem::Value { value: other.to_owned(), expected };
            flaws.push(Flaw::new("spec.sessionAffinity".into(), problem));
            return None;
        }
    }
    let config = spec.session_affinity_config.as_ref().and_then(|one| one.client_ip.as_ref());
    let Some(written) = config.and_then(|one| one.timeout_seconds) else {
        return Some(Duration::from_secs(AFFINITY_SECONDS));
    };
    match u64::try_from(written) {
        Ok(seconds @ 1..=86_400) => Some(Duration::from_secs(seconds)),
        _ => {
            let expected = "it is 1 to 86400, and 10800 counts";
            let problem = Problem::Value { value: written.to_string(), expected };
            let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
            flaws.push(Flaw::new(field.into(), problem));
            Some(Duration::from_secs(AFFINITY_SECONDS))
        }
    }
}

fn source_ranges(spec: &v1::ServiceSpec, flaws: &mut Vec<Flaw>) -> Vec<IpNet> {
    let mut ranges = BTreeSet::new();
    for (index, text) in spec.load_balancer_source_ranges.iter().flatten().enumerate() {
        if text.trim().is_empty() {
            continue;
        }
        match network(text) {
            Some(net) => {
                ranges.insert(net);
            }
            None => flaws.push(Flaw::new(
                format!("spec.loadBalancerSourceRanges[{index}]"),
                Problem::Network(text.clone()),
            )),
        }
    }
    ranges.into_iter().collect()
}

fn ports(spec: &v1::ServiceSpec, flaws: &mut Vec<Flaw>) -> Vec<ServicePort> {
    let mut ports: Vec<ServicePort> = Vec::new();
    for (index, port) in spec.ports.iter().flatten().enumerate() {
        let field = |name: &str| format!("spec.ports[{index}].{name}");
        let number = port_number(port.port, || field("port"), flaws);
        let protocol = protocol(port.protocol.as_deref(), || field("protocol"), flaws);
        let (Some(number), Some(protocol)) = (number, protocol) else { continue };
        let mut same = ports.iter().filter(|other| other.protocol == protocol);
        if same.clone().any(|other| other.port == number) {
            flaws.push(Flaw::new(field("port"), Problem::Twice(number)));
            continue;
        }
        let node_port = port.node_port.filter(|port| *port != 0);
        let mut node_port =
            node_port.and_then(|port| port_number(port, || field("nodePort"), flaws));
        if let Some(port) = node_port
            && same.any(|other| other.node_port == node_port)
        {
            flaws.push(Flaw::new(field("nodePort"), Problem::Twice(port)));
            node_port = None;
        }
        let name = port.name.as_deref().unwrap_or_default().into();
        ports.push(ServicePort { name, port: number, protocol, node_port });
    }
    ports
}

/// A number from 1 to 65535.
pub(super) fn port_number(
    number: i32,
    field: impl FnOnce() -> String,
    flaws: &mut Vec<Flaw>,
) -> Option<NonZeroU16> {
    let port = u16::try_from(number).ok().and_then(NonZeroU16::new);
    if port.is_none() {
        flaws.push(Flaw::new(field(), Problem::Port(number)));
    }
    port
}

/// The protocol of a port; TCP where none is written.
pub(super) fn protocol(
    text: Option<&str>,
    field: impl FnOnce() -> String,
    flaws: &mut Vec<Flaw>,
) -> Option<Protocol> {
    let text = text.unwrap_or("TCP");
    let protocol = text.parse().ok();
    if protocol.is_none() {
        flaws.push(Flaw::new(field(), Problem::Protocol(text.to_owned())));
    }
    protocol
}
