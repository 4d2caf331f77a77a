//! What 10,000 Services of 10 endpoints cost: `cargo test --release -p xdp-lb-plan --test kubernetes
//! scale -- --nocapture` prints it (without optimisation it is 500). What it asserts is how much changes.

use std::{
    fs,
    io::Write,
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use serde_json::{from_value, json};
use xdp_lb_plan::kubernetes::{Index, Rules};

const SERVICES: usize = if cfg!(debug_assertions) { 500 } else { 10_000 };
const NODES: usize = 100;
/// Changes, each of another Service.
const CHANGES: usize = if SERVICES < 1000 { SERVICES } else { 1000 };

fn node(number: usize) -> Node {
    let object = json!({
        "metadata": {"name": format!("node-{number}"), "labels": {"topology.kubernetes.io/zone": "z"}},
        "status": {"addresses": [{"type": "InternalIP", "address": format!("10.0.0.{number}")}]},
    });
    from_value(object).unwrap()
}

fn service(number: usize) -> Service {
    let (high, low) = (number / 250, number % 250 + 1);
    let cluster_ip = format!("10.96.{high}.{low}");
    let object = json!({
        "metadata": {
            "namespace": "load", "name": format!("service-{number}"), "uid": format!("uid-{number}"),
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {
            "type": "LoadBalancer", "clusterIP": cluster_ip, "clusterIPs": [cluster_ip],
            "ipFamilies": ["IPv4"],
            "ports": [{"name": "http", "port": 80, "nodePort": 20_000 + number}],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": format!("198.18.{high}.{low}")}]}},
    });
    from_value(object).unwrap()
}

fn slice(number: usize, weakened: Option<usize>) -> EndpointSlice {
    let endpoint = |index: usize| {
        let pod = number * 10 + index;
        json!({
            "addresses": [format!("10.{}.{}.{}", 100 + pod / 62_500, pod / 250 % 250, pod % 250 + 1)],
            "conditions": {"ready": weakened != Some(index), "serving": true, "terminating": false},
            "nodeName": format!("node-{}", pod % NODES),
            "targetRef": {"kind": "Pod", "name": format!("service-{number}-7d9c5b8f6-x{index:04}")},
            "zone": "z",
        })
    };
    let object = json!({
        "metadata": {
            "namespace": "load", "name": format!("service-{number}-abcde"), "uid": format!("s-{number}"),
            "labels": {"kubernetes.io/service-name": format!("service-{number}")},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": (0..10).map(endpoint).collect::<Vec<_>>(),
    });
    from_value(object).unwrap()
}

/// Resident memory in MB.
fn resident() -> u64 {
    let text = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or_default() * 4096 / 1_000_000
}

fn say(what: &str, took: Duration) {
    let _ = writeln!(std::io::stderr(), "{what}: {took:.1?}");
}

#[test]
fn one_endpoints_change_is_one_change_among_many() {
    let before = resident();
    let mut index = Index::new(Rules { node: Some("node-1".into()), ..Rules::default() });
    let nodes: Vec<Node> = (0..NODES).map(node).collect();
    let mut taken = Duration::ZERO;
    let mut timed = |action: &mut dyn FnMut(&mut Index)| {
        let start = Instant::now();
        action(&mut index);
        taken += start.elapsed();
    };
    timed(&mut |index| index.replace_nodes(&nodes));
    timed(&mut |index| index.replace_services([]));
    timed(&mut |index| index.replace_slices([]));
    for number in 0..SERVICES {
        let (service, slice) = (service(number), slice(number, None));
        timed(&mut |index| index.apply_service(&service));
        timed(&mut |index| index.apply_slice(&slice));
    }
    say(&format!("{SERVICES} Services and slices taken up"), taken);
    let start = Instant::now();
    let changes = index.changes();
    say("first computation", start.elapsed());
    assert_eq!(changes.len(), SERVICES);
    drop(changes);
    let _ = writeln!(std::io::stderr(), "memory: {} MB", resident().saturating_sub(before));

    let mut times = Vec::new();
    for round in 0..CHANGES {
        let slice = slice(round * 7 % SERVICES, Some(round % 10));
        let start = Instant::now();
        index.apply_slice(&slice);
        let changes = index.changes();
        times.push(start.elapsed());
        assert_eq!(changes.len(), 1);
    }
    times.sort();
    say("one endpoint's change, median", times[CHANGES / 2]);
    say("one endpoint's change, 99th percentile", times[CHANGES * 99 / 100]);

    let start = Instant::now();
    index.apply_node(&node(0));
    say("a Node's heartbeat", start.elapsed());
    let mut moved = node(0);
    moved.status.as_mut().unwrap().addresses.as_mut().unwrap()[0].address = "10.0.1.1".into();
    let start = Instant::now();
    index.apply_node(&moved);
    let changes = index.changes();
    say(&format!("a Node's new address, {} Services", changes.len()), start.elapsed());

    let services: Vec<Service> = (0..SERVICES).map(service).collect();
    let start = Instant::now();
    index.replace_services(&services);
    assert_eq!(index.changes(), []);
    say("the same list of Services again", start.elapsed());
}
