//! Many Services and EndpointSlices, without Pods, followed by one daemon. As a test it looks at what
//! is installed; `make bench-k8s` asks for the size that the figures are about, and prints them.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

use std::{
    env, fs,
    future::Future,
    net::Ipv4Addr,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{
    Api, Client, Config,
    api::{Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use xdp_lb::lab::Node;
use xdp_lb_api::{client::Client as ApiClient, view::KubernetesView};
use xdp_lb_netns_tests::{Cluster, Daemon, binary, control_plane, wait_until};

/// Services where the environment asks for no other number.
const SERVICES: usize = 200;
const VARIABLE: &str = "XDP_LB_SERVICES";
/// Endpoints of each.
const ENDPOINTS: usize = 10;
/// Requests to the API server at a time.
const AT_ONCE: usize = 24;
/// Single changes of endpoints; fewer where there are few services.
const CHANGES: usize = 50;
/// How long nothing changes after each: what follows a change is not to delay the next.
const PAUSE: Duration = Duration::from_millis(700);
/// How long the installation of everything may take.
const PATIENCE: Duration = Duration::from_secs(600);
/// How long nothing is written any more once all is installed.
const STILL: Duration = Duration::from_secs(3);
/// What the daemon says of each batch.
const WRITTEN: &str = "tables written";

/// Runs requests to the API server, from where it is.
fn with_api<F: Future<Output = ()>>(cluster: &Cluster, work: impl FnOnce(Client) -> F + Send) {
    let file = cluster.kubeconfig();
    let requests = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let file = Kubeconfig::read_from(file).unwrap();
            let options = KubeConfigOptions::default();
            let config = Config::from_custom_kubeconfig(file, &options).await.unwrap();
            work(Client::try_from(config).unwrap()).await;
        });
    };
    cluster.net().ns(Node::Plain.name()).run(requests).unwrap();
}

fn name(index: usize) -> String {
    format!("service-{index}")
}

/// The LoadBalancer address and port of a service: 200 addresses, with as many ports as it takes.
fn frontend(index: usize) -> (Ipv4Addr, u16) {
    (Ipv4Addr::new(203, 0, 113, (index % 200 + 1) as u8), (1000 + index / 200) as u16)
}

fn service(index: usize) -> Service {
    let (_, port) = frontend(index);
    let object = json!({
        "metadata": {"name": name(index)},
        "spec": {
            "type": "LoadBalancer",
            // Nobody else gives it an address.
            "loadBalancerClass": "xdp-lb.dev/scale",
            "allocateLoadBalancerNodePorts": false,
            "ports": [{"name": "http", "port": port}],
        },
    });
    serde_json::from_value(object).unwrap()
}

fn slice(index: usize) -> EndpointSlice {
    let endpoint = |number: usize| {
        let id = (index * ENDPOINTS + number) as u32;
        // Addresses of pods on the two other nodes, each of its own.
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 128, 0, 1)) + id);
        let node = if number.is_multiple_of(2) { Node::Worker } else { Node::Worker2 };
        json!({
            "addresses": [address],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": node.name(),
        })
    };
    let object = json!({
        "metadata": {
            "name": name(index),
            "labels": {
                "kubernetes.io/service-name": name(index),
                "endpointslice.kubernetes.io/managed-by": "scale.xdp-lb.dev",
            },
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": (0..ENDPOINTS).map(endpoint).collect::<Vec<_>>(),
    });
    serde_json::from_value(object).unwrap()
}

async fn create(client: &Client, index: usize) {
    let services: Api<Service> = Api::default_namespaced(client.clone());
    let slices: Api<EndpointSlice> = Api::default_namespaced(client.clone());
    let parameters = PostParams::default();
    slices.create(&parameters, &slice(index)).await.unwrap();
    services.create(&parameters, &service(index)).await.unwrap();
    let (address, _) = frontend(index);
    let status =
        json!({"status": {"loadBalancer": {"ingress": [{"ip": address, "ipMode": "VIP"}]}}});
    let patch = Patch::Merge(status);
    services.patch_status(&name(index), &PatchParams::default(), &patch).await.unwrap();
}

/// Makes the last endpoint of a service ready, or not.
async fn change(client: &Client, index: usize, ready: bool) {
    let slices: Api<EndpointSlice> = Api::default_namespaced(client.clone());
    let path = format!("/endpoints/{}/conditions/ready", ENDPOINTS - 1);
    let patch = json!([{"op": "replace", "path": path, "value": ready}]);
    let patch = Patch::Json::<()>(serde_json::from_value(patch).unwrap());
    slices.patch(&name(index), &PatchParams::default(), &patch).await.unwrap();
}

/// How often the daemon has written tables.
fn batches(daemon: &Daemon) -> usize {
    daemon.log().matches(WRITTEN).count()
}

