//! Follows a Kubernetes cluster: its Services, EndpointSlices and Nodes.
//!
//! ```text
//! API server ─ session ─ watch (one a kind) ─► digest (plan's rules) ─► Side ─► the daemon
//!                                                            └────────► health servers, Events
//! ```
//! Whatever fails, the last state stays. What objects mean is decided in [`xdp_lb_plan::kubernetes`].

mod client;
mod digest;
mod events;
mod health;
mod http;
mod latency;
mod object;
mod servers;
mod session;
mod status;
mod watch;

use std::{collections::BTreeMap, ops::RangeInclusive, path::PathBuf, sync::Arc, time::Duration};

use tokio::sync::{mpsc, watch as latest};
use tracing::info;
use xdp_lb_api::view::{ClusterFinding, ClusterServer, KubernetesView};
use xdp_lb_plan::kubernetes::{Key, OwnNode, Rules, Serves, ServiceState};

pub(crate) use self::status::Say;
use self::{
    digest::{Digest, Outlets},
    health::Health,
    servers::Servers,
    status::Status,
};
use crate::config::{Config, KubernetesConfig, NodeIdentity};

/// News that may wait to be taken in.
const WAITING: usize = 4096;
/// Events that may wait to be written.
const NOTICES: usize = 1000;

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// How long a server may take to answer
    pub answer: Duration,
    /// How long one behind a ClusterIP may, until it is told that perhaps nobody leads there
    pub doubt: Duration,
    /// How long nothing may be heard of a server until it is asked whether it is there
    pub silence: Duration,
    /// How long a piece of a list may take
    pub list: Duration,
    /// Least time between tries
    pub least: Duration,
    /// Longest time between tries
    pub most: Duration,
    /// News that come within this time are taken in together
    pub batch: Duration,
    /// How long a port that cannot be had is left until it is tried again
    pub port: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(5),
            doubt: Duration::from_secs(1),
            silence: Duration::from_secs(5),
            list: Duration::from_secs(60),
            least: Duration::from_millis(250),
            most: Duration::from_secs(30),
            batch: Duration::from_millis(2),
            port: Duration::from_secs(5),
        }
    }
}

/// What is followed, and how.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Settings {
    cluster: KubernetesConfig,
    snat_ports: RangeInclusive<u16>,
    serves: Serves,
}

impl Settings {
    /// Those of a configuration; nothing where it names no cluster.
    pub(crate) fn of(config: &Config) -> Option<Self> {
        let cluster = config.kubernetes.clone()?;
        let serves = config.replacement.serves;
        Some(Self { cluster, snat_ports: config.snat.ports.clone(), serves })
    }
}

/// What the cluster says, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Side {
    /// Goes up with each change
    pub revision: u64,
    /// Whether all kinds have been listed; before, nothing is said
    pub complete: bool,
    /// What each Service comes to
    pub states: BTreeMap<Key, Arc<ServiceState>>,
    /// What cannot be done for objects that are no Services, and for malformed ones
    pub findings: Vec<ClusterFinding>,
    /// The own node; none where this host is none
    pub own_node: Option<OwnNode>,
    /// Whether the node may have traffic before the cluster has said so
    pub kept: bool,
}

impl Side {
    /// Whether load balancers may send traffic here.
    fn eligible(&self) -> bool {
        match self.own_node {
            _ if !self.complete => self.kept,
            None => true,
            Some(node) => node.exists && node.eligible(),
        }
    }
}

/// The cluster that is followed, as the daemon sees it.
pub struct Cluster {
    config: latest::Sender<Option<Settings>>,
    side: latest::Receiver<Arc<Side>>,
    news: latest::Receiver<u64>,
    status: Arc<Status>,
}

impl Cluster {
    /// Begins to follow; `kept` says whether the data path has an earlier run's services, and in
    /// `directory` is what that run knew of the servers.
    pub(crate) fn start(
        config: Option<Settings>,
        kept: bool,
        directory: PathBuf,
        pace: Pace,
        say: Say,
    ) -> Self {
        let status = Arc::new(Status::new(say));
        let servers = Arc::new(Servers::start(directory));
        let first = Side { complete: config.is_none(), kept, ..Side::default() };
        let (side, from_side) = latest::channel(Arc::new(first));
        let (config, from_config) = latest::channel(config);
        tokio::spawn(run(from_config, Arc::new(side), (status.clone(), servers), pace));
        Self { config, side: from_side, news: status.news(), status }
    }

    /// Follows this from now on. What is known stays until the new lists are there.
    pub(crate) fn configure(&self, config: Option<Settings>) {
        self.config.send_if_modified(|before| {
            let changed = *before != config;
            *before = config;
            changed
        });
    }

    /// Waits until the cluster, or how following it goes, has changed.
    pub(crate) async fn changed(&mut self) {
        tokio::select! {
            Ok(()) = self.side.changed() => {}
            Ok(()) = self.news.changed() => {}
            else => std::future::pending().await,
        }
    }

