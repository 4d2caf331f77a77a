//! The daemon stops, dies, and comes back; traffic does not notice.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

use std::{
    collections::BTreeMap,
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use xdp_lb::lab::{Client, Held};
use xdp_lb_netns_tests::{
    Daemon, Net, Service, V4, V6, config, config_with, near, near6, network, run, vip_at,
    wait_until, without_root,
};

const FOUR: SocketAddr = SocketAddr::new(V4, 80);
const SIX: SocketAddr = SocketAddr::new(V6, 80);

fn services() -> [Service; 2] {
    [
        Service::new("four", "l2").both(FOUR).backends((1..=3).map(near)),
        Service::new("six", "l2").both(SIX).backends((1..=3).map(near6)),
    ]
}

fn hold(client: &Client) -> Vec<(Held, String)> {
    let held = [FOUR, SIX].map(|frontend| client.hold_each(frontend, 40_000..=40_029).unwrap());
    let named = held.into_iter().flatten().map(|mut one| {
        let backend = one.ask().unwrap().backend;
        (one, backend)
    });
    named.collect()
}

fn goes_on(net: &Net, held: &mut [(Held, String)]) {
    for (one, backend) in held {
        assert_eq!(one.ask().unwrap().backend, *backend);
    }
    for frontend in [FOUR, SIX] {
        for outcome in net.client().ask_each(frontend, 41_000..=41_019).unwrap() {
            outcome.answer.unwrap();
        }
    }
}

/// Each backend with its id, and the frontends' counters.
fn state(daemon: &Daemon) -> (Vec<(String, u32)>, BTreeMap<String, u64>) {
    let stats = daemon.stats();
    let ids = stats.backends.iter().map(|one| (one.backend.clone(), one.id)).collect();
    (ids, stats.frontends.iter().map(|one| (one.frontend.clone(), one.packets)).collect())
}

#[test]
fn traffic_goes_on_without_the_daemon_and_the_next_one_takes_over() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbnrestart", network(3, 0));
    let text = config(&services());
    let servers = net.serve(["b1", "b2", "b3"], &[FOUR, SIX]);
    let mut daemon = net.balance(&text);
    let mut held = hold(&net.client());
    let pins = daemon.pins().clone();

    // A stream of datagrams runs through all of it, and each one of them has to arrive.
    let stop = AtomicBool::new(false);
    let sent = AtomicU64::new(0);
    let arrived = || servers.values().map(|server| server.served().datagrams).sum::<u64>();
    thread::scope(|scope| {
        let stream = scope.spawn(|| {
            net.ns("client")
                .run(|| {
                    let sockets: Vec<UdpSocket> =
                        (0..8).map(|_| UdpSocket::bind("0.0.0.0:0").unwrap()).collect();
                    while !stop.load(Ordering::Relaxed) {
                        for socket in &sockets {
                            socket.send_to(b"one of many", FOUR).unwrap();
                            sent.fetch_add(1, Ordering::Relaxed);
                        }
                        thread::sleep(Duration::from_millis(1));
                        // A veth device keeps 256 frames for who does not run just now.
                        let end = Instant::now() + Duration::from_secs(2);
                        while arrived() + 100 < sent.load(Ordering::Relaxed) && Instant::now() < end
                        {
                            thread::sleep(Duration::from_millis(1));
                        }
                    }
                })
                .unwrap();
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let before = state(&daemon);
            let ended = daemon.stop();
            assert_eq!(ended.code, Some(0), "{ended}");
            assert!(ended.log.contains("the data path goes on without the daemon"), "{ended}");
            assert!(net.has_xdp("balancer", "eth0") && pins.exists().unwrap());
            goes_on(&net, &mut held);

            daemon = net.balance(&text);
            assert!(daemon.log().contains("took over the running data path"), "{}", daemon.log());
            let after = state(&daemon);
            assert_eq!(after.0, before.0, "the same backends have the same ids");
            for (frontend, packets) in &before.1 {
                assert!(after.1[frontend] >= *packets, "counters go on");
            }
            goes_on(&net, &mut held);

            daemon.kill();
            assert!(net.has_xdp("balancer", "eth0"));
            goes_on(&net, &mut held);

            daemon = net.balance(&text);
            assert_eq!(state(&daemon).0, before.0);
            goes_on(&net, &mut held);
            // It does not only look on: changes are taken.
            let fewer = [Service::new("four", "l2").both(FOUR).backends((1..=2).map(near))];
            daemon.reload(&config(&fewer));
            daemon.reload(&text);
        }));
        stop.store(true, Ordering::Relaxed);
        stream.join().unwrap();
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    let sent = sent.load(Ordering::Relaxed);
    assert!(sent > 500, "{sent} datagrams");
    wait_until(&format!("all {sent} datagrams have arrived"), || arrived() == sent);
}

#[test]
fn a_restart_takes_over_what_changed_meanwhile() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbnchanged", network(3, 0));
    let _servers = net.serve(["b1", "b2", "b3"], &[FOUR, SIX]);
    let two = [Service::new("four", "l2").both(FOUR).backends((1..=2).map(near))];
    let daemon = net.balance(&config(&two));
    let mut held: Vec<(Held, String)> = (0..40)
        .map(|n| {
            let mut one = net.client().hold(FOUR, Some(40_000 + n)).unwrap();
            let backend = one.ask().unwrap().backend;
            (one, backend)
        })
        .collect();
    daemon.kill();
    let daemon = net.balance(&config(&services()));
    for (one, backend) in &mut held {
        assert_eq!(one.ask().unwrap().backend, *backend, "kept by the handover");
    }
    assert_eq!(daemon.stats().frontends.len(), 4);
    net.client().ask(SIX, None).unwrap();
}

