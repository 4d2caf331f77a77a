//! Mode `snat` when its source ports are used up.

use std::{collections::BTreeSet, time::Duration};

use xdp_lb::lab::{Node, Pod, PodsSpec};
use xdp_lb_netns_tests::{POD_PORT, PodService, PodsNet, load_balancer, without_root};

const PORTS: u16 = 64;

#[test]
fn a_used_up_range_is_a_counted_refusal_and_no_two_flows_share_a_tuple() {
    if without_root() {
        return;
    }
    let net = PodsNet::up("xlbnpsnat", PodsSpec::default().pods(1));
    let _servers = net.serve();
    let services = [PodService::new("old", "snat")
        .at(&[82], &[])
        .pods([Pod { node: Node::Plain, number: 1 }], POD_PORT)];
    let last = 61_000 + PORTS - 1;
    let daemon = net.daemon(Node::Balancer, &services, &format!("snat: {{ports: 61000-{last}}}"));
    for frontend in load_balancer(82) {
        let before = daemon.reason("snat_ports_exhausted");
        let mut held = net.client().hold_each(frontend, 5000..=5000 + PORTS - 1).unwrap();
        assert_eq!(daemon.reason("snat_ports_exhausted"), before);
        let impatient = net.client().timeout(Duration::from_millis(200));
        for port in [6000, 6001, 6002] {
            impatient.hold(frontend, Some(port)).unwrap_err();
        }
        assert!(daemon.reason("snat_ports_exhausted") >= before + 3);
        // Those that have a port are served on, each from its own.
        let seen: BTreeSet<u16> =
            held.iter_mut().map(|one| one.ask().unwrap().client.port()).collect();
        assert_eq!(seen, (61_000..=last).collect());
        // Datagrams have ports of their own.
        let answers = net.client().ask_udp_each(frontend, 5000..=5000 + PORTS - 1, 2).unwrap();
        let seen: BTreeSet<u16> =
            answers.into_iter().map(|one| one.answer.unwrap().client.port()).collect();
        assert_eq!(seen, (61_000..=last).collect());
        impatient.ask_udp(frontend, Some(6000), 16, 1).unwrap_err();
    }
    assert!(daemon.stats().table().contains("snat_ports_exhausted"));
}
