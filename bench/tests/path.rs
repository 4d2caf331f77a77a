//! Keeps the benches of whole paths and of the control plane alive, on a small scale. Times are not
//! judged.

use std::{io::Write as _, path::PathBuf};

use xdp_lb_bench::{control, path};

fn may_run() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        let _ = writeln!(std::io::stderr(), "skipped: namespaces and eBPF programs need root");
    }
    root
}

#[test]
fn packets_and_connections_get_through_all_that_balances() {
    if !may_run() {
        return;
    }
    let scale = path::Scale {
        services: vec![2],
        kubernetes: Vec::new(),
        packets: 5000,
        connections: 5,
        changes: 1,
        daemon: PathBuf::from(env!("CARGO_BIN_EXE_xdp-lb-benched")),
    };
    let mut skipped = Vec::new();
    let cases = path::measure(&scale, |what| skipped.push(what.to_owned())).unwrap();
    let names: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    let first = ["sink-alone", "own-direct", "xdp-lb-l2-2", "xdp-lb-l2-2-new", "xdp-lb-snat-2"];
    assert_eq!(names[..5], first);
    let own = ["own-xdp-lb-sockets-2", "own-no-service-2", "own-nftables-2"];
    for name in own.into_iter().chain(["nftables-2", "nftables-2-new"]) {
        assert!(names.contains(&name) || !skipped.is_empty(), "{names:?}");
    }
    for case in cases.iter().filter(|case| !case.name.starts_with("own-")) {
        assert!(case.delivered.is_some_and(|share| share > 0.0), "{case:?}");
    }
    // Connections are not of new flows only.
    let mut connected = cases[1..].iter().filter(|case| !case.name.ends_with("-new"));
    assert!(connected.all(|case| case.connect_p50_us.is_some()), "{cases:?}");
    let mut own = cases.iter().filter(|case| case.name.starts_with("own-"));
    assert!(own.all(|case| case.call_ns.is_some_and(|time| time > 0.0)), "{cases:?}");
}

#[test]
fn tables_and_services_are_measured() {
    if !may_run() {
        return;
    }
    let scale = control::Scale {
        sizes: vec![251],
        backends: vec![2, 1000],
        builds: 2,
        crate_builds: 1,
        services: 30,
        rounds: 1,
    };
    let mut cases = control::tables(&scale);
    cases.extend(control::services(&scale).unwrap());
    let names: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    let tables = ["maglev-251-2-equal", "maglev-251-2-weighted", "maglev-crate-251-2"];
    assert_eq!(names[..3], tables);
    assert!(names.contains(&"plan-30x10-from-nothing"), "{names:?}");
    assert!(cases.iter().all(|case| case.median_ms > 0.0), "{cases:?}");
}
