//! Sockets of a node and of its pods reach services without kube-proxy: real programs, real sockets.
//!
//! The programs of one test's daemon serve this whole process, so one test runs at a time.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use xdp_lb::lab::{
    ApiServer, Cgroup, Namespace, Node, Objects, Pod, PodsSpec, Server,
    dns::{self, Names},
};
use xdp_lb_netns_tests::{Daemon, POD_PORT, PodsNet, run, wait_until, without_root};

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

const NODE: Node = Node::Balancer;

/// A cluster that a stand-in of the API server tells of, with a daemon in one node.
struct World {
    objects: Objects,
    _api: ApiServer,
    daemon: Option<Daemon>,
    config: String,
    _servers: Vec<Server>,
    net: PodsNet,
    cgroup: Cgroup,
    _turn: MutexGuard<'static, ()>,
}

impl World {
    /// Nothing where this machine cannot run it.
    fn up(name: &str, more: &str, fill: impl FnOnce(&Objects)) -> Option<Self> {
        if without_root() {
            return None;
        }
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let cgroup = match Cgroup::enter("xlb-sockets-") {
            Ok(cgroup) => cgroup,
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "skipped: no cgroup for the test: {error}");
                return None;
            }
        };
        let net = PodsNet::up(name, PodsSpec::default().pods(3));
        let servers = net.serve();
        let objects = Objects::default();
        objects.put("nodes", node("balancer", Node::Balancer));
        objects.put("nodes", node("worker", Node::Worker));
        fill(&objects);
        let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let listener = net.ns(NODE.name()).run(listen).unwrap();
        let port = listener.local_addr().unwrap().port();
        let api = ApiServer::start(objects.clone(), listener).unwrap();
        let config = format!(
            "{more}\nkubernetes: {{apiServers: [\"http://127.0.0.1:{port}\"], nodeName: balancer, \
             healthz: [], events: false, healthCheckNodePorts: false}}\n"
        );
        let mut world = Self {
            objects,
            _api: api,
            daemon: None,
            config,
            _servers: servers,
            net,
            cgroup,
            _turn: turn,
        };
        world.start("enabled: true");
        Some(world)
    }

    fn text(&self, socket_lb: &str) -> String {
        let cgroup = self.cgroup.path().display();
        let lines = format!("socketLB: {{cgroupRoot: {cgroup}, {socket_lb}}}\n{}", self.config);
        xdp_lb_netns_tests::pods_config(NODE, &[], &lines)
    }

    fn start(&mut self, socket_lb: &str) {
        let config = self.text(socket_lb);
        let space = self.net.ns(NODE.name());
        let daemon = run(self.net.scratch(), space, "sockets", &config, &[]);
        self.daemon = Some(daemon.unwrap_or_else(|ended| panic!("{ended}")));
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().unwrap()
    }

    /// The node's own namespace.
    fn host(&self) -> &Namespace {
        self.net.ns(NODE.name())
    }

    /// That of a pod on the node which serves nothing here.
    fn pod(&self) -> &Namespace {
        self.net.lab().pod(Pod { node: NODE, number: 3 }).unwrap()
    }

    /// Waits until the data path has a frontend with so many backends.
    fn serves(&self, frontend: &str, backends: usize) {
        wait_until(&format!("{frontend} has {backends} backends"), || {
            // A daemon that has just started may not answer yet.
            let told = self.daemon().ask(&["service", "list", "-o", "json"]).stdout;
            let all: Value = serde_json::from_slice(&told).unwrap_or_default();
            all.as_array().into_iter().flatten().any(|one| {
                one["frontend"] == frontend
                    && one["state"] == "served"
                    && one["backends"].as_array().unwrap().len() == backends
            })
        });
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Before its cgroup and its namespace.
        self.daemon = None;
    }
}

fn node(name: &str, node: Node) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {},
        "status": {"addresses": [
            {"type": "InternalIP", "address": node.v4()},
            {"type": "InternalIP", "address": node.v6()},
        ]},
    })
}

