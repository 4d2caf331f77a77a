//! Why the daemon cannot start, or stops.

use std::{io, path::PathBuf};

use crate::{
    dataplane::{AttachError, DataplaneError, EgressError, SocketError},
    maps::TableError,
    net::NetError,
    pins::PinError,
    state::StateError,
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
    /// The program on the way out cannot be attached.
    #[error("cannot attach to {0}")]
    Egress(#[from] EgressError),
    /// This machine cannot replace kube-proxy as a whole.
    #[error(
        "`kubeProxyReplacement: strict` is not possible here:\n\n{0}\nMend that, or write `probe`: what \
         is missing is then left to kube-proxy"
    )]
    Strict(String),
    /// Calls of sockets cannot be served.
    #[error("cannot serve sockets: {0}")]
    Sockets(#[from] SocketError),
    /// The pin directory cannot be used.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The tables cannot be written.
    #[error(transparent)]
    Table(#[from] TableError),
    /// What was set through the API cannot be used.
    #[error("{0}; a data path that runs goes on as it is")]
    State(#[from] StateError),
    /// A part of the daemon ended by itself.
    #[error(
        "{0} ended, which is a mistake of this program; the data path goes on without the daemon: start \
         it again"
    )]
    Ended(&'static str),
    /// Signals cannot be received.
    #[error("cannot receive signals: {0}")]
    Signal(io::Error),
}
