//! What an index says as objects come and go.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use serde_json::{Value, from_value, json};
use xdp_lb_plan::kubernetes::{Classes, Index, Key, OwnNode, Rules};

use crate::show::Shown;

fn index() -> Index {
    let mut index = Index::new(Rules { node: Some("a".into()), ..Rules::default() });
    index.replace_nodes(&[node("a", &json!({}))]);
    index.replace_services(&[]);
    index.replace_slices(&[]);
    index
}

fn node(name: &str, metadata: &Value) -> Node {
    let mut object = json!({
        "metadata": metadata,
        "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]},
    });
    object["metadata"]["name"] = json!(name);
    from_value(object).unwrap()
}

/// A LoadBalancer Service, as old as its year.
fn service(name: &str, year: u32, ip: &str) -> Service {
    let object = json!({
        "metadata": {
            "namespace": "shop", "name": name, "creationTimestamp": format!("{year}-01-01T00:00:00Z"),
        },
        "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
        "status": {"loadBalancer": {"ingress": [{"ip": ip}]}},
    });
    from_value(object).unwrap()
}

fn slice(of: &str, ip: &str, trigger: &str) -> EndpointSlice {
    let object = json!({
        "metadata": {
            "namespace": "shop", "name": format!("{of}-1"),
            "labels": {"kubernetes.io/service-name": of},
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": trigger},
        },
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080}],
        "endpoints": [{"addresses": [ip], "nodeName": "a"}],
    });
    from_value(object).unwrap()
}

fn key(name: &str) -> Key {
    Key::new("shop", name)
}

/// Which Services changed.
fn changed(index: &mut Index) -> Vec<String> {
    index.changes().iter().map(|change| change.key.name.to_string()).collect()
}

fn serves(index: &Index) -> Vec<String> {
    Shown::of(index).serves
}

#[test]
fn nothing_is_desired_before_all_three_lists_are_in() {
    let mut index = Index::new(Rules::default());
    index.apply_service(&service("x", 2020, "192.0.2.1"));
    index.replace_services(&[service("x", 2020, "192.0.2.1")]);
    index.replace_slices(&[]);
    assert!(!index.is_complete() && !index.has_changes());
    assert_eq!(changed(&mut index), [""; 0]);
    index.replace_nodes(&[]);
    assert!(index.is_complete() && index.has_changes());
    assert_eq!(changed(&mut index), ["x"]);
}

#[test]
fn a_new_list_takes_away_what_is_not_in_it() {
    let mut index = index();
    index.apply_service(&service("x", 2020, "192.0.2.1"));
    index.apply_service(&service("y", 2020, "192.0.2.2"));
    index.apply_slice(&slice("x", "10.1.0.1", ""));
    index.changes();
    index.replace_services(&[service("x", 2020, "192.0.2.1")]);
    let changes = index.changes();
    assert_eq!((changes.len(), &changes[0].key, &changes[0].state), (1, &key("y"), &None));
    index.replace_slices(&[]);
    assert_eq!(changed(&mut index), ["x"]);
    assert_eq!(serves(&index), ["shop/x/80-tcp-ipv4: 192.0.2.1:80/TCP ->"]);
}

#[test]
fn the_same_list_again_changes_nothing() {
    let mut index = index();
    let (services, slices) = ([service("x", 2020, "192.0.2.1")], [slice("x", "10.1.0.1", "")]);
    for expected in [vec!["x"], vec![]] {
        index.replace_services(&services);
        index.replace_slices(&slices);
        index.replace_nodes(&[node("a", &json!({}))]);
        assert_eq!(changed(&mut index), expected);
    }
}

#[test]
fn one_endpoints_change_is_one_services_change() {
    let mut index = index();
    for name in ["x", "y", "z"] {
        index.apply_service(&service(name, 2020, &format!("192.0.2.{}", name.as_bytes()[0])));
        index.apply_slice(&slice(name, "10.1.0.1", ""));
    }
    assert_eq!(changed(&mut index), ["x", "y", "z"]);
    index.apply_slice(&slice("y", "10.1.0.2", ""));
    assert_eq!(changed(&mut index), ["y"]);
}

