//! The demo's cluster, as the report speaks of it.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::super::DemoError;
use crate::lab::{
    LabError, Node,
    kubernetes::{DEPLOYMENTS, DNS, Kubernetes, SHOP},
};

/// A cluster that runs.
pub(super) struct Cluster(Kubernetes);

/// A Pod that is not about to end.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Pod {
    pub(super) name: String,
    pub(super) node: String,
    /// Name of its namespace in the lab; empty before it runs
    pub(super) place: String,
}

/// A Service of the shop.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Service {
    pub(super) name: String,
    pub(super) port: u16,
    /// Its ClusterIPs
    pub(super) ips: BTreeSet<IpAddr>,
}

impl Cluster {
    pub(super) fn new(kubernetes: Kubernetes) -> Self {
        Self(kubernetes)
    }

    /// A node's configuration: with sockets where the nodes have cgroups, since then all is served here.
    pub(super) fn config(&self, node: Node, cgroups: Option<&Path>) -> String {
        let (v4, v6) = (node.pod_network_4(), node.pod_network_6());
        let sockets = cgroups.map(|cgroups| {
            let own = cgroups.join(node.name());
            format!("kubeProxyReplacement: strict\nsocketLB: {{cgroupRoot: {}}}\n", own.display())
        });
        let sockets = sockets.unwrap_or_default();
        format!(
            "hashKey: \"7c1e9a40d35b4f82b6e02d9c5a1874f3\"\n\
             devices: [{{name: eth0}}]\n\
             terminate:\n\
             \x20 peers: [10.0.0.0/24, 10.0.1.0/24, \"2001:db8:10::/64\", \"2001:db8:11::/64\"]\n\
             \x20 pods: [{v4}, \"{v6}\"]\n\
             limits: {{frontends: 256, backends: 1024, slots: 1048576, flows: 65536, \
             answers: 65536, natFlows: 65536, sockets: 8192}}\n\
             {sockets}\
             kubernetes:\n\
             \x20 kubeconfig: {}\n\
             \x20 nodeName: {}\n",
            self.0.daemon_kubeconfig().display(),
            node.name()
        )
    }

    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.0.kubeconfig()
    }

    pub(super) fn memory(&mut self) -> [u64; 3] {
        self.0.plane().memory()
    }

    /// Kubernetes' own version.
    pub(super) fn version(&self) -> Result<String, DemoError> {
        let version = self.json("get --raw /version")?;
        Ok(version["gitVersion"].as_str().unwrap_or("?").to_owned())
    }

    /// Runs kubectl, and returns what it printed.
    pub(super) fn kubectl(&self, words: &str) -> Result<String, LabError> {
        self.0.kubectl(&words.split_whitespace().collect::<Vec<_>>(), "")
    }

    fn json(&self, words: &str) -> Result<Value, LabError> {
        let text = self.kubectl(words)?;
        serde_json::from_str(&text)
            .map_err(std::io::Error::from)
            .map_err(LabError::system(format!("read what `kubectl {words}` printed")))
    }

    /// Applies the shop, and waits until all of it is ready.
    pub(super) fn open_shop(&self) -> Result<(), DemoError> {
        self.0.kubectl(&["apply", "-f", "-"], SHOP)?;
        DEPLOYMENTS.iter().try_for_each(|name| self.rolled_out(name))
    }

    /// Waits until a Deployment is as it should be.
    pub(super) fn rolled_out(&self, deployment: &str) -> Result<(), DemoError> {
        self.kubectl(&format!("-n shop rollout status deployment/{deployment} --timeout=120s"))?;
        Ok(())
    }

    /// Whether every Pod that was to go is gone.
    pub(super) fn is_settled(&self, deployment: &str) -> Result<bool, DemoError> {
        let list = self.json(&format!("-n shop get pods -l app={deployment} -o json"))?;
        let mut items = list["items"].as_array().into_iter().flatten();
        Ok(items.all(|pod| pod["metadata"]["deletionTimestamp"].is_null()))
    }

    /// The Pods of a Deployment.
    pub(super) fn pods(&self, deployment: &str) -> Result<Vec<Pod>, DemoError> {
        let list = self.json(&format!("-n shop get pods -l app={deployment} -o json"))?;
        let items = list["items"].as_array().into_iter().flatten();
        let living = items.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let pods = living.map(|pod| Pod {
            name: text(&pod["metadata"]["name"]),
            node: text(&pod["spec"]["nodeName"]),
            place: text(&pod["status"]["containerStatuses"][0]["containerID"])
                .trim_start_matches("lab://")
                .to_owned(),
        });
        Ok(pods.collect())
    }

    /// Starts the cluster's DNS, and waits until it is ready.
    pub(super) fn start_dns(&self) -> Result<(), DemoError> {
        self.0.kubectl(&["apply", "-f", "-"], DNS)?;
        self.kubectl("-n kube-system rollout status deployment/dns --timeout=120s")?;
        Ok(())
    }

    /// The Services of the shop that each Deployment has under its own name.
    pub(super) fn services(&self) -> Result<Vec<Service>, DemoError> {
        let list = self.json("-n shop get services -o json")?;
        let items = list["items"].as_array().into_iter().flatten();
        let service = |item: &Value| {
            let name = item["metadata"]["name"].as_str()?.to_owned();
            let port = item["spec"]["ports"][0]["port"].as_u64()?.try_into().ok()?;
            let ips = item["spec"]["clusterIPs"].as_array()?.iter();
            let ips = ips.filter_map(|ip| ip.as_str()?.parse().ok()).collect();
            DEPLOYMENTS.contains(&name.as_str()).then_some(Service { name, port, ips })
        };
        Ok(items.filter_map(service).collect())
    }

    /// Where clients find the shop: its LoadBalancer addresses, then its node port on each node.
    pub(super) fn frontends(&self) -> Result<Vec<SocketAddr>, DemoError> {
        let service = self.json("-n shop get service frontend-external -o json")?;
        let port = |name: &str| {
            let port = service["spec"]["ports"][0][name].as_u64();
            port.and_then(|port| port.try_into().ok()).unwrap_or_default()
        };
        let ingress = service["status"]["loadBalancer"]["ingress"].as_array().into_iter().flatten();
        let addresses = ingress.filter_map(|one| one["ip"].as_str()?.parse::<IpAddr>().ok());
        let balanced = addresses.map(|address| SocketAddr::new(address, port("port")));
        let nodes = [Node::Balancer, Node::Worker2].into_iter();
        Ok(balanced.chain(nodes.flat_map(|node| node.at(port("nodePort")))).collect())
    }

    pub(super) fn kill_api_server(&mut self) {
        self.0.plane().kill_api_server();
    }

    pub(super) fn start_api_server(&mut self) -> Result<(), DemoError> {
        Ok(self.0.plane().start_api_server()?)
    }

    /// An error once a program has ended by itself.
    pub(super) fn watch(&mut self) -> Result<(), DemoError> {
        Ok(self.0.watch()?)
    }

    pub(super) fn keep(self) {
        self.0.keep();
    }
}
