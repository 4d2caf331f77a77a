//! Packets that do not fit the path: their senders are told, and recover.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

use std::{
    io,
    net::{IpAddr, UdpSocket},
    time::Duration,
};

use xdp_lb::lab::{
    Capture, Item, Recording, ip,
    layers::{self, Body},
};
use xdp_lb_netns_tests::{
    Net, PATIENCE, Service, V4, V4_OVER_6, V6, V6_OVER_4, assert_right, config_with, far, far6,
    network, vip_at, without_root,
};

const PORT: u16 = 80;
/// What the router's link to the backends carries.
const NARROW: u16 = 1400;

/// The network with a narrow link to the far segment, which the balancer's route knows of. Backends
/// offer segments of full size all the same, so that clients send packets of 1500 bytes.
fn narrow() -> Vec<Item> {
    let mut items = network(0, 1);
    items.extend([
        ip("router", &format!("link set dev far mtu {NARROW}")),
        ip("balancer", &format!("route add 10.0.2.0/24 via 10.0.1.1 mtu {NARROW}")),
        ip("balancer", &format!("route add 2001:db8:2:2::/64 via 2001:db8:2:1::1 mtu {NARROW}")),
        ip("t1", &format!("route replace 0.0.0.0/0 via 10.0.2.1 mtu {NARROW} advmss 1460")),
        ip("t1", &format!("route replace ::/0 via 2001:db8:2:2::1 mtu {NARROW} advmss 1440")),
    ]);
    items
}

/// Frontend, backend, and the largest inner packet.
fn ways() -> [(IpAddr, IpAddr, u16); 4] {
    [
        (V4, far(1), NARROW - 20),
        (V6, far6(1), NARROW - 40),
        (V4_OVER_6, far6(1), NARROW - 40),
        (V6_OVER_4, far(1), NARROW - 20),
    ]
}

fn services() -> Vec<Service> {
    let service = |(index, (frontend, backend, _)): (usize, (IpAddr, IpAddr, u16))| {
        Service::new(&format!("way-{index}"), "ipip").both(vip_at(frontend, PORT)).backend(backend)
    };
    ways().into_iter().enumerate().map(service).collect()
}

/// Checks every "too big" message of a recording against the packets that it is about; returns how
/// many there were.
fn check_messages(recording: &Recording, frontend: IpAddr, mtu: u16) -> usize {
    let mut requests: Vec<&[u8]> = Vec::new();
    let mut found = 0;
    for frame in &recording.frames {
        let parsed = layers::frame(&frame.bytes).unwrap();
        let Some(header) = parsed.headers.first() else { continue };
        if header.destination == frontend {
            requests.push(&frame.bytes[14..]);
        }
        let (message, longest, start) = match parsed.body {
            Body::Icmp(message) if message[..2] == [3, 4] => (message, 576, 20),
            Body::Icmpv6(message) if message[..2] == [2, 0] => (message, 1280, 40),
            Body::Icmp(_)
            | Body::Icmpv6(_)
            | Body::Arp(_)
            | Body::Tcp(_)
            | Body::Udp(_)
            | Body::Fragment(_)
            | Body::Other(_) => continue,
        };
        found += 1;
        assert_eq!(header.source, frontend, "it comes from the address that the client knows");
        let reported = u32::from_be_bytes(message[4..8].try_into().unwrap());
        assert_eq!(reported, u32::from(mtu));
        let quote = &message[8..];
        assert_eq!(start + 8 + quote.len(), longest, "it quotes as much as may be");
        let same = |request: &&[u8]| request.starts_with(quote);
        assert!(requests.iter().any(same), "it quotes a packet of the client, byte for byte");
    }
    found
}

