//! The follower against the real kernel: network namespaces, veth pairs, real ARP and neighbour
//! discovery. Needs root.
#![expect(
    clippy::unwrap_used,
    reason = "what does not work here fails the test, and a skipped test says why"
)]

use std::{
    collections::BTreeSet, fs::File, future::Future, io::Write as _, net::IpAddr, process::Command,
    sync::Arc, thread, time::Duration,
};

use nix::sched::{CloneFlags, setns};
use tokio::{sync::watch, time::timeout};
use xdp_lb::net::{Follower, Link, Path, View, Why};

const LB_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// The balancer's namespace and its peer's, joined by the veth pair lb0 (10.77.0.1, fd77::1) and
/// peer0 (10.77.0.2, fd77::2). Gone when dropped.
struct Lab {
    lb: String,
    peer: String,
}

impl Lab {
    /// Nothing, and a word about it, where the test does not run as root.
    fn new(test: &str) -> Option<Self> {
        if !nix::unistd::Uid::effective().is_root() {
            let _ = writeln!(
                std::io::stderr(),
                "skipped: {test} makes network namespaces, which needs root"
            );
            return None;
        }
        let id = std::process::id();
        let lab =
            Self { lb: format!("xlbnet{id}-{test}-lb"), peer: format!("xlbnet{id}-{test}-p") };
        for namespace in [&lab.lb, &lab.peer] {
            ip_command(&format!("netns add {namespace}"));
            // Duplicate address detection would keep every IPv6 address unusable for a second.
            for scope in ["all", "default"] {
                set(namespace, &format!("ipv6/conf/{scope}/accept_dad"), 0);
            }
            ip_command(&format!("-n {namespace} link set lo up"));
        }
        lab.join();
        Some(lab)
    }

    fn join(&self) {
        let Self { lb, peer } = self;
        ip_command(&format!(
            "link add lb0 address 02:00:00:00:00:01 netns {lb} type veth \
                 peer name peer0 address 02:00:00:00:00:02 netns {peer}"
        ));
        self.peer("link set peer0 up");
        self.peer("addr add 10.77.0.2/24 dev peer0");
        self.peer("addr add fd77::2/64 dev peer0");
        self.lb("link set lb0 up");
        self.lb("addr add 10.77.0.1/24 dev lb0");
        self.lb("addr add fd77::1/64 dev lb0");
    }

    /// `ip` in the balancer's namespace.
    fn lb(&self, arguments: &str) {
        ip_command(&format!("-n {} {arguments}", self.lb));
    }

    /// `ip` in the peer's namespace.
    fn peer(&self, arguments: &str) {
        ip_command(&format!("-n {} {arguments}", self.peer));
    }

    /// Runs `test` with a follower of the balancer's namespace, on a thread that enters it; the
    /// other threads of this process stay where they are.
    fn follow<F: Future<Output = ()>>(&self, test: impl FnOnce(Watched) -> F + Send) {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let namespace = File::open(format!("/run/netns/{}", self.lb)).unwrap();
                setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.unwrap().block_on(async {
                    let follower = Follower::start().await.unwrap();
                    let view = follower.view();
                    timeout(Duration::from_secs(60), test(Watched { follower, view }))
                        .await
                        .expect("the test takes less than a minute");
                });
            });
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        });
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for namespace in [&self.lb, &self.peer] {
            // Best effort: it may not have been made.
            let _ = Command::new("ip").args(["netns", "del", namespace]).output();
        }
    }
}

fn ip_command(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {error}");
}

/// Sets a network sysctl inside a namespace.
fn set(namespace: &str, name: &str, value: u32) {
    let command = format!("echo {value} > /proc/sys/net/{name}");
    let arguments = ["netns", "exec", namespace, "sh", "-c", &command];
    let output = Command::new("ip").args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {error}");
}

struct Watched {
    follower: Follower,
    view: watch::Receiver<Arc<View>>,
}

