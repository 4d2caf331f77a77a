//! `monitor` tells of each packet once, and of what became of it; packets do not notice.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Read as _},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use pcap_file::pcapng::{Block, PcapNgReader, blocks::enhanced_packet::EnhancedPacketOption};
use serde_json::Value;
use xdp_lb::lab::{
    Capture, Node, Pod, PodsSpec,
    forge::{Datagram, Wire, ethernet},
};
use xdp_lb_netns_tests::{
    Daemon, Net, POD_PORT, PodService, PodsNet, Service, V4, V6, binary, config, far,
    load_balancer, near, network, vip_at, wait_until, without_root,
};

const BEGUN: &str = "the programs that tell of them are attached";
const ENDED: &str = "the plain programs are attached again";
/// Frames at a time that none of is lost: a veth device keeps 256 for who does not run just now.
const AT_ONCE: usize = 200;
const FOUR: SocketAddr = SocketAddr::new(V4, 80);
const TUNNEL: SocketAddr = SocketAddr::new(V4, 81);
/// The balancer's MAC address on the near segment.
const BALANCER: [u8; 6] = [2, 0, 0, 0, 1, 7];

/// `xdp-lb monitor` at work.
struct Watch {
    process: Child,
    packets: Arc<Mutex<Vec<Value>>>,
    reader: Option<JoinHandle<()>>,
}

impl Watch {
    /// Begins to watch; the packets of everything behind this are told of.
    fn start(daemon: &mut Daemon, arguments: &[&str]) -> Self {
        let at = daemon.log().len();
        wait_until("the API is served", || daemon.socket().exists());
        let mut command = Command::new(binary());
        command.args(["monitor", "-o", "json"]).args(arguments);
        command.arg("--socket").arg(daemon.socket());
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let packets: Arc<Mutex<Vec<Value>>> = Arc::default();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let into = packets.clone();
        let reader = thread::spawn(move || {
            for line in lines {
                into.lock().unwrap().push(serde_json::from_str(&line.unwrap()).unwrap());
            }
        });
        daemon.wait_for(at, BEGUN);
        // Its filter is in force a moment later.
        thread::sleep(Duration::from_secs(2));
        Self { process, packets, reader: Some(reader) }
    }

    fn packets(&self) -> Vec<Value> {
        self.packets.lock().unwrap().clone()
    }

    /// Waits until nothing more is told, nor what was missed, which is told by the second.
    fn settle(&self) {
        wait_until("those that wait are told", || {
            let had = self.packets().len();
            thread::sleep(Duration::from_millis(2500));
            self.packets().len() == had
        });
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id() as i32), signal).unwrap();
    }

    /// Ends it as Ctrl-C does; what it was told, and how many more there were.
    fn stop(mut self) -> (Vec<Value>, u64) {
        self.signal(Signal::SIGINT);
        assert!(self.process.wait().unwrap().success());
        self.reader.take().unwrap().join().unwrap();
        let mut said = String::new();
        self.process.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        let lost = said
            .split_once(" packets shown, ")
            .map_or(0, |(_, rest)| rest.split(' ').next().unwrap().parse().unwrap());
        (self.packets(), lost)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn l2_and_ipip() -> String {
    let config = config(&[
        Service::new("four", "l2").both(FOUR).backends((1..=2).map(near)),
        Service::new("tunnel", "ipip").both(TUNNEL).backends((1..=2).map(far)),
        Service::new("empty", "l2").tcp(vip_at(V6, 80)),
    ]);
    // The last one has none.
    format!("{}\n", config.trim_end().trim_end_matches("backends:").to_owned() + "backends: []")
}

fn net(name: &str) -> (Net, Daemon) {
    let net = Net::up(name, network(2, 2));
    let daemon = net.balance(&l2_and_ipip());
    (net, daemon)
}

/// How many packets were forwarded for each frontend.
fn forwarded(daemon: &Daemon) -> BTreeMap<String, u64> {
    daemon.stats().frontends.iter().map(|one| (one.frontend.clone(), one.packets)).collect()
}

fn text<'a>(packet: &'a Value, key: &str) -> &'a str {
    packet[key].as_str().unwrap_or_default()
}