#[test]
fn a_change_that_ends_where_it_began_is_none() {
    let mut index = index();
    index.apply_service(&service("x", 2020, "192.0.2.1"));
    index.apply_slice(&slice("x", "10.1.0.1", ""));
    index.changes();
    index.apply_slice(&slice("x", "10.1.0.2", ""));
    index.apply_slice(&slice("x", "10.1.0.1", ""));
    index.delete_service(&key("x"));
    index.apply_service(&service("x", 2020, "192.0.2.1"));
    assert_eq!(changed(&mut index), [""; 0]);
}

#[test]
fn a_frontend_goes_to_the_next_oldest_when_its_owner_goes() {
    let mut index = index();
    for (name, year) in [("x", 2022), ("y", 2021), ("z", 2020)] {
        index.apply_service(&service(name, year, "192.0.2.1"));
    }
    index.changes();
    assert_eq!(serves(&index), ["shop/z/80-tcp-ipv4: 192.0.2.1:80/TCP ->"]);
    index.delete_service(&key("z"));
    assert_eq!(changed(&mut index), ["x", "y", "z"], "x hears of its new owner");
    assert_eq!(serves(&index), ["shop/y/80-tcp-ipv4: 192.0.2.1:80/TCP ->"]);
    index.apply_service(&service("y", 2021, "192.0.2.2"));
    assert_eq!(changed(&mut index), ["x", "y"]);
    assert_eq!(
        serves(&index),
        ["shop/x/80-tcp-ipv4: 192.0.2.1:80/TCP ->", "shop/y/80-tcp-ipv4: 192.0.2.2:80/TCP ->"]
    );
    index.apply_service(&service("z", 2020, "192.0.2.1"));
    assert_eq!(changed(&mut index), ["x", "z"], "y has no part in it");
    index.delete_service(&key("x"));
    assert_eq!(changed(&mut index), ["x"], "a claim that had lost is missed by nobody");
}

#[test]
fn a_service_that_is_made_anew_is_young() {
    let mut index = index();
    index.apply_service(&service("x", 2021, "192.0.2.1"));
    index.apply_service(&service("y", 2022, "192.0.2.1"));
    index.changes();
    index.apply_service(&service("x", 2023, "192.0.2.1"));
    assert_eq!(changed(&mut index), ["x", "y"]);
    assert_eq!(serves(&index), ["shop/y/80-tcp-ipv4: 192.0.2.1:80/TCP ->"]);
}

#[test]
fn other_rules_hold_for_the_same_objects() {
    let mut index = index();
    let mut internal = service("x", 2021, "192.0.2.1");
    internal.spec.as_mut().unwrap().load_balancer_class = Some("internal".into());
    index.apply_service(&internal);
    index.apply_service(&service("y", 2022, "192.0.2.1"));
    index.changes();
    assert_eq!(serves(&index), ["shop/x/80-tcp-ipv4: 192.0.2.1:80/TCP ->"]);
    let classes = Classes::Only(BTreeSet::from([None]));
    index.set_rules(Rules { node: Some("a".into()), classes, ..Rules::default() });
    assert_eq!(changed(&mut index), ["x", "y"]);
    assert_eq!(serves(&index), ["shop/y/80-tcp-ipv4: 192.0.2.1:80/TCP ->"]);
    index.set_rules(index.rules().clone());
    assert!(!index.has_changes());
}

#[test]
fn a_slice_may_move_to_another_service_or_out_of_sight() {
    let mut index = index();
    index.apply_service(&service("x", 2020, "192.0.2.1"));
    index.apply_service(&service("y", 2020, "192.0.2.2"));
    index.apply_slice(&slice("x", "10.1.0.1", ""));
    index.changes();
    let mut moved = slice("x", "10.1.0.1", "");
    let labels = moved.metadata.labels.as_mut().unwrap();
    labels.insert("kubernetes.io/service-name".into(), "y".into());
    index.apply_slice(&moved);
    assert_eq!(changed(&mut index), ["x", "y"]);
    let labels = moved.metadata.labels.as_mut().unwrap();
    labels.insert("service.kubernetes.io/headless".into(), String::new());
    index.apply_slice(&moved);
    assert_eq!(changed(&mut index), ["y"]);
    assert_eq!(
        serves(&index),
        ["shop/x/80-tcp-ipv4: 192.0.2.1:80/TCP ->", "shop/y/80-tcp-ipv4: 192.0.2.2:80/TCP ->"]
    );
}

