//! VLAN devices: the follower, the lab and the daemon on a host whose addresses are all behind tags.
//!
//! Needs root and a kernel with VLAN devices. Not every kernel has them, so these tests are built
//! with the feature `kernel-tests` only, and `.ci/kernels` runs them under kernels that do.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use clap::Parser as _;
use xdp_lb::{
    cli::Cli,
    lab::{
        Capture, Client, Item, Lab, Namespace, Process, ServerSpec, describe, end, host, layers,
        layers::Tag, link, route, service_vlan, switch, verify, vip, vlan,
    },
    net::{self, Follower},
    pins::Pins,
    stats::{self, Stats},
};

/// Everything is slow in an emulated machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// For a daemon to load its program, which an emulated machine's verifier takes long for.
const LOADING: Duration = Duration::from_secs(60);
/// Set in the processes that run the daemon: its command line.
const DAEMON: &str = "XDP_LB_VLAN_TEST_DAEMON";

const TEN: Tag = Tag { protocol: 0x8100, id: 10 };
const TWENTY: Tag = Tag { protocol: 0x8100, id: 20 };
const DOUBLE: [Tag; 2] = [Tag { protocol: 0x88a8, id: 100 }, Tag { protocol: 0x8100, id: 7 }];

/// A host with one device, and all of its addresses on VLAN devices of that: .`id` of each segment.
fn tagged_host(node: &str, id: u8) -> Vec<Item> {
    let on = |device: &str, number: u8| {
        end(node, device)
            .addr(&format!("10.{number}.0.{id}/24"))
            .addr(&format!("2001:db8:{number}::{id}/64"))
    };
    vec![
        host(node),
        link(end(node, "eth0").mac(&mac(id)), end("switch", node)),
        vlan(TEN.id, "eth0", on("eth0.10", 10)),
        vlan(TWENTY.id, "eth0", on("eth0.20", 20)),
        service_vlan(DOUBLE[0].id, "eth0", end(node, "eth0.100").mtu(1496)),
        vlan(DOUBLE[1].id, "eth0.100", on("eth0.100.7", 30).mtu(1492)),
    ]
}

fn mac(id: u8) -> String {
    format!("02:00:00:00:00:{id:02}")
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A way from VLAN 10, where the client is, to a backend.
struct Way {
    vip: [&'static str; 2],
    mode: &'static str,
    backend: &'static str,
    /// Behind which tags packets must leave
    tags: &'static [Tag],
    /// IP headers that they must have
    headers: usize,
}

const WAYS: [Way; 5] = [
    Way {
        vip: ["203.0.113.1", "2001:db8:f::1"],
        mode: "l2",
        backend: "10.10.0.11",
        tags: &[TEN],
        headers: 1,
    },
    Way {
        vip: ["203.0.113.2", "2001:db8:f::2"],
        mode: "l2",
        backend: "2001:db8:20::11",
        tags: &[TWENTY],
        headers: 1,
    },
    Way {
        vip: ["203.0.113.3", "2001:db8:f::3"],
        mode: "l2",
        backend: "10.30.0.11",
        tags: &DOUBLE,
        headers: 1,
    },
    Way {
        vip: ["203.0.113.4", "2001:db8:f::4"],
        mode: "ipip",
        backend: "10.20.0.11",
        tags: &[TWENTY],
        headers: 2,
    },
    Way {
        vip: ["203.0.113.5", "2001:db8:f::5"],
        mode: "ipip",
        backend: "2001:db8:30::11",
        tags: &DOUBLE,
        headers: 2,
    },
];

fn balancer_config() -> String {
    let mut text = config("services:\n");
    for (number, way) in WAYS.iter().enumerate() {
        text += &format!("  - name: way{number}\n    mode: {}\n    frontends:\n", way.mode);
        for (vip, protocol) in way.vip.iter().flat_map(|vip| [(vip, "TCP"), (vip, "UDP")]) {
            text += &format!("      - {{address: \"{vip}\", port: 80, protocol: {protocol}}}\n");
        }
        text += &format!("    backends:\n      - {{address: \"{}\"}}\n", way.backend);
    }
    text
}

/// A configuration for `eth0`, the device below all tags.
fn config(more: &str) -> String {
    format!(
        "hashKey: \"6a1f0c93d24be8705b9e47d1c80f36a2\"\n\
         devices:\n  - {{name: eth0, xdp: native}}\n\
         tunnel: {{sourceIPv4: 10.200.0.0/24, sourceIPv6: \"fd00:200::/96\"}}\n\
         limits: {{frontends: 64, backends: 256, slots: 1048576, flows: 65536}}\n{more}"
    )
}

/// Files and pins of a test, removed with its lab.
struct Scratch(PathBuf, PathBuf);

impl Scratch {
    fn new(lab: &Lab, name: &str) -> Self {
        let directories = [std::env::temp_dir().join(name), Path::new("/sys/fs/bpf").join(name)];
        let remove = {
            let directories = directories.clone();
            move || directories.iter().for_each(|one| drop(fs::remove_dir_all(one)))
        };
        remove();
        lab.afterwards(remove);
        let [files, pins] = directories;
        fs::create_dir(&files).unwrap();
        Self(files, pins)
    }
}

/// The daemon: this program again, in a process of its own, killed when this is dropped.
struct Daemon {
    process: Process,
    log: PathBuf,
    pins: Pins,
}

impl Daemon {
    fn start(scratch: &Scratch, space: &Namespace, name: &str, config: &str) -> Self {
        let Scratch(files, pins) = scratch;
        let (file, log) = (files.join(format!("{name}.yaml")), files.join(format!("{name}.log")));
        fs::write(&file, config).unwrap();
        let pins = pins.join(name);
        let line = format!("xdp-lb run --config {} --pin-dir {}", file.display(), pins.display());
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "the_daemon_itself", "--nocapture"])
            .env(DAEMON, line)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).unwrap());
        let process = space.spawn(command).unwrap();
        let mut daemon = Self { process, log, pins: Pins::new(pins) };
        let end = Instant::now() + LOADING;
        while !daemon.log().contains("the data path is up") {
            assert!(daemon.process.ended().is_none(), "the daemon ended");
            assert!(Instant::now() < end, "the daemon does not come up");
            thread::sleep(Duration::from_millis(20));
        }
        daemon
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn stats(&self) -> Stats {
        stats::read(&self.pins).unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if thread::panicking() {
            let stats = stats::read(&self.pins).map(|stats| stats.table()).unwrap_or_default();
            eprintln!("--- {}:\n{}{stats}---", self.log.display(), self.log());
        }
    }
}