impl Watched {
    fn want(&self, destinations: &[&str]) {
        self.follower.set_destinations(destinations.iter().map(|text| ip(text)).collect());
    }

    /// Waits for a view in which `condition` holds. Well below the 30 s after which everything is
    /// read anew, so that a change must have been noticed by itself.
    async fn until(&mut self, what: &str, condition: impl Fn(&View) -> bool) -> Arc<View> {
        let wait = self.view.wait_for(|view| condition(view));
        if let Ok(view) = timeout(Duration::from_secs(15), wait).await {
            return view.unwrap().clone();
        }
        let last: String = format!("{:?}", self.view.borrow()).chars().take(4_000).collect();
        panic!("never seen: {what}; the last view begins: {last}");
    }

    async fn until_ready(&mut self, to: &str) -> (u32, [u8; 6], u32, IpAddr) {
        let view = self.until(&format!("a path to {to}"), |view| ready(view, to).is_some()).await;
        ready(&view, to).unwrap()
    }

    async fn until_unresolved(&mut self, to: &str, why: Why) {
        let expected = Path::Unresolved { why };
        self.until(&format!("{to}: {expected:?}"), |view| {
            view.paths.get(&ip(to)) == Some(&expected)
        })
        .await;
    }

    fn link(&self, name: &str) -> Option<Link> {
        link(&self.view.borrow(), name).cloned()
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn link<'a>(view: &'a View, name: &str) -> Option<&'a Link> {
    view.links.values().find(|link| link.name == name)
}

fn ready(view: &View, to: &str) -> Option<(u32, [u8; 6], u32, IpAddr)> {
    match view.paths.get(&ip(to)) {
        Some(Path::Ready { device, mac, mtu, source, .. }) => Some((*device, *mac, *mtu, *source)),
        Some(Path::Local | Path::Unresolved { .. }) | None => None,
    }
}

/// Nobody has sent a packet to a backend before the balancer needs its MAC address.
#[test]
fn a_neighbour_that_was_never_contacted_is_resolved() {
    let Some(lab) = Lab::new("new") else { return };
    lab.follow(|mut net| async move {
        let lb0 = net.link("lb0").unwrap();
        assert_eq!((lb0.mac, lb0.mtu, lb0.kind.as_str()), (Some(LB_MAC), 1500, "veth"));
        assert_eq!((lb0.parent, lb0.vlan, lb0.master), (None, None, None));
        net.want(&["10.77.0.2", "fd77::2"]);
        let v4 = net.until_ready("10.77.0.2").await;
        assert_eq!(v4, (lb0.index, PEER_MAC, 1500, ip("10.77.0.1")));
        let v6 = net.until_ready("fd77::2").await;
        assert_eq!(v6, (lb0.index, PEER_MAC, 1500, ip("fd77::1")));
    });
}

/// Servers across routers, IPv4 behind an IPv6 next hop (RFC 5549) included.
#[test]
fn a_path_through_a_gateway_has_the_gateways_mac() {
    let Some(lab) = Lab::new("gw") else { return };
    lab.lb("route add 198.51.100.0/24 via 10.77.0.2");
    lab.lb("route add 203.0.113.0/24 via inet6 fd77::2 dev lb0 src 10.77.0.1");
    lab.lb("route add 2001:db8::/32 via fd77::2");
    lab.follow(|mut net| async move {
        let device = net.link("lb0").unwrap().index;
        net.want(&["198.51.100.9", "203.0.113.9", "2001:db8::9"]);
        for (to, source) in [
            ("198.51.100.9", "10.77.0.1"),
            ("203.0.113.9", "10.77.0.1"),
            ("2001:db8::9", "fd77::1"),
        ] {
            assert_eq!(net.until_ready(to).await, (device, PEER_MAC, 1500, ip(source)), "{to}");
        }
    });
}

