//! The little of an EndpointSlice that the rules use.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    num::NonZeroU16,
    sync::Arc,
    time::{Duration, SystemTime},
};

use k8s_openapi::{
    api::discovery::v1, apimachinery::pkg::apis::meta::v1::ObjectMeta, jiff::Timestamp,
};
use xdp_lb_abi::Family;

use crate::{
    kubernetes::{
        EndpointState, Problem,
        address::{family, host},
        finding::Flaw,
        names::Names,
        service::{port_number, protocol},
    },
    model::Protocol,
};

const SERVICE: &str = "kubernetes.io/service-name";
const HEADLESS: &str = "service.kubernetes.io/headless";
const TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// The little of an EndpointSlice that the rules use.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Slice {
    pub(super) uid: Arc<str>,
    pub(super) family: Family,
    pub(super) ports: Box<[SlicePort]>,
    pub(super) endpoints: Box<[SliceEndpoint]>,
    pub(super) flaws: Vec<Flaw>,
}

/// A port of a slice: the one that its endpoints have for a Service's port of this name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct SlicePort {
    pub(super) name: Arc<str>,
    pub(super) protocol: Protocol,
    pub(super) port: NonZeroU16,
}

/// An endpoint of a slice.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct SliceEndpoint {
    pub(super) address: IpAddr,
    pub(super) name: Arc<str>,
    pub(super) node: Option<Arc<str>>,
    pub(super) zone: Option<Arc<str>>,
    pub(super) ready: bool,
    pub(super) serving: bool,
    pub(super) terminating: bool,
    pub(super) for_zones: Box<[Arc<str>]>,
    pub(super) for_nodes: Box<[Arc<str>]>,
}

impl SliceEndpoint {
    pub(super) const fn state(&self) -> EndpointState {
        match (self.ready, self.serving && self.terminating) {
            (true, _) => EndpointState::Ready,
            (false, true) => EndpointState::Terminating,
            (false, false) => EndpointState::NotReady,
        }
    }
}

/// The Service that a slice belongs to; none where kube-proxy would not look at the slice.
pub(super) fn owner(metadata: &ObjectMeta) -> Option<&str> {
    let labels = metadata.labels.as_ref()?;
    let service = labels.get(SERVICE).map(String::as_str)?;
    (!service.is_empty() && !labels.contains_key(HEADLESS)).then_some(service)
}

/// When the pod changed that made the slice change.
pub(super) fn triggered(annotations: Option<&BTreeMap<String, String>>) -> Option<SystemTime> {
    let time: Timestamp = annotations?.get(TRIGGER)?.parse().ok()?;
    let since = u64::try_from(time.as_nanosecond()).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_nanos(since))
}

impl Slice {
    pub(super) fn read(slice: &v1::EndpointSlice, names: &mut Names) -> Self {
        let mut flaws = Vec::new();
        let family = match slice.address_type.as_str() {
            "IPv4" => Some(Family::V4),
            "IPv6" => Some(Family::V6),
            other => {
                let problem = Problem::AddressType(other.to_owned());
                flaws.push(Flaw::new("addressType".into(), problem));
                None
            }
        };
        let ports = slice.ports.as_deref().unwrap_or_default().iter().enumerate();
        let ports =
            ports.filter_map(|(index, port)| SlicePort::read(index, port, names, &mut flaws));
        let ports = ports.collect();
        let endpoints = slice.endpoints.as_deref().unwrap_or_default().iter().enumerate();
        let endpoints = endpoints.filter_map(|(index, endpoint)| {
            SliceEndpoint::read(index, endpoint, family?, names, &mut flaws)
        });
        let endpoints = endpoints.collect();
        let uid = slice.metadata.uid.as_deref().unwrap_or_default().into();
        Self { uid, family: family.unwrap_or(Family::V4), ports, endpoints, flaws }
    }
}

impl SlicePort {
    fn read(
        index: usize,
        port: &v1::EndpointPort,
        names: &mut Names,
        flaws: &mut Vec<Flaw>,
    ) -> Option<Self> {
        let field = |name: &str| format!("ports[{index}].{name}");
        let Some(number) = port.port else {
            flaws.push(Flaw::new(field("port"), Problem::EveryPort));
            return None;
        };
        let number = port_number(number, || field("port"), flaws)?;
        let protocol = protocol(port.protocol.as_deref(), || field("protocol"), flaws)?;
        let name = names.get(port.name.as_deref().unwrap_or_default());
        Some(Self { name, protocol, port: number })
    }
}

impl SliceEndpoint {
    fn read(
        index: usize,
        endpoint: &v1::Endpoint,
        of: Family,
        names: &mut Names,
        flaws: &mut Vec<Flaw>,
    ) -> Option<Self> {
        // Further addresses are other ways to the same pod, of which none is to be looked at.
        let text = endpoint.addresses.first().map_or("", String::as_str);
        let Some(address) = host(text).filter(|address| family(*address) == of) else {
            let field = format!("endpoints[{index}].addresses[0]");
            flaws.push(Flaw::new(field, Problem::Address(text.to_owned())));
            return None;
        };
        let conditions = endpoint.conditions.as_ref();
        let target = endpoint.target_ref.as_ref().and_then(|target| target.name.as_deref());
        let name = target.or(endpoint.hostname.as_deref()).unwrap_or_default();
        let hints = endpoint.hints.as_ref();
        let zones = hints.and_then(|hints| hints.for_zones.as_deref()).unwrap_or_default();
        let nodes = hints.and_then(|hints| hints.for_nodes.as_deref()).unwrap_or_default();
        Some(Self {
            address,
            name: name.into(),
            node: some(endpoint.node_name.as_deref(), names),
            zone: some(endpoint.zone.as_deref(), names),
            ready: conditions.and_then(|one| one.ready).unwrap_or(true),
            serving: conditions.and_then(|one| one.serving).unwrap_or(true),
            terminating: conditions.and_then(|one| one.terminating).unwrap_or(false),
            for_zones: zones.iter().map(|zone| names.get(&zone.name)).collect(),
            for_nodes: nodes.iter().map(|node| names.get(&node.name)).collect(),
        })
    }
}

fn some(name: Option<&str>, names: &mut Names) -> Option<Arc<str>> {
    name.filter(|name| !name.is_empty()).map(|name| names.get(name))
}
