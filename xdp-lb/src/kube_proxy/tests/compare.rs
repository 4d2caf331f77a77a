//! What counts as a difference.

use serde_json::json;
use xdp_lb_api::view::FrontendView;

use super::{
    super::{
        compare::{Comparison, LocalAddresses, between, unwell},
        iptables::Save,
        served::Served,
    },
    Family, IPTABLES, table,
};

fn view(frontend: &str, kind: &str, mode: &str, backends: &[(&str, &str)]) -> FrontendView {
    let backends: Vec<_> = backends
        .iter()
        .map(|(backend, state)| json!({"id": 1, "backend": backend, "state": state}))
        .collect();
    let view = json!({
        "id": 1, "frontend": frontend, "type": kind, "service": "default/x", "owner": "kubernetes",
        "mode": mode, "state": "served", "phase": "rest", "tableSize": 251, "backends": backends,
    });
    serde_json::from_value(view).unwrap()
}

/// What serves all of the fixtures: `service list` beside their kube-proxy.
fn all() -> Vec<FrontendView> {
    let http = [("10.244.1.1:8080", "active"), ("10.244.1.2:8080", "active")];
    let dns = [("10.244.1.1:5353", "active"), ("10.244.1.2:5353", "active")];
    let local = [("10.244.1.1:8080", "active")];
    let both = [("10.244.1.1:8080", "active"), ("10.244.2.1:8080", "active")];
    let mut views = vec![
        view("10.96.0.1:443/TCP", "ClusterIP", "socket", &[("10.0.0.1:6443", "active")]),
        view("10.96.0.10:80/TCP", "ClusterIP", "socket", &http),
        view("10.96.0.10:53/UDP", "ClusterIP", "socket", &dns),
        view("10.96.0.11:80/TCP", "ClusterIP", "socket", &both),
        view("10.96.0.12:80/TCP", "ClusterIP", "socket", &[]),
        view("10.96.0.13:7/SCTP", "ClusterIP", "socket", &[]),
        view("203.0.113.81:80/TCP", "LoadBalancer", "geneve", &local),
        view("203.0.113.81:80/TCP/i", "LoadBalancer", "socket", &both),
    ];
    for ip in ["198.51.100.7", "203.0.113.80"] {
        views.push(view(&format!("{ip}:80/TCP"), "LoadBalancer", "geneve", &http));
        views.push(view(&format!("{ip}:53/UDP"), "LoadBalancer", "geneve", &dns));
    }
    for ip in ["10.0.0.1", "0.0.0.0"] {
        let mode = if ip == "0.0.0.0" { "socket" } else { "geneve" };
        views.push(view(&format!("{ip}:30080/TCP"), "NodePort", mode, &http));
        views.push(view(&format!("{ip}:30053/UDP"), "NodePort", mode, &dns));
        views.push(view(&format!("{ip}:30082/TCP"), "NodePort", mode, &[]));
        if ip == "0.0.0.0" {
            views.push(view(&format!("{ip}:30081/TCP"), "NodePort", mode, &both));
        } else {
            views.push(view(&format!("{ip}:30081/TCP"), "NodePort", mode, &local));
            views.push(view(&format!("{ip}:30081/TCP/i"), "NodePort", "socket", &both));
        }
    }
    views
}

fn compared(served: &[Served], views: &[FrontendView]) -> Comparison {
    let on_devices = ["10.0.0.1".parse().unwrap()].into();
    let own = ["10.0.0.1", "127.0.0.1", "10.244.1.254"];
    let local = LocalAddresses { on_devices, all: own.map(|ip| ip.parse().unwrap()).into() };
    between(served, views, &local)
}

fn nftables() -> Vec<Served> {
    table(Family::V4).served(Family::V4)
}

fn reasons(views: &[FrontendView]) -> Vec<(String, String)> {
    let found = compared(&nftables(), views).differences;
    found.into_iter().map(|one| (one.frontend, one.reason)).collect()
}

/// The one difference that a change of the views makes.
fn only(change: impl FnOnce(&mut Vec<FrontendView>)) -> (String, String) {
    let mut views = all();
    change(&mut views);
    let found = reasons(&views);
    assert_eq!(found.len(), 1, "{found:?}");
    found.into_iter().next().unwrap()
}

fn find<'a>(views: &'a mut [FrontendView], frontend: &str) -> &'a mut FrontendView {
    views.iter_mut().find(|one| one.frontend == frontend).unwrap()
}

#[test]
fn where_all_is_served_nothing_differs() {
    let found = compared(&nftables(), &all());
    assert_eq!(found.differences, vec![]);
    assert_eq!(found.frontends, 15);
    assert_eq!(found.notes.len(), 1, "{:?}", found.notes);
}