#[test]
fn a_nodes_heartbeat_changes_nothing_and_its_address_the_endpoints_on_it() {
    let mut index = index();
    index.apply_service(&service("x", 2020, "192.0.2.1"));
    index.apply_slice(&slice("x", "10.1.0.1", ""));
    index.apply_service(&service("y", 2020, "192.0.2.2"));
    index.changes();
    let mut beating = node("a", &json!({"resourceVersion": "2"}));
    index.apply_node(&beating);
    assert!(!index.has_changes());
    beating.status.as_mut().unwrap().addresses.as_mut().unwrap()[0].address = "10.0.0.9".into();
    index.apply_node(&beating);
    assert_eq!(changed(&mut index), ["x"]);
    index.delete_node("a");
    assert_eq!(changed(&mut index), ["x"]);
}

#[test]
fn the_own_nodes_zone_concerns_every_service() {
    let mut index = index();
    index.apply_service(&service("x", 2020, "192.0.2.1"));
    let mut hinted = slice("x", "10.1.0.1", "");
    let for_zone = json!({"addresses": ["10.1.0.2"], "hints": {"forZones": [{"name": "z2"}]}});
    let endpoints = hinted.endpoints.as_mut().unwrap();
    endpoints[0].hints = from_value(json!({"forZones": [{"name": "z1"}]})).unwrap();
    endpoints.push(from_value(for_zone).unwrap());
    index.apply_slice(&hinted);
    index.changes();
    let zone = json!({"labels": {"topology.kubernetes.io/zone": "z2"}});
    index.apply_node(&node("a", &zone));
    assert_eq!(changed(&mut index), ["x"]);
    let line = "shop/x/80-tcp-ipv4: 192.0.2.1:80/TCP -> 10.1.0.1:8080@a*0, 10.1.0.2:8080";
    assert_eq!(serves(&index), [line]);
}

#[test]
fn changes_tell_when_the_pods_changed_that_caused_them() {
    let mut index = Index::new(Rules::default());
    index.replace_nodes(&[]);
    index.replace_services(&[service("x", 2020, "192.0.2.1")]);
    index.replace_slices(&[slice("x", "10.1.0.1", "2026-01-01T00:00:00Z")]);
    assert_eq!(index.changes()[0].triggered, [], "the first list tells of the past");
    index.apply_slice(&slice("x", "10.1.0.2", "2026-01-01T00:00:01.5Z"));
    index.apply_slice(&slice("x", "10.1.0.3", "2026-01-01T00:00:02.000000001Z"));
    index.apply_slice(&slice("x", "10.1.0.3", "2026-01-01T00:00:03Z"));
    index.apply_slice(&slice("x", "10.1.0.4", "yesterday"));
    let at = |nanos: u64| {
        SystemTime::UNIX_EPOCH + Duration::from_nanos(1_767_225_600_000_000_000 + nanos)
    };
    assert_eq!(index.changes()[0].triggered, [at(1_500_000_000), at(2_000_000_001)]);
    index.apply_slice(&slice("x", "10.1.0.5", "2026-01-01T00:00:04Z"));
    index.delete_slice(&key("x-1"));
    assert_eq!(index.changes()[0].triggered, [], "a slice that is gone tells of an older change");
}

#[test]
fn the_own_node_is_known_by_name_alone() {
    assert_eq!(Index::new(Rules::default()).own_node(), None);
    let mut index = Index::new(Rules { node: Some("a".into()), ..Rules::default() });
    index.apply_node(&node("b", &json!({"deletionTimestamp": "2026-01-01T00:00:00Z"})));
    assert_eq!(index.own_node(), Some(OwnNode::default()));
    assert!(index.own_node().unwrap().eligible(), "until something says otherwise");
    index.apply_node(&node("a", &json!({})));
    assert_eq!(index.own_node(), Some(OwnNode { exists: true, ..OwnNode::default() }));
    let mut tainted = node("a", &json!({}));
    let taint =
        json!({"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]});
    tainted.spec = Some(from_value(taint).unwrap());
    index.apply_node(&tainted);
    assert!(index.own_node().unwrap().scaling_down && !index.own_node().unwrap().eligible());
    index.apply_node(&node("a", &json!({"deletionTimestamp": "2026-01-01T00:00:00Z"})));
    assert!(index.own_node().unwrap().deleting && !index.own_node().unwrap().eligible());
}
