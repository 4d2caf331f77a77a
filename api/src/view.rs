//! What the API shows.

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::spec::ServiceSpec;

/// Who declares a service, and so who may change it.
#[derive(
    Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, ToSchema,
)]
#[serde(rename_all = "camelCase")]
pub enum Owner {
    /// The configuration file
    File,
    /// This API
    Api,
    /// The Kubernetes API
    Kubernetes,
}

impl Owner {
    /// Where to change what it owns.
    pub(crate) const fn advice(self) -> &'static str {
        match self {
            Self::File => "change it in the configuration file",
            Self::Api => "change it here",
            Self::Kubernetes => "change it in Kubernetes",
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "file",
            Self::Api => "api",
            Self::Kubernetes => "kubernetes",
        })
    }
}

/// A service as it is declared.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceView {
    /// Unique name
    pub name: String,
    /// Who declares it
    pub owner: Owner,
    /// Backends that were drained through the API, as `address` or `address:port`
    pub drained: Vec<String>,
    /// Those of them that are removed once their last flow is gone
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removing: Vec<String>,
    /// What is declared; `PUT` takes the same
    #[schema(value_type = ServiceSpec)]
    pub service: Value,
}

/// All services that are declared, by name.
#[derive(Clone, Debug, Default)]
pub struct Services {
    /// By name
    pub by_name: BTreeMap<String, Arc<ServiceView>>,
}

/// What becomes of packets for a frontend.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum FrontendState {
    /// It is balanced
    Served,
    /// It will be in a moment
    Pending,
    /// It cannot be served as declared: see the reason
    Refused,
    /// It is not for this instance to serve: see the reason
    Elsewhere,
}

/// Where a change of backends is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// The hash alone decides
    Rest,
    /// The old and the new table both count
    Handover,
    /// Recorded flows are looked up
    Exceptions,
}

/// Where clients reach a service, and what becomes of it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FrontendView {
    /// Number that stays as long as the data path serves it; none where it does not
    pub id: Option<u32>,
    /// Address, port and protocol, like `203.0.113.10:80/TCP`
    pub frontend: String,
    /// Kind of the service, in the words of Kubernetes
    #[serde(rename = "type")]
    pub kind: String,
    /// Its service
    pub service: String,
    /// Who declares the service
    pub owner: Owner,
    /// How packets get to the backends
    pub mode: String,
    /// Which endpoints may be chosen, `Cluster` or `Local`; none where nothing but the backends says
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// What becomes of packets
    pub state: FrontendState,
    /// Why it is not served
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Where a change of backends is; none where it is not served
    pub phase: Option<Phase>,
    /// Slots of its Maglev table; 0 where it is not served
    pub table_size: u32,
    /// Backends, in their order
    pub backends: Vec<FrontendBackend>,
}

/// A backend of a frontend.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FrontendBackend {
    /// Number that the data path knows it by; none where it does not
    pub id: Option<u32>,
    /// Address and port
    pub backend: String,
    /// What it does
    pub state: BackendState,
}

/// What a backend does.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum BackendState {
    /// It takes its share of new flows
    Active,
    /// It keeps its flows and gets no new ones
    Draining,
    /// It gets no new flows, and none is left on it that this instance knows of
    Drained,
    /// Its pod is about to end: it keeps its flows, and gets new ones only where no other is left
    Terminating,
    /// It fails its health check: it keeps its flows and gets no new ones
    Down,
    /// No packet gets there now
    Unreachable,
}

impl fmt::Display for BackendState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Drained => "drained",
            Self::Terminating => "terminating",
            Self::Down => "down",
            Self::Unreachable => "unreachable",
        })
    }
}

/// A backend of a service.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackendView {
    /// Its service
    pub service: String,
    /// Who declares the service
    pub owner: Owner,
    /// `address` or `address:port`, as declared; unique in the service
    pub backend: String,
    /// Share of new flows, as declared
    pub weight: u16,
    /// Whether it was drained through the API
    pub drained: bool,
    /// Whether it is removed from its service once its last flow is gone
    pub removing: bool,
    /// Flows that are recorded for it, by a look every few seconds: those that the current table
    /// would send elsewhere. At rest there is none, and the hash alone decides
    pub flows: u64,
    /// What it does
    pub state: BackendState,
    /// Why it cannot be reached
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What its health check says; none where the service has none
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<BackendHealth>,
}

