//! Services that are set through the API carry traffic, and survive restarts.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

use std::{
    fs,
    net::SocketAddr,
    process::Output,
    sync::atomic::{AtomicU16, Ordering},
};

use serde_json::{Value, json};
use xdp_lb_netns_tests::{
    Daemon, Net, Service, V4, config, near, network, vip_at, wait_until, without_root,
};

const FILE: SocketAddr = SocketAddr::new(V4, 80);

/// Writes a service to a file and applies it.
fn apply(net: &Net, daemon: &Daemon, service: &Value) -> Output {
    let file = net.scratch().file("service.json");
    fs::write(&file, service.to_string()).unwrap();
    daemon.ask(&["service", "apply", "-f", &file.display().to_string()])
}

fn wait_until_served(daemon: &Daemon, frontend: SocketAddr) {
    wait_until("the frontend is served", || {
        let list = daemon.told_json(&["service", "list"]);
        let name = format!("{frontend}/TCP");
        list.as_array()
            .unwrap()
            .iter()
            .any(|one| one["frontend"] == *name && one["state"] == "served")
    });
}

/// Names of the backends that answer many connections, none of whose ports was used lately: those
/// that were stay with their backend during a handover.
fn who(net: &Net, frontend: SocketAddr) -> Vec<String> {
    const MANY: u16 = 60;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 20_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 600 * MANY;
    let answers = net.client().ask_each(frontend, first..=first + MANY - 1).unwrap();
    let mut names: Vec<_> = answers.into_iter().map(|one| one.answer.unwrap().backend).collect();
    names.sort();
    names.dedup();
    names
}

#[test]
fn a_service_set_through_the_api_serves_and_survives_a_restart() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbnapi", network(3, 0));
    let api = vip_at(FILE.ip(), 8080);
    let _servers = net.serve(["b1", "b2", "b3"], &[FILE, api]);
    let text = config(&[Service::new("file", "l2").tcp(FILE).backends((1..=2).map(near))]);
    let daemon = net.balance(&text);
    let service = json!({
        "name": "tests/api",
        "mode": "l2",
        "frontends": [{"address": api.ip(), "port": api.port()}],
        "backends": [{"address": near(1)}, {"address": near(2)}, {"address": near(3)}],
    });
    let applied = apply(&net, &daemon, &service);
    let text_of = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(text_of(&applied), "service tests/api created\n", "{applied:?}");
    assert_eq!(text_of(&apply(&net, &daemon, &service)), "service tests/api unchanged\n");
    wait_until_served(&daemon, api);
    assert_eq!(who(&net, api), ["b1", "b2", "b3"]);

    // A drained backend gets no new connections, whoever owns its service.
    for (service, frontend) in [("tests/api", api), ("file", FILE)] {
        daemon.told(&["backend", "drain", service, &near(2).to_string()]);
        wait_until("the backend is drained", || {
            let list = daemon.told_json(&["backend", "list", "--service", service]);
            let states: Vec<_> =
                list.as_array().unwrap().iter().map(|one| one["state"].clone()).collect();
            states.contains(&json!("draining"))
        });
        wait_until("it gets no new connection", || !who(&net, frontend).contains(&"b2".to_owned()));
    }

    // What the file declares is the file's.
    let other = json!({"name": "file", "frontends": [], "backends": []});
    let refused = apply(&net, &daemon, &other);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("service file belongs to file: change it in the"), "{said}");
    let mut taken = service.clone();
    taken["name"] = json!("other");
    let refused = apply(&net, &daemon, &taken);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("/frontends/0") && said.contains("tests/api"), "{said}");

    let ids = |daemon: &Daemon| -> Vec<Value> {
        let list = daemon.told_json(&["service", "list"]);
        list.as_array().unwrap().iter().map(|one| one["id"].clone()).collect()
    };
    let before = ids(&daemon);
    daemon.stop();
    assert_eq!(who(&net, api), ["b1", "b3"], "the data path goes on alone");
    let daemon = net.balance(&text);
    assert_eq!(ids(&daemon), before);
    assert_eq!(who(&net, api), ["b1", "b3"]);
    assert!(daemon.told(&["status"]).contains("check: frontends"));
    let table = daemon.told(&["service", "list", "-o", "wide"]);
    assert!(table.contains("tests/api") && table.contains("(draining)"), "{table}");

    daemon.told(&["backend", "undrain", "tests/api", &near(2).to_string()]);
    wait_until("it serves again", || who(&net, api).len() == 3);
    daemon.told(&["service", "delete", "tests/api"]);
    wait_until("the service is gone", || net.client().ask(api, None).is_err());
    assert!(net.client().ask(FILE, None).is_ok());
    // Records go in between.
    wait_until("as many are counted as are listed", || {
        let flows: Value = daemon.told_json(&["flow", "count"]);
        let listed = daemon.told_json(&["flow", "list"]);
        flows["flows"] == json!(listed.as_array().unwrap().len())
    });
}
