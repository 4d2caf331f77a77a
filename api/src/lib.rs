//! The REST API: its routes, what travels over them, the server that guards them, and a client.
//!
//! The daemon is reached through [`Control`] alone. Whatever it refuses is an [`ApiError`], which
//! clients see as a problem document (RFC 9457) that names the field and the reason.

#![forbid(unsafe_code)]

mod control;
mod error;
mod extract;
mod list;
mod metrics;
mod page;
mod patch;
mod precondition;
mod routes;
mod spec;
mod time;

pub mod benchmark;
pub mod client;
pub mod monitor;
pub mod server;
pub mod trace;
pub mod view;

pub use axum::http;
pub use control::{Answer, Benchmarks, Change, Changed, Control, Drain, FlowFilter, What};
pub use error::{ApiError, FieldError, Problem};
pub use list::{Page, Paging};
pub use page::{ASSETS, Asset};
pub use patch::merge;
pub use precondition::{Precondition, Tags, etag};
pub use prometheus_client;
pub use routes::{document, router};
pub use spec::{BackendSpec, FrontendSpec, HealthCheckSpec, ServiceSpec};
pub use time::rfc3339;

/// Largest body of a request, in bytes: a service with as many backends as there may be fits.
pub const MAX_BODY: usize = 8 << 20;