/// Service `shop/NAME` at 10.96.0.NUMBER and fd00:96::NUMBER, TCP and UDP on one port; `more` goes
/// into its `spec`.
fn service(name: &str, number: u8, port: u16, more: Value) -> Value {
    let ips = [cluster_ip(number, 0), cluster_ip(number, 1)];
    let node_port = |protocol| {
        let mut one = json!({"name": protocol, "port": port, "protocol": protocol});
        if more["type"] != Value::Null {
            one["nodePort"] = json!(30_000 + u16::from(number));
        }
        one
    };
    let mut spec = json!({
        "clusterIP": ips[0],
        "clusterIPs": ips,
        "ipFamilies": ["IPv4", "IPv6"],
        "ports": [node_port("TCP"), node_port("UDP")],
    });
    let mut status = json!({});
    for (key, value) in more.as_object().unwrap() {
        match key.as_str() {
            "lb" => status = json!({"loadBalancer": {"ingress": [{"ip": value}]}}),
            _ => spec[key] = value.clone(),
        }
    }
    json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec, "status": status})
}

fn cluster_ip(number: u8, family: usize) -> IpAddr {
    match family {
        0 => Ipv4Addr::new(10, 96, 0, number).into(),
        _ => Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, number.into()).into(),
    }
}

fn at(number: u8, port: u16) -> [SocketAddr; 2] {
    [0, 1].map(|family| SocketAddr::new(cluster_ip(number, family), port))
}

/// Its slices: pods that are ready.
fn put_slices(objects: &Objects, service: &str, pods: &[Pod], port: u16) {
    for (family, kind) in ["IPv4", "IPv6"].into_iter().enumerate() {
        let endpoint = |pod: &Pod| {
            json!({
                "addresses": [pod.at(0)[family].ip()],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": pod.node.name(),
            })
        };
        let ports = ["TCP", "UDP"];
        let ports = ports.map(|one| json!({"name": one, "port": port, "protocol": one}));
        objects.put(
            "endpointslices",
            json!({
                "metadata": {
                    "name": format!("{service}-{family}"),
                    "namespace": "shop",
                    "labels": {"kubernetes.io/service-name": service},
                },
                "addressType": kind,
                "ports": ports,
                "endpoints": pods.iter().map(endpoint).collect::<Vec<_>>(),
            }),
        );
    }
}

fn here(number: u8) -> Pod {
    Pod { node: Node::Balancer, number }
}

fn there(number: u8) -> Pod {
    Pod { node: Node::Worker, number }
}

/// `shop/web` at 10.96.0.1:80, two pods, one of them on another node.
fn web(objects: &Objects) {
    objects.put("services", service("web", 1, 80, json!({})));
    put_slices(objects, "web", &[here(1), there(1)], POD_PORT);
}

/// Who answers an HTTP request over a connection.
fn ask(mut stream: &TcpStream) -> String {
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    write!(stream, "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    backend(&text)
}

fn backend(text: &str) -> String {
    let (_, rest) = text.split_once("\"backend\": \"").unwrap_or_else(|| panic!("{text}"));
    rest.split('"').next().unwrap().to_owned()
}

/// Who answers a datagram, and from where.
fn ask_by_datagram(socket: &UdpSocket, to: SocketAddr) -> (String, SocketAddr) {
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket.send_to(b"hello", to).unwrap();
    let mut buffer = [0; 1500];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    (backend(&String::from_utf8_lossy(&buffer[..length])), from)
}

fn any(of: SocketAddr) -> UdpSocket {
    let any: IpAddr =
        if of.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    UdpSocket::bind((any, 0)).unwrap()
}

fn mapped(of: SocketAddr) -> SocketAddr {
    match of.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), of.port()),
        IpAddr::V6(_) => of,
    }
}

fn names(pods: &[Pod]) -> BTreeSet<String> {
    pods.iter().map(|pod| pod.name()).collect()
}

