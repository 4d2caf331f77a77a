//! The lab itself, with real namespaces and real traffic. Needs root; says so and passes without.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

mod common;

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use xdp_lb::lab::{
    Capture, Client, Item, Lab, LabError, ServerSpec, Tagger, describe, end, host, ip, layers::Tag,
    link, route, router, switch, sysctl, verify, vip,
};

use crate::common::without_root;

const VIP4: &str = "203.0.113.10:80";
const VIP6: &str = "[2001:db8:f::10]:80";
/// Set in processes that a test starts from its own program.
const CHILD: &str = "XDP_LB_LAB_TEST_CHILD";
const PATIENCE: Duration = Duration::from_secs(10);

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Client, router and a server with a service's addresses behind a switch.
fn topology() -> Vec<Item> {
    vec![
        host("client"),
        router("router"),
        switch("switch"),
        host("server"),
        link(
            end("client", "eth0").addr("198.51.100.2/24").addr("2001:db8:1::2/64"),
            end("router", "clients").addr("198.51.100.1/24").addr("2001:db8:1::1/64"),
        ),
        link(
            end("router", "servers").addr("10.0.1.1/24").addr("2001:db8:2::1/64"),
            end("switch", "router"),
        ),
        link(
            end("server", "eth0").addr("10.0.1.11/24").addr("2001:db8:2::11/64"),
            end("switch", "server"),
        ),
        vip("server", "203.0.113.10"),
        vip("server", "2001:db8:f::10"),
        route("client", "0.0.0.0/0", "198.51.100.1"),
        route("client", "::/0", "2001:db8:1::1"),
        route("server", "0.0.0.0/0", "10.0.1.1"),
        route("server", "::/0", "2001:db8:2::1"),
        route("router", "203.0.113.10/32", "10.0.1.11"),
        route("router", "2001:db8:f::10/128", "2001:db8:2::11"),
    ]
}

fn server(lab: &Lab) -> xdp_lb::lab::Server {
    ServerSpec::named("one")
        .http(address(VIP4))
        .http(address(VIP6))
        .udp(address(VIP4))
        .udp(address(VIP6))
        .start(lab.ns("server").unwrap())
        .unwrap()
}

fn namespaces(prefix: &str) -> usize {
    let Ok(entries) = fs::read_dir("/run/netns") else { return 0 };
    let start = format!("{prefix}-");
    entries
        .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with(&start))
        .count()
}

#[test]
fn clients_reach_servers_and_every_checksum_is_right() {
    if without_root() {
        return;
    }
    let lab = Lab::build("xlblabtraffic", topology()).unwrap();
    let server = server(&lab);
    let router = lab.ns("router").unwrap();
    let captures = ["clients", "servers"].map(|dev| Capture::start(router, dev).unwrap());
    let client = Client::new(lab.ns("client").unwrap());
    for vip in [VIP4, VIP6].map(address) {
        let answer = client.ask(vip, Some(41_000)).unwrap();
        assert_eq!((answer.backend.as_str(), answer.client.port()), ("one", 41_000));
        assert_eq!(answer.server, vip);
        // The port is free again at once.
        client.ask(vip, Some(41_000)).unwrap();
        let many = client.ask_each(vip, 42_000..=42_099).unwrap();
        assert_eq!(many.len(), 100);
        for (outcome, port) in many.iter().zip(42_000..) {
            let answer = outcome.answer.as_ref().unwrap();
            assert_eq!((outcome.port, answer.client.port()), (port, port));
        }
        let udp = client.ask_udp(vip, Some(43_000), 900, 3).unwrap();
        assert_eq!((udp.answer.server, udp.answer.received), (vip, 900));
        client.ask_udp(vip, None, 4000, 3).unwrap();
        let mut held = client.hold_each(vip, 44_000..=44_019).unwrap();
        for (connection, port) in held.iter_mut().zip(44_000..) {
            assert_eq!(connection.local().port(), port);
            assert_eq!(connection.ask().unwrap().client.port(), port);
        }
        assert_eq!(held[0].echo(b"hello").unwrap(), b"hello");
        assert_eq!(held[0].echo(b"again").unwrap(), b"again");
        client.download(vip, 3_000_000).unwrap();
        client.upload(vip, 3_000_000).unwrap();
    }
    let served = server.served();
    assert_eq!(served.connections, 2 * (2 + 100 + 20 + 2));
    assert_eq!(served.datagrams, 4);
    for capture in captures {
        let seen = capture
            .wait_for(PATIENCE, |frame| describe(&frame.bytes).contains("2001:db8:f::10]:80 TCP"));
        assert!(seen.is_some());
        let recording = capture.stop().unwrap();
        assert_eq!(recording.dropped, 0);
        assert!(recording.frames.len() > 4000, "{} frames", recording.frames.len());
        assert!(recording.sent().count() > 1000 && recording.received().count() > 1000);
        let mut fragments = 0;
        for frame in &recording.frames {
            let checked = verify::checksums(&frame.bytes)
                .unwrap_or_else(|fault| panic!("{fault}: {}", describe(&frame.bytes)));
            fragments += usize::from(checked.skipped == Some("a fragment"));
            assert!(frame.bytes.len() <= 1514);
        }
        // The datagrams of 4000 bytes came in three parts each.
        assert_eq!(fragments, 6);
    }
}