/// Whether a backend is well.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Wellness {
    /// Nobody has asked it yet; it gets new flows
    #[default]
    Unknown,
    /// It answers
    Up,
    /// It does not, or not as it should
    Down,
}

impl fmt::Display for Wellness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
        })
    }
}

/// What a health check says of a backend.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackendHealth {
    /// Whether it is well
    pub state: Wellness,
    /// Since when, RFC 3339
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// How often that has changed since the daemon's start
    pub changes: u64,
    /// What is wrong with its last bad answer, until it is well
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What to know about the check: that it cannot go the way of clients' packets, or is held back
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The weight that it asked for, where it may
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
}

/// A device that traffic comes in by.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceView {
    /// Name
    pub name: String,
    /// How the program may be attached: `native`, `generic` or `native-or-generic`
    pub wanted: String,
    /// How it is attached: `native` or `generic`; none where it is not
    pub xdp: Option<String>,
    /// Interface index; none where it is not attached
    pub ifindex: Option<u32>,
}

/// Outer sources whose tunnel packets are unwrapped.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize, ToSchema)]
pub struct PeerView {
    /// Prefix
    pub prefix: String,
}

/// Whether everything is as it should be.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum HealthState {
    /// All is well
    #[default]
    Ok,
    /// Traffic flows, but not all as it should
    Degraded,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Check {
    /// What was looked at
    pub name: String,
    /// Whether it is as it should be
    pub state: HealthState,
    /// What is wrong; empty where all is well
    pub detail: String,
}

/// Whether everything is as it should be, and what is not.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct HealthView {
    /// The worst of the checks
    pub state: HealthState,
    /// What was looked at
    pub checks: Vec<Check>,
}

/// Figures of the whole instance.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StatusView {
    /// Version of the program
    pub version: String,
    /// When the daemon started, RFC 3339
    pub started: String,
    /// Whether everything is as it should be
    pub health: HealthState,
    /// Services that are declared
    pub services: usize,
    /// Frontends that are declared
    pub frontends: usize,
    /// Frontends that are not served as declared
    pub refused: usize,
    /// Frontends whose backends changed a short while ago
    pub handovers: usize,
    /// Backends of services
    pub backends: usize,
    /// Backends of services that no packet gets to now
    pub unreachable: usize,
    /// Devices that the program is attached to
    pub devices: usize,
    /// Words of the arena of Maglev tables that are in use
    pub arena_used: u32,
    /// Words of the arena
    pub arena_size: u32,
    /// Flows that handovers recorded
    pub flows: FlowTable,
    /// API servers of the cluster that is followed; empty where none is
    pub api_servers: Vec<ClusterServer>,
    /// What of kube-proxy's work is done here
    pub kube_proxy_replacement: ReplacementView,
}

/// What of kube-proxy's work is done here, as `cilium status --verbose` tells it.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplacementView {
    /// The mode `Strict`, `Probe`, `Partial` or `Disabled`; where none is configured, `True`, `Partial` or
    /// `False` by what is served
    pub status: String,
    /// Whether calls of sockets are led to backends
    pub socket_lb: FeatureView,
    /// Whose sockets: `Full`, `Hostns-only` or `None`
    pub coverage: String,
    /// Devices, with how the program runs on them
    pub devices: Vec<String>,
    /// How packets get to pods of services without an annotation
    pub mode: String,
    /// `Native`, `Generic` or `Disabled`
    pub xdp_acceleration: String,
    /// Kinds of frontends
    pub services: Vec<FeatureView>,
}

/// A feature, on or off.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FeatureView {
    /// Its name
    pub name: String,
    /// Whether it is on
    pub enabled: bool,
    /// Of one that is on, what holds for it; of one that is off, why
    pub detail: Option<String>,
}

/// The table of recorded flows, by a look every few seconds.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FlowTable {
    /// Records
    pub used: u64,
    /// Most records at one time
    pub size: u32,
    /// Whether the oldest records give way to new ones, and their flows may move
    pub full: bool,
    /// Looks that found it full, since the start
    pub times_full: u64,
}

