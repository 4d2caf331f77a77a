//! What can go wrong when a lab is built, used and removed.

use std::io;

/// Why a lab could not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// Namespaces need root.
    #[error("a lab of network namespaces needs root: run this with sudo")]
    NotRoot,
    /// Another running process has built a lab with this prefix.
    #[error("the lab {0:?} is in use by a running process: stop that one first, or wait for it")]
    InUse(String),
    /// The prefix is part of namespace names, and separates one lab's names from another's.
    #[error("{0:?} cannot be a lab's prefix: use 1 to 20 lower-case letters and digits")]
    BadPrefix(String),
    /// The list of items contradicts itself.
    #[error("the topology is wrong at {item}: {reason}")]
    Topology {
        /// The item, as it would be written in the list
        item: String,
        /// What is wrong with it
        reason: String,
    },
    /// No item of the topology declares this node.
    #[error("the lab has no node named {0:?}")]
    UnknownNode(String),
    /// A tool could not be started.
    #[error("cannot run {program}: {source} (is its package installed?)")]
    Start {
        /// Name of the program
        program: String,
        /// The system's answer
        source: io::Error,
    },
    /// A tool refused.
    #[error("{command} failed: {message}")]
    Refused {
        /// The command, and its input where it reads one
        command: String,
        /// What it printed
        message: String,
    },
    /// A call of the operating system failed.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried
        what: String,
        /// The system's answer
        source: io::Error,
    },
}

impl LabError {
    /// A closure for `map_err`: `what` continues the words "cannot".
    pub(crate) fn system<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |source| Self::System { what: what.into(), source: source.into() }
    }
}