#[test]
fn vlan_tags_are_in_captures_on_either_side() {
    if without_root() {
        return;
    }
    let side = |node: &str, address: &str| {
        [
            host(node),
            link(end(node, "eth0"), end("switch", node)),
            link(end(node, "vlan7").addr(address).mtu(1492), end(node, "port7")),
        ]
    };
    let mut items = vec![switch("switch")];
    items.extend(side("a", "10.7.0.1/24"));
    items.extend(side("b", "10.7.0.2/24"));
    let lab = Lab::build("xlblabvlan", items).unwrap();
    let tags = [Tag { protocol: 0x88a8, id: 100 }, Tag { protocol: 0x8100, id: 7 }];
    let _taggers = ["a", "b"]
        .map(|node| Tagger::start(lab.ns(node).unwrap(), "port7", "eth0", &tags).unwrap());
    let target = address("10.7.0.2:80");
    let _server = ServerSpec::named("b").http(target).start(lab.ns("b").unwrap()).unwrap();
    let captures = ["a", "b"].map(|node| Capture::start(lab.ns(node).unwrap(), "eth0").unwrap());
    Client::new(lab.ns("a").unwrap()).download(target, 200_000).unwrap();
    for capture in captures {
        let recording = capture.stop().unwrap();
        let tcp = recording.frames.iter().filter(|f| describe(&f.bytes).contains(" TCP "));
        let lines: Vec<_> = tcp
            .map(|frame| {
                verify::checksums(&frame.bytes).unwrap();
                describe(&frame.bytes)
            })
            .collect();
        assert!(lines.len() > 100, "{} frames", lines.len());
        for line in lines {
            assert!(line.starts_with("service vlan 100 | vlan 7 | 10.7.0."), "{line}");
        }
    }
}

#[test]
fn a_wrong_topology_or_command_is_refused_and_leaves_nothing() {
    if without_root() {
        return;
    }
    let prefix = "xlblabwrong";
    let error = Lab::build(prefix, [host("a"), host("a")]).unwrap_err();
    assert!(matches!(error, LabError::Topology { .. }));
    let error = Lab::build(prefix, [host("a"), ip("a", "link frobnicate")]).unwrap_err();
    assert!(matches!(error, LabError::Refused { .. }), "{error}");
    let error = Lab::build(prefix, [host("a"), sysctl("a", "net.nothing", "1")]).unwrap_err();
    assert!(error.to_string().contains("net.nothing"), "{error}");
    let lab = Lab::build(prefix, [host("a")]).unwrap();
    assert!(matches!(lab.ns("b"), Err(LabError::UnknownNode(_))));
    assert!(matches!(Lab::new(prefix), Err(LabError::InUse(_))));
    assert!(matches!(Lab::clean(prefix), Err(LabError::InUse(_))));
    drop(lab);
    assert_eq!(namespaces(prefix), 0);
}

