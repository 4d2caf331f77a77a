//! A real Kubernetes in the lab of pods.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    thread,
    time::Duration,
};

use serde_json::Value;
use xdp_lb::lab::{
    Node,
    kubernetes::{Assets, DEPLOYMENTS, Kubernetes, Life, NODES, SHOP, nodes},
};

use crate::{Daemon, PodsNet, binary, pods::at_once, wait_for, without_root};

/// The control plane's programs; where they or root are missing, says so: `let Some(assets) =
/// control_plane() else { return };`.
pub fn control_plane() -> Option<Assets> {
    if without_root() {
        return None;
    }
    match Assets::find() {
        Ok(assets) => Some(assets),
        Err(missing) => {
            let _ = writeln!(std::io::stderr(), "skipped: {missing}");
            None
        }
    }
}

/// How long controllers may take to publish what they see.
const PUBLISHED: Duration = Duration::from_secs(90);

/// A cluster that is up; dropping it removes it.
#[derive(Debug)]
pub struct Cluster {
    kubernetes: Kubernetes,
    net: PodsNet,
}

/// What an EndpointSlice tells of a Pod, for one of its ports.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoint {
    /// Where the Pod serves
    pub socket: SocketAddr,
    /// Name of the Pod
    pub pod: String,
    /// Its node
    pub node: String,
    /// Whether it is ready
    pub ready: bool,
}

impl Cluster {
    /// Builds it; `name` (lower-case letters and digits) is the test's own.
    pub fn up(name: &str, assets: &Assets) -> Self {
        let mut net = PodsNet::up(name, nodes());
        let directory = net.scratch().file("kubernetes");
        let lab = net.lab_mut().lab();
        let kubernetes =
            Kubernetes::start(lab, &binary(), &directory, assets, Life::Bound, None).unwrap();
        Self { kubernetes, net }
    }

    /// The network that it is in.
    pub fn net(&self) -> &PodsNet {
        &self.net
    }

    /// The control plane and its stand-ins.
    pub fn kubernetes(&mut self) -> &mut Kubernetes {
        &mut self.kubernetes
    }

    /// A file for clients that may do everything.
    pub fn kubeconfig(&self) -> PathBuf {
        self.kubernetes.kubeconfig()
    }

    /// A daemon in a node, which follows the cluster as that node.
    pub fn daemon(&self, node: Node) -> Daemon {
        self.daemon_with(node, "")
    }

    /// [`Cluster::daemon`] with further lines in its configuration.
    pub fn daemon_with(&self, node: Node, more: &str) -> Daemon {
        let (file, name) = (self.kubernetes.daemon_kubeconfig(), node.name());
        let section =
            format!("kubernetes: {{kubeconfig: {}, nodeName: {name}}}\n{more}", file.display());
        self.net.daemon(node, &[], &section)
    }

    /// Daemons in all nodes, as a DaemonSet starts them.
    pub fn daemons(&self) -> [Daemon; 3] {
        at_once(NODES, |node| self.daemon(node))
    }

    /// Runs kubectl, and returns what it printed.
    pub fn kubectl(&self, words: &str) -> String {
        self.kubectl_with(words, "")
    }

    /// Runs kubectl with some input.
    pub fn kubectl_with(&self, words: &str, input: &str) -> String {
        let words: Vec<&str> = words.split_whitespace().collect();
        self.kubernetes.kubectl(&words, input).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The objects that `kubectl get` finds.
    pub fn get(&self, words: &str) -> Vec<Value> {
        let text = self.kubectl(&format!("get -o json {words}"));
        let list: Value = serde_json::from_str(&text).unwrap();
        list["items"].as_array().cloned().unwrap()
    }

    /// Opens the shop: all of its pods are ready when this returns.
    pub fn open_shop(&self) {
        self.kubectl_with("apply -f -", SHOP);
        for name in DEPLOYMENTS {
            self.rolled_out(name);
        }
    }

    /// Waits until a Deployment of the shop is as it should be, and the slices of its Service say so.
    pub fn rolled_out(&self, deployment: &str) {
        self.kubectl(&format!("-n shop rollout status deployment/{deployment} --timeout=120s"));
        let ready = || -> BTreeSet<String> {
            let endpoints = self.endpoints(deployment).into_iter().filter(|one| one.ready);
            endpoints.map(|one| one.pod).collect()
        };
        // Controllers that have lost their API server for a moment take their time.
        wait_for(PUBLISHED, "the slices have the pods", || {
            ready() == self.pods(deployment).into_iter().collect()
        });
    }

    /// Names of the shop's Pods that are not about to end.
    pub fn pods(&self, app: &str) -> Vec<String> {
        let pods = self.get(&format!("-n shop pods -l app={app}"));
        let living = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        living.map(|pod| text(&pod["metadata"]["name"])).collect()
    }

    /// What the slices of a Service of the shop tell.
    pub fn endpoints(&self, service: &str) -> Vec<Endpoint> {
        let slices =
            self.get(&format!("-n shop endpointslices -l kubernetes.io/service-name={service}"));
        let mut all = Vec::new();
        for slice in &slices {
            for (port, endpoint) in list(&slice["ports"])
                .flat_map(|port| list(&slice["endpoints"]).map(move |one| (port, one)))
            {
                let port = port["port"].as_u64().unwrap() as u16;
                all.extend(list(&endpoint["addresses"]).map(|address| Endpoint {
                    socket: SocketAddr::new(text(address).parse().unwrap(), port),
                    pod: text(&endpoint["targetRef"]["name"]),
                    node: text(&endpoint["nodeName"]),
                    ready: endpoint["conditions"]["ready"].as_bool().unwrap(),
                }));
            }
        }
        all
    }

    /// The LoadBalancer addresses of a Service of the shop, with its first port; and its node port.
    pub fn addresses(&self, service: &str) -> (Vec<SocketAddr>, u16) {
        let text_of = self.kubectl(&format!("-n shop get service {service} -o json"));
        let object: Value = serde_json::from_str(&text_of).unwrap();
        let port = &object["spec"]["ports"][0];
        let number = |value: &Value| value.as_u64().unwrap() as u16;
        let ingress = list(&object["status"]["loadBalancer"]["ingress"]);
        let ips = ingress.map(|one| text(&one["ip"]).parse::<IpAddr>().unwrap());
        (
            ips.map(|ip| SocketAddr::new(ip, number(&port["port"]))).collect(),
            number(&port["nodePort"]),
        )
    }

    /// How many endpoints of each Pod the slices of a Service have.
    pub fn endpoints_of_pods(&self, service: &str) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for endpoint in self.endpoints(service) {
            *counts.entry(endpoint.pod).or_default() += 1;
        }
        counts
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if thread::panicking() {
            // The test's output is shown with its failure.
            let words = ["-n", "shop", "get", "pods,endpointslices,services", "-o", "wide"];
            let text = self.kubernetes.kubectl(&words, "");
            eprintln!("{}", text.unwrap_or_else(|error| error.to_string()));
            eprintln!("--- stand-ins:\n{}", self.kubernetes.last_words());
        }
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> + Clone {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}