/// Sends so many datagrams to a frontend, by a router.
fn send(net: &Net, to: SocketAddr, count: usize) {
    let wire = Wire::open(net.ns("router"), "near").unwrap();
    for number in 0..count {
        let from =
            SocketAddr::new("198.51.100.2".parse().unwrap(), 2000 + (number % 20_000) as u16);
        let datagram = Datagram::new(from, to, b"a datagram").packet();
        let frame = ethernet(BALANCER, [2, 0, 0, 0, 0, 9], &datagram);
        wire.send(&frame).unwrap();
    }
}

#[test]
fn each_packet_is_told_once_with_what_became_of_it() {
    if without_root() {
        return;
    }
    let (net, mut daemon) = net("xlbnmonitor");
    let _servers = net.serve(["b1", "b2"], &[FOUR]);
    let _tunnels = net.terminate(["t1", "t2"]);
    let _far = net.serve(["t1", "t2"], &[TUNNEL]);
    let before = forwarded(&daemon);
    let sent = Capture::start(net.ns("near"), "balancer").unwrap();
    let watch = Watch::start(&mut daemon, &["--after", "--capture", "1536"]);
    let client = net.client();
    for frontend in [FOUR, TUNNEL] {
        for outcome in client.ask_each(frontend, 40_000..=40_019).unwrap() {
            let answer = outcome.answer.unwrap();
            let of = |packet: &&Value| {
                text(packet, "headers").starts_with(&format!("198.51.100.2:{} ", outcome.port))
                    && text(packet, "frontend") == format!("{frontend}/TCP")
                    && packet["after"] == false
            };
            wait_until("its packets are told", || watch.packets().iter().any(|one| of(&one)));
            let told = watch.packets();
            let mut backends: Vec<_> =
                told.iter().filter(of).map(|one| text(one, "backend")).collect();
            backends.dedup();
            let [backend] = backends[..] else { panic!("{backends:?}") };
            let address = backend.parse::<SocketAddr>().unwrap().ip();
            assert_eq!(xdp_lb_netns_tests::host_name(address), answer.backend);
        }
    }
    // Refused: there is no backend, and no such port.
    assert!(client.ask(vip_at(V6, 80), None).is_err());
    assert!(client.ask(SocketAddr::new(V4, 9), None).is_err());
    let reasons = ["no_backend_reset", "unknown_port_reset"];
    wait_until("they are told", || {
        let told = watch.packets();
        reasons.iter().all(|reason| told.iter().any(|one| text(one, "reason") == *reason))
    });
    let (told, lost) = watch.stop();
    assert_eq!(lost, 0);

    let mut counted: BTreeMap<String, u64> = before.keys().map(|key| (key.clone(), 0)).collect();
    for packet in &told {
        if packet["after"] == false && text(packet, "outcome") == "forwarded" {
            *counted.entry(text(packet, "frontend").to_owned()).or_default() += 1;
        }
    }
    let passed = forwarded(&daemon);
    let passed: BTreeMap<_, _> =
        passed.into_iter().map(|(key, count)| (key.clone(), count - before[&key])).collect();
    assert_eq!(counted, passed, "as many as the data path counted");

    // What it was afterwards is what the wire saw.
    let wire: Vec<Vec<u8>> = sent.stop().unwrap().frames.into_iter().map(|one| one.bytes).collect();
    let after: Vec<_> = told.iter().filter(|one| one["after"] == true).collect();
    assert!(after.len() as u64 >= passed.values().sum());
    for packet in after {
        let frame = text(packet, "frame");
        let bytes: Vec<u8> = (0..frame.len() / 2)
            .map(|at| u8::from_str_radix(&frame[2 * at..2 * at + 2], 16).unwrap())
            .collect();
        assert!(wire.contains(&bytes), "{packet}");
    }
}

