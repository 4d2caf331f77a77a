//! What a user sees who has made a mistake: one clear message, and nothing is left behind.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::Path,
    process::Command,
};

use xdp_lb::lab::{Lab, host};
use xdp_lb_netns_tests::{
    Ended, Net, Scratch, Service, V4, binary, config, config_with, near, network, run, run_here,
    vip_at, without_root,
};

fn service() -> Service {
    Service::new("web", "l2").tcp(vip_at(V4, 80)).backend(near(1))
}

/// `run` with these files, in the balancer of a network.
fn run_in(net: &Net, file: &Path, pins: &Path) -> Ended {
    let mut command = net.ns("balancer").command(binary());
    command.arg("run").arg("--config").arg(file).arg("--pin-dir").arg(pins);
    run_here(command)
}

/// Panics unless it failed with one message that says `what`, and left nothing.
fn assert_refused(net: &Net, ended: &Ended, pins: &Path, what: &str) {
    assert_eq!(ended.code, Some(1), "{ended}");
    let messages: Vec<&str> =
        ended.log.lines().filter(|line| line.starts_with("xdp-lb: ")).collect();
    assert_eq!(messages.len(), 1, "{ended}");
    assert!(messages[0].contains(what), "{ended}");
    assert!(!ended.log.contains("panicked"), "{ended}");
    assert!(!pins.exists(), "pins are left");
    for device in ["eth0", "lo"] {
        assert!(!net.has_xdp("balancer", device), "a program is left on {device}");
    }
}

#[test]
fn mistakes_of_a_configuration_are_refused_before_anything_is_done() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbnerrors", network(1, 0));
    let file = net.scratch().file("bad.yaml");
    let pins = net.scratch().pins("bad");
    let good = config(&[service()]);

    let nonsense = good
        .replace("port: 80,", "port: 80000,")
        .replace("mode: l2", "mode: l3")
        .replace("devices:", "device:")
        .replace("weight: 1", "weight: heavy");
    fs::write(&file, &nonsense).unwrap();
    let ended = run_in(&net, &file, &pins);
    assert_refused(&net, &ended, &pins, "bad.yaml");
    for part in ["80000", "l3", "heavy"] {
        let (line, row) = nonsense.lines().enumerate().find(|(_, row)| row.contains(part)).unwrap();
        let column = row.find(part).unwrap() + 1;
        let place = format!("bad.yaml:{}:{column}: ", line + 1);
        assert!(ended.log.contains(&place), "no {place:?} in {ended}");
    }
    assert!(ended.log.contains("did you mean `devices`?"), "{ended}");
    // `check` says the same.
    let mut check = Command::new(binary());
    check.args(["check", "--config"]).arg(&file);
    let checked = run_here(check);
    assert_eq!((checked.code, &checked.log), (Some(1), &ended.log));

    let missing = net.scratch().file("missing.yaml");
    let ended = run_in(&net, &missing, &pins);
    assert_refused(&net, &ended, &pins, "missing.yaml: No such file");

    fs::write(&file, config_with(&[("eth7", "native")], &[service()], "")).unwrap();
    let ended = run_in(&net, &file, &pins);
    assert_refused(&net, &ended, &pins, "device eth7 of the configuration does not exist");

    // Two devices, of which one cannot: nothing stays on the other.
    let devices = [("eth0", "native"), ("lo", "native")];
    fs::write(&file, config_with(&devices, &[service()], "")).unwrap();
    let ended = run_in(&net, &file, &pins);
    assert_refused(&net, &ended, &pins, "device lo: its driver has no native XDP");
    assert!(ended.log.contains("xdp: native-or-generic"), "{ended}");

    fs::write(&file, &good).unwrap();
    let elsewhere = net.scratch().file("pins");
    let ended = run_in(&net, &file, &elsewhere);
    assert_refused(&net, &ended, &elsewhere, "is not in a BPF file system");

    // After all that, a good one runs.
    let daemon = net.balance(&good);
    assert!(net.has_xdp("balancer", "eth0"));
    drop(daemon);
}

#[test]
fn what_somebody_else_has_attached_is_left_alone() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbnbusy", network(1, 0));
    net.ns("balancer").receive_xdp("eth0").unwrap();
    let ended = run(net.scratch(), net.ns("balancer"), "balancer", &config(&[service()]), &[]);
    let ended = ended.unwrap_err();
    assert_eq!(ended.code, Some(1), "{ended}");
    assert!(ended.log.contains("another XDP program is attached already"), "{ended}");
    assert!(net.has_xdp("balancer", "eth0"));
    assert!(!net.scratch().pins("balancer").exists());
}

#[test]
fn a_second_daemon_with_the_same_pins_is_refused_and_the_first_goes_on() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbnsecond", network(1, 0));
    let frontend = vip_at(V4, 80);
    let _servers = net.serve(["b1"], &[frontend]);
    let daemon = net.balance(&config(&[service()]));
    let ended = run_in(&net, daemon.file(), daemon.pins().root());
    assert_eq!(ended.code, Some(1), "{ended}");
    assert!(ended.log.contains("another xdp-lb runs with the pin directory"), "{ended}");
    let mut clean = Command::new(binary());
    clean.arg("clean").arg("--pin-dir").arg(daemon.pins().root());
    let ended = run_here(clean);
    assert_eq!(ended.code, Some(1), "{ended}");
    assert!(ended.log.contains("another xdp-lb runs with the pin directory"), "{ended}");
    assert!(net.has_xdp("balancer", "eth0") && daemon.pins().exists().unwrap());
    assert_eq!(net.client().ask(frontend, None).unwrap().backend, "b1");
}

#[test]
fn without_root_there_is_one_clear_message() {
    if without_root() {
        return;
    }
    let lab = Lab::build("xlbnnobodyroot", [host("a")]).unwrap();
    let scratch = Scratch::new("xlbnnobodyroot");
    // Where anybody may read it.
    let copy = scratch.file("xdp-lb");
    fs::copy(binary(), &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    let file = scratch.file("good.yaml");
    fs::write(&file, config_with(&[("lo", "native-or-generic")], &[service()], "")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let pins = scratch.pins("nobody");
    const NOBODY: u32 = 65_534;
    let mut command = lab.ns("a").unwrap().command("setpriv");
    let id = NOBODY.to_string();
    command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--inh-caps=-all"]);
    command.arg(&copy).arg("run").arg("--config").arg(&file).arg("--pin-dir").arg(&pins);
    let ended = run_here(command);
    assert_eq!(ended.code, Some(1), "{ended}");
    assert_eq!(
        ended.log.trim(),
        "xdp-lb: xdp-lb run needs root, or the capabilities CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
    );
    assert!(!pins.exists());
    // Checking a file needs nothing.
    let mut check = Command::new(&copy);
    check.uid(NOBODY).gid(NOBODY).arg("check").arg("--config").arg(&file);
    assert_eq!(run_here(check).code, Some(0));
}

#[test]
fn stats_and_clean_without_a_data_path_say_so() {
    if without_root() {
        return;
    }
    let scratch = Scratch::new("xlbnnothing");
    let pins = scratch.pins("nothing");
    let mut stats = Command::new(binary());
    stats.arg("stats").arg("--pin-dir").arg(&pins);
    let ended = run_here(stats);
    assert_eq!(ended.code, Some(1));
    assert!(ended.log.contains("no data path is pinned in"), "{ended}");
    let output = Command::new(binary()).arg("clean").arg("--pin-dir").arg(&pins).output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "nothing to remove\n");
    assert!(!pins.exists());
}
