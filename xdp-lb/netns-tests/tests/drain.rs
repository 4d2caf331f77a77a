//! A backend drains: who still has connections to it is shown, and the service comes to rest when
//! they are over.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

use std::{collections::BTreeMap, net::SocketAddr, thread, time::Duration};

use xdp_lb::{
    lab::Held,
    maglev_cli,
    stats::{FrontendStats, Share},
};
use xdp_lb_netns_tests::{
    Daemon, Net, Service, V4, V6, config_with, near, near6, network, wait_for, wait_until,
    without_root,
};

const FOUR: SocketAddr = SocketAddr::new(V4, 80);
const SIX: SocketAddr = SocketAddr::new(V6, 80);
const PORTS: std::ops::RangeInclusive<u16> = 40_000..=40_099;

/// Three backends, of which the second has this weight.
fn config(weight: u16) -> String {
    let services = [
        Service::new("four", "l2")
            .tcp(FOUR)
            .backend(near(1))
            .backend(near(3))
            .weighted(near(2), weight),
        Service::new("six", "l2")
            .tcp(SIX)
            .backend(near6(1))
            .backend(near6(3))
            .weighted(near6(2), weight),
    ];
    config_with(&[("eth0", "native")], &services, "handover: 2s\ntcpIdle: 10s")
}

fn frontends(daemon: &Daemon) -> Vec<FrontendStats> {
    daemon.stats().frontends
}

fn phases(daemon: &Daemon) -> Vec<&'static str> {
    frontends(daemon).iter().map(|one| one.phase).collect()
}

/// The second backend's part of a frontend.
fn second(frontend: &FrontendStats) -> &Share {
    let addresses = [SocketAddr::new(near(2), 80), SocketAddr::new(near6(2), 80)];
    let names = addresses.map(|one| one.to_string());
    frontend.backends.iter().find(|share| names.contains(&share.backend)).unwrap()
}

/// Panics unless each connection is still served by its backend.
fn ask(kept: &mut BTreeMap<(SocketAddr, SocketAddr), (Held, String)>, when: &str) {
    for ((local, _), (held, backend)) in kept {
        let answer = held.ask().unwrap_or_else(|error| panic!("{when}: {backend}: {error}"));
        assert_eq!(answer.backend, *backend, "{when}: {local}");
    }
}

#[test]
fn a_draining_backend_shows_its_flows_until_they_are_over() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbndrain", network(3, 0));
    let mut daemon = net.balance(&config(1));
    let _servers = net.serve((1..=3).map(|n| format!("b{n}")), &[FOUR, SIX]);
    let before = maglev_cli::digests(daemon.pins(), None).unwrap();
    let mut kept = BTreeMap::new();
    for frontend in [FOUR, SIX] {
        for mut held in net.client().hold_each(frontend, PORTS).unwrap() {
            let backend = held.ask().unwrap().backend;
            kept.insert((held.local(), frontend), (held, backend));
        }
    }
    let own = |frontend: SocketAddr, kept: &BTreeMap<(SocketAddr, SocketAddr), (Held, String)>| {
        kept.iter().filter(|((_, to), (_, name))| *to == frontend && name == "b2").count() as u64
    };
    let counts = [FOUR, SIX].map(|frontend| own(frontend, &kept));
    assert!(counts.iter().all(|count| *count > 10), "{counts:?}");
    assert_eq!(phases(&daemon), ["rest", "rest"]);

    daemon.reload(&config(0));
    ask(&mut kept, "while b2 drains");
    for (frontend, count) in frontends(&daemon).iter().zip(counts) {
        assert_eq!(second(frontend).state, "draining");
        assert_eq!(second(frontend).slots, 0);
        assert_eq!(second(frontend).recorded_flows, count, "{frontend:?}");
    }
    let drained = maglev_cli::digests(daemon.pins(), None).unwrap();
    assert_ne!(drained.all, before.all);

    // After the handover the number is exact: nobody who is not recorded belongs to b2.
    wait_until("the handover is over", || phases(&daemon) == ["exceptions", "exceptions"]);
    for (frontend, count) in frontends(&daemon).iter().zip(counts) {
        assert_eq!(second(frontend).recorded_flows, count, "{frontend:?}");
    }
    // A look comes by every five seconds, and lets connections be that go on.
    for _ in 0..12 {
        thread::sleep(Duration::from_secs(1));
        ask(&mut kept, "while looks come by");
    }
    assert_eq!(phases(&daemon), ["exceptions", "exceptions"]);

    // A port that is used again belongs to a new connection.
    let ports: Vec<u16> = kept
        .iter()
        .filter(|((_, to), (_, name))| *to == FOUR && name == "b2")
        .map(|((local, _), _)| local.port())
        .collect();
    kept.retain(|_, (_, name)| name != "b2");
    // The kernel gives a port of a closed connection away a second later (tcp_tw_reuse).
    thread::sleep(Duration::from_millis(2100));
    for port in ports {
        for outcome in net.client().ask_each(FOUR, port..=port).unwrap() {
            assert_ne!(outcome.answer.unwrap().backend, "b2", "port {port}");
        }
    }
    // Connections to others are exceptions too, where the table without b2 has given their slots to
    // somebody else; without them it is over.
    kept.clear();
    thread::sleep(Duration::from_secs(10));
    wait_until("the services are at rest", || phases(&daemon) == ["rest", "rest"]);
    let recorded = |frontend: &FrontendStats| {
        frontend.backends.iter().map(|share| share.recorded_flows).sum::<u64>()
    };
    assert!(frontends(&daemon).iter().all(|frontend| recorded(frontend) == 0));
    assert_eq!(maglev_cli::digests(daemon.pins(), None).unwrap().all, drained.all);

    daemon.reload(&config(1));
    assert_eq!(maglev_cli::digests(daemon.pins(), None).unwrap().all, before.all);
}

