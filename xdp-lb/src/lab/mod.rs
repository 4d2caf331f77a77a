//! Network namespaces with real hosts in them, for the demo and the tests.
//!
//! A lab is a list of items that reads from top to bottom:
//!
//! ```no_run
//! use xdp_lb::lab::{Client, Lab, ServerSpec, end, host, link, route, router, vip};
//!
//! let lab = Lab::build("example", [
//!     host("client"),
//!     router("router"),
//!     host("server"),
//!     link(
//!         end("client", "eth0").addr("198.51.100.2/24"),
//!         end("router", "clients").addr("198.51.100.1/24"),
//!     ),
//!     link(
//!         end("router", "servers").addr("10.0.1.1/24"),
//!         end("server", "eth0").addr("10.0.1.2/24"),
//!     ),
//!     vip("server", "203.0.113.10"),
//!     route("client", "0.0.0.0/0", "198.51.100.1"),
//!     route("router", "203.0.113.10/32", "10.0.1.2"),
//!     route("server", "0.0.0.0/0", "10.0.1.1"),
//! ])?;
//! let address = "203.0.113.10:80".parse()?;
//! let _server = ServerSpec::named("one").http(address).start(lab.ns("server")?)?;
//! let answer = Client::new(lab.ns("client")?).ask(address, None)?;
//! assert_eq!(answer.backend, "one");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Dropping the [`Lab`] removes everything, a panic included; so do SIGINT and SIGTERM. What a
//! killed run left behind is removed by the next one with the same prefix, or by [`Lab::clean`].
//!
//! [`pods`] has a ready topology of nodes with pods behind them, and [`kubernetes`] makes a real cluster
//! of it. [`forge`] makes packets that no socket would send, [`trace`] tells who answers on the way,
//! [`reassembly::verify`] judges a whole [`Recording`].
//!
//! Sending ends compute every checksum themselves and receivers merge nothing, so that a
//! [`Capture`] shows frames as they would be on a wire and [`verify::checksums`] can judge them.

mod answer;
mod capture;
mod cgroup;
mod client;
mod cluster;
mod connection;
mod crowd;
pub mod describe;
pub mod dns;
mod error;
pub mod forge;
#[cfg(test)]
mod frames;
pub mod geneve;
mod held;
pub mod kubernetes;
pub mod layers;
mod leftovers;
mod live;
mod namespace;
pub mod pods;
mod raw;
pub mod reassembly;
mod receive;
mod script;
mod server;
mod signals;
mod socket;
mod tagger;
mod topology;
mod trace;
mod traffic;
pub mod verify;

pub use answer::{Answer, checksum, pattern};
pub use capture::{Capture, Recording};
pub use cgroup::{Cgroup, has_cgroups, make_cgroups, remove_cgroups};
pub use client::{Client, ClientError, Outcome, Transfer, UdpAnswer};
pub use cluster::{ApiServer, Behaviour, Objects};
pub use crowd::{Crowd, CrowdSpec, Figures, Loss};
pub use describe::{Detail, describe, describe_with};
pub use error::LabError;
pub use held::{Held, Response};
pub use live::Lab;
pub use namespace::{Namespace, Process};
pub use pods::{Node, Pod, PodsLab, PodsSpec};
pub use raw::Captured;
pub use server::{Served, Server, ServerSpec};
pub use tagger::Tagger;
pub use topology::{
    End, Item, end, host, ip, link, route, router, service_vlan, switch, sysctl, vip, vlan,
};
pub use trace::{Hop, HopAnswer, Probe, trace};
pub use traffic::{Failure, Record, Traffic};
