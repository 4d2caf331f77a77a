//! What a Service of a real Kubernetes says counts for clients outside as soon as it is said.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use serde_json::Value;
use xdp_lb::lab::{Answer, Client, ClientError, Node, pods::CLIENTS_4};
use xdp_lb_netns_tests::{Cluster, client_towards, control_plane, wait_until};

const SERVICE: &str = "frontend-external";

/// A cluster with its shop, and where clients find it.
struct Shop {
    cluster: Cluster,
    /// LoadBalancer addresses
    balanced: Vec<SocketAddr>,
    node_port: u16,
}

impl Shop {
    fn client(&self) -> Client {
        // What is dropped in silence takes this long.
        self.cluster.net().client().timeout(Duration::from_millis(700))
    }

    fn patch(&self, spec: &str) {
        self.cluster.kubectl(&format!(
            "-n shop patch service {SERVICE} --type merge -p {{\"spec\":{spec}}}"
        ));
    }

    fn spec(&self) -> Value {
        let text = self.cluster.kubectl(&format!("-n shop get service {SERVICE} -o json"));
        serde_json::from_str::<Value>(&text).unwrap()["spec"].take()
    }

    fn is_refused(&self, to: SocketAddr) -> bool {
        matches!(
            self.client().ask(to, None),
            Err(ClientError::Connect { source, .. }) if source.kind() == ErrorKind::ConnectionRefused
        )
    }

    fn is_dropped(&self, to: SocketAddr) -> bool {
        matches!(
            self.client().ask(to, None),
            Err(ClientError::Connect { source, .. }) if source.kind() == ErrorKind::TimedOut
        )
    }

    /// The answers to so many connections, all of which must be answered.
    fn answers(&self, to: SocketAddr, count: usize) -> Vec<Answer> {
        (0..count).map(|_| self.client().ask(to, None).unwrap()).collect()
    }

    fn nodes_of(&self, answers: &[Answer]) -> BTreeSet<String> {
        let endpoints = self.cluster.endpoints(SERVICE);
        let node = |answer: &Answer| {
            endpoints.iter().find(|one| one.pod == answer.backend).map(|one| one.node.clone())
        };
        answers.iter().filter_map(node).collect()
    }

    fn wait_until_served(&self) {
        for frontend in &self.balanced {
            wait_until("it is served", || self.client().ask(*frontend, None).is_ok());
        }
    }

    /// The status of an HTTP answer of a node, and its body.
    fn health(&self, node: Node, port: u16, path: &str) -> (u16, String) {
        let [v4, _] = node.at(port);
        let response = self.client().get(v4, path, None).unwrap();
        (response.status, String::from_utf8(response.body).unwrap())
    }

    /// Reasons of the Events about the service.
    fn events(&self) -> Vec<String> {
        let selector = format!("involvedObject.name={SERVICE}");
        let events = self.cluster.get(&format!("-n shop events --field-selector {selector}"));
        let from = |event: &&Value| {
            let source =
                event["reportingComponent"].as_str().or(event["source"]["component"].as_str());
            source.is_some_and(|source| source.contains("xdp-lb"))
        };
        events
            .iter()
            .filter(from)
            .map(|event| event["message"].as_str().unwrap_or_default().to_owned())
            .collect()
    }
}

#[test]
fn what_a_service_says_counts_as_soon_as_it_is_said() {
    let Some(assets) = control_plane() else { return };
    let cluster = Cluster::up("xlbnkrules", &assets);
    let _daemons = cluster.daemons();
    cluster.open_shop();
    let (balanced, node_port) = cluster.addresses(SERVICE);
    let shop = Shop { cluster, balanced, node_port };
    shop.wait_until_served();
    local_traffic_stays_local(&shop);
    a_client_keeps_its_pod(&shop);
    others_than_the_source_ranges_are_dropped(&shop);
    annotations_change_the_mode(&shop);
    nodes_that_go_say_so(&shop);
    without_pods_it_is_refused(&shop);
    what_is_deleted_is_gone(&shop);
}

fn local_traffic_stays_local(shop: &Shop) {
    let [balancer, _] = Node::Balancer.at(shop.node_port);
    let [worker2, _] = Node::Worker2.at(shop.node_port);
    shop.patch("{\"externalTrafficPolicy\":\"Local\"}");
    let port = shop.spec()["healthCheckNodePort"].as_u64().unwrap() as u16;
    for (to, node) in [(shop.balanced[0], "balancer"), (balancer, "balancer"), (worker2, "worker2")]
    {
        wait_until("only the node's own pods serve", || {
            shop.nodes_of(&shop.answers(to, 20)) == BTreeSet::from([node.to_owned()])
        });
    }
    for node in [Node::Balancer, Node::Worker2] {
        wait_until("the load balancer is told of a pod", || shop.health(node, port, "/").0 == 200);
        let (_, body) = shop.health(node, port, "/");
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["localEndpoints"], 1, "{body}");
        assert_eq!(body["service"]["name"], SERVICE, "{body}");
    }
    // All pods move to one node.
    let place = "{\"spec\":{\"template\":{\"spec\":{\"nodeSelector\":{\"kubernetes.io/hostname\":\"worker2\"}}}}}";
    shop.cluster.kubectl(&format!("-n shop patch deployment frontend --type merge -p {place}"));
    shop.cluster.rolled_out("frontend");
    wait_until("the load balancer is told of none", || {
        shop.health(Node::Balancer, port, "/").0 == 503
    });
    for to in [shop.balanced[0], shop.balanced[1]] {
        wait_until("what has no pod here is dropped", || shop.is_dropped(to));
    }
    assert_eq!(shop.answers(worker2, 5).len(), 5);
    shop.patch("{\"externalTrafficPolicy\":\"Cluster\"}");
    shop.wait_until_served();
    let place = place.replace("\"worker2\"", "null");
    shop.cluster.kubectl(&format!("-n shop patch deployment frontend --type merge -p {place}"));
    shop.cluster.rolled_out("frontend");
}

