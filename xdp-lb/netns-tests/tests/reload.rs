//! The configuration changes while traffic runs.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use xdp_lb::lab::{Client, ClientError, Held};
use xdp_lb_netns_tests::{
    Daemon, Net, Service, V4, V6, config, near, near6, network, vip_at, wait_until, without_root,
};

const FOUR: SocketAddr = SocketAddr::new(V4, 80);
const SIX: SocketAddr = SocketAddr::new(V6, 80);

fn services(mode: &'static str, backends: &[(u8, u16)]) -> Vec<Service> {
    let with = |service: Service, address: fn(u8) -> std::net::IpAddr| {
        backends.iter().fold(service, |service, &(n, weight)| service.weighted(address(n), weight))
    };
    vec![
        with(Service::new("four", mode).tcp(FOUR), near),
        with(Service::new("six", mode).tcp(SIX), near6),
    ]
}

/// Connections that are held, each with the backend that it was made to.
struct Kept(Vec<(Held, String)>);

impl Kept {
    /// A hundred to each frontend, from ports that nobody else uses.
    fn open(client: &Client, first: u16) -> Self {
        let mut kept = Vec::new();
        for frontend in [FOUR, SIX] {
            for mut held in client.hold_each(frontend, first..=first + 99).unwrap() {
                let backend = held.ask().unwrap().backend;
                kept.push((held, backend));
            }
        }
        assert_eq!(kept.len(), 200);
        Self(kept)
    }

    fn backends(&self) -> BTreeSet<String> {
        self.0.iter().map(|(_, backend)| backend.clone()).collect()
    }

    fn backends_of(&self, frontend: SocketAddr) -> BTreeSet<String> {
        let those = self.0.iter().filter(|(held, _)| held.local().is_ipv4() == frontend.is_ipv4());
        those.map(|(_, backend)| backend.clone()).collect()
    }

    /// Panics unless each is still served by its backend.
    fn ask(&mut self, when: &str) {
        for (held, backend) in &mut self.0 {
            let answer = held.ask().unwrap_or_else(|error| panic!("{when}: {backend}: {error}"));
            assert_eq!(answer.backend, *backend, "{when}: {}", held.local());
        }
    }

    /// Gives up those of a backend, and returns how many these were.
    fn forget(&mut self, backend: &str) -> usize {
        let before = self.0.len();
        self.0.retain(|(_, name)| name != backend);
        before - self.0.len()
    }
}

/// Makes connections all the time while `work` runs; panics if one of them failed.
fn under_load(net: &Net, work: impl FnOnce()) {
    under_load_that_may_lose(0, net, work);
}

