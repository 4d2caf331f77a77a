//! `xdp-lb doctor` on real hosts: what it finds, and how it ends.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

use std::process::Stdio;

use serde_json::Value;
use xdp_lb_netns_tests::{
    Net, Service, V4, binary, config, config_with, far, near, network, without_root,
};

/// Runs it in a host; its exit code and what it printed.
fn doctor(net: &Net, node: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = std::process::Command::new(binary());
    command.arg("doctor").args(arguments).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut process = net.ns(node).spawn(command).unwrap();
    let mut text = String::new();
    let mut stdout = process.child().unwrap().stdout.take().unwrap();
    std::io::Read::read_to_string(&mut stdout, &mut text).unwrap();
    let status = process.child().unwrap().wait().unwrap();
    (status.code(), text)
}

/// State and detail of a check.
fn found(report: &str, check: &str) -> (String, String) {
    let report: Value = serde_json::from_str(report).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let one = findings.iter().find(|one| one["check"] == check);
    let one = one.unwrap_or_else(|| panic!("no {check} in {report:#}"));
    let text = |key: &str| one[key].as_str().unwrap().to_owned();
    (text("state"), text("detail"))
}

#[test]
fn it_sees_what_is_so_and_ends_by_the_worst_of_it() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbndoc", network(1, 1));
    let services = [
        Service::new("web", "l2").tcp(std::net::SocketAddr::new(V4, 80)).backend(near(1)),
        Service::new("api", "ipip").tcp(std::net::SocketAddr::new(V4, 81)).backend(far(1)),
    ];
    let daemon = net.balance(&config(&services));
    let file = daemon.file().display().to_string();
    let pins = daemon.pins().root().display().to_string();
    let ours = ["--config", &file, "--pin-dir", &pins];
    let (code, report) = doctor(&net, "balancer", &[&ours[..], &["-o", "json"]].concat());
    for (check, state) in [
        ("eth0: driver", "ok"),
        ("eth0: program", "ok"),
        ("eth0: link", "ok"),
        ("eth0: veth", "warning"),
        ("data path", "ok"),
        ("configuration", "ok"),
        // Both ends of the tunnel have the clients' MTU.
        ("path MTU by eth0", "warning"),
    ] {
        assert_eq!(found(&report, check).0, state, "{check} in {report}");
    }
    assert_eq!(found(&report, "eth0: program").1, "xdp-lb is attached");
    assert_eq!(code, Some(0), "{report}");
    assert_eq!(doctor(&net, "balancer", &[&ours[..], &["--strict"]].concat()).0, Some(1));

    // To another instance the program there is somebody else's.
    let (code, report) = doctor(
        &net,
        "balancer",
        &["--config", &file, "--pin-dir", "/sys/fs/bpf/xlbndoc-none", "-o", "json"],
    );
    let (state, detail) = found(&report, "eth0: program");
    assert!(state == "error" && detail.contains("bpftool prog show id"), "{report}");
    assert_eq!(code, Some(1));

    // A device that is not there, and ports that the host's own connections use.
    let text = config_with(
        &[("wan9", "native")],
        &[Service::new("web", "snat").tcp(std::net::SocketAddr::new(V4, 80)).backend(near(1))],
        "snat: {ports: 52000-53000}",
    );
    let file = net.scratch().file("other.yaml");
    std::fs::write(&file, text).unwrap();
    let (code, report) =
        doctor(&net, "balancer", &["--config", &file.display().to_string(), "-o", "json"]);
    assert_eq!((code, found(&report, "wan9").0.as_str()), (Some(1), "error"), "{report}");
    assert_eq!(found(&report, "snat.ports").0, "error");

    let (code, table) = doctor(&net, "balancer", &["--config", "/nowhere/xdp-lb.yaml"]);
    assert!(code == Some(1) && table.contains("cannot read /nowhere/xdp-lb.yaml"), "{table}");
    assert!(table.contains("→ ") && !table.contains('\x1b'), "{table}");
}
