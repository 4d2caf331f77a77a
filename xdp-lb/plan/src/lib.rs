//! Decides what the data path's tables must hold.
//!
//! Pure: no I/O, no clock (time is an argument), no async runtime, no Kubernetes client. What users
//! declare comes in as [`model`] values; out come few, ordered operations on the tables.

#![forbid(unsafe_code)]

mod adopt;
mod arena;
mod backends;
mod digest;
mod frontends;
mod handover;
pub mod health;
mod hold;
pub mod kubernetes;
pub mod maglev;
pub mod model;
pub mod nat_sweep;
mod op;
mod outcome;
mod planner;
mod shared;
mod sources;
mod sweep;
mod target;

pub use adopt::{Image, Unsound};
pub use backends::{BackendKey, Path};
pub use frontends::buckets;
pub use op::Op;
pub use outcome::{Outcome, Refusal, Refused};
pub use planner::{FrontendState, Layout, Planner, record_count};
pub use sources::Sources;
pub use sweep::{FlowCounts, IdleTimes, Judge, Verdict};
pub use target::table;