/// A server is replaced, or an address moves to another: traffic must follow.
#[test]
fn a_changed_mac_is_followed() {
    let Some(lab) = Lab::new("mac") else { return };
    let lab = &lab;
    lab.follow(|mut net| async move {
        net.want(&["10.77.0.2"]);
        assert_eq!(net.until_ready("10.77.0.2").await.1, PEER_MAC);
        // Announced by gratuitous ARP.
        set(&lab.peer, "ipv4/conf/peer0/arp_notify", 1);
        lab.peer("link set peer0 address 02:00:00:00:00:22");
        let announced = [2, 0, 0, 0, 0, 0x22];
        net.until("the announced MAC", |view| {
            ready(view, "10.77.0.2").is_some_and(|path| path.1 == announced)
        })
        .await;
        // Silently; the kernel has given up the old one and must be made to ask again.
        set(&lab.peer, "ipv4/conf/peer0/arp_notify", 0);
        lab.peer("link set peer0 address 02:00:00:00:00:33");
        lab.lb("neigh flush to 10.77.0.2");
        let silent = [2, 0, 0, 0, 0, 0x33];
        net.until("the silently changed MAC", |view| {
            ready(view, "10.77.0.2").is_some_and(|path| path.1 == silent)
        })
        .await;
    });
}

/// Nobody announced the change, and the kernel would go on using what it knows.
#[test]
fn a_stale_mac_is_checked() {
    let Some(lab) = Lab::new("stale") else { return };
    for quick in ["delay_first_probe_time", "ucast_solicit"] {
        set(&lab.lb, &format!("ipv4/neigh/lb0/{quick}"), 1);
    }
    lab.lb("neigh add 10.77.0.2 lladdr 02:00:00:00:00:99 nud stale dev lb0");
    lab.follow(|mut net| async move {
        net.want(&["10.77.0.2"]);
        net.until("the MAC that is right", |view| {
            ready(view, "10.77.0.2").is_some_and(|path| path.1 == PEER_MAC)
        })
        .await;
    });
}

/// A backend that starts later than its balancer.
#[test]
fn a_neighbour_that_answers_late_is_found() {
    let Some(lab) = Lab::new("late") else { return };
    let lab = &lab;
    lab.follow(|mut net| async move {
        net.want(&["10.77.0.9"]);
        let why = Why::NoNeighbour { neighbour: ip("10.77.0.9"), device: "lb0".into() };
        net.until_unresolved("10.77.0.9", why).await;
        lab.peer("addr add 10.77.0.9/24 dev peer0");
        assert_eq!(net.until_ready("10.77.0.9").await.1, PEER_MAC);
    });
}

/// Packets larger than the path must be refused with ICMP, so its MTU has to be right.
#[test]
fn the_mtu_is_the_smaller_of_route_and_device() {
    let Some(lab) = Lab::new("mtu") else { return };
    let lab = &lab;
    lab.lb("route add 198.51.100.0/24 via 10.77.0.2 mtu 1400");
    lab.follow(|mut net| async move {
        net.want(&["198.51.100.9"]);
        assert_eq!(net.until_ready("198.51.100.9").await.2, 1400);
        let mtu = |expected| {
            move |view: &View| ready(view, "198.51.100.9").is_some_and(|path| path.2 == expected)
        };
        lab.lb("route change 198.51.100.0/24 via 10.77.0.2 mtu 1300");
        net.until("the route's new MTU", mtu(1300)).await;
        lab.lb("link set lb0 mtu 1290");
        net.until("the device's MTU", mtu(1290)).await;
    });
}

