//! What cannot be done for an object, and why.

use std::{fmt, net::IpAddr, num::NonZeroU16, sync::Arc};

use crate::{
    kubernetes::Key,
    model::{Frontend, NodePort},
};

/// Kind of an object.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub enum ObjectKind {
    /// `v1` Service
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice
    EndpointSlice,
    /// `v1` Node
    Node,
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
        })
    }
}

/// An object, as an Event names it.
#[derive(Clone, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub struct Object {
    /// What it is
    pub kind: ObjectKind,
    /// Its namespace and name; a Node's namespace is empty
    pub key: Key,
    /// `metadata.uid`; empty where the server said none
    pub uid: Arc<str>,
}

/// Something that cannot be done for an object; all else goes on.
#[derive(Clone, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub struct Finding {
    /// The object that is to be mended
    pub object: Object,
    /// The field, like `spec.ports[0].nodePort`
    pub field: String,
    /// What is wrong, and what is done instead
    pub problem: Problem,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { object, field, problem } = self;
        write!(f, "{} {}: {field}: {problem}", object.kind, object.key)
    }
}

/// A finding whose object is known from where it is kept.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Flaw {
    field: String,
    problem: Problem,
}

impl Flaw {
    pub(super) fn new(field: String, problem: Problem) -> Self {
        Self { field, problem }
    }

    pub(super) fn of(&self, object: &Object) -> Finding {
        let Self { field, problem } = self.clone();
        Finding { object: object.clone(), field, problem }
    }
}

/// What is wrong with an object, and what is done instead.
#[derive(Clone, Debug, Eq, PartialEq, Ord, PartialOrd, thiserror::Error)]
pub enum Problem {
    /// Not an address of a host, or not of the family that belongs here.
    #[error("`{0}` is no address that a host of this family can have: it is left out")]
    Address(String),
    /// Not a network.
    #[error("`{0}` is not a network: it is left out")]
    Network(String),
    /// An address of a family that the Service is not of.
    #[error("{0} is of a family that spec.ipFamilies does not have: it is left out")]
    Family(IpAddr),
    /// A number that is no port.
    #[error("{0} is not a port (1 to 65535): it is left out")]
    Port(i32),
    /// No number.
    #[error("a port without a number stands for all ports, which is not served: it is left out")]
    EveryPort,
    /// A port that an earlier one of the same object has.
    #[error("port {0} is there twice with one protocol: the second is left out")]
    Twice(NonZeroU16),
    /// A protocol that is not served.
    #[error("`{0}` is not served, only TCP, UDP and SCTP are: the port is left out")]
    Protocol(String),
    /// A type of slices that is not served.
    #[error("slices of type `{0}` are not served, only IPv4 and IPv6: it is left out")]
    AddressType(String),
    /// A name that the API server would not have taken.
    #[error("the name or the namespace is not one of Kubernetes': the Service is not served")]
    Name,
    /// A value that does not count.
    #[error("`{value}` does not count: {expected}")]
    Value {
        /// What it says
        value: String,
        /// What it may say
        expected: &'static str,
    },
    /// Another Service has the frontend.
    #[error(
        "{frontend} belongs to Service {owner}, whose ClusterIP it is, or which is older: it is left out here"
    )]
    FrontendTaken {
        /// The frontend
        frontend: Frontend,
        /// Whose it is
        owner: Key,
    },
    /// Another Service has the node port.
    #[error("{port} belongs to Service {owner}, which is older: it is left out here")]
    NodePortTaken {
        /// The node port
        port: NodePort,
        /// Whose it is
        owner: Key,
    },
    /// A node port that mode `snat` sends from.
    #[error(
        "{0} is one of the ports that mode snat sends from, and is left out: choose another, or \
         change `snat.ports`"
    )]
    SnatPort(NodePort),
    /// The Node of endpoints is not there.
    #[error("there is no such Node, but endpoints on it: they are served by snat")]
    NoNode,
    /// A Node without an address.
    #[error("neither an InternalIP nor an ExternalIP is usable: its endpoints are served by snat")]
    NoNodeAddress,
    /// `externalTrafficPolicy: Local` keeps the clients' addresses, mode `snat` does not.
    #[error(
        "Local asks for the clients' addresses to be kept, but snat rewrites them: serve the \
         Service by mode geneve"
    )]
    SourceLost,
    /// Too many endpoints for one frontend.
    #[error("only {0} endpoints of a port can be served: the others are left out")]
    TooManyEndpoints(usize),
}

impl Problem {
    /// A word in CamelCase, as the reason of an Event.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Address(_) => "InvalidAddress",
            Self::Network(_) => "InvalidNetwork",
            Self::Family(_) => "IncorrectIPFamily",
            Self::Port(_) | Self::EveryPort | Self::Twice(_) => "InvalidPort",
            Self::Protocol(_) => "UnsupportedProtocol",
            Self::AddressType(_) => "UnsupportedAddressType",
            Self::Name => "InvalidName",
            Self::Value { .. } => "InvalidValue",
            Self::FrontendTaken { .. } | Self::NodePortTaken { .. } => "FrontendTaken",
            Self::SnatPort(_) => "PortReserved",
            Self::NoNode => "NodeUnknown",
            Self::NoNodeAddress => "NodeWithoutAddress",
            Self::SourceLost => "SourceNotKept",
            Self::TooManyEndpoints(_) => "TooManyEndpoints",
        }
    }
}