#[test]
fn cluster_ips_answer_the_host_and_pods_over_both_families_and_mapped() {
    let Some(world) = World::up("s9cluster", "", web) else { return };
    world.serves("10.96.0.1:80/TCP", 2);
    world.serves("[fd00:96::1]:80/TCP", 2);
    for space in [world.host(), world.pod()] {
        let [v4, v6] = at(1, 80);
        for to in [v4, v6, mapped(v4)] {
            let seen: BTreeSet<String> = space
                .run(|| {
                    let one = |_| {
                        let stream = TcpStream::connect(to).unwrap();
                        assert_eq!(stream.peer_addr().unwrap(), to, "getpeername(2)");
                        ask(&stream)
                    };
                    (0..40).map(one).collect()
                })
                .unwrap();
            assert_eq!(seen, names(&[here(1), there(1)]), "by chance, over 40 connections");
        }
        let curl = space.tool("curl", "-sS --max-time 5 http://10.96.0.1/").unwrap();
        backend(&curl);
        let curl = space.tool("curl", "-sS --max-time 5 http://[fd00:96::1]/").unwrap();
        backend(&curl);
        let words = "-c printf%20'GET%20/%20HTTP/1.0\\r\\n\\r\\n'|nc%20-w5%2010.96.0.1%2080";
        let mut nc = space.command("busybox");
        nc.arg("sh").args(words.split(' ').map(|word| word.replace("%20", " ")));
        let nc = nc.output().unwrap();
        backend(&String::from_utf8_lossy(&nc.stdout));
    }
    let list = world.daemon().told(&["service", "list"]);
    assert!(list.contains("10.96.0.1:80/TCP") && list.contains("ClusterIP"), "{list}");
}

#[test]
fn one_unconnected_socket_speaks_to_many_services_and_sees_them_alone() {
    let Some(world) = World::up("s9datagram", "", |objects| {
        web(objects);
        objects.put("services", service("dns", 2, 53, json!({})));
        put_slices(objects, "dns", &[here(2), there(2)], POD_PORT);
    }) else {
        return;
    };
    world.serves("10.96.0.2:53/UDP", 2);
    world.serves("[fd00:96::2]:53/UDP", 2);
    world.serves("[fd00:96::1]:80/UDP", 2);
    let [web4, web6] = at(1, 80);
    let [dns4, dns6] = at(2, 53);
    for (to, others) in [(web4, dns4), (web6, dns6), (mapped(web4), mapped(dns4))] {
        let (one, other) = world
            .pod()
            .run(|| {
                let socket = any(to);
                let mut seen = BTreeMap::<SocketAddr, BTreeSet<String>>::new();
                for to in [to, others].into_iter().cycle().take(40) {
                    let (backend, from) = ask_by_datagram(&socket, to);
                    assert_eq!(from, to, "recvmsg(2) tells the service");
                    seen.entry(to).or_default().insert(backend);
                }
                (seen.remove(&to).unwrap(), seen.remove(&others).unwrap())
            })
            .unwrap();
        assert_eq!((one.len(), other.len()), (1, 1), "a socket stays with its backend");
        assert!(one.is_subset(&names(&[here(1), there(1)])), "{one:?}");
        assert!(other.is_subset(&names(&[here(2), there(2)])), "{other:?}");
    }
    let seen: BTreeSet<String> = world
        .pod()
        .run(|| {
            let connected = |_| {
                let socket = any(web4);
                socket.connect(web4).unwrap();
                assert_eq!(socket.peer_addr().unwrap(), web4);
                socket.send(b"hello").unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                let mut buffer = [0; 1500];
                // The sender is asked for, though there can be but one.
                let (length, from) = socket.recv_from(&mut buffer).unwrap();
                assert_eq!(from, web4);
                backend(&String::from_utf8_lossy(&buffer[..length]))
            };
            (0..40).map(connected).collect()
        })
        .unwrap();
    assert_eq!(seen, names(&[here(1), there(1)]), "connected ones choose by chance");
}

