//! Connections that begin while a service of pods changes its mode, and ports that are used again.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use xdp_lb::lab::{Node, Pod, PodsSpec};
use xdp_lb_netns_tests::{POD_PORT, PodService, PodsNet, load_balancer, pods_config, without_root};

const INSTANCES: [Node; 3] = [Node::Balancer, Node::Worker, Node::Worker2];
/// Reasons that lose a packet of a client's.
const LOSSES: [&str; 7] = [
    "snat_ports_exhausted",
    "snat_table_full",
    "snat_unknown_flow",
    "translation_ports_exhausted",
    "no_backend",
    "no_next_hop",
    "inconsistent_tables",
];

fn services(mode: &str) -> Vec<PodService> {
    let pods = INSTANCES.into_iter().map(|node| Pod { node, number: 1 });
    vec![PodService::new("web", mode).at(&[80], &[30_080]).pods(pods, POD_PORT)]
}

/// One frontend of each kind and node, so that all share their pods.
fn frontends() -> [SocketAddr; 5] {
    let [four, six] = load_balancer(80);
    let on_node = |node: Node| node.at(30_080)[0];
    let [balancer, worker, worker2] = INSTANCES.map(on_node);
    [four, six, balancer, worker, worker2]
}

/// Ends the asking, also where the test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn what_begins_while_the_mode_changes_is_answered() {
    if without_root() {
        return;
    }
    let net = PodsNet::up("xlbnpchange", PodsSpec::default().pods(1));
    let _servers = net.serve();
    let mut daemons = net.daemons(INSTANCES, &services("geneve"), "");
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let ask = |(number, frontend): (u16, SocketAddr)| {
            let (client, over) = (net.client(), &over);
            scope.spawn(move || {
                // All use the same ports, each a while after the others.
                let mut ports = (20_000..20_300_u16).cycle().skip(usize::from(number) * 60);
                let mut asked = 0;
                while !over.load(Ordering::Relaxed) {
                    let port = ports.next();
                    client
                        .ask(frontend, port)
                        .unwrap_or_else(|error| panic!("{asked}, from {port:?}: {error}"));
                    // A datagram that is lost is not sent again.
                    client
                        .ask_udp(frontend, None, 16, 1)
                        .unwrap_or_else(|error| panic!("datagram {asked}: {error}"));
                    asked += 1;
                }
                asked
            })
        };
        let end = Over(&over);
        let asking: Vec<_> = (0..).zip(frontends()).map(ask).collect();
        for round in 0..2 {
            for mode in ["snat", "geneve", "hybrid", "geneve"] {
                // One node after another, as in a cluster.
                for (daemon, node) in daemons.iter_mut().zip(INSTANCES) {
                    daemon.reload(&pods_config(node, &services(mode), ""));
                }
                for (daemon, reason) in daemons.iter().flat_map(|one| LOSSES.map(|why| (one, why)))
                {
                    assert_eq!(daemon.reason(reason), 0, "{reason}: round {round}, to {mode}");
                }
            }
        }
        drop(end);
        let asked: Vec<u32> = asking.into_iter().map(|one| one.join().unwrap()).collect();
        assert!(asked.iter().all(|asked| *asked > 20), "{asked:?}");
    });
}