fn a_client_keeps_its_pod(shop: &Shop) {
    // Whenever a connection begins, also in the very moment of a change, it is answered.
    let count = |to| -> usize {
        let pods: BTreeSet<String> =
            shop.answers(to, 30).into_iter().map(|answer| answer.backend).collect();
        pods.len()
    };
    shop.patch("{\"sessionAffinity\":\"ClientIP\"}");
    for to in &shop.balanced {
        wait_until("all connections of a client have one pod", || count(*to) == 1);
    }
    assert_eq!(count(shop.balanced[0]), 1);
    shop.patch("{\"sessionAffinity\":\"None\"}");
    wait_until("they have several again", || count(shop.balanced[0]) > 1);
}

fn others_than_the_source_ranges_are_dropped(shop: &Shop) {
    let [own, other] = CLIENTS_4;
    shop.patch(&format!("{{\"loadBalancerSourceRanges\":[\"{other}/32\"]}}"));
    wait_until("other sources are dropped", || shop.is_dropped(shop.balanced[0]));
    let from = |source: IpAddr| shop.client().from(source).ask(shop.balanced[0], None);
    assert_eq!(from(other).unwrap().client.ip(), other);
    assert!(from(own).is_err());
    // The list says nothing of IPv6, and nothing of node ports.
    shop.answers(shop.balanced[1], 3);
    shop.answers(Node::Balancer.at(shop.node_port)[0], 3);
    shop.patch("{\"loadBalancerSourceRanges\":null}");
    shop.wait_until_served();
}

fn annotations_change_the_mode(shop: &Shop) {
    // Whenever a connection begins, also in the very moment of a change, it is answered.
    let seen = |to: SocketAddr| -> BTreeSet<IpAddr> {
        shop.answers(to, 30).into_iter().map(|answer| answer.client.ip()).collect()
    };
    let to = shop.balanced[0];
    let own = client_towards(to.ip());
    shop.cluster.kubectl(&format!("-n shop annotate service {SERVICE} xdp-lb.dev/mode=snat"));
    wait_until("pods on other nodes see the balancer", || seen(to).contains(&Node::Balancer.v4()));
    shop.cluster.kubectl(&format!("-n shop annotate service {SERVICE} xdp-lb.dev/mode-"));
    wait_until("all pods see the client", || seen(to) == BTreeSet::from([own]));
    // What it cannot do is said, and nothing changes.
    shop.cluster.kubectl(&format!("-n shop annotate service {SERVICE} xdp-lb.dev/mode=warp"));
    wait_until("an Event tells", || {
        shop.events().iter().any(|message| message.contains("xdp-lb.dev/mode"))
    });
    assert_eq!(seen(to), BTreeSet::from([own]));
    shop.cluster.kubectl(&format!("-n shop annotate service {SERVICE} xdp-lb.dev/mode-"));
}

fn nodes_that_go_say_so(shop: &Shop) {
    for path in ["/healthz", "/livez"] {
        assert_eq!(shop.health(Node::Worker2, 10_256, path).0, 200, "{path}");
    }
    let taint = "taint node worker2 ToBeDeletedByClusterAutoscaler";
    shop.cluster.kubectl(&format!("{taint}=now:NoSchedule"));
    wait_until("a node that goes is not healthy", || {
        shop.health(Node::Worker2, 10_256, "/healthz").0 == 503
    });
    assert_eq!(shop.health(Node::Worker2, 10_256, "/livez").0, 200);
    shop.cluster.kubectl(&format!("{taint}-"));
    wait_until("it is again", || shop.health(Node::Worker2, 10_256, "/healthz").0 == 200);
}

fn without_pods_it_is_refused(shop: &Shop) {
    shop.cluster.kubectl("-n shop scale deployment/frontend --replicas=0");
    let node_port = Node::Balancer.at(shop.node_port)[0];
    for to in [shop.balanced[0], shop.balanced[1], node_port] {
        wait_until("it is refused", || shop.is_refused(to));
    }
    shop.cluster.kubectl("-n shop scale deployment/frontend --replicas=2");
    shop.wait_until_served();
}

fn what_is_deleted_is_gone(shop: &Shop) {
    shop.cluster.kubectl(&format!("-n shop delete service {SERVICE}"));
    for to in &shop.balanced {
        wait_until("nobody serves", || shop.client().ask(*to, None).is_err());
    }
    shop.cluster.open_shop();
    let (again, _) = shop.cluster.addresses(SERVICE);
    assert_eq!(again, shop.balanced);
    shop.wait_until_served();
}
