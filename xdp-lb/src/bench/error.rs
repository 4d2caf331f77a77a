//! Why nothing can be measured.

use aya::{EbpfError, maps::MapError, programs::ProgramError};

use crate::{dataplane::DataplaneError, error::chain, maps::TableError};

/// Why nothing can be measured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused the benchmark's own object.
    #[error("cannot load the benchmark's eBPF programs (run as root): {}", chain(.0))]
    Load(#[source] EbpfError),
    /// The kernel refused the data path.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    /// A table of the data path cannot be used.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A service was refused.
    #[error("the tables are too small for the benchmark: {0}")]
    Refused(String),
    /// The benchmark's object lacks something.
    #[error("the benchmark's eBPF object has no {0}")]
    Missing(&'static str),
    /// A map cannot be used.
    #[error("map {map} of the benchmark cannot be used: {}", chain(.source))]
    Map {
        /// The map
        map: &'static str,
        /// The kernel's answer
        #[source]
        source: MapError,
    },
    /// A program cannot be loaded or run.
    #[error("program {program} cannot be run: {}", chain(.source))]
    Program {
        /// The program
        program: &'static str,
        /// The kernel's answer
        #[source]
        source: ProgramError,
    },
    /// A packet did not become what its case says: its figures would be another packet's.
    #[error("{case}: {what}")]
    Wrong {
        /// The case
        case: String,
        /// What became of it instead
        what: String,
    },
    /// No case is asked for.
    #[error("no case's name contains {0:?}: names are like ipv4-tcp-ipip-rest-1")]
    Filter(String),
}
