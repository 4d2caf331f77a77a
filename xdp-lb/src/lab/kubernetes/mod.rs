//! A real Kubernetes in the lab of pods: etcd, API server and controllers, with stand-ins for what
//! has no place in a lab.
//!
//! The nodes `balancer`, `worker` and `worker2` of [`super::pods`] are the cluster's; the control plane
//! runs on `plain`, which is none of them. Pods come and go with their objects: each is a namespace
//! behind its node with a real server in it, under the addresses that its status tells. LoadBalancer
//! addresses are given out of the prefixes that the router sends to `balancer`.
//!
//! ```no_run
//! use std::path::Path;
//!
//! use xdp_lb::lab::kubernetes::{Assets, Kubernetes, Life, SHOP};
//!
//! let mut lab = xdp_lb::lab::kubernetes::nodes().up("example")?;
//! let program = Path::new("target/debug/xdp-lb");
//! let files = Path::new("/run/example");
//! let (assets, life) = (Assets::find()?, Life::Bound);
//! let cluster = Kubernetes::start(lab.lab(), program, files, &assets, life, None)?;
//! cluster.kubectl(&["apply", "-f", "-"], SHOP)?;
//! cluster.kubectl(&["-n", "shop", "rollout", "status", "deployment/frontend"], "")?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod assets;
mod control_plane;
mod inside;
mod kubelet;
mod names;
mod objects;
mod stand_in;

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::Command,
};

use super::{Lab, LabError, Node, PodsSpec, Process};
pub use assets::{Assets, NoAssets};
pub use control_plane::{CLUSTER_IPS, ControlPlane, Life, NODE_PORTS};
pub use inside::{Target, Used, WAYS, use_services};
pub use names::{DNS, DNS_SERVICE, ZONE, serve_names};
pub use stand_in::{StandInError, StandIns};

/// An example shop of eleven Deployments and their Services, one of them for clients outside.
pub const SHOP: &str = include_str!("../../../kubernetes/shop.yaml");
/// The Deployments of [`SHOP`].
pub const DEPLOYMENTS: [&str; 11] = [
    "frontend",
    "cart",
    "catalog",
    "currency",
    "payment",
    "shipping",
    "email",
    "checkout",
    "recommendation",
    "ad",
    "store",
];
/// The nodes of the cluster.
pub const NODES: [Node; 3] = [Node::Balancer, Node::Worker, Node::Worker2];
/// Where the control plane runs.
const CONTROL: Node = Node::Plain;

/// The lab without pods, to which a cluster adds them.
pub fn nodes() -> PodsSpec {
    PodsSpec::default().without_pods()
}

/// Addresses for LoadBalancer services, in the order in which they are given out.
fn load_balancer_addresses(v6: bool) -> impl Iterator<Item = IpAddr> {
    (80..=250).map(move |last| {
        if v6 {
            // The same digits as in the IPv4 address.
            let digits = u16::from_str_radix(&last.to_string(), 16).unwrap_or_default();
            Ipv6Addr::new(0x2001, 0xdb8, 0x80, 0, 0, 0, 0, digits).into()
        } else {
            Ipv4Addr::new(203, 0, 113, last).into()
        }
    })
}

/// A cluster that runs in a lab of [`nodes`].
#[derive(Debug)]
pub struct Kubernetes {
    plane: ControlPlane,
    stand_ins: Process,
}

impl Kubernetes {
    /// Starts it; `program` is this command, and files and logs go to `directory`, which is made. Pods
    /// join the cgroups of their nodes in `cgroups`, where that is given. The nodes are ready when this
    /// returns.
    pub fn start(
        lab: &Lab,
        program: &Path,
        directory: &Path,
        assets: &Assets,
        life: Life,
        cgroups: Option<&Path>,
    ) -> Result<Self, LabError> {
        let space = lab.ns(CONTROL.name())?;
        let plane = ControlPlane::start(space, CONTROL.v4(), directory, assets, life)?;
        plane.admit_daemons()?;
        let mut command = Command::new(program);
        command
            .args(["demo-cluster", "--prefix", lab.prefix(), "--kubeconfig"])
            .arg(plane.kubeconfig())
            .arg("--directory")
            .arg(directory);
        if let Some(cgroups) = cgroups {
            command.arg("--cgroups").arg(cgroups);
        }
        let log = directory.join("stand-ins.log");
        let stand_ins = control_plane::spawn(space, &log, command, life)?;
        let cluster = Self { plane, stand_ins };
        for node in NODES {
            let name = format!("node/{}", node.name());
            cluster.kubectl(&["wait", "--for=create", &name, "--timeout=30s"], "")?;
            cluster.kubectl(&["wait", "--for=condition=Ready", &name, "--timeout=30s"], "")?;
        }
        Ok(cluster)
    }

    /// Runs kubectl with these words and this input, and returns what it printed.
    pub fn kubectl(&self, words: &[&str], input: &str) -> Result<String, LabError> {
        self.plane.kubectl(words, input)
    }

    /// A file for clients, kubectl among them, that may do everything.
    pub fn kubeconfig(&self) -> PathBuf {
        self.plane.kubeconfig()
    }

    /// A file for daemons, which may do what `systemd/kubernetes/rbac.yaml` says.
    pub fn daemon_kubeconfig(&self) -> PathBuf {
        self.plane.daemon_kubeconfig()
    }

    /// The control plane.
    pub fn plane(&mut self) -> &mut ControlPlane {
        &mut self.plane
    }

    /// An error once a program has ended by itself.
    pub fn watch(&mut self) -> Result<(), LabError> {
        self.plane.watch()?;
        match self.stand_ins.ended() {
            Some(status) => {
                let (command, message) = (format!("demo-cluster ({status})"), self.last_words());
                Err(LabError::Refused { command, message })
            }
            None => Ok(()),
        }
    }

    /// What the stand-ins have logged at last.
    pub fn last_words(&self) -> String {
        self.plane.last_words("stand-ins")
    }

    /// Leaves everything running; the lab's removal ends it.
    pub fn keep(self) {
        self.stand_ins.keep();
        self.plane.keep();
    }
}

/// Bytes of memory that a process has in use.
fn memory_of(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_end_with_the_same_digits() {
        let text = |v6| load_balancer_addresses(v6).map(|one| one.to_string()).nth(20).unwrap();
        assert_eq!((text(false), text(true)), ("203.0.113.100".into(), "2001:db8:80::100".into()));
    }

    #[test]
    fn the_shop_has_all_its_deployments() {
        let wanted: Vec<_> =
            SHOP.lines().filter_map(|line| line.trim().strip_prefix("image: ")).collect();
        let names = DEPLOYMENTS.map(|name| format!("shop.example.org/{name}:1"));
        assert_eq!(wanted, names);
    }
}