#[test]
fn a_backend_that_drains_leaves_its_service_with_its_last_flow() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbnleave", network(3, 0));
    let daemon =
        net.balance(&config_with(&[("eth0", "native")], &[], "handover: 2s\ntcpIdle: 10s"));
    let _servers = net.serve((1..=3).map(|n| format!("b{n}")), &[FOUR]);
    let service = serde_json::json!({
        "name": "web",
        "frontends": [{"address": FOUR.ip(), "port": FOUR.port()}],
        "backends": [{"address": near(1)}, {"address": near(2)}, {"address": near(3)}],
    });
    let file = net.scratch().file("service.json");
    std::fs::write(&file, service.to_string()).unwrap();
    daemon.told(&["service", "apply", "-f", &file.display().to_string()]);
    wait_until("it is served", || net.client().ask(FOUR, None).is_ok());
    let mut kept = BTreeMap::new();
    for mut held in net.client().hold_each(FOUR, PORTS).unwrap() {
        let backend = held.ask().unwrap().backend;
        kept.insert((held.local(), FOUR), (held, backend));
    }
    kept.retain(|_, (_, name)| name == "b2");
    let (second, list) = (near(2).to_string(), ["backend", "list"]);
    let find = |daemon: &Daemon| {
        let all = daemon.told_json(&list);
        all.as_array().unwrap().iter().find(|one| one["backend"] == *second).cloned()
    };
    daemon.told(&["backend", "drain", "web", &second, "--remove"]);
    ask(&mut kept, "while b2 drains");
    wait_until("its flows are counted", || {
        ask(&mut kept, "while b2 drains");
        find(&daemon).is_some_and(|one| one["flows"] == kept.len() && one["state"] == "draining")
    });
    // A restart forgets neither the flows nor what is to become of the backend.
    drop(daemon);
    let daemon =
        net.balance(&config_with(&[("eth0", "native")], &[], "handover: 2s\ntcpIdle: 10s"));
    for _ in 0..12 {
        thread::sleep(Duration::from_secs(1));
        ask(&mut kept, "while it has flows");
    }
    assert!(find(&daemon).is_some_and(|one| one["removing"] == true && one["flows"] == kept.len()));
    kept.clear();
    // Idle for 10 s, and looked at each 5 s.
    wait_for(Duration::from_secs(40), "its last flow is over", || find(&daemon).is_none());
    let all = daemon.told_json(&list);
    assert_eq!(all.as_array().unwrap().len(), 2);
    assert!(net.client().ask(FOUR, None).is_ok());
}

#[test]
fn a_full_table_of_flows_is_told_and_holds_nobody_up() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbnfull", network(3, 0));
    let config = |weight| config(weight).replace("flows: 65536", "flows: 64");
    let mut daemon = net.balance(&config(1));
    let _servers = net.serve((1..=3).map(|n| format!("b{n}")), &[FOUR, SIX]);
    let before = daemon.log().len();
    daemon.reload(&config(0));
    // Each whose slot was b2's is recorded: about one in three.
    for port in 41_000..42_000 {
        for outcome in net.client().ask_each(FOUR, port..=port).unwrap() {
            assert_ne!(outcome.answer.unwrap().backend, "b2", "port {port}");
        }
        if daemon.log()[before..].contains("the table of recorded flows is full") {
            break;
        }
    }
    daemon.wait_for(before, "the table of recorded flows is full");
}