/// What the data path does, at one moment.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Goes up with every change
    pub revision: u64,
    /// Frontends, by name
    pub frontends: BTreeMap<String, FrontendView>,
    /// Backends, by service and name
    pub backends: BTreeMap<(String, String), BackendView>,
    /// Devices of the configuration
    pub devices: Vec<DeviceView>,
    /// Peers of the configuration
    pub peers: Vec<PeerView>,
    /// What was looked at
    pub checks: Vec<Check>,
    /// Words of the arena: all, and the free ones
    pub words: (u32, u32),
    /// Recorded flows
    pub flows: FlowTable,
    /// What of kube-proxy's work is done here
    pub replacement: ReplacementView,
    /// API servers of the cluster that is followed
    pub api_servers: Vec<ClusterServer>,
    /// Configuration in force, without secrets
    pub config: Value,
    /// When the daemon started, RFC 3339
    pub started: String,
    /// Version of the program
    pub version: String,
}

impl State {
    /// Whether everything is as it should be.
    pub fn health(&self) -> HealthView {
        let degraded = self.checks.iter().any(|check| check.state == HealthState::Degraded);
        let state = if degraded { HealthState::Degraded } else { HealthState::Ok };
        HealthView { state, checks: self.checks.clone() }
    }

    /// Figures of the whole instance, `services` of which are declared.
    pub fn status(&self, services: usize) -> StatusView {
        let frontends = || self.frontends.values();
        let backends = || self.backends.values();
        StatusView {
            version: self.version.clone(),
            started: self.started.clone(),
            health: self.health().state,
            services,
            frontends: frontends().count(),
            refused: frontends().filter(|one| one.state == FrontendState::Refused).count(),
            handovers: frontends().filter(|one| one.phase == Some(Phase::Handover)).count(),
            backends: backends().count(),
            unreachable: backends().filter(|one| one.state == BackendState::Unreachable).count(),
            devices: self.devices.iter().filter(|one| one.xdp.is_some()).count(),
            arena_used: self.words.0.saturating_sub(self.words.1),
            arena_size: self.words.0,
            flows: self.flows,
            api_servers: self.api_servers.clone(),
            kube_proxy_replacement: self.replacement.clone(),
        }
    }
}

/// What kind of thing happened.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum EventKind {
    /// The daemon started
    Started,
    /// A new configuration is in force
    Reloaded,
    /// A configuration, or a change to it, was not taken
    Refused,
    /// A frontend cannot be served
    FrontendRefused,
    /// A backend cannot be reached
    Unreachable,
    /// A backend can be reached again
    Reachable,
    /// A backend fails its health check
    BackendDown,
    /// A backend passes its health check again
    BackendUp,
    /// A device was attached to
    Attached,
    /// A device is gone, or cannot be attached to
    Detached,
    /// Somebody else wrote to the tables; they were put right
    Repaired,
    /// Something was changed through the API
    Changed,
    /// The Kubernetes cluster is followed, or one of its kinds of objects is again
    ClusterReached,
    /// The Kubernetes cluster cannot be followed; its last state stays
    ClusterLost,
    /// Something cannot be done for a Kubernetes object
    ClusterFinding,
    /// The tables could not be written
    Failed,
}

impl EventKind {
    /// All kinds.
    pub const ALL: [Self; 16] = [
        Self::Started,
        Self::Reloaded,
        Self::Refused,
        Self::FrontendRefused,
        Self::Unreachable,
        Self::Reachable,
        Self::BackendDown,
        Self::BackendUp,
        Self::Attached,
        Self::Detached,
        Self::Repaired,
        Self::Changed,
        Self::Failed,
        Self::ClusterReached,
        Self::ClusterLost,
        Self::ClusterFinding,
    ];

    /// The name in metrics; the API's.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Reloaded => "reloaded",
            Self::Refused => "refused",
            Self::FrontendRefused => "frontendRefused",
            Self::Unreachable => "unreachable",
            Self::Reachable => "reachable",
            Self::BackendDown => "backendDown",
            Self::BackendUp => "backendUp",
            Self::Attached => "attached",
            Self::Detached => "detached",
            Self::Repaired => "repaired",
            Self::Changed => "changed",
            Self::Failed => "failed",
            Self::ClusterReached => "clusterReached",
            Self::ClusterLost => "clusterLost",
            Self::ClusterFinding => "clusterFinding",
        }
    }
}

/// Something that happened.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct EventView {
    /// Counts events since the daemon's start, from 1
    pub number: u64,
    /// When it happened, RFC 3339
    pub time: String,
    /// What kind of thing
    pub kind: EventKind,
    /// What happened
    pub message: String,
}

/// Where following a kind of objects is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum FollowState {
    /// All objects are being listed
    Listing,
    /// Changes come as they happen
    Watching,
    /// It does not work now: see the error; what is known stays
    Failed,
}