#[test]
fn a_lab_can_grow_and_nothing_outlives_it() {
    if without_root() {
        return;
    }
    let prefix = "xlblabgone";
    let mut lab = Lab::build(prefix, topology()).unwrap();
    lab.add([
        host("late"),
        link(end("late", "eth0").addr("10.0.1.99/24"), end("switch", "late")),
        route("late", "0.0.0.0/0", "10.0.1.1"),
    ])
    .unwrap();
    assert_eq!(namespaces(prefix), 5);
    let late = lab.ns("late").unwrap();
    let sees = late.run(|| fs::read_to_string("/proc/thread-self/net/dev").unwrap()).unwrap();
    assert!(sees.contains("eth0") && !sees.contains("clients"));
    assert!(late.tool("ping", "-c 1 -W 5 198.51.100.2").unwrap().contains("1 received"));
    assert!(late.ip("link show eth0").unwrap().contains("LOWER_UP"));
    // A child is inside, and killed when it is dropped.
    let mut sleep = Command::new("sleep");
    sleep.arg("600");
    let child = late.spawn(sleep).unwrap();
    let process = format!("/proc/{}", child.id().unwrap());
    let inside = fs::read_link(format!("{process}/ns/net")).unwrap();
    assert_ne!(inside, fs::read_link("/proc/self/ns/net").unwrap());
    drop(child);
    assert!(!Path::new(&process).exists());
    let mut cat = Command::new("cat");
    cat.stdin(Stdio::piped());
    let status = late.spawn(cat).unwrap().stop(PATIENCE).unwrap();
    assert!(!status.success());
    // A panic unwinds through the lab's drop.
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _lab = lab;
        panic!("as planned");
    }));
    assert!(panicked.is_err());
    assert_eq!(namespaces(prefix), 0);
}

/// Runs this test's own program again, inside `test` alone and marked as a child.
fn again(test: &str) -> Command {
    // A background job of a shell ignores SIGINT, and so would what it starts.
    let mut command = Command::new("env");
    command.arg("--default-signal=INT").arg(std::env::current_exe().unwrap());
    command.args(["--exact", test]).env(CHILD, "1").stdout(Stdio::null()).stderr(Stdio::null());
    command
}