/// Not a test but what [`Daemon::start`] starts; nothing in any other process.
#[test]
fn the_daemon_itself() {
    if let Ok(line) = std::env::var(DAEMON) {
        let _ = Cli::parse_from(line.split(' ')).run();
    }
}

#[test]
fn tagged_requests_reach_backends_behind_other_tags() {
    let mut items = vec![switch("switch")];
    items.extend(tagged_host("client", 2));
    items.extend(tagged_host("balancer", 7));
    items.extend(tagged_host("backend", 11));
    items.extend(WAYS.iter().flat_map(|way| way.vip).map(|address| vip("backend", address)));
    items.extend([
        route("client", "203.0.113.0/24", "10.10.0.7"),
        route("client", "2001:db8:f::/64", "2001:db8:10::7"),
    ]);
    let lab = Lab::build("xlbvlan", items).unwrap();
    let scratch = Scratch::new(&lab, "xlbvlan");
    let node = |name: &str| lab.ns(name).unwrap();
    let peers = config("terminate: {peers: [10.200.0.0/24, \"fd00:200::/96\"]}\n");
    let _unwrapping = Daemon::start(&scratch, node("backend"), "backend", &peers);
    let balancer = Daemon::start(&scratch, node("balancer"), "balancer", &balancer_config());
    let addresses = || WAYS.iter().flat_map(|way| way.vip).map(|vip| SocketAddr::new(ip(vip), 80));
    let server =
        addresses().fold(ServerSpec::named("backend"), |spec, vip| spec.http(vip).udp(vip));
    let server = server.start(node("backend")).unwrap();

    let capture = Capture::start(node("switch"), "balancer").unwrap();
    let client = Client::new(node("client")).timeout(PATIENCE);
    for vip in addresses() {
        let answer = client.ask(vip, Some(40_000)).unwrap();
        let source = if vip.is_ipv4() { "10.10.0.2:40000" } else { "[2001:db8:10::2]:40000" };
        assert_eq!((answer.server, answer.client.to_string().as_str()), (vip, source));
        assert_eq!(client.ask_udp(vip, None, 900, 3).unwrap().answer.received, 900);
        // Frames as long as any; too long for some ways, which the client is then told.
        let seen = Capture::start(node("switch"), "client").unwrap();
        client.upload(vip, 50_000).unwrap_or_else(|error| {
            let frames = seen.frames();
            let last = frames[frames.len().saturating_sub(20)..].iter().map(|one| describe(one));
            panic!("{error}; the client's last frames:\n{}", last.collect::<Vec<_>>().join("\n"))
        });
        node("client").tool("ping", &format!("-c 1 -W 10 {}", vip.ip())).unwrap();
    }
    let recording = capture.stop().unwrap();
    assert_eq!(recording.dropped, 0);
    assert_eq!(server.served().refused, 0);

    for frame in &recording.frames {
        verify::checksums(&frame.bytes)
            .unwrap_or_else(|fault| panic!("{fault}: {}", describe(&frame.bytes)));
    }
    let to = |frame: &layers::Frame<'_>, vips: &[IpAddr; 2]| {
        frame.headers.last().is_some_and(|ip| vips.contains(&ip.destination))
    };
    let stats = balancer.stats();
    for way in &WAYS {
        let vips = way.vip.map(ip);
        let came = recording.sent().filter(|bytes| {
            let frame = layers::frame(bytes).unwrap();
            let ours = to(&frame, &vips);
            assert!(!ours || frame.tags == [TEN], "{}", describe(bytes));
            ours
        });
        assert!(came.count() > 90, "{:?}", way.vip);
        let left = recording.received().filter(|bytes| {
            let frame = layers::frame(bytes).unwrap();
            let ours = to(&frame, &vips);
            let right = (way.tags, way.headers) == (&frame.tags[..], frame.headers.len());
            assert!(!ours || right, "{}", describe(bytes));
            ours
        });
        assert!(left.count() > 90, "{:?}", way.vip);
        // Pings are answered by the balancer, to where they came from.
        for vip in vips {
            let answers = recording.received().filter(|bytes| {
                let frame = layers::frame(bytes).unwrap();
                frame.tags == [TEN] && frame.headers.len() == 1 && frame.headers[0].source == vip
            });
            assert!(answers.count() > 0, "{vip}");
        }

        // One for TCP, one for UDP.
        let backend = SocketAddr::new(ip(way.backend), 80).to_string();
        let both: Vec<_> =
            stats.backends.iter().filter(|one| one.backend.starts_with(&backend)).collect();
        assert_eq!(both.len(), 2, "{both:?}");
        for one in &both {
            assert_eq!((one.mode, one.next_hop.as_deref()), (way.mode, Some(mac(11).as_str())));
        }
        assert!(both.iter().map(|one| one.packets).sum::<u64>() > 90, "{both:?}");
        for vip in vips.map(|vip| SocketAddr::new(vip, 80)) {
            for protocol in ["TCP", "UDP"] {
                let name = format!("{vip}/{protocol}");
                let one = stats.frontends.iter().find(|one| one.frontend == name).unwrap();
                assert!(one.packets > 0, "{one:?}");
            }
        }
    }
    // Ways of less than 1500 bytes: both with two tags and the other tunnel.
    let told = stats.reasons.iter().find(|one| one.reason == "too_big_answered").unwrap();
    assert!(told.packets >= 6, "{told:?}");
    let devices: Vec<_> = stats.devices.iter().map(|one| (one.device.as_str(), one.xdp)).collect();
    assert_eq!(devices, [("eth0", "native")]);
}

