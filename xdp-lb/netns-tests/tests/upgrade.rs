//! The daemon is killed, started anew and upgraded in the middle of a stream of packets whose number
//! is known: each one arrives, where it belongs. Another version of the ABI is refused.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

use std::{fs, net::SocketAddr, path::Path, process::Stdio};

use nix::sys::signal::Signal;
use xdp_lb::{
    lab::{
        Namespace, Node, PodsSpec,
        pods::{LOAD_BALANCER_4, LOAD_BALANCER_6},
    },
    pins::Pins,
};
use xdp_lb_netns_tests::{
    Daemon, Ended, HASH_KEY_TEXT, Net, Prediction, Scratch, Service, Stream, V4, V6, binary,
    config, far, host_name, near, near6, network, run, run_here, vip_at, without_root,
};
use xdp_lb_plan::model::Protocol;

/// Ids of the link on `eth0`, and of the program that it runs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Attached {
    link: u64,
    program: u64,
}

fn attached(daemon: &Daemon) -> Attached {
    let [link] = daemon.pins().links().unwrap().try_into().unwrap();
    let path = daemon.pins().link(&link);
    let output = std::process::Command::new("bpftool")
        .args(["-j", "link", "show", "pinned"])
        .arg(&path)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let shown: serde_json::Value = serde_json::from_str(&text).unwrap();
    let shown = shown.get(0).unwrap_or(&shown);
    Attached { link: shown["id"].as_u64().unwrap(), program: shown["prog_id"].as_u64().unwrap() }
}

/// Pings that run until they are counted: so many, one every 10 ms.
struct Pings(Vec<std::process::Child>);

const PINGS: usize = 500;

impl Pings {
    fn start(client: &Namespace, addresses: &[std::net::IpAddr]) -> Self {
        let ping = |address: &std::net::IpAddr| {
            let mut ping = client.command("ping");
            ping.args(["-n", "-q", "-i", "0.01", "-W", "2", "-c", &PINGS.to_string()]);
            ping.arg(address.to_string()).stdout(Stdio::piped()).spawn().unwrap()
        };
        Self(addresses.iter().map(ping).collect())
    }

    fn assert_all_answered(self) {
        for child in self.0 {
            let output = child.wait_with_output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(text.contains(&format!("{PINGS} received")), "{text}");
            assert!(!text.contains("duplicates"), "{text}");
        }
    }
}

#[test]
fn a_stream_of_packets_survives_kill_and_upgrade_without_a_loss() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbnupgrade", network(2, 2));
    let frontends: [SocketAddr; 3] = [vip_at(V4, 80), vip_at(V6, 80), vip_at(V4, 81)];
    let services = [
        Service::new("four", "l2").udp(frontends[0]).backends([near(1), near(2)]),
        Service::new("six", "l2").udp(frontends[1]).backends([near6(1), near6(2)]),
        Service::new("tunnel", "ipip").udp(frontends[2]).backends([far(1), far(2)]),
    ];
    let text = config(&services);
    let mut balancer = net.balance(&text);
    let mut unwrapping = net.terminate(["t1", "t2"]);
    let mut seen = vec![attached(&balancer)];
    let mut seen_there = vec![attached(&unwrapping[0])];

    let receivers: Vec<_> = [("b1", 0..2), ("b2", 0..2), ("t1", 2..3), ("t2", 2..3)]
        .into_iter()
        .flat_map(|(node, at)| frontends[at].iter().map(move |frontend| (node, *frontend)))
        .map(|(node, frontend)| (node.to_owned(), net.ns(node), frontend))
        .collect();
    let stream = Stream::start(net.ns("client"), &receivers, &frontends, 8);
    // Answered by a program that the first one goes on with.
    let pings = Pings::start(net.ns("client"), &[V4, V6]);
    stream.go_on_for(100);
    balancer.signal(Signal::SIGKILL);
    balancer.kill();
    stream.go_on_for(200);
    balancer = net.balance(&text);
    seen.push(attached(&balancer));
    stream.go_on_for(100);
    // An upgrade is an orderly stop and the start of another build; this one has the same programs,
    // but the kernel has them anew.
    for _ in 0..2 {
        let ended = balancer.stop();
        assert_eq!(ended.code, Some(0), "{ended}");
        stream.go_on_for(50);
        balancer = net.balance(&text);
        assert!(balancer.log().contains("took over the running data path"), "{}", balancer.log());
        seen.push(attached(&balancer));
        stream.go_on_for(100);
    }
    // The same where the tunnel ends.
    unwrapping.remove(0).kill();
    stream.go_on_for(100);
    unwrapping.extend(net.terminate(["t1"]));
    seen_there.push(attached(unwrapping.last().unwrap()));
    stream.go_on_for(200);
    pings.assert_all_answered();
    let arrivals = stream.stop();

    for seen in [&seen, &seen_there] {
        assert!(seen.windows(2).all(|two| two[0].link == two[1].link), "{seen:?}");
        assert!(seen.windows(2).all(|two| two[0].program != two[1].program), "{seen:?}");
    }
    println!(
        "{} datagrams in {} flows: {:?}; programs {seen:?}",
        arrivals.total(),
        arrivals.flows.len(),
        arrivals.by_node()
    );
    assert!(arrivals.sent > 1000, "{}", arrivals.sent);
    arrivals.assert_all_arrived_at(|frontend, port| {
        let service = frontends.iter().zip(&services).find(|(one, _)| **one == frontend).unwrap().1;
        let client = if frontend.is_ipv4() { "198.51.100.2" } else { "2001:db8:1::2" };
        let client = SocketAddr::new(client.parse().unwrap(), port);
        host_name(Prediction::new(service, frontend, Protocol::Udp).backend(client))
    });
    let forwarded: u64 = balancer.stats().frontends.iter().map(|one| one.packets).sum();
    assert_eq!(forwarded, arrivals.total(), "counters go on");
    assert_eq!(balancer.reason("echo_answered"), 2 * PINGS as u64);
}

