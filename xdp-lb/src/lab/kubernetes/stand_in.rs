//! Stand-ins for what a cluster of this lab does not have: scheduler, kubelets and a controller of
//! LoadBalancer addresses, in one process beside the control plane.
//!
//! The kubelets are faithful in what load balancers see: a Pod's addresses, its readiness by the
//! Pod's own probe, a server that goes on while its Pod terminates, the Node's lease. Pods of the
//! host's network, volumes, images and the like do not exist here.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{Stream, StreamExt as _};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Node as ApiNode, Pod, Service},
};
use kube::{
    Api, Client, Config, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
    runtime::{
        reflector::{self, Store},
        watcher,
    },
};
use serde_json::{Value, json};
use tokio::{
    select,
    time::{MissedTickBehavior, interval, sleep},
};

use super::{
    NODES,
    kubelet::{Kubelet, Running},
    objects,
};
use crate::{
    error::chain,
    lab::{Lab, LabError, Node, pods::Pod as Place, router},
};

/// How often it is looked what is due.
const TURN: Duration = Duration::from_millis(50);
/// How long nothing is tried after the API server has refused, or is away.
const PAUSE: Duration = Duration::from_millis(250);
/// The manager of the fields that are written here.
const MANAGER: &str = "lab";

/// Why there are no stand-ins.
#[derive(Debug, thiserror::Error)]
pub enum StandInError {
    /// The file that says where the API server is.
    #[error("cannot read {path}: {source}")]
    Kubeconfig {
        /// The file
        path: PathBuf,
        /// Why
        source: KubeconfigError,
    },
    /// No client comes of it.
    #[error("cannot make a client of the API server: {0}")]
    Client(#[from] kube::Error),
    /// The system.
    #[error("cannot run: {0}")]
    System(#[from] io::Error),
    /// Namespaces and servers.
    #[error(transparent)]
    Lab(#[from] LabError),
}

/// Where the stand-ins work.
#[derive(Clone, Debug)]
pub struct StandIns {
    /// The lab whose nodes they are
    pub prefix: String,
    /// The file that says where the API server is
    pub kubeconfig: PathBuf,
    /// This program: its hidden command `demo-server` is what runs in pods
    pub program: PathBuf,
    /// Where servers log
    pub directory: PathBuf,
    /// The directory of the nodes' cgroups, where they have some: pods join that of their node
    pub cgroups: Option<PathBuf>,
}

impl StandIns {
    /// Works until it is killed; the pods end with it.
    ///
    /// # Errors
    ///
    /// Where it cannot begin, or the lab's namespaces are gone.
    pub fn run(self) -> Result<Infallible, StandInError> {
        // The servers end with the thread that starts them: this one.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(self.work())
    }

    async fn work(self) -> Result<Infallible, StandInError> {
        let client = client(&self.kubeconfig).await?;
        let lab = Lab::join(&self.prefix, NODES.map(|node| router(node.name())))?;
        let (pods, mut pod_events) = follow::<Pod>(client.clone());
        let (services, mut service_events) = follow::<Service>(client.clone());
        let Self { kubeconfig, program, directory, cgroups, .. } = self;
        let mut cluster = Cluster {
            client,
            pods,
            services,
            kubelet: Kubelet { lab, kubeconfig, program, directory, cgroups, last: 0 },
            running: BTreeMap::new(),
            bound: BTreeSet::new(),
            registered: false,
            lease: Instant::now(),
        };
        let mut turn = interval(TURN);
        turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            select! {
                Some(failed) = pod_events.next() => say(failed).await,
                Some(failed) = service_events.next() => say(failed).await,
                _ = turn.tick() => {
                    let failed = cluster.turn().await?;
                    say(failed).await;
                }
            }
        }
    }
}

/// A client by what a file says.
pub(super) async fn client(kubeconfig: &Path) -> Result<Client, StandInError> {
    let unreadable = |source| StandInError::Kubeconfig { path: kubeconfig.to_owned(), source };
    let file = Kubeconfig::read_from(kubeconfig).map_err(unreadable)?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
    Ok(Client::try_from(config.map_err(unreadable)?)?)
}

/// A store that follows all objects of a kind, and what has to be polled for that; it yields errors.
pub(super) fn follow<K>(client: Client) -> (Store<K>, impl Stream<Item = Option<String>> + Unpin)
where
    K: kube::Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned
        + Send
        + 'static,
{
    let (store, writer) = reflector::store();
    let events = watcher(Api::<K>::all(client), watcher::Config::default());
    let events = reflector::reflector(writer, events);
    let errors = events.map(|event| event.err().map(|error| chain(&error)));
    (store, Box::pin(errors))
}

pub(super) async fn say(failed: Option<String>) {
    if let Some(text) = failed {
        tracing::warn!("{text}");
        sleep(PAUSE).await;
    }
}

/// The cluster as the API shows it, and as it is.
struct Cluster {
    client: Client,
    pods: Store<Pod>,
    services: Store<Service>,
    kubelet: Kubelet,
    /// By the Pod's unique identifier
    running: BTreeMap<String, Running>,
    /// Pods that were given a node, and do not show it yet
    bound: BTreeSet<String>,
    registered: bool,
    /// When the leases are renewed
    lease: Instant,
}

impl Cluster {
    /// Does what is due, and tells what the API has refused.
    async fn turn(&mut self) -> Result<Option<String>, LabError> {
        let pods = self.pods.state();
        let now = Instant::now();
        self.follow(&pods, now)?;
        let mut gone = Vec::new();
        for (uid, running) in &mut self.running {
            if self.kubelet.turn(running, now)? {
                gone.push(uid.clone());
            }
        }
        Ok(self.tell(&pods, &gone).await.err().map(|error| chain(&error)))
    }

    /// Starts, ends and removes pods.
    fn follow(&mut self, pods: &[Arc<Pod>], now: Instant) -> Result<(), LabError> {
        let living: BTreeSet<String> = pods.iter().filter_map(|pod| pod.uid()).collect();
        let dead: Vec<String> =
            self.running.keys().filter(|uid| !living.contains(*uid)).cloned().collect();
        for running in dead.iter().filter_map(|uid| self.running.remove(uid)).collect::<Vec<_>>() {
            self.kubelet.remove(running)?;
        }
        let mut fresh: Vec<(&Pod, Place)> = Vec::new();
        for pod in pods {
            let uid = pod.uid().unwrap_or_default();
            let ends = pod.metadata.deletion_timestamp.is_some();
            match self.running.get_mut(&uid) {
                Some(running) if ends => running.begin_end(pod, now),
                Some(_) => {}
                None => {
                    let Some(node) = node_of(pod).filter(|_| !ends) else { continue };
                    let used = |place| {
                        self.running.values().any(|one| one.report.place == place)
                            || fresh.iter().any(|(_, one)| *one == place)
                    };
                    if let Some(place) = self.kubelet.place(node, used) {
                        fresh.push((pod, place));
                    }
                }
            }
        }
        if !fresh.is_empty() {
            let started = self.kubelet.start(&fresh)?;
            let uids = fresh.iter().map(|(pod, _)| pod.uid().unwrap_or_default());
            self.running.extend(uids.zip(started));
        }
        Ok(())
    }

    /// Tells the API; the first refusal ends it until the next turn.
    async fn tell(&mut self, pods: &[Arc<Pod>], gone: &[String]) -> Result<(), kube::Error> {
        self.register().await?;
        for pod in pods {
            let uid = pod.uid().unwrap_or_default();
            let ends = pod.metadata.deletion_timestamp.is_some();
            if gone.contains(&uid) || (ends && !self.running.contains_key(&uid)) {
                self.forget(pod, &uid).await?;
            } else if let Some(running) = self.running.get_mut(&uid)
                && running.told.as_ref() != Some(&running.report)
            {
                let (api, name) = place_of(&self.client, pod);
                let patch = Patch::Strategic(running.report.patch(pod));
                match api.patch_status(&name, &parameters(), &patch).await {
                    Err(error) if !vanished(&error) => return Err(error),
                    Ok(_) | Err(_) => running.told = Some(running.report.clone()),
                }
            }
        }
        self.schedule(pods).await?;
        self.balance().await
    }

    /// A Pod whose server has ended is no more.
    async fn forget(&self, pod: &Pod, uid: &str) -> Result<(), kube::Error> {
        let (api, name) = place_of(&self.client, pod);
        let own = Preconditions { uid: Some(uid.to_owned()), ..Preconditions::default() };
        let at_once = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(own),
            ..DeleteParams::default()
        };
        match api.delete(&name, &at_once).await {
            Err(error) if !vanished(&error) => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Gives each Pod without a node the one that has the fewest of its own kind, and then of all.
    async fn schedule(&mut self, pods: &[Arc<Pod>]) -> Result<(), kube::Error> {
        let mut bound: Vec<(Node, &str)> =
            pods.iter().filter_map(|pod| Some((node_of(pod)?, owner_of(pod)))).collect();
        for pod in pods {
            let uid = pod.uid().unwrap_or_default();
            let spec = pod.spec.as_ref();
            if spec.is_some_and(|spec| spec.node_name.is_some()) {
                self.bound.remove(&uid);
                continue;
            }
            if pod.metadata.deletion_timestamp.is_some() || self.bound.contains(&uid) {
                continue;
            }
            let selector = spec.and_then(|spec| spec.node_selector.as_ref());
            let fits = |node: &Node| {
                let labels = &objects::node(*node)["metadata"]["labels"];
                selector.into_iter().flatten().all(|(key, value)| labels[key] == *value)
            };
            let owner = owner_of(pod);
            let load = |node: &Node| {
                let here = || bound.iter().filter(|(on, _)| on == node);
                (here().filter(|(_, of)| *of == owner).count(), here().count())
            };
            let Some(node) = NODES.into_iter().filter(fits).min_by_key(load) else { continue };
            let (api, name) = place_of(&self.client, pod);
            let binding = json!({
                "apiVersion": "v1",
                "kind": "Binding",
                "metadata": {"name": name},
                "target": {"apiVersion": "v1", "kind": "Node", "name": node.name()},
            });
            let parameters = PostParams::default();
            let done = api.create_subresource::<_, Value>("binding", &name, &parameters, &binding);
            match done.await {
                Err(error) if !vanished(&error) => return Err(error),
                Ok(_) | Err(_) => bound.push((node, owner)),
            }
            self.bound.insert(uid);
        }
        Ok(())
    }

    /// Registers the nodes once, and renews their leases.
    async fn register(&mut self) -> Result<(), kube::Error> {
        let nodes: Api<ApiNode> = Api::all(self.client.clone());
        if !self.registered {
            for node in NODES {
                let name = node.name();
                nodes.patch(name, &ours(), &Patch::Apply(objects::node(node))).await?;
                let status = Patch::Merge(objects::node_status(node));
                nodes.patch_status(name, &parameters(), &status).await?;
            }
            self.registered = true;
        }
        if self.lease <= Instant::now() {
            let leases: Api<Lease> = Api::namespaced(self.client.clone(), "kube-node-lease");
            for node in NODES {
                let lease = Patch::Apply(objects::lease(node));
                leases.patch(node.name(), &ours(), &lease).await?;
            }
            self.lease = Instant::now() + objects::LEASE;
        }
        Ok(())
    }

    /// Gives addresses to the Services that want them.
    async fn balance(&self) -> Result<(), kube::Error> {
        let services = self.services.state();
        let mut used: BTreeSet<IpAddr> =
            services.iter().flat_map(|one| objects::balanced(one)).collect();
        for service in &services {
            let families = objects::wants_addresses(service);
            if families.is_empty() {
                continue;
            }
            let free =
                |v6: bool| super::load_balancer_addresses(v6).find(|one| !used.contains(one));
            let addresses: Vec<IpAddr> = families.into_iter().filter_map(free).collect();
            used.extend(&addresses);
            let namespace = service.namespace().unwrap_or_default();
            let api: Api<Service> = Api::namespaced(self.client.clone(), &namespace);
            let patch = Patch::Merge(objects::load_balancer(&addresses));
            api.patch_status(&service.name_any(), &parameters(), &patch).await?;
        }
        Ok(())
    }
}

fn parameters() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() }
}

/// For what nobody else writes.
fn ours() -> PatchParams {
    PatchParams::apply(MANAGER).force()
}

/// Whether the object is gone, or is another one by now.
fn vanished(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 404 | 409))
}

fn place_of(client: &Client, pod: &Pod) -> (Api<Pod>, String) {
    let namespace = pod.namespace().unwrap_or_default();
    (Api::namespaced(client.clone(), &namespace), pod.name_any())
}

/// Who has made a Pod: a ReplicaSet, as a rule.
fn owner_of(pod: &Pod) -> &str {
    pod.owner_references().first().map_or("", |owner| owner.uid.as_str())
}

/// The node of the lab that a Pod is bound to, unless it has ended.
fn node_of(pod: &Pod) -> Option<Node> {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let name = pod.spec.as_ref()?.node_name.as_deref()?;
    let node = NODES.into_iter().find(|node| node.name() == name)?;
    (!matches!(phase, Some("Succeeded" | "Failed"))).then_some(node)
}