/// Makes connections all the time while `work` runs, to each frontend one after another; panics if
/// more than `lost` of those to one frontend failed.
fn under_load_that_may_lose(lost: usize, net: &Net, work: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    let made = AtomicU64::new(0);
    thread::scope(|scope| {
        for frontend in [FOUR, SIX] {
            let (client, stop, made) = (net.client(), &stop, &made);
            scope.spawn(move || {
                let mut left = lost;
                while !stop.load(Ordering::Relaxed) {
                    match client.ask(frontend, None) {
                        Ok(_) => _ = made.fetch_add(1, Ordering::Relaxed),
                        Err(ClientError::Talk { .. }) if left > 0 => left -= 1,
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
        let worker = scope.spawn(|| {
            let made_before = made.load(Ordering::Relaxed);
            wait_until("the load runs", || made.load(Ordering::Relaxed) > made_before + 20);
        });
        worker.join().unwrap();
        // The load must end whatever happens in here.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        let made_before = made.load(Ordering::Relaxed);
        let goes_on = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_until("the load goes on", || made.load(Ordering::Relaxed) > made_before + 20);
        }));
        stop.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        goes_on.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

fn serve(net: &Net, count: u8) -> Vec<xdp_lb::lab::Server> {
    net.serve((1..=count).map(|n| format!("b{n}")), &[FOUR, SIX]).into_values().collect()
}

/// Which backends new connections reach, from 100 ports that no connection had before: during a
/// handover a flow's record stays valid for the next connection from the same port.
fn reached(net: &Net, first: u16) -> BTreeSet<String> {
    let mut backends = BTreeSet::new();
    for frontend in [FOUR, SIX] {
        for outcome in net.client().ask_each(frontend, first..=first + 99).unwrap() {
            backends.insert(outcome.answer.unwrap().backend);
        }
    }
    backends
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn connections_stay_with_their_backends_while_backends_come_go_and_weigh_more() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbnreload", network(4, 0));
    let mut daemon = net.balance(&config(&services("l2", &[(1, 1), (2, 1), (3, 1)])));
    let _servers = serve(&net, 4);
    let mut kept = Kept::open(&net.client(), 40_000);
    assert_eq!(kept.backends(), names(&["b1", "b2", "b3"]));

    under_load(&net, || {
        daemon.reload(&config(&services("l2", &[(1, 1), (2, 1), (3, 1), (4, 1)])));
        kept.ask("after b4 has come");
    });
    assert!(reached(&net, 50_000).contains("b4"), "new connections reach the new backend");
    kept.ask("while new connections reach b4");

    under_load(&net, || {
        daemon.reload(&config(&services("l2", &[(1, 5), (2, 1), (3, 2), (4, 1)])));
        kept.ask("after weights have changed");
    });

    // A drained backend keeps what it has, and gets nothing new.
    under_load(&net, || {
        daemon.reload(&config(&services("l2", &[(1, 5), (2, 0), (3, 2), (4, 1)])));
        kept.ask("while b2 drains");
    });
    assert_eq!(reached(&net, 50_100), names(&["b1", "b3", "b4"]));
    kept.ask("while b2 drains and others are reached");

    // Connections to a backend that is removed break, and each load has one open that may be its.
    assert!(kept.forget("b3") > 20);
    under_load_that_may_lose(1, &net, || {
        daemon.reload(&config(&services("l2", &[(1, 5), (2, 0), (4, 1)])));
        kept.ask("after b3 has gone");
    });
    assert_eq!(reached(&net, 50_200), names(&["b1", "b4"]));
    kept.ask("at the end");
    // Every one of them came through the tables: nothing was inconsistent, nothing unserved.
    assert_eq!(daemon.reason("inconsistent_tables"), 0);
    assert_eq!(daemon.reason("no_backend"), 0);
}

#[test]
fn connections_survive_a_change_of_mode() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbnmode", network(3, 0));
    let backends = [(1, 1), (2, 1), (3, 1)];
    // Backends take packets either way, as they must while a mode changes.
    let _unwrapping = net.terminate(["b1", "b2", "b3"]);
    let mut daemon = net.balance(&config(&services("l2", &backends)));
    let _servers = serve(&net, 3);
    let mut kept = Kept::open(&net.client(), 40_000);
    for mode in ["ipip", "l2"] {
        under_load(&net, || {
            daemon.reload(&config(&services(mode, &backends)));
            kept.ask(mode);
        });
        let stats = daemon.stats();
        // Connections from before go on as they were; new ones are in the new mode.
        for share in stats.frontends.iter().flat_map(|one| &one.backends) {
            assert_eq!(share.state, if share.mode == mode { "active" } else { "draining" });
            assert_eq!(share.slots > 0, share.mode == mode);
        }
    }
}

#[test]
fn connections_survive_a_switch_of_session_affinity() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbnaffine", network(4, 0));
    let by_flow = |backends: &[(u8, u16)]| config(&services("l2", backends));
    let by_client = |backends: &[(u8, u16)]| {
        let services = services("l2", backends);
        config(&services.into_iter().map(|one| one.affinity("3h")).collect::<Vec<_>>())
    };
    let three = [(1, 1), (2, 1), (3, 1)];
    let mut daemon = net.balance(&by_flow(&three));
    let _servers = serve(&net, 4);
    let mut first = Kept::open(&net.client(), 40_000);
    assert_eq!(first.backends(), names(&["b1", "b2", "b3"]));

    under_load(&net, || {
        daemon.reload(&by_client(&three));
        first.ask("after affinity was switched on");
    });
    let mut second = Kept::open(&net.client(), 40_200);
    for frontend in [FOUR, SIX] {
        assert_eq!(second.backends_of(frontend).len(), 1, "a client has one backend");
    }
    // A new process knows what picked which table.
    daemon.kill();
    let mut daemon = net.balance(&by_client(&three));
    first.ask("after a restart");
    second.ask("after a restart");

    under_load(&net, || {
        daemon.reload(&by_flow(&three));
        first.ask("after affinity was switched off");
        second.ask("after affinity was switched off");
    });
    let mut third = Kept::open(&net.client(), 40_400);
    assert_eq!(third.backends(), names(&["b1", "b2", "b3"]));

    under_load(&net, || {
        daemon.reload(&by_client(&[(1, 5), (2, 1), (3, 1), (4, 1)]));
        for kept in [&mut first, &mut second, &mut third] {
            kept.ask("after affinity and backends have changed at once");
        }
    });
    assert_eq!(daemon.reason("inconsistent_tables"), 0);
    assert_eq!(daemon.reason("no_backend"), 0);
}

/// What decides about packets: the tables, without the counters.
fn tables(daemon: &Daemon) -> String {
    let mut stats = daemon.stats();
    for frontend in &mut stats.frontends {
        (frontend.packets, frontend.bytes, frontend.new_flows) = (0, 0, 0);
    }
    for backend in &mut stats.backends {
        (backend.packets, backend.bytes, backend.new_flows) = (0, 0, 0);
    }
    stats.reasons.clear();
    serde_json::to_string(&stats).unwrap()
}

#[test]
fn a_bad_file_changes_nothing_and_a_later_good_one_is_taken() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbnbad", network(2, 0));
    let good = config(&services("l2", &[(1, 1)]));
    let mut daemon = net.balance(&good);
    let _servers = serve(&net, 2);
    let mut held = net.client().hold(FOUR, None).unwrap();
    let before = tables(&daemon);

    let bad = good.replace("port: 80,", "port: 80000,").replace("mode: l2", "mode: l3");
    let place = |text: &str, part: &str| {
        let (line, row) = text.lines().enumerate().find(|(_, row)| row.contains(part)).unwrap();
        format!(":{}:{}: ", line + 1, row.find(part).unwrap() + 1)
    };
    for (text, places) in [
        (bad.as_str(), vec![place(&bad, "80000"), place(&bad, "l3")]),
        ("services: [", vec![":1:".to_owned()]),
        ("", vec!["balancer.yaml".to_owned()]),
    ] {
        let at = daemon.log().len();
        // No signal here: the daemon sees by itself that the file has changed.
        daemon.write(text);
        daemon.wait_for(at, "the new configuration is refused, the one before stays in force");
        for place in places {
            daemon.wait_for(at, &place);
        }
        assert_eq!(tables(&daemon), before);
        assert_eq!(held.ask().unwrap().backend, "b1");
        assert_eq!(net.client().ask(FOUR, None).unwrap().backend, "b1");
    }
    let at = daemon.log().len();
    std::fs::remove_file(daemon.file()).unwrap();
    daemon.wait_for(at, "cannot read");
    assert_eq!(net.client().ask(FOUR, None).unwrap().backend, "b1");

    let at = daemon.log().len();
    daemon.write(&config(&services("l2", &[(2, 1)])));
    // Until then, connections to b1 may be reset half-way.
    daemon.wait_for(at, "tables written");
    wait_until("b2 serves alone", || reached(&net, 50_000) == names(&["b2"]));

    // The same again is no change.
    let at = daemon.log().len();
    daemon.signal(nix::sys::signal::SIGHUP);
    daemon.reload(&config(&services("l2", &[(1, 1)])));
    assert_eq!(daemon.log()[at..].matches("configuration reloaded").count(), 1);
}

#[test]
fn services_come_and_go() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbnservices", network(2, 0));
    let first = Service::new("first", "l2").tcp(FOUR).backend(near(1));
    let second = Service::new("second", "l2").tcp(vip_at(V4, 81)).backend(near(2));
    let mut daemon = net.balance(&config(std::slice::from_ref(&first)));
    let _servers = net.serve(["b1", "b2"], &[FOUR, vip_at(V4, 81)]);
    let mut held = net.client().hold(FOUR, None).unwrap();
    let quick = net.client().timeout(std::time::Duration::from_millis(200));
    quick.ask(vip_at(V4, 81), None).unwrap_err();
    daemon.reload(&config(&[first, second.clone()]));
    assert_eq!(net.client().ask(vip_at(V4, 81), None).unwrap().backend, "b2");
    assert_eq!(held.ask().unwrap().backend, "b1");
    daemon.reload(&config(std::slice::from_ref(&second)));
    quick.ask(FOUR, None).unwrap_err();
    assert_eq!(net.client().ask(vip_at(V4, 81), None).unwrap().backend, "b2");
    // A service without backends refuses what it gets, and says so.
    daemon.reload(
        &config(&[Service::new("empty", "l2").tcp(FOUR), second])
            .replace("backends:\n  - name: second", "backends: []\n  - name: second"),
    );
    quick.ask(FOUR, None).unwrap_err();
    assert!(daemon.reason("no_backend_reset") > 0);
}