/// The configuration of a node of the pods' lab.
fn node_config(node: Node) -> String {
    let mut services = String::new();
    // In their own pods, in others' by tunnel; and where no instance runs.
    let modes = [
        ("tunnel", "geneve", &[Node::Balancer, Node::Worker, Node::Worker2][..]),
        ("plain", "snat", &[Node::Plain]),
    ];
    for ((name, mode, nodes), port) in modes.into_iter().zip(PODS_PORTS) {
        services += &format!("  - name: {name}\n    mode: {mode}\n    frontends:\n");
        for address in [LOAD_BALANCER_4, LOAD_BALANCER_6] {
            services +=
                &format!("      - {{address: \"{address}\", port: {port}, protocol: UDP}}\n");
        }
        services += "    backends:\n";
        for pod in nodes.iter().flat_map(|&node| PodsSpec::default().pods_of(node)) {
            for (at, node) in pod.at(8080).into_iter().zip(pod.node.at(0)) {
                let (address, node) = (at.ip(), node.ip());
                services +=
                    &format!("      - {{address: \"{address}\", port: 8080, node: \"{node}\"}}\n");
            }
        }
    }
    let (pods4, pods6) = (node.pod_network_4(), node.pod_network_6());
    format!(
        "hashKey: \"{HASH_KEY_TEXT}\"\ndevices: [{{name: eth0}}]\nterminate:\n  peers: \
         [10.0.0.0/16, \"2001:db8:10::/44\"]\n  pods: [{pods4}, \"{pods6}\"]\nlimits: {{frontends: \
         64, backends: 64, slots: 65536, flows: 4096}}\nservices:\n{services}"
    )
}

/// Ports of the services with pods.
const PODS_PORTS: [u16; 2] = [80, 81];

#[test]
fn pods_get_and_answer_every_packet_while_every_node_is_upgraded() {
    if without_root() {
        return;
    }
    let lab = PodsSpec::default().up("xlbnuppods").unwrap();
    let scratch = Scratch::new("xlbnuppods");
    let start = |node: Node| {
        let space = lab.node(node).unwrap();
        run(&scratch, space, node.name(), &node_config(node), &[]).unwrap()
    };
    let nodes = [Node::Balancer, Node::Worker, Node::Worker2];
    let mut daemons: Vec<Daemon> = nodes.into_iter().map(start).collect();
    let receivers: Vec<_> = lab
        .pods()
        .into_iter()
        .flat_map(|pod| pod.at(8080).map(|at| (pod, at)))
        .map(|(pod, at)| (pod.name(), lab.pod(pod).unwrap(), at))
        .collect();
    let frontends: Vec<SocketAddr> = PODS_PORTS
        .into_iter()
        .flat_map(|port| [LOAD_BALANCER_4, LOAD_BALANCER_6].map(|one| SocketAddr::new(one, port)))
        .collect();
    let stream = Stream::start(lab.ns("client").unwrap(), &receivers, &frontends, 6);
    stream.go_on_for(100);
    for node in nodes {
        daemons.remove(0).kill();
        stream.go_on_for(50);
        let killed = start(node);
        stream.go_on_for(50);
        assert_eq!(killed.stop().code, Some(0));
        stream.go_on_for(50);
        daemons.push(start(node));
        stream.go_on_for(100);
    }
    let arrivals = stream.stop();
    println!("{} datagrams: {:?}", arrivals.total(), arrivals.by_node());
    arrivals.assert_all_arrived_at(|frontend, port| arrivals.first(frontend, port));
    // Pods of all nodes had some.
    for node in Node::ALL {
        let pods = PodsSpec::default().pods_of(node);
        assert!(pods.iter().any(|pod| arrivals.by_node().contains_key(&pod.name())), "{node:?}");
    }
}

