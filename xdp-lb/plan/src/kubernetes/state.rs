//! What the objects come to, for one Service.

use std::{fmt, net::IpAddr, num::NonZeroU16, sync::Arc, time::Duration};

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use xdp_lb_abi::Family;

use crate::{
    kubernetes::{Finding, PodMode},
    model::{NoBackends, Protocol, Service},
};

/// Namespace and name.
#[derive(Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct Key {
    /// Empty for objects that are in none
    pub namespace: Arc<str>,
    /// Name, unique among the objects of a kind in the namespace
    pub name: Arc<str>,
}

impl Key {
    /// A key.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// An object's key.
    pub fn of(metadata: &ObjectMeta) -> Self {
        let text = |text: &Option<String>| text.as_deref().unwrap_or_default().into();
        Self { namespace: text(&metadata.namespace), name: text(&metadata.name) }
    }

    /// The key of the Kubernetes Service that a [`ServiceState::services`] name belongs to.
    pub fn of_service_name(name: &str) -> Option<Self> {
        let mut parts = name.splitn(3, '/');
        let (namespace, name, _) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Self::new(namespace, name))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.namespace {
            "" => f.write_str(&self.name),
            namespace => write!(f, "{namespace}/{}", self.name),
        }
    }
}

/// What one Kubernetes Service comes to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServiceState {
    /// Its namespace and name
    pub key: Key,
    /// `metadata.uid`
    pub uid: Arc<str>,
    /// What the data path must serve. A model service's frontends share backends, source ranges and
    /// policy, so there is one for each port and family, named `NAMESPACE/NAME/PORT-PROTOCOL-FAMILY`
    /// like `shop/web/80-tcp-ipv4`; where source ranges filter LoadBalancer addresses but not
    /// external IPs, these have one of their own, with `-external` behind. What sockets of this host
    /// alone reach has its own, too: ClusterIPs with `-clusterip` behind, and the short cuts around
    /// `externalTrafficPolicy: Local` with `-inside`.
    pub services: Vec<Service>,
    /// `spec.type`
    pub kind: ServiceType,
    /// `spec.externalTrafficPolicy`
    pub external_policy: TrafficPolicy,
    /// `spec.internalTrafficPolicy`
    pub internal_policy: TrafficPolicy,
    /// `spec.trafficDistribution`
    pub traffic_distribution: Option<Arc<str>>,
    /// How long a silent client keeps its backend, with `spec.sessionAffinity: ClientIP`
    pub affinity: Option<Duration>,
    /// `spec.loadBalancerSourceRanges`
    pub source_ranges: Vec<IpNet>,
    /// How packets get to its pods
    pub mode: PodMode,
    /// Least size of its Maglev tables, where an annotation says one
    pub table_size: Option<u32>,
    /// For each port, and of it each family, what it leads to
    pub ports: Vec<PortState>,
    /// What cloud load balancers ask this node; only on a node, with
    /// `spec.externalTrafficPolicy: Local`
    pub health_check: Option<HealthCheckPort>,
    /// What cannot be done for it, and for its slices
    pub findings: Vec<Finding>,
}

impl ServiceState {
    /// The port that one of [`Self::services`] is for, by its name.
    pub fn port_of(&self, service: &str) -> Option<&PortState> {
        self.ports.iter().find(|port| {
            let name = port_name(&self.key, port.port, port.protocol, port.family);
            let suffix = service.strip_prefix(&*name);
            suffix.is_some_and(|suffix| suffix.is_empty() || suffix.starts_with('-'))
        })
    }
}

/// What the names of a port's services begin with.
pub(super) fn port_name(
    Key { namespace, name }: &Key,
    port: NonZeroU16,
    protocol: Protocol,
    family: Family,
) -> String {
    let protocol = match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    };
    let family = match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    format!("{namespace}/{name}/{port}-{protocol}-{family}")
}

/// `spec.type` of a Service that is served.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Ord, PartialOrd)]
pub enum ServiceType {
    /// Only from inside
    #[default]
    ClusterIp,
    /// Also on the nodes' addresses
    NodePort,
    /// Also at addresses from outside
    LoadBalancer,
}

impl fmt::Display for ServiceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClusterIp => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
        })
    }
}

/// Which endpoints may be chosen.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Ord, PartialOrd)]
pub enum TrafficPolicy {
    /// Those of the whole cluster, as topology hints may limit them
    #[default]
    Cluster,
    /// Those of this node
    Local,
}

impl fmt::Display for TrafficPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cluster => "Cluster",
            Self::Local => "Local",
        })
    }
}

