//! What kube-proxy serves, as its rules say it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
};

use super::Family;

/// Where clients reach a service.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum At {
    /// An address of its own
    Address(IpAddr),
    /// A node port, on these addresses of the node
    NodePort(NodeAddresses),
}

/// On which of its addresses a node has node ports.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum NodeAddresses {
    /// These
    These(BTreeSet<IpAddr>),
    /// All of this family; with those of loopback, or without
    All {
        /// Of this family
        family: Family,
        /// 127.0.0.0/8, too
        loopback: bool,
    },
}

/// What becomes of new connections.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Answer {
    /// They are led to one of these
    Endpoints(BTreeSet<SocketAddr>),
    /// They are rejected: there is no endpoint
    Refused,
    /// They are dropped: the policy allows no endpoint
    Dropped,
}

/// A frontend of kube-proxy's.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Served {
    pub(super) at: At,
    pub(super) port: u16,
    /// `TCP`, `UDP` or `SCTP`
    pub(super) protocol: String,
    /// `ClusterIP`, `NodePort`, `LoadBalancer`, …; what the rules tell
    pub(super) kind: &'static str,
    /// `NAMESPACE/NAME:PORT`, as far as the rules tell
    pub(super) service: String,
    /// For clients outside, or all
    pub(super) answer: Answer,
    /// For pods and this host, where that is another answer
    pub(super) inside: Option<BTreeSet<SocketAddr>>,
}

impl fmt::Display for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.at {
            At::Address(address) => {
                write!(f, "{}/{}", SocketAddr::new(*address, self.port), self.protocol)
            }
            At::NodePort(_) => write!(f, "nodePort {}/{}", self.port, self.protocol),
        }
    }
}

/// Where a chain leads: for all, and for those who come from inside.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Ends {
    pub(super) all: BTreeSet<SocketAddr>,
    pub(super) inside: BTreeSet<SocketAddr>,
}

/// What a rule leads to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Step {
    /// To an endpoint
    Endpoint(SocketAddr),
    /// To another chain, whoever comes
    Chain(String),
    /// To another chain, for some
    ChainForSome(String),
}

/// The chains that lead to endpoints, by name.
#[derive(Clone, Debug, Default)]
pub(super) struct Chains(pub(super) BTreeMap<String, Vec<Step>>);

/// Deeper than any chain of kube-proxy's leads.
const DEPTH: usize = 8;

impl Chains {
    /// Where a chain leads.
    ///
    /// Rules for some, that is for pods and the node itself, count for those inside alone; where
    /// sessions are kept, they lead nowhere that the rules for all do not.
    pub(super) fn ends(&self, chain: &str) -> Ends {
        let mut ends = Ends::default();
        self.follow(chain, DEPTH, &mut ends.all, false);
        self.follow(chain, DEPTH, &mut ends.inside, true);
        ends
    }

    fn follow(&self, chain: &str, depth: usize, found: &mut BTreeSet<SocketAddr>, some: bool) {
        let Some(steps) = self.0.get(chain).filter(|_| depth > 0) else { return };
        for step in steps {
            match step {
                Step::Endpoint(endpoint) => {
                    found.insert(*endpoint);
                }
                Step::Chain(next) => self.follow(next, depth - 1, found, some),
                Step::ChainForSome(next) if some => self.follow(next, depth - 1, found, some),
                Step::ChainForSome(_) => {}
            }
        }
    }

    /// What becomes of connections that come to a chain.
    pub(super) fn answer(&self, chain: &str) -> (Answer, Option<BTreeSet<SocketAddr>>) {
        let Ends { all, inside } = self.ends(chain);
        let inside = (inside != all).then_some(inside);
        if all.is_empty() { (Answer::Dropped, inside) } else { (Answer::Endpoints(all), inside) }
    }
}

/// `tcp` as `TCP`.
pub(super) fn protocol(name: &str) -> String {
    name.to_ascii_uppercase()
}