/// `xdp-lb` with these arguments, in the balancer.
fn xdp_lb(net: &Net, arguments: &str, pins: &Path) -> (Option<i32>, String) {
    let mut command = net.ns("balancer").command(binary());
    let output = command.args(arguments.split(' ')).arg("--pin-dir").arg(pins).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn another_version_of_the_abi_is_refused_and_goes_on_until_it_is_removed() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbnabi", network(3, 0));
    let frontend = vip_at(V4, 80);
    let services = [Service::new("four", "l2").tcp(frontend).backends((1..=3).map(near))];
    let text = config(&services);
    let _servers = net.serve(["b1", "b2", "b3"], &[frontend]);
    let daemon = net.balance(&text);
    let mut held = net.client().hold_each(frontend, 40_000..=40_039).unwrap();
    let backends: Vec<String> = held.iter_mut().map(|one| one.ask().unwrap().backend).collect();
    let file = daemon.file().to_owned();
    let pins: Pins = daemon.pins().clone();
    let root = pins.root().to_owned();
    daemon.kill();

    // What an older version would have left: its data path runs, under its own number.
    let ours = pins.maps().parent().unwrap().to_owned();
    fs::rename(&ours, root.join("v1")).unwrap();
    let start = || -> Ended {
        let mut command = net.ns("balancer").command(binary());
        command.arg("run").arg("--config").arg(&file).arg("--pin-dir").arg(&root);
        run_here(command)
    };
    let ended = start();
    assert_eq!(ended.code, Some(1), "{ended}");
    let ours = ours.file_name().unwrap().to_string_lossy().into_owned();
    let remedy = format!("xdp-lb clean --all-versions --pin-dir {}", root.display());
    for part in ["another version of xdp-lb (v1, this one is ", &ours, "goes on as it is", &remedy]
    {
        assert!(ended.log.contains(part), "no {part:?} in {ended}");
    }
    // The other commands say the same, and touch nothing.
    for command in ["clean", "stats", "maglev digest"] {
        let (code, said) = xdp_lb(&net, command, &root);
        assert_eq!(code, Some(1), "{command}: {said}");
        assert!(said.contains(&remedy), "{command}: {said}");
    }
    assert!(net.has_xdp("balancer", "eth0"));
    for (one, backend) in held.iter_mut().zip(&backends) {
        assert_eq!(one.ask().unwrap().backend, *backend, "the old data path goes on");
    }
    net.client().ask(frontend, None).unwrap();

    // What the message says to do works; a service at rest has no flow that could move.
    let (code, said) = xdp_lb(&net, "clean --all-versions", &root);
    assert_eq!((code, said.as_str()), (Some(0), "removed; it was attached to eth0\n"));
    assert!(!root.exists() && !net.has_xdp("balancer", "eth0"));
    let _daemon = net.balance(&text);
    for (one, backend) in held.iter_mut().zip(&backends) {
        assert_eq!(one.ask().unwrap().backend, *backend, "where the hash says");
    }

    // A directory of somebody else is not cleaned, whatever was asked for.
    let foreign = net.scratch().pins("foreign");
    fs::create_dir_all(foreign.join("maps")).unwrap();
    for arguments in ["clean", "clean --all-versions"] {
        let (code, said) = xdp_lb(&net, arguments, &foreign);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("has something else in it (maps)"), "{said}");
    }
    assert!(foreign.join("maps").exists());
}