#[test]
fn in_mode_iptables_node_ports_are_wanted_on_the_devices_and_on_loopback() {
    let served = Save::parse(IPTABLES).unwrap().served(Family::V4);
    let found = compared(&served, &all());
    assert_eq!(found.differences, vec![]);
    assert!(found.notes[0].contains("4 node ports on 10.244.1.254"), "{:?}", found.notes);
    let mut views = all();
    views.retain(|one| !one.frontend.starts_with("0.0.0.0:"));
    let found = compared(&served, &views);
    assert_eq!(found.differences.len(), 4, "{:?}", found.differences);
    for one in found.differences {
        assert!(one.reason.contains("127.0.0.0/8"), "{one:?}");
        assert!(one.advice.contains("loopbackNodePorts"), "{one:?}");
    }
}

#[test]
fn what_xdp_lb_lacks_is_told_with_its_reason() {
    let gone = |name: &'static str| only(move |views| views.retain(|one| one.frontend != name));
    for name in ["10.96.0.10:80/TCP", "203.0.113.80:53/UDP", "10.96.0.12:80/TCP"] {
        assert_eq!(gone(name), (name.to_owned(), "xdp-lb does not have it".to_owned()));
    }
    let found = only(|views| {
        views.retain(|one| !one.frontend.ends_with(":30080/TCP"));
        views.push(view("10.0.0.9:30080/TCP", "NodePort", "geneve", &[]));
    });
    assert_eq!(found.1, "xdp-lb has this node port, but not on 10.0.0.1");
    let found = only(|views| {
        let one = find(views, "10.96.0.13:7/SCTP");
        one.state = serde_json::from_value(json!("elsewhere")).unwrap();
        one.reason = Some("the kernel has no hook".to_owned());
    });
    assert_eq!(found.1, "xdp-lb leaves it to others: the kernel has no hook");
    let found = only(|views| {
        views.retain(|one| !one.frontend.ends_with(":30080/TCP"));
        let mut one = view("nodePort 30080/TCP", "NodePort", "geneve", &[]);
        one.state = serde_json::from_value(json!("refused")).unwrap();
        one.reason = Some("the table is full".to_owned());
        views.push(one);
    });
    assert_eq!(found.1, "xdp-lb refuses it: the table is full");
    let found = only(|views| find(views, "203.0.113.80:80/TCP").mode = "socket".to_owned());
    assert!(found.1.contains("sockets of this host and its pods alone"), "{found:?}");
}

#[test]
fn a_data_path_that_is_not_well_serves_nothing() {
    let check = |name: &str, state: &str| json!({"name": name, "state": state, "detail": "gone"});
    let checks = [check("devices", "degraded"), check("tables", "ok"), check("health", "degraded")];
    let health = serde_json::from_value(json!({"state": "degraded", "checks": checks})).unwrap();
    let found: Vec<String> = unwell(&health).map(|one| one.reason).collect();
    assert_eq!(found, ["xdp-lb's check `devices`: gone"]);
}

#[test]
fn endpoints_count_that_get_new_connections() {
    let with = |backends: &'static [(&'static str, &'static str)]| {
        only(move |views| {
            let name = "10.96.0.10:80/TCP";
            find(views, name).backends = view(name, "ClusterIP", "socket", backends).backends;
        })
        .1
    };
    assert_eq!(
        with(&[("10.244.1.1:8080", "active")]),
        "xdp-lb does not have its endpoint 10.244.1.2:8080"
    );
    assert_eq!(
        with(&[("10.244.1.1:8080", "active"), ("10.244.1.2:8080", "unreachable")]),
        "xdp-lb cannot reach its endpoint 10.244.1.2:8080"
    );
    assert!(
        with(&[("10.244.1.1:8080", "active"), ("10.244.1.2:8080", "drained")])
            .ends_with("but not from xdp-lb: it is drained")
    );
    assert_eq!(
        with(&[
            ("10.244.1.1:8080", "active"),
            ("10.244.1.2:8080", "active"),
            ("10.244.1.3:8080", "active"),
            ("10.244.1.4:8080", "draining"),
        ]),
        "xdp-lb leads to 10.244.1.3:8080, kube-proxy does not"
    );
    let found = only(|views| {
        views.retain(|one| one.frontend != "203.0.113.81:80/TCP/i");
    });
    assert_eq!(
        found.1,
        "for pods and this host: xdp-lb does not have its endpoint 10.244.2.1:8080"
    );
    // All that is left serves until it ends.
    let mut views = all();
    for one in &mut find(&mut views, "10.96.0.10:80/TCP").backends {
        one.state = serde_json::from_value(json!("terminating")).unwrap();
    }
    assert_eq!(reasons(&views), vec![]);
}
