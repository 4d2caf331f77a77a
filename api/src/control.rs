//! What the API needs of the daemon.

use std::{future::Future, pin::Pin, sync::Arc};

use prometheus_client::registry::Registry;
use serde_json::Value;
use tokio::sync::{broadcast, mpsc, watch};

use crate::{
    ApiError, Page, Paging, Precondition,
    benchmark::{BenchmarkRequest, BenchmarkView},
    monitor::{MonitorRequest, Seen},
    trace::{TraceRequest, TraceView},
    view::{
        CountersView, EventView, FlowView, KubernetesView, MaglevView, ServiceView, Services, State,
    },
};

/// What comes later.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, ApiError>> + Send + 'a>>;

/// The daemon, as the API sees it.
///
/// What is declared and what the data path does are two things: a change is declared when it is
/// stored, and the data path follows within moments.
pub trait Control: Send + Sync + 'static {
    /// What is declared, now and after each change.
    fn services(&self) -> watch::Receiver<Arc<Services>>;

    /// What the data path does, now and after each change.
    fn state(&self) -> watch::Receiver<Arc<State>>;

    /// Changes what is declared, or only tries whether that could be done.
    fn change(&self, change: Change) -> Answer<'_, Changed>;

    /// What happened lately, the oldest first.
    fn events(&self) -> Vec<EventView>;

    /// What happens from now on.
    fn follow(&self) -> broadcast::Receiver<EventView>;

    /// All counters.
    fn counters(&self) -> Answer<'_, CountersView>;

    /// A page of the recorded flows that the filter lets through.
    fn flows(&self, filter: FlowFilter, paging: Paging) -> Answer<'_, Page<FlowView>>;

    /// What would become of a packet.
    fn trace(&self, request: TraceRequest) -> Answer<'_, TraceView>;

    /// Packets as they pass, until nobody reads them.
    fn monitor(&self, request: MonitorRequest) -> Answer<'_, mpsc::Receiver<Seen>>;

    /// The Maglev tables of a frontend, or of all; unknown frontends have none.
    fn maglev(&self, frontend: Option<String>) -> Answer<'_, Vec<MaglevView>>;

    /// How following the Kubernetes cluster goes; nothing where none is followed.
    fn kubernetes(&self) -> Option<KubernetesView>;

    /// Benchmarks of the packet path.
    fn benchmarks(&self) -> &dyn Benchmarks;

    /// What Prometheus may know, read now; the API adds what it counts of itself.
    fn metrics(&self) -> Answer<'_, Registry>;
}

/// Benchmarks, of which one runs at a time.
pub trait Benchmarks: Send + Sync {
    /// Begins one; [`ApiError::Busy`] while another one runs.
    fn start(&self, request: BenchmarkRequest) -> Answer<'_, BenchmarkView>;

    /// Those that are known, in the order in which they began, without their reports.
    fn list(&self) -> Vec<BenchmarkView>;

    /// One of them, with its report.
    fn get(&self, id: &str) -> Option<BenchmarkView>;

    /// Ends one and waits until nothing of it is left.
    fn cancel<'a>(
        &'a self,
        id: &'a str,
    ) -> Pin<Box<dyn Future<Output = Option<BenchmarkView>> + Send + 'a>>;
}

/// Which flows are wanted; what is not said lets all through.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct FlowFilter {
    /// Client's address
    pub client: Option<std::net::IpAddr>,
    /// Address, port and protocol of the frontend
    pub frontend: Option<String>,
    /// Address and port of the backend
    pub backend: Option<String>,
}

impl FlowFilter {
    /// Whether a flow is wanted.
    pub fn lets_through(&self, flow: &FlowView) -> bool {
        let client = |wanted: &std::net::IpAddr| {
            flow.client.parse().is_ok_and(|client: std::net::SocketAddr| client.ip() == *wanted)
        };
        let frontend = || format!("{}/{}", flow.frontend, flow.protocol);
        self.client.as_ref().is_none_or(client)
            && self.frontend.as_ref().is_none_or(|wanted| *wanted == frontend())
            && self.backend.as_ref().is_none_or(|wanted| Some(wanted) == flow.backend.as_ref())
    }
}

/// A change to what is declared.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Change {
    /// What to do
    pub what: What,
    /// What must hold, checked in the same moment as the change is made
    pub precondition: Precondition,
    /// Whether to try only
    pub dry_run: bool,
}

/// What to do with a service.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum What {
    /// Makes it this
    Put {
        /// Name of the service
        name: String,
        /// What it becomes
        service: Value,
    },
    /// Changes some of it (RFC 7396)
    Patch {
        /// Name of the service
        name: String,
        /// The merge patch
        patch: Value,
    },
    /// Removes it
    Delete {
        /// Name of the service
        name: String,
    },
    /// Drains a backend, or lets it have new flows again
    Drain {
        /// Name of the service, of whatever owner
        service: String,
        /// `address` or `address:port`, as the service names it
        backend: String,
        /// What becomes of it
        drain: Drain,
    },
}

/// What becomes of a backend's flows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Drain {
    /// It gets new ones again.
    Undo,
    /// It keeps those that it has, and gets no new ones.
    Keep,
    /// The same; once the last one is gone, it is removed from its service, which is the API's.
    ThenRemove,
}

/// What came of a change.
#[derive(Clone, Debug)]
pub struct Changed {
    /// The service; none where it was removed
    pub service: Option<Arc<ServiceView>>,
    /// Whether there was none before
    pub created: bool,
}