/// The packet path sends by the device below and adds the tags itself.
#[test]
fn a_vlan_device_names_its_parent_and_tag() {
    let mut items = vec![switch("switch")];
    items.extend(tagged_host("balancer", 7));
    items.extend(tagged_host("peer", 11));
    let lab = Lab::build("xlbvlannet", items).unwrap();
    let to = ip("10.30.0.11");
    let follow = async {
        let follower = Follower::start().await.unwrap();
        follower.set_destinations([to].into());
        let mut view = follower.view();
        let ready = |path: Option<&net::Path>| matches!(path, Some(net::Path::Ready { .. }));
        let wait = view.wait_for(|view| ready(view.paths.get(&to)));
        tokio::time::timeout(PATIENCE, wait).await.expect("no path in time").unwrap().clone()
    };
    let view = lab.ns("balancer").unwrap().run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(follow)
    });
    let view = view.unwrap();
    let link = |name: &str| view.links.values().find(|link| link.name == name).unwrap();
    let (lowest, outer, inner) = (link("eth0"), link("eth0.100"), link("eth0.100.7"));
    assert_eq!((lowest.parent, lowest.vlan), (None, None));
    assert_eq!((outer.parent, outer.vlan), (Some(lowest.index), Some((0x88a8, 100))));
    assert_eq!((inner.parent, inner.vlan), (Some(outer.index), Some((0x8100, 7))));
    assert_eq!(inner.kind, "vlan");
    let net::Path::Ready { device, mac, .. } = view.paths[&to] else { unreachable!() };
    assert_eq!((device, mac), (inner.index, [2, 0, 0, 0, 0, 0x11]));
}

/// No balancer is between the hosts.
#[test]
fn vlan_devices_work_in_the_lab() {
    let mut items = vec![switch("switch")];
    items.extend(tagged_host("a", 1));
    items.extend(tagged_host("b", 2));
    let lab = Lab::build("xlbvlanlab", items).unwrap();
    let target = SocketAddr::new(ip("10.30.0.2"), 80);
    let _server = ServerSpec::named("b").http(target).start(lab.ns("b").unwrap()).unwrap();
    let capture = Capture::start(lab.ns("a").unwrap(), "eth0").unwrap();
    Client::new(lab.ns("a").unwrap()).timeout(PATIENCE).ask(target, None).unwrap();
    let recording = capture.stop().unwrap();
    let tagged = |frame: &[u8]| describe(frame).starts_with("service vlan 100 | vlan 7 | 10.30.0.");
    assert!(recording.received().any(tagged) && recording.sent().any(tagged));
}