/// Answers every question for an address with 192.0.2.7, over UDP and TCP, until the process ends.
fn serve_names(space: &Namespace, address: SocketAddr) {
    let names: Names = Arc::new(|_| Some(vec![Ipv4Addr::new(192, 0, 2, 7).into()]));
    space.run(|| dns::serve(&[address], &names)).unwrap().unwrap();
}

#[test]
fn the_c_librarys_resolver_uses_a_dns_service_by_udp_and_tcp() {
    let Some(world) = World::up("s9dns", "", |objects| {
        objects.put("services", service("dns", 10, 53, json!({})));
        put_slices(objects, "dns", &[here(2), there(2)], 53);
    }) else {
        return;
    };
    for pod in [here(2), there(2)] {
        let space = world.net.lab().pod(pod).unwrap();
        pod.at(53).into_iter().for_each(|address| serve_names(space, address));
    }
    world.serves("10.96.0.10:53/UDP", 2);
    world.serves("[fd00:96::a]:53/TCP", 2);
    let file = world.net.scratch().file("resolv.conf");
    for (server, options) in
        [("10.96.0.10", ""), ("10.96.0.10", "use-vc"), ("fd00:96::a", ""), ("fd00:96::a", "use-vc")]
    {
        let options = format!("options {options} timeout:5 attempts:3");
        std::fs::write(&file, format!("nameserver {server}\n{options}\n")).unwrap();
        for space in [world.host(), world.pod()] {
            let script = format!(
                "mount --bind {} /etc/resolv.conf && getent ahostsv4 web.shop.example",
                file.display()
            );
            let mut command = space.command("unshare");
            let output = command.args(["-m", "sh", "-c", &script]).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(text.contains("192.0.2.7"), "{server} {options}: {output:?}");
        }
    }
}

#[test]
fn node_ports_are_on_node_addresses_and_the_hosts_loopback_and_are_protected() {
    let Some(world) = World::up("s9nodeport", "", |objects| {
        objects.put("services", service("web", 1, 80, json!({"type": "NodePort"})));
        put_slices(objects, "web", &[here(1), there(1)], POD_PORT);
    }) else {
        return;
    };
    world.serves("0.0.0.0:30001/TCP", 2);
    world.serves("[::]:30001/TCP", 2);
    let loopback: Vec<SocketAddr> =
        ["127.0.0.1:30001", "127.5.6.7:30001", "[::1]:30001", "[::ffff:127.0.0.1]:30001"]
            .map(|text| text.parse().unwrap())
            .into();
    let on_node = NODE.at(30_001);
    let connect = |to: SocketAddr| {
        let stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
        assert_eq!(stream.peer_addr()?, to);
        Ok::<_, std::io::Error>(ask(&stream))
    };
    world
        .host()
        .run(|| {
            for to in loopback.iter().chain(&on_node) {
                connect(*to).unwrap_or_else(|error| panic!("{to}: {error}"));
            }
            let (_, from) = ask_by_datagram(&any(loopback[0]), loopback[0]);
            assert_eq!(from, loopback[0]);
            for taken in ["0.0.0.0:30001", "127.0.0.1:30001", "[::]:30001", "[::1]:30001"] {
                let taken: SocketAddr = taken.parse().unwrap();
                let refused = TcpListener::bind(taken).map(drop).unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::AddrInUse, "{taken}");
                let refused = UdpSocket::bind(taken).map(drop).unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::AddrInUse, "{taken}");
            }
            let refused = TcpListener::bind(on_node[0]).map(drop).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::AddrInUse);
            drop(TcpListener::bind("0.0.0.0:30002").unwrap());
        })
        .unwrap();
    world
        .pod()
        .run(|| {
            connect(on_node[0]).unwrap();
            // A pod's loopback and ports are its own.
            assert_eq!(connect(loopback[0]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
            drop(TcpListener::bind("0.0.0.0:30001").unwrap());
        })
        .unwrap();
    assert!(socket_calls(world.daemon(), "bind_refused") >= 9);
    let config = world.text("enabled: true, loopbackNodePorts: false");
    let config = config + "nodePort: {bindProtection: false}\n";
    world.daemon().write(&config);
    wait_until("loopback is left alone", || {
        let refused = world.host().run(|| connect(loopback[0])).unwrap();
        refused.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    });
    drop(world.host().run(|| TcpListener::bind("0.0.0.0:30001").unwrap()).unwrap());
}

fn socket_calls(daemon: &Daemon, result: &str) -> u64 {
    let calls = daemon.stats().socket_calls;
    calls.iter().find(|one| one.result == result).map_or(0, |one| one.calls)
}

#[test]
fn affinity_is_the_network_namespaces_and_outlives_a_change() {
    let Some(world) = World::up("s9affinity", "", |objects| {
        let more = json!({
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 600}},
        });
        objects.put("services", service("web", 1, 80, more));
        put_slices(objects, "web", &[here(1), there(1)], POD_PORT);
    }) else {
        return;
    };
    world.serves("10.96.0.1:80/TCP", 2);
    let to = at(1, 80)[0];
    let ask_often = |space: &Namespace| {
        let one = || (0..20).map(|_| ask(&TcpStream::connect(to).unwrap())).collect();
        let seen: BTreeSet<String> = space.run(one).unwrap();
        seen
    };
    let (host, pod) = (ask_often(world.host()), ask_often(world.pod()));
    assert_eq!((host.len(), pod.len()), (1, 1), "{host:?} {pod:?}");
    put_slices(&world.objects, "web", &[here(1), there(1), here(2), there(2), there(3)], POD_PORT);
    world.serves("10.96.0.1:80/TCP", 5);
    assert_eq!((ask_often(world.host()), ask_often(world.pod())), (host, pod));
}