#[test]
fn filters_and_samples_let_through_what_they_say() {
    if without_root() {
        return;
    }
    let (net, mut daemon) = net("xlbnmonfilter");
    let frontend = format!("{FOUR}/UDP");
    let tenth = Watch::start(&mut daemon, &["--sample", "10", "--frontend", &frontend]);
    let watch = |arguments: &[&str]| {
        // The programs run already.
        let mut command = Command::new(binary());
        command.args(["monitor", "-o", "json", "-n", "1"]).args(arguments);
        command.arg("--socket").arg(daemon.socket()).stdout(Stdio::piped()).spawn().unwrap()
    };
    let backend = watch(&["--backend", "10.0.1.11:80", "--protocol", "UDP"]);
    let port = watch(&["--port", "2007", "--host", "198.51.100.2"]);
    let mut never = watch(&["--host", "198.51.100.3"]);
    thread::sleep(Duration::from_secs(5));
    send(&net, FOUR, 5000);
    send(&net, TUNNEL, 100);
    let first = |process: Child| -> Value {
        serde_json::from_slice(&process.wait_with_output().unwrap().stdout).unwrap()
    };
    assert_eq!(first(backend)["backend"], "10.0.1.11:80");
    assert!(text(&first(port), "headers").starts_with("198.51.100.2:2007 > "));
    assert_eq!(never.try_wait().unwrap(), None);
    never.kill().unwrap();
    never.wait().unwrap();
    tenth.settle();
    let (told, lost) = tenth.stop();
    assert!(told.iter().all(|one| text(one, "frontend") == frontend), "{:?}", told.first());
    // 500 are expected; the standard deviation is 21.
    let count = told.len() as u64 + lost;
    assert!((380..=620).contains(&count), "{count}");
    let refused = daemon.ask(&["monitor", "--frontend", "192.0.2.1:80/TCP"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("there is no frontend 192.0.2.1:80/TCP")
    );
}

#[test]
fn a_capture_file_has_each_packet_with_its_verdict() {
    if without_root() {
        return;
    }
    let (net, mut daemon) = net("xlbnmonpcap");
    let file = net.scratch().file("seen.pcapng");
    let name = file.display().to_string();
    let watch = Watch::start(&mut daemon, &["--pcap", &name, "--protocol", "17"]);
    send(&net, FOUR, 30);
    let read = || {
        let mut packets = Vec::new();
        let mut reader = PcapNgReader::new(fs::File::open(&file).unwrap()).unwrap();
        while let Some(Ok(block)) = reader.next_block() {
            let Block::EnhancedPacket(packet) = block else { continue };
            let comment = packet.options.iter().find_map(|one| {
                let EnhancedPacketOption::Comment(text) = one else { return None };
                Some(text.to_string())
            });
            packets.push((packet.original_len, packet.data.len(), comment.unwrap()));
        }
        packets
    };
    // Whole at any moment.
    wait_until("they are written", || read().len() == 30);
    for (length, captured, comment) in read() {
        assert_eq!((length, captured), (52, 52));
        assert!(
            comment.starts_with("forwarded (XDP_TX): 203.0.113.10:80/UDP -> 10.0.1.1"),
            "{comment}"
        );
    }
    watch.stop();
    let tcpdump = Command::new("tcpdump").args(["-nr", &name]).output().unwrap();
    assert!(tcpdump.status.success());
    assert_eq!(String::from_utf8_lossy(&tcpdump.stdout).lines().count(), 30);
}

#[test]
fn under_load_samples_are_lost_and_counted_and_packets_are_not() {
    if without_root() {
        return;
    }
    let (net, mut daemon) = net("xlbnmonload");
    let _servers = net.serve(["b1", "b2"], &[FOUR]);
    let watch = Watch::start(&mut daemon, &["--frontend", &format!("{TUNNEL}/UDP")]);
    let before = forwarded(&daemon)[&format!("{TUNNEL}/UDP")];
    // It reads nothing any more.
    watch.signal(Signal::SIGSTOP);
    let count = 60_000;
    let passed = || forwarded(&daemon)[&format!("{TUNNEL}/UDP")] - before;
    thread::scope(|scope| {
        let flood = scope.spawn(|| {
            for sent in (0..count).step_by(AT_ONCE) {
                send(&net, TUNNEL, AT_ONCE);
                wait_until("they have passed", || passed() == (sent + AT_ONCE) as u64);
            }
        });
        for outcome in net.client().ask_each(FOUR, 40_000..=40_099).unwrap() {
            outcome.answer.unwrap();
        }
        flood.join().unwrap();
    });
    watch.signal(Signal::SIGCONT);
    assert_eq!(passed(), count as u64);
    watch.settle();
    let (told, lost) = watch.stop();
    assert!(lost > 0 && !told.is_empty(), "{} told, {lost} lost", told.len());
    assert_eq!(told.len() as u64 + lost, count as u64, "none is forgotten");
}

#[test]
fn the_plain_programs_run_whenever_nobody_watches() {
    if without_root() {
        return;
    }
    let (net, mut daemon) = net("xlbnmonends");
    let _servers = net.serve(["b1", "b2"], &[FOUR]);
    let stages = daemon.pins().stages(0).parent().unwrap().to_owned();
    let pinned = || fs::read_dir(&stages).unwrap().count();
    let attached = || {
        let shown = net.ip("balancer", "-details link show dev eth0");
        shown.split_whitespace().skip_while(|word| *word != "prog/xdp").nth(2).map(str::to_owned)
    };
    let plain = attached().unwrap();
    let at = daemon.log().len();
    let watch = Watch::start(&mut daemon, &[]);
    assert_ne!(attached().unwrap(), plain);
    assert_eq!(pinned(), 2);
    let held: Vec<_> = net.client().hold_each(FOUR, 40_000..=40_019).unwrap();
    watch.stop();
    daemon.wait_for(at, ENDED);
    assert_eq!((attached().unwrap(), pinned()), (plain.clone(), 1));

    // It stops while somebody watches.
    let watch = Watch::start(&mut daemon, &[]);
    let config = fs::read_to_string(daemon.file()).unwrap();
    assert_eq!(daemon.stop().code, Some(0));
    drop(watch);
    assert_eq!((attached().unwrap(), pinned()), (plain, 1));
    let mut daemon = net.balance(&config);

    // It dies while somebody watches.
    let mut watch = Watch::start(&mut daemon, &[]);
    daemon.kill();
    assert!(!watch.process.wait().unwrap().success(), "the stream has ended");
    let mut held: Vec<_> = held.into_iter().map(|one| (one, ())).collect();
    for (one, ()) in &mut held {
        one.ask().unwrap();
    }
    let daemon = net.balance(&config);
    assert_eq!(pinned(), 1);
    for (one, ()) in &mut held {
        one.ask().unwrap();
    }
    assert_eq!(daemon.stats().devices.len(), 1);
}

#[test]
fn answers_of_pods_are_told_on_their_way_out() {
    if without_root() {
        return;
    }
    let net = PodsNet::up("xlbnmonpods", PodsSpec::default().pods(1));
    let _servers = net.serve();
    let pod = Pod { node: Node::Worker, number: 1 };
    let service = PodService::new("web", "geneve").at(&[80], &[30_080]).pods([pod], POD_PORT);
    let [_balancer, mut worker] = net.daemons([Node::Balancer, Node::Worker], &[service], "");
    let watch = Watch::start(&mut worker, &["--after"]);
    let frontend = load_balancer(80)[0];
    net.client().ask(frontend, Some(40_000)).unwrap();
    let there = |direction: &str, after: bool, headers: &str| {
        watch.packets().iter().any(|one| {
            one["direction"] == direction
                && one["after"] == after
                && text(one, "headers").contains(headers)
        })
    };
    let client = "198.51.100.2:40000";
    wait_until("they are told", || {
        there("out", true, &format!("{frontend} > {client} TCP SYN ACK"))
    });
    let tunnel = format!("Geneve for {frontend} | {client} > ");
    assert!(there("in", false, &tunnel), "as it came");
    assert!(there("in", true, &format!("{client} > ")), "unwrapped");
    assert!(there("out", false, &format!(":{POD_PORT} > {client} TCP SYN ACK")), "from the pod");
    watch.stop();
}
