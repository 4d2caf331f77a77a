//! What the stand-ins write to the API, and what they read in Pods and Services. Pure.

use std::{net::IpAddr, time::Duration};

use k8s_openapi::{
    api::core::v1::{Container, Pod, Service},
    apimachinery::pkg::{
        apis::meta::v1::{MicroTime, Time},
        util::intstr::IntOrString,
    },
    jiff::Timestamp,
};
use serde_json::{Value, json};

use crate::lab::{Node, pods::Pod as Place};

/// How often a node renews its lease.
pub(super) const LEASE: Duration = Duration::from_secs(10);
/// Port of a container that names none.
const PORT: u16 = 8080;
/// Kubernetes' defaults for what a Pod leaves open.
const GRACE: u64 = 30;
const PERIOD: u64 = 10;
const FAILURES: u32 = 3;

/// Now, as the API writes it.
pub(super) fn now() -> Time {
    Time(Timestamp::now())
}

/// A Node, as its kubelet registers it. The zone is the segment of the lab that it is on.
pub(super) fn node(node: Node) -> Value {
    let pods = [node.pod_network_4(), node.pod_network_6()].map(|network| network.to_string());
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": node.name(),
            "labels": {
                "kubernetes.io/hostname": node.name(),
                "kubernetes.io/os": "linux",
                "topology.kubernetes.io/region": "lab",
                "topology.kubernetes.io/zone": node.segment(),
            },
        },
        "spec": {"podCIDR": pods[0], "podCIDRs": pods},
    })
}

/// A Node's status: it is well, and has room.
pub(super) fn node_status(node: Node) -> Value {
    let addresses: Vec<Value> =
        [("InternalIP", node.v4().to_string()), ("InternalIP", node.v6().to_string())]
            .into_iter()
            .chain([("Hostname", node.name().to_owned())])
            .map(|(kind, address)| json!({"type": kind, "address": address}))
            .collect();
    let room = json!({"cpu": "8", "memory": "16Gi", "pods": "250"});
    json!({"apiVersion": "v1", "kind": "Node", "status": {
        "addresses": addresses,
        "allocatable": room,
        "capacity": room,
        "conditions": [condition("Ready", true, &now(), "KubeletReady")],
        "nodeInfo": {
            "architecture": "amd64", "bootID": "", "containerRuntimeVersion": "lab://1",
            "kernelVersion": "", "kubeProxyVersion": "", "kubeletVersion": "v1.36.0",
            "machineID": "", "operatingSystem": "linux", "osImage": "", "systemUUID": "",
        },
    }})
}

/// The lease by which a node shows that it is alive.
pub(super) fn lease(node: Node) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": node.name(), "namespace": "kube-node-lease"},
        "spec": {
            "holderIdentity": node.name(),
            "leaseDurationSeconds": 4 * LEASE.as_secs(),
            "renewTime": MicroTime(Timestamp::now()),
        },
    })
}

fn condition(kind: &str, holds: bool, since: &Time, reason: &str) -> Value {
    json!({
        "type": kind,
        "status": if holds { "True" } else { "False" },
        "lastTransitionTime": since,
        "reason": reason,
    })
}

/// What became of a Pod on its node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Report {
    /// Where it runs
    pub(super) place: Place,
    /// Since when it does
    pub(super) started: Time,
    /// Whether its containers run
    pub(super) running: bool,
    /// Whether it passes its readiness probe
    pub(super) ready: bool,
    /// Since when both are so
    pub(super) since: Time,
    /// How often its containers were started anew
    pub(super) restarts: u32,
}

impl Report {
    /// A merge patch of the Pod's status.
    pub(super) fn patch(&self, pod: &Pod) -> Value {
        let Place { node, .. } = self.place;
        let ips = |addresses: [IpAddr; 2]| addresses.map(|one| json!({"ip": one}));
        let ready = self.ready && self.running;
        let state = if self.running {
            json!({"running": {"startedAt": self.started}, "waiting": null})
        } else {
            json!({"waiting": {"reason": "CrashLoopBackOff"}, "running": null})
        };
        let containers = containers(pod).map(|one| {
            json!({
                "name": one.name,
                "image": one.image.as_deref().unwrap_or_default(),
                "imageID": "lab",
                "containerID": format!("lab://{}", self.place.name()),
                "ready": ready,
                "started": self.running,
                "restartCount": self.restarts,
                "state": state,
            })
        });
        json!({"status": {
            "phase": "Running",
            "hostIP": node.v4(),
            "hostIPs": ips([node.v4(), node.v6()]),
            "podIP": self.place.v4(),
            "podIPs": ips([self.place.v4(), self.place.v6()]),
            "startTime": self.started,
            "conditions": [
                condition("PodScheduled", true, &self.started, "Scheduled"),
                condition("PodReadyToStartContainers", true, &self.started, "Started"),
                condition("Initialized", true, &self.started, "Started"),
                condition("ContainersReady", ready, &self.since, "Probe"),
                condition("Ready", ready, &self.since, "Probe"),
            ],
            "containerStatuses": containers.collect::<Vec<_>>(),
        }})
    }
}

fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.spec.iter().flat_map(|spec| &spec.containers)
}

/// The words behind this program's name, where a Pod's container has that as its command.
pub(super) fn command(pod: &Pod) -> Option<Vec<String>> {
    let command = containers(pod).find_map(|one| one.command.as_deref())?;
    let (program, words) = command.split_first()?;
    (program == env!("CARGO_PKG_NAME")).then(|| words.to_vec())
}

/// Ports on which a Pod's containers serve, and whether one of them is for UDP.
pub(super) fn ports(pod: &Pod) -> (Vec<u16>, bool) {
    let all: Vec<_> =
        containers(pod).flat_map(|one| one.ports.as_deref().unwrap_or_default()).collect();
    let udp = all.iter().any(|port| port.protocol.as_deref() == Some("UDP"));
    let mut numbers: Vec<u16> =
        all.iter().filter_map(|port| u16::try_from(port.container_port).ok()).collect();
    numbers.sort_unstable();
    numbers.dedup();
    if numbers.is_empty() { (vec![PORT], udp) } else { (numbers, udp) }
}

/// How it is found out whether a Pod is ready.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Probe {
    pub(super) port: u16,
    /// Path of an HTTP probe; a connection is enough where there is none
    pub(super) path: Option<String>,
    pub(super) delay: Duration,
    pub(super) period: Duration,
    /// Failures in a row until it counts
    pub(super) failures: u32,
}

/// The readiness probe of a Pod's first container that has one over HTTP or TCP.
pub(super) fn probe(pod: &Pod) -> Option<Probe> {
    containers(pod).find_map(|container| {
        let probe = container.readiness_probe.as_ref()?;
        let http = probe.http_get.as_ref();
        let port =
            http.map(|http| &http.port).or(probe.tcp_socket.as_ref().map(|tcp| &tcp.port))?;
        let seconds = |value: Option<i32>, other| {
            Duration::from_secs(value.and_then(|value| value.try_into().ok()).unwrap_or(other))
        };
        let failures = probe.failure_threshold.and_then(|count| count.try_into().ok());
        Some(Probe {
            port: port_of(container, port)?,
            path: http.map(|http| http.path.clone().unwrap_or_else(|| "/".to_owned())),
            delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, PERIOD),
            failures: failures.unwrap_or(FAILURES),
        })
    })
}

fn port_of(container: &Container, port: &IntOrString) -> Option<u16> {
    match port {
        IntOrString::Int(number) => (*number).try_into().ok(),
        IntOrString::String(name) => {
            let ports = container.ports.as_deref().unwrap_or_default();
            let port = ports.iter().find(|port| port.name.as_ref() == Some(name))?;
            port.container_port.try_into().ok()
        }
    }
}

/// How a Pod ends: how long it goes on serving (a `preStop` hook that sleeps), and how long after
/// its deletion it is killed.
pub(super) fn ending(pod: &Pod) -> [Duration; 2] {
    let grace = pod.metadata.deletion_grace_period_seconds;
    let grace = grace.and_then(|grace| grace.try_into().ok()).unwrap_or(GRACE);
    let sleep = containers(pod).filter_map(|container| {
        let hook = container.lifecycle.as_ref()?.pre_stop.as_ref()?;
        u64::try_from(hook.sleep.as_ref()?.seconds).ok()
    });
    [sleep.max().unwrap_or(0).min(grace), grace].map(Duration::from_secs)
}

/// The status of a Service with these addresses.
pub(super) fn load_balancer(addresses: &[IpAddr]) -> Value {
    let one = |address: &IpAddr| json!({"ip": address, "ipMode": "VIP"});
    json!({"status": {"loadBalancer": {"ingress": addresses.iter().map(one).collect::<Vec<_>>()}}})
}

