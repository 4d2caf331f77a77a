//! Why nothing can be measured.

use aya::{EbpfError, maps::MapError, programs::ProgramError, sys::SyscallError};
use xdp_lb::dataplane::DataplaneError;

/// Why nothing can be measured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused the object's maps.
    #[error("cannot load the eBPF object (run as root)")]
    Load(#[from] EbpfError),
    /// The kernel refused a program.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    /// A map cannot be used.
    #[error("map {map} cannot be used")]
    Map {
        /// The map
        map: &'static str,
        /// The kernel's answer
        #[source]
        source: MapError,
    },
    /// A program cannot be run.
    #[error("program {program} cannot be run")]
    Program {
        /// The program
        program: &'static str,
        /// The kernel's answer
        #[source]
        source: ProgramError,
    },
    /// The kernel does not count run times.
    #[error("the kernel does not count how long programs run (Linux 5.8 or newer does)")]
    Statistics(#[from] SyscallError),
    /// A namespace or a file of `/proc` cannot be used.
    #[error("the measuring process cannot be set up")]
    Setup(#[from] std::io::Error),
    /// A packet did not become what the case says: its figures would be another packet's.
    #[error("{case}: {what}")]
    Wrong {
        /// The case
        case: &'static str,
        /// What became of it instead
        what: String,
    },
}
