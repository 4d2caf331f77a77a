//! What `trace` says is what packets then do, byte for byte, and saying it changes nothing.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr},
    os::unix::net::UnixStream,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use xdp_lb::lab::{
    Capture, Node, Pod, PodsSpec,
    forge::{Datagram, Wire, ethernet, tunnel},
};
use xdp_lb_netns_tests::{
    Daemon, Net, POD_PORT, PodService, PodsNet, Service, V4, V4_OVER_6, V6, V6_OVER_4, binary,
    config_with, far, far6, load_balancer, near, near6, network, vip_at, wait_until, without_root,
};

/// Numbers that look random, the same in every run (SplitMix64).
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits ^ bits >> 31) % end as u64) as usize
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

/// Asks the daemon's API what would become of a packet.
fn trace(daemon: &Daemon, request: &Value) -> Value {
    let (code, answer) = post(daemon, request);
    assert_eq!(code, 200, "{request}: {answer}");
    assert_eq!(answer["difference"], Value::Null, "{request}: {answer}");
    answer
}

fn post(daemon: &Daemon, request: &Value) -> (u16, Value) {
    wait_until("the API is served", || daemon.socket().exists());
    let body = request.to_string();
    let mut stream = UnixStream::connect(daemon.socket()).unwrap();
    let head = "POST /api/v1/trace HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                Content-Type: application/json\r\nContent-Length:";
    write!(stream, "{head} {}\r\n\r\n{body}", body.len()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    (code, serde_json::from_str(body).unwrap())
}

fn bytes(hexadecimal: &Value) -> Vec<u8> {
    let digits = hexadecimal.as_str().unwrap().as_bytes();
    let pairs = digits.chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

fn hexadecimal(frame: &[u8]) -> String {
    frame.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where packets come from, what the balancer sends, and what was seen.
struct Bench<'a> {
    daemon: &'a Daemon,
    wire: Wire,
    sent: Capture,
    outcomes: BTreeMap<String, u32>,
}

impl Bench<'_> {
    /// Traces a packet, then sends it, and compares.
    fn check(&mut self, request: &Value) -> Value {
        let told = trace(self.daemon, request);
        let frame = bytes(&told["packet"]["frame"]);
        let expected = told.get("result").map(|result| bytes(&result["frame"]));
        let leaves = told.get("leaves").is_some();
        let before = self.daemon.stats();
        let seen = |frame: &Option<Vec<u8>>| {
            let all = self.sent.frames();
            all.iter().filter(|one| frame.as_ref() == Some(*one)).count()
        };
        let seen_before = seen(&expected);
        self.wire.send(&frame).unwrap();
        let reason = told["reason"].as_str();
        let count = |stats: &xdp_lb::stats::Stats, name: &str| {
            stats.reasons.iter().find(|one| one.reason == name).map_or(0, |one| one.packets)
        };
        if let Some(reason) = reason {
            let had = count(&before, reason);
            self.wait(request, &told, || count(&self.daemon.stats(), reason) > had);
        }
        if leaves {
            self.wait(request, &told, || seen(&expected) > seen_before);
        }
        if let (Some(frontend), "forwarded" | "delivered") =
            (told["frontend"].as_str(), told["outcome"].as_str().unwrap())
            && reason.is_none_or(|reason| reason == "delivered_local")
        {
            let packets = |stats: &xdp_lb::stats::Stats| {
                let one = stats.frontends.iter().find(|one| one.frontend == frontend).unwrap();
                let backend = one.backends.iter().find(|one| told["backend"] == one.backend);
                let id = backend.map(|one| one.id);
                let backend = stats.backends.iter().find(|one| Some(one.id) == id);
                (one.packets, backend.map_or(0, |one| one.packets))
            };
            let (had, had_backend) = packets(&before);
            self.wait(request, &told, || {
                let (now, now_backend) = packets(&self.daemon.stats());
                now > had && now_backend > had_backend
            });
        }
        let outcome = told["outcome"].as_str().unwrap();
        let kind =
            reason.map_or_else(|| outcome.to_owned(), |reason| format!("{outcome} {reason}"));
        *self.outcomes.entry(kind).or_default() += 1;
        told
    }

    fn wait(&self, request: &Value, told: &Value, done: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(10);
        while !done() {
            assert!(Instant::now() < end, "{request} did not do what was said: {told:#}");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Panics unless tracing these leaves every map as it was. Neighbours and routers may be heard
/// meanwhile, so it is tried some times: a map that tracing changes differs each time.
fn assert_nothing_changes(daemon: &Daemon, requests: &[Value]) {
    let dump = || {
        let maps = std::fs::read_dir(daemon.pins().maps()).unwrap();
        let mut paths: Vec<_> = maps.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        let dump = |path: &std::path::PathBuf| {
            let mut command = std::process::Command::new("bpftool");
            let command = command.args(["-j", "map", "dump", "pinned"]).arg(path);
            // Arrays of a device map that are empty are told as errors.
            command.output().ok().map(|output| (path.clone(), output.stdout))
        };
        paths.iter().map(dump).collect::<Option<Vec<_>>>()
    };
    let mut differs = Vec::new();
    for _ in 0..20 {
        let Some(before) = dump() else {
            let _ = writeln!(std::io::stderr(), "skipped: comparing maps needs bpftool");
            return;
        };
        for request in requests {
            trace(daemon, request);
        }
        let after = dump().unwrap();
        assert!(before.iter().filter(|(_, text)| text.len() > 2).count() > 10, "dumps are empty");
        differs =
            before.iter().zip(&after).filter(|(a, b)| a != b).map(|(a, _)| a.0.clone()).collect();
        if differs.is_empty() {
            return;
        }
    }
    panic!("tracing changed {differs:?}");
}

fn l2_and_ipip(backends: std::ops::RangeInclusive<u8>) -> String {
    let services = [
        Service::new("near4", "l2").both(vip_at(V4, 80)).backends(backends.clone().map(near)),
        Service::new("near6", "l2").both(vip_at(V6, 80)).backends(backends.clone().map(near6)),
        Service::new("far4", "ipip").both(vip_at(V4, 81)).backends(backends.clone().map(far)),
        Service::new("far6", "ipip").both(vip_at(V6, 81)).backends(backends.clone().map(far6)),
        Service::new("4in6", "ipip")
            .both(vip_at(V4_OVER_6, 80))
            .backends(backends.clone().map(far6)),
        Service::new("6in4", "ipip").both(vip_at(V6_OVER_4, 80)).backends(backends.map(far)),
        Service::new("none", "l2").both(vip_at(V4, 82)).weighted(near(1), 0),
    ];
    let more = "handover: 300s\nicmpErrorsPerSecond: 100000";
    config_with(&[("eth0", "native")], &services, more)
        .replace(
            "  - name: none\n    mode: l2\n",
            "  - name: none\n    mode: l2\n    noBackends: reject\n",
        )
        .replace(
            "  - name: far4\n    mode: ipip\n",
            "  - name: far4\n    mode: ipip\n    sessionAffinity: 1h\n",
        )
        .replace(
            "  - name: near6\n    mode: l2\n",
            "  - name: near6\n    mode: l2\n    sourceRanges: [\"2001:db8:1::/64\"]\n",
        )
}

/// A packet as anybody may send one, to one of these frontends.
fn any_packet(chance: &mut Chance, frontends: &[SocketAddr], clients: [&[&str]; 2]) -> Value {
    let mut to = chance.one(frontends);
    let from = chance.one(clients[usize::from(to.is_ipv6())]);
    if chance.below(12) == 0 {
        to.set_port(9999);
    }
    let protocol = chance.one(&["TCP", "TCP", "TCP", "UDP", "UDP", "ICMP", "SCTP"]);
    let from: IpAddr = from.parse().unwrap();
    let mut request = if protocol == "ICMP" {
        json!({"from": from, "to": to.ip(), "protocol": protocol})
    } else {
        // Few ports, so that flows come again.
        let from = SocketAddr::new(from, 4000 + chance.below(40) as u16);
        json!({"from": from, "to": to, "protocol": protocol})
    };
    if protocol == "TCP" {
        request["flags"] = chance.one(&["syn", "ack", "psh,ack", "fin,ack", "rst"]).into();
    }
    if chance.below(4) == 0 {
        request["length"] = chance.one(&[200, 1280, 1460, 1500]).into();
    }
    if chance.below(10) == 0 {
        request["ttl"] = chance.one(&[0, 1, 2]).into();
    }
    request
}

#[test]
fn packets_do_what_trace_says_at_rest_and_during_handovers() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbntrace", network(5, 5));
    let mut daemon = net.balance(&l2_and_ipip(1..=4));
    let frontends = [
        vip_at(V4, 80),
        vip_at(V6, 80),
        vip_at(V4, 81),
        vip_at(V6, 81),
        vip_at(V4_OVER_6, 80),
        vip_at(V6_OVER_4, 80),
        vip_at(V4, 82),
    ];
    let clients: [&[&str]; 2] =
        [&["198.51.100.2", "198.51.100.3"], &["2001:db8:1::2", "2001:db8:2::3"]];
    let mut chance = Chance(7);
    let mut outcomes = BTreeMap::new();
    for (round, backends) in [1..=4, 2..=5, 1..=3].into_iter().enumerate() {
        if round > 0 {
            daemon.reload(&l2_and_ipip(backends));
        }
        let wire = Wire::open(net.ns("router"), "near").unwrap();
        let sent = Capture::start(net.ns("near"), "balancer").unwrap();
        let mut bench = Bench { daemon: &daemon, wire, sent, outcomes };
        for _ in 0..150 {
            bench.check(&any_packet(&mut chance, &frontends, clients));
        }
        if round > 0 {
            // A flow in mid-stream that the tables disagree on is recorded, and said to be.
            let mut told = (0..500).map(|_| {
                bench.check(&any_packet(&mut chance, &frontends[..1], clients))["steps"].to_string()
            });
            assert!(
                told.any(|steps| steps.contains("recorded for backend")),
                "no flow comes again"
            );
        }
        outcomes = bench.outcomes;
    }
    for kind in [
        "forwarded",
        "answered echo_answered",
        "refused no_backend_reset",
        "refused no_backend_unreachable",
        "refused too_big_answered",
        "refused unknown_port_reset",
        "dropped source_not_allowed",
        "refused time_exceeded_answered",
    ] {
        assert!(outcomes.contains_key(kind), "{kind} is not in {outcomes:?}");
    }
    let requests: Vec<Value> =
        (0..200).map(|_| any_packet(&mut chance, &frontends, clients)).collect();
    assert_nothing_changes(&daemon, &requests);
}

#[test]
fn packets_for_pods_do_what_trace_says() {
    if without_root() {
        return;
    }
    let net = PodsNet::up("xlbntracepods", PodsSpec::default().pods(1));
    let _servers = net.serve();
    let pods = |nodes: &[Node]| {
        nodes.iter().map(|node| Pod { node: *node, number: 1 }).collect::<Vec<_>>()
    };
    let all = [Node::Balancer, Node::Worker, Node::Worker2];
    let service = |name, mode, port, nodes: &[Node]| {
        PodService::new(name, mode).at(&[port], &[30_000 + port]).pods(pods(nodes), POD_PORT)
    };
    let services = [
        service("geneve", "geneve", 80, &all),
        service("local", "local", 81, &[Node::Balancer]),
        service("snat", "snat", 82, &Node::ALL),
        service("hybrid", "hybrid", 83, &all),
    ];
    let [daemon, ..] = net.daemons([Node::Balancer, Node::Worker, Node::Worker2], &services, "");
    let mut frontends: Vec<SocketAddr> = (80..=83).flat_map(load_balancer).collect();
    frontends.extend((30_080..=30_083).flat_map(|port| Node::Balancer.at(port)));
    let clients: [&[&str]; 2] = [&["198.51.100.2"], &["2001:db8:1::2"]];
    let wire = Wire::open(net.ns("client"), "eth0").unwrap();
    drop(wire);
    let segment = net.ns(Node::Balancer.segment());
    // What the segment sends to the node by its port, and what it hears from it there.
    let wire = Wire::open(segment, Node::Balancer.name()).unwrap();
    let sent = Capture::start(segment, Node::Balancer.name()).unwrap();
    let mut bench = Bench { daemon: &daemon, wire, sent, outcomes: BTreeMap::new() };
    let mut chance = Chance(11);
    for _ in 0..300 {
        bench.check(&any_packet(&mut chance, &frontends, clients));
    }
    // Fragments, the first one first and then without it; and a tunnel packet for a pod.
    let to = load_balancer(80)[0];
    let client: SocketAddr = "198.51.100.2:4999".parse().unwrap();
    let framed = |packet: &[u8]| json!({"frame": hexadecimal(&ethernet(Node::Balancer.mac(), [2, 0, 0, 0, 0, 9], packet))});
    for fragment in Datagram::new(client, to, &[7; 3000]).fragments(77, 1200) {
        bench.check(&framed(&fragment));
    }
    let lost = &Datagram::new(client, to, &[7; 3000]).fragments(78, 1200)[1];
    bench.check(&framed(lost));
    let pod = Pod { node: Node::Balancer, number: 1 }.at(POD_PORT)[0];
    let inner = Datagram::new(client, pod, b"hello").packet();
    for (peer, outcome) in [(Node::Worker.at(50_000)[0], "delivered"), (client, "dropped")] {
        let packet = tunnel(peer, Node::Balancer.at(0)[0].ip(), to, &inner);
        assert_eq!(bench.check(&framed(&packet))["outcome"], outcome);
    }
    for kind in ["forwarded", "delivered delivered_local", "dropped fragment_without_first"] {
        assert!(bench.outcomes.contains_key(kind), "{kind} is not in {:?}", bench.outcomes);
    }
    let requests: Vec<Value> =
        (0..200).map(|_| any_packet(&mut chance, &frontends, clients)).collect();
    assert_nothing_changes(&daemon, &requests);
}

/// The command in the balancer, by itself; its exit code and what it prints.
fn command(net: &Net, daemon: &Daemon, arguments: &[&str]) -> (i32, String) {
    let pins = daemon.pins().root().to_owned();
    let mut command = net.ns("balancer").command(binary());
    command.arg("trace").args(arguments).arg("--pin-dir").arg(pins);
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].map(|one| String::from_utf8(one).unwrap()).concat();
    (output.status.code().unwrap(), text)
}

#[test]
fn the_command_works_without_a_daemon_and_says_by_its_exit_code_what_becomes_of_a_packet() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbntracecli", network(2, 1));
    let daemon = net.balance(&l2_and_ipip(1..=2));
    let client = "198.51.100.2:4000";
    let served = vip_at(V4, 80).to_string();
    let (code, text) = command(&net, &daemon, &[client, &served]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("forwarded (XDP_TX): 203.0.113.10:80/TCP -> 10.0.1.1"), "{text}");
    for (to, flags, code, said) in [
        ("203.0.113.10:82/TCP", "syn", 1, "no_backend_reset"),
        ("203.0.113.10:80/TCP", "rst", 0, "forwarded"),
        ("192.0.2.9:80", "ack", 2, "no_frontend"),
        ("192.0.2.9:80", "what", 3, "what is no flag"),
        ("192.0.2.9", "ack", 3, "ADDRESS:PORT"),
    ] {
        let (was, text) = command(&net, &daemon, &[client, to, "--flags", flags]);
        assert_eq!(was, code, "{text}");
        assert!(text.contains(said), "{text}");
    }
    assert_eq!(command(&net, &daemon, &["--what"]).0, 3);
    assert_eq!(command(&net, &daemon, &[client, &served, "--device", "eth9"]).0, 3);
    // A capture of both kinds; of several packets the worst counts.
    let (_, one) = command(&net, &daemon, &[client, &served, "-o", "json"]);
    let one: Value = serde_json::from_str(&one).unwrap();
    let (_, other) = command(&net, &daemon, &[client, "192.0.2.9:80", "-o", "json"]);
    let other: Value = serde_json::from_str(&other).unwrap();
    let file = net.scratch().file("dump.pcap");
    let recording = xdp_lb::lab::Recording {
        frames: [&one, &other]
            .map(|trace| xdp_lb::lab::Captured {
                at: std::time::SystemTime::now(),
                sent: false,
                bytes: bytes(&trace["packet"]["frame"]),
            })
            .to_vec(),
        dropped: 0,
    };
    recording.write_pcap(&file).unwrap();
    let file = file.display().to_string();
    let (code, text) = command(&net, &daemon, &["--file", &file, "-o", "json"]);
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((code, lines.len()), (2, 2), "{text}");
    assert_eq!((&lines[0]["number"], &lines[0]["result"]), (&json!(1), &one["result"]));
    assert_eq!(command(&net, &daemon, &["--file", &file, "--number", "1"]).0, 0);
    assert_eq!(command(&net, &daemon, &["--file", &file, "--number", "3"]).0, 3);
    let pins = daemon.pins().clone();
    daemon.kill();
    assert!(pins.exists().unwrap());
    let mut without = net.ns("balancer").command(binary());
    without.args(["trace", client, &served, "--pin-dir"]).arg(pins.root());
    assert!(without.output().unwrap().status.success(), "it needs no daemon");
    // Elsewhere there is no such device.
    let mut elsewhere = net.ns("client").command(binary());
    elsewhere.args(["trace", client, &served, "--pin-dir"]).arg(pins.root());
    let output = elsewhere.output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    pins.clear().unwrap();
}