/// An API server of the cluster.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterServer {
    /// Its URL
    pub url: String,
    /// Whether the cluster itself has told of it, and not the configuration
    pub learnt: bool,
    /// Whether the cluster is followed by it
    pub in_use: bool,
    /// What was wrong with it when it was asked last
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How following one kind of objects goes.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct ClusterResource {
    /// `Service`, `EndpointSlice` or `Node`
    pub kind: String,
    /// Where it is
    pub state: FollowState,
    /// Since when, RFC 3339
    pub since: String,
    /// Objects that are known
    pub objects: usize,
    /// What does not work
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Something that cannot be done for an object of the cluster.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize, ToSchema)]
pub struct ClusterFinding {
    /// Kind of the object
    pub kind: String,
    /// Its namespace and name, like `shop/web`
    pub object: String,
    /// The field, like `spec.ports[0].nodePort`; empty for the object as a whole
    pub field: String,
    /// A word for the kind of problem, as in the Event
    pub reason: String,
    /// What is wrong, and what is done instead
    pub message: String,
}

/// Durations by buckets, in seconds.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct HistogramView {
    /// Upper bound of each bucket, and how many are not above it
    pub buckets: Vec<(f64, u64)>,
    /// How many there are
    pub count: u64,
    /// Their sum
    pub sum: f64,
    /// The median, as far as buckets tell; none where there is nothing
    pub p50: Option<f64>,
    /// The 99th percentile
    pub p99: Option<f64>,
}

/// How long it takes until changes in the cluster are in the maps.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct LatencyView {
    /// From a change's arrival
    pub change: HistogramView,
    /// From what caused it, by `endpoints.kubernetes.io/last-change-trigger-time`
    pub trigger: HistogramView,
}

/// How following the Kubernetes cluster goes.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct KubernetesView {
    /// Name of the node that this host is; none where it is no node
    pub node: Option<String>,
    /// URL of the API server in use; none where none answers
    pub server: Option<String>,
    /// All API servers: the configured ones, the preferred one first, and those that the cluster tells
    /// of itself
    pub servers: Vec<ClusterServer>,
    /// Whether all kinds have been listed once; before, nothing of the cluster changes
    pub complete: bool,
    /// How following each kind goes
    pub resources: Vec<ClusterResource>,
    /// What does not work beside that: ports, Events
    pub troubles: Vec<String>,
    /// What cannot be done for objects
    pub findings: Vec<ClusterFinding>,
    /// How long changes take
    pub latency: LatencyView,
}

/// Packets and bytes of one thing.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Counter {
    /// What is counted: a frontend, a backend's address and port, or a reason
    pub name: String,
    /// The data path's number of it; none for reasons
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u32>,
    /// Packets
    pub packets: u64,
    /// Bytes: of layer 3 for what was forwarded, of the frame for reasons
    pub bytes: u64,
    /// Packets among them that begin a flow: TCP SYN and SCTP INIT, repeated ones too; none for reasons
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_flows: Option<u64>,
}

/// All counters, at one moment.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct CountersView {
    /// What was forwarded, by frontend
    pub frontends: Vec<Counter>,
    /// What was forwarded, by backend
    pub backends: Vec<Counter>,
    /// What was not simply forwarded, by reason; those that never happened are left out
    pub reasons: Vec<Counter>,
}

/// A flow that is recorded, since its backend is not the one that the current table names.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct FlowView {
    /// `TCP`, `UDP` or `SCTP`
    pub protocol: String,
    /// Client's address and port
    pub client: String,
    /// Address and port that the client uses
    pub frontend: String,
    /// Backend that has it, address and port; none where the backend is gone
    pub backend: Option<String>,
}

/// How many flows are recorded.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct FlowCount {
    /// Flows that the filters let through
    pub flows: usize,
}

/// The digest of a Maglev table: equal where the same flows go to the same backends.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DigestView {
    /// Address, port and protocol
    pub frontend: String,
    /// Slots
    pub table_size: usize,
    /// 64 bits in hexadecimal, as `xdp-lb maglev digest` prints them
    pub digest: String,
}

/// A Maglev table.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MaglevView {
    /// Address, port and protocol
    pub frontend: String,
    /// As in the list of digests
    pub digest: String,
    /// Backends: address and port
    pub backends: Vec<String>,
    /// For each slot the backend's place in the list, from 0
    pub slots: Vec<u16>,
}