#[test]
fn without_a_backend_calls_fail_as_kube_proxys_clients_see_it() {
    let Some(world) = World::up("s9none", "", |objects| {
        objects.put("services", service("none", 1, 80, json!({})));
        let local = json!({"internalTrafficPolicy": "Local"});
        objects.put("services", service("local", 2, 80, local));
        put_slices(objects, "local", &[there(1)], POD_PORT);
    }) else {
        return;
    };
    world.serves("10.96.0.1:80/TCP", 0);
    world.serves("[fd00:96::2]:80/UDP", 0);
    let connect = |to: SocketAddr| {
        let begun = Instant::now();
        let error = TcpStream::connect(to).unwrap_err().kind();
        (error, begun.elapsed() < Duration::from_secs(60))
    };
    let errors = |world: &World| {
        let all = || {
            let [none, local] = [1, 2].map(|number| at(number, 80));
            for to in none {
                assert_eq!(connect(to), (ErrorKind::ConnectionRefused, true), "{to}");
                let datagram = any(to).send_to(b"x", to).unwrap_err();
                assert_eq!(datagram.kind(), ErrorKind::ConnectionRefused);
            }
            local.map(connect)
        };
        world.pod().run(all).unwrap()
    };
    assert_eq!(errors(&world), [(ErrorKind::TimedOut, true); 2]);
    let config = world.text("enabled: true, noAllowedBackend: refuse");
    world.daemon().write(&config);
    wait_until("it is refused instead", || {
        errors(&world) == [(ErrorKind::ConnectionRefused, true); 2]
    });
}

#[test]
fn from_inside_external_policies_and_ranges_do_not_count() {
    let Some(world) = World::up("s9short", "", |objects| {
        let more = json!({
            "type": "LoadBalancer",
            "externalTrafficPolicy": "Local",
            "loadBalancerSourceRanges": ["192.0.2.0/24"],
            "lb": "203.0.113.80",
        });
        objects.put("services", service("web", 1, 80, more));
        put_slices(objects, "web", &[there(1)], POD_PORT);
    }) else {
        return;
    };
    world.serves("203.0.113.80:80/TCP/i", 1);
    for to in ["203.0.113.80:80".parse().unwrap(), NODE.at(30_001)[0]] {
        for space in [world.host(), world.pod()] {
            let backend = space.run(|| ask(&TcpStream::connect(to).unwrap())).unwrap();
            assert_eq!(backend, there(1).name(), "{to}");
        }
    }
}

