//! Operations on the mapped arrays.

use xdp_lb_abi::{Backend, FrontendEntry, Service};

/// One write. A list of them is carried out in order; only [`Op::Publish`] is seen by packets at
/// once, all else writes what no packet reaches yet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Op {
    /// Words of the arena.
    Arena {
        /// First word
        word: u32,
        /// What it and the next ones hold
        words: Vec<u64>,
    },
    /// A backend's record. Packets may reach it already: only its path and whether it serves change
    /// then, see [`Backend`].
    Backend {
        /// Backend id
        id: u32,
        /// The record
        backend: Backend,
        /// The id has a new owner: its counters start at zero.
        new: bool,
    },
    /// A service's record.
    Service {
        /// Index into `SERVICES`
        index: u32,
        /// The record
        service: Service,
    },
    /// A frontend's counters start at zero.
    ResetFrontend {
        /// Index into `FRONTEND_STATS`
        stats: u32,
    },
    /// A frontend's entry: the key first, then the service's index as one store.
    Publish {
        /// Index into `FRONTENDS`
        bucket: u32,
        /// Entry of the bucket
        entry: usize,
        /// The entry
        value: FrontendEntry,
    },
    /// Wait until every packet that may have seen the older state is through: what was given up
    /// before may be written again after.
    Grace,
}