#[test]
fn clean_removes_a_lab_that_was_kept_and_its_processes() {
    if without_root() {
        return;
    }
    if std::env::var_os(CHILD).is_some() {
        ServerSpec::named("kept").http(address(VIP4)).serve().unwrap();
    }
    let prefix = "xlblabkept";
    for remove in [Lab::clean, |prefix: &str| Lab::build(prefix, []).map(drop)] {
        let lab = Lab::build(prefix, topology()).unwrap();
        let program = again("clean_removes_a_lab_that_was_kept_and_its_processes");
        let mut server = lab.ns("server").unwrap().spawn(program).unwrap();
        let client = Client::new(lab.ns("client").unwrap());
        lab.keep();
        let end = Instant::now() + PATIENCE;
        while client.ask(address(VIP4), None).is_err() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(client.ask(address(VIP4), None).unwrap().backend, "kept");
        assert_eq!(namespaces(prefix), 4);
        assert!(server.ended().is_none());
        remove(prefix).unwrap();
        assert_eq!(namespaces(prefix), 0);
        let end = Instant::now() + PATIENCE;
        while server.ended().is_none() {
            assert!(Instant::now() < end, "the process of the lab goes on");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn a_signal_removes_the_lab() {
    if without_root() {
        return;
    }
    let prefix = "xlblabsignal";
    if std::env::var_os(CHILD).is_some() {
        let _lab = Lab::build(prefix, topology()).unwrap();
        std::thread::sleep(PATIENCE);
        return;
    }
    for signal in [nix::sys::signal::SIGTERM, nix::sys::signal::SIGINT] {
        let mut child = again("a_signal_removes_the_lab").spawn().unwrap();
        let end = Instant::now() + PATIENCE;
        while namespaces(prefix) < 4 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        let id = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
        nix::sys::signal::kill(id, signal).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(signal as i32));
        assert_eq!(namespaces(prefix), 0);
    }
}

#[test]
fn ten_thousand_connections_can_be_made_and_thousands_held() {
    if without_root() {
        return;
    }
    let lab = Lab::build("xlblabmany", topology()).unwrap();
    let server = server(&lab);
    let client = Client::new(lab.ns("client").unwrap()).timeout(PATIENCE);
    let vip = address(VIP4);
    let outcomes = client.ask_each(vip, 20_000..=29_999).unwrap();
    assert_eq!(outcomes.len(), 10_000);
    assert!(outcomes.iter().all(|outcome| outcome.answer.is_ok()));
    // Both ends are in this process: 10,000 files, which is half of a common limit.
    let mut held = client.hold_each(vip, 30_000..=34_999).unwrap();
    assert_eq!(held.len(), 5_000);
    assert_eq!(held[4_999].ask().unwrap().client.port(), 34_999);
    let served = server.served();
    assert_eq!((served.connections, served.refused), (15_000, 0));
}

/// What the demo builds: a client behind a router, a segment with the balancer and three backends,
/// and two more backends on another one.
#[test]
fn a_topology_of_the_demos_size_is_connected() {
    if without_root() {
        return;
    }
    let start = Instant::now();
    let mut items = vec![host("client"), router("router"), switch("near"), switch("far")];
    items.push(link(
        end("client", "eth0").addr("198.51.100.2/24").addr("2001:db8:1::2/64"),
        end("router", "clients").addr("198.51.100.1/24").addr("2001:db8:1::1/64"),
    ));
    for (segment, number) in [("near", 1), ("far", 2)] {
        items.push(link(
            end("router", segment)
                .addr(&format!("10.0.{number}.1/24"))
                .addr(&format!("2001:db8:2:{number}::1/64")),
            end(segment, "router"),
        ));
    }
    items.push(route("client", "0.0.0.0/0", "198.51.100.1"));
    items.push(route("client", "::/0", "2001:db8:1::1"));
    let hosts = [("balancer", 1, 7), ("b1", 1, 11), ("b2", 1, 12), ("b3", 1, 13)];
    let hosts = [hosts.as_slice(), &[("t1", 2, 11), ("t2", 2, 12)]].concat();
    for (name, number, id) in &hosts {
        let segment = if *number == 1 { "near" } else { "far" };
        items.push(host(name));
        items.push(link(
            end(name, "eth0")
                .addr(&format!("10.0.{number}.{id}/24"))
                .addr(&format!("2001:db8:2:{number}::{id}/64")),
            end(segment, name),
        ));
        items.push(route(name, "0.0.0.0/0", &format!("10.0.{number}.1")));
        items.push(route(name, "::/0", &format!("2001:db8:2:{number}::1")));
    }
    let lab = Lab::build("xlblabdemo", items).unwrap();
    eprintln!("built in {:?}", start.elapsed());
    let client = Client::new(lab.ns("client").unwrap());
    for (name, number, id) in &hosts {
        let targets = [format!("10.0.{number}.{id}:80"), format!("[2001:db8:2:{number}::{id}]:80")];
        for target in targets.iter().map(|target| address(target)) {
            let space = lab.ns(name).unwrap();
            let server = ServerSpec::named(name).http(target).udp(target).start(space).unwrap();
            assert_eq!(client.ask(target, None).unwrap().backend, *name);
            assert_eq!(client.ask_udp(target, None, 5, 3).unwrap().answer.backend, *name);
            drop(server);
            client.ask(target, None).unwrap_err();
        }
    }
    let start = Instant::now();
    drop(lab);
    eprintln!("removed in {:?}", start.elapsed());
}