#[test]
fn detach_on_exit_leaves_nothing() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbndetach", network(3, 0));
    let _servers = net.serve(["b1", "b2", "b3"], &[FOUR, SIX]);
    let start = |more: &[&str]| {
        run(net.scratch(), net.ns("balancer"), "balancer", &config(&services()), more).unwrap()
    };
    let daemon = start(&["--detach-on-exit"]);
    net.client().ask(FOUR, None).unwrap();
    let pins = daemon.pins().root().to_owned();
    assert!(pins.exists() && net.has_xdp("balancer", "eth0"));
    let ended = daemon.stop();
    assert_eq!(ended.code, Some(0), "{ended}");
    assert!(!pins.exists());
    assert!(!net.has_xdp("balancer", "eth0"));
    let quick = net.client().timeout(Duration::from_millis(200));
    quick.ask(FOUR, None).unwrap_err();

    // What a daemon left is removed by `clean`, too.
    let daemon = start(&[]);
    daemon.stop();
    assert!(pins.exists() && net.has_xdp("balancer", "eth0"));
    let mut clean = net.ns("balancer").command(xdp_lb_netns_tests::binary());
    clean.arg("clean").arg("--pin-dir").arg(&pins);
    let output = clean.output().unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("attached to eth0"));
    assert!(!pins.exists() && !net.has_xdp("balancer", "eth0"));
}

#[test]
fn limits_may_change_between_runs() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbnlimits", network(3, 0));
    let _servers = net.serve(["b1", "b2", "b3"], &[FOUR, SIX]);
    let with = |limits: &str| {
        let config = config(&services());
        let other = config.lines().filter(|line| !line.starts_with("limits:"));
        other.map(|line| format!("{line}\n")).chain([limits.to_owned()]).collect::<String>()
    };
    let small = "limits: {frontends: 64, backends: 64, slots: 65536, flows: 1024}\n";
    let daemon = net.balance(&with(small));
    assert!(!daemon.log().contains("take effect once"), "{}", daemon.log());
    daemon.stop();
    // The tables that run keep their sizes, whatever the next file asks for.
    for limits in [
        "limits: {frontends: 128, backends: 64, slots: 65536, flows: 1024}\n",
        "limits: {frontends: 32, backends: 16, slots: 32768, flows: 512}\n",
        "limits: {frontends: 64, backends: 64, slots: 65536, flows: 2048}\n",
        "",
    ] {
        let daemon = net.balance(&with(limits));
        assert!(daemon.log().contains("take effect once"), "{}", daemon.log());
        assert!(net.client().ask(FOUR, None).is_ok());
        daemon.stop();
    }
}

#[test]
fn a_start_that_fails_leaves_what_runs_as_it_is() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbnfail", network(3, 0));
    let _servers = net.serve(["b1", "b2", "b3"], &[FOUR, SIX]);
    net.balance(&config_with(&[("eth0", "native")], &services(), "")).stop();
    let before = net.client().ask(FOUR, None).unwrap();
    // Another service, and a device that takes no native XDP.
    let other = [Service::new("other", "l2").tcp(vip_at(FOUR.ip(), 7777)).backend(near(1))];
    let wanted = config_with(&[("eth0", "native"), ("lo", "native")], &other, "");
    let ended = run(net.scratch(), net.ns("balancer"), "balancer", &wanted, &[]).err().unwrap();
    assert_eq!(ended.code, Some(1), "{ended}");
    assert!(ended.log.contains("its driver has no native XDP"), "{ended}");
    let client = net.client();
    let port = before.client.port();
    assert_eq!(client.ask(FOUR, Some(port)).unwrap().backend, before.backend);
    assert!(!net.has_xdp("balancer", "lo"));
}
