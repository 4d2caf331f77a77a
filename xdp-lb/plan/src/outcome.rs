//! What comes of planning.

use xdp_lb_abi::FrontendKey;

use crate::{maglev, model::Frontend, op::Op};

/// Why a frontend is not as it should be.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// The frontend table is full.
    #[error("no room for another frontend: raise limits.frontends")]
    Frontends,
    /// The backend table is full.
    #[error("no room for its backends: raise limits.backends")]
    Backends,
    /// The arena is full.
    #[error("no room for its Maglev table: raise limits.slots, or lower the service's tableSize")]
    Slots,
    /// The Maglev table cannot be built.
    #[error(transparent)]
    Maglev(#[from] maglev::BuildError),
}

/// A frontend that stays as it was, and why.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refused {
    /// The service's name
    pub service: String,
    /// The frontend
    pub frontend: Frontend,
    /// Its key
    pub key: FrontendKey,
    /// The reason
    pub refusal: Refusal,
}

/// What a [`crate::Planner::apply`] comes to.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// What to write, in order; empty where nothing changed
    pub ops: Vec<Op>,
    /// What could not be served; it stays as it was
    pub refused: Vec<Refused>,
}