#[test]
fn what_is_no_service_is_as_it_was() {
    let Some(world) = World::up("s9other", "", web) else { return };
    world.serves("10.96.0.1:80/TCP", 2);
    let pod = here(2).at(POD_PORT)[0];
    let (stream, unknown) = world
        .pod()
        .run(|| {
            let stream = TcpStream::connect(pod).unwrap();
            assert_eq!(stream.peer_addr().unwrap(), pod);
            assert_eq!(ask_by_datagram(&any(pod), pod), (here(2).name(), pod));
            let closed = TcpStream::connect(here(2).at(9)[0]).unwrap_err().kind();
            (ask(&stream), closed)
        })
        .unwrap();
    assert_eq!((stream, unknown), (here(2).name(), ErrorKind::ConnectionRefused));
    // A port of a service's address that it does not have.
    let other = world
        .pod()
        .run(|| TcpStream::connect_timeout(&at(1, 81)[0], Duration::from_millis(300)).map(drop));
    assert!(other.unwrap().is_err());
    assert_eq!(socket_calls(world.daemon(), "connected"), 0);
}

#[test]
fn sockets_go_on_without_the_daemon_and_the_next_one_takes_over() {
    let Some(mut world) = World::up("s9killed", "", web) else { return };
    world.serves("10.96.0.1:80/TCP", 2);
    let to = at(1, 80)[0];
    let cgroup = world.cgroup.path().to_owned();
    let links = move || {
        let mut bpftool = std::process::Command::new("bpftool");
        let out = bpftool.args(["cgroup", "show"]).arg(&cgroup).output();
        out.map(|out| String::from_utf8_lossy(&out.stdout).lines().count()).unwrap_or_default()
    };
    let before = links();
    let (held, datagrams) = world.pod().run(|| (TcpStream::connect(to).unwrap(), any(to))).unwrap();
    let (backend, _) = ask_by_datagram(&datagrams, to);
    world.daemon.take().unwrap().kill();
    assert_eq!(held.peer_addr().unwrap(), to);
    assert_eq!(ask_by_datagram(&datagrams, to), (backend.clone(), to));
    world.pod().run(|| ask(&TcpStream::connect(to).unwrap())).unwrap();
    world.start("enabled: true");
    world.serves("10.96.0.1:80/TCP", 2);
    assert_eq!(links(), before, "the programs were replaced, not added");
    assert_eq!(ask_by_datagram(&datagrams, to), (backend, to));
    ask(&held);
    world.pod().run(|| ask(&TcpStream::connect(to).unwrap())).unwrap();

    // Off: nobody translates any more, and nothing is left on the cgroup.
    let config = world.text("enabled: false");
    world.daemon().write(&config);
    wait_until("the programs are detached", || links() == 0);
    let refused = world
        .pod()
        .run(|| TcpStream::connect_timeout(&to, Duration::from_millis(300)).map(drop))
        .unwrap();
    assert!(refused.is_err());
    let config = world.text("enabled: true");
    world.daemon().write(&config);
    wait_until("it is served again", || {
        let one = || TcpStream::connect_timeout(&to, Duration::from_millis(300)).is_ok();
        world.pod().run(one).unwrap()
    });
    let pins = world.daemon().pins().root().to_owned();
    world.daemon.take().unwrap().kill();
    let mut clean = std::process::Command::new(xdp_lb_netns_tests::binary());
    clean.args(["clean", "--pin-dir"]).arg(&pins);
    assert!(clean.status().unwrap().success());
    assert_eq!((links(), pins.exists()), (0, false), "clean removes all of it");
}

