//! Why a path cannot be measured.

use std::io;

use aya::{EbpfError, maps::MapError, programs::ProgramError};
use xdp_lb::lab::LabError;

/// Why a path cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The lab refuses.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// The kernel refuses the generator or the sink.
    #[error("the generator or the sink cannot be loaded (run as root)")]
    Load(#[from] EbpfError),
    /// The generator or the sink cannot run.
    #[error("the generator or the sink cannot run")]
    Program(#[from] ProgramError),
    /// A map of the generator or the sink cannot be used.
    #[error("a map of the generator or the sink cannot be used")]
    Map(#[from] MapError),
    /// The benchmark's object lacks something.
    #[error("the benchmark's eBPF object has no {0}")]
    Missing(&'static str),
    /// A file or a socket.
    #[error("a file or a socket of the bench cannot be used")]
    Io(#[from] io::Error),
    /// What balances does not.
    #[error("no connection through the frontend succeeded within {0} s{1}")]
    NotServed(u64, String),
    /// A change of an endpoint has no effect.
    #[error("a change of the endpoints had no effect on connections within {0} s")]
    Unchanged(u64),
    /// A tool failed.
    #[error("{tool}: {message}")]
    Tool {
        /// The tool
        tool: &'static str,
        /// What it said
        message: String,
    },
    /// A request to the API server failed.
    #[error("the API server refuses: {0}")]
    Kubernetes(String),
}