/// The addresses that a Service has from a load balancer.
pub(super) fn balanced(service: &Service) -> impl Iterator<Item = IpAddr> {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_deref()).unwrap_or_default();
    ingress.iter().filter_map(|one| one.ip.as_deref()?.parse().ok())
}

/// The families for which a Service wants addresses from a load balancer, and has none yet: whether
/// each is IPv6.
pub(super) fn wants_addresses(service: &Service) -> Vec<bool> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let ours = spec.type_.as_deref() == Some("LoadBalancer") && spec.load_balancer_class.is_none();
    if !ours || balanced(service).next().is_some() {
        return Vec::new();
    }
    spec.ip_families.iter().flatten().map(|family| family == "IPv6").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(container: Value) -> Pod {
        let pod = json!({"metadata": {"name": "one"}, "spec": {"containers": [container]}});
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn a_pod_serves_at_the_ports_of_its_containers() {
        let none = pod(json!({"name": "a"}));
        assert_eq!(ports(&none), (vec![8080], false));
        let two = pod(json!({"name": "a", "ports": [
            {"containerPort": 9000, "protocol": "UDP"}, {"containerPort": 80}, {"containerPort": 80},
        ]}));
        assert_eq!(ports(&two), (vec![80, 9000], true));
    }

    #[test]
    fn a_command_counts_where_it_is_this_program() {
        let words = |command: Value| command_of(json!({"name": "a", "command": command}));
        assert_eq!(words(json!(["xdp-lb", "demo-dns"])), Some(vec!["demo-dns".to_owned()]));
        assert_eq!(words(json!(["sh", "-c", "true"])), None);
        assert_eq!(words(json!([])), None);
        assert_eq!(command_of(json!({"name": "a"})), None);
    }

    fn command_of(container: Value) -> Option<Vec<String>> {
        command(&pod(container))
    }

    #[test]
    fn probes_are_read_with_kubernetes_defaults() {
        assert_eq!(probe(&pod(json!({"name": "a"}))), None);
        let by_name = pod(json!({
            "name": "a",
            "ports": [{"name": "web", "containerPort": 8081}],
            "readinessProbe": {"httpGet": {"port": "web"}},
        }));
        let seconds = Duration::from_secs;
        let http = Probe {
            port: 8081,
            path: Some("/".into()),
            delay: seconds(0),
            period: seconds(10),
            failures: 3,
        };
        assert_eq!(probe(&by_name), Some(http.clone()));
        let tcp = pod(json!({"name": "a", "readinessProbe": {
            "tcpSocket": {"port": 8081}, "initialDelaySeconds": 2, "periodSeconds": 1,
            "failureThreshold": 1,
        }}));
        let wanted =
            Probe { path: None, delay: seconds(2), period: seconds(1), failures: 1, ..http };
        assert_eq!(probe(&tcp), Some(wanted));
    }

    #[test]
    fn a_hook_that_sleeps_ends_with_the_grace_period() {
        let mut one =
            pod(json!({"name": "a", "lifecycle": {"preStop": {"sleep": {"seconds": 5}}}}));
        assert_eq!(ending(&one), [5, 30].map(Duration::from_secs));
        one.metadata.deletion_grace_period_seconds = Some(2);
        assert_eq!(ending(&one), [2, 2].map(Duration::from_secs));
        assert_eq!(ending(&pod(json!({"name": "a"}))), [0, 30].map(Duration::from_secs));
    }

    #[test]
    fn addresses_are_given_once_and_for_the_wanted_families() {
        let service = |kind: &str, class: Option<&str>, status: Value| -> Service {
            let service = json!({
                "spec": {"type": kind, "loadBalancerClass": class, "ipFamilies": ["IPv6", "IPv4"]},
                "status": status,
            });
            serde_json::from_value(service).unwrap()
        };
        let fresh = service("LoadBalancer", None, json!({}));
        assert_eq!(wants_addresses(&fresh), [true, false]);
        let address = "203.0.113.80".parse().unwrap();
        let served = service("LoadBalancer", None, load_balancer(&[address])["status"].clone());
        assert_eq!(balanced(&served).collect::<Vec<_>>(), [address]);
        for other in [
            served,
            service("NodePort", None, json!({})),
            service("LoadBalancer", Some("example.org/other"), json!({})),
        ] {
            assert!(wants_addresses(&other).is_empty(), "{other:?}");
        }
    }
}
