//! Why the daemon cannot start, or stops.

use std::{io, path::PathBuf};

use crate::{
    dataplane::{AttachError, DataplaneError},
    maps::TableError,
    net::NetError,
    pins::PinError,
};

/// Why the daemon cannot start, or stops.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file
        path: PathBuf,
        /// The kernel's answer
        source: io::Error,
    },
    /// The file has mistakes: one line each.
    #[error("{0}")]
    Config(String),
    /// Not root.
    #[error("xdp-lb run needs root, or the capabilities CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON")]
    Permission,
    /// The network cannot be followed.
    #[error("cannot follow the network: {0}")]
    Net(#[from] NetError),
    /// A device of the configuration is not there at the start.
    #[error("device {0} of the configuration does not exist; see `ip link`")]
    NoDevice(String),
    /// The data path cannot be set up.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    /// The program cannot be attached.
    #[error("cannot attach to {0}")]
    Attach(#[from] AttachError),
    /// The pin directory cannot be used.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The tables cannot be written.
    #[error(transparent)]
    Table(#[from] TableError),
    /// Signals cannot be received.
    #[error("cannot receive signals: {0}")]
    Signal(io::Error),
}
