//! `xdp-lb stats --rate` over live traffic, with a daemon and without one.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

use std::{
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;
use xdp_lb_netns_tests::{Net, Service, V4, binary, config, near, network, without_root};

const WEB: SocketAddr = SocketAddr::new(V4, 80);

fn command(pins: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(["stats", "--rate", "--interval", "0.2", "--pin-dir"]).arg(pins).args(more);
    command.stdout(Stdio::piped());
    command
}

/// Sends requests until the command ends; what it printed.
fn meanwhile(net: &Net, command: &mut Command, ports: &mut std::ops::RangeFrom<u16>) -> String {
    let mut child = command.spawn().unwrap();
    while child.try_wait().unwrap().is_none() {
        let port = ports.next().unwrap();
        net.client().ask_each(WEB, port..=port).unwrap();
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn rates_by_their_times_are_what_the_counters_grew_with_a_daemon_and_without() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbnrat", network(2, 0));
    let _servers = net.serve(["b1", "b2"], &[WEB]);
    let daemon =
        net.balance(&config(&[Service::new("web", "l2").tcp(WEB).backends([near(1), near(2)])]));
    let pins = daemon.pins().clone();
    let mut daemon = Some(daemon);
    let mut ports = 20_000_u16..;
    for with in [true, false] {
        if !with {
            daemon.take().unwrap().stop();
        }
        let counted = || {
            let stats = xdp_lb::stats::read(&pins).unwrap();
            [stats.frontends[0].packets, stats.frontends[0].bytes, stats.frontends[0].new_flows]
        };
        let before = counted();
        let mut json = command(pins.root(), &["--count", "4", "-o", "json"]);
        let printed = meanwhile(&net, &mut json, &mut ports);
        let readings: Vec<Value> =
            printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(readings.len(), 4, "{printed}");
        let after = counted();
        let keys = ["packetsPerSecond", "bytesPerSecond", "newFlowsPerSecond"];
        for (index, key) in keys.into_iter().enumerate() {
            let grown = |one: &Value, of: &Value| {
                (of[key].as_f64().unwrap() * one["seconds"].as_f64().unwrap()).round() as u64
            };
            let frontend: u64 = readings.iter().map(|one| grown(one, &one["frontends"][0])).sum();
            assert!(frontend > 0, "{key}: {printed}");
            // Requests went on before its first reading and after its last.
            assert!(frontend <= after[index] - before[index], "{key}: {printed}");
            let of_backends = |one: &Value| -> u64 {
                one["backends"].as_array().unwrap().iter().map(|of| grown(one, of)).sum()
            };
            assert!(readings.iter().map(of_backends).sum::<u64>() > 0, "{key}: {printed}");
        }
        let table = meanwhile(&net, &mut command(pins.root(), &["--count", "2"]), &mut ports);
        assert_eq!(table.matches("FRONTEND / BACKEND").count(), 2, "{table}");
        assert!(!table.contains('\x1b'), "there is no terminal: {table:?}");
    }
}