#[test]
fn uploads_through_a_narrow_path_recover_by_path_mtu_discovery() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbnmtu", narrow());
    let _unwrapping = net.terminate(["t1"]);
    let daemon = net.balance(&config_with(&[("eth0", "native")], &services(), ""));
    let sockets = ways().map(|(frontend, _, _)| vip_at(frontend, PORT));
    let _servers = net.serve(["t1"], &sockets);
    for (frontend, _, mtu) in ways() {
        // Where the messages arrive as the balancer made them: nobody has counted down their TTL.
        let capture = Capture::start(net.ns("router"), "near").unwrap();
        let outgoing = Capture::start(net.ns("client"), "eth0").unwrap();
        net.client().upload(vip_at(frontend, PORT), 1_000_000).unwrap();
        net.client().download(vip_at(frontend, PORT), 1_000_000).unwrap();
        let longest = outgoing.stop().unwrap();
        let longest = longest.sent().map(<[u8]>::len).max().unwrap();
        assert_eq!(longest, 1514, "the client has tried packets of full size");
        let recording = capture.stop().unwrap();
        assert_right(&recording);
        assert!(check_messages(&recording, frontend, mtu) > 0, "{frontend} has sent no message");
    }
    assert!(daemon.reason("too_big_answered") >= 4);
    assert_eq!(daemon.reason("too_big_no_answer"), 0);
}

#[test]
fn a_datagram_that_is_too_long_is_refused_and_a_shorter_one_is_served() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbnmtuudp", narrow());
    let _unwrapping = net.terminate(["t1"]);
    let _daemon = net.balance(&config_with(&[("eth0", "native")], &services(), ""));
    let sockets = ways().map(|(frontend, _, _)| vip_at(frontend, PORT));
    let _servers = net.serve(["t1"], &sockets);
    for (frontend, _, mtu) in ways() {
        let headers = if frontend.is_ipv4() { 28 } else { 48 };
        let capture = Capture::start(net.ns("router"), "near").unwrap();
        net.ns("client")
            .run(|| {
                let any: IpAddr =
                    if frontend.is_ipv4() { "0.0.0.0" } else { "::" }.parse().unwrap();
                let socket = UdpSocket::bind((any, 0)).unwrap();
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                socket.connect(vip_at(frontend, PORT)).unwrap();
                let datagram = vec![7; 1500];
                socket.send(&datagram[..1500 - headers]).unwrap();
                let refused = socket.recv(&mut [0; 500]).unwrap_err();
                assert_eq!(refused.raw_os_error(), Some(nix::errno::Errno::EMSGSIZE as i32));
                // Exactly what fits.
                let fits = usize::from(mtu) - headers;
                assert_eq!(socket.send(&datagram[..fits]).unwrap(), fits);
                let mut buffer = [0; 500];
                let length = socket.recv(&mut buffer).unwrap();
                let text = String::from_utf8_lossy(&buffer[..length]);
                assert!(text.contains(&format!("\"received\": {fits}")), "{text}");
            })
            .unwrap();
        let recording = capture.stop().unwrap();
        assert_right(&recording);
        assert_eq!(check_messages(&recording, frontend, mtu), 1);
    }
}

#[test]
fn a_flood_of_packets_that_are_too_big_gets_no_more_answers_than_allowed() {
    if without_root() {
        return;
    }
    let mut items = narrow();
    // A locked MTU ignores what ICMP says, so the client goes on.
    items.push(ip("client", "route add 203.0.113.0/24 via 198.51.100.1 mtu lock 1500"));
    let net = Net::up("xlbnmtuflood", items);
    let daemon =
        net.balance(&config_with(&[("eth0", "native")], &services(), "icmpErrorsPerSecond: 5"));
    const FLOOD: u64 = 3000;
    let capture = Capture::start(net.ns("router"), "near").unwrap();
    let send = || -> io::Result<()> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        for n in 0..FLOOD {
            socket.send_to(&[7; 1472], vip_at(V4, PORT))?;
            if n % 100 == 99 {
                // No queue on the way overflows.
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        Ok(())
    };
    net.ns("client").run(send).unwrap().unwrap();
    xdp_lb_netns_tests::wait_until("all have been judged", || {
        daemon.reason("too_big_answered") + daemon.reason("too_big_rate_limited") == FLOOD
    });
    let (answered, limited) =
        (daemon.reason("too_big_answered"), daemon.reason("too_big_rate_limited"));
    assert!(answered >= 1 && limited > FLOOD / 2, "{answered} answered, {limited} not");
    let recording = capture.stop().unwrap();
    assert_right(&recording);
    assert_eq!(check_messages(&recording, V4, NARROW - 20) as u64, answered);
    // Nothing of it reached a backend.
    assert_eq!(daemon.stats().backends.iter().map(|one| one.packets).sum::<u64>(), 0);
}