/// One port of a Service, in one family.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PortState {
    /// The port's name; empty where it has none
    pub name: Arc<str>,
    /// The port's number
    pub port: NonZeroU16,
    /// Transport protocol
    pub protocol: Protocol,
    /// Family of its addresses and endpoints
    pub family: Family,
    /// Where clients reach it
    pub frontends: Vec<FrontendState>,
    /// Every endpoint, by address and port
    pub endpoints: Vec<Endpoint>,
}

/// What makes an address and port a frontend.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub enum FrontendKind {
    /// `spec.clusterIPs`
    ClusterIp,
    /// `spec.ports[].nodePort`
    NodePort,
    /// `spec.externalIPs`
    ExternalIp,
    /// `status.loadBalancer.ingress[].ip`
    LoadBalancer,
}

impl FrontendKind {
    /// Which endpoints traffic that starts inside the cluster may go to, where a Service has these
    /// policies. `externalTrafficPolicy: Local` does not touch it: kube-proxy's short cut.
    pub const fn policy_from_inside(self, internal: TrafficPolicy) -> TrafficPolicy {
        match self {
            Self::ClusterIp => internal,
            Self::NodePort | Self::ExternalIp | Self::LoadBalancer => TrafficPolicy::Cluster,
        }
    }
}

impl fmt::Display for FrontendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClusterIp => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::ExternalIp => "ExternalIP",
            Self::LoadBalancer => "LoadBalancer",
        })
    }
}

/// One frontend of a Service.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FrontendState {
    /// What makes it one
    pub kind: FrontendKind,
    /// Its address; none for a node port, which is on addresses that the daemon chooses
    pub address: Option<IpAddr>,
    /// Its port
    pub port: NonZeroU16,
    /// Which endpoints its clients may go to: see [`Endpoint::serves`]
    pub policy: TrafficPolicy,
    /// Whether source ranges filter its clients
    pub filtered: bool,
    /// What becomes of packets while no endpoint may be chosen
    pub no_backends: NoBackends,
    /// Who serves it
    pub served: Served,
}

impl FrontendState {
    /// Whether the data path serves it.
    pub const fn is_here(&self) -> bool {
        matches!(self.served, Served::Here(_))
    }
}

/// Who serves a frontend.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Served {
    /// The data path, as the model service of this name in [`ServiceState::services`]
    Here(String),
    /// Nobody here; whoever translates ClusterIPs does
    LeftToKubeProxy,
    /// Nobody here: [`crate::kubernetes::Classes`] does not have the Service's class
    OtherClass,
    /// This Service, whose ClusterIP it is, or which is older
    Taken(Key),
    /// Nobody here: mode `snat` sends from this node port
    SnatPort,
    /// Nobody here: the kernel has no hook for calls of such sockets
    NoHook,
}

/// What Kubernetes says of a backend.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoint {
    /// Its address
    pub address: IpAddr,
    /// Its port
    pub port: NonZeroU16,
    /// Name of the pod, or of what else is behind it; empty where the slice does not say
    pub name: Arc<str>,
    /// Name of its Node
    pub node: Option<Arc<str>>,
    /// Address of its Node: where a Geneve tunnel to it ends
    pub node_address: Option<IpAddr>,
    /// Name of its zone
    pub zone: Option<Arc<str>>,
    /// How it is
    pub state: EndpointState,
    /// Share of new flows while it may be chosen
    pub weight: u16,
    /// Whether it may be chosen with policy Cluster
    pub cluster: bool,
    /// Whether it may be chosen with policy Local
    pub local: bool,
}

impl Endpoint {
    /// Whether new flows may go to it with a policy.
    pub const fn serves(&self, policy: TrafficPolicy) -> bool {
        match policy {
            TrafficPolicy::Cluster => self.cluster,
            TrafficPolicy::Local => self.local,
        }
    }
}

/// How an endpoint is, by its conditions.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub enum EndpointState {
    /// `ready`
    Ready,
    /// `serving` and `terminating`, but not `ready`: it keeps its flows, and gets new ones only while
    /// none is ready
    Terminating,
    /// None of these
    NotReady,
}

impl fmt::Display for EndpointState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready => "ready",
            Self::Terminating => "terminating",
            Self::NotReady => "not ready",
        })
    }
}

/// What a server at `spec.healthCheckNodePort` answers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HealthCheckPort {
    /// The port
    pub port: NonZeroU16,
    /// Ready endpoints on this node, each address once, IPv4
    pub local_ipv4: usize,
    /// The same, IPv6
    pub local_ipv6: usize,
}