#[test]
fn udp_sockets_of_a_removed_backend_are_ended_and_others_are_not() {
    let Some(world) = World::up("s9orphan", "", web) else { return };
    world.serves("10.96.0.1:80/UDP", 2);
    let to = at(1, 80)[0];
    let direct = there(1).at(POD_PORT)[0];
    let (connected, beside, unconnected, tcp) = world
        .pod()
        .run(|| {
            let connected: Vec<(UdpSocket, String)> = (0..20)
                .map(|_| {
                    let socket = any(to);
                    socket.connect(to).unwrap();
                    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                    socket.send(b"hello").unwrap();
                    let mut buffer = [0; 1500];
                    let length = socket.recv(&mut buffer).unwrap();
                    (socket, backend(&String::from_utf8_lossy(&buffer[..length])))
                })
                .collect();
            let beside = any(to);
            beside.connect(direct).unwrap();
            let streams: Vec<_> = (0..20).map(|_| TcpStream::connect(to).unwrap()).collect();
            (connected, beside, any(to), streams)
        })
        .unwrap();
    ask_by_datagram(&unconnected, to);
    put_slices(&world.objects, "web", &[here(1)], POD_PORT);
    world.serves("10.96.0.1:80/UDP", 1);
    let orphans = connected.iter().filter(|(_, backend)| *backend == there(1).name());
    assert!(orphans.clone().count() > 0 && orphans.clone().count() < 20);
    for (socket, _) in orphans {
        let error = socket.recv(&mut [0]).unwrap_err().kind();
        assert_eq!(error, ErrorKind::ConnectionAborted);
        // It connects anew, and reaches one that is there.
        world.pod().run(|| socket.connect(to).unwrap()).unwrap();
        socket.send(b"hello").unwrap();
        assert!(socket.recv(&mut [0; 1500]).is_ok());
    }
    for (socket, _) in connected.iter().filter(|(_, backend)| *backend == here(1).name()) {
        socket.send(b"hello").unwrap();
        assert!(socket.recv(&mut [0; 1500]).is_ok());
    }
    // Who spoke to the pod itself is none of ours.
    beside.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    beside.send(b"hello").unwrap();
    assert!(beside.recv(&mut [0; 1500]).is_ok());
    assert_eq!(ask_by_datagram(&unconnected, to), (here(1).name(), to));
    let seen: BTreeSet<String> = tcp.iter().map(ask).collect();
    assert_eq!(seen, names(&[here(1), there(1)]), "TCP is left alone");
}

#[test]
fn health_checks_ask_the_backend_that_they_are_about() {
    let Some(mut world) = World::up("s9health", "", web) else { return };
    // Ends the tunnels, by which questions go as clients' packets do.
    let _worker = world.net.daemon(Node::Worker, &[], "");
    let service = xdp_lb_netns_tests::PodService::new("checked", "geneve")
        .with("healthCheck: {type: tcp, interval: 1s, rise: 1, fall: 3}")
        .at(&[88], &[])
        .pods([there(1)], POD_PORT)
        // Nobody listens there.
        .pods([there(2)], 9);
    world.daemon.take().unwrap().kill();
    let lines = world.text("enabled: true");
    let lines = lines.split_once("socketLB").map(|(_, rest)| format!("socketLB{rest}")).unwrap();
    let lines: String = lines
        .lines()
        .filter(|line| !line.starts_with("limits"))
        .fold(String::new(), |text, line| text + line + "\n");
    let config = xdp_lb_netns_tests::pods_config(NODE, &[service], &lines);
    let daemon = run(world.net.scratch(), world.host(), "sockets", &config, &[]);
    world.daemon = Some(daemon.unwrap_or_else(|ended| panic!("{ended}")));
    let down = || {
        let told = world.daemon().ask(&["backend", "list", "-o", "json"]).stdout;
        let all: Value = serde_json::from_slice(&told).unwrap_or_default();
        let all = all.as_array().into_iter().flatten().filter(|one| one["service"] == "checked");
        let down = all.filter(|one| one["state"] == "down");
        down.map(|one| one["backend"].as_str().unwrap().to_owned()).collect::<BTreeSet<_>>()
    };
    let closed: BTreeSet<String> = there(2).at(9).iter().map(ToString::to_string).collect();
    wait_until("those without a server are down", || down() == closed);
    for _ in 0..30 {
        thread::sleep(Duration::from_millis(100));
        assert_eq!(down(), closed, "and stay so");
    }
}

