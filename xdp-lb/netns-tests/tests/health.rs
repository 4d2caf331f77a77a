//! Backends are asked the way clients' packets go, and who does not answer gets no new flows.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener},
    sync::atomic::{AtomicU16, Ordering},
    thread,
};

use serde_json::Value;
use xdp_lb::lab::{Capture, Namespace};
use xdp_lb_netns_tests::{
    Daemon, Net, PATIENCE, Service, V4, V4_OVER_6, V6, V6_OVER_4, config_with, far, far6, near,
    near6, network, vip_at, wait_until, without_root,
};

fn backend(daemon: &Daemon, service: &str, address: IpAddr) -> Value {
    let name = address.to_string();
    let is_it = |one: &Value| one["service"] == *service && one["backend"] == *name;
    let list = daemon.told_json(&["backend", "list"]);
    list.as_array().unwrap().iter().find(|one| is_it(one)).unwrap().clone()
}

fn wait_for_health(daemon: &Daemon, service: &str, address: IpAddr, state: &str) {
    wait_until(&format!("{address} of {service} is {state}"), || {
        backend(daemon, service, address)["health"]["state"] == *state
    });
}

/// Names of the backends that answer many connections from ports that were not used before.
fn who(net: &Net, frontend: SocketAddr) -> Vec<String> {
    const MANY: u16 = 60;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 20_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 600 * MANY;
    let answers = net.client().ask_each(frontend, first..=first + MANY - 1).unwrap();
    let mut names: Vec<_> =
        answers.into_iter().filter_map(|one| Some(one.answer.ok()?.backend)).collect();
    names.sort();
    names.dedup();
    names
}

/// The configuration with a check for each service, in their order.
fn config(services: &[(Service, &str)]) -> String {
    let all: Vec<Service> = services.iter().map(|(service, _)| service.clone()).collect();
    let text = config_with(&[("eth0", "native")], &all, "handover: 2s");
    let mut parts = text.split("    frontends:\n");
    let mut text = parts.next().unwrap().to_owned();
    for (part, (_, check)) in parts.zip(services) {
        text.push_str(&format!("    healthCheck: {{{check}, interval: 1s, fall: 2}}\n"));
        text.push_str("    frontends:\n");
        text.push_str(part);
    }
    text
}

/// The first frame to a VIP that comes out of a switch's port, from this source.
fn arriving(capture: &Capture, source: IpAddr, inner_at: usize) -> Vec<u8> {
    let found = capture.wait_for(PATIENCE, |frame| {
        let IpAddr::V4(source) = source else { return false };
        let wanted = inner_at + 12..inner_at + 16;
        frame.sent && frame.bytes.get(wanted) == Some(&source.octets()[..])
    });
    found.unwrap_or_else(|| panic!("nothing from {source}")).bytes
}

/// All before the inner packet but what differs from packet to packet: lengths, checksums and the low
/// byte of the outer source, which is the flow's.
fn form(frame: &[u8], inner_at: usize) -> Vec<u8> {
    let varies = |at: &usize| inner_at > 14 && [16, 17, 24, 25, 29].contains(at);
    (0..inner_at).filter(|at| !varies(at)).map(|at| frame[at]).collect()
}

#[test]
fn questions_go_the_way_of_clients_packets_and_a_stopped_server_is_taken_out() {
    if without_root() {
        return;
    }
    let (direct, six, tunnel) = (vip_at(V4, 80), vip_at(V6, 80), vip_at(V4, 81));
    let (four_in_6, six_in_4) = (vip_at(V4_OVER_6, 80), vip_at(V6_OVER_4, 80));
    let services = [
        (Service::new("direct", "l2").tcp(direct).backends([near(1), near(2)]), "type: tcp"),
        (Service::new("six", "l2").tcp(six).backends([near6(1), near6(2)]), "type: http"),
        (Service::new("tunnel", "ipip").tcp(tunnel).backends([far(1), far(2)]), "type: tcp"),
        (Service::new("four-in-6", "ipip").tcp(four_in_6).backend(far6(1)), "type: http"),
        (Service::new("six-in-4", "ipip").tcp(six_in_4).backend(far(1)), "type: http"),
    ];
    let net = Net::up("xlbnhealth", network(2, 2));
    let _ends = net.terminate(["t1", "t2"]);
    let mut near_servers = net.serve(["b1", "b2"], &[direct, six]);
    let mut far_servers = net.serve(["t1", "t2"], &[tunnel]);
    let _others = net.serve(["t1"], &[four_in_6, six_in_4]);
    let daemon = net.balance(&config(&services));
    for (service, addresses) in [
        ("direct", [near(1), near(2)]),
        ("six", [near6(1), near6(2)]),
        ("tunnel", [far(1), far(2)]),
        ("four-in-6", [far6(1), far6(1)]),
        ("six-in-4", [far(1), far(1)]),
    ] {
        for address in addresses {
            wait_for_health(&daemon, service, address, "up");
            assert_eq!(backend(&daemon, service, address)["health"].get("note"), None);
        }
    }

    // What comes out of the switch's port is what the backend receives.
    let balancer: IpAddr = "10.0.1.7".parse().unwrap();
    let client: IpAddr = "198.51.100.2".parse().unwrap();
    for (switch, port, frontend, inner_at) in
        [("near", "b1", direct, 14), ("far", "t1", tunnel, 34)]
    {
        let capture = Capture::start(net.ns(switch), port).unwrap();
        who(&net, frontend);
        let theirs = arriving(&capture, client, inner_at);
        let ours = arriving(&capture, balancer, inner_at);
        assert_eq!(form(&ours, inner_at), form(&theirs, inner_at), "{port}");
        assert_eq!(ours[inner_at + 16..inner_at + 20], theirs[inner_at + 16..inner_at + 20]);
    }

    for (service, frontend, servers, node, address, rest) in [
        ("direct", direct, &mut near_servers, "b1", near(1), "b2"),
        ("tunnel", tunnel, &mut far_servers, "t1", far(1), "t2"),
    ] {
        assert_eq!(who(&net, frontend), [node, rest]);
        servers.remove(node);
        wait_for_health(&daemon, service, address, "down");
        let shown = backend(&daemon, service, address);
        assert_eq!(shown["state"], "down", "{shown}");
        assert!(shown["health"]["error"].as_str().unwrap().contains("no connection"), "{shown}");
        wait_until("it gets no new connection", || who(&net, frontend) == [rest]);
        servers.extend(net.serve([node], &[frontend]));
        wait_for_health(&daemon, service, address, "up");
        wait_until("it serves again", || who(&net, frontend) == [node, rest]);
    }
    wait_for_health(&daemon, "six", near6(1), "down");

    // The next run knows who was down, and changes nothing before it has asked.
    let log = daemon.log();
    assert!(log.contains("10.0.1.11 of service direct is up again"), "{log}");
    daemon.kill();
    let mut daemon = net.balance(&config(&services));
    assert!(!daemon.log().contains("tables written"), "{}", daemon.log());
    daemon.wait_for(0, "the API is served");
    let shown = backend(&daemon, "six", near6(1));
    assert_eq!((&shown["state"], &shown["health"]["state"]), (&"down".into(), &"down".into()));
}

