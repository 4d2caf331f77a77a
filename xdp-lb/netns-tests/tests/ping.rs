//! Echo requests to services' addresses are answered, and to these alone.

use std::net::IpAddr;

use xdp_lb::lab::{Capture, LabError, describe, layers};
use xdp_lb_netns_tests::{
    Net, Service, V4, V4_OVER_6, V6, assert_right, config, near, near6, network, vip_at,
    without_root,
};

/// What ping(8) prints: `count` requests with `size` bytes of data each.
fn ping(net: &Net, to: IpAddr, size: u16, count: u8) -> Result<String, LabError> {
    net.ns("client").tool("ping", &format!("-n -i 0.01 -W 1 -c {count} -s {size} {to}"))
}

#[test]
fn frontends_answer_pings_of_every_size_and_other_addresses_do_not() {
    if without_root() {
        return;
    }
    let net = Net::up("xlbnping", network(1, 0));
    let services = [
        Service::new("four", "l2").tcp(vip_at(V4, 80)).backend(near(1)),
        Service::new("six", "l2").udp(vip_at(V6, 80)).backend(near6(1)),
    ];
    let daemon = net.balance(&config(&services));
    let capture = Capture::start(net.ns("router"), "near").unwrap();
    // No data, odd lengths, and the longest that fit a frame.
    let sizes = [(V4, [0, 1, 56, 57, 999, 1471, 1472]), (V6, [0, 1, 56, 57, 999, 1451, 1452])];
    let mut sent = 0;
    for (address, sizes) in sizes {
        for size in sizes {
            let text = ping(&net, address, size, 3).unwrap();
            assert!(text.contains("3 received"), "{text}");
            assert!(text.contains(&format!("{} bytes from {address}", size + 8)), "{text}");
            sent += 3;
        }
    }
    let recording = capture.stop().unwrap();
    assert_right(&recording);
    assert_eq!(daemon.reason("echo_answered"), sent);
    let replies = recording.received().filter(|frame| {
        let parsed = layers::frame(frame).unwrap();
        let reply = parsed.headers.first().filter(|ip| ip.source == V4 || ip.source == V6);
        if let Some(ip) = reply {
            assert_eq!(ip.ttl, 64, "{}", describe(frame));
        }
        reply.is_some()
    });
    assert_eq!(replies.count() as u64, sent);

    // The backend has this address, and the router sends it to the balancer.
    let others = [V4_OVER_6, "203.0.113.99".parse().unwrap(), "2001:db8:f::99".parse().unwrap()];
    for other in others {
        let error = ping(&net, other, 56, 2).unwrap_err();
        assert!(matches!(error, LabError::Refused { .. }), "{error}");
    }
    assert_eq!(daemon.reason("echo_answered"), sent);
    // The balancer's own addresses are the kernel's business.
    ping(&net, "10.0.1.7".parse().unwrap(), 56, 1).unwrap();
    ping(&net, "2001:db8:2:1::7".parse().unwrap(), 56, 1).unwrap();
    assert_eq!(daemon.reason("echo_answered"), sent);
}
