//! A cluster's service outlives its API server and the daemon, and what is new is taken when the server
//! is back. The server is a stand-in, so this runs where no real Kubernetes can be built.

use std::net::{SocketAddr, TcpListener};

use serde_json::{Value, json};
use xdp_lb::lab::{ApiServer, Node, Objects, Pod, PodsSpec};
use xdp_lb_netns_tests::{POD_PORT, PodsNet, load_balancer, wait_until, without_root};

const FRONTEND: u16 = 88;

fn pod(number: u8) -> Pod {
    Pod { node: Node::Plain, number }
}

fn service(frontend: SocketAddr) -> Value {
    json!({
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": "10.96.0.1",
            "clusterIPs": ["10.96.0.1"],
            "ipFamilies": ["IPv4"],
            "ports": [{"port": FRONTEND, "protocol": "TCP", "targetPort": POD_PORT}],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": frontend.ip()}]}},
    })
}

fn slice(pod: Pod) -> Value {
    json!({
        "metadata": {
            "name": "web-x",
            "namespace": "shop",
            "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "", "port": POD_PORT, "protocol": "TCP"}],
        "endpoints": [{
            "addresses": [pod.at(POD_PORT)[0].ip()],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": "plain",
        }],
    })
}

#[test]
fn a_clusters_service_outlives_its_api_server_and_the_daemon() {
    if without_root() {
        return;
    }
    let net = PodsNet::up("xlbnclus", PodsSpec::default().pods(2));
    let _servers = net.serve();
    let frontend = load_balancer(FRONTEND)[0];
    let objects = Objects::default();
    let address = Node::Plain.at(0)[0].ip();
    objects.put(
        "nodes",
        json!({
            "metadata": {"name": "plain"},
            "status": {"addresses": [{"type": "InternalIP", "address": address}]},
        }),
    );
    objects.put("services", service(frontend));
    objects.put("endpointslices", slice(pod(1)));
    let serve = |at: SocketAddr| {
        let listener = net.lab().node(Node::Balancer).unwrap().run(|| TcpListener::bind(at));
        ApiServer::start(objects.clone(), listener.unwrap().unwrap()).unwrap()
    };
    let server = serve(SocketAddr::from(([127, 0, 0, 1], 0)));
    let at = server.address();
    let more = format!(
        "kubernetes: {{apiServers: [\"http://{at}\"], onNode: false, defaultMode: snat, \
         healthz: []}}"
    );
    let who = || net.client().ask(frontend, None).ok().map(|answer| answer.backend);
    let mut daemon = net.daemon(Node::Balancer, &[], &more);
    wait_until("the service is served", || who().is_some());
    let first = who();

    drop(server);
    daemon.wait_for(0, "the cluster is not followed");
    assert_eq!(who(), first, "without the server");
    // What changes meanwhile counts when it can be read.
    objects.put("endpointslices", slice(pod(2)));
    daemon.kill();
    assert_eq!(who(), first, "without the daemon");
    let mut daemon = net.daemon(Node::Balancer, &[], &more);
    daemon.wait_for(0, "the cluster is not followed");
    for _ in 0..20 {
        assert_eq!(who(), first, "a new daemon without a server");
    }

    let _server = serve(at);
    wait_until("what changed counts", || who().is_some_and(|name| Some(&name) != first.as_ref()));
    objects.delete("services", "shop", "web");
    wait_until("a service that is gone is not served", || who().is_none());
}