/// Answers every request with this weight, as long as the test runs.
fn weigh(space: &Namespace, address: SocketAddr, weight: u16) {
    let listener = space.run(|| TcpListener::bind(address)).unwrap().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let _ = stream.read(&mut [0; 4096]);
            let header = format!("X-Load-Balancing-Endpoint-Weight: {weight}");
            let _ = write!(stream, "HTTP/1.1 204 No Content\r\n{header}\r\n\r\n");
        }
    });
}

#[test]
fn where_all_are_down_the_service_says_what_becomes_of_it() {
    if without_root() {
        return;
    }
    let (keep, reject, weighed, owned) =
        (vip_at(V4, 53), vip_at(V4, 80), vip_at(V4, 82), "203.0.113.99:83".parse().unwrap());
    let net = Net::up("xlbnalldown", network(2, 0));
    net.ip("balancer", "addr add 203.0.113.99/32 dev lo");
    let mut servers = net.serve(["b1", "b2"], &[keep, reject]);
    weigh(net.ns("b1"), weighed, 300);
    weigh(net.ns("b2"), weighed, 0);
    // Its backend serves its own address, and nobody asks there for the frontend's.
    let _direct = net.serve(["b1"], &[SocketAddr::new(near(1), 83)]);
    let two = [near(1), near(2)];
    let datagram = "type: udp, send: \"0x70696e67\", expect: \"{\"";
    let daemon = net.balance(&config(&[
        (Service::new("keep", "l2").udp(keep).backends(two), datagram),
        (Service::new("reject", "l2").tcp(reject).backends(two), "type: http, allDown: reject"),
        (
            Service::new("weighed", "l2").tcp(weighed).backends(two),
            "type: http, weightHeader: true",
        ),
        (Service::new("owned", "l2").tcp(owned).backend(near(1)), "type: tcp"),
    ]));
    for (service, address) in
        [("keep", near(1)), ("keep", near(2)), ("reject", near(1)), ("owned", near(1))]
    {
        wait_for_health(&daemon, service, address, "up");
    }
    let note = backend(&daemon, "owned", near(1))["health"]["note"].clone();
    let note = note.as_str().unwrap_or_default();
    assert!(note.contains("own address: 203.0.113.99 is an address of this host"), "{note}");

    wait_until("the first has the weight that it asks for", || {
        backend(&daemon, "weighed", near(1))["health"]["weight"] == 300
    });
    wait_until("the second drains", || backend(&daemon, "weighed", near(2))["state"] == "draining");

    assert_eq!(who(&net, reject), ["b1", "b2"]);
    servers.clear();
    for (service, address) in
        [("keep", near(1)), ("keep", near(2)), ("reject", near(1)), ("reject", near(2))]
    {
        wait_for_health(&daemon, service, address, "down");
    }
    wait_until("the last go on, where they may", || {
        two.iter().any(|one| backend(&daemon, "keep", *one)["state"] == "active")
    });
    for address in two {
        assert_eq!(backend(&daemon, "reject", address)["state"], "down");
    }
    wait_until("new connections are refused", || {
        net.client().ask(reject, None).is_err_and(|error| error.to_string().contains("refused"))
    });
    servers.extend(net.serve(["b2"], &[keep, reject]));
    wait_until("who comes up serves alone", || {
        backend(&daemon, "keep", near(2))["health"]["state"] == "up"
            && backend(&daemon, "keep", near(1))["state"] == "down"
            && who(&net, reject) == ["b2"]
    });
}