/// Routing daemons replace routes all the time.
#[test]
fn a_replaced_route_moves_the_path() {
    let Some(lab) = Lab::new("repl") else { return };
    let lab = &lab;
    let Lab { lb, peer } = lab;
    ip_command(&format!(
        "link add lb1 netns {lb} type veth peer name peer1 address 02:00:00:00:00:44 netns {peer}"
    ));
    lab.peer("link set peer1 up");
    lab.peer("addr add 10.78.0.2/24 dev peer1");
    lab.lb("link set lb1 up");
    lab.lb("addr add 10.78.0.1/24 dev lb1");
    lab.lb("route add 198.51.100.0/24 via 10.77.0.2");
    lab.follow(|mut net| async move {
        let lb1 = net.link("lb1").unwrap().index;
        net.want(&["198.51.100.9"]);
        assert_eq!(net.until_ready("198.51.100.9").await.1, PEER_MAC);
        lab.lb("route replace 198.51.100.0/24 via 10.78.0.2");
        let view = net
            .until("the other device", |view| {
                ready(view, "198.51.100.9").is_some_and(|path| path.0 == lb1)
            })
            .await;
        let moved = ready(&view, "198.51.100.9").unwrap();
        assert_eq!(moved, (lb1, [2, 0, 0, 0, 0, 0x44], 1500, ip("10.78.0.1")));
        lab.lb("route del 198.51.100.0/24");
        net.until_unresolved("198.51.100.9", Why::NoRoute).await;
    });
}

/// A cable is pulled, or an administrator takes a device down.
#[test]
fn a_device_that_is_down_has_no_paths() {
    let Some(lab) = Lab::new("down") else { return };
    let lab = &lab;
    lab.follow(|mut net| async move {
        net.want(&["10.77.0.2"]);
        let before = net.until_ready("10.77.0.2").await;
        lab.peer("link set peer0 down");
        net.until_unresolved("10.77.0.2", Why::DeviceDown { device: "lb0".into() }).await;
        assert!(!net.link("lb0").unwrap().up);
        lab.peer("link set peer0 up");
        assert_eq!(net.until_ready("10.77.0.2").await, before);
        // Now the kernel withdraws the route itself.
        lab.lb("link set lb0 down");
        net.until_unresolved("10.77.0.2", Why::NoRoute).await;
        lab.lb("link set lb0 up");
        assert_eq!(net.until_ready("10.77.0.2").await, before);
    });
}

/// Drivers are reloaded and virtual devices made again under the same name.
#[test]
fn a_device_that_returns_is_another_one() {
    let Some(lab) = Lab::new("again") else { return };
    let lab = &lab;
    lab.follow(|mut net| async move {
        net.want(&["10.77.0.2"]);
        let before = net.until_ready("10.77.0.2").await;
        lab.lb("link del lb0");
        let view = net.until("no lb0", |view| link(view, "lb0").is_none()).await;
        assert!(!view.addresses.iter().any(|(_, address)| *address == ip("10.77.0.1")));
        net.until_unresolved("10.77.0.2", Why::NoRoute).await;
        // So that its old index is taken.
        lab.lb("link add taken type veth peer name taken2");
        lab.join();
        let after = net.until_ready("10.77.0.2").await;
        assert_ne!(before.0, after.0);
        assert_eq!(after.0, net.link("lb0").unwrap().index);
        assert!(net.view.borrow().addresses.contains(&(after.0, ip("10.77.0.1"))));
    });
}

