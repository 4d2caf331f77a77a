//! The lab's Kubernetes is one: objects become pods that serve, at the addresses that the API tells.

use std::collections::{BTreeMap, BTreeSet};

use xdp_lb::lab::{
    Client, Node,
    kubernetes::{DEPLOYMENTS, NODES},
};
use xdp_lb_netns_tests::{Cluster, control_plane, wait_until};

#[test]
fn pods_serve_at_the_addresses_that_the_slices_tell_for_as_long_as_they_do() {
    let Some(assets) = control_plane() else { return };
    let cluster = Cluster::up("xlbnkslab", &assets);
    cluster.open_shop();
    let mut nodes = BTreeSet::new();
    for service in DEPLOYMENTS {
        let endpoints = cluster.endpoints(service);
        let pods = cluster.pods(service);
        // One endpoint of each family.
        let wanted: BTreeMap<String, usize> = pods.into_iter().map(|pod| (pod, 2)).collect();
        assert_eq!(cluster.endpoints_of_pods(service), wanted, "{service}");
        for one in endpoints {
            assert!(one.ready, "{one:?}");
            // From another node, the control plane's and from outside.
            for from in ["worker", "worker2", "plain", "client"] {
                let client = Client::new(cluster.net().ns(from));
                let answer = client.ask(one.socket, None).unwrap();
                assert_eq!((&answer.backend, answer.server), (&one.pod, one.socket), "from {from}");
            }
            let at = NODES.into_iter().find(|node| node.name() == one.node).unwrap();
            assert!(
                [at.pod_network_4(), at.pod_network_6()]
                    .iter()
                    .any(|network| network.contains(&one.socket.ip())),
                "{one:?}"
            );
            nodes.insert(one.node);
        }
    }
    assert_eq!(nodes, NODES.map(|node| Node::name(node).to_owned()).into(), "all have pods");
    let (addresses, node_port) = cluster.addresses("frontend-external");
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["203.0.113.80:80", "[2001:db8:80::80]:80"]);
    assert!((30_000..32_768).contains(&node_port));

    for replicas in [6, 2] {
        cluster.kubectl(&format!("-n shop scale deployment/frontend --replicas={replicas}"));
        cluster.rolled_out("frontend");
        wait_until("the slices have no others", || {
            cluster.endpoints_of_pods("frontend").len() == replicas
        });
    }

    // A pod that is deleted serves on while its slice says that it ends, and then is gone for good.
    let doomed = cluster.endpoints("frontend")[0].clone();
    let client = cluster.net().client();
    cluster.kubectl(&format!("-n shop delete pod {} --wait=false", doomed.pod));
    wait_until("the slice says that it ends", || {
        cluster.endpoints("frontend").iter().any(|one| one.pod == doomed.pod && !one.ready)
    });
    assert_eq!(client.ask(doomed.socket, None).unwrap().backend, doomed.pod);
    wait_until("the pod is gone", || {
        cluster.endpoints("frontend").iter().all(|one| one.pod != doomed.pod)
    });
    wait_until("its server is gone", || client.ask(doomed.socket, None).is_err());

    let before: BTreeSet<String> = cluster.pods("frontend").into_iter().collect();
    cluster.kubectl("-n shop rollout restart deployment/frontend");
    cluster.rolled_out("frontend");
    let after: BTreeSet<String> = cluster.pods("frontend").into_iter().collect();
    assert!(before.is_disjoint(&after) && after.len() == 2, "{before:?} {after:?}");
}
