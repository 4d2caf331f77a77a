//! `xdp-lb maglev simulate` foretells the tables that a change brings.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

use std::{net::SocketAddr, process::Command};

use serde_json::Value;
use xdp_lb_netns_tests::{
    Daemon, Net, Service, V4, binary, config, near, network, wait_until, without_root,
};

const WEB: SocketAddr = SocketAddr::new(V4, 80);

/// What the command prints as JSON; its errors where it fails.
fn maglev(arguments: &[&str]) -> Result<Value, String> {
    let output = Command::new(binary()).arg("maglev").args(arguments).output().unwrap();
    if !output.status.success() {
        return Err(String::from_utf8(output.stderr).unwrap());
    }
    Ok(serde_json::from_slice(&output.stdout).unwrap())
}

fn installed(daemon: &Daemon) -> String {
    let pins = daemon.pins().root().display().to_string();
    let digests = maglev(&["digest", "--pin-dir", &pins, "-o", "json"]).unwrap();
    digests["frontends"][0]["digest"].as_str().unwrap().to_owned()
}

#[test]
fn the_foretold_table_is_the_one_that_is_installed_after_the_change() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbnsim", network(4, 0));
    let web = |backends: &[u8]| {
        let service = Service::new("web", "l2").tcp(WEB);
        config(&[backends.iter().fold(service, |service, n| service.backend(near(*n)))])
    };
    let mut daemon = net.balance(&web(&[1, 2, 3]));
    wait_until("the API is served", || daemon.socket().exists());
    let before = installed(&daemon);
    let (socket, pins) =
        (daemon.socket().display().to_string(), daemon.pins().root().display().to_string());
    let live = ["--socket", &socket, "--pin-dir", &pins, "-o", "json"];
    let (gone, new) = (near(2).to_string(), near(4).to_string());
    let change = ["simulate", "web", "--remove", &gone, "--add", &new];
    let foretold = maglev(&[&change[..], &live[..]].concat()).unwrap();
    assert_eq!(foretold["notes"], Value::Array(vec![]), "{foretold:#}");
    let table = &foretold["tables"][0];
    assert_eq!(table["frontends"][0], format!("{WEB}/TCP"));
    assert_eq!(table["digest"][0], before);

    // The same from the file, which needs no daemon.
    let file = daemon.file().display().to_string();
    let of_file = maglev(&[&change[..], &["--config", &file, "-o", "json"]].concat()).unwrap();
    assert_eq!(of_file, foretold);

    daemon.reload(&web(&[1, 3, 4]));
    assert_eq!(table["digest"][1], installed(&daemon));

    // A drained backend has no slots to begin with.
    let drained = Command::new(binary())
        .args(["backend", "drain", "web", &near(1).to_string(), "--socket", &socket])
        .output()
        .unwrap();
    assert!(drained.status.success(), "{drained:?}");
    let weigh = format!("{}=3", near(3));
    let again = ["simulate", "web", "--weight", &weigh];
    wait_until("the drained backend has left the table", || {
        let foretold = maglev(&[&again[..], &live[..]].concat()).unwrap();
        let notes = foretold["notes"].to_string();
        foretold["tables"][0]["digest"][0] == installed(&daemon) && notes.contains("drained")
    });

    let unknown = maglev(&[&["simulate", "web", "--remove", "192.0.2.1"], &live[..]].concat());
    assert!(unknown.unwrap_err().contains("has no backend 192.0.2.1; it has"));
    let unknown = maglev(&[&["simulate", "nobody", "--add", "192.0.2.1"], &live[..]].concat());
    assert!(unknown.unwrap_err().contains("nobody"));
}