/// How a daemon ends that does not start.
fn ends(world: &World, name: &str, lines: &str) -> xdp_lb_netns_tests::Ended {
    let config = xdp_lb_netns_tests::pods_config(NODE, &[], &format!("{lines}\n{}", world.config));
    run(world.net.scratch(), world.host(), name, &config, &[]).unwrap_err()
}

#[test]
fn each_mode_serves_what_it_says_and_says_what_it_serves() {
    let Some(mut world) = World::up("s9modes", "", |objects| {
        let more = json!({"type": "LoadBalancer", "lb": "203.0.113.80"});
        objects.put("services", service("web", 1, 80, more));
        put_slices(objects, "web", &[here(1), there(1)], POD_PORT);
    }) else {
        return;
    };
    world.daemon.take().unwrap().kill();
    let cgroup = world.cgroup.path().display().to_string();
    let own = format!("socketLB: {{cgroupRoot: {cgroup}}}");
    // A hierarchy of the first version, or none at all, has no hooks.
    let without = "socketLB: {cgroupRoot: /proc}";

    let ended = ends(&world, "strict", &format!("kubeProxyReplacement: strict\n{without}"));
    assert_eq!(ended.code, Some(1));
    for part in ["strict", "FEATURE", "socketLB", "/proc is no directory of a cgroup v2", "probe"] {
        assert!(ended.log.contains(part), "{part}: {ended}");
    }

    for (mode, socket_lb, cluster_ip, node_port, status) in [
        ("strict", &*own, true, true, "Strict"),
        ("probe", &*own, true, true, "Probe"),
        ("probe", without, false, true, "Probe"),
        ("partial\nnodePort: {enabled: true}", &*own, false, true, "Partial"),
        ("disabled", &*own, false, false, "Disabled"),
    ] {
        let lines = format!("kubeProxyReplacement: {mode}\n{socket_lb}\n{}", world.config);
        let config = xdp_lb_netns_tests::pods_config(NODE, &[], &lines);
        let daemon = run(world.net.scratch(), world.host(), "sockets", &config, &[]);
        world.daemon = Some(daemon.unwrap_or_else(|ended| panic!("{ended}")));
        let listed = |frontend: &str, state: &str| {
            let told = world.daemon().ask(&["service", "list", "-o", "json"]).stdout;
            let all: Value = serde_json::from_slice(&told).unwrap_or_default();
            let mut all = all.as_array().into_iter().flatten();
            all.any(|one| one["frontend"] == frontend && one["state"] == state)
        };
        let state = |on| if on { "served" } else { "elsewhere" };
        wait_until(&format!("{mode}: all is listed"), || {
            let node_port = match node_port {
                true => listed("10.0.0.1:30001/TCP", "served"),
                false => listed("nodePort 30001/TCP", "elsewhere"),
            };
            listed("10.96.0.1:80/TCP", state(cluster_ip)) && node_port
        });
        let to = at(1, 80)[0];
        let connect = || TcpStream::connect_timeout(&to, Duration::from_millis(300)).is_ok();
        assert_eq!(world.pod().run(connect).unwrap(), cluster_ip, "{mode}");
        let told = world.daemon().told(&["status"]);
        for (name, on) in [("- ClusterIP:", cluster_ip), ("- NodePort:", node_port)] {
            let line = told.lines().find(|line| line.contains(name)).unwrap();
            assert_eq!(line.contains("Enabled"), on, "{mode}: {line}");
        }
        let line = told.lines().find(|line| line.trim_start().starts_with("Status:")).unwrap();
        assert!(line.ends_with(status), "{line}");
        let view = world.daemon().told_json(&["status"]);
        let view = &view["status"]["kubeProxyReplacement"];
        assert_eq!(view["socketLb"]["enabled"], cluster_ip, "{view}");
        if socket_lb == without {
            assert!(told.contains("/proc is no directory of a cgroup v2"), "{told}");
        }
        world.daemon.take().unwrap().kill();
    }
}
