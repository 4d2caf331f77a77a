//! What a Kubernetes cluster's objects mean for the balancer, as kube-proxy would decide.
//!
//! Pure: a client elsewhere hands over objects as it lists and watches them, an [`Index`] keeps the
//! little of them that the rules use, and says of each Service what the data path must serve.
//!
//! The rules are kube-proxy's (Kubernetes 1.36, `pkg/proxy`). `docs/kubernetes.md` lists them, with
//! the differences.

mod address;
mod annotations;
mod choice;
mod claims;
mod endpoints;
mod finding;
mod index;
mod names;
mod node;
mod resolve;
mod rules;
mod service;
mod slice;
mod state;

pub use finding::{Finding, Object, ObjectKind, Problem};
pub use index::{Change, Index, OwnNode};
pub use rules::{Classes, PodMode, Rules, Serves, UnknownPodMode};
pub use state::{
    Endpoint, EndpointState, FrontendKind, FrontendState, HealthCheckPort, Key, PortState, Served,
    ServiceState, ServiceType, TrafficPolicy,
};
