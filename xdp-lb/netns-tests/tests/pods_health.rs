//! Pods are asked through the tunnel that clients' packets take.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

use std::process::Command;

use serde_json::Value;
use xdp_lb::lab::{Client, Node, Pod, PodsSpec};
use xdp_lb_netns_tests::{
    Daemon, POD_PORT, PodService, PodsNet, binary, load_balancer, wait_until, without_root,
};

const TCP: u16 = 80;
const UDP: u16 = 81;
const INSTANCES: [Node; 3] = [Node::Balancer, Node::Worker, Node::Worker2];

fn services() -> Vec<PodService> {
    let service = |name, port, check: &str| {
        let pods = INSTANCES.map(|node| Pod { node, number: 1 });
        PodService::new(name, "geneve")
            .at(&[port], &[])
            .pods(pods, POD_PORT)
            .with(&format!("healthCheck: {{{check}, interval: 1s, timeout: 1s, fall: 3}}"))
    };
    vec![service("http", TCP, "type: http"), service("udp", UDP, "type: udp, send: hello")]
}

/// What the daemon says of each service's backends on a node: their states, and remarks.
fn health(daemon: &Daemon, node: Node) -> Vec<(String, Option<String>)> {
    let list = daemon.told_json(&["backend", "list"]);
    let pod = Pod { node, number: 1 }.at(POD_PORT).map(|one| one.to_string());
    let of_pod = |one: &&Value| pod.iter().any(|name| one["backend"] == *name);
    let text = |one: &Value| one.as_str().map(str::to_owned);
    let found = list.as_array().unwrap().iter().filter(of_pod);
    let found: Vec<_> = found.map(|one| &one["health"]).collect();
    assert_eq!(found.len(), 4, "two services, two families: {list}");
    found.iter().map(|one| (text(&one["state"]).unwrap(), text(&one["note"]))).collect()
}

#[test]
fn a_pod_whose_node_ends_no_tunnel_is_down_though_it_answers_at_its_own_address() {
    if without_root() {
        return;
    }
    let net = PodsNet::up("xlbnpheal", PodsSpec::default().pods(1));
    let _servers = net.serve();
    let [balancer, _worker, other] = net.daemons(INSTANCES, &services(), "");
    let all = |node, state: &str| {
        let now = health(&balancer, node);
        now.iter().all(|(is, note)| is == state && note.is_none())
    };
    for node in INSTANCES {
        wait_until(&format!("pods of {} are up", node.name()), || all(node, "up"));
    }
    let pins = other.pins().root().to_owned();
    other.stop();
    let clean = Command::new(binary()).args(["clean", "--pin-dir"]).arg(pins).status().unwrap();
    assert!(clean.success());
    let pod = Pod { node: Node::Worker2, number: 1 }.at(POD_PORT);
    for address in pod {
        let direct = Client::new(net.ns("balancer")).ask(address, None);
        assert!(direct.is_ok(), "{address}: {direct:?}");
    }
    wait_until("nobody ends the tunnel", || all(Node::Worker2, "down"));
    assert!(all(Node::Worker, "up") && all(Node::Balancer, "up"));
    for frontend in load_balancer(TCP) {
        for outcome in net.client().ask_each(frontend, 20_000..=20_049).unwrap() {
            assert!(!outcome.answer.unwrap().backend.starts_with("worker2"));
        }
    }
}
