//! API servers come and go: the daemon follows the cluster by whichever is left, those that the cluster
//! tells of itself among them.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use serde_json::Value;
use xdp_lb::lab::{Node, PodsSpec, Traffic};
use xdp_lb_netns_tests::{
    Cluster, Daemon, PodsNet, control_plane, pods_config, run, wait_for, wait_until, without_root,
};

/// A second address of the control plane's host. No certificate names it.
const SECOND: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9));
const CONFIGURED: &str = "https://10.0.0.4:6443/";
const LEARNT: &str = "https://10.0.0.9:6443/";

/// Two pods behind a LoadBalancer address, which one daemon alone serves.
const WEB: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, annotations: {xdp-lb.dev/mode: snat}}
spec:
  type: LoadBalancer
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
        - {name: server, image: shop.example.org/web:1, ports: [{containerPort: 8080}],
           readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}}
";

/// The servers as `xdp-lb status` has them.
fn servers(daemon: &Daemon) -> Vec<Value> {
    let told = daemon.ask(&["status", "-o", "json"]).stdout;
    // A daemon that has just started may not answer yet.
    let view: Value = serde_json::from_slice(&told).unwrap_or_default();
    view["status"]["apiServers"].as_array().cloned().unwrap_or_default()
}

fn in_use(daemon: &Daemon) -> Option<String> {
    let servers = servers(daemon);
    let one = servers.iter().find(|one| one["inUse"] == true)?;
    one["url"].as_str().map(str::to_owned)
}

/// Gives the service one more address, by the server that is there, and waits until it is served.
fn change(cluster: &mut Cluster, at: Option<IpAddr>, number: u8) {
    let to = SocketAddr::from(([203, 0, 113, number], 80));
    let patch = format!("{{\"spec\":{{\"externalIPs\":[\"{}\"]}}}}", to.ip());
    let more = at.map(|address| cluster.kubernetes().plane().at_api_server(address));
    let more = more.map(|words| words.join(" ")).unwrap_or_default();
    cluster.kubectl(&format!("-n shop patch service web --type merge -p {patch} {more}"));
    wait_until(&format!("{to} is served"), || cluster.net().client().ask(to, None).is_ok());
}

#[test]
fn the_cluster_is_followed_by_a_server_that_it_tells_of_and_a_restarted_daemon_knows_it() {
    let Some(assets) = control_plane() else { return };
    let mut cluster = Cluster::up("xlbnkserv", &assets);
    let daemon = cluster.daemon(Node::Balancer);
    cluster.kubectl_with("apply -f -", WEB);
    cluster.rolled_out("web");
    let (frontends, _) = cluster.addresses("web");
    let client = cluster.net().client();
    wait_until("it is served", || client.ask(frontends[0], None).is_ok());
    assert_eq!(in_use(&daemon).as_deref(), Some(CONFIGURED));

    cluster.net().ns("plain").ip(&format!("address add {SECOND}/24 dev eth0")).unwrap();
    cluster.kubernetes().plane().add_api_server(SECOND).unwrap();
    // It tells of itself each few seconds.
    wait_for(Duration::from_secs(60), "the second server is known", || {
        servers(&daemon).iter().any(|one| one["url"] == LEARNT && one["learnt"] == true)
    });
    let traffic = Traffic::start(&client, &frontends[..1], 4, Duration::from_millis(5));
    cluster.kubernetes().plane().kill_api_server();
    wait_until("the second server is used", || in_use(&daemon).as_deref() == Some(LEARNT));
    change(&mut cluster, Some(SECOND), 190);

    daemon.kill();
    let daemon = cluster.daemon(Node::Balancer);
    change(&mut cluster, Some(SECOND), 191);
    assert_eq!(in_use(&daemon).as_deref(), Some(LEARNT));
    let text = daemon.told(&["status"]);
    let line = |start: &str, part: &str| {
        text.lines().any(|line| {
            line.starts_with("API server") && line.contains(start) && line.contains(part)
        })
    };
    assert!(line("in use", &format!("{LEARNT} (told by the cluster)")), "{text}");
    assert!(line("failed", CONFIGURED), "{text}");

    cluster.kubernetes().plane().start_api_server().unwrap();
    cluster.kubernetes().plane().kill_added_api_servers();
    wait_until("the configured one is used again", || {
        in_use(&daemon).as_deref() == Some(CONFIGURED)
    });
    change(&mut cluster, None, 192);
    let record = traffic.finish().unwrap();
    assert!(record.failures.is_empty(), "{:?}", record.failures);
    assert!(record.total() > 1000, "{} requests", record.total());
}

#[test]
fn where_nobody_leads_to_a_cluster_ip_it_is_said_and_not_waited_for_in_silence() {
    if without_root() {
        return;
    }
    let net = PodsNet::up("xlbnkclusterip", PodsSpec::default().pods(1));
    let more = "kubernetes: {tokenFile: /dev/null, k8sServiceHost: 10.96.0.1, k8sServicePort: 443, \
                nodeName: balancer, healthz: []}";
    let config = pods_config(Node::Balancer, &[], more);
    let space = net.ns(Node::Balancer.name());
    let daemon = run(net.scratch(), space, "clusterip", &config, &[]).unwrap();
    let part =
        "if 10.96.0.1 is the ClusterIP of default/kubernetes, it leads nowhere without kube-proxy";
    wait_until("it is said", || daemon.log().contains(part));
    wait_until("it is shown", || {
        let text = daemon.told(&["status"]);
        text.contains("degraded") && text.contains(part) && text.contains("k8sServiceHost")
    });
}