    /// What the cluster says now.
    pub(crate) fn side(&mut self) -> Arc<Side> {
        self.news.borrow_and_update();
        self.side.borrow_and_update().clone()
    }

    /// The data path has this revision.
    pub(crate) fn applied(&self, revision: u64) {
        self.status.latency.applied(revision);
    }

    /// What is not as it should be; nothing where no cluster is followed.
    pub(crate) fn wrong(&self) -> Vec<String> {
        if self.config.borrow().is_none() { Vec::new() } else { self.status.wrong() }
    }

    /// The API servers; none where no cluster is followed.
    pub(crate) fn servers(&self) -> Vec<ClusterServer> {
        if self.config.borrow().is_none() { Vec::new() } else { self.status.known_servers() }
    }

    /// What can be asked of it from elsewhere.
    pub(crate) fn observer(&self) -> Observer {
        let (config, side) = (self.config.subscribe(), self.side.clone());
        Observer { config, side, status: self.status.clone() }
    }
}

/// Looks at how following the cluster goes.
#[derive(Clone)]
pub(crate) struct Observer {
    config: latest::Receiver<Option<Settings>>,
    side: latest::Receiver<Arc<Side>>,
    status: Arc<Status>,
}

impl Observer {
    /// How it goes; nothing where no cluster is followed.
    pub(crate) fn view(&self) -> Option<KubernetesView> {
        self.config.borrow().as_ref()?;
        let side = self.side.borrow().clone();
        let of_services = side.states.values().flat_map(|state| &state.findings);
        let mut findings: Vec<ClusterFinding> = of_services.map(digest::view).collect();
        findings.extend(side.findings.iter().cloned());
        Some(KubernetesView { findings, ..self.status.view() })
    }

    /// Tells of each change of what the cluster says.
    pub(crate) fn side(&self) -> latest::Receiver<Arc<Side>> {
        self.side.clone()
    }
}

/// Follows what the configuration names, until nobody can change it any more.
async fn run(
    mut config: latest::Receiver<Option<Settings>>,
    side: Arc<latest::Sender<Arc<Side>>>,
    told: (Arc<Status>, Arc<Servers>),
    pace: Pace,
) {
    loop {
        let now = config.borrow_and_update().clone();
        let follow = async {
            match &now {
                Some(now) => follow(now, pace, side.clone(), told.clone()).await,
                None => {
                    let revision = side.borrow().revision;
                    // Whose services these were is not followed any more.
                    if revision > 0 {
                        let none =
                            Side { revision: revision + 1, complete: true, ..Side::default() };
                        side.send_replace(Arc::new(none));
                    }
                    std::future::pending().await
                }
            }
        };
        tokio::select! {
            changed = config.changed() => if changed.is_err() { return },
            () = follow => {}
        }
    }
}

/// Follows one cluster, for ever.
async fn follow(
    Settings { cluster: config, snat_ports, serves }: &Settings,
    pace: Pace,
    side: Arc<latest::Sender<Arc<Side>>>,
    (status, servers): (Arc<Status>, Arc<Servers>),
) {
    let node = node_name(&config.node);
    let host = node.clone().unwrap_or_else(host_name);
    status.reset(node.clone());
    match &node {
        Some(node) => info!("this host is node {node} of the cluster"),
        None => info!("this host is no node of the cluster"),
    }
    let rules = Rules {
        node: node.map(Into::into),
        classes: config.classes.clone(),
        mode: config.default_mode,
        serves: *serves,
        snat_ports: Some(snat_ports.clone()),
    };
    let (news, from_news) = mpsc::channel(WAITING);
    let (notices, from_notices) = mpsc::channel(NOTICES);
    let (clients, from_clients) = latest::channel(None);
    let health = Health {
        side: side.subscribe(),
        status: status.clone(),
        host: host.clone(),
        notices: notices.clone(),
        again: pace.port,
    };
    let outlets = Outlets { side, status: status.clone(), servers: servers.clone(), notices };
    tokio::join!(
        session::run(config, pace, (status.clone(), servers), news, clients),
        Digest::new(rules).run(pace, from_news, outlets),
        health.run(config),
        events::write(config.events, &host, pace, from_notices, from_clients, status),
    );
}

/// The name of this host's node, as kube-proxy finds it: said, or the host's own in small letters.
fn node_name(node: &NodeIdentity) -> Option<String> {
    match node {
        NodeIdentity::Node(Some(name)) => Some(name.clone()),
        NodeIdentity::Node(None) => {
            let said = std::env::var("NODE_NAME").ok().filter(|name| !name.is_empty());
            Some(said.unwrap_or_else(host_name))
        }
        NodeIdentity::None => None,
    }
}

fn host_name() -> String {
    let name = nix::unistd::gethostname().unwrap_or_default();
    name.to_string_lossy().trim().to_lowercase()
}

#[cfg(test)]
mod tests;