/// Each kind of refusal has its own name, so that its user can tell what to repair.
#[test]
fn what_is_in_the_way_is_named() {
    let Some(lab) = Lab::new("why") else { return };
    let lab = &lab;
    lab.lb("route add unreachable 198.51.100.1");
    lab.lb("route add blackhole 198.51.100.2");
    lab.lb("route add prohibit 198.51.100.3");
    lab.lb("route add unreachable 2001:db8::1");
    lab.lb("route add blackhole 2001:db8::2");
    lab.lb("route add prohibit 2001:db8::3");
    lab.lb("route add 198.51.100.5 dev lo");
    lab.lb("route add 198.51.100.6 via 10.77.0.2");
    lab.follow(|mut net| async move {
        let expected = [
            ("198.51.100.1", Why::Unreachable),
            ("198.51.100.2", Why::Blackhole),
            ("198.51.100.3", Why::Prohibited),
            ("198.51.100.4", Why::NoRoute),
            ("198.51.100.5", Why::NoMac { device: "lo".into() }),
            ("2001:db8::1", Why::Unreachable),
            ("2001:db8::2", Why::Blackhole),
            ("2001:db8::3", Why::Prohibited),
            ("2001:db8::4", Why::NoRoute),
            ("10.77.0.255", Why::NotUnicast),
        ];
        let own = ["10.77.0.1", "127.0.0.1", "fd77::1", "::1"];
        let mut wanted: Vec<&str> = expected.iter().map(|(to, _)| *to).collect();
        wanted.extend(own);
        wanted.push("198.51.100.6");
        net.want(&wanted);
        for (to, why) in expected {
            net.until_unresolved(to, why).await;
        }
        for to in own {
            net.until(to, |view| view.paths.get(&ip(to)) == Some(&Path::Local)).await;
        }
        net.until_ready("198.51.100.6").await;
        // A rule changes the way as well as a route does.
        lab.lb("rule add to 198.51.100.6 prohibit");
        net.until_unresolved("198.51.100.6", Why::Prohibited).await;
        lab.lb("rule del to 198.51.100.6 prohibit");
        net.until_ready("198.51.100.6").await;
        // An address that becomes our own.
        lab.lb("addr add 198.51.100.4/32 dev lo");
        net.until("our own", |view| view.paths.get(&ip("198.51.100.4")) == Some(&Path::Local))
            .await;
        // Paths that nobody wants any more leave the view.
        net.want(&["198.51.100.6"]);
        net.until("only one path", |view| view.paths.len() == 1).await;
    });
}

/// 10,000 backends are within what one instance serves.
#[test]
fn ten_thousand_destinations_are_followed() {
    let Some(lab) = Lab::new("many") else { return };
    let lab = &lab;
    lab.lb("route add 172.16.0.0/12 via 10.77.0.2");
    lab.follow(|mut net| async move {
        let base = u32::from(std::net::Ipv4Addr::new(172, 16, 0, 0));
        let wanted: BTreeSet<IpAddr> =
            (1..=10_000).map(|n| std::net::Ipv4Addr::from(base + n).into()).collect();
        net.follower.set_destinations(wanted);
        let all = |mtu: u32| move |view: &View| {
            view.paths.len() == 10_000
                && view.paths.values().all(
                    |path| matches!(path, Path::Ready { mac, mtu: m, .. } if (*mac, *m) == (PEER_MAC, mtu)),
                )
        };
        net.until("all ready", all(1500)).await;
        lab.lb("route change 172.16.0.0/12 via 10.77.0.2 mtu 1400");
        net.until("all with the new MTU", all(1400)).await;
    });
}

/// The kernel drops what does not fit the socket's buffer; what it said must not be missed.
#[test]
fn lost_messages_are_made_up_for() {
    let Some(lab) = Lab::new("lost") else { return };
    let lab = &lab;
    let batch = std::env::temp_dir().join(format!("xlbnet{}.batch", std::process::id()));
    let routes: String = (0..30_000)
        .map(|n| format!("route add 172.16.{}.{}/32 dev lb0\n", n / 256, n % 256))
        .collect();
    std::fs::write(&batch, routes).unwrap();
    let path = batch.to_str().unwrap().to_owned();
    lab.follow(|mut net| async move {
        // The follower runs on this very thread, so that nothing reads the socket meanwhile.
        lab.lb(&format!("-batch {path}"));
        lab.lb("link set lb0 mtu 1444");
        net.until("the change behind the storm", |view| {
            link(view, "lb0").is_some_and(|link| link.mtu == 1444)
        })
        .await;
    });
    std::fs::remove_file(batch).unwrap();
}