/// Waits until so many frontends are served and nothing more is written; returns when the last was.
fn wait_until_installed(daemon: &Daemon, frontends: usize) -> Instant {
    let end = Instant::now() + PATIENCE;
    let (mut seen, mut last) = (0, Instant::now());
    loop {
        let now = batches(daemon);
        if now != seen {
            (seen, last) = (now, Instant::now());
        } else if seen > 0 && last.elapsed() > STILL && served(daemon) == frontends {
            return last;
        }
        assert!(Instant::now() < end, "not all is installed:\n{}", daemon.log());
        thread::sleep(Duration::from_millis(1));
    }
}

/// How many LoadBalancer frontends the daemon serves.
fn served(daemon: &Daemon) -> usize {
    let list = told(daemon, &["service", "list"]);
    let serves = |one: &&Value| one["state"] == "served";
    list.as_array().unwrap().iter().filter(serves).count()
}

/// What a command against the daemon prints.
fn told(daemon: &Daemon, words: &[&str]) -> Value {
    let mut command = Command::new(binary());
    command.args(words).args(["-o", "json", "--socket"]).arg(daemon.socket());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What the daemon tells of the cluster.
fn cluster_of(daemon: &Daemon) -> KubernetesView {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(ApiClient::new(daemon.socket()).get("/kubernetes")).unwrap()
}

/// A line of /proc/PID/status, in megabytes.
fn memory(daemon: &Daemon, line: &str) -> u64 {
    let file = Path::new("/proc").join(daemon.id().to_string()).join("status");
    let text = fs::read_to_string(file).unwrap();
    let line = text.lines().find_map(|one| one.strip_prefix(line)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
}

fn milliseconds(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64() * 1e3;
    format!("median {:.1} ms, 90 % {:.1} ms, longest {:.1} ms", at(50), at(90), at(100))
}

#[test]
fn a_daemon_installs_all_services_of_a_cluster_and_then_only_what_changes() {
    let Some(assets) = control_plane() else { return };
    let count: usize =
        env::var(VARIABLE).map_or(SERVICES, |text| text.parse().expect("a number of services"));
    let mut cluster = Cluster::up("xlbnkscale", &assets);
    let began = Instant::now();
    with_api(&cluster, |client| async move {
        stream::iter(0..count).for_each_concurrent(AT_ONCE, |one| create(&client, one)).await;
    });
    println!("{count} services with {ENDPOINTS} endpoints each created in {:.1?}", began.elapsed());

    let began = Instant::now();
    let limits = "limits: {frontends: 16384, backends: 131072, slots: 16777216, flows: 65536, \
                  answers: 65536, natFlows: 65536}\n";
    let daemon = cluster.daemon_with(Node::Balancer, limits);
    let up = began.elapsed();
    let installed = wait_until_installed(&daemon, count) - began;
    println!(
        "start: data path up after {up:.1?}, all installed after {installed:.1?}, in {} batches",
        batches(&daemon)
    );
    println!(
        "memory: {} MB resident, {} MB at most",
        memory(&daemon, "VmRSS"),
        memory(&daemon, "VmHWM")
    );
    let [etcd, api, controllers] = cluster.kubernetes().plane().memory().map(|bytes| bytes >> 20);
    println!("beside it: etcd {etcd} MB, API server {api} MB, controllers {controllers} MB");

    let rounds = CHANGES.min(count / 20);
    let changed: Vec<usize> = (0..rounds).map(|round| round * 7919 % count).collect();
    let (mut sent, mut answered) = (Vec::new(), Vec::new());
    let (daemon, changes, times) = (&daemon, &changed, (&mut sent, &mut answered));
    with_api(&cluster, |client| async move {
        for index in changes {
            let before = batches(daemon);
            let start = Instant::now();
            change(&client, *index, false).await;
            let response = Instant::now();
            while batches(daemon) == before {
                assert!(start.elapsed() < PATIENCE, "no change came:\n{}", daemon.log());
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
            times.0.push(start.elapsed());
            times.1.push(response.elapsed());
            tokio::time::sleep(PAUSE).await;
        }
    });
    println!("one endpoint's change, from the request to the maps: {}", milliseconds(sent));
    println!("the same, from the API server's answer on: {}", milliseconds(answered));
    let KubernetesView { latency, findings, .. } = cluster_of(daemon);
    let (own, ms) = (latency.change, |seconds: Option<f64>| seconds.unwrap_or_default() * 1e3);
    println!(
        "as the daemon counts, from a change's arrival: median {:.1} ms, 99 % {:.1} ms",
        ms(own.p50),
        ms(own.p99)
    );
    assert_eq!((own.count, findings), (changed.len() as u64, Vec::new()));
    let active = |one: &Value| {
        let all = one["backends"].as_array().unwrap();
        all.iter().filter(|backend| backend["state"] == "active").count()
    };
    // The API tells a moment after the maps have it.
    wait_until("the changed services have one backend less, and no others", || {
        let list = told(daemon, &["service", "list"]);
        let served = list.as_array().unwrap().iter().filter(|one| one["state"] == "served");
        let counts: Vec<usize> = served.map(active).collect();
        let fewer = counts.iter().filter(|active| **active == ENDPOINTS - 1).count();
        let whole = counts.iter().filter(|active| **active == ENDPOINTS).count();
        (fewer, whole) == (changed.len(), count - changed.len())
    });
}
